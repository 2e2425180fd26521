"""Evaluate on every fold of a split with several seeds: figures per person, and over people.

    python -m tools.evaluate --protocol A --data-location putemg.parquet [any setting of main.py]

Each fold and seed is one run of main.py in OUT/runs/FOLD-seedN. Given again, the command keeps the runs that are
finished and goes on with the one that was interrupted.
Exit status: 0 done, 1 nothing to show, 3 some runs failed, 130 interrupted.
"""

import filecmp
import gc
import glob
import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pandas as pd
import torch
from filelock import FileLock, Timeout
from pydantic import Field, field_validator
from pydantic_settings import NoDecode
from rich.console import Console

from EMG_DATA_LOADER import Split, split_windows
from emg_gpt2.base.command_line import flag
from emg_gpt2.base.errors import EMGError
from emg_gpt2.base.files import make_folder, recover_folder, remove_lock, replace_file, write_json
from emg_gpt2.base.interrupts import working
from emg_gpt2.results.run import open_run, resumed_settings
from emg_gpt2.settings import Settings, read_settings
from emg_gpt2.study.baselines import evaluate_baselines
from emg_gpt2.study.people import print_results, summarise, write_results
from emg_gpt2.study.protocols import LEAKY, PROTOCOLS, Fold, folds_of, reported_figures
from emg_gpt2.windows.reading import WindowSet, load_windows
from EMG_utils import time_to_go
from main import close_log, experiment, explain, start_log

GROUP = "study"

OWN = {"FOLD", "SEED", "RUN_DIR", "RESUME", "MODEL_SAVING_DIR"}  # set for every run by this tool
CUT_BY_PROTOCOL = {"A": {"SPLIT"}, "B": {"SPLIT"}, "C": {"SPLIT"}, "D": {"SPLIT", "BALANCE"}}
WITHOUT_EFFECT = {"DATA_LOCATION", "MEMORY_GB", "WORKERS", "CLUSTER", "DOWNLOAD_URL", "TRACKER"}  # on the figures
FILES = ("metrics.json", "predictions.parquet", "report.html")  # of a run, the last one last


class SeveralSeeds(Settings):
    SEEDS: Annotated[list[int], NoDecode] = [0, 1, 2]
    """Values of SEED, each 0 ≤ x < 2³¹."""

    @field_validator("SEEDS", mode="before")
    @classmethod
    def _split_seeds(cls, value):
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @field_validator("SEEDS")
    @classmethod
    def _are_seeds(cls, seeds):
        if not seeds or len(set(seeds)) < len(seeds) or not all(0 <= seed < 2**31 for seed in seeds):
            raise ValueError("should be one seed or more, each given once")
        return seeds


class EvaluationSettings(SeveralSeeds):
    """Evaluate every fold of SPLIT, or of a protocol of the putEMG literature, with several seeds: mean, standard
    deviation and interval over people. The same command goes on after an interruption."""

    PROTOCOL: Literal["none", "A", "B", "C", "D"] = Field(
        "none", description="; ".join(f"{name}: {one.title} ({one.source})" for name, one in PROTOCOLS.items()) + "."
    )

    OUT: Path | None = None
    """Folder of the results; none: runs/evaluate-PROTOCOL or runs/evaluate-SPLIT."""

    BASELINES: bool = False
    """Also run the classical baselines on every fold (tools.baselines)."""


@dataclass(frozen=True)
class Run:
    """One fold with one seed."""

    fold: Fold
    seed: int
    folder: Path
    settings: Settings


def main(argv: list[str] | None = None) -> int:
    """Evaluate as the command line says; returns the exit status."""
    return runs_with_status("evaluate", lambda console: evaluate(read_settings(EvaluationSettings, argv), console))


def runs_with_status(tool: str, work: Callable[[Console], int]) -> int:
    """The exit status that `work` returns; where it raises, one sentence and 1, or 130 after Ctrl-C."""
    sys.stdout.reconfigure(errors="replace")  # a Windows code page lacks − and ≤
    sys.stderr.reconfigure(errors="replace")
    try:
        with working():
            return work(Console(stderr=True, highlight=False))
    except OSError as error:
        reason = f"{error.filename or 'a file'}: {error.strerror or error}"
        print(f"{tool}: {reason}; free or mend the place, then give the same command again", file=sys.stderr)
        return 1
    except (EMGError, MemoryError, torch.OutOfMemoryError) as error:
        print(f"{tool}: {explain(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        close_log()
        print(f"{tool}: interrupted; the same command goes on where it was", file=sys.stderr)
        return 130


def evaluate(given: EvaluationSettings, console: Console) -> int:
    """Data → folds → one run per fold and seed → figures over people; returns the exit status. Raises EMGError."""
    settings = settings_of_runs(given)
    windows = load_windows(settings)
    folds, left_out = folds_of(windows.table, settings, given.PROTOCOL)
    out = given.OUT or Path("runs") / f"evaluate-{settings.SPLIT if given.PROTOCOL == 'none' else given.PROTOCOL}"
    runs = [plan(fold, seed, settings, out) for fold in folds for seed in given.SEEDS]
    described = describe(given, windows, runs, left_out)
    console.print(described["title"], *left_out, sep="\n", markup=False)
    with claimed(out):
        check_claim(out, claim(settings, windows, OWN) | {"PROTOCOL": given.PROTOCOL})
        failed = carry_out(runs, partial(finish, windows=windows, console=console), console)
        finished = {(run.fold.name, run.seed): run.folder for run in runs if run.folder.name not in failed}
        if not finished:
            raise EMGError(f"no run was finished, the first one because: {next(iter(failed.values()))}")
        if given.BASELINES:
            failed |= add_baselines([run for run in runs if run.folder in finished.values()], windows, console)
        found = summarise(finished, described | {"failed": failed})
        write_results(found, out)
    print_results(found, Console(highlight=False))
    print(f"\n{out}: evaluation.json, evaluation.png, per_subject.csv, confusion_matrix.png, runs/")
    return 3 if failed else 0


def settings_of_runs(given: EvaluationSettings) -> Settings:
    """What every run has in common. Raises EMGError for a setting that is not the user's."""
    own = OWN | CUT_BY_PROTOCOL.get(given.PROTOCOL, set())
    own |= {"TRAIN_ON", "TEST_ON"} if given.PROTOCOL != "none" else set()
    return settings_of_main(given, own, "tools.evaluate" if given.PROTOCOL == "none" else f"protocol {given.PROTOCOL}")


def settings_of_main(given: Settings, own: set[str], by: str) -> Settings:
    """What main.py would read from the same command line. Raises EMGError for a setting that `by` sets itself."""
    refused = sorted(given.model_fields_set & own)
    if refused:
        raise EMGError(f"{by} sets {', '.join(refused)} itself; leave out {', '.join(map(flag, refused))}")
    return Settings(**{name: getattr(given, name) for name in given.model_fields_set & Settings.model_fields.keys()})


def plan(fold: Fold, seed: int, settings: Settings, out: Path) -> Run:
    folder = out / "runs" / f"{fold.name}-seed{seed}"
    return Run(fold, seed, folder, settings.model_copy(update=fold.changes | {"SEED": seed, "RUN_DIR": folder}))


def describe(given: EvaluationSettings, windows: WindowSet, runs: list[Run], left_out: list[str]) -> dict:
    """What was evaluated, in words and numbers that stand in every result."""
    settings, protocol = runs[0].settings, PROTOCOLS.get(given.PROTOCOL)
    named, note = settings.TRAIN_ON or settings.TEST_ON, windows.metadata["note"]
    leaky = settings.SPLIT == "random" and not named
    title = "Named training and test part" if named else f"Split {settings.SPLIT}, every fold"
    title = f"Protocol {given.PROTOCOL}: {protocol.title}" if protocol else title + LEAKY * leaky
    return {
        "title": title,
        "protocol": given.PROTOCOL,
        "source": protocol.source if protocol else "",
        "leaky": leaky,
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


# ---- the folder of an evaluation --------------------------------------------------------------------------------


@contextmanager
def claimed(out: Path) -> Iterator[None]:
    """One process at a time works in `out`."""
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


def claim(settings: Settings, windows: WindowSet, own: set[str]) -> dict:
    """What the runs of one folder have in common: data and settings, but for those that the tool sets itself.

    Seeds and baselines may be added to an evaluation, so they are not part of it.
    """
    common = settings.model_dump(mode="json", exclude=own | WITHOUT_EFFECT)
    return common | {"contents of DATA_LOCATION": fingerprint(windows)}


def check_claim(out: Path, wanted: dict) -> None:
    """Note in settings.json what `out` is for, or raise EMGError where it is for something else."""
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


def fingerprint(windows: WindowSet) -> str:
    """Of the file's own description of itself, which holds checksums of the samples, and of the table of windows."""
    rows = pd.util.hash_pandas_object(windows.table, index=False).to_numpy().tobytes()
    return hashlib.sha256(json.dumps(windows.metadata, sort_keys=True).encode() + rows).hexdigest()[:16]


# ---- the runs ---------------------------------------------------------------------------------------------------


def carry_out(runs: list, finish: Callable[..., bool], console: Console) -> dict[str, str]:
    """Finish every run, each with a `folder` of its own, and return why some failed.

    `finish` says of a run whether there was anything to do.

    The runs take turns in this process, by the functions that main.py itself consists of: the windows, up to many GB,
    are read once, and Ctrl-C reaches the run that is under way. Nothing of a run outlives it but its log handlers,
    which the next one replaces: its model is freed here, and a run after others gives what it gives alone.
    """
    failed, spent = {}, []
    for number, run in enumerate(runs):
        left = time_to_go(sum(spent), len(spent), len(runs) - number)
        console.print(f"run {number + 1} of {len(runs)}{left}: {run.folder.name}", markup=False, soft_wrap=True)
        began = time.monotonic()
        try:
            if finish(run):
                spent.append(time.monotonic() - began)
        except EMGError as error:
            failed[run.folder.name] = str(error)
            console.print(f"{run.folder.name} failed: {error}", markup=False, soft_wrap=True)
        gc.collect()  # the optimiser and its model refer to each other
    return failed


def finish(run: Run, windows: WindowSet, console: Console) -> bool:
    """Train and test, unless the run is finished; returns whether there was anything to do. Raises EMGError."""
    part = windows_of(windows, run.fold.subject)
    split = split_windows(part, run.settings)
    if is_finished(run, part, split):
        return False
    train(run, part, split, console)
    return True


def windows_of(windows: WindowSet, subject: str | None) -> WindowSet:
    """Those of one person, so that a run's split.csv does not list everybody; all of them for None."""
    if subject is None:
        return windows
    rows = np.flatnonzero(windows.table["subject"] == subject)
    return WindowSet(windows.emg[rows], windows.table.iloc[rows].reset_index(drop=True), windows.metadata)


def is_finished(run: Run, windows: WindowSet, split: Split) -> bool:
    """Whether the run's results are complete. Raises EMGError where they are those of another split."""
    if not all((run.folder / name).is_file() for name in FILES):
        return False
    kept = pd.read_csv(run.folder / "split.csv", usecols=["part"], keep_default_na=False)["part"]
    if not np.array_equal(kept, split.part_of(len(windows.table))):
        raise EMGError(f"{run.folder}: the run is of another split; remove it, or name another --out")
    return True


def train(run: Run, windows: WindowSet, split: Split, console: Console) -> None:
    """main.py's experiment, from the last finished epoch where there is one. Raises EMGError."""
    settings = run.settings
    recover_folder(run.folder / "last")
    if (run.folder / "last" / "history.json").is_file():
        settings = resumed_settings(Settings.model_construct({"RESUME"}, RESUME=run.folder))
    elif run.folder.exists():
        shutil.rmtree(run.folder)  # nothing to go on from
    start_log(console, open_run(settings))
    try:
        experiment(windows, split, settings, console, run.folder)
    finally:
        close_log()


# ---- baselines --------------------------------------------------------------------------------------------------


def add_baselines(runs: list[Run], windows: WindowSet, console: Console) -> dict[str, str]:
    """baselines.json in every run's folder, in the form of tools.baselines; returns why some failed."""
    failed = {}
    for number, run in enumerate(runs):
        console.print(f"baselines {number + 1} of {len(runs)}: {run.folder.name}", markup=False, soft_wrap=True)
        try:
            find_baselines(run, windows)
        except EMGError as error:
            failed[f"baselines of {run.folder.name}"] = str(error)
            console.print(f"baselines of {run.folder.name} failed: {error}", markup=False, soft_wrap=True)
    return failed


def find_baselines(run: Run, windows: WindowSet) -> None:
    """Keep what is there; else copy from a seed of the fold that has the same split; else fit. Raises EMGError."""
    path = run.folder / "baselines.json"
    if path.exists():
        return
    for other in sorted(path.parent.parent.glob(f"{glob.escape(run.fold.name)}-seed*/baselines.json")):
        if filecmp.cmp(other.parent / "split.csv", run.folder / "split.csv", shallow=False):
            replace_file(path, partial(shutil.copy, other))
            return
    part = windows_of(windows, run.fold.subject)
    split = split_windows(part, run.settings)
    found = evaluate_baselines(part, split.with_validation() if run.settings.REFIT else split)
    replace_file(path, lambda new: write_json(new, {"baselines": found}))


if __name__ == "__main__":
    sys.exit(main())
