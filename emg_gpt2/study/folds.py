"""The folds of a protocol, or of a split, and what others report for the protocol on putEMG."""

import glob
from dataclasses import dataclass

import pandas as pd

from EMG_DATA_LOADER import count_folds, held_count
from emg_gpt2.base.errors import EMGError
from emg_gpt2.settings import Settings
from emg_gpt2.study.protocols import PROTOCOLS, START
from emg_gpt2.windows.reading import WindowSet

TABPFN_PEOPLE = ("08", "24", "34", "39")  # the test part of the TabPFN study; the other 40 people are its training part
PUTEMG_RATE, PUTEMG_CHANNELS = 5124.08, 24  # Hz, true rate: the files' clocks differ by 1e-5


@dataclass(frozen=True)
class Fold:
    """One cut into training and test part: the settings that make it, and the only person in it, or None for all."""

    name: str
    changes: dict
    subject: str | None = None


def folds_of(table: pd.DataFrame, settings: Settings, protocol: str) -> tuple[list[Fold], list[str]]:
    """The folds of a protocol, or with `none` those of SPLIT; and who is left out and why, in words.

    Raises EMGError where nobody in the file has the recordings that the protocol needs.
    """
    changes = PROTOCOLS[protocol].changes if protocol in PROTOCOLS else {}
    if protocol == "A":
        return _within_days(table, changes)
    if protocol == "B":
        return _later_days(table, settings, changes)
    if protocol == "C" and set(TABPFN_PEOPLE) < set(table["subject"]):
        test = [f"{subject}/*" for subject in TABPFN_PEOPLE]
        return [Fold("people-" + "-".join(TABPFN_PEOPLE), changes | {"TEST_ON": test})], []
    return _all_folds(table, settings, changes)


def _within_days(table: pd.DataFrame, changes: dict) -> tuple[list[Fold], list[str]]:
    """Every recording of every person's day once as the test part, the day's others as the training part."""
    folds, left_out = [], []
    for (subject, session), day in table.groupby(["subject", "session"]):
        recordings = {name: glob.escape(f"{subject}/{session}/{name}") for name in sorted(day["recording"].unique())}
        if len(recordings) < 2:
            left_out.append(f"{subject}/{session} has a single recording")
            continue
        for held, pattern in recordings.items():
            others = [other for name, other in recordings.items() if name != held]
            folds.append(Fold(held, changes | {"TRAIN_ON": others, "TEST_ON": [pattern]}, subject))
    return _not_empty(folds, left_out, "A needs a day with two recordings or more")


def _later_days(table: pd.DataFrame, settings: Settings, changes: dict) -> tuple[list[Fold], list[str]]:
    """Each person's last days, a share TEST_SHARE of them, as the test part, the days before as the training part."""
    folds, left_out = [], []
    for subject, part in table.groupby("subject"):
        days = [glob.escape(f"{subject}/{session}/") + "*" for session in sorted(part["session"].unique())]
        if len(days) < 2:
            left_out.append(f"{subject} has a single day")
            continue
        held = held_count(len(days), settings.TEST_SHARE)
        folds.append(Fold(subject, changes | {"TRAIN_ON": days[:-held], "TEST_ON": days[-held:]}, subject))
    return _not_empty(folds, left_out, "B needs a person with two days or more")


def _not_empty(folds: list[Fold], left_out: list[str], need: str) -> tuple[list[Fold], list[str]]:
    if not folds:
        raise EMGError(f"protocol {need}, and the file has none; add recordings or choose another protocol")
    return folds, left_out


def _all_folds(table: pd.DataFrame, settings: Settings, changes: dict) -> tuple[list[Fold], list[str]]:
    """Every legal value of FOLD. Where units differ in size, the last groups of the larger ones are never held out."""
    fewest, most = count_folds(table, settings.model_copy(update=changes))
    words = f"folds {fewest} to {most - 1}: some units of the split give {fewest} folds and others {most}"
    return [Fold(f"fold{n}", changes | {"FOLD": n}) for n in range(fewest)], [words] if fewest < most else []


def reported_figures(windows: WindowSet, protocol: str) -> tuple[str, ...]:
    """What others report for the protocol, where the windows are putEMG's; empty for other or simulated data."""
    return PROTOCOLS[protocol].figures if protocol in PROTOCOLS and _is_putemg(windows) else ()


def _is_putemg(windows: WindowSet) -> bool:
    """Whether rate, channels and unit are putEMG's, and neither the note nor the times are those of the simulator."""
    about = windows.metadata
    rates = (source["sampling_rate"] for source in about["sources"])
    alike = len(about["channels"]) == PUTEMG_CHANNELS and about["unit"] == "count"
    alike = alike and all(abs(rate / PUTEMG_RATE - 1) < 1e-3 for rate in rates)
    simulated = windows.table["recording"].str.endswith(tuple(START.values())).any()
    return bool(alike and not simulated and "simulated" not in about["note"].lower())
