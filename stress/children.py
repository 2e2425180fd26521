"""Functions called in processes of their own, which may crash, hang or run out of memory."""

import multiprocessing
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import NamedTuple

from stress.memory import forget_peak, limit_memory, peak_megabytes

PATIENCE = 90.0  # s for one call, on a busy machine too
MEMORY = 2e9  # bytes that a call may take, beside those of the interpreter and the libraries
PROCESSES = 2


class Job(NamedTuple):
    """A call, `function(*given)`, that returns how it ended (see Row.add); both must be picklable."""

    function: Callable[..., str]
    given: tuple


class End(NamedTuple):
    """How a job ended, for Row.add: the end, its seconds, and the megabytes that its process held at the most."""

    end: str
    seconds: float
    megabytes: float


def try_all(jobs: list[Job]) -> Iterator[End]:
    """Every job's end, as they come: what the function returned, or that it crashed, hung or took too much memory."""
    waiting, ends = queue.SimpleQueue(), queue.SimpleQueue()
    for job in jobs:
        waiting.put(job)
    for _ in range(PROCESSES):
        threading.Thread(target=_work_off, args=(waiting, ends), daemon=True).start()
    for _ in jobs:
        yield ends.get()


def _work_off(waiting: queue.SimpleQueue, ends: queue.SimpleQueue) -> None:
    """One child after the other takes jobs, until none is left."""
    child = None
    with suppress(queue.Empty):
        while True:
            job = waiting.get_nowait()
            child = child or _Child(job.function)
            end = child.call(job)
            ends.put(end)
            child = child if child.alive else None
    if child:
        child.end()


class _Child:
    """A process that has the function's module, and so its libraries, when it begins to count."""

    def __init__(self, function: Callable) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, function), daemon=True)
        self.process.start()
        theirs.close()
        self.pipe.recv()
        self.alive = True

    def call(self, job: Job) -> End:
        self.pipe.send(job.given)
        try:
            if self.pipe.poll(PATIENCE):
                return self.pipe.recv()
            how = f"it hung for more than {PATIENCE:g} s"
        except EOFError:
            self.process.join()
            how = f"the interpreter ended with status {self.process.exitcode}"
        self.end()
        return End(f"{how} in {job.function.__name__}{job.given}", PATIENCE, 0.0)

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.alive = False


def _serve(pipe: Connection, function: Callable[..., str]) -> None:
    """Call the function with what comes through the pipe, until that is closed."""
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115, warnings about damaged files are no news here
    limit_memory(MEMORY)
    pipe.send("ready")
    with suppress(EOFError):
        while True:
            given, began = pipe.recv(), time.monotonic()
            forget_peak()
            end = function(*given)
            pipe.send(End(end, time.monotonic() - began, peak_megabytes()))
