"""What happens to the pipeline when it is killed, when its disk is full, and when its files change under its hands.

Kills come at random moments of the work itself: the scripts start as forks of a process that has their imports behind
it (stress.scripts). A chain of starts, each killed, goes on until one comes to its end; then all that is on disk
must be what an undisturbed run leaves, and nothing else. After a SIGKILL before its first checkpoint a run cannot be
resumed, so its folder is removed, as a user would.
"""

import ctypes
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from emg_gpt2.base.errors import EMGError
from stress.row import Row
from stress.scripts import CUT, Ended, make_gpt2, make_recordings, make_windows, run, server, start, tiny
from stress.snapshot import difference, flaw, snapshot

Say = Callable[[str], None]

KILLS, NIGHTLY_KILLS = 1, 50  # of each script with each signal
DISKS, NIGHTLY_DISKS = 1, 12  # sizes of each script's disk
CHANGES, NIGHTLY_CHANGES = 3, 50  # moments at which a file changes while it is read
CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000  # of sched.h
ROOM = 64 << 20  # bytes of a disk with space


@dataclass(frozen=True)
class Work:
    """A script, its command line but for where the results go, and what stands there before."""

    name: str
    script: str
    arguments: list
    flag: str
    result: str
    resumes: bool = False
    older: Path | None = None  # an earlier result of other settings

    def command(self, place: Path, killed: bool = False) -> list:
        """The next start: --resume where the run has something to go on from, else the same command as before."""
        result = place / self.result
        if self.resumes and can_go_on(result):
            return ["--resume", result]
        if self.resumes and killed:
            shutil.rmtree(result, ignore_errors=True)
        return [*self.arguments, self.flag, result]

    def begin(self, place: Path, with_older: bool) -> Path:
        place.mkdir(exist_ok=True)
        if with_older and self.older:
            shutil.copy(self.older, place / self.result)
        return place


@dataclass(frozen=True)
class Undisturbed:
    """What a run leaves that nobody disturbs, how long it takes and how many bytes it writes."""

    files: dict
    seconds: float
    size: int


def rows(nightly: bool, folder: Path, seed: int, say: Say) -> Iterator[Row]:
    """Kills, full and read-only disks, changing recordings and windows files, killed workers."""
    try:
        server()
    except EMGError as error:
        yield Row("faults", "kills, full disks, changing files", note=f"not tried: {error}")
        return
    say("making recordings, windows and a model to run on")
    works = prepare(folder)
    left = {work.name: undisturbed(work, folder) for work in works}
    rng = random.Random(seed)
    for work in works:
        for number in (signal.SIGKILL, signal.SIGTERM) if work.name != "prediction" else ():
            say(f"{number.name} in {work.name}, which takes {left[work.name].seconds:.1f} s")
            yield kills(work, left[work.name], number, NIGHTLY_KILLS if nightly else KILLS, folder, rng)
    tried = works if nightly else works[:2]
    yield from disks(tried, left, NIGHTLY_DISKS if nightly else DISKS, folder, rng, say)
    times = NIGHTLY_CHANGES if nightly else CHANGES
    say("recordings that change or vanish")
    yield changing_recordings(works[0], left[works[0].name], times, folder, rng)
    say("windows files that change or vanish")
    yield changing_windows(works[1], left[works[1].name], times if nightly else 1, folder, rng)
    say("killed workers")
    yield killed_workers(works[0], left[works[0].name], times if nightly else 1, folder, rng)


def prepare(folder: Path) -> list[Work]:
    """The scripts on their small data."""
    log = folder / "log"
    raw, gpt2 = make_recordings(folder, log), make_gpt2(folder / "gpt2")
    windows = make_windows(raw, folder / "windows.parquet", log)
    older = make_windows(raw, folder / "older.parquet", log, "--filter", "none")
    train, grid = tiny(windows, gpt2), ["--sweep", "--sweep-num-layers", "0", "--sweep-lr", "0.001,0.003"]
    sweep = [*train, *grid, "--num-epochs-for-validation", "1", "--no-refit"]
    works = [
        Work("preprocessing", "Preprocessing", [raw, *CUT], "--data-location", "windows.parquet", older=older),
        Work("training", "main", train, "--run-dir", "run", resumes=True),
        Work("sweep", "main", sweep, "--run-dir", "run", resumes=True),
        Work("evaluation", "tools.evaluate", [*train, "--no-refit", "--seeds", "0"], "--out", "evaluation"),
    ]
    ended = run("main", works[1].command(folder), folder, log)
    if ended.status:
        raise EMGError(f"no model could be trained: {ended.last_line}")
    recordings = sorted(raw.iterdir())[:2]
    model = ["--model", folder / "run" / "best_model"]
    return [*works, Work("prediction", "tools.predict", [*recordings, *model], "--out", "predictions")]


def undisturbed(work: Work, folder: Path) -> Undisturbed:
    """Raises EMGError where even that fails, or something stays behind."""
    place = work.begin(folder / f"undisturbed-{work.name}", with_older=False)
    ended = run(work.script, work.command(place), place, folder / "log")
    files = snapshot(place)
    hidden = [name for name in files if "/." in f"/{name}"]
    if ended.status or hidden:
        raise EMGError(f"{work.name} by itself ends with {ended.status}, {ended.last_line}, and leaves {hidden}")
    size = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
    return Undisturbed(files, ended.seconds, size)


# ---- kills ------------------------------------------------------------------------------------------------------


def kills(work: Work, left: Undisturbed, number: signal.Signals, times: int, folder: Path, rng: random.Random) -> Row:
    """Chains of starts until `times` of them were killed."""
    row, chains = Row("faults", f"{number.name} at a random moment of {work.name}"), 0
    while row.times < times:
        place = work.begin(folder / f"{work.name}-{number.name}-{chains}", with_older=chains % 2 == 1)
        for end, seconds in chain(work, left, number, times - row.times, place, rng):
            row.add(end, seconds)
        shutil.rmtree(place)
        chains += 1
    return row


def chain(
    work: Work, left: Undisturbed, number: signal.Signals, most: int, place: Path, rng: random.Random
) -> list[tuple[str, float]]:
    """How each kill ended, and after how many seconds; what is wrong in the end counts for the last kill."""
    found, before, log = [], snapshot(place), place.with_suffix(".log")
    while len(found) < most:
        moment = rng.uniform(0, left.seconds)
        ended = start(work.script, work.command(place, number == signal.SIGKILL), place, log).after(moment, number)
        if ended is None or ended.status == 0:  # it was quicker
            break
        end = end_of_kill(ended, number) or flaw_after(place, before, left.files)
        found.append((f"after {moment:.2f} s: {end}" if end else "right", ended.seconds))
    wrong = wrong_at_the_end(work, left, number == signal.SIGKILL, place, log)
    if wrong and found:
        found[-1] = (f"after {len(found)} kills and a last start: {wrong}", found[-1][1])
    return found or ([(f"without a kill: {wrong}", 0.0)] if wrong else [])


def end_of_kill(ended: Ended, number: signal.Signals) -> str:
    """What is wrong with how the script ended, or nothing."""
    if number == signal.SIGKILL:
        return "" if ended.status == -9 else f"it ended with {ended.status} by itself: {ended.last_line}"
    if ended.status == 130 and ended.tidy and "interrupted" in ended.last_line:
        return ""
    return f"SIGTERM ended it with {ended.status}, saying: {ended.said[-500:]}"


def flaw_after(place: Path, before: dict, complete: dict) -> str:
    """What is wrong with the files on disk: each is whole, and a final one is the old or the complete new one."""
    for name, content in snapshot(place).items():
        hidden = "/." in f"/{name}"
        if not hidden and (wrong := flaw(place / name)):
            return wrong
        if not hidden and content.final and content not in (before.get(name), complete.get(name)):
            return f"{name} is neither the old nor the new one"
    gone = [name for name in before if not (place / name).exists()]
    return f"the old {gone[0]} is gone" if gone else ""


def wrong_at_the_end(work: Work, left: Undisturbed, killed: bool, place: Path, log: Path) -> str:
    """Let it run to its end; what then is not as after an undisturbed run."""
    ended = run(work.script, work.command(place, killed), place, log)
    if finished_before(ended, work, place):
        ended.status = 0
    if ended.status:
        return f"the last start ends with {ended.status}, saying: {ended.said[-500:]}"
    return difference(left.files, snapshot(place))


def finished_before(ended: Ended, work: Work, place: Path) -> bool:
    """A run without a kill may be there already, and is not written over."""
    return ended.refused and "there are results already" in ended.said and (place / work.result).exists()


def can_go_on(run: Path) -> bool:
    """Whether --resume has something to go on from: a checkpoint, or the trials of a sweep."""
    checkpoints = ("last/history.json", ".last.old/history.json", "sweep.csv")
    return (run / "env.json").exists() and any((run / name).exists() for name in checkpoints)


# ---- full and read-only disks -----------------------------------------------------------------------------------


def disks(
    works: list[Work], left: dict[str, Undisturbed], times: int, folder: Path, rng: random.Random, say: Say
) -> Iterator[Row]:
    """On small file systems in memory, that only these processes see."""
    for what, tries in (("full disk", full), ("read-only folder", read_only)):
        for work in works:
            say(f"{what} for {work.name}")
            row = Row("faults", f"{what} for {work.name}")
            shares = [rng.uniform(0, 1.2) for _ in range(times if tries is full else 1)]
            for end, seconds in in_own_mounts(tries, work, left[work.name], folder / "disk", shares):
                if seconds < 0:
                    row.note = end
                else:
                    row.add(end, seconds)
            yield row


def in_own_mounts(tries: Callable, *given) -> Iterator[tuple[str, float]]:
    """What `tries` yields in a process with mounts of its own; a note and −1 s where there can be none."""
    ours, theirs = server().Pipe(duplex=False)
    process = server().Process(target=_with_own_mounts, args=(theirs, tries, given))
    process.start()
    theirs.close()
    try:
        while True:
            yield ours.recv()
    except EOFError:
        process.join()
        if process.exitcode:
            yield f"the trying itself ended with {process.exitcode}", 0.0


def _with_own_mounts(theirs, tries: Callable, given: tuple) -> None:
    try:
        own_mounts()
    except (OSError, subprocess.CalledProcessError) as error:
        theirs.send((f"not tried: no file system can be mounted here ({error}); try it on Linux", -1.0))
        return
    for one in tries(*given):
        theirs.send(one)


def own_mounts() -> None:
    """Let this process, root or not, mount what others do not see; raises OSError."""
    if sys.platform != "linux":
        raise OSError("mounts of one's own are Linux's")
    libc, user, group = ctypes.CDLL(None, use_errno=True), os.getuid(), os.getgid()
    if user or libc.unshare(CLONE_NEWNS):
        if libc.unshare(CLONE_NEWUSER | CLONE_NEWNS):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
            Path("/proc/self", name).write_text(text)
    mount("--make-rprivate", "/")


def mount(*arguments) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True, capture_output=True)


def full(work: Work, left: Undisturbed, place: Path, shares: list[float]) -> Iterator[tuple[str, float]]:
    """A disk that has room for a share of what the script writes; then, with room, the same again."""
    log = place.with_suffix(".log")
    for number, share in enumerate(shares):
        before = make_disk(work, place, with_older=number % 2 == 0)
        used = os.statvfs(place)
        room = (used.f_blocks - used.f_bfree) * used.f_frsize + int(share * left.size)
        mount("-o", f"remount,size={max(room, 4096)}", place)
        ended = run(work.script, work.command(place), place, log)
        wrong = wrong_on_disk(work, ended, place, before, left)
        mount("-o", f"remount,size={ROOM}", place)
        if not wrong and ended.status:
            wrong = wrong_at_the_end(work, left, False, place, log)
            wrong = wrong and f"with room again, {wrong}"
        subprocess.run(["umount", "--lazy", place], check=True)
        words = f"with room for {share:.0%} of {left.size / 1e3:.0f} kB: {wrong}"
        yield words if wrong else "refused" if ended.status else "right", ended.seconds


def read_only(work: Work, left: Undisturbed, place: Path, shares: list[float]) -> Iterator[tuple[str, float]]:
    """A place that nothing can be written to; a mount, because root does not mind modes."""
    for _ in shares:
        before = make_disk(work, place, with_older=True)
        mount("-o", "remount,ro", place)
        ended = run(work.script, work.command(place), place, place.with_suffix(".log"))
        wrong = wrong_on_disk(work, ended, place, before, left)
        if not ended.status:
            wrong = "it says that it wrote its results"
        subprocess.run(["umount", "--lazy", place], check=True)
        yield wrong or "refused", ended.seconds


def make_disk(work: Work, place: Path, with_older: bool) -> dict:
    """A new one in memory, mounted on `place`; returns what lies on it."""
    place.mkdir(exist_ok=True)
    mount("-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", place)
    return snapshot(work.begin(place, with_older))


def wrong_on_disk(work: Work, ended: Ended, place: Path, before: dict, left: Undisturbed) -> str:
    """What is wrong after a start whose disk was too small, or not to be written."""
    if ended.status and not ended.refused:
        return f"it ended with {ended.status}, saying: {ended.said[-700:]}"
    hidden = [name for name in snapshot(place) if "/." in f"/{name}" and ".parts/" not in name]
    if hidden:
        return f"{', '.join(hidden)} stays behind"
    return flaw_after(place, before, left.files)


# ---- files that change while they are read ----------------------------------------------------------------------


def changing_recordings(work: Work, left: Undisturbed, times: int, folder: Path, rng: random.Random) -> Row:
    """While Preprocessing.py reads: each recording comes out right, as one of the two that had its name, or skipped."""
    row = Row("faults", "a recording changes or vanishes while it is read")
    raw, output = folder / "changing", "changed.parquet"
    recordings = sorted(Path(work.arguments[0]).iterdir())
    for number in range(times):
        shutil.rmtree(raw, ignore_errors=True)
        shutil.copytree(work.arguments[0], raw)
        (folder / output).unlink(missing_ok=True)
        victim, change = raw / rng.choice(recordings).name, CHANGES_OF_FILES[number % len(CHANGES_OF_FILES)]
        started = start(work.script, [raw, "--data-location", folder / output, *CUT], folder, folder / "log")
        started.process.join(rng.uniform(0, left.seconds))
        change(victim, recordings[0], folder)
        ended = started.end()
        wrong = wrong_windows(folder / output, work.older.with_name("windows.parquet"), victim.name, recordings[0])
        if not ended.tidy or ended.status not in (0, 1, 3):
            wrong = f"it ended with {ended.status}, saying: {ended.said[-500:]}"
        told = "refused" if ended.status else "right"
        row.add(f"{victim.name} is {change.__name__}: {wrong}" if wrong else told, ended.seconds)
    return row


def renamed(victim: Path, other: Path, folder: Path) -> None:
    victim.rename(folder / "renamed")


def truncated(victim: Path, other: Path, folder: Path) -> None:
    os.truncate(victim, victim.stat().st_size // 2)


def overwritten(victim: Path, other: Path, folder: Path) -> None:
    victim.write_bytes(other.read_bytes())


def replaced(victim: Path, other: Path, folder: Path) -> None:
    shutil.copy(other, folder / "other")
    os.replace(folder / "other", victim)


CHANGES_OF_FILES = (renamed, truncated, overwritten, replaced)


def wrong_windows(output: Path, right: Path, victim: str, other: Path) -> str:
    """Windows that are neither those of the recording nor, for the `victim`, those of the file that took its place."""
    if not output.exists():
        return ""
    made, expected = windows_of_recordings(output), windows_of_recordings(right)
    for name, windows in made.items():
        allowed = [expected[name]] + ([expected[other.stem]] if f"{name}.hdf5" == victim else [])
        if not any(windows.equals(one) for one in allowed):
            return f"the windows of {name} are wrong"
    return ""


def windows_of_recordings(file: Path) -> dict[str, pa.Table]:
    """Samples, labels, repetitions and times of every recording in a windows file."""
    table = pq.read_table(file)
    names, columns = table["recording"], ["emg", "TRAJ_GT", "repetition", "start"]
    found = {name: table.filter(pa.compute.equal(names, name)).select(columns) for name in names.unique().to_pylist()}
    return {name: one.combine_chunks().replace_schema_metadata() for name, one in found.items()}


def changing_windows(work: Work, left: Undisturbed, times: int, folder: Path, rng: random.Random) -> Row:
    """While main.py starts, reads and trains: the results are those of one of the files, or it says what is wrong."""
    row, source = Row("faults", "the windows file changes or vanishes while main.py works"), work.arguments[1]
    windows, other = folder / "read" / source.name, source.with_name("older.parquet")
    arguments = [*work.arguments[:1], windows, *work.arguments[2:]]
    mine = Work(work.name, work.script, arguments, work.flag, work.result)
    windows.parent.mkdir()
    expected = []
    for number, file in enumerate((other, source)):
        shutil.copy(file, windows)
        (alone := folder / f"read-alone-{number}").mkdir()
        expected.append(undisturbed(mine, alone).files)
    for number in range(times):
        shutil.copy(source, windows)
        place, change = mine.begin(folder / f"read-{number}", False), CHANGES_OF_FILES[number % len(CHANGES_OF_FILES)]
        started = start(work.script, mine.command(place), place, folder / "log")
        started.process.join(rng.uniform(0, 0.3 * left.seconds))
        change(windows, other, folder)
        ended = started.end()
        wrong = min((difference(files, snapshot(place)) for files in expected), key=len) if not ended.refused else ""
        wrong = wrong if ended.refused or not ended.status else f"it ended with {ended.status}: {ended.said[-500:]}"
        row.add(f"{change.__name__}: {wrong}" if wrong else "refused" if ended.status else "right", ended.seconds)
        shutil.rmtree(place)
    return row


# ---- killed workers ---------------------------------------------------------------------------------------------


def killed_workers(work: Work, left: Undisturbed, times: int, folder: Path, rng: random.Random) -> Row:
    """One of two worker processes of Preprocessing.py is killed; the same command then goes on from there."""
    import psutil

    row = Row("faults", "SIGKILL of a worker process of Preprocessing.py --workers 2")
    for number in range(times):
        place, log = work.begin(folder / f"workers-{number}", with_older=False), folder / "log"
        command = [*work.command(place), "--workers", "2"]
        started, workers, moment = start(work.script, command, place, log), [], rng.uniform(0, 2)
        while started.process.exitcode is None and not workers:
            started.process.join(0.01)
            workers = workers_of(psutil.Process(started.process.pid)) if started.process.exitcode is None else []
        started.process.join(moment)
        for worker in workers[:1]:
            worker.kill()
        ended = started.end()
        wrong = "" if ended.refused or not ended.status else f"it ended with {ended.status}: {ended.said[-500:]}"
        wrong = wrong or wrong_at_the_end(work, left, False, place, log)
        row.add(f"after {moment:.1f} s: {wrong}" if wrong else "refused" if ended.status else "right", ended.seconds)
        shutil.rmtree(place)
    return row


def workers_of(process) -> list:
    """Those of joblib's processes that work."""
    import psutil

    try:
        children = process.children(recursive=True)
        return [child for child in children if "popen_loky_posix" in " ".join(child.cmdline())]
    except psutil.Error:
        return []
