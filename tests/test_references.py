"""What windows are measured against where a recording is short, or holds few of the gestures."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import SHARED, call, needs_shared, raw_table, write_raw

from emg_gpt2.commands import predict
from emg_gpt2.live.references import effective_number
from emg_gpt2.model.class_means import ClassMeans, measure_classes, reference_of_mixture

pytestmark = pytest.mark.usefixtures("one_thread")

LOUD = {0: (1, 1, 1, 1), 1: (8, 1, 1, 1), 2: (1, 8, 1, 1), 3: (1, 1, 8, 1), 6: (1, 1, 1, 8)}  # each label's channels
FEW = ("one gesture", "one gesture and rest", "ten seconds", "90 % rest")


def recording(day: int, hour: int, gains: tuple = (1, 1, 1, 1)) -> pd.DataFrame:
    """Three repetitions of 2 s of every gesture after 2 s of rest each: white noise at 1 kHz that LOUD makes louder."""
    labels = np.repeat([label for _ in range(3) for gesture in (1, 2, 3, 6) for label in (0, gesture)], 2000)
    noise = np.random.default_rng(100 * day + hour).normal(0, 20, (len(labels), 4))
    return raw_table(np.rint(noise * np.array([LOUD[label] for label in labels]) * gains), labels)


def name(day: int, hour: int) -> str:
    return f"emg_gestures-03-sequential-2018-05-{day}-{hour}-00-00-000.hdf5"


def parts_of(table: pd.DataFrame, rate: int) -> dict[str, pd.DataFrame]:
    """Parts of a recording that hold few of its gestures, by name."""
    labels = table["TRAJ_GT"].to_numpy()
    rest, gesture, others = (np.flatnonzero(which) for which in (labels == 0, labels == 1, labels > 0))
    rows = {
        FEW[0]: gesture,
        FEW[1]: np.concatenate([rest[: len(gesture)], gesture]),
        FEW[2]: np.arange(min(gesture[0], len(labels) - 10 * rate), len(labels))[: 10 * rate],
        FEW[3]: np.concatenate([np.tile(rest, -(-9 * len(others) // len(rest)))[: 9 * len(others)], others]),
    }
    return {part: table.iloc[kept] for part, kept in rows.items()}


def accuracy(table: pd.DataFrame, rate: int, model: Path, folder: Path, file: str, *more: str) -> float:
    """Accuracy of `predict` without smoothing, on a recording of these rows."""
    folder.mkdir()
    path = write_raw(table.set_axis(5 + np.arange(len(table)) / rate), folder / file)
    named = ["--model", str(model), "--out", str(folder / "out"), "--smooth", "none", *more]
    assert predict.main([str(path), *named]) == 0
    return json.loads((folder / "out" / "metrics.json").read_text())["all"]["with"]["accuracy"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A linear path trained on one day of two recordings."""
    folder = tmp_path_factory.mktemp("planted")
    for hour in (10, 11, 12):
        write_raw(recording(11, hour), folder / name(11, hour))
    windows, run = folder / "windows.parquet", folder / "run"
    assert call("Preprocessing.py", folder, "--data-location", windows).returncode == 0
    named = ["--data-location", windows, "--run-dir", run, "--blocks", "0", "--num-epochs", "1", "--ring", "4"]
    done = call("main.py", *named, "--model-name", "models/gpt2-compact", "--no-refit")
    assert done.returncode == 0, done.stderr
    return run / "best_model"


@pytest.fixture(scope="module")
def later_day() -> pd.DataFrame:
    """Another day, on which the electrodes have other gains."""
    return recording(12, 10, gains=(1.6, 0.7, 1.2, 0.9))


def test_a_whole_session_is_measured_by_itself_without_a_word(model, later_day, tmp_path, capsys):
    assert accuracy(later_day, 1000, model, tmp_path / "whole", name(12, 10)) > 0.95
    assert "as a reference" not in capsys.readouterr().err


@pytest.mark.parametrize("part", FEW)
def test_few_gestures_are_known_as_well_as_many_and_a_warning_says_why(model, later_day, tmp_path, capsys, part):
    table = parts_of(later_day, 1000)[part]
    assert accuracy(table, 1000, model, tmp_path / "part", name(12, 10), "--reference", "session") > 0.95
    said = capsys.readouterr().err
    assert ("short (" in said) == (len(table) < 15_000)
    assert ("one-sided (it looks like" in said) == (part != "ten seconds")


@pytest.mark.parametrize("part", FEW)
def test_few_gestures_are_known_as_well_as_many_by_default(model, later_day, tmp_path, capsys, part):
    """No window is measured against the others of its recording."""
    assert accuracy(parts_of(later_day, 1000)[part], 1000, model, tmp_path / "part", name(12, 10)) > 0.95
    assert "as a reference" not in capsys.readouterr().err


def test_a_signal_of_another_unit_is_far_from_the_training_part(model, later_day, tmp_path, capsys):
    louder = later_day.copy()
    louder[[f"EMG_{n}" for n in range(1, 5)]] *= 100
    accuracy(louder, 1000, model, tmp_path / "louder", name(12, 10))
    assert "the signal is far from the training part" in capsys.readouterr().err


def test_other_labels_than_those_of_training_are_named(model, later_day, tmp_path, capsys):
    """Every gesture has another's label, the last one a label of which the model never heard."""
    other = later_day.assign(TRAJ_GT=later_day["TRAJ_GT"].map({0: 1, 1: 2, 2: 3, 3: 0, 6: 5}))
    assert accuracy(other, 1000, model, tmp_path / "other", name(12, 10)) < 0.05
    said = " ".join(capsys.readouterr().err.split())
    assert "the model does not know label 5; no figure counts it" in said
    assert "a balanced accuracy of 0.0" in said
    assert "is hardly better than guessing (0.250)" in said


@pytest.mark.nightly
@needs_shared
def test_real_recordings_of_one_gesture_are_known_as_well_as_whole_ones(tmp_path):
    """flexemg, person 01, session 1 → 2; see ../shared/cases/42_one_gesture_real.py."""
    windows, run = tmp_path / "flex.parquet", tmp_path / "run"
    names = "0=rest,1=fist,2=wrist down,3=wrist up,6=open hand"
    flags = ["--data-location", windows, "--class-names", names]
    assert call("Preprocessing.py", SHARED / "real" / "flexemg", *flags).returncode == 0
    train = ["--train-on", "01/2018-01-01/*", "--test-on", "01/2018-01-02/*", "--model-name", "models/gpt2-compact"]
    assert call("main.py", "--data-location", windows, *train, "--run-dir", run).returncode == 0
    path = SHARED / "real" / "flexemg" / "emg_gestures-01-sequential-2018-01-02-09-00-00-000.hdf5"
    table = pd.read_hdf(path, "data")
    whole = accuracy(table, 1000, run / "best_model", tmp_path / "whole", path.name)
    for number, (part, rows) in enumerate(parts_of(table, 1000).items()):
        assert accuracy(rows, 1000, run / "best_model", tmp_path / f"{number}", path.name) > whole - 0.05, part
    script = SHARED / "cases" / "42_one_gesture_real.py"
    subprocess.run([sys.executable, script, path, tmp_path / "cut"], check=True)
    for folder in (tmp_path / "cut").iterdir():
        out = folder / "out"
        assert predict.main([str(folder), "--model", str(run / "best_model"), "--out", str(out)]) == 0
        assert json.loads((out / "metrics.json").read_text())["all"]["with"]["accuracy"] >= 0.95


# ---- by hand ----------------------------------------------------------------------------------------------------


def test_class_means_are_those_of_each_class_alone():
    levels, covariance = torch.tensor([[0.0], [2.0], [5.0]]), torch.tensor([[1.0], [3.0], [-2.0]])
    share, level, centre, square = measure_classes(levels, covariance, torch.tensor([1, 1, 0]), 3)
    torch.testing.assert_close(share, torch.tensor([1 / 3, 2 / 3, 0.0]))
    assert (level[:, 0].tolist(), centre[:, 0].tolist(), square[:, 0].tolist()) == ([5, 1, 0], [-2, 2, 0], [4, 5, 0])


def test_a_session_of_one_class_has_the_reference_of_all():
    """One channel. Of two classes as loud as 1 and e² the second alone was seen, at twice the gain."""
    gain, wave = 2.0, torch.sin(2 * torch.pi * torch.arange(100) / 10)[None, :, None] * 2**0.5  # RMS 1
    spread = torch.tensor([[2.0]])  # so the log variances 0 and 4 are −1 and 1 about their mean 2
    means = ClassMeans(*map(torch.tensor, ([0.5, 0.5], [[-1.0], [1.0]], [[-1.0], [1.0]], [[1.0], [1.0]])))
    emg = gain * torch.e**2 * wave.repeat(5, 1, 1)
    reference = reference_of_mixture(emg, torch.tensor([[0.0, 1.0]]).repeat(5, 1), means, spread)
    assert reference.scale.item() == pytest.approx(gain * torch.e, rel=1e-5)
    assert reference.centre.item() == pytest.approx(0.0, abs=0.01)  # shrinkage adds 0.002
    assert reference.spread.item() == pytest.approx(2.0, rel=0.01)


def test_the_effective_number_of_classes():
    assert effective_number(np.array([0.25, 0.25, 0.25, 0.25, 0])) == pytest.approx(4)
    assert effective_number(np.array([1.0, 0.0])) == pytest.approx(1)
