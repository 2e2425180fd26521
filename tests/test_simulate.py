"""Simulated recordings have putEMG's layout, and a seed names them."""

import re
import sys
from argparse import Namespace

import numpy as np
import pandas as pd
import pytest
from conftest import STEM, run

from emg_gpt2.commands import simulate
from emg_gpt2.study import simulator

SMALL = ["--subjects", "3", "--sessions", "1", "--trajectories", "sequential", "--repetitions", "1"]
SMALL += ["--channels", "2", "--sampling-rate", "500"]


def simulated(folder, *options: str) -> pd.DataFrame:
    simulate.main([str(folder), *SMALL, *options])
    [path] = folder.glob("*.hdf5")
    return pd.read_hdf(path)


def test_a_seed_gives_the_same_recording(tmp_path):
    first, again, other = (
        simulated(tmp_path / name, "--seed", seed) for name, seed in [("first", "4"), ("again", "4"), ("other", "5")]
    )
    pd.testing.assert_frame_equal(first, again)
    emg = ["EMG_1", "EMG_2"]
    assert first[emg].to_numpy().tobytes() == again[emg].to_numpy().tobytes()
    rows = min(len(first), len(other))
    assert (first[emg].to_numpy()[:rows] != other[emg].to_numpy()[:rows]).mean() > 0.5


def test_a_recording_does_not_depend_on_which_others_are_written(tmp_path):
    alone = simulated(tmp_path / "alone")
    simulate.main([str(tmp_path / "both"), *SMALL, "--subjects", "4", "3"])
    assert len(list((tmp_path / "both").iterdir())) == 2
    pd.testing.assert_frame_equal(alone, pd.read_hdf(tmp_path / "both" / f"{STEM}.hdf5"))


def test_people_and_days_differ(tmp_path):
    simulate.main([str(tmp_path), *SMALL, "--subjects", "3", "4", "--sessions", "2"])
    files = sorted(tmp_path.iterdir())
    assert len({tuple(pd.read_hdf(path)["EMG_1"].iloc[:1000]) for path in files}) == 4
    assert [path.name[13:15] for path in files] == ["03", "03", "04", "04"]
    assert len({re.search(r"\d{4}-\d{2}-\d{2}", path.name)[0] for path in files[:2]}) == 2


def test_the_layout_is_putemg_s(tiny_raw):
    table = pd.read_hdf(tiny_raw / f"{STEM}.hdf5")
    after = ["TRAJ_1", "type", "subject", "trajectory", "date_time", "TRAJ_GT_NO_FILTER", "VIDEO_STAMP", "TRAJ_GT"]
    assert list(table.columns) == ["EMG_1", "EMG_2", "EMG_3", *after]
    emg = table[["EMG_1", "EMG_2", "EMG_3"]].to_numpy()
    assert emg.dtype == np.float64
    assert (emg == np.rint(emg)).all()
    assert -2048 <= emg.min() < emg.max() <= 2047
    assert len(table) % 512 == 0
    assert set(table["TRAJ_GT"]) == {-1, 0, 1, 2, 3, 6, 7, 8, 9}
    assert (table["subject"] == 3).all()
    assert (table["type"] == "emg_gestures").all()
    assert (table["trajectory"] == "sequential").all()
    assert (table["date_time"] == pd.Timestamp("2018-05-11 11:10:52.120")).all()
    steps = np.diff(table.index)
    np.testing.assert_allclose(steps, 1 / (500 * 1.000797), rtol=1e-4)  # 0.08 % above the nominal rate
    np.testing.assert_allclose(table.index - table["VIDEO_STAMP"], table.index[0] - table["VIDEO_STAMP"].iloc[0])


def test_the_programme_lasts_as_long_as_putemg_s():
    """271 s, 341 s and 263 s (FORMAT.md); seven gestures of 6 and 8 holds, half 3 s and half 1 s for the latter."""
    assert simulator.programme("repeats_short")[-1].stop == 271
    assert simulator.programme("repeats_long")[-1].stop == 341
    assert simulator.programme("sequential")[-1].stop == 263
    holds = [segment.stop - segment.start for segment in simulator.programme("repeats_long") if segment.label > 0]
    assert (holds.count(3), holds.count(1), len(holds)) == (28, 28, 56)


def test_stronger_gestures_than_idle(tiny_raw):
    """The signal holds what is to be learnt: a fist has more power than rest."""
    table = pd.read_hdf(tiny_raw / f"{STEM}.hdf5")
    spread = table.groupby("TRAJ_GT")[["EMG_1", "EMG_2", "EMG_3"]].std().sum(axis=1)
    assert spread[1] > 1.5 * spread[0]


def test_the_last_line_says_that_it_is_simulated(tmp_path):
    done = run("-m", "emg_gpt2", "simulate", tmp_path / "new" / "folder", *SMALL)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith(STEM)
    assert "1 simulated recordings" in lines[-1]
    assert "not measurements of people" in lines[-1]
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == [f"{STEM}.hdf5"]


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (["--subjects", "0"], "--subjects: 0 is not a number from 1 to 99"),
        (["--subjects", "three"], "--subjects"),
        (["--sessions", "100"], "--sessions: 100 is not"),
        (["--channels", "257"], "--channels: 257 is not a number from 1 to 256"),
        (["--sampling-rate", "100"], "--sampling-rate: 100 is not a number from 500 to 20000"),
        (["--difficulty", "nan"], "--difficulty: nan is not a number from 0 to 5"),
        (["--trajectories", "circles"], "--trajectories: invalid choice: 'circles'"),
        (["--format", "mat"], "--format"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_a_bad_argument_is_named_in_one_sentence(wrong, named, tmp_path, capsys):
    assert simulate.main([str(tmp_path / "out"), *wrong]) == 1
    said = capsys.readouterr().err
    assert said.startswith("simulate: ")
    assert named in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_one_sentence(capsys):
    assert simulate.main(["/dev/null/out", *SMALL]) == 1
    said = capsys.readouterr().err
    assert said.startswith("simulate: /dev/null/out: ")
    assert said.count("\n") == 1


def test_without_pytables_hdf5_is_one_sentence_and_csv_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tables", None)
    assert simulate.main([str(tmp_path), *SMALL]) == 1
    assert 'pip install "emg-gpt2[simulate]"' in capsys.readouterr().err
    assert simulate.main([str(tmp_path), *SMALL, "--format", "csv"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == [f"{STEM}.zip"]


def test_a_hard_person_tells_pinches_apart_by_how_the_muscles_are_driven():
    """Two of them fire faster, two tremble: in the mean frequency, and in what the power of 40 ms does in a window."""
    given = {"seed": 0, "difficulty": 2.0, "channels": 3, "sampling_rate": 1000.0, "repetitions": 2}
    table = simulator.simulate(Namespace(**given), 3, 1, "sequential")
    emg, labels = table.filter(like="EMG_").to_numpy(), table["TRAJ_GT"].to_numpy()
    starts = [s for s in range(0, len(emg) - 240, 240) if len(set(labels[s : s + 240])) == 1]
    windows, label = np.stack([emg[s : s + 240] for s in starts]), labels[starts]  # (n, 240, 3)
    spectrum = np.abs(np.fft.rfft(windows, axis=1))[:, 5:] ** 2  # from 20 Hz
    frequency = (spectrum * np.arange(5, 121)[:, None]).sum(1).mean(1) / spectrum.sum(1).mean(1)
    swing = np.log(windows.reshape(len(windows), 6, 40, 3).var(2)).std(1).mean(1)
    fast, trembling = ([np.median(one[np.isin(label, some)]) for some in pairs] for one, pairs in (
        (frequency, ((6, 8), (7, 9))), (swing, ((6, 7), (8, 9)))
    ))  # fmt: skip
    assert fast[1] > 1.25 * fast[0]
    assert trembling[1] > 1.5 * trembling[0]
