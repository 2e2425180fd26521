"""Evaluate every fold of a split or protocol with several seeds: one run of main.py for each."""

import filecmp
import glob
import logging
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console

from EMG_DATA_LOADER import Split, split_windows
from emg_gpt2.base.errors import EMGError
from emg_gpt2.base.files import replace_file, write_json
from emg_gpt2.base.log import track
from emg_gpt2.results.figures import use_format
from emg_gpt2.settings import Settings, settings_of_main
from emg_gpt2.study.baselines import compare
from emg_gpt2.study.folds import Fold, folds_of, reported_figures
from emg_gpt2.study.options import EVALUATED, EvaluationSettings
from emg_gpt2.study.people import results_over_people, write_evaluation
from emg_gpt2.study.protocols import LEAKY, PROTOCOLS
from emg_gpt2.study.runs import Run, carry_out, check_identity, finished, identity, is_finished, locked, train_and_test
from emg_gpt2.training.task import make_task
from emg_gpt2.training.tracker import require_tracker
from emg_gpt2.windows.reading import WindowSet, load_windows

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FoldRun(Run):
    """One fold with one seed."""

    fold: Fold
    seed: int


def evaluate_folds(given: EvaluationSettings, console: Console) -> tuple[dict, Path]:
    """Data → folds → one run per fold and seed → figures over people, and the folder that holds them.

    console: of the log. Raises EMGError, also where no run could be finished.
    """
    settings = settings_of_runs(given)
    use_format(given.FIGURE_FORMAT)
    require_tracker(settings)
    windows = load_windows(settings)
    folds, left_out = folds_of(windows.table, settings, given.PROTOCOL)
    out = given.OUT or Path("runs") / f"evaluate-{settings.SPLIT if given.PROTOCOL == 'none' else given.PROTOCOL}"
    runs = [run_of(fold, seed, settings, out) for fold in folds for seed in given.SEEDS]
    facts = facts_of_evaluation(given, windows, runs, left_out)
    logger.info("\n".join([facts["title"], *left_out]))
    with locked(out):
        check_identity(out, identity(settings, windows, EVALUATED) | {"PROTOCOL": given.PROTOCOL})
        failed = carry_out(runs, partial(finish, windows=windows, console=console), console)
        done = finished(runs, failed)
        if given.BASELINES:
            failed |= add_baselines(done, windows)
        folders = {(run.fold.name, run.seed): run.folder for run in done}
        found = results_over_people(folders, facts | {"failed": failed})
        write_evaluation(found, out)
    return found, out


def settings_of_runs(given: EvaluationSettings) -> Settings:
    """What every run has in common. Raises EMGError for a setting that fold, seed or protocol set."""
    if given.PROTOCOL == "none":
        return settings_of_main(given, EVALUATED, "evaluate")
    own = EVALUATED | PROTOCOLS[given.PROTOCOL].changes.keys() | {"TRAIN_ON", "TEST_ON"}
    return settings_of_main(given, own, f"protocol {given.PROTOCOL}")


def run_of(fold: Fold, seed: int, settings: Settings, out: Path) -> FoldRun:
    """The run of a fold with a seed, in the evaluation's folder `out`."""
    folder = out / "runs" / f"{fold.name}-seed{seed}"
    return FoldRun(folder, settings.model_copy(update=fold.changes | {"SEED": seed, "RUN_DIR": folder}), fold, seed)


def facts_of_evaluation(
    given: EvaluationSettings, windows: WindowSet, runs: list[FoldRun], left_out: list[str]
) -> dict:
    """What was evaluated, in words and numbers that every result shows."""
    settings, protocol = runs[0].settings, PROTOCOLS.get(given.PROTOCOL)
    named, note = settings.TRAIN_ON or settings.TEST_ON, windows.metadata["note"]
    leaky = settings.SPLIT == "random" and not named
    title = "Named training and test part" if named else f"Split {settings.SPLIT}, every fold"
    title = f"Protocol {given.PROTOCOL}: {protocol.title}" if protocol else title + LEAKY * leaky
    transductive = settings.SCALE == "session"
    return {
        "title": title + ", transductive" * transductive,
        "protocol": given.PROTOCOL,
        "source": protocol.source if protocol else "",
        "leaky": leaky,
        "transductive": transductive,
        "model": settings.MODEL_NAME,
        "data": str(settings.DATA_LOCATION),
        "data_note": note,
        "classes": {str(code): name for code, name in zip(windows.classes, windows.class_names, strict=True)},
        "chance": 1 / len(windows.classes),
        "folds": list(dict.fromkeys(run.fold.name for run in runs)),
        "seeds": given.SEEDS,
        "left_out": left_out,
        "literature": list(reported_figures(windows, given.PROTOCOL)),
    }


# ---- one run ----------------------------------------------------------------------------------------------------


def finish(run: FoldRun, windows: WindowSet, console: Console) -> bool:
    """Train and test, unless the run is finished; returns whether anything was left to do. Raises EMGError."""
    part, split = windows_and_split(run, windows)
    if is_finished(run, part, split):
        return False
    train_and_test(run, make_task(part, split, run.settings), console)
    return True


def windows_and_split(run: FoldRun, windows: WindowSet) -> tuple[WindowSet, Split]:
    """The windows of the fold, of its only person where it has one, so that split.csv lists nobody else."""
    if run.fold.subject is not None:
        rows = np.flatnonzero(windows.table["subject"] == run.fold.subject)
        windows = WindowSet(windows.emg[rows], windows.table.iloc[rows].reset_index(drop=True), windows.metadata)
    return windows, split_windows(windows, run.settings)


# ---- baselines --------------------------------------------------------------------------------------------------


def add_baselines(runs: list[FoldRun], windows: WindowSet) -> dict[str, str]:
    """Write baselines.json into every run's folder, as `baselines --add-to` does; returns run → why it failed."""
    failed = {}
    for number, run in enumerate(track(runs, "baselines")):
        logger.info(f"baselines {number + 1} of {len(runs)}: {run.name}")
        try:
            find_baselines(run, windows)
        except EMGError as error:
            failed[f"baselines of {run.name}"] = str(error)
            logger.warning(f"baselines of {run.name} failed: {error}")
    return failed


def find_baselines(run: FoldRun, windows: WindowSet) -> None:
    """Keep what is there; else copy from a seed of the fold that has the same split; else fit. Raises EMGError."""
    path = run.folder / "baselines.json"
    if path.exists():
        return
    for other in sorted(path.parent.parent.glob(f"{glob.escape(run.fold.name)}-seed*/baselines.json")):
        if filecmp.cmp(other.parent / "split.csv", run.folder / "split.csv", shallow=False):
            replace_file(path, partial(shutil.copy, other))
            return
    part, split = windows_and_split(run, windows)
    found = compare(part, split, run.settings, run.folder)
    replace_file(path, lambda new: write_json(new, found))
