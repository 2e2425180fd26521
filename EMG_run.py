"""The files of a run folder: made once, replaced whole, found again by --resume."""

import itertools
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
from huggingface_hub import ModelCard

from EMG_card import save_card
from EMG_DATA_LOADER import Split, WindowSet
from EMG_model import EMGForSequenceClassification
from ENV import EMGError, Settings


def open_run(settings: Settings) -> Path:
    """The run's folder, new or empty; the resumed run's with RESUME. Raises EMGError."""
    if settings.MODEL_SAVING_DIR:
        make_folder(settings.MODEL_SAVING_DIR)  # found out now, not when the training is over
    if settings.RESUME:
        recover_folder(settings.RESUME / "last")
        recover_folder(settings.RESUME / "best_model")
        if not settings.SWEEP and not (settings.RESUME / "last" / "history.json").is_file():
            raise EMGError(f"RESUME = {settings.RESUME}: no checkpoint is there to go on from; start a new run")
        return settings.RESUME
    if settings.RUN_DIR:
        make_folder(settings.RUN_DIR)
        if any(settings.RUN_DIR.iterdir()):
            raise EMGError(f"RUN_DIR = {settings.RUN_DIR}: there are results already; name a new folder, or use RESUME")
        return settings.RUN_DIR
    make_folder(Path("runs"))
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    for number in itertools.count(1):
        folder = Path("runs") / (stamp if number == 1 else f"{stamp}_{number}")
        with suppress(FileExistsError):  # another run began in the same second
            folder.mkdir()
            return folder


def make_folder(folder: Path) -> None:
    """Raises EMGError where the folder cannot be made or written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise EMGError(f"{folder}: the folder cannot be written ({error.strerror}); name another one") from None


def discard_if_empty(run: Path) -> bool:
    """Remove a run that has no checkpoint, no trial that was begun and no batch to look at; returns whether it did."""
    worthless = not any((run / name).exists() for name in ("last", "sweep.csv", "bad_batch.csv", "best_model"))
    if worthless:
        shutil.rmtree(run, ignore_errors=True)
    return worthless


def replace_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a new folder that then takes the place of `folder`: a reader sees the old or the new one."""
    start_replacement(folder)
    write(replacement(folder))
    finish_replacement(folder)


def replacement(folder: Path) -> Path:
    """Where the files are written that will take the place of `folder`."""
    return _beside(folder, "new")


def start_replacement(folder: Path) -> None:
    recover_folder(folder)
    for leftover in (replacement(folder), _beside(folder, "old")):
        shutil.rmtree(leftover, ignore_errors=True)
    replacement(folder).mkdir(parents=True)


def finish_replacement(folder: Path) -> None:
    old = _beside(folder, "old")
    if folder.exists():
        os.replace(folder, old)
    os.replace(replacement(folder), folder)
    shutil.rmtree(old, ignore_errors=True)


def recover_folder(folder: Path) -> None:
    """Put the old folder back where a kill fell between the two renames of `replace_folder`."""
    if not folder.exists() and _beside(folder, "old").exists():
        os.replace(_beside(folder, "old"), folder)


def _beside(folder: Path, what: str) -> Path:
    return folder.with_name(f".{folder.name}.{what}")


def save_model(model: EMGForSequenceClassification, card: ModelCard, folder: Path) -> None:
    """Put a model's files and its card into `folder`, each one whole, and leave its other files alone."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as new:
            model.save_pretrained(new)
            save_card(card, Path(new))
            for file in Path(new).iterdir():
                os.replace(file, folder / file.name)
    except OSError as error:
        raise EMGError(f"{folder}: the model cannot be written ({error.strerror}); name another folder") from None


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
    except (OSError, ValueError):
        raise EMGError(f"{name} = {run}: there is no run; name a folder under runs") from None


def replace_file(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` make a file that then takes the place of `path`: a reader sees the old or the new one."""
    new = path.with_name(f".{path.stem}.new{path.suffix}")
    try:
        write(new)
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


def write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_split(windows: WindowSet, split: Split, run: Path) -> None:
    """split.csv: every window's identity and part. Raises EMGError where a resumed run had another split."""
    path = run / "split.csv"
    if path.exists() and not is_split_of(run, windows, split):
        raise EMGError(f"{path}: the run was started on other data or another split; start a new run")
    replace_file(path, lambda new: new.write_text(_split_text(windows, split), encoding="utf-8", newline="\n"))


def is_split_of(run: Path, windows: WindowSet, split: Split) -> bool:
    """Whether the run's split.csv holds these windows in these parts."""
    return (run / "split.csv").read_text(encoding="utf-8") == _split_text(windows, split)


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
