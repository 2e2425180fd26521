"""The files of a run folder: made once, found again by --resume."""

import errno
import itertools
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pandas as pd
from huggingface_hub import ModelCard
from safetensors import SafetensorError

from EMG_DATA_LOADER import Split, WindowSet
from EMG_files import make_folder, new_files, recover_folder, replace_file
from EMG_model import EMGForSequenceClassification
from ENV import EMGError, Settings


def open_run(settings: Settings) -> Path:
    """The run's folder, new or empty; the resumed run's with RESUME. Raises EMGError."""
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


def discard_if_empty(run: Path) -> bool:
    """Remove a run that has neither a checkpoint nor a trial that was begun; returns whether it did."""
    worthless = not (run / "last").exists() and not (run / "sweep.csv").exists()
    if worthless:
        shutil.rmtree(run, ignore_errors=True)
    return worthless


def save_model(model: EMGForSequenceClassification, card: ModelCard, folder: Path) -> None:
    """Put a model's files and its card into `folder`, each one whole, and leave its other files alone."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with new_files(folder) as new:
            save_weights(model, new)
            save_card(card, new)
    except OSError as error:
        reason = error.strerror or error
        raise EMGError(f"{folder}: the model cannot be written ({reason}); name another folder") from None


def save_weights(model: EMGForSequenceClassification, folder: Path, **named) -> None:
    """As transformers saves a model; raises OSError where it cannot be written."""
    with disk_errors(folder):
        model.save_pretrained(folder, **named)


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Raise OSError where safetensors, whose errors are its own, cannot write to `folder`."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(errno.EIO, str(error), str(folder)) from None


def save_card(card: ModelCard, folder: Path) -> None:
    """README.md in `folder`, whole."""
    replace_file(folder / "README.md", card.save)


def trained_recordings(model_folder: Path) -> set[str]:
    """The recordings in the training and validation part of the run that the model is of; none if of no run."""
    path = model_folder.parent / "split.csv"
    if not path.is_file():
        return set()
    kept = pd.read_csv(path, usecols=["recording", "part"], keep_default_na=False)
    return set(kept.loc[kept["part"].isin(["train", "validation"]), "recording"])


def resumed_settings(settings: Settings, name: str = "RESUME") -> Settings:
    """The settings that the run was started with which `name` names; raises EMGError where there is none."""
    run, others = getattr(settings, name), sorted(settings.model_fields_set - {name})
    if others:
        raise EMGError(f"{name} goes on with the run's own settings; leave out {', '.join(others)}")
    try:
        saved = json.loads((run / "env.json").read_text(encoding="utf-8"))
        return type(settings)(**saved | {name: run})
    except (OSError, ValueError, TypeError, RecursionError):
        raise EMGError(f"{name} = {run}: there is no run; name a folder under runs") from None


def write_split(windows: WindowSet, split: Split, run: Path) -> None:
    """split.csv: every window's identity and part. Raises EMGError where a resumed run had another split."""
    path = run / "split.csv"
    if path.exists() and not is_split_of(run, windows, split):
        raise EMGError(f"{path}: the run was started on other data or another split; start a new run")
    replace_file(path, lambda new: new.write_text(_split_text(windows, split), encoding="utf-8", newline="\n"))


def is_split_of(run: Path, windows: WindowSet, split: Split) -> bool:
    """Whether the run's split.csv holds these windows in these parts."""
    return (run / "split.csv").read_bytes() == _split_text(windows, split).encode()


def _split_text(windows: WindowSet, split: Split) -> str:
    return windows.table.assign(part=split.part_of(len(windows.table))).to_csv(index=False, lineterminator="\n")


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
