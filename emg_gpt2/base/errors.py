"""Errors that a user can put right, and the one way from an error to a sentence and an exit status."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from emg_gpt2.base.interrupts import working


class EMGError(ValueError):
    """Something that the user can put right: one sentence that says what was found, where, and what to do."""


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Put the file's name before the message of any EMGError."""
    try:
        yield
    except EMGError as error:
        raise EMGError(f"{path}: {error}") from None


def exit_status(
    name: str,
    work: Callable[[], int | None],
    again: str = "run the same command again",
    memory: str = "close other programs",
) -> int:
    """Return what `work` returns, 0 for None; where it raises, print one sentence and return 1, or 130 after Ctrl-C.

    name: what the sentence begins with; again: what to do after an interrupt or a full disk, unless the error has a
    note (`add_note`) that says it, the last of which counts; memory: what to do where the memory is full.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # a Windows code page lacks − and ≤
    try:
        with working():
            return work() or 0
    except BrokenPipeError:  # `| head` has read enough
        return 1
    except (EMGError, MemoryError, OSError, KeyboardInterrupt) as error:
        again = [again, *getattr(error, "__notes__", [])][-1]
        print(f"{name}{_process()}: {_sentence(error, again, memory)}", file=sys.stderr)
        return 130 if isinstance(error, KeyboardInterrupt) else 1


def _sentence(error: BaseException, again: str, memory: str) -> str:
    if isinstance(error, MemoryError):
        return f"the memory is full; {memory}, then {again}"
    if isinstance(error, OSError):
        return f"{error.filename or 'a file'}: {error.strerror or error}; free or mend the place, then {again}"
    if isinstance(error, KeyboardInterrupt):
        return f"interrupted; {again}"
    return str(error)


def _process() -> str:
    """` (process 1)` where several train together; empty for the first or only one. RANK is set by torchrun."""
    rank = os.environ.get("RANK", "0")
    return "" if rank == "0" else f" (process {rank})"
