"""What the command lines of the tools have in common."""

import argparse
import sys
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from EMG_start import interrupts_first
from ENV import EMGError, explain_flags


class Parser(argparse.ArgumentParser):
    """Raises EMGError for a wrong command line, so that it ends in one sentence like every other error."""

    def __init__(self, **options):
        super().__init__(**options, allow_abbrev=False)

    def error(self, message: str):
        raise EMGError(explain_flags(message, list(self._option_string_actions)))


def between(kind: type, low: float, high: float) -> Callable[[str], float]:
    """Return an argparse type: a number of `kind` from `low` to `high`."""

    def number(text: str) -> float:
        value = kind(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not a number from {low} to {high}")
        return value

    return number


def with_status(
    tool: str,
    work: Callable[[], int | None],
    interrupted: str = "nothing was written, run the same command again",
    full_memory: str = "close other programs",
    full_disk: str = "free or mend the place, then run it again",
    also: tuple[type[Exception], ...] = (),
) -> int:
    """The exit status: what `work` returns, 0 for None; where it raises, one sentence and 1, or 130 after Ctrl-C.

    also: errors of the user's, besides EMGError, that are sentences.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # a Windows code page lacks − and ≤
    try:
        with interrupts_first():
            return work() or 0
    except (EMGError, *also) as error:
        said, status = str(error), 1
    except MemoryError:
        said, status = f"the memory is full; {full_memory}", 1
    except OSError as error:
        said, status = (
            f"{error.filename or 'a file cannot be read or written'}: {error.strerror or error}; {full_disk}",
            1,
        )
    except KeyboardInterrupt:
        said, status = f"interrupted; {interrupted}", 130
    print(f"{tool}: {said}", file=sys.stderr)
    return status


def progress(console: Console) -> Progress:
    """A bar that shows how many are done and the time left, on a terminal; nothing elsewhere."""
    columns = [TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
