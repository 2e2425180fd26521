"""Figures of decisions, from the labels of the recording.

They count windows that lie inside one repetition less its trimmed edges, like the windows that models are trained on.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from sklearn.metrics import precision_recall_fscore_support

from emg_gpt2.live.decisions import REJECTED
from emg_gpt2.raw.recording import UNLABELLED
from emg_gpt2.windows.cut import label_runs
from EMG_utils import balanced_accuracy

IDLE = 0  # the label at rest, in putEMG and as a rule elsewhere


class Truth(NamedTuple):
    """What the labels of one recording or more say of its windows.

    windows: a row each: `label`, where it lies inside one repetition less its trimmed edges, else UNLABELLED;
    `repetition` in which it ends, an index into repetitions, or −1; `end` (s). repetitions: `label` and `start` (s).
    """

    windows: pd.DataFrame
    repetitions: pd.DataFrame


def truth_of(
    labels: np.ndarray, first: np.ndarray, length: int, rate: float, trims_ms: tuple[float, float], known: list[int]
) -> Truth:
    """Return the truth of windows of `length` samples from the samples `first` (n,) on, from labels (M,) at `rate` Hz.

    trims_ms: what is trimmed from the start and the end of a repetition; known: labels that the model knows. Times
    count from the first sample.
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
    """Join truths; the repetitions of each are numbered after those of the one before."""
    before = np.cumsum([0, *(len(one.repetitions) for one in truths)])
    windows = [
        one.windows.assign(repetition=np.where(one.windows["repetition"] < 0, -1, one.windows["repetition"] + offset))
        for one, offset in zip(truths, before[:-1], strict=True)
    ]
    joined = (pd.concat(tables, ignore_index=True) for tables in (windows, [one.repetitions for one in truths]))
    return Truth(*joined)


def figures_of(truth: Truth, decided: np.ndarray) -> dict:
    """Return the figures of decided labels (n,), each a label or REJECTED; shares are 0 … 1, delays ms.

    Accuracy, balanced accuracy and macro F1 as elsewhere; a rejected decision is never correct. active_error: share of
    wrong decisions among those for a gesture; instability: share of changes among successive decisions inside a
    repetition (after Scheme, Hudgins and Englehart, IEEE Trans. Biomed. Eng. 60(6), 2013). None where nothing counts.
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
            "counts": [[int(np.sum(decision[label == one] == other)) for other in columns] for one in classes],
        },
    }


def _share(marks: np.ndarray) -> float | None:
    return float(marks.mean()) if len(marks) else None


def _delays(table: pd.DataFrame, repetitions: pd.DataFrame) -> dict:
    """Delays from the start of each gesture's repetition to the end of its first window with the correct decision."""
    gestures = repetitions[repetitions["label"] != IDLE]
    expected = table["repetition"].map(repetitions["label"])
    right = table[(table["decided"] == expected) & table["repetition"].isin(gestures.index)]
    delays = right.groupby("repetition")["end"].min() - gestures["start"]
    return {
        "delay_ms": 1000 * float(delays.median()) if delays.notna().any() else None,
        "missed": int(delays.isna().sum()),
        "gestures": len(gestures),
    }
