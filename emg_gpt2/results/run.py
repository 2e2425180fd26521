"""The files of a run folder: made once, found again by --resume."""

import itertools
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console

from EMG_DATA_LOADER import Split
from emg_gpt2.base.errors import EMGError
from emg_gpt2.base.files import make_folder, recover_folder, replace_file, write_json
from emg_gpt2.base.log import close_log, start_log
from emg_gpt2.settings import AnySettings, Role, Settings
from emg_gpt2.training.device import choose_precision, is_main_process, of_main_process
from emg_gpt2.training.task import Task
from emg_gpt2.windows.reading import WindowSet


@contextmanager
def open_run(settings: Settings, console: Console) -> Iterator[Path]:
    """The run's folder, new or empty, or the resumed run's with RESUME; log.txt in it and `console` get the log.

    After an error a folder without a checkpoint is removed, and the error has a note on how to go on. Of several
    processes that train together, the first one alone writes. Raises EMGError.
    """
    run = of_main_process(_make_run(settings) if is_main_process() else None)
    start_log(console, run / "log.txt" if is_main_process() else None)
    try:
        yield run
    except BaseException as error:
        close_log()
        if not (is_main_process() and _discard_if_empty(run)):
            error.add_note(f"go on with --resume {run}")
        raise


def _make_run(settings: Settings) -> Path:
    if settings.MODEL_SAVING_DIR:
        make_folder(settings.MODEL_SAVING_DIR)  # found out now, not when the training is over
    if settings.RESUME:
        for part, name in itertools.product((settings.RESUME, settings.RESUME / "refit"), ("last", "best_model")):
            recover_folder(part / name)
        if not settings.SWEEP and not (settings.RESUME / "last" / "history.json").is_file():
            raise EMGError(f"RESUME = {settings.RESUME}: no checkpoint is there to go on from; start a new run")
        return settings.RESUME
    if settings.RUN_DIR:
        _claim(settings.RUN_DIR)
        return settings.RUN_DIR
    make_folder(Path("runs"))
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    for number in itertools.count(1):
        folder = Path("runs") / (stamp if number == 1 else f"{stamp}_{number}")
        with suppress(FileExistsError):  # another run began in the same second
            folder.mkdir()
            return folder


def _claim(folder: Path) -> None:
    """Raises EMGError where there are results, or another run that started at the same moment was quicker."""
    make_folder(folder)
    try:
        occupied = any(folder.iterdir())
        if not occupied:
            (folder / "log.txt").touch(exist_ok=False)
    except FileExistsError:
        occupied = True
    if occupied:
        raise EMGError(f"RUN_DIR = {folder}: there are results already; name a new folder, or use RESUME")


def _discard_if_empty(run: Path) -> bool:
    """Remove a run that has no checkpoint, no trial that was begun and no batch to look at; returns whether it did."""
    kept = ("last", "sweep.csv", "bad_batch.csv")
    worthless = not any((run / name).exists() for name in kept)
    if worthless:
        shutil.rmtree(run, ignore_errors=True)
    return worthless


# ---- settings ---------------------------------------------------------------------------------------------------


def resumed_settings(settings: AnySettings, name: str = "RESUME") -> AnySettings:
    """The settings that the run was started with which `name` names, and places and machine as they are given now.

    Raises EMGError where there is no such run, and for other settings that are given.
    """
    run, given = getattr(settings, name), settings.given - {name}
    if others := sorted(given - settings.with_role(Role.PLACE, Role.MACHINE)):
        raise EMGError(f"{name} goes on with the run's own settings; leave out {', '.join(others)}")
    try:
        saved = json.loads((run / "env.json").read_text(encoding="utf-8"))
        return type(settings)(**saved | {one: getattr(settings, one) for one in given} | {name: run})
    except (OSError, ValueError, TypeError, RecursionError):
        raise EMGError(f"{name} = {run}: there is no run; name a folder under runs") from None


def write_settings(settings: Settings, run: Path) -> None:
    """env.json: with the precision that was chosen, so that a resumed run computes in it too."""
    if is_main_process():
        chosen = {"PRECISION": choose_precision(settings.PRECISION)[0]}
        replace_file(run / "env.json", lambda path: write_json(path, settings.model_dump(mode="json") | chosen))


# ---- split ------------------------------------------------------------------------------------------------------


def write_split(task: Task, run: Path) -> None:
    """split.csv: every window's identity and part. Raises EMGError where a resumed run had another split."""
    if not is_main_process():
        return
    path = run / "split.csv"
    if path.exists() and not is_split_of(run, task.windows, task.split):
        raise EMGError(f"{path}: the run was started on other data or another split; start a new run")
    text = _split_text(task.windows, task.split)
    replace_file(path, lambda new: new.write_text(text, encoding="utf-8", newline="\n"))


def is_split_of(run: Path, windows: WindowSet, split: Split) -> bool:
    """Whether the run's split.csv holds these windows in these parts."""
    return (run / "split.csv").read_bytes() == _split_text(windows, split).encode()


def _split_text(windows: WindowSet, split: Split) -> str:
    return windows.table.assign(part=split.part_of(len(windows.table))).to_csv(index=False, lineterminator="\n")


def trained_recordings(model_folder: Path) -> set[str]:
    """The recordings in the training and validation part of the run that the model is of; none if of no run."""
    path = model_folder.parent / "split.csv"
    if not path.is_file():
        return set()
    kept = pd.read_csv(path, usecols=["recording", "part"], keep_default_na=False)
    return set(kept.loc[kept["part"].isin(["train", "validation"]), "recording"])


# ---- predictions ------------------------------------------------------------------------------------------------


def write_predictions(
    windows: WindowSet, rows: np.ndarray, probabilities: np.ndarray, described: dict, run: Path
) -> None:
    """predictions.parquet: identity, true label, predicted label and one probability per label.

    `described` goes into the file's metadata.
    """
    table = windows.table.iloc[rows].reset_index(drop=True)
    table.attrs = described
    table["predicted"] = np.array(windows.classes, np.int8)[probabilities.argmax(1)]
    for code, column in zip(windows.classes, probabilities.T, strict=True):
        table[f"p_{code}"] = column
    replace_file(run / "predictions.parquet", table.to_parquet)
