"""Runs of main.py, one after the other in one process and side by side in one folder; interrupted ones go on."""

import gc
import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pandas as pd
from filelock import FileLock, Timeout
from rich.console import Console

from EMG_DATA_LOADER import Split
from emg_gpt2.base.errors import EMGError
from emg_gpt2.base.files import make_folder, recover_folder, remove_lock, replace_file, write_json
from emg_gpt2.base.log import time_to_go, track
from emg_gpt2.model.build import load_model
from emg_gpt2.results.finished import write_results
from emg_gpt2.results.run import is_split_of, open_run, resumed_settings, write_settings, write_split
from emg_gpt2.settings import Role, Settings
from emg_gpt2.training.history import Histories
from emg_gpt2.training.new_model import log_model, new_model
from emg_gpt2.training.sweep import search
from emg_gpt2.training.task import Task, fitted_task, log_data
from emg_gpt2.training.tracker import tracking
from emg_gpt2.windows.reading import WindowSet
from EMG_utils import evaluate, evaluate_linear_path, fit, refit

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """One run of main.py: its folder and its settings."""

    folder: Path
    settings: Settings

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def files(self) -> tuple[str, ...]:
        """What it has written when it is finished; the report is written last."""
        return ("metrics.json", "predictions.parquet", "report.html")


AnyRun = TypeVar("AnyRun", bound=Run)


# ---- the folder of all runs -------------------------------------------------------------------------------------


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Make the folder, and let no other process work there. Raises EMGError where one does."""
    make_folder(out)
    lock = FileLock(out / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise EMGError(f"{out}: another process works there; wait for it, or name another --out") from None
    try:
        yield
    finally:
        remove_lock(lock)


def identity(settings: Settings, windows: WindowSet, own: set[str]) -> dict:
    """What all runs of a folder have in common: the data, and the settings that change results and are not in `own`."""
    compared = settings.with_role(Role.DATA, Role.SPLIT, Role.MODEL, Role.TRAINING, Role.SEARCH) - own
    return settings.model_dump(mode="json", include=compared) | {"contents of DATA_LOCATION": checksum(windows)}


def check_identity(out: Path, wanted: dict) -> None:
    """Write settings.json into a new folder; raises EMGError where the runs of an old one have another identity."""
    path = out / "settings.json"
    if not path.exists():
        replace_file(path, lambda new: write_json(new, wanted))
        return
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise EMGError(f"{path}: the file cannot be read; name another --out") from None
    other = [f"{name} = {kept.get(name)}, not {value}" for name, value in wanted.items() if kept.get(name) != value]
    if other:
        raise EMGError(f"{out}: its runs were made with {'; '.join(other)}; name another --out, or set it back")


def checksum(windows: WindowSet) -> str:
    """Of the file's metadata, which hold checksums of the samples, and of the table of windows."""
    rows = pd.util.hash_pandas_object(windows.table, index=False).to_numpy().tobytes()
    return hashlib.sha256(json.dumps(windows.metadata, sort_keys=True).encode() + rows).hexdigest()[:16]


# ---- the runs ---------------------------------------------------------------------------------------------------


def carry_out(runs: list[AnyRun], finish: Callable[[AnyRun], bool], console: Console) -> dict[str, str]:
    """Finish every run; returns run → why it failed.

    finish: trains and tests a run, and returns whether anything was left to do.

    The runs take turns in this process: the windows, up to many GB, are read once, and Ctrl-C reaches the run that is
    under way.
    """
    failed, spent = {}, []
    for number, run in enumerate(track(runs, "runs")):
        left = time_to_go(sum(spent), len(spent), len(runs) - number)
        logger.info(f"run {number + 1} of {len(runs)}{left}: {run.name}")
        began = time.monotonic()
        try:
            if finish(run):
                spent.append(time.monotonic() - began)
        except EMGError as error:
            failed[run.name] = str(error)
        except BaseException as error:
            error.add_note("run the same command again, which goes on where it was")
            raise
        if run.name in failed:
            logger.warning(f"{run.name} failed: {failed[run.name]}")
        gc.collect()  # the optimiser and its model refer to each other
    return failed


def finished(runs: list[AnyRun], failed: dict[str, str]) -> list[AnyRun]:
    """The runs that did not fail. Raises EMGError where there are none."""
    if done := [run for run in runs if run.name not in failed]:
        return done
    raise EMGError(f"no run was finished, the first one because: {next(iter(failed.values()))}")


def is_finished(run: Run, windows: WindowSet, split: Split) -> bool:
    """Whether the results of the run are complete. Raises EMGError where they are those of another split."""
    if not all((run.folder / name).is_file() for name in run.files):
        return False
    if not is_split_of(run.folder, windows, split):
        raise EMGError(f"{run.folder}: the run is of another split; remove it, or name another --out")
    return True


def train_and_test(run: Run, task: Task, console: Console) -> None:
    """What main.py does with these settings, from the run's last checkpoint where it has one. Raises EMGError."""
    settings = settings_to_go_on(run)
    with open_run(settings, console) as folder:
        log_data(task.windows, task.split, settings)
        write_split(task, folder)
        write_settings(settings, folder)
        if settings.SWEEP and not (folder / "last").exists():
            settings = search(task, settings, folder)
            write_settings(settings, folder)
        with tracking(settings, folder) as tracker:
            model = new_model(task, settings)
            log_model(model, settings)
            linear_path = evaluate_linear_path(model, task)
            history = fit(model, task, settings, folder, tracker=tracker)
            fitted = fitted_task(task, settings)
            second = refit(fitted, settings, history, folder, tracker) if settings.REFIT else []
            best = load_model(folder / "best_model")
            test = evaluate(best, fitted, settings)
            tracker.log_test(test.metrics)
            write_results(folder, best, task, settings, Histories(history, second, linear_path), test)


def settings_to_go_on(run: Run) -> Settings:
    """The settings that resume the run where it has a checkpoint; else its folder is removed, and its own settings."""
    recover_folder(run.folder / "last")
    if (run.folder / "last" / "history.json").is_file():
        return resumed_settings(Settings(RESUME=run.folder))
    if run.folder.exists():
        shutil.rmtree(run.folder)
    return run.settings
