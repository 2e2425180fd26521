"""What comes before a script's own imports, which take seconds, so that Ctrl-C ends in one sentence then too.

`main.py` and `Preprocessing.py` call it when they are run, `tools/__init__.py` does for `python -m tools.NAME`.
"""

import atexit
import os
import signal
import sys
from pathlib import Path
from types import FrameType


def start_script() -> None:
    """Ctrl-C during the imports exits with 130, and a reader that goes away (`| head`) leaves no traceback."""
    atexit.register(_leave_closed_pipe)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a script in the background ignores Ctrl-C
        signal.signal(signal.SIGINT, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    script = sys.modules["__main__"]
    if hasattr(script, "main"):  # all is imported, and main() says how to go on
        raise KeyboardInterrupt
    name = (
        script.__spec__.name.removeprefix("tools.").removesuffix(".__main__")
        if script.__spec__
        else Path(sys.argv[0]).name
    )
    os.write(2, f"{name}: interrupted; nothing was begun, run the same command again\n".encode())
    os._exit(130)  # an exception would reach libraries that are half imported, and some of them swallow it


def _leave_closed_pipe() -> None:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
