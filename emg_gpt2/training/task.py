"""A task: windows, their split, and the reference that each window is measured against."""

import logging
from dataclasses import dataclass

import numpy as np
import torch

from EMG_DATA_LOADER import (
    CROSSED,
    Split,
    draw_rows,
    filter_crosses,
    read_emg,
    reference_groups,
    rows_to_measure,
    split_windows,
)
from emg_gpt2.base.command_line import as_written
from emg_gpt2.base.log import track
from emg_gpt2.model.normalise import Reference, References, measure_reference
from emg_gpt2.settings import Role, Settings
from emg_gpt2.windows.format import bad_channels
from emg_gpt2.windows.reading import WindowSet, load_windows

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """All windows of a file, the three parts, and the reference of every window."""

    windows: WindowSet
    split: Split
    references: References

    @property
    def classes(self) -> int:
        """K, how many gestures there are."""
        return len(self.windows.classes)


def load_task(settings: Settings) -> Task:
    """Read the windows of DATA_LOCATION and split them as the settings say. Raises EMGError."""
    windows = load_windows(settings)
    return make_task(windows, split_windows(windows, settings), settings)


def make_task(windows: WindowSet, split: Split, settings: Settings) -> Task:
    """A task whose references are measured on this split."""
    return Task(windows, split, session_references(windows, split, settings))


def fitted_task(task: Task, settings: Settings) -> Task:
    """The task that a finished model was fitted to: with REFIT, that of the second training.

    With SCALE = "training" its test windows are measured against the training part of that task.
    """
    split = fitted_split(task.split, settings)
    return task if split is task.split else make_task(task.windows, split, settings)


def fitted_split(split: Split, settings: Settings) -> Split:
    """The split that a finished model was fitted to: with REFIT its training part holds the validation part too."""
    return split.with_validation() if settings.REFIT else split


def session_references(windows: WindowSet, split: Split, settings: Settings) -> References:
    """All windows measured on the training part, or each person's day on its own windows, its test part apart."""
    groups = reference_groups(windows, split)
    if settings.SCALE == "training":
        groups = np.minimum(groups, 0)  # one group for all
    rows = rows_to_measure(groups, split)
    drawn = (draw_rows(one, settings.SEED) for one in track(rows, "references"))
    each = [measure_reference(read_emg(windows, few)) for few in drawn]
    return References(Reference(*map(torch.cat, zip(*each, strict=True))), torch.from_numpy(groups))


# ---- log --------------------------------------------------------------------------------------------------------


def log_data(windows: WindowSet, split: Split, settings: Settings) -> None:
    """Log windows and split, settings that differ from the windows file, and gestures that a part lacks."""
    about = windows.metadata
    logger.info(
        f"{settings.DATA_LOCATION}: {len(windows.table)} windows of {about['window']} samples at "
        f"{about['sampling_rate']:g} Hz, {len(about['channels'])} channels, {len(windows.classes)} classes"
    )
    if bad := bad_channels(about.get("sources", [])):
        logger.warning(f"bad channels (in how many recordings): {bad}")
    if about["note"]:
        logger.info(about["note"])
    warn_of_other_windows(about["settings"], settings)
    logger.info(split.description)
    if filter_crosses(windows, split):
        logger.warning(f"{CROSSED}; --split trajectory keeps recordings whole")
    for part in ("validation", "test"):
        absent = set(range(len(windows.classes))) - set(windows.targets[getattr(split, part)])
        if absent:
            names = ", ".join(windows.class_names[index] for index in sorted(absent))
            logger.warning(f"the {part} part has no window of {names}; balanced accuracy is over the other classes")
    logger.info(f"{len(split.train)} windows to train, {len(split.validation)} to validate, {len(split.test)} to test")


def warn_of_other_windows(made_with: dict, settings: Settings) -> None:
    """Warn of settings that differ from those that the windows were `made_with`.

    Each flag or variable of this run has its own sentence; the values of ENV.py have one together.
    """
    wanted = settings.model_dump(mode="json")
    others = [name for name, value in made_with.items() if wanted.get(name, value) != value]
    for name in [one for one in others if one in settings.given]:
        file, asked = as_written(made_with[name]), as_written(wanted[name])
        logger.warning(f"{name} is {file} in the file, not {asked}; run Preprocessing.py to change it")
    for name in sorted(settings.given & settings.with_role(Role.LABELS)):
        logger.warning(f"{name} is the file's own; run Preprocessing.py to change it")
    if rest := [f"{name} {as_written(made_with[name])}" for name in others if name not in settings.given]:
        logger.warning(
            f"the windows were made with {', '.join(rest)}, not as ENV.py has it; Preprocessing.py makes others"
        )
