"""HDF5 files are read by a process that nothing else depends on.

HDF5 is a C library, and some damaged files crash it or send it round in circles: that must not end a run over night.
So the process has little memory, and is killed when a file takes too long. Each thread has its own.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType
from typing import NamedTuple, TypeVar

from emg_gpt2.base.errors import EMGError
from emg_gpt2.raw.hdf5 import list_columns, prepare, read_rows
from emg_gpt2.raw.recording import Choose, Chunk, Table, check_length, join_chunks

LEAST_PATIENCE, SLOWEST_DISK = 60, 1e6  # s, and bytes per s, that a file is waited for
CRASHED = "the file is damaged (HDF5's library crashed on it, or found no end); download it again"

Answer = TypeVar("Answer")

_threads = threading.local()  # of each thread: number of a process (after a fork there are two) → its reader
_starting = threading.Lock()


class _Reader(NamedTuple):
    process: BaseProcess
    pipe: Connection  # takes a function and its arguments, gives what it returns or raises


def read_hdf5(path: Path, choose: Choose) -> Table:
    """The columns that `choose` picks; raises EMGError for whatever is wrong with the file."""
    name, end = os.path.abspath(path), time.monotonic() + LEAST_PATIENCE + path.stat().st_size / SLOWEST_DISK
    columns, rows = _ask(end, list_columns, name)
    channels, others = choose(columns)
    check_length(rows, len(channels))
    return join_chunks(_chunks(end, name, rows, channels, others), rows, channels, others)


def _chunks(end: float, name: str, rows: int, channels: list[str], others: list[str]) -> Iterator[Chunk]:
    first = 0
    while first < rows:
        yield (chunk := _ask(end, read_rows, name, first, channels, others))
        first += len(chunk[0])


def _ask(end: float, work: Callable[..., Answer], *values) -> Answer:
    """What `work` returns in this thread's process; raises EMGError where it crashes or takes longer than to `end`."""
    reader = _reader()
    try:
        answer = _answer(reader.pipe, end, (work, *values))
    except BaseException as error:  # also Ctrl-C: the process is dead, or busy with what nobody waits for
        reader.process.kill()
        del vars(_threads)[os.getpid()]
        if isinstance(error, EOFError | OSError):
            raise EMGError(CRASHED) from None
        raise
    if isinstance(answer, Exception):  # about the file; the process goes on
        raise answer
    return answer


def _answer(pipe: Connection, end: float, question: tuple):
    """Raises EOFError or OSError where the process has ended, TimeoutError (an OSError) at `end`."""
    pipe.send(question)
    if not pipe.poll(max(end - time.monotonic(), 0)):
        raise TimeoutError
    return pipe.recv()


def _reader() -> _Reader:
    """This thread's own, which reads one file after the other."""
    readers, number = vars(_threads), os.getpid()
    if number not in readers or not readers[number].process.is_alive():
        readers[number] = _start_reader()
    return readers[number]


def _start_reader() -> _Reader:
    ours, theirs = multiprocessing.Pipe()
    spawn = multiprocessing.get_context("spawn")
    process = spawn.Process(target=_serve, args=(theirs,), daemon=True)  # ended with this process
    with _starting, _plainly():
        process.start()
    theirs.close()
    try:
        ours.recv()
    except (EOFError, OSError):
        raise EMGError("the process that reads HDF5 files cannot start; free memory and try again") from None
    return _Reader(process, ours)


def _serve(pipe: Connection) -> None:
    """Answer questions as long as there are any. What is raised is an answer, too."""
    prepare()
    pipe.send("ready")
    while True:
        try:
            work, *values = pipe.recv()
        except EOFError:
            return
        try:
            answer = work(*values)
        except Exception as error:
            answer = error
        pipe.send(answer)


@contextmanager
def _plainly() -> Iterator[None]:
    """Processes start here as plain ones, whatever this process is: a script, a daemon, a worker of joblib or Dask.

    `multiprocessing` would run the script again as a module, which takes its imports' time and goes wrong in scripts
    without `if __name__ == "__main__"`; hand on joblib's start method; and allow a daemon no children. And Ctrl-C is
    not for them, from the beginning.
    """
    script, method = sys.modules["__main__"], multiprocessing.get_start_method(allow_none=True)
    this, mask = multiprocessing.current_process(), getattr(signal, "pthread_sigmask", lambda *_: ())
    daemon = this.daemon
    before = mask(signal.SIG_BLOCK, [signal.SIGINT])
    sys.modules["__main__"], this.daemon = ModuleType("__main__"), False
    multiprocessing.set_start_method("spawn", force=True)
    try:
        yield
    finally:
        multiprocessing.set_start_method(method, force=True)
        sys.modules["__main__"], this.daemon = script, daemon
        mask(signal.SIG_SETMASK, before)
