"""Raw putEMG recordings → filtered, labelled windows → parquet.

    python Preprocessing.py DOWNLOADS [--data-location OUT.parquet] [--workers 4] [any setting of ENV.py]

Killed or interrupted, the same command goes on where it was. Exit status: 0 all recordings went in, 1 nothing was
written, 3 written but some recordings were skipped, 130 interrupted.
"""

if __name__ == "__main__":  # before the imports, which take seconds
    from emg_gpt2.base.interrupts import start_script

    start_script()
    from emg_gpt2.settings import PreprocessingSettings, check_command_line

    check_command_line("Preprocessing.py", PreprocessingSettings)

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from filelock import Timeout
from joblib import delayed
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from emg_gpt2.base.errors import EMGError, exit_status
from emg_gpt2.base.log import progress, start_log
from emg_gpt2.raw.putemg import find_recordings, parse_name
from emg_gpt2.settings import PreprocessingSettings, Settings, read_settings
from emg_gpt2.windows.cut import Layout, class_names, why_numbers
from emg_gpt2.windows.format import bad_channels
from emg_gpt2.windows.parts import (
    Part,
    Result,
    Workshop,
    all_putemg,
    finished_parts,
    join_parts,
    open_workshop,
    process,
)
from emg_gpt2.windows.workers import open_workers


def main() -> int:
    return exit_status("Preprocessing.py", start, again="run the same command again to go on from here")


def start() -> int:
    """Preprocess the recordings that the command line names, and print the table; returns the exit status."""
    console = Console(highlight=False)
    start_log(console)
    settings = read_settings(PreprocessingSettings)
    results = preprocess(find_recordings(settings.RAW), settings, console)
    print_table(results, settings, console)
    return 3 if any(result.problem for result in results) else 0


def preprocess(paths: list[Path], settings: Settings, console: Console) -> list[Result]:
    """Write the windows of all readable recordings to `settings.DATA_LOCATION`; returns one result per file.

    The output is replaced only when the new one is complete, and is the same however many workers made it.
    Raises EMGError where nothing could be written.
    """
    output = Path(os.path.realpath(settings.DATA_LOCATION))
    if any(path.resolve() == output for path in paths):
        raise EMGError(f"{settings.DATA_LOCATION}: the output would replace a recording; set another DATA_LOCATION")
    with _explained(settings), open_workshop(output, settings) as workshop, _counter(len(paths)) as count:
        results, layout = _make_parts(paths, finished_parts(output, settings), workshop, count)
        results = _without_twins(paths, results)
        parts = [result.part for result in results if result.part]
        if not parts:
            _print_skipped(results, console)
            raise EMGError(f"none of the {len(paths)} files gave a window; nothing was written, see the reasons above")
        joined = workshop.folder / "joined.parquet"
        join_parts(parts, layout, settings, joined)
        os.replace(joined, output)
    return results


def _make_parts(
    paths: list[Path], earlier: dict[str, Part], workshop: Workshop, count: Callable[[Result], Result]
) -> tuple[list[Result], Layout | None]:
    """One result per file, in order; and the layout, which the first good recording sets before the others begin."""
    results, layout = [], None
    if workshop.settings.CLUSTER:  # whose workers stand in other folders
        paths = [path.absolute() for path in paths]
    tasks = iter([(path, earlier.get(path.name)) for path in paths])
    for path, part in tasks:
        results.append(count(process(path, None, part, workshop)))
        if results[-1].part:
            layout = results[-1].part.layout
            break
    places = {workshop.folder, *(path.parent for path in paths)}
    with open_workers(workshop.settings, places) as run:
        results += map(count, run(delayed(process)(path, layout, part, workshop) for path, part in tasks))
    return results, layout


def _without_twins(paths: list[Path], results: list[Result]) -> list[Result]:
    """Of several files of the same recording, keep the first that could be read."""
    kept, seen = [], set()
    for path, result in zip(paths, results, strict=True):
        if result.part and result.name in seen:
            problem = f"{path}: the same recording was read from another file already; leave one out"
            result = Result(result.name, problem=problem)
        seen |= {result.name} if result.part else set()
        kept.append(result)
    return kept


@contextmanager
def _explained(settings: Settings) -> Iterator[None]:
    """Turn what can go wrong with the disk, the memory and the workers into one EMGError."""
    place, again = settings.DATA_LOCATION, "run the same command again, which goes on from here"
    if place.exists() and not place.is_file():
        raise EMGError(f"{place}: the output is a folder or a device; name a file")
    try:
        yield
    except Timeout:
        raise EMGError(f"{place}: another Preprocessing.py is writing the output; wait for it to finish") from None
    except BrokenExecutor:
        raise EMGError(f"a worker was killed, perhaps because the memory is full; lower WORKERS and {again}") from None
    except MemoryError:
        raise EMGError(f"the memory is full; lower WORKERS or SAMPLE_RATE and {again}") from None
    except OSError as error:
        reason = ": ".join(str(part) for part in (error.filename, error.strerror or error) if part)
        raise EMGError(f"{place}: the output cannot be written ({reason}); choose another place") from None


# ---- what the user sees ---------------------------------------------------------------------------------------


@contextmanager
def _counter(total: int) -> Iterator[Callable[[Result], Result]]:
    """A function that shows each result that it is given in a progress bar, and returns it."""
    with progress() as bar:
        task = bar.add_task("recordings", total=total)

        def count(result: Result) -> Result:
            bar.update(task, advance=1, description=result.name)
            return result

        yield count


def print_table(results: list[Result], settings: PreprocessingSettings, console: Console) -> None:
    """Duration, windows and bad channels by person and day, or of every recording with VERBOSE.

    Below it the windows per gesture, a warning where gestures have no names, and what was skipped and why.
    """
    parts = [result.part for result in results if result.part]
    total = sum((part.counts for part in parts), Counter())
    say = partial(console.print, soft_wrap=True, markup=False)
    if settings.VERBOSE:
        Console(file=console.file, width=1000).print(recordings_table(parts, total))  # a narrow terminal breaks lines
        for part in parts:
            say(*(f"{part.stem}: {line}\n" for line in part.finding_lines), sep="", end="")
    else:
        console.print(days_table(parts))
    names = class_names(sorted(total), all_putemg(parts), settings)
    warning = why_numbers(sorted(total), all_putemg(parts), settings)
    named = [f"{label}: {total[label]}" if warning else f"{label} {names[label]}: {total[label]}" for label in names]
    say("windows per gesture: " + ", ".join(named))
    if not settings.VERBOSE and (count := sum(bool(part.bad_channels) for part in parts)):
        more = "--verbose says what is wrong and when, python -m emg_gpt2 inspect draws it"
        say(f"bad channels in {count} of {len(parts)} recordings (how many stands in brackets): {more}")
    if warning:
        say(warning, style="bold red")
    skipped = _print_skipped(results, console)
    reused = sum(result.reused for result in results)
    before = f", {reused} of them finished before" if reused else ""
    say(f"{settings.DATA_LOCATION}: {total.total()} windows of {len(parts)} recordings{before}, {skipped} skipped")


def days_table(parts: list[Part]) -> Table:
    """One row per person and day."""
    days = {}
    for part in parts:
        name = parse_name(part.stem)
        days.setdefault((name["subject"], name["session"]), []).append(part)
    table = _table("person", "day", "recordings", "seconds", "windows", "per gesture")
    for (subject, session), some in days.items():
        bad = bad_channels([part.source for part in some])
        table.add_row(subject, session, str(len(some)), *_amounts(some), bad)
    table.add_row("all", "", str(len(parts)), *_amounts(parts), style="bold")
    return table


def recordings_table(parts: list[Part], total: Counter) -> Table:
    """One row per recording, with its windows of every label."""
    labels = sorted(total)
    table = _table("recording", "seconds", "windows", *map(str, labels), texts=1)
    for part in parts:
        wrong = ", ".join(f"{channel} {kinds}" for channel, kinds in part.bad_channels.items())
        table.add_row(escape(part.stem), *_amounts([part])[:2], *(str(part.counts[label]) for label in labels), wrong)
    table.add_row("all", *_amounts(parts)[:2], *(str(total[label]) for label in labels), style="bold")
    return table


def _table(*columns: str, texts: int = 2) -> Table:
    """A table without lines whose columns after the first `texts` are numbers; the last one names channels."""
    table = Table(*columns, "bad channels", box=None)
    for column in table.columns[texts:-1]:
        column.justify = "right"
    for column in table.columns[:-1]:
        column.no_wrap = True
    return table


def _amounts(parts: list[Part]) -> tuple[str, str, str]:
    """Seconds, windows, and the windows of the rarest and the most frequent gesture."""
    counts = sum((part.counts for part in parts), Counter())
    fewest, most = min(counts.values()), max(counts.values())
    each = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    return f"{sum(part.seconds for part in parts):.1f}", str(counts.total()), each


def _print_skipped(results: list[Result], console: Console) -> int:
    """Say why each recording was skipped; returns how many."""
    skipped = [result for result in results if result.problem]
    for result in skipped:
        console.print(f"skipped: {result.problem}", soft_wrap=True, markup=False)
    return len(skipped)


if __name__ == "__main__":
    sys.exit(main())
