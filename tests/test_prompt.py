"""prompt: what is read of a new person before what is judged, and the figures, tables and pictures of a study."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, call

from emg_gpt2.study.prompting import Context, draw_mix, question
from emg_gpt2.windows.reading import WindowSet, open_windows
from emg_gpt2.windows.sentences import UNTOLD, sessions_of

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def three_people(tmp_path_factory) -> Path:
    """Rest and two gestures of the first session of three people of the real sample."""
    table = pq.read_table(ROOT / "MYO_10_people.parquet")
    frame = table.drop_columns(["emg"]).to_pandas()
    people = sorted(frame["subject"].unique())[:3]
    kept = frame["subject"].isin(people) & frame["TRAJ_GT"].isin([0, 1, 2])
    kept &= frame["session"] == frame.groupby("subject")["session"].transform("min")
    path = tmp_path_factory.mktemp("three") / "three.parquet"
    pq.write_table(table.filter(pa.array(kept & ((frame["TRAJ_GT"] != 0) | (frame.index % 4 == 0)))), path)
    return path


@pytest.fixture(scope="module")
def windows(three_people) -> WindowSet:
    return open_windows(three_people)


def test_what_is_read_and_what_is_judged_share_no_repetition(windows):
    session, rng = sessions_of(windows, np.arange(len(windows.table)))[0], np.random.default_rng(0)
    for context, told in ((Context("calibrated", "balanced", 2), 6), (Context("unlabelled", "balanced", 6.0), 0)):
        asked = question(session, context, windows, rng)
        assert (asked.told != UNTOLD).sum() == told
        assert asked.first == asked.remembered == (6 if told else 12)  # a window every half second
        keys = [
            set(map(tuple, windows.table.iloc[rows][["recording", "TRAJ_GT", "repetition"]].to_numpy()))
            for rows in (asked.rows[: asked.first], asked.rows[asked.first :])
        ]
        assert not keys[0] & keys[1]
        assert len(keys[0]) == 3  # the first repetition of each gesture


def test_mixes_of_gestures(windows):
    first, rng = (
        {0: np.arange(10), 1: np.arange(10, 20), 2: np.arange(20, 22), 3: np.arange(30, 40)},
        np.random.default_rng(0),
    )
    counts = {mix: np.bincount(draw_mix(first, mix, 20, windows, rng) // 10) for mix in ("balanced", "much rest")}
    assert counts["balanced"].tolist() == [5, 5, 5, 5]  # two windows of the third gesture, drawn five times
    assert counts["much rest"].tolist() == [14, 2, 2, 2]
    few = [set(draw_mix(first, "few gestures", 20, windows, np.random.default_rng(n)) // 10) for n in range(9)]
    assert {len(one) for one in few} == {3}
    assert len(set(map(frozenset, few))) > 1


@pytest.fixture(scope="module")
def study(three_people, tiny_gpt2, tmp_path_factory) -> tuple[Path, list, str]:
    out = tmp_path_factory.mktemp("study") / "prompt"
    flags = ["--data-location", three_people, "--model-name", tiny_gpt2, "--pretrained", "never", "--blocks", "1"]
    flags += ["--context", "20", "--num-epochs", "1", "--no-refit", "--batch-size", "84", "--precision", "fp32"]
    flags += ["--people", "2", "--seeds", "0", "--folds", "1", "--seconds", "5", "--shots", "1,6,30", "--out", out]
    done = call("emg_gpt2.commands.prompt", *flags)
    assert done.returncode == 0, done.stderr
    return out, flags, done.stdout


def test_a_study_of_prompts(study):
    out, _, said = study
    figures = pd.read_csv(out / "prompts.csv")
    kinds = figures[["kind", "mix", "amount"]].drop_duplicates().to_numpy().tolist()
    assert kinds == [
        ["unlabelled", "balanced", 0],
        ["unlabelled", "balanced", 5],
        ["unlabelled", "much rest", 10],
        ["unlabelled", "few gestures", 10],
        ["calibrated", "balanced", 1],
        ["calibrated", "balanced", 6],  # 18 of 20 windows; 30 of each gesture are more than the context holds
    ]
    found = json.loads((out / "prompts.json").read_text())
    nothing = next(row for row in found["results"] if row["amount"] == 0)
    assert nothing["mean"] == pytest.approx(figures[figures["amount"] == 0]["balanced_accuracy"].mean())
    assert f"{nothing['mean']:.3f}" in said
    assert all((out / f"{name}.png").stat().st_size > 9000 for name in ("people", "seconds", "calibration"))


def test_the_same_command_goes_on_and_others_are_refused(study):
    _, flags, said = study
    again = call("emg_gpt2.commands.prompt", *flags)
    assert (again.returncode, again.stdout) == (0, said)
    for more, words in (
        (["--context", "0"], "CONTEXT = 0: the model reads no context"),
        (["--people", "3"], "PEOPLE = 3: fold 0 leaves 2 people to learn from"),
        (["--split", "session"], "prompt sets SPLIT itself"),
        (["--shots", "0"], "SHOTS = 0: should be one number or more, each above 0"),
    ):
        done = call("emg_gpt2.commands.prompt", *flags, *more)
        assert done.returncode in (1, 2)
        assert words in done.stderr
