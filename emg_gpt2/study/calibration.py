"""A session that a model is adapted to: whether it fits the model, and which repetitions calibrate and which test."""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from EMG_DATA_LOADER import MIN_TRAINING_WINDOWS, Split, seconds_apart
from emg_gpt2.base.errors import EMGError
from emg_gpt2.model.config import day_mark
from emg_gpt2.model.model import EMGForSequenceClassification
from emg_gpt2.results.run import trained_recordings
from emg_gpt2.windows.cut import RATE_TOLERANCE
from emg_gpt2.windows.reading import WindowSet
from emg_gpt2.windows.sentences import DATE_TIME

SHAPING = ("FILTER", "BAND_HZ")  # settings that change the samples of a window, not its rate and length


def check_recordings(model: EMGForSequenceClassification, windows: WindowSet, args: argparse.Namespace) -> None:
    """Raise EMGError where the windows are not like those that the model was trained on."""
    config, about = model.config, windows.metadata
    rates, channels = (about["sampling_rate"], config.sampling_rate), (about["channels"], config.channels)
    pairs = {
        "number of channels": tuple(map(len, channels)),
        "channel": next((pair for pair in zip(*channels, strict=False) if len(set(pair)) > 1), ("", "")),
        "samples a window": (about["window"], config.window),
        "unit": (about["unit"], config.unit),
        **{name: (about["settings"][name], config.preprocessing.get(name)) for name in SHAPING},
        "Hz": rates if abs(rates[0] / rates[1] - 1) > RATE_TOLERANCE else (0, 0),
    }
    for name, (found, expected) in pairs.items():
        if found != expected:
            raise EMGError(
                f"{args.data}: {name}: {found}, and {args.model} was trained on {expected}; "
                "preprocess the recordings as those it was trained on, or choose another model"
            )


def check_unseen(model: EMGForSequenceClassification, windows: WindowSet, day: tuple[str, str], folder: Path) -> bool:
    """Raise EMGError where the model was trained on a person's day; returns whether that can be known.

    A model folder knows its days itself (`trained_days`), an older one by the split.csv of its run.
    windows: all of the file; day: subject and session; folder: of the model.
    """
    table, marks, recordings = windows.table, set(model.config.trained_days), trained_recordings(folder)
    if not marks and not recordings:
        return False
    days = table[["subject", "session", "recording"]].drop_duplicates()
    marked = np.array([day_mark(*one) in marks for one in days[["subject", "session"]].to_numpy()])
    trained = set(map(tuple, days.loc[marked | days["recording"].isin(recordings), ["subject", "session"]].to_numpy()))
    if day in trained:
        known = set(map(tuple, days[["subject", "session"]].to_numpy()))
        others = [" on ".join(one) for one in sorted(known - trained)]
        raise EMGError(
            f"{folder} was trained on subject {day[0]}, session {day[1]}, so its figures there are too good and it "
            "cannot be adapted to that day; name a person or day that is new to it with --subject and --session "
            f"({', '.join(others[:5]) or 'this file has none'}), or train a model without it (TRAIN_ON, TEST_ON)"
        )
    return True


def windows_of_session(windows: WindowSet, args: argparse.Namespace) -> WindowSet:
    """Return the windows of one person and day; raises EMGError where there are none."""
    table, whose = windows.table, str(args.data)
    for column, wanted in (("subject", args.subject), ("session", args.session)):
        known = sorted(table[column].unique())
        if wanted is not None and wanted not in known:
            raise EMGError(f"--{column} {wanted}: {whose} has no such {column}; choose from {', '.join(known)}")
        table = table[table[column] == (known[-1] if wanted is None else wanted)]
        whose = f"subject {args.subject} of {args.data}"
    rows = table.index.to_numpy()
    return WindowSet(windows.emg[rows], table.reset_index(drop=True), windows.metadata)


def check_gestures(model: EMGForSequenceClassification, windows: WindowSet, args: argparse.Namespace) -> None:
    """Raise EMGError where model and session do not have the same gestures, by label and by name."""
    known = dict(zip(model.config.class_codes, model.config.class_names, strict=True))
    found = dict(zip(windows.classes, windows.class_names, strict=True))
    if unknown := [f"{name} (label {label})" for label, name in found.items() if label not in known]:
        kept = ",".join(str(label) for label in found if label in known)
        raise EMGError(
            f"{args.data}: {', '.join(unknown)}: no gesture that {args.model} knows; leave it out with "
            f"Preprocessing.py --legal-values {kept}, or choose a model that was trained on it"
        )
    if renamed := [
        f"label {label} is {name}, not {known[label]}" for label, name in found.items() if name != known[label]
    ]:
        raise EMGError(
            f"{args.data}: {', '.join(renamed)} as {args.model} knows it; choose a model of the same gestures, or give "
            "them the same names with Preprocessing.py --class-names"
        )
    if missing := [name for label, name in known.items() if label not in found]:
        raise EMGError(
            f"{args.data}: {', '.join(missing)}: not in this session, and {args.model} knows it; record it too, "
            "choose another --session, or train a model without it"
        )


def cut_repetitions(windows: WindowSet, count: int) -> Split:
    """Split a session: the first `count` repetitions of every gesture to adapt with, all other windows to test.

    Raises EMGError where a gesture has no repetition left to test, or too few windows to adapt with.
    """
    table, order = windows.table, order_of_repetitions(windows.table)
    where = f"subject {table['subject'][0]}, session {table['session'][0]}"
    for index, name in enumerate(windows.class_names):
        check_repetitions(order[windows.targets == index], count, f"{where}: {name}")
    check_apart(windows, order < count)
    words = f"{where}, first {'repetition' if count == 1 else f'{count} repetitions'} of every gesture"
    calibration, test = np.flatnonzero(order < count), np.flatnonzero(order >= count)
    return Split(calibration, test[:0], test, "calibration", words)


def check_repetitions(order: np.ndarray, count: int, gesture: str) -> None:
    """Raise EMGError where a gesture has too few windows; order: (n,) place of the repetition of each."""
    if order.max() < count:
        raise EMGError(
            f"{gesture} has {order.max() + 1} repetitions, and {count + 1} are needed, {count} to adapt and one to "
            "test; lower --repetitions or choose another --session"
        )
    if (order < count).sum() < MIN_TRAINING_WINDOWS:
        raise EMGError(
            f"{gesture} has {(order < count).sum()} windows in its first repetitions, and at least "
            f"{MIN_TRAINING_WINDOWS} are needed to adapt; raise --repetitions"
        )


def order_of_repetitions(table: pd.DataFrame) -> np.ndarray:
    """Return the place (n,) of each window's repetition among those of its gesture, from 0, in the order of time.

    Time is that in the recording's name, then the start in the recording.
    """
    table = table[["TRAJ_GT", "recording", "repetition", "start"]].assign(time=table["recording"].str[-DATE_TIME:])
    repetition = ["TRAJ_GT", "time", "recording", "repetition"]
    first = table.groupby(repetition)["start"].min().reset_index().sort_values(["TRAJ_GT", "time", "start"])
    first["place"] = first.groupby("TRAJ_GT").cumcount()
    return table.merge(first.drop(columns="start"), on=repetition, how="left")["place"].to_numpy()


def check_apart(windows: WindowSet, calibration: np.ndarray) -> None:
    """Raise EMGError where a calibration window and a test window share samples; calibration: (n,) bool.

    Neighbours are compared, which is enough: all windows are equally long, so where two overlap, so do all that start
    between them.
    """
    table = windows.table.assign(calibration=calibration, apart=seconds_apart(windows))
    table = table.sort_values(["recording", "start"])
    after = table.shift(-1)
    near = (after["start"] - table["start"] < table["apart"]) & (after["recording"] == table["recording"])
    both = table[near & (after["calibration"] != table["calibration"])]
    if len(both):
        one = both.iloc[0]
        raise EMGError(
            f"{one['recording']}: windows of two repetitions overlap at {one['start']:.3f} s, and the test part would "
            "share samples with the calibration part; write the file again with Preprocessing.py"
        )
