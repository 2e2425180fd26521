"""lopsided: a finished run's test part judged again, with other mixes of gestures in its sessions."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import call

from EMG_DATA_LOADER import read_emg
from emg_gpt2.model.build import load_model
from emg_gpt2.model.normalise import measure_reference
from emg_gpt2.settings import Settings
from emg_gpt2.study import lopsided
from emg_gpt2.study.lopsided import draw_mix, summary_of
from emg_gpt2.windows.reading import WindowSet, load_windows
from EMG_utils import balanced_accuracy

pytestmark = pytest.mark.usefixtures("one_thread")


def counted(mix: str, *sessions: tuple[int, int, int, int]) -> list[list[int]]:
    """The windows of the labels 0, 1, 4 and 6 in each session of a mix, from those that were recorded."""
    labels = [
        label for counts in sessions for label, count in zip((0, 1, 4, 6), counts, strict=True) for _ in range(count)
    ]
    days = [str(day) for day, counts in enumerate(sessions) for _ in range(sum(counts))]
    table = pd.DataFrame({"TRAJ_GT": labels, "subject": "1", "session": days})
    names = {str(label): f"gesture {label}" for label in (0, 1, 4, 6)}
    windows = WindowSet(np.zeros((len(table), 2, 1), np.int16), table, {"class_names": names})
    rows = draw_mix(windows, np.arange(len(table)), mix, np.random.default_rng(0))
    assert list(rows) == sorted(set(rows))
    drawn = table.iloc[rows]
    return [
        [int(((drawn["session"] == str(day)) & (drawn["TRAJ_GT"] == label)).sum()) for label in (0, 1, 4, 6)]
        for day in range(len(sessions))
    ]


def test_mixes_are_drawn_from_each_session_as_they_say():
    """70 rest leave room for 30 others; 21 rest for 9 of 60; of 20 others 47 of 90 rest."""
    assert counted("balanced", (70, 10, 20, 30), (5, 6, 7, 0)) == [[10] * 4, [5, 5, 5, 0]]
    much = counted("much rest", (70, 10, 20, 30), (21, 20, 20, 20), (90, 20, 0, 0))
    assert [(session[0], sum(session[1:])) for session in much] == [(70, 30), (21, 9), (47, 20)]
    for session, recorded in zip(
        counted("few gestures", (70, 10, 20, 30), (5, 6, 7, 8)), ((70, 10, 20, 30), (5, 6, 7, 8)), strict=True
    ):
        assert session.count(0) == 1
        assert all(count in (0, whole) for count, whole in zip(session, recorded, strict=True))


def test_figures_are_means_over_sessions_people_and_draws():
    """Person 1: sessions of 1.0 and 0.5, so 0.75; person 2: 0.25. Their mean is 0.5, in the second draw 0.7."""
    rows = [(0, "1", "a", 1.0), (0, "1", "b", 0.5), (0, "2", "a", 0.25), (1, "1", "a", 0.8), (1, "2", "a", 0.6)]
    figures = pd.DataFrame(rows, columns=["draw", "subject", "session", "balanced_accuracy"])
    found = summary_of(figures.assign(mix="balanced", way="none"))["balanced"]["none"]
    assert found["balanced_accuracy"] == pytest.approx(0.6)
    assert found["std_over_draws"] == pytest.approx(0.2 / 2**0.5)
    assert found["per_subject"] == pytest.approx({"1": 0.775, "2": 0.425})


@torch.no_grad()
def test_a_run_is_judged_again(trained, small_file, tmp_path, monkeypatch):
    """As recorded by the model as it is: the run's own figure; the session's signal as a whole changes it."""
    monkeypatch.setattr(lopsided, "DRAWS", 1)
    run = shutil.copytree(trained, tmp_path / "run")
    done = call("emg_gpt2.commands.lopsided", run)
    assert done.returncode == 0, done.stderr
    found = json.loads((run / "lopsided.json").read_text())
    assert list(found["mixes"]) == ["as recorded", "balanced", "much rest", "few gestures"]
    assert all(list(ways) == ["none", "transductive"] for ways in found["mixes"].values())
    recorded, metrics = found["mixes"]["as recorded"], json.loads((run / "metrics.json").read_text())
    assert recorded["none"]["balanced_accuracy"] == pytest.approx(metrics["balanced_accuracy"])
    windows, model = load_windows(Settings(DATA_LOCATION=small_file)), load_model(run / "best_model")
    day = np.flatnonzero(windows.table["session"] == "2018-06-14")
    emg = read_emg(windows, day)
    predicted = model(emg, measure_reference(emg)).logits.argmax(1).numpy()
    expected = balanced_accuracy(windows.targets[day], predicted)
    assert recorded["transductive"]["balanced_accuracy"] == pytest.approx(expected, abs=0.002)
    assert f"{expected:.3f}"[:4] in done.stdout
    assert "transductive: each window was measured against the signal of its whole session" in done.stdout
