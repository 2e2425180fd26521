"""Verdicts, by hand: the sign-flip test over repetitions, the unit that was held out, and where the errors are."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from emg_gpt2.results.reading import FinishedRun
from emg_gpt2.results.verdicts import compare, held_out_unit, verdicts_of, where_errors_are

METRICS = {"classes": {"0": "rest", "1": "fist", "2": "point"}}


def made(repetitions: int, per: int = 4) -> pd.DataFrame:
    """`repetitions` of each of two gestures, `per` windows each, in two recordings of one person."""
    rows = [
        (code, "01", "a", f"r{number % 2}", number, start)
        for code in (0, 1)
        for number in range(repetitions)
        for start in range(per)
    ]
    return pd.DataFrame(rows, columns=["TRAJ_GT", "subject", "session", "recording", "repetition", "start"])


def test_one_repetition_counts_once_however_many_windows_it_has():
    """6 repetitions of which one classifier gets every window and the other none: p = 2 / 2⁶, for 4 windows or 400."""
    for per in (4, 400):
        table = made(3, per)
        right, wrong = table["TRAJ_GT"].to_numpy(), 1 - table["TRAJ_GT"].to_numpy()
        found = compare(table, right, wrong)
        assert (found.first, found.second, found.count, found.words) == (pytest.approx(1), 0, 6, "better")
        assert found.p == pytest.approx(2 / 64)
        assert compare(table, wrong, right).words == "worse"
        assert compare(table, right, right).words == "no difference beyond chance"


def test_gestures_count_alike_and_a_mixed_result_is_none():
    """Gesture 0 is always right with the first and always wrong with the second, gesture 1 the other way round."""
    table = made(4)
    zeros, ones = np.zeros(len(table), int), np.ones(len(table), int)
    found = compare(table, zeros, ones)
    assert (found.first, found.second) == (pytest.approx(0.5), pytest.approx(0.5))
    assert found.words == "no difference beyond chance"


def test_repetitions_that_are_alike_with_both_say_nothing():
    """However many there are: one that differs gives p = 1, and six give 2 / 2⁶."""
    table = made(20)
    right = table["TRAJ_GT"].to_numpy()
    for differing, p in ((1, 1), (2, 0.5), (6, 2 / 64)):
        changed = np.where((table["repetition"] < differing) & (right == 0), 1, right)
        assert compare(table, right, changed).p == pytest.approx(p)


def test_too_few_units_say_nothing():
    table = made(6)
    right = table["TRAJ_GT"].to_numpy()
    found = compare(table, right, 1 - right, "recording")
    assert (found.words, found.p, found.count) == ("too few recordings to say (2)", None, 2)
    assert found.sentence == "balanced accuracy 1.000 beside 0.000: too few recordings to say (2)"
    assert "too few people" in compare(table, right, right, "person").words


def run_of(validation: pd.DataFrame | None, split: pd.DataFrame | None = None, **more) -> FinishedRun:
    settings = {"BLOCKS": 2} | more.pop("settings", {})
    return FinishedRun(Path("runs/x"), METRICS, settings, {}, validation=validation, split=split, **more)


def test_the_unit_is_what_training_left_out():
    table = made(4)
    half = np.where(table["repetition"] < 2, "train", "validation")
    assert held_out_unit(run_of(None, table.assign(part=half))) == "repetition"
    recordings = np.where(table["recording"] == "r0", "train", "validation")
    assert held_out_unit(run_of(None, table.assign(part=recordings))) == "recording"
    people = table.assign(subject=np.where(table["recording"] == "r0", "01", "02"), part=recordings)
    assert held_out_unit(run_of(None, people)) == "person"
    assert held_out_unit(run_of(None)) == "repetition"


def test_a_run_says_what_was_and_what_was_not_compared():
    table = made(3)
    right, wrong = table["TRAJ_GT"].to_numpy(), 1 - table["TRAJ_GT"].to_numpy()
    table = table.assign(predicted=right, linear_path=wrong)
    linear, baseline, errors = verdicts_of(run_of(table))
    assert linear.startswith(
        "the backbone adds +1.000 to the linear path (balanced accuracy 1.000 beside 0.000: better"
    )
    assert baseline == "no baseline was run beside it (python -m emg_gpt2 baselines --add-to runs/x)"
    assert errors == "0 of 24 windows are wrong: too few to say where the errors are"
    best = {"classifier": "SVM", "features": "RMS", "tried": 40, "predicted": right.tolist()}
    best |= {"level": "transductive"}
    without = table.drop(columns="linear_path")
    linear, baseline, _ = verdicts_of(run_of(without, baselines={"validation": best}))
    assert linear == "the model has no linear path to compare it with"
    assert "+0.000 from SVM on RMS, transductive, the best of 40 baselines" in baseline
    assert "no difference beyond chance" in baseline
    assert verdicts_of(run_of(table, settings={"BLOCKS": 0}))[0].startswith("tokens and head without a backbone add")
    assert verdicts_of(run_of(None)) == []  # a run of an older version


def errors_of(*counts: tuple[int, int, int]) -> str:
    """counts: (true, predicted, windows)."""
    rows = [pair[:2] for pair in counts for _ in range(pair[2])]
    return where_errors_are(pd.DataFrame(rows, columns=["TRAJ_GT", "predicted"]), METRICS)


def test_a_gesture_dominates_the_errors_beyond_its_share_of_the_windows():
    said = errors_of((0, 0, 100), (1, 1, 80), (2, 2, 8), (2, 1, 10), (2, 0, 2), (1, 0, 8))
    assert said.startswith("60 % of the 20 errors are windows of point, which has 10 % of the windows; 10 of these 12")
    assert said.endswith("are predicted as fist")
    said = errors_of((0, 0, 10), (1, 1, 90), (2, 2, 90), (1, 0, 10), (2, 0, 10))
    assert said.startswith("100 % of the 20 errors are windows predicted as rest, which has 5 % of the windows")
    assert (
        errors_of((0, 0, 20), (1, 1, 20), (2, 2, 20), (0, 1, 5), (1, 2, 5), (2, 0, 5))
        == "no gesture dominates the 15 errors"
    )
