"""The protocols of the putEMG literature: the folds of each by name, and the figures that others report for it.

Figures of different protocols must not be compared: a model that knows the person's day has the easier task.
"""

import glob
from dataclasses import dataclass

import pandas as pd

from EMG_DATA_LOADER import count_folds, held_count
from emg_gpt2.base.errors import EMGError
from emg_gpt2.commands.simulate import START
from emg_gpt2.settings import Settings
from emg_gpt2.windows.reading import WindowSet

TABPFN_PEOPLE = ("08", "24", "34", "39")  # the test part of the TabPFN study; the other 40 people are its training part
LEAKY = " (LEAKY: neighbours of a test window are trained on)"
PUTEMG_RATE, PUTEMG_CHANNELS = 5124.08, 24  # Hz, true rate: the files' clocks differ by 1e-5


@dataclass(frozen=True)
class Fold:
    """One cut into training and test part: the settings that make it, and the one person it concerns, if it does."""

    name: str
    changes: dict
    subject: str | None = None


@dataclass(frozen=True)
class Protocol:
    """What is held out, who made it a protocol, and what they report on putEMG."""

    title: str
    source: str
    figures: tuple[str, ...]


PROTOCOLS = {
    "A": Protocol(
        "within a person's day, one trajectory held out",
        "Kaczmarek, Mańkowski and Tomczyński, Sensors 2019, 19, 3548",
        (
            "about 90 % accuracy: SVM on RMS, LDA on Hudgins or Du features (8 classes, 24 channels, windows of 2500 "
            "samples, stride 1250, 88 days × 3 trajectories; Sensors 2019, 19, 3548)",
        ),
    ),
    "B": Protocol(
        "per person, the first days → the later day",
        "no published study is known; a public notebook does it for two people",
        ("0.65 to 0.66 for subject 03, 0.18 for subject 11: random forest, 7 gestures (a public notebook)",),
    ),
    "C": Protocol(
        "unseen people",
        "TabPFN study: tested on people 08, 24, 34 and 39, trained on the other 40; folds of people in other files",
        (
            "accuracy 84.69 %, macro-F1 0.737, macro-recall 0.731: TabPFN on Du features (40 people → 4; its own "
            "filter and windows)",
            "accuracy 82.06 %, macro-F1 0.684, macro-recall 0.695: LDA on Du features (the same study)",
            "accuracy 77.80 %, macro-F1 0.622, macro-recall 0.604: SVM on RMS (the same study)",
        ),
    ),
    "D": Protocol(
        f"random windows, balanced training part{LEAKY}",
        "the original of this project",
        (
            "accuracy 71.28 %: GPT-2 on number strings (rows were drawn with replacement, so that every class had the "
            "same number, and then split: the same window can be in both parts)",
        ),
    ),
}


def folds_of(table: pd.DataFrame, settings: Settings, protocol: str) -> tuple[list[Fold], list[str]]:
    """The folds of a protocol, or with `none` those of SPLIT, and who is left out and why, in words.

    Raises EMGError where the file has nobody with the recordings that the protocol needs.
    """
    if protocol == "A":
        return _within_days(table)
    if protocol == "B":
        return _later_days(table, settings)
    if protocol == "C" and set(TABPFN_PEOPLE) < set(table["subject"]):
        test = [f"{subject}/*" for subject in TABPFN_PEOPLE]
        return [Fold("people-" + "-".join(TABPFN_PEOPLE), {"SPLIT": "subject", "TEST_ON": test})], []
    changes = {"C": {"SPLIT": "subject"}, "D": {"SPLIT": "random", "BALANCE": "undersample"}}.get(protocol, {})
    return _all_folds(table, settings, changes)


def _within_days(table: pd.DataFrame) -> tuple[list[Fold], list[str]]:
    """Every recording of every person's day once as the test part, the day's others as the training part."""
    folds, left_out = [], []
    for (subject, session), day in table.groupby(["subject", "session"]):
        recordings = {name: glob.escape(f"{subject}/{session}/{name}") for name in sorted(day["recording"].unique())}
        if len(recordings) < 2:
            left_out.append(f"{subject}/{session} has a single recording")
            continue
        for held, pattern in recordings.items():
            others = [other for name, other in recordings.items() if name != held]
            folds.append(Fold(held, {"SPLIT": "trajectory", "TRAIN_ON": others, "TEST_ON": [pattern]}, subject))
    return _not_empty(folds, left_out, "A needs a day with two recordings or more")


def _later_days(table: pd.DataFrame, settings: Settings) -> tuple[list[Fold], list[str]]:
    """Each person's last days, a share TEST_SHARE of them, as the test part, the days before as the training part."""
    folds, left_out = [], []
    for subject, part in table.groupby("subject"):
        days = [glob.escape(f"{subject}/{session}/") + "*" for session in sorted(part["session"].unique())]
        if len(days) < 2:
            left_out.append(f"{subject} has a single day")
            continue
        held = held_count(len(days), settings.TEST_SHARE)
        changes = {"SPLIT": "session", "TRAIN_ON": days[:-held], "TEST_ON": days[-held:]}
        folds.append(Fold(subject, changes, subject))
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
    """What others report for the protocol, where the windows are putEMG's; nothing for other or simulated data."""
    return PROTOCOLS[protocol].figures if protocol in PROTOCOLS and _is_putemg(windows) else ()


def _is_putemg(windows: WindowSet) -> bool:
    """By rate, channels and unit, and by what marks simulated recordings: the note, or tools.simulate's times."""
    about = windows.metadata
    rates = (source["sampling_rate"] for source in about["sources"])
    alike = len(about["channels"]) == PUTEMG_CHANNELS and about["unit"] == "count"
    alike = alike and all(abs(rate / PUTEMG_RATE - 1) < 1e-3 for rate in rates)
    simulated = windows.table["recording"].str.endswith(tuple(START.values())).any()
    return bool(alike and not simulated and "simulated" not in about["note"].lower())
