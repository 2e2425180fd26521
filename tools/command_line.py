"""What the command lines of the tools have in common."""

import argparse
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

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


def progress(console: Console) -> Progress:
    """A bar that shows how many are done and the time left, on a terminal; nothing elsewhere."""
    columns = [TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
