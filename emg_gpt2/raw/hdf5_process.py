"""HDF5 files are read by a process that nothing else depends on.

HDF5 is a C library, and some damaged files crash it or send it round in circles: that must not end a run over night.
So the process (a pool of one) has little memory, and is killed when a file takes too long.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
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
    pool: ProcessPoolExecutor  # of the one process
    process: BaseProcess


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
        return reader.pool.submit(work, *values).result(end - time.monotonic())
    except EMGError:  # about the file; the process goes on
        raise
    except BaseException as error:  # also Ctrl-C: the process is dead, or busy with what nobody waits for
        reader.process.kill()
        del vars(_threads)[os.getpid()]
        if isinstance(error, BrokenProcessPool | TimeoutError):
            raise EMGError(CRASHED) from None
        raise


def _reader() -> _Reader:
    """This thread's own, which reads one file after the other."""
    readers, number = vars(_threads), os.getpid()
    if number not in readers or not readers[number].process.is_alive():
        readers[number] = _start_reader()
    return readers[number]


def _start_reader() -> _Reader:
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=prepare)
    with _starting, _plainly():
        started = pool.submit(os.getpid)
    try:
        number = started.result()
    except BrokenProcessPool:
        raise EMGError("the process that reads HDF5 files cannot start; free memory and try again") from None
    process = next(one for one in multiprocessing.active_children() if one.pid == number)
    Finalize(None, process.kill, exitpriority=1)  # joblib's workers would wait for its end when they end
    return _Reader(pool, process)


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
