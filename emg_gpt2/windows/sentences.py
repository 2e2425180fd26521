"""Sentences for a model with context: windows of one person's session, each judged from those before it.

A sentence begins with the windows whose gesture the model is told, a calibration; the model judges the others. No
repetition has windows of both kinds.
"""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd

from emg_gpt2.windows.reading import WindowSet

UNTOLD = -1  # in place of a class index
SHOTS = (0, 0, 1, 2, 4)  # windows of each gesture in a calibration, as often as they stand here
WHOLE, KEPT = 0.5, 0.6  # share of the calibrations with every gesture; share of the gestures that the others have
PERMUTED = 0.2  # share of the calibrations with every gesture whose names are exchanged, so that the names are read
JUDGED = 0.25  # of a sentence, at least
AT_ONCE = 256  # windows judged at once
DATE_TIME = len("2018-05-11-11-05-00-695")  # at the end of every recording's name

Session = dict[int, list[np.ndarray]]  # gesture (class index) → the rows of each of its repetitions, by time


class Sentences(NamedTuple):
    """E sentences of N windows: rows of the file, the gestures told (class indices or UNTOLD) and the right ones."""

    rows: np.ndarray
    told: np.ndarray
    targets: np.ndarray

    @property
    def judged(self) -> np.ndarray:
        """(E, N) whether a window is judged."""
        return self.told == UNTOLD


def single_windows(windows: WindowSet, rows: np.ndarray) -> Sentences:
    """Each of the windows by itself."""
    return Sentences(rows[:, None], np.full((len(rows), 1), UNTOLD), windows.targets[rows][:, None])


# ---- in training ------------------------------------------------------------------------------------------------


def draw_sentences(sessions: list[Session], count: int, length: int, rng: np.random.Generator) -> Sentences:
    """`count` sentences of `length` windows, each of one of the sessions; of one window, nothing is told."""
    chosen = rng.integers(len(sessions), size=count)
    draw = partial(_draw_sentence, length=length) if length > 1 else _draw_window
    drawn = [draw(sessions[number], rng=rng) for number in chosen]
    return Sentences(*map(np.stack, zip(*drawn, strict=True)))


def _draw_window(session: Session, rng: np.random.Generator) -> Sentences:
    """A window of a random gesture and repetition."""
    target = list(session)[rng.integers(len(session))]
    repetition = session[target][rng.integers(len(session[target]))]
    row = repetition[rng.integers(len(repetition))]
    return Sentences(np.array([row]), np.array([UNTOLD]), np.array([target]))


def _draw_sentence(session: Session, length: int, rng: np.random.Generator) -> Sentences:
    """A calibration, or none, and windows of a random mix of gestures, all in random order.

    So the order in which a protocol asks for the gestures, and how often, cannot be learnt.
    """
    shots, whole = rng.choice(SHOTS), rng.random() < WHOLE
    names = rng.permutation(len(session)) if shots and whole and rng.random() < PERMUTED else np.arange(len(session))
    gestures, told, rest = list(session), [], []
    for place, repetitions in enumerate(session.values()):
        first, others = _cut(repetitions, rng)
        wanted = shots if whole or rng.random() < KEPT else 0
        told += [(place, row) for row in rng.permutation(first)[:wanted]]
        rest.append(others)
    told = [told[number] for number in rng.permutation(len(told))][: int(length * (1 - JUDGED))]
    mix = rng.dirichlet(np.ones(len(session)))
    judged = [(place, rng.choice(rest[place])) for place in rng.choice(len(session), length - len(told), p=mix)]
    places, rows = np.array([*told, *judged]).T
    targets = np.array(gestures)[names[places]]
    return Sentences(rows, np.where(np.arange(length) < len(told), targets, UNTOLD), targets)


def _cut(repetitions: list[np.ndarray], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rows to calibrate with, of one repetition, and rows to judge, of the others; of a single one nothing is told."""
    if len(repetitions) == 1:
        return repetitions[0][:0], repetitions[0]
    order = rng.permutation(len(repetitions))
    return repetitions[order[0]], np.concatenate([repetitions[number] for number in order[1:]])


def sessions_of(windows: WindowSet, rows: np.ndarray) -> list[Session]:
    """Each person's session among the windows `rows`."""
    rows, found = in_time_order(windows.table, rows), []
    table = windows.table.iloc[rows].assign(row=rows, target=windows.targets[rows])
    for _, part in table.groupby(["subject", "session"]):
        session = {}
        for (target, _, _), one in part.groupby(["target", "recording", "repetition"], sort=False):
            session.setdefault(int(target), []).append(one["row"].to_numpy(copy=True))
        found.append(dict(sorted(session.items())))
    return found


def in_time_order(table: pd.DataFrame, rows: np.ndarray) -> np.ndarray:
    """The rows by the time in the recording's name, then by the start in the recording."""
    part = table.iloc[rows]
    return rows[np.lexsort([part["start"], part["recording"], part["recording"].str[-DATE_TIME:]])]


# ---- in validation and test -------------------------------------------------------------------------------------

CONTEXTS = {  # name → in words
    "none": "the window alone",
    "unlabelled": "the windows before it, without their gestures",
    "calibrated": "windows of the first repetition of each gesture, with their gestures",
}


class Question(NamedTuple):
    """Windows (N,) of a session that are read together: their rows, and what is told of them.

    remembered: so many of them, from the first, are seen by those after them; judged are those from `first` on.
    """

    rows: np.ndarray
    told: np.ndarray
    remembered: int
    first: int


def questions(windows: WindowSet, rows: np.ndarray, context: int) -> dict[str, list[Question]]:
    """For each of CONTEXTS what is asked to judge the windows `rows`; `calibrated` leaves out the calibrations."""
    asked = {name: [] for name in CONTEXTS}
    for session in sessions_of(windows, rows):
        whole = in_time_order(windows.table, np.concatenate([row for each in session.values() for row in each]))
        asked["none"] += [_question(some, 0) for some in np.split(whole, range(AT_ONCE, len(whole), AT_ONCE))]
        asked["unlabelled"] += [_question(some, len(some), first) for some, first in pieces(whole, context)]
        told, left = first_repetitions(session, context)
        for some in np.split(left, range(AT_ONCE, len(left), AT_ONCE)):
            together = np.concatenate([told, some])
            gestures = np.where(np.arange(len(together)) < len(told), windows.targets[together], UNTOLD)
            asked["calibrated"].append(Question(together, gestures, len(told), len(told)))
    return asked


def _question(rows: np.ndarray, remembered: int, first: int = 0) -> Question:
    return Question(rows, np.full(len(rows), UNTOLD), remembered, first)


def pieces(rows: np.ndarray, context: int) -> Iterator[tuple[np.ndarray, int]]:
    """The windows of a session in time order, cut so that each is judged once, from at most `context` before it; and
    the place in the piece from which on they are judged.

    When a piece is full, the next begins with its younger half. So every window but the first ones has at least half
    of the context, and none is read more than twice.
    """
    kept = (context + 1) // 2
    for start in range(0, max(1, len(rows) - kept), context + 1 - kept):
        yield rows[start : start + context + 1], kept if start else 0


def first_repetitions(session: Session, context: int, fewest: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a session's calibration, gesture after gesture, and of the windows that are left to judge.

    The calibration leaves JUDGED of the context free: of every gesture with `fewest` repetitions or more it has as many
    windows of the first one, evenly spread.
    """
    most = int(context * (1 - JUDGED))
    told = {target: repetitions[0] for target, repetitions in session.items() if len(repetitions) >= fewest}
    told = dict(list(told.items())[:most])
    each = most // max(1, len(told))
    spread = [rows[np.linspace(0, len(rows) - 1, min(each, len(rows))).round().astype(int)] for rows in told.values()]
    left = [rows for target, repetitions in session.items() for rows in repetitions[target in told :]]
    return np.concatenate([*spread, np.empty(0, int)]), np.concatenate([*left, np.empty(0, int)])
