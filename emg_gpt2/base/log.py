"""The log of a command, its progress bar, and the time that is left."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Column

PACKAGE = "emg_gpt2"  # the name above all loggers of the project
Item = TypeVar("Item")

_console: Console | None = None  # of the log, for the progress bars


def start_log(console: Console, file: Path | None = None) -> None:
    """Send the project's messages, and the warnings of libraries, to `console`, and to `file` with the time.

    Progress bars go to the same console.
    """
    global _console
    _console = console
    handlers = [_ConsoleHandler(console), *([_file_handler(file)] if file else [])]
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=handlers, force=True)
    logging.raiseExceptions = False  # a full disk is reported once, by the command, not for each line of the log
    logging.getLogger(PACKAGE).setLevel(logging.INFO)


@contextmanager
def also_logged_to(file: Path) -> Iterator[None]:
    """Send the log to `file` too, with the time."""
    root, handler = logging.getLogger(), _file_handler(file)
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()


def _file_handler(file: Path) -> logging.Handler:
    handler = logging.FileHandler(file, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    return handler


class _ConsoleHandler(logging.Handler):
    """Prints above a progress bar, where there is one."""

    def __init__(self, console: Console):
        super().__init__()
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        self.console.print(self.format(record), soft_wrap=True, markup=False)


def progress(*fields: str, in_bytes: bool = False) -> Progress:
    """A progress bar: description, what is done, `fields`, the time left; only where the log goes to a terminal.

    `fields` are columns of text in rich's notation, such as `loss {task.fields[loss]:.3f}`; `in_bytes`: what is done
    are bytes, shown with their rate. A bar inside another one is shown below it.
    """
    whole = {"table_column": Column(no_wrap=True)}  # in a narrow terminal the description gives way
    description = TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, ratio=1))
    kinds = [DownloadColumn, TransferSpeedColumn] if in_bytes else [MofNCompleteColumn]
    numbers = [kind(**whole) for kind in kinds] + [TextColumn(field, **whole) for field in fields]
    columns = [description, BarColumn(20), *numbers, TimeRemainingColumn(**whole)]
    shown = _console is not None and _console.is_terminal
    return _Progress(*columns, console=_console, transient=True, disable=not shown, expand=True)


class _Progress(Progress):
    """Estimates the time left from all steps since the beginning: a step may take minutes."""

    def __init__(self, *columns, **options):
        super().__init__(*columns, **options, speed_estimate_period=float("inf"))

    def add_task(self, description: str, **options) -> TaskID:
        task = super().add_task(description, **options)
        self.advance(task, 0)  # the moment when the first step begins
        return task


def track(items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """The items, with a bar; `total`: how many there are, where they have no length."""
    with progress() as bar:
        shown = bar.add_task(description, total=len(items) if total is None else total)
        for item in items:
            yield item
            bar.advance(shown)


def time_to_go(seconds: float, done: int, left: int) -> str:
    """`, about 0:02:30 to go`, from the seconds that `done` of the steps took; empty where none is done."""
    return f", about {timedelta(seconds=round(seconds / done * left))} to go" if done else ""
