"""Windows in parquet → training, validation and test part → statistics and batches.

Groups are split, never windows: no two parts share a raw sample, not even through overlapping windows.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from emg_gpt2.base.errors import EMGError
from emg_gpt2.raw.resample import resampled_rate
from emg_gpt2.settings import Settings
from emg_gpt2.windows.feed import Batch, Feed
from emg_gpt2.windows.reading import WindowSet

REPETITION = ["subject", "session", "recording", "TRAJ_GT", "repetition"]
LEVELS = {  # split → the columns that tell its groups apart, and those inside which a share is held out
    "subject": (["subject"], []),
    "session": (["subject", "session"], ["subject"]),
    "trajectory": (["subject", "session", "recording"], ["subject", "session"]),
    "repetition": (REPETITION, ["subject", "session", "recording", "TRAJ_GT"]),
}
VALIDATION_LEVELS = LEVELS | {"repetition": (REPETITION, ["subject", "session", "TRAJ_GT"])}
VALIDATED_ON = {  # what is held out → levels to cut the validation part by, and the fewest groups that a unit must have
    "subject": [("subject", 5), ("session", 2), ("trajectory", 2), ("repetition", 2)],
    "session": [("session", 3), ("trajectory", 2), ("repetition", 2)],
    "trajectory": [("trajectory", 3), ("repetition", 2), ("trajectory", 2)],
    "repetition": [("repetition", 2), ("trajectory", 2)],
}
WORDS = {  # level → its groups, in words
    "subject": "people",
    "session": "whole days",
    "trajectory": "whole recordings",
    "repetition": "whole repetitions",
    "random": "random windows",
}
CROSSED = (
    "whole recordings were filtered forward and backward before they were split, so filtering crosses the split: test "
    "windows share filtered samples with their neighbours in the other parts"
)
PARTS = ("train", "validation", "test")
MIN_TRAINING_WINDOWS = 5  # per class; fewer cannot be told from noise
EVALUATION_BATCH = 256  # windows; no gradients are kept, so it may be larger than BATCH_SIZE
STATISTICS_WINDOWS = 4_000  # enough for a standard deviation to two digits, and bounded for any file


# ---- splitting ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Split:
    """Rows (indices into a WindowSet) of each part, and what was held out, in words."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    name: str  # SPLIT, or `named` where TRAIN_ON or TEST_ON name the parts
    description: str

    def with_validation(self) -> "Split":
        """The training part joined by the validation part, which is then empty."""
        together = np.sort(np.concatenate([self.train, self.validation]))
        return replace(self, train=together, validation=together[:0])

    def part_of(self, count: int) -> np.ndarray:
        """(count,) the part of each window: train, validation, test, or nothing for a window left out."""
        part = np.full(count, "", dtype=object)
        for name in PARTS:
            part[getattr(self, name)] = name
        return part


def split_windows(windows: WindowSet, settings: Settings) -> Split:
    """Cut the three parts as SPLIT, FOLD, TEST_SHARE, TRAIN_ON and TEST_ON say, then thin the training part.

    Raises EMGError where the data cannot give the split, or a class has too few windows to learn from.
    """
    table, rng = windows.table, np.random.default_rng(settings.SEED)
    named = bool(settings.TRAIN_ON or settings.TEST_ON)
    if named:
        rest, test, description = _named_parts(windows.identity, settings)
    else:
        rest, test, description = _held_out_parts(table, settings, rng)
    held = _level_apart(table, rest, test) if named else settings.SPLIT
    train, validation, level = _cut_validation(table, rest, held, settings.VALIDATION_SHARE, rng)
    if settings.SPLIT == "random":
        train, validation = _without_overlap(windows, train, validation, test)
        _check_left(train, validation)
    train = thin(table, train, settings.SAMPLING_RATIO, rng)
    if settings.BALANCE == "undersample":
        train = _undersample(table, train, rng)
    _check_classes(windows, train)
    name = "named" if named else settings.SPLIT
    return Split(train, validation, test, name, f"{description}; validation on {WORDS[level]}")


def _held_out_parts(table: pd.DataFrame, settings: Settings, rng) -> tuple[np.ndarray, np.ndarray, str]:
    if settings.SPLIT == "random":
        if len(table) == 1:
            raise EMGError("the file holds a single window, which cannot be split; add recordings")
        order = rng.permutation(len(table))
        test = order[_fold(len(table), "the file", settings.TEST_SHARE, settings.FOLD)]
        words = f"random windows, fold {settings.FOLD} (leaky: neighbours are in both parts)"
        return np.setdiff1d(order, test), np.sort(test), words
    groups, inside = LEVELS[settings.SPLIT]
    if settings.SPLIT == "session":
        held, which = _held_out(table, groups, inside, partial(_last, share=settings.TEST_SHARE)), "the last"
    else:
        choose = partial(_fold, share=settings.TEST_SHARE, fold=settings.FOLD)
        lenient = settings.SPLIT == "repetition"
        held, which = _held_out(table, groups, inside, choose, lenient), f"fold {settings.FOLD}"
    names = sorted(set(table.loc[held, groups].astype(str).agg("/".join, axis=1)))
    description = f"{WORDS[settings.SPLIT]} held out (SPLIT = {settings.SPLIT})"
    listed = ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
    return np.flatnonzero(~held), np.flatnonzero(held), f"{description}, {which}: {listed}"


def _held_out(
    table: pd.DataFrame, groups: list[str], inside: list[str], choose: Callable, lenient: bool = False, fewest: int = 2
) -> np.ndarray:
    """(n,) whether a window belongs to the groups that `choose` picks inside each unit.

    Groups are ordered by name, which is by date for sessions, by trajectory, date and time for recordings. Raises
    EMGError where a unit has fewer groups than `fewest` (`lenient`: it stays whole, unless all have), or too few folds.
    """
    held, numbers = np.zeros(len(table), bool), table.groupby(groups).ngroup().to_numpy()  # in the order of the names
    units = table.groupby(inside).indices.items() if inside else [("the file", np.arange(len(table)))]
    for unit, rows in units:
        names = np.unique(numbers[rows])
        where = "/".join(map(str, unit)) if isinstance(unit, tuple) else unit
        if len(names) >= fewest:
            held[rows] = np.isin(numbers[rows], names[choose(len(names), where)])
        elif not lenient:
            raise EMGError(
                f"{where} has a single {groups[-1]}, and nothing is left to train on when it is held out; "
                "choose another SPLIT or add recordings"
            )
    if not held.any():
        raise EMGError(f"every unit has a single {groups[-1]}, so none can be held out; choose another SPLIT")
    return held


def count_folds(table: pd.DataFrame, settings: Settings) -> tuple[int, int]:
    """How many folds every unit of SPLIT gives (FOLD may be 0 up to that), and how many the largest unit gives.

    A split that FOLD does not cut, into days or into named parts, is one fold.
    """
    if settings.TRAIN_ON or settings.TEST_ON or settings.SPLIT == "session":
        return 1, 1
    counts = [len(table)]
    if settings.SPLIT != "random":
        groups, inside = LEVELS[settings.SPLIT]
        units = table.groupby(inside) if inside else [("the file", table)]
        counts = [len(unit[groups].drop_duplicates()) for _, unit in units]
    folds = [_folds(count, settings.TEST_SHARE) for count in counts if count > 1] or [1]
    return min(folds), max(folds)


def held_count(count: int, share: float) -> int:
    """How many of `count` groups are held out: the share `share`, rounded, at least one and never all."""
    return min(max(1, round(share * count)), count - 1)


def _last(count: int, where: str, share: float) -> np.ndarray:
    return np.arange(count)[-held_count(count, share) :]


def _folds(count: int, share: float) -> int:
    return -(-count // held_count(count, share))


def _fold(count: int, where: str, share: float, fold: int) -> np.ndarray:
    size, folds = held_count(count, share), _folds(count, share)
    if fold >= folds:
        raise EMGError(f"FOLD = {fold}: {where} gives {folds} folds, numbered from 0; lower FOLD")
    return np.arange(count)[fold * size : (fold + 1) * size]


def _spread(count: int, where: str, share: float) -> np.ndarray:
    """Evenly spread, so that the validation part is like the training part."""
    size = held_count(count, share)
    return ((np.arange(size) + 0.5) * count / size).astype(int)


def _named_parts(identity: pd.Series, settings: Settings) -> tuple[np.ndarray, np.ndarray, str]:
    """The parts that TRAIN_ON and TEST_ON name; where only one is given, the other part is the rest."""
    train, test = _matches(identity, settings.TRAIN_ON, "TRAIN_ON"), _matches(identity, settings.TEST_ON, "TEST_ON")
    train = ~test if train is None else train
    test = ~train if test is None else test
    for name, part in (("training", train), ("test", test)):
        if not part.any():
            raise EMGError(
                f"the patterns of TRAIN_ON and TEST_ON leave nothing for the {name} part; change one of them"
            )
    if (train & test).any():
        both = identity[train & test].iloc[0]
        raise EMGError(f"{both} is in both parts, TRAIN_ON and TEST_ON; make the patterns exclude each other")
    words = (
        f"training on {' '.join(settings.TRAIN_ON) or 'the rest'}, test on {' '.join(settings.TEST_ON) or 'the rest'}"
    )
    return np.flatnonzero(train), np.flatnonzero(test), words


def _matches(identity: pd.Series, patterns: list[str], name: str) -> np.ndarray | None:
    if not patterns:
        return None
    unique = identity.unique()
    for pattern in patterns:
        if not any(fnmatchcase(one, pattern) for one in unique):
            raise EMGError(f"{name} = {pattern}: no recording matches; the first of the file is {unique[0]}")
    chosen = {one for one in unique if any(fnmatchcase(one, pattern) for pattern in patterns)}
    return identity.isin(chosen).to_numpy()


def _level_apart(table: pd.DataFrame, rest: np.ndarray, test: np.ndarray) -> str:
    """What named parts hold out: the coarsest level of which they share no group."""
    for level in ("subject", "session"):
        columns = table[LEVELS[level][0]]
        if not set(columns.iloc[rest].itertuples(index=False)) & set(columns.iloc[test].itertuples(index=False)):
            return level
    return "trajectory"


def _cut_validation(
    table: pd.DataFrame, rest: np.ndarray, held_out: str, share: float, rng
) -> tuple[np.ndarray, np.ndarray, str]:
    """Cut whole groups of the first level that every unit of the training part can give; the level comes last.

    held_out: for the test. The validation part asks the same where enough is left to train on, so later days choose for
    later days. Else it asks the next finer: repetitions of recordings that were trained on are easy.
    """
    if held_out == "random":
        chosen = _random_share(len(rest), share, rng)
        return rest[~chosen], rest[chosen], "random"
    part, problem = table.iloc[rest].reset_index(drop=True), None
    for level, fewest in VALIDATED_ON[held_out]:
        choose = partial(_last if held_out == level == "session" else _spread, share=share)
        try:
            held = _held_out(part, *VALIDATION_LEVELS[level], choose, level == "repetition", fewest)
            return rest[~held], rest[held], _level_of(part, held)
        except EMGError as error:
            problem = error
    raise EMGError(f"no validation part can be cut from the training part: {problem}")


def _level_of(part: pd.DataFrame, held: np.ndarray) -> str:
    """The coarsest level whose groups are held out whole: repetitions may make up whole recordings."""
    held = pd.Series(held)
    return next(
        level
        for level, (groups, _) in LEVELS.items()
        if (held.groupby([part[column] for column in groups], observed=True).nunique() == 1).all()
    )


def _random_share(count: int, share: float, rng) -> np.ndarray:
    chosen = np.zeros(count, bool)
    chosen[rng.permutation(count)[: held_count(count, share)]] = True
    return chosen


def _without_overlap(windows: WindowSet, train, validation, test) -> tuple[np.ndarray, np.ndarray]:
    """Drop the windows of the earlier parts that share a sample with a window of a later one."""
    apart = seconds_apart(windows)
    part = np.full(len(windows.table), -1)
    part[train], part[validation], part[test] = 0, 1, 2
    keep = np.ones(len(part), bool)
    for _, rows in windows.table.groupby("recording"):
        order = rows["start"].sort_values()
        index, start = order.index.to_numpy(), order.to_numpy()
        for step in range(1, len(index)):
            near = start[step:] - start[:-step] < apart[index[step:]]
            if not near.any():
                break
            first, second = index[:-step][near], index[step:][near]
            keep[first[part[first] < part[second]]] = False
            keep[second[part[second] < part[first]]] = False
    return train[keep[train]], validation[keep[validation]]


def filter_crosses(windows: WindowSet, split: Split) -> bool:
    """Whether test windows share filtered samples with their neighbours in the training or validation part.

    FILTER = putemg runs forward and backward over whole recordings, and a split inside recordings comes after it.
    """
    names, rest = windows.table["recording"], np.concatenate([split.train, split.validation])
    shared = not set(names.iloc[rest]).isdisjoint(names.iloc[split.test])
    return shared and windows.metadata["settings"].get("FILTER") == "putemg"


def seconds_apart(windows: WindowSet) -> np.ndarray:
    """(n,) s: windows of its recording that start nearer to a window than that share samples with it.

    By the recording's own clock, from which the file's rate may differ by as much as some samples a window.
    """
    about = windows.metadata
    rates = {
        Path(source["name"]).stem: resampled_rate(source["sampling_rate"], about["settings"]["SAMPLE_RATE"])
        for source in about.get("sources", [])
    }
    own = windows.table["recording"].map(rates).fillna(about["sampling_rate"])
    return ((about["window"] - 0.5) / own).to_numpy(float)


def _check_left(train: np.ndarray, validation: np.ndarray) -> None:
    for name, part in (("training", train), ("validation", validation)):
        if not len(part):
            raise EMGError(
                f"SPLIT = random: every window of the {name} part overlaps one of a later part, and none is left; "
                "lower TEST_SHARE or VALIDATION_SHARE, choose another SPLIT or add recordings"
            )


def thin(table: pd.DataFrame, rows: np.ndarray, ratio: float, rng) -> np.ndarray:
    """A share `ratio` of the windows of each recording and gesture, at least one."""
    if ratio == 1:
        return rows
    groups = table.iloc[rows].groupby(["recording", "TRAJ_GT"]).indices.values()
    chosen = [rng.permutation(group)[: max(1, round(ratio * len(group)))] for group in groups]
    return rows[np.sort(np.concatenate(chosen))]


def _undersample(table: pd.DataFrame, rows: np.ndarray, rng) -> np.ndarray:
    """As many windows of every class as the rarest one has."""
    groups = table.iloc[rows].groupby("TRAJ_GT").indices.values()
    fewest = min(map(len, groups))
    return rows[np.sort(np.concatenate([rng.permutation(group)[:fewest] for group in groups]))]


def _check_classes(windows: WindowSet, train: np.ndarray) -> None:
    if len(windows.classes) < 2:
        raise EMGError(f"the file holds a single class, {windows.class_names[0]}; add recordings of other gestures")
    counts = np.bincount(windows.targets[train], minlength=len(windows.classes))
    if counts.min() < MIN_TRAINING_WINDOWS:
        index = counts.argmin()
        raise EMGError(
            f"class {windows.classes[index]} ({windows.class_names[index]}) has {counts[index]} windows in the "
            f"training part, and at least {MIN_TRAINING_WINDOWS} are needed; change the split, raise SAMPLING_RATIO "
            "or leave the class out (Preprocessing.py with LEGAL_VALUES)"
        )


# ---- statistics and batches -----------------------------------------------------------------------------------


def reference_groups(windows: WindowSet, split: Split) -> np.ndarray:
    """(n,) number of the group in which each window is measured, −1 for windows in no part.

    A group is a person's day, and the test part of a day is a group of its own: what is learned from a day owes
    nothing to its test windows.
    """
    keys = windows.table[["subject", "session"]].assign(test=np.isin(np.arange(len(windows.table)), split.test))
    used = np.concatenate([split.train, split.validation, split.test])
    groups = np.full(len(windows.table), -1)
    groups[used] = keys.iloc[used].groupby(["subject", "session", "test"]).ngroup()
    return groups


def rows_to_measure(groups: np.ndarray, split: Split) -> list[np.ndarray]:
    """The rows that each group is measured on: its windows of the training part, or where it has none there, all."""
    trained = np.isin(np.arange(len(groups)), split.train)
    each = [groups == group for group in range(groups.max() + 1)]
    return [np.flatnonzero(own & trained if (own & trained).any() else own) for own in each]


def draw_rows(rows: np.ndarray, seed: int, at_most: int = STATISTICS_WINDOWS) -> np.ndarray:
    """At most so many of the rows, drawn, in their order."""
    return np.sort(np.random.default_rng(seed).permutation(rows)[:at_most])


def read_emg(windows: WindowSet, rows: np.ndarray) -> torch.Tensor:
    """(len(rows), T, C) float32 in the file's unit."""
    return torch.from_numpy(windows.emg[rows]).float() * windows.metadata["scale"]


def class_weights(targets: np.ndarray, classes: int) -> np.ndarray:
    """(K,) inversely proportional to the class's windows, one on average over the windows."""
    return len(targets) / (classes * np.bincount(targets, minlength=classes))


def batches(windows: WindowSet, rows: np.ndarray, batch_size: int) -> Iterator["Batch"]:
    """The windows `rows` in their order, in main memory."""
    feed = Feed(windows, torch.device("cpu"))
    return map(feed.read, cut_rows(rows, batch_size))


def cut_rows(rows: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """The rows of each batch, the last of which may be smaller."""
    return [rows[first : first + batch_size] for first in range(0, len(rows), batch_size)]
