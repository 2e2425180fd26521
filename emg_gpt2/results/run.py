"""A run folder: made, resumed and discarded; its settings, split and predictions."""

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
from emg_gpt2.base.log import start_log
from emg_gpt2.base.text import in_short
from emg_gpt2.settings import AnySettings, Role, Settings
from emg_gpt2.training.device import choose_precision, is_main_process, of_main_process
from emg_gpt2.training.task import Task
from emg_gpt2.windows.reading import WindowSet


@contextmanager
def open_run(settings: Settings, console: Console) -> Iterator[Path]:
    """The run's folder, new or empty, or with RESUME the resumed run's; the log goes to `console` and its log.txt.

    After an error a folder without results is removed; else the error gets a note on how to go on. Of several
    processes that train together, only the main process writes. Raises EMGError.
    """
    run = of_main_process(_make_run(settings) if is_main_process() else None)
    start_log(console, run / "log.txt" if is_main_process() else None)
    try:
        yield run
    except BaseException as error:
        start_log(console)  # lets go of log.txt: Windows deletes no folder with an open file
        if _has_results(run):
            error.add_note(f"go on with --resume {run}")
        elif is_main_process():
            shutil.rmtree(run, ignore_errors=True)
        raise
    start_log(console)


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


def _has_results(run: Path) -> bool:
    """Whether the run has a checkpoint, a trial of a sweep, or a batch to look at."""
    return any((run / name).exists() for name in ("last", "sweep.csv", "bad_batch.csv"))


# ---- settings ---------------------------------------------------------------------------------------------------


def resumed_settings(settings: AnySettings, name: str = "RESUME") -> AnySettings:
    """The settings of the run that the setting `name` names; flags and variables may change its places and machine.

    Raises EMGError where there is no such run, and where other settings are given.
    """
    run, given = getattr(settings, name), settings.given - {name}
    free = settings.with_role(Role.PLACE, Role.MACHINE) - {"RUN_DIR"}  # the run has its folder
    if others := sorted(given - free):
        raise EMGError(f"{name} goes on with the run's own settings; leave out {', '.join(others)}")
    try:
        saved = json.loads((run / "env.json").read_text(encoding="utf-8"))
        return type(settings)(**saved | {one: getattr(settings, one) for one in given} | {name: run})
    except (OSError, ValueError, TypeError, RecursionError) as error:
        why = in_short(error)
        raise EMGError(f"{name} = {run}: there is no run that can be read ({why}); name a folder under runs") from None


def write_settings(settings: Settings, run: Path) -> None:
    """Write env.json, with the precision that was chosen, so that a resumed run computes in it too."""
    kept = {"PRECISION": choose_precision(settings.PRECISION)[0], "RESUME": None}  # all processes ask together
    if is_main_process():
        replace_file(run / "env.json", lambda path: write_json(path, settings.model_dump(mode="json") | kept))


# ---- split ------------------------------------------------------------------------------------------------------


def write_split(task: Task, run: Path) -> None:
    """Write split.csv: every window's identity and part. Raises EMGError where a resumed run had another split."""
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
    """The recordings in the training and validation part of the model's run; empty where it is of no run."""
    path = model_folder.parent / "split.csv"
    if not path.is_file():
        return set()
    kept = pd.read_csv(path, usecols=["recording", "part"], keep_default_na=False)
    return set(kept.loc[kept["part"].isin(["train", "validation"]), "recording"])


# ---- predictions ------------------------------------------------------------------------------------------------


def write_predictions(windows: WindowSet, rows: np.ndarray, probabilities: np.ndarray, origin: dict, run: Path) -> None:
    """Write predictions.parquet: identity, true label, predicted label and one probability per label.

    origin: goes into the file's metadata.
    """
    table = windows.table.iloc[rows].reset_index(drop=True)
    table.attrs = origin
    table["predicted"] = np.array(windows.classes, np.int8)[probabilities.argmax(1)]
    for code, column in zip(windows.classes, probabilities.T, strict=True):
        table[f"p_{code}"] = column
    replace_file(run / "predictions.parquet", table.to_parquet)


def write_validation(windows: WindowSet, rows: np.ndarray, predicted: np.ndarray, run: Path) -> None:
    """Write validation.parquet: identity, true and `predicted` label of the validation windows, at the best epoch."""
    table = windows.table.iloc[rows].reset_index(drop=True).assign(predicted=predicted)
    replace_file(run / "validation.parquet", table.to_parquet)


def add_to_validation(run: Path, name: str, predicted: np.ndarray) -> None:
    """Add the labels that something else predicts for the same windows; does nothing for a run without the file."""
    path = run / "validation.parquet"
    if path.is_file():
        table = pd.read_parquet(path).assign(**{name: predicted})
        replace_file(path, table.to_parquet)
