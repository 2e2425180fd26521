"""Figures of merit, worked out by hand for three classes and two people."""

import numpy as np
import pandas as pd
import pytest

from emg_gpt2.training.history import best_epoch, epochs_since_best
from emg_gpt2.windows.reading import WindowSet
from EMG_utils import balanced_loss, compute_metrics

CODES = [0, 1, 6]
CALLED = [  # (subject, true class, predicted class)
    *[("A", 0, 0), ("A", 0, 0), ("A", 0, 1), ("A", 1, 1), ("A", 2, 2)],
    *[("B", 0, 0), ("B", 0, 1), ("B", 1, 1), ("B", 1, 2), ("B", 2, 0), ("B", 2, 2)],
]


def metrics_of(called: list[tuple[str, int, int]]) -> dict:
    """compute_metrics of these windows, found among others of the same file by their row numbers."""
    others = [("C", label, label) for label in range(3)]
    table = pd.DataFrame(
        {"TRAJ_GT": [CODES[t] for _, t, _ in others + called], "subject": [s for s, _, _ in others + called]}
    )
    names = {"0": "idle", "1": "fist", "6": "pinch"}
    windows = WindowSet(np.zeros((len(table), 4, 1), np.int16), table, {"class_names": names})
    probabilities = np.eye(3)[[p for _, _, p in called]] * 0.4 + 0.2
    return compute_metrics(windows, np.arange(3, len(table)), probabilities)


def test_all_windows():
    """Confusion: 5 idle (3 right, 2 fist), 3 fist (2 right, 1 pinch), 3 pinch (2 right, 1 idle); 7 of 11 right.

    Recalls 3/5, 2/3, 2/3 → mean 29/45. Precisions 3/4, 2/4, 2/3.
    F1 = 2 · right / (true + called): 6/9, 4/7, 4/6 → mean 40/63.
    """
    metrics = metrics_of(CALLED)
    assert metrics["confusion_matrix"] == [[3, 2, 0], [0, 2, 1], [1, 0, 2]]
    assert metrics["accuracy"] == pytest.approx(7 / 11)
    assert metrics["balanced_accuracy"] == pytest.approx(29 / 45)
    assert metrics["macro_f1"] == pytest.approx(40 / 63)
    assert metrics["classes"] == {"0": "idle", "1": "fist", "6": "pinch"}
    assert list(metrics["per_class"]) == ["idle", "fist", "pinch"]
    expected = [(3 / 4, 3 / 5, 2 / 3, 5), (1 / 2, 2 / 3, 4 / 7, 3), (2 / 3, 2 / 3, 2 / 3, 3)]
    for found, (precision, recall, f1, support) in zip(metrics["per_class"].values(), expected, strict=True):
        assert found == pytest.approx({"precision": precision, "recall": recall, "f1": f1, "support": support})


def test_each_person():
    """A: 4 of 5 right; recalls 2/3, 1, 1; F1 4/5, 2/3, 1. B: each class has one right, one missed, one false."""
    people = metrics_of(CALLED)["per_subject"]
    assert list(people) == ["A", "B"]
    assert people["A"] == pytest.approx(
        {"accuracy": 4 / 5, "balanced_accuracy": 8 / 9, "macro_f1": 37 / 45, "windows": 5}
    )
    assert people["B"] == pytest.approx(
        {"accuracy": 3 / 6, "balanced_accuracy": 1 / 2, "macro_f1": 1 / 2, "windows": 6}
    )


def test_a_class_that_the_test_part_lacks():
    """Idle 1 of 2 right (the other called fist), pinch 2 of 2; fist has no windows and no recall.

    Balanced accuracy over the classes present: (1/2 + 1) / 2. Macro F1 counts the false fist: (2/3 + 0 + 1) / 3.
    """
    metrics = metrics_of([("A", 0, 0), ("A", 0, 1), ("A", 2, 2), ("A", 2, 2)])
    assert metrics["confusion_matrix"] == [[1, 1, 0], [0, 0, 0], [0, 0, 2]]
    assert metrics["accuracy"] == pytest.approx(3 / 4)
    assert metrics["balanced_accuracy"] == pytest.approx(3 / 4)
    assert metrics["macro_f1"] == pytest.approx(5 / 9)
    assert metrics["per_class"]["fist"] == {"precision": 0, "recall": 0, "f1": 0, "support": 0}


def test_a_class_that_nobody_has_or_is_given():
    """Fist is neither true nor predicted: macro F1 is the mean of the others, 2/2 of idle and 2/2 of pinch."""
    metrics = metrics_of([("A", 0, 0), ("A", 2, 2)])
    assert metrics["macro_f1"] == metrics["balanced_accuracy"] == 1
    assert metrics["confusion_matrix"] == [[1, 0, 0], [0, 0, 0], [0, 0, 1]]


def test_the_first_of_equally_good_epochs_is_kept():
    history = [{"validation_loss": reached} for reached in (0.8, 0.5, 0.6, 0.5, 0.7)]
    assert best_epoch(history) == 1
    assert epochs_since_best(history) == 3
    assert epochs_since_best(history[:2]) == 0
    assert epochs_since_best([]) == 0


def test_without_a_validation_part_the_last_epoch_counts_as_the_best():
    assert best_epoch([{"train_loss": 0.1}, {"train_loss": 0.2}]) == 1


def test_every_class_has_the_same_part_in_the_loss():
    """Three windows of class 0 with p = 1/2 and one of class 2 with p = 1/4: (log 2 + log 4) / 2."""
    probabilities = np.array([[0.5, 0.25, 0.25]] * 3 + [[0.5, 0.25, 0.25]])
    assert balanced_loss(np.array([0, 0, 0, 2]), probabilities) == pytest.approx(1.5 * np.log(2))


def test_a_loss_that_is_no_number_is_never_the_lowest():
    history = [{"validation_loss": loss} for loss in (np.nan, 0.7, np.inf, 0.6, np.nan)]
    assert best_epoch(history) == 3
    assert epochs_since_best(history) == 1
