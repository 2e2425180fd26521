"""Call a function in a process of its own, with a limit on memory and time.

This is the one way in which the stress programme starts a process. Importing the libraries takes seconds, in which a
kill proves nothing. So one process, multiprocessing's fork server, has imported them (stress/imported.py), and every
call is a fork of it. A call that is made inside such a process forks that process itself, which keeps its mounts.
"""

import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emg_gpt2.base.errors import EMGError

PATIENCE = 120.0  # s for a call, on a busy machine too
MEMORY = 2e9  # bytes that a call may take beyond those of the interpreter and the libraries
AT_ONCE = 2  # calls of `run_all` side by side
LONGEST_SENTENCE = 2000  # characters, of which a path may be many
UNTIDY = ("Traceback", "Exception ignored", "Logging error")
OUT, ERR, ANSWER = "out", "err", "answer.json"  # files in which a process leaves its output and its answer


class CannotForkError(EMGError):
    """The system has no fork, so nothing can be tried that needs one."""


@dataclass(frozen=True)
class Ended:
    """How a call ended.

    status: exit status of the process, or minus the signal that killed it; value: what the function returned, as JSON
    has it; seconds: of the call; megabytes: the most memory that the process held, 0 where it is not known.
    """

    status: int
    out: str
    err: str
    seconds: float
    megabytes: float = 0.0
    value: Any = None

    @property
    def output(self) -> str:
        return self.out + self.err

    @property
    def tidy(self) -> bool:
        return not any(words in self.output for words in UNTIDY)

    @property
    def last_line(self) -> str:
        return (self.err or self.out).rstrip("\n").rpartition("\n")[2]

    @property
    def refused(self) -> bool:
        """In a sentence without control characters; with exit status 1, or 3 where a part could be done."""
        sentence = self.last_line
        return self.status in (1, 3) and self.tidy and 0 < len(sentence) <= LONGEST_SENTENCE and sentence.isprintable()

    @property
    def outcome(self) -> str:
        """For Row.add: "refused", "right", or what went wrong."""
        if self.refused:
            return "refused"
        if self.status or not self.tidy:
            return f"it ended with {self.status}, saying: {self.output[-500:]!r}"
        return self.value if isinstance(self.value, str) else "right"


class Started:
    """A call that runs."""

    def __init__(self, function: Callable, given: tuple, memory: float = MEMORY, patience: float = PATIENCE):
        """Return when the function is about to begin. memory: bytes, 0 for no limit; patience: s."""
        self.folder, self.patience = tempfile.TemporaryDirectory(prefix="stress-"), patience
        self.process = server().Process(target=_work, args=(Path(self.folder.name), memory, function, given))
        self.process.start()
        while not (self._file(OUT).exists() or self.has_ended()):
            self.process.join(0.001)
        self.began = time.monotonic()

    def has_ended(self) -> bool:
        return self.process.exitcode is not None

    def end(self) -> Ended:
        """Wait for it; one that takes longer than its patience is killed."""
        self.process.join(max(0.0, self.began + self.patience - time.monotonic()))
        late = not self.has_ended()
        if late:
            self.process.kill()
            self.process.join()
        seconds, answer = time.monotonic() - self.began, {}
        with suppress(OSError, ValueError):  # there is none after a kill
            answer = json.loads(self._file(ANSWER).read_text())
        out, err = (
            self._file(name).read_text(errors="replace") if self._file(name).exists() else "" for name in (OUT, ERR)
        )
        err += f"\nit was killed after {self.patience:g} s" if late else ""
        err += "" if self._file(OUT).exists() else "it ended before its work began"
        self.folder.cleanup()
        return Ended(self.process.exitcode, out, err, **{"seconds": seconds} | answer)

    def after(self, seconds: float, number: signal.Signals) -> Ended | None:
        """Send it a signal after so many seconds, and wait for its end; None where it has ended before."""
        self.process.join(seconds)
        before = self.has_ended()
        with suppress(ProcessLookupError):  # it ends right now
            if not before:
                os.kill(self.process.pid, number)
        ended = self.end()
        return None if before else ended

    def _file(self, name: str) -> Path:
        return Path(self.folder.name, name)


def run(function: Callable, *given, **limits: float) -> Ended:
    """Call `function(*given)`, both of which must be picklable, and wait for its end; limits: as of Started.

    The function returns an exit status (int), or what was found; an EMGError that it raises is status 1.
    """
    return Started(function, given, **limits).end()


def run_all(calls: Iterable[tuple], **limits: float) -> Iterator[Ended]:
    """`run` of every call (function, *given), some side by side; the ends in the order of the calls."""
    running = []
    for function, *given in calls:
        running.append(Started(function, tuple(given), **limits))
        if len(running) == AT_ONCE:
            yield running.pop(0).end()
    for one in running:
        yield one.end()


def run_batches(calls: list[tuple], size: int, **limits: float) -> Iterator[Ended]:
    """As `run_all`, but `size` calls share a process; where that fails, each of them gets its own."""
    batches = [calls[first : first + size] for first in range(0, len(calls), size)]
    for batch, ended in zip(batches, run_all([(_one_by_one, batch) for batch in batches], **limits), strict=True):
        if ended.status:
            yield from run_all(batch, **limits)
        else:
            yield from (Ended(0, "", "", seconds, ended.megabytes, outcome) for outcome, seconds in ended.value)


def server() -> multiprocessing.context.BaseContext:
    """What processes are forked from. Raises CannotForkError."""
    if multiprocessing.parent_process():
        return multiprocessing.get_context("fork")
    if "forkserver" not in multiprocessing.get_all_start_methods():
        raise CannotForkError("this system cannot fork a process; try it on Linux or macOS")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["stress.imported"])
    return context


# ---- in the process ---------------------------------------------------------------------------------------------


def _work(folder: Path, memory: float, function: Callable, given: tuple) -> None:
    """Call the function, with its output and its answer in the folder."""
    forget_peak()
    limit_memory(memory)
    for number, name in ((2, ERR), (1, OUT)):  # the second one tells the parent that the work begins
        os.dup2(os.open(folder / name, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644), number)
    began, value, status = time.monotonic(), None, 0
    try:
        value = function(*given)
        status = value if isinstance(value, int) else 0
    except EMGError as error:
        if "\n" in str(error):  # not a sentence
            raise
        print(error, file=sys.stderr)
        status = 1
    finally:
        answer = {"value": value, "seconds": time.monotonic() - began, "megabytes": peak_megabytes()}
        (folder / ANSWER).write_text(json.dumps(answer))
    sys.exit(status)


def _one_by_one(calls: list[tuple]) -> list[tuple[str, float]]:
    """Outcome and seconds of each call."""
    found = []
    for function, *given in calls:
        began = time.monotonic()
        found.append((function(*given), time.monotonic() - began))
    return found


# ---- memory, which Linux alone limits and tells -----------------------------------------------------------------

PROC = Path("/proc/self")


def limit_memory(size: float) -> None:
    """From here on a call for more than `size` bytes beyond what is held fails with a MemoryError; 0: no limit."""
    if size and sys.platform == "linux":
        import resource  # not on Windows

        held = int((PROC / "statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (int(held + size), resource.RLIM_INFINITY))


def forget_peak() -> None:
    with suppress(OSError):
        (PROC / "clear_refs").write_text("5")


def peak_megabytes() -> float:
    """The most memory since `forget_peak`; 0 where the system does not say."""
    with suppress(OSError):
        for line in (PROC / "status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024 / 1e6
    return 0.0
