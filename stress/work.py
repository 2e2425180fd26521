"""A script with its command line, what it leaves when nothing disturbs it, and what is wrong after a disturbance."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from emg_gpt2.base.errors import EMGError
from stress.process import Ended, Started
from stress.scripts import run_well, start
from stress.snapshot import Content, difference, flaw, snapshot

Files = dict[str, Content]


@dataclass(frozen=True)
class Work:
    """A script, its command line but for where the results go, and what stands there before.

    flag, result: the flag that names the result, and its name in the place where the script runs; resumes: whether an
    interrupted run goes on with --resume; older: an earlier result of other settings.
    """

    name: str
    script: str
    arguments: list
    flag: str
    result: str
    resumes: bool = False
    older: Path | None = None

    def prepare(self, place: Path, with_older: bool = False) -> Path:
        """Make the place to run in, with an earlier result in it or without."""
        place.mkdir(exist_ok=True)
        if with_older and self.older:
            shutil.copy(self.older, place / self.result)
        return place

    def command(self, place: Path, killed: bool = False) -> list:
        """The next command line: --resume where the run has a checkpoint, else the same as before.

        killed: by SIGKILL, after which the folder of a run without a checkpoint has to be removed by hand.
        """
        result = place / self.result
        if self.resumes and can_resume(result):
            return ["--resume", result]
        if self.resumes and killed:
            shutil.rmtree(result, ignore_errors=True)
        return [*self.arguments, self.flag, result]

    def start(self, place: Path, *flags: str, killed: bool = False) -> Started:
        return start(self.script, [*self.command(place, killed), *flags], place)

    def is_finished(self, ended: Ended, place: Path) -> bool:
        """Whether it was refused because a run that was not killed is there already."""
        return ended.refused and "there are results already" in ended.output and (place / self.result).exists()


def can_resume(run: Path) -> bool:
    """Whether there is a checkpoint, or a trial of a sweep."""
    checkpoints = ("last/history.json", ".last.old/history.json", "sweep.csv")
    return (run / "env.json").exists() and any((run / name).exists() for name in checkpoints)


@dataclass(frozen=True)
class Undisturbed:
    """What the script leaves when nothing disturbs it, the seconds that it takes and the bytes that it writes."""

    files: Files
    seconds: float
    size: int


def undisturbed(work: Work, folder: Path) -> Undisturbed:
    """Raises EMGError where the script fails or leaves a hidden file."""
    place = work.prepare(folder / f"undisturbed-{work.name}")
    ended = run_well(work.script, work.command(place), place)
    files = snapshot(place)
    if hidden := hidden_files(files):
        raise EMGError(f"{work.name} by itself leaves {hidden}")
    size = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
    return Undisturbed(files, ended.seconds, size)


def hidden_files(files: Files) -> list[str]:
    return [name for name in files if "/." in f"/{name}"]


# ---- what is wrong, in a sentence; empty where nothing is -------------------------------------------------------


def flaw_after(place: Path, before: Files, complete: Files) -> str:
    """Every file on disk should be whole, and a final one the old or the complete new one."""
    files = snapshot(place)
    for name in files.keys() - set(hidden_files(files)):
        if wrong := flaw(place / name):
            return wrong
        if files[name].final and files[name] not in (before.get(name), complete.get(name)):
            return f"{name} is neither the old nor the new one"
    gone = [name for name in before if not (place / name).exists()]
    return f"the old {gone[0]} is gone" if gone else ""


def flaw_at_the_end(work: Work, expected: Undisturbed, place: Path, killed: bool = False) -> str:
    """Let the script run to its end: then all should be as after an undisturbed run."""
    ended = work.start(place, killed=killed).end()
    if ended.status and not work.is_finished(ended, place):
        return f"the last start ends with {ended.status}, saying: {ended.output[-500:]!r}"
    return difference(expected.files, snapshot(place))
