"""What the command lines of the tools have in common."""

import argparse
from collections.abc import Callable

from ENV import EMGError


class Parser(argparse.ArgumentParser):
    """Raises EMGError for a wrong command line, so that it ends in one sentence like every other error."""

    def error(self, message: str):
        raise EMGError(f"{message}; --help lists the flags")


def between(kind: type, low: float, high: float) -> Callable[[str], float]:
    """Return an argparse type: a number of `kind` from `low` to `high`."""

    def number(text: str) -> float:
        value = kind(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not a number from {low} to {high}")
        return value

    return number
