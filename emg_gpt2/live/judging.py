"""What decisions are worth, beside the labels of the recording.

Figures are about windows that lie inside one repetition less its trimmed edges, as those that models are trained on.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from emg_gpt2.live.decisions import REJECTED
from emg_gpt2.raw.recording import UNLABELLED
from emg_gpt2.windows.cut import label_runs
from EMG_utils import balanced_accuracy

IDLE = 0  # the label at rest, in putEMG and as a rule elsewhere


class Truth(NamedTuple):
    """Of the windows of one recording or more.

    windows: one row each, `label` of all its samples, inside one repetition less its edges (UNLABELLED: there is none),
    `repetition` in which it ends (index into repetitions, −1: none), and its `end` (s); repetitions: `label` and
    `start` (s).
    """

    windows: pd.DataFrame
    repetitions: pd.DataFrame


def truth_of(
    labels: np.ndarray, first: np.ndarray, length: int, rate: float, trims_ms: tuple[float, float], known: list[int]
) -> Truth:
    """The truth of windows of `length` samples that begin at the samples `first` (n,), from (M,) labels at `rate` Hz.

    trims_ms: of the start and the end of a repetition; known: labels that count. Times are from the first sample on.
    """
    start_trim, end_trim = (round(ms * rate / 1000) for ms in trims_ms)
    runs = [run for run in label_runs(labels) if run[2] in known]
    repetition, settled = np.full(len(labels), -1), np.full(len(labels), -1)
    for number, (begin, end, _) in enumerate(runs):
        repetition[begin:end] = number
        settled[begin + start_trim : max(begin + start_trim, end - end_trim)] = number
    last = first + length - 1
    inside = np.where(settled[first] == settled[last], settled[first], -1)
    run_labels = np.array([label for _, _, label in runs] + [UNLABELLED])  # −1 finds the last one
    windows = {"label": run_labels[inside], "repetition": repetition[last], "end": (last + 1) / rate}
    starts = np.array([begin for begin, _, _ in runs]) / rate
    return Truth(pd.DataFrame(windows), pd.DataFrame({"label": run_labels[:-1], "start": starts}))


def pooled(truths: list[Truth]) -> Truth:
    """One after the other; repetitions are numbered on."""
    before = np.cumsum([0, *(len(one.repetitions) for one in truths)])
    windows = [
        one.windows.assign(repetition=np.where(one.windows["repetition"] < 0, -1, one.windows["repetition"] + offset))
        for one, offset in zip(truths, before[:-1], strict=True)
    ]
    joined = (pd.concat(tables, ignore_index=True) for tables in (windows, [one.repetitions for one in truths]))
    return Truth(*joined)


def figures_of(truth: Truth, decided: np.ndarray) -> dict:
    """Figures of (n,) decided labels, REJECTED among them; shares are 0 … 1, delays ms.

    accuracy, balanced accuracy and macro F1 as elsewhere, where a rejected decision is never right; active_error:
    wrong ones among the decisions for a gesture; instability: changes of the decision inside a repetition (the ideas of
    Scheme, Hudgins and Englehart, IEEE Trans. Biomed. Eng. 60(6), 2013); None where nothing can be counted.
    """
    table = truth.windows.assign(decided=decided)
    settled = table[table["label"] != UNLABELLED]
    label, decision = settled["label"].to_numpy(), settled["decided"].to_numpy()
    classes = np.unique(label)
    active = (decision != IDLE) & (decision != REJECTED)
    same = np.diff(settled["repetition"]) == 0
    _, recall, f1, support = precision_recall_fscore_support(label, decision, labels=classes, zero_division=0)
    columns = [*classes, *np.setdiff1d(decision, classes)]
    return {
        "accuracy": float((label == decision).mean()),
        "balanced_accuracy": balanced_accuracy(label, decision),
        "macro_f1": float(f1.mean()),
        "active_error": _share(decision[active] != label[active]),
        "instability": _share(np.diff(decision)[same] != 0),
        "rejected": float((decision == REJECTED).mean()),
        **_delays(table, truth.repetitions),
        "windows": len(settled),
        "per_class": {
            int(one): {"recall": float(share), "support": int(count)}
            for one, share, count in zip(classes, recall, support, strict=True)
        },
        "confusion_matrix": {
            "labels": [int(one) for one in columns],
            "counts": confusion_matrix(label, decision, labels=columns)[: len(classes)].tolist(),
        },
    }


def _share(marks: np.ndarray) -> float | None:
    return float(marks.mean()) if len(marks) else None


def _delays(table: pd.DataFrame, repetitions: pd.DataFrame) -> dict:
    """From the start of each gesture's repetition to the end of the first window in it that is decided right."""
    gestures = repetitions[repetitions["label"] != IDLE]
    expected = table["repetition"].map(repetitions["label"])
    right = table[(table["decided"] == expected) & table["repetition"].isin(gestures.index)]
    delays = right.groupby("repetition")["end"].min() - gestures["start"]
    return {
        "delay_ms": 1000 * float(delays.median()) if delays.notna().any() else None,
        "missed": int(delays.isna().sum()),
        "gestures": len(gestures),
    }
