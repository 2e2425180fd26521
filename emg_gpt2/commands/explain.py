"""What a trained model looks at: electrodes, frequency bands and moments, for each gesture; and its learned filters.

    python -m tools.explain RUN [--part test] [--out DIR]

RUN is a finished run of main.py: its model, settings, windows and split. A part of a window is replaced by that of
another window, of any gesture or of the same; the difference that makes to the true gesture's probability is the
importance of the part. tools/occlusion.py has the definition, its source and what it is worth.

The folder (RUN/explain, or --out) gets explain.json, with every figure and its 95 % interval, explain.png and, where
the model has learned filters, filters.png. Nothing is chosen here, so the test part may be looked at; if you change
the model for what you see, the test part has been used up.
Exit status: 0 done, 1 something that the user can put right, 130 interrupted.
"""

import argparse
import json
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from transformers.utils import logging as transformers_logging

from EMG_DATA_LOADER import Split, cut_rows, split_windows
from emg_gpt2.base.command_line import Parser, with_status
from emg_gpt2.base.errors import EMGError
from emg_gpt2.base.files import make_folder, replace_file, write_json
from emg_gpt2.model.build import load_model
from emg_gpt2.model.model import EMGForSequenceClassification
from emg_gpt2.results.run import is_split_of
from emg_gpt2.settings import Settings
from emg_gpt2.study.forearm import Filters, draw_filters, draw_importance, read_filters
from emg_gpt2.study.occlusion import (
    BATCH,
    DRAWS,
    Chosen,
    Effects,
    Importance,
    Part,
    choose,
    filter_use,
    measure_effects,
    parts_of,
    summarise,
)
from emg_gpt2.study.people import counted
from emg_gpt2.training.device import keep_freed_memory
from emg_gpt2.windows.reading import WindowSet, load_windows
from EMG_utils import session_references, versions
from main import ConsoleHandler

GROUP = "study"

logger = logging.getLogger("explain")

ALL = "all gestures"
NO_FILTERS = "the model has no learned filters (TOKENS without power), so there is no filters.png"
COUNTED = {"people": "person", "days": "day", "repetitions": "repetition"}
METHOD = (
    "importance: mean over the gesture's windows of the true gesture's probability with the part from a window of the "
    "same gesture, less that with the part from a window of any gesture; another repetition of the same person and day "
    "(electrodes and rings: their level, bands and moments: all channels)"
)


def main(argv: list[str] | None = None) -> int:
    """Explain the run that the command line names; returns the exit status."""
    console = start_log()
    keep_freed_memory()
    return with_status(
        "explain",
        lambda: explain_run(parse(argv), console),
        "run the same command again",
        full_memory="lower MEMORY_GB in the run's env.json",
    )


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line; raises EMGError for what is wrong with it."""
    about = "Show which electrodes, frequency bands and moments a trained model looks at, for each gesture."
    parser = Parser(prog="python -m tools.explain", description=about, epilog="Defaults are in brackets.")
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="a finished run of main.py, such as runs/NAME")
    part = "windows to explain: those of the test or of the validation part (%(default)s)"
    add("--part", choices=("test", "validation"), default="test", help=part)
    add("--out", type=Path, metavar="DIR", help="folder of the results (RUN/explain)")
    add("--data-location", type=Path, metavar="FILE", help="windows file, where it is not where the run found it")
    args = parser.parse_args(argv)
    args.out = args.out or args.run / "explain"
    return args


def start_log() -> Console:
    """What happens, on the error output."""
    console = Console(stderr=True, highlight=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[ConsoleHandler(console)], force=True)
    logger.setLevel(logging.INFO)
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    return console


def explain_run(args: argparse.Namespace, console: Console) -> None:
    """Run → windows and donors → every part replaced → json and pictures. Raises EMGError."""
    began, settings = time.perf_counter(), settings_of_run(args)
    model, windows = load_model(args.run / "best_model"), load_windows(settings)
    split = split_of_run(args, windows, settings)
    make_folder(args.out)
    references = session_references(windows, split.with_validation() if settings.REFIT else split, settings)
    chosen, parts = choose_windows(args, windows, split, settings), parts_of(model.config)
    logger.info(f"{len(chosen.rows)} windows of the {args.part} part, {len(parts)} parts of each to replace")
    with _progress(console, total=len(parts) * len(cut_rows(chosen.rows, BATCH))) as advance:
        effects = measure_effects(model, windows, references, chosen, parts, advance)
    bank = read_filters(model, filter_use(model, windows, references, chosen, effects)) if learned(model) else None
    importance, over = summarise(windows, chosen, effects)
    found = describe(model, windows, split, chosen, effects, args) | {"interval_over": over}
    found |= {"parts": figures(parts, importance, windows), "filters": filter_figures(bank)}
    found["seconds"] = time.perf_counter() - began
    draw(found, importance, parts, bank, model, args)
    replace_file(args.out / "explain.json", lambda path: write_json(path, found))
    report(importance, parts, bank, args)


def learned(model: EMGForSequenceClassification) -> bool:
    """Whether the model has learned filters."""
    return "power" in model.tokenisers


def settings_of_run(args: argparse.Namespace) -> Settings:
    """Those that the run was started with; raises EMGError where there is no finished run."""
    try:
        saved = json.loads((args.run / "env.json").read_text(encoding="utf-8"))
        settings = Settings(**saved | ({"DATA_LOCATION": args.data_location} if args.data_location else {}))
    except (OSError, ValueError):
        raise EMGError(f"{args.run}: there is no run; name a folder under runs") from None
    if not (args.run / "metrics.json").is_file():
        raise EMGError(f"{args.run}: the run is not finished; finish it with main.py --resume {args.run}")
    return settings


def split_of_run(args: argparse.Namespace, windows: WindowSet, settings: Settings) -> Split:
    """Raises EMGError where the windows, or their split, are not those of the run."""
    split = split_windows(windows, settings)
    if not (args.run / "split.csv").is_file() or not is_split_of(args.run, windows, split):
        raise EMGError(
            f"{args.run / 'split.csv'}: the run was made on other windows or another split than "
            f"{settings.DATA_LOCATION} gives now; name its windows with --data-location or run main.py anew"
        )
    return split


def choose_windows(args: argparse.Namespace, windows: WindowSet, split: Split, settings: Settings) -> Chosen:
    if args.part == "validation" and settings.REFIT:
        logger.warning("the model was trained on the validation part too (REFIT): it knows these windows")
    try:
        return choose(windows, getattr(split, args.part), settings.SEED)
    except EMGError as error:
        raise EMGError(f"--part {args.part}: {error}; choose another --part") from None


@contextmanager
def _progress(console: Console, total: int) -> Iterator[Callable[[], None]]:
    """Yields what is to be called after each of `total` steps; drawn in a terminal alone."""
    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:.0f} %"),
        TimeRemainingColumn(),
    ]
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("replacing", total=total)
        yield lambda: progress.advance(task)


# ---- results --------------------------------------------------------------------------------------------------


def describe(
    model: EMGForSequenceClassification,
    windows: WindowSet,
    split: Split,
    chosen: Chosen,
    effects: Effects,
    args: argparse.Namespace,
) -> dict:
    """What was explained with what, in words and numbers."""
    table, targets = windows.table.iloc[chosen.rows], windows.targets[chosen.rows]
    hit = effects.untouched[1]
    return {
        "run": str(args.run),
        "part": args.part,
        "split_description": split.description,
        "weights": model.config.weights,
        "data_note": windows.metadata["note"],
        "method": METHOD,
        "draws": DRAWS,
        "windows": dict(
            zip(windows.class_names, np.bincount(targets, minlength=len(windows.classes)).tolist(), strict=True)
        ),
        "people": int(table["subject"].nunique()),
        "days": len(table[["subject", "session"]].drop_duplicates()),
        "repetitions": len(table[["recording", "TRAJ_GT", "repetition"]].drop_duplicates()),
        "accuracy": float(hit.mean()),
        "balanced_accuracy": float(np.mean([hit[targets == index].mean() for index in np.unique(targets)])),
        "versions": versions(),
    }


def figures(parts: list[Part], importance: Importance, windows: WindowSet) -> list[dict]:
    """One dict per part: `kind`, `name`, importance with its interval per gesture and over all, drops, replacement."""
    gestures = windows.class_names
    names = [*gestures, ALL]
    return [
        {
            "kind": part.kind,
            "name": part.name,
            "importance": {
                name: {"value": number(value), "low": number(low), "high": number(high)}
                for name, value, low, high in zip(names, *(one[:, column] for one in importance[:3]), strict=True)
            },
            "recall_drop": dict(
                zip(windows.class_names, map(number, importance.recall_drop[:-1, column]), strict=True)
            ),
            "balanced_accuracy_drop": number(importance.recall_drop[-1, column]),
            "replacement": number(importance.replacement[column]),
        }
        for column, part in enumerate(parts)
    ]


def filter_figures(bank: Filters | None) -> list[dict]:
    """One dict per learned filter: where its response peaks, now and at the start, and its use."""
    if bank is None:
        return []
    peaks, starts = (bank.frequencies[one.argmax(1)] for one in (bank.learned, bank.start))
    return [
        {"peak_hz": peak, "start_peak_hz": start, "use": use}
        for peak, start, use in zip(*(one.tolist() for one in (peaks, starts, bank.use)), strict=True)
    ]


def number(value: float) -> float | None:
    """None for NaN, which is not JSON."""
    return None if math.isnan(value) else float(value)


def draw(
    found: dict,
    importance: Importance,
    parts: list[Part],
    bank: Filters | None,
    model: EMGForSequenceClassification,
    args: argparse.Namespace,
) -> None:
    """The pictures, each one whole; the mean over the gestures stands on top."""
    gestures, notes = [ALL, *model.config.class_names], captions(found)
    rows = np.roll(np.arange(len(gestures)), 1)
    drawn = Importance(*(one[rows] for one in importance[:4]), importance.replacement)
    replace_file(
        args.out / "explain.png", lambda path: draw_importance(drawn, parts, gestures, model.config.ring, notes, path)
    )
    if bank:
        replace_file(args.out / "filters.png", lambda path: draw_filters(bank, notes, path))


def report(importance: Importance, parts: list[Part], bank: Filters | None, args: argparse.Namespace) -> None:
    """What stands out, and where it all lies."""
    for line in outstanding(importance, parts):
        logger.info(line)
    logger.info(f"{args.out}: explain.json, explain.png" + (" and filters.png" if bank else f"; {NO_FILTERS}"))


def outstanding(importance: Importance, parts: list[Part]) -> list[str]:
    """The most important part of each kind, over all gestures."""
    lines, value = [], importance.value[-1]
    for kind in dict.fromkeys(part.kind for part in parts):
        places = [place for place, part in enumerate(parts) if part.kind == kind]
        best = max(places, key=lambda place: value[place])
        ends = f"{100 * importance.low[-1, best]:.1f} to {100 * importance.high[-1, best]:.1f}"
        lines.append(
            f"{kind} of most importance over all gestures: {parts[best].name}, {100 * value[best]:.1f} points of "
            f"probability ({ends}); balanced accuracy {100 * importance.recall_drop[-1, best]:.1f} points lower"
        )
    return lines


def captions(found: dict) -> list[str]:
    """What a reader of the pictures should know: of the data, and of the windows."""
    people, days, repetitions = (counted(found[key], name) for key, name in COUNTED.items())
    return [
        f"Data: {found['data_note'] or 'without a note on their origin.'}",
        f"{sum(found['windows'].values())} windows, {people}, {days}, {repetitions}; {found['part']} part "
        f"({found['split_description']}); balanced accuracy {found['balanced_accuracy']:.3f}; "
        f"{found['weights']} weights at the start.",
    ]


if __name__ == "__main__":
    sys.exit(main())
