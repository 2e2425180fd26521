"""What comes before a script's own imports, which take seconds, so that Ctrl-C and SIGTERM end in a sentence then too.

`main.py` and `Preprocessing.py` call it when they are run, `tools/__init__.py` does for `python -m tools.NAME`.
"""

import atexit
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

_asked = []  # signals that came while main() was at work


def start_script() -> None:
    """Ctrl-C, and SIGTERM as `timeout`, systemd and clusters send it, end the script tidily with 130, at any moment.

    A reader that goes away (`| head`) leaves no traceback. Processes that the script starts inherit none of it.
    """
    atexit.register(_leave_closed_pipe)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a script in the background ignores Ctrl-C
        signal.signal(signal.SIGINT, _interrupt)
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    script = sys.modules["__main__"]
    if hasattr(script, "main"):  # all is imported
        if _is_in(script.main, frame):  # and says how to go on
            _asked.append(number)
            raise KeyboardInterrupt
        signal.signal(number, signal.SIG_DFL)  # all is done but the process's own end, unless that hangs
        return
    spec = script.__spec__  # of `python -m tools.NAME`
    name = spec.name.removeprefix("tools.").removesuffix(".__main__") if spec else Path(sys.argv[0]).name
    os.write(2, f"{name}: interrupted; nothing was begun, run the same command again\n".encode())
    os._exit(130)  # an exception would reach libraries that are half imported, and some of them swallow it


@contextmanager
def interrupts_first() -> Iterator[None]:
    """Raise KeyboardInterrupt where it came in the midst of a library that made another error of it."""
    try:
        yield
    except Exception:
        if _asked:
            raise KeyboardInterrupt from None
        raise


def _is_in(function: Callable, frame: FrameType | None) -> bool:
    """Whether `frame` belongs to a call of the function."""
    while frame and frame.f_code is not function.__code__:
        frame = frame.f_back
    return frame is not None


def _leave_closed_pipe() -> None:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
