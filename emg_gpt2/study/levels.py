"""What a classifier may know of the session whose windows it judges, in levels, and averages over what is known.

The judged windows and their contexts are those of a model with context (windows/sentences.py). Averages are of a
window's numbers, such as the power of its channels: the windows that are known take part, and so do the training
windows, as if they were some windows more. So an average is there from the session's first window on.
"""

from typing import NamedTuple

import numpy as np

from emg_gpt2.windows.reading import WindowSet
from emg_gpt2.windows.sentences import CONTEXTS, first_repetitions, in_time_order, pieces, sessions_of

LEVELS = {  # name → what is known of the session, in words
    "inductive": "nothing",
    "unlabelled": CONTEXTS["unlabelled"],
    "calibrated": CONTEXTS["calibrated"],
    "transductive": "all its windows that are judged, later ones too",
}
TRAINED = {  # level → over what the training windows are averaged
    "inductive": "all",
    "unlabelled": "sessions",
    "calibrated": "balanced sessions",  # each gesture counts alike, as in a calibration
    "transductive": "sessions",
}
CONTEXT_OF = {"none": "inductive", "unlabelled": "unlabelled", "calibrated": "calibrated"}  # of main.py's model
USUAL_CONTEXT = 32  # windows, where CONTEXT is 0
FEWEST_TOLD = 2  # gestures of a calibration
DAY = ["subject", "session"]


class Known(NamedTuple):
    """Windows of one session that are judged, and those that are known.

    judged (n,): rows; rows (N,): that are known, the first counts[i] of them to the one who judges the window i;
    told: whether the gestures of `rows` are known too
    """

    judged: np.ndarray
    rows: np.ndarray
    counts: np.ndarray
    told: bool = False


def known(windows: WindowSet, rows: np.ndarray, context: int, before: np.ndarray) -> dict[str, list[Known]]:
    """For each of LEVELS what is known to judge the windows `rows`; without `calibrated` where it cannot be had.

    before: rows of the training part, in which the calibration lies where `rows` hold no repetition to spare.
    """
    sessions = [np.concatenate([row for each in one.values() for row in each]) for one in sessions_of(windows, rows)]
    sessions = [in_time_order(windows.table, one) for one in sessions]
    found = {
        "inductive": [Known(one, one[:0], np.zeros(len(one), int)) for one in sessions],
        "unlabelled": [past for one in sessions for past in _pasts(one, context)],
        "calibrated": _calibrations(windows, rows, context) or _calibrations(windows, rows, context, before),
        "transductive": [Known(one, one, np.full(len(one), len(one))) for one in sessions],
    }
    return {level: each for level, each in found.items() if each}


def _pasts(session: np.ndarray, context: int) -> list[Known]:
    return [Known(some[first:], some, np.arange(first, len(some))) for some, first in pieces(session, context)]


def _calibrations(windows: WindowSet, rows: np.ndarray, context: int, before: np.ndarray | None = None) -> list[Known]:
    """A calibration of each session; none at all where one of them lacks it."""
    found, everything = [], rows if before is None else np.union1d(rows, before)
    wanted = set(windows.table.iloc[rows].groupby(DAY).groups)
    for session in sessions_of(windows, everything):
        told, left = first_repetitions(session, context)
        left = np.intersect1d(left, rows)
        if tuple(windows.table[DAY].iloc[next(iter(session.values()))[0][0]]) not in wanted:
            continue
        if len(set(windows.targets[told])) < FEWEST_TOLD or not len(left):
            return []
        found.append(Known(left, told, np.full(len(left), len(told)), told=True))
    return found


def rows_judged(level: list[Known]) -> np.ndarray:
    """Rows of the windows that are judged, in the order of the known ones."""
    return np.concatenate([one.judged for one in level])


class Averages(NamedTuple):
    """Averages of a table (n, M) over the training windows: `rows` (n_train, M), what each is measured against;
    `sessions`: person and session → (M,)."""

    rows: np.ndarray
    sessions: dict[tuple, np.ndarray]

    def of(self, key: tuple) -> np.ndarray:
        """The average of a session, or where the training part has none of it, of its person, or of all sessions."""
        own = [one for (subject, *_), one in self.sessions.items() if subject == key[0]]
        return self.sessions.get(key, np.mean(own or list(self.sessions.values()), axis=0))


def training_averages(windows: WindowSet, train: np.ndarray, table: np.ndarray, over: str) -> Averages:
    """Averages over `all` training windows, over each of their `sessions`, or over `balanced sessions`."""
    part = windows.table.iloc[train]
    keys = [tuple(key) for key in part[DAY].to_numpy()] if over != "all" else [("",)] * len(train)
    groups = part.assign(place=np.arange(len(train))).groupby(DAY)["place"].apply(np.array) if over != "all" else {}
    groups = dict(groups) or {("",): np.arange(len(train))}
    weights = np.ones(len(train))
    if over == "balanced sessions":
        weights = 1 / part.groupby([*DAY, "TRAJ_GT"])["TRAJ_GT"].transform("size").to_numpy()
    means = {key: np.average(table[train[rows]], axis=0, weights=weights[rows]) for key, rows in groups.items()}
    return Averages(np.stack([means[key] for key in keys]), means)


def judged_averages(
    windows: WindowSet, level: list[Known], table: np.ndarray, training: Averages, strength: float
) -> np.ndarray:
    """(n, M) averages for the windows `rows_judged(level)`; the training average counts for `strength` windows."""
    found = []
    for one in level:
        prior = training.of(tuple(windows.table[DAY].iloc[one.judged[0]]))
        sums = np.concatenate([np.zeros((1, table.shape[1])), table[one.rows].cumsum(0, dtype=float)])
        found.append((strength * prior + sums[one.counts]) / (strength + one.counts)[:, None])
    return np.concatenate(found)
