"""Kills, full and read-only disks, files that change while they are read.

Kills come at random moments of the work itself, because the scripts start as forks of a process that has their imports
behind it. A script is started and killed again and again, until one start comes to its end; then all that is on disk
must be what an undisturbed run leaves, and nothing else. After a SIGKILL before its first checkpoint a run cannot be
resumed, so its folder is removed, as a user would.
"""

import random
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from stress.changes import changing_recordings, changing_windows
from stress.disks import full, in_own_mounts, read_only
from stress.process import Ended
from stress.row import Row
from stress.scripts import CUT, make_gpt2, make_recordings, make_windows, run_well, small_training
from stress.snapshot import snapshot
from stress.work import Undisturbed, Work, flaw_after, flaw_at_the_end, undisturbed

KILLS, NIGHTLY_KILLS = 1, 50  # of each script with each signal
DISKS, NIGHTLY_DISKS = 1, 12  # sizes of each script's disk
CHANGES, NIGHTLY_CHANGES = 3, 50  # moments at which a file changes while it is read


def rows(nightly: bool, folder: Path, seed: int, log: Callable[[str], None]) -> Iterator[Row]:
    """Kills, full and read-only disks, changing recordings and windows files, killed workers."""
    log("making recordings, windows and a model to run on")
    works = [(work, undisturbed(work, folder)) for work in prepare(folder)]
    rng = random.Random(seed)
    for work, expected in works[:-1]:
        for number in (signal.SIGKILL, signal.SIGTERM):
            log(f"{number.name} in {work.name}, which takes {expected.seconds:.1f} s")
            yield kills(work, expected, number, NIGHTLY_KILLS if nightly else KILLS, folder, rng)
    for what, tries in (("full disk", full), ("read-only folder", read_only)):
        for work, expected in works if nightly else works[:2]:
            log(f"{what} for {work.name}")
            sizes = (NIGHTLY_DISKS if nightly else DISKS) if tries is full else 1
            shares = [rng.uniform(0, 1.2) for _ in range(sizes)]
            yield in_own_mounts(
                tries, Row("faults", f"{what} for {work.name}"), work, expected, folder / "disk", shares
            )
    times = NIGHTLY_CHANGES if nightly else CHANGES
    log("files that change or vanish while they are read")
    yield changing_recordings(*works[0], times, folder, rng)
    yield changing_windows(*works[1], times if nightly else 1, folder, rng)
    log("killed workers")
    yield killed_workers(*works[0], times if nightly else 1, folder, rng)


def prepare(folder: Path) -> list[Work]:
    """The scripts on their small data; the last one, which is over in no time, is not killed."""
    raw, gpt2 = make_recordings(folder), make_gpt2(folder / "gpt2")
    windows = make_windows(raw, folder / "windows.parquet")
    older = make_windows(raw, folder / "older.parquet", *CUT, "--filter", "none")
    train, grid = small_training(windows, gpt2), ["--sweep", "--sweep-num-layers", "0", "--sweep-lr", "0.001,0.003"]
    sweep = [*train, *grid, "--num-epochs-for-validation", "1", "--no-refit"]
    works = [
        Work("preprocessing", "Preprocessing", [raw, *CUT], "--data-location", "windows.parquet", older=older),
        Work("training", "main", train, "--run-dir", "run", resumes=True),
        Work("sweep", "main", sweep, "--run-dir", "run", resumes=True),
        Work("evaluation", "emg_gpt2 evaluate", [*train, "--no-refit", "--seeds", "0"], "--out", "evaluation"),
    ]
    run_well("main", works[1].command(folder), folder)
    predicted = [*sorted(raw.iterdir())[:2], "--model", folder / "run" / "best_model"]
    return [*works, Work("prediction", "emg_gpt2 predict", predicted, "--out", "predictions")]


# ---- kills ------------------------------------------------------------------------------------------------------


def kills(
    work: Work, expected: Undisturbed, number: signal.Signals, times: int, folder: Path, rng: random.Random
) -> Row:
    """Start and kill the script until it was killed `times` times."""
    row, runs = Row("faults", f"{number.name} at a random moment of {work.name}"), 0
    while row.times < times:
        place = work.prepare(folder / f"{work.name}-{number.name}-{runs}", with_older=runs % 2 == 1)
        for outcome, seconds in killed_run(work, expected, number, times - row.times, place, rng):
            row.add(outcome, seconds)
        shutil.rmtree(place)
        runs += 1
    return row


def killed_run(
    work: Work, expected: Undisturbed, number: signal.Signals, most: int, place: Path, rng: random.Random
) -> list[tuple[str, float]]:
    """Outcome and seconds of each kill of one run; what is wrong at its end counts for the last kill."""
    found, before, hard = [], snapshot(place), number == signal.SIGKILL
    while len(found) < most:
        moment = rng.uniform(0, expected.seconds)
        ended = work.start(place, killed=hard).after(moment, number)
        if ended is None or ended.status == 0:  # it was quicker
            break
        wrong = flaw_of_kill(ended, number) or flaw_after(place, before, expected.files)
        found.append((f"after {moment:.2f} s: {wrong}" if wrong else "right", ended.seconds))
    if wrong := flaw_at_the_end(work, expected, place, killed=hard):
        last = found.pop()[1] if found else 0.0
        found.append((f"after {len(found) + 1} kills and a last start: {wrong}", last))
    return found


def flaw_of_kill(ended: Ended, number: signal.Signals) -> str:
    """What is wrong with the script's end, or nothing."""
    if number == signal.SIGKILL:
        return "" if ended.status == -9 else f"it ended with {ended.status} by itself: {ended.last_line}"
    if ended.status == 130 and ended.tidy and "interrupted" in ended.last_line:
        return ""
    return f"SIGTERM ended it with {ended.status}, saying: {ended.output[-500:]!r}"


def killed_workers(work: Work, expected: Undisturbed, times: int, folder: Path, rng: random.Random) -> Row:
    """One of two worker processes of Preprocessing.py is killed; the same command then goes on from there."""
    row = Row("faults", "SIGKILL of a worker process of Preprocessing.py --workers 2")
    for number in range(times):
        place, moment = work.prepare(folder / f"workers-{number}"), rng.uniform(0, 2)
        started, workers = work.start(place, "--workers", "2"), []
        while not (workers or started.has_ended()):
            started.process.join(0.01)
            workers = workers_of(started.process.pid)
        started.process.join(moment)
        for worker in workers[:1]:
            worker.kill()
        ended = started.end()
        wrong = flaw_at_the_end(work, expected, place) if ended.outcome in ("right", "refused") else ""
        row.add_call(ended, f"after {moment:.1f} s", wrong)
        shutil.rmtree(place)
    return row


def workers_of(pid: int) -> list[psutil.Process]:
    """The processes of joblib that belong to a process."""
    try:
        children = psutil.Process(pid).children(recursive=True)
        return [child for child in children if "popen_loky_posix" in " ".join(child.cmdline())]
    except psutil.Error:
        return []
