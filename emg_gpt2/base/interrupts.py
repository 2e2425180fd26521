"""Ctrl-C, SIGTERM and closed pipes: a script ends with one sentence at any moment, also during its slow imports.

Scripts call `start_script` before their other imports.
"""

import atexit
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

STARTING, WORKING, DONE = range(3)

_state = STARTING
_signals = []  # that came during the work


def start_script() -> None:
    """Let Ctrl-C and SIGTERM end the script with a sentence and status 130.

    `timeout`, systemd and clusters send SIGTERM. A reader that goes away (`| head`) leaves no traceback.
    """
    atexit.register(_leave_closed_pipe)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored: a shell started it with &
        signal.signal(signal.SIGINT, _interrupt)
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _interrupt)


@contextmanager
def working() -> Iterator[None]:
    """A signal during the work raises KeyboardInterrupt, also where a library turns that into another error."""
    global _state
    _state = WORKING
    try:
        yield
    except Exception:
        if _signals:
            raise KeyboardInterrupt from None
        raise
    finally:
        _state = DONE


@contextmanager
def importing() -> Iterator[None]:
    """A signal during these imports, at the beginning of the work, ends the process: nothing was begun.

    They may take ten seconds, so a terminal shows a word, which the next line overwrites.
    """
    global _state
    if sys.stderr.isatty():
        print("loading …", end="\r", file=sys.stderr, flush=True)
    before, _state = _state, STARTING
    try:
        yield
    finally:
        _state = before


@contextmanager
def deferred_signals() -> Iterator[list[int]]:
    """Yield a list that collects SIGINT and SIGTERM, so that a step can end first; the second signal acts at once."""
    if threading.current_thread() is not threading.main_thread():  # the only one that receives signals
        yield []
        return
    asked = []

    def keep(number: int, _) -> None:
        asked.append(number)
        signal.signal(number, before[number])

    before = {number: signal.signal(number, keep) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, _: FrameType | None) -> None:
    if _state == WORKING:
        _signals.append(number)
        raise KeyboardInterrupt
    if _state == DONE:  # the process is about to end; a second signal ends one that hangs
        signal.signal(number, signal.SIG_DFL)
        return
    os.write(2, f"{_script()}: interrupted; nothing was begun, run the same command again\n".encode())
    os._exit(130)  # some libraries swallow an exception while they are imported


def _script() -> str:
    """main.py, or the command of `python -m emg_gpt2`."""
    name = Path(sys.argv[0]).name
    return name if name.endswith(".py") and name != "__main__.py" else " ".join(sys.argv[1:2])


def _leave_closed_pipe() -> None:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
