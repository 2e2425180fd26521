"""Ctrl-C, SIGTERM and closed pipes: a script ends tidily at any moment, also during its imports, which take seconds.

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
_asked = []  # signals that came during the work


def start_script() -> None:
    """Ctrl-C, and SIGTERM as `timeout`, systemd and clusters send it, end the script with a sentence and status 130.

    A reader that goes away (`| head`) leaves no traceback. Processes that the script starts inherit none of it.
    """
    atexit.register(_leave_closed_pipe)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a script in the background ignores Ctrl-C
        signal.signal(signal.SIGINT, _interrupt)
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _interrupt)


@contextmanager
def working() -> Iterator[None]:
    """While the work goes on, a signal raises KeyboardInterrupt, also where a library made another error of it."""
    global _state
    _state = WORKING
    try:
        yield
    except Exception:
        if _asked:
            raise KeyboardInterrupt from None
        raise
    finally:
        _state = DONE


@contextmanager
def importing() -> Iterator[None]:
    """Imports at the beginning of the work: a signal ends the process, as nothing was begun."""
    global _state
    before, _state = _state, STARTING
    try:
        yield
    finally:
        _state = before


@contextmanager
def deferred_signals() -> Iterator[list[int]]:
    """Yield a list that collects SIGINT and SIGTERM, so that no step is torn apart; the second one acts at once."""
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
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
        _asked.append(number)
        raise KeyboardInterrupt
    if _state == DONE:  # nothing is left but the end of the process; a second signal ends one that hangs
        signal.signal(number, signal.SIG_DFL)
        return
    os.write(2, f"{_script()}: interrupted; nothing was begun, run the same command again\n".encode())
    os._exit(130)  # an exception would reach libraries that are half imported, and some of them swallow it


def _script() -> str:
    """main.py, or the sub-command of `python -m emg_gpt2`."""
    name = Path(sys.argv[0]).name
    return name if name.endswith(".py") and name != "__main__.py" else " ".join(sys.argv[1:2])


def _leave_closed_pipe() -> None:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
