"""The classifiers beside the model, on windows that are told apart by hand."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import wilcoxon
from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis

from EMG_DATA_LOADER import Split
from emg_gpt2.base.errors import EMGError
from emg_gpt2.settings import Settings
from emg_gpt2.study import rivals
from emg_gpt2.study.baselines import beside_run, best_of_levels, compare_rivals
from emg_gpt2.study.bench import Bench
from emg_gpt2.study.features import FEATURE_SETS, compute_features
from emg_gpt2.study.levels import judged_averages, known, training_averages
from emg_gpt2.study.networks import MiniRocket
from emg_gpt2.study.rivals import CLASSIFIERS, class_means, shared_covariance
from emg_gpt2.study.views import deviations, moments
from emg_gpt2.windows.reading import WindowSet
from EMG_utils import balanced_accuracy

DAYS, REPETITIONS = ("a", "b", "c"), 2


def made_windows(unit: str = "count", gain: float = 1.0, still: float | None = None) -> tuple[WindowSet, Split]:
    """Two gestures, two repetitions of ten windows (T = 30, C = 3) on three days; on day c channels are `gain` times
    as strong. Training on a, validation on b, test on c."""
    rng, strength = np.random.default_rng(1), np.array([[5.0, 50, 20], [50.0, 5, 20]])  # counts, by gesture
    gesture = np.tile(np.repeat([0, 1], 10), REPETITIONS * len(DAYS))
    table = pd.DataFrame({"TRAJ_GT": gesture, "session": np.repeat(DAYS, 20 * REPETITIONS)})
    table = table.assign(subject="01", recording=table["session"], start=np.arange(float(len(table))))
    table["repetition"] = np.tile(np.repeat(range(REPETITIONS), 20), len(DAYS))
    emg = rng.normal(size=(len(table), 30, 3)) * strength[gesture, None]
    emg[80:] *= gain
    if still is not None:
        emg[..., 2] = still
    described = {"scale": 1.0, "unit": unit, "class_names": {"0": "rest", "1": "fist"}, "note": ""}
    windows = WindowSet(emg, table, described)
    return windows, Split(np.arange(40), np.arange(40, 80), np.arange(80, 120), "named", "day a, b, then c")


def every_level(rival, bench: Bench) -> dict[str, float]:
    """Balanced accuracy at each level with the first of the settings."""
    found = {}
    for level in rival.levels:
        predicted = rival.predict(bench, level, rival.settings[0], rival.strengths(level)[0], 100)
        found[level] = balanced_accuracy(bench.targets_of(level), predicted)
    return found


def one_of_each_kind() -> list:
    """A classifier for every view and every way of fitting."""
    found = {}
    for one in rivals.all_rivals():
        found.setdefault((type(one), one.features, one.classifier if one.features in ("RMS", "signal") else ""), one)
    return list(found.values())


@pytest.mark.parametrize("chosen", [one_of_each_kind, pytest.param(rivals.all_rivals, marks=pytest.mark.nightly)])
def test_gestures_that_differ_in_strength_are_told_apart_by_every_classifier(chosen):
    windows, split = made_windows()
    bench = Bench(windows, split.train, split.test, 16)
    for one in chosen():
        found = every_level(one, bench)
        assert min(found.values()) >= 0.9, (one.features, one.classifier, found)


def test_what_is_known_of_a_session_takes_out_the_gain_of_a_day():
    """Ten times the amplitude puts a day outside of everything that the training part knew."""
    windows, split = made_windows(gain=10)
    found = every_level(rivals.plain_rival("RMS", "SVM"), Bench(windows, split.train, split.test, 16))
    assert found["inductive"] == 0.5
    assert found["transductive"] == 1
    assert found["calibrated"] >= 0.9
    assert 0.5 < found["unlabelled"] < 1  # the first windows come too early


def test_only_windows_before_the_judged_one_are_known():
    """At most 4 of them, half as many after the sentence began anew; a calibration of 3 windows is not judged."""
    windows, split = made_windows()
    found = known(windows, split.test, 4, split.train)
    past = {
        row: one.rows[:count] for one in found["unlabelled"] for row, count in zip(one.judged, one.counts, strict=True)
    }
    assert list(past) == list(split.test)
    for row, before in past.items():
        assert list(before) == list(range(row - len(before), row))
        assert min(row - 80, 2) <= len(before) <= 4
    [calibrated] = found["calibrated"]
    assert set(calibrated.rows) <= {*range(80, 100)}  # the first repetitions
    assert list(calibrated.judged) == list(range(100, 120))
    assert [len(one.rows) for one in found["inductive"]] == [0]
    assert list(found["transductive"][0].counts) == [40] * 40


def test_a_later_window_changes_no_average():
    windows, split = made_windows()
    level = known(windows, split.test, 8, split.train)["unlabelled"]
    table = moments(windows, np.arange(120))
    training = training_averages(windows, split.train, table, "sessions")
    before = judged_averages(windows, level, table, training, 8)
    table[110:] = 1e6
    after = judged_averages(windows, level, table, training, 8)
    np.testing.assert_array_equal(before[:31], after[:31])  # the window 110 itself is judged from those before it
    np.testing.assert_allclose(before[0], table[:40].mean(0))  # nothing is known yet: the training part's
    np.testing.assert_allclose(before[2], (8 * table[:40].mean(0) + table[80:82].sum(0)) / 10)


def test_balanced_averages_give_each_gesture_the_same_weight():
    windows, _ = made_windows()
    table, train = np.arange(120.0)[:, None], np.arange(30)  # 20 of the first gesture, 10 of the second
    first, second = [*range(10), *range(20, 30)], [*range(10, 20)]
    found = training_averages(windows, train, table, "balanced sessions")
    assert found.of(("01", "a"))[0] == pytest.approx((np.mean(first) + np.mean(second)) / 2)
    assert found.of(("02", "x"))[0] == found.of(("01", "a"))[0]  # of an unknown person: the mean of all sessions


def test_a_session_without_gestures_to_spare_has_no_calibrated_level():
    """Of one repetition each: the training part's first ones are taken where they are of the same session."""
    windows, split = made_windows()
    second = np.arange(100, 120)
    assert "calibrated" not in known(windows, second, 8, split.train)
    [found] = known(windows, second, 8, np.arange(100))["calibrated"]
    assert set(found.rows) <= {*range(80, 100)}
    assert list(found.judged) == list(second)


@pytest.mark.parametrize("still", [0, 0.1])
def test_a_channel_that_lies_still_gives_neither_nan_nor_warnings(still):
    windows, split = made_windows("as recorded", still=still)
    bench = Bench(windows, split.train, split.test, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for one in rivals.all_rivals():
            if one.features in ("Du", "tangent space + Du") and one.classifier != "SVM":
                assert min(every_level(one, bench).values()) >= 0.9, (one.features, one.classifier)
    assert deviations(moments(windows, split.train)[:40].mean(0))[2] == 1


def test_no_signal_at_all_is_said_in_words():
    windows, split = made_windows()
    silent = WindowSet(np.zeros_like(windows.emg), windows.table, windows.metadata)
    with pytest.raises(EMGError, match="no channel changes"):
        compare_rivals(silent, split, Settings())


def test_thresholds_are_counts_where_the_unit_is_count_and_relative_elsewhere():
    """A standard deviation stands for 10 counts: of the training part, or of the day with its ten-fold gain."""
    (windows, split), (other, _) = made_windows(gain=10), made_windows("as recorded", gain=10)
    part, day = windows.emg[:40].std((0, 1)), windows.emg[80:].std((0, 1))
    rows = np.arange(80, 120)
    for one, level, emg in (
        (windows, "inductive", windows.emg),
        (other, "inductive", 10 * windows.emg / part),
        (windows, "transductive", 10 * windows.emg / day),
    ):
        bench, expected = Bench(one, split.train, split.test, 8), compute_features(emg, rows)
        found = np.split(bench.judged("Du", level, level == "inductive"), 6, axis=1)
        for name, values in zip(FEATURE_SETS["Du"], found, strict=True):
            if name in ("ZC", "SSC", "WAMP"):
                np.testing.assert_array_equal(values, expected[name])


def test_qda_is_that_of_reg_param_where_both_work():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(60, 5)) * [1, 2, 3, 1, 1], np.repeat([0, 1], 30)
    x[30:] += 1
    ours = CLASSIFIERS["QDA"].fit(x, y).predict_proba(x)
    theirs = QuadraticDiscriminantAnalysis(reg_param=0.3).fit(x, y).predict_proba(x)
    np.testing.assert_allclose(ours, theirs, atol=1e-9)


def test_class_means_of_a_calibration_and_of_the_training_part():
    """Of two gestures the calibration has one. Its mean 4 counts twice beside the training part's 0: 8/3."""
    told, targets, means = np.array([[3.0], [5.0]]), np.array([0, 0]), np.array([[0.0], [9.0]])
    judged, within = np.array([[5.8], [5.9], [100.0]]), np.eye(1)
    assert class_means(told, targets, judged, means, within, None).tolist() == [0, 0, 0]
    middle = (8 / 3 + 9) / 2  # 5.83
    expected = [int(value > middle) for value in judged[:, 0]]
    assert shared_covariance(told, targets, judged, means, within, 1).tolist() == expected == [0, 1, 1]


def test_minirocket_gives_the_share_of_samples_beyond_a_bias():
    """The kernel 2 2 2 −1 … on a step: by hand with numpy."""
    windows, _ = made_windows()
    view = MiniRocket(windows, np.arange(120), seed=0)
    assert view.weights.shape == (84, 9)
    assert torch.all(view.weights.sum(1) == 0)
    averages = np.concatenate([np.zeros((120, 3)), np.ones((120, 3))], axis=1)  # deviations of 1
    found = view.measure(np.arange(120), averages, "all")
    weights, chosen = view.weights[0].numpy(), view.chosen[0, 0].numpy()
    signal = np.pad((windows.emg[5] * chosen).sum(1), 4)
    convolved = np.array([signal[at : at + 9] @ weights for at in range(30)])
    bias = view.biases[0][0].numpy()
    np.testing.assert_allclose(found[5, : len(bias)], [(convolved > one).mean() for one in bias], atol=1e-3)


def test_many_windows_are_thinned_for_the_slow_classifiers():
    """24 of 40: 12 of each gesture; the same seed draws the same ones."""
    windows, split = made_windows()
    bench = Bench(windows, split.train, split.test, 8, seed=5)
    drawn = bench.sample(24)
    assert np.bincount(bench.targets[drawn]).tolist() == [12, 12]
    assert drawn.tolist() == bench.sample(24).tolist()
    assert len(bench.sample(40)) == 40


def test_a_run_is_compared_over_people_with_wilcoxon_s_test():
    """Six people, all of them better by 0.1 and more: the smallest p of six, 2 / 2⁶."""
    theirs = {str(person): {"balanced_accuracy": 0.5 + 0.01 * person} for person in range(6)}
    ours = {
        name: {"balanced_accuracy": one["balanced_accuracy"] + 0.1 + 0.01 * int(name)} for name, one in theirs.items()
    }
    found = beside_run({"unlabelled": {"per_subject": theirs}}, {"unlabelled": ours, "inductive": ours})
    assert set(found) == {"unlabelled"}
    assert found["unlabelled"]["difference"] == pytest.approx(0.125)
    assert found["unlabelled"]["p"] == pytest.approx(2 / 2**6) == wilcoxon(np.arange(1, 7)).pvalue
    few = {"unlabelled": {name: ours[name] for name in "01234"}}
    assert beside_run({"unlabelled": {"per_subject": theirs}}, few)["unlabelled"]["p"] is None


def test_the_best_is_that_of_the_validation_part_and_not_of_the_test_part():
    rows = [
        {"level": "inductive", "classifier": name, "validation": validation, "balanced_accuracy": reached}
        for name, validation, reached in (("LDA", 0.8, 0.6), ("SVM", 0.7, 0.9))
    ]
    assert best_of_levels(rows) == {"inductive": rows[0] | {"tried": 2}}


def test_without_pyriemann_the_tangent_space_is_left_out_and_that_is_said(monkeypatch):
    monkeypatch.setattr(rivals, "HAS_PYRIEMANN", False)
    assert not [one for one in rivals.all_rivals() if "tangent" in one.features]
