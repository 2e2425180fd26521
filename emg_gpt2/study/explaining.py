"""What a trained model looks at: every part of the windows replaced, the figures, and the pictures."""

import json
import logging
import math
import time
from argparse import Namespace
from pathlib import Path

import numpy as np

from EMG_DATA_LOADER import Split, cut_rows
from emg_gpt2.base.errors import EMGError
from emg_gpt2.base.files import make_folder, replace_file, write_json
from emg_gpt2.base.log import progress, track
from emg_gpt2.base.text import in_short
from emg_gpt2.base.versions import versions
from emg_gpt2.model.build import load_model
from emg_gpt2.model.config import start_words
from emg_gpt2.model.model import EMGForSequenceClassification
from emg_gpt2.results.figures import picture, shortened, use_format
from emg_gpt2.results.reading import TRANSDUCTIVE
from emg_gpt2.settings import Settings
from emg_gpt2.study.finished_run import load_split, read_metrics
from emg_gpt2.study.forearm import Filters, draw_filters, draw_importance, read_filters
from emg_gpt2.study.occlusion import (
    BATCH,
    DRAWS,
    QUICK_DRAWS,
    QUICK_WINDOWS,
    WINDOWS,
    Chosen,
    Effects,
    Importance,
    Part,
    choose_windows,
    filter_use,
    importance_of,
    measure_effects,
    parts_of,
)
from emg_gpt2.study.people import counted
from emg_gpt2.training.device import keep_freed_memory
from emg_gpt2.training.task import Task, fitted_split, make_task
from emg_gpt2.windows.reading import WindowSet

logger = logging.getLogger(__name__)

ALL = "all gestures"
NO_FILTERS = "the model has no learned filters (TOKENS without power), so there is no picture of them"
QUICK = (
    f"quick: about {QUICK_WINDOWS} windows with {QUICK_DRAWS} donor of each kind, not {WINDOWS} with {DRAWS}, so the "
    "intervals are wider"
)
COUNTED = {"people": "person", "days": "day", "repetitions": "repetition"}
METHOD = (
    "importance: mean over the gesture's windows of the true gesture's probability with the part from a window of the "
    "same gesture, less that with the part from a window of any gesture; another repetition of the same person and day "
    "(electrodes and rings: their level, bands and moments: all channels)"
)


def explain_run(args: Namespace) -> None:
    """Run → windows and donors → every part replaced → explain.json and the pictures. Raises EMGError.

    args: run, part, quick, data_location and out, as the command line has them.
    """
    began, settings = time.perf_counter(), settings_of(args.run, args.data_location)
    read_metrics(args.run)
    keep_freed_memory()
    model = load_model(args.run / "best_model")
    windows, split = load_split(settings, args.run)
    make_folder(args.out)
    use_format(args.settings.FIGURE_FORMAT)
    task = make_task(windows, fitted_split(split, settings), settings)
    chosen, parts = chosen_windows(args, windows, split, settings), parts_of(model.config)
    logger.info(f"{len(chosen.rows)} windows of the {args.part} part, {len(parts)} parts of each to replace")
    if args.quick:
        logger.info(QUICK)
    effects = effects_of(model, task, chosen, parts)
    bank = read_filters(model, filter_use(model, task, chosen, effects)) if "power" in model.tokenisers else None
    importance, over = importance_of(windows, chosen, effects)
    found = facts_of_explanation(model, windows, split, chosen, effects, args) | {"interval_over": over}
    found |= {"parts": figures_of_parts(parts, importance, windows), "filters": figures_of_filters(bank)}
    found["seconds"] = time.perf_counter() - began
    write_pictures(found, importance, parts, bank, model, args.out)
    replace_file(args.out / "explain.json", lambda path: write_json(path, found))
    for line in largest_parts(importance, parts):
        logger.info(line)
    drawn, filters = (picture(Path(name)).name for name in ("explain", "filters"))
    logger.info(f"{args.out}: explain.json, {drawn}" + (f" and {filters}" if bank else f"; {NO_FILTERS}"))


def settings_of(run: Path, data_location: Path | None) -> Settings:
    """The settings that the run was started with, its windows at another place where one is given. Raises EMGError."""
    try:
        saved = json.loads((run / "env.json").read_text(encoding="utf-8"))
        return Settings(**saved | ({"DATA_LOCATION": data_location} if data_location else {}))
    except (OSError, ValueError, TypeError) as error:
        why = in_short(error)
        raise EMGError(f"{run}: there is no run that can be read ({why}); name a folder under runs") from None


def chosen_windows(args: Namespace, windows: WindowSet, split: Split, settings: Settings) -> Chosen:
    """Windows of the part that is asked for, and their donors. Raises EMGError where no window has a donor."""
    if args.part == "validation" and settings.REFIT:
        logger.warning("the model was trained on the validation part too (REFIT): it knows these windows")
    try:
        return choose_windows(windows, getattr(split, args.part), settings.SEED, args.quick)
    except EMGError as error:
        raise EMGError(f"--part {args.part}: {error}; choose another --part") from None


def effects_of(model: EMGForSequenceClassification, task: Task, chosen: Chosen, parts: list[Part]) -> Effects:
    """Replace every part of every chosen window, with a progress bar."""
    with progress() as bar:
        shown = bar.add_task("replacing", total=len(parts) * len(cut_rows(chosen.rows, BATCH)))
        return measure_effects(model, task, chosen, parts, lambda: bar.advance(shown))


# ---- figures ----------------------------------------------------------------------------------------------------


def facts_of_explanation(
    model: EMGForSequenceClassification,
    windows: WindowSet,
    split: Split,
    chosen: Chosen,
    effects: Effects,
    args: Namespace,
) -> dict:
    """What was explained with what, in words and numbers."""
    table, targets = windows.table.iloc[chosen.rows], windows.targets[chosen.rows]
    hit, counts = effects.untouched[1], np.bincount(targets, minlength=len(windows.classes)).tolist()
    return {
        "run": str(args.run),
        "part": args.part,
        "split_description": split.description,
        "transductive": model.config.scale == "session",
        "weights": model.config.weights,
        "data_note": windows.metadata["note"],
        "method": METHOD,
        "draws": len(chosen.any),
        "quick": args.quick,
        "windows": dict(zip(windows.class_names, counts, strict=True)),
        "people": int(table["subject"].nunique()),
        "days": len(table[["subject", "session"]].drop_duplicates()),
        "repetitions": len(table[["recording", "TRAJ_GT", "repetition"]].drop_duplicates()),
        "accuracy": float(hit.mean()),
        "balanced_accuracy": float(np.mean([hit[targets == index].mean() for index in np.unique(targets)])),
        "versions": versions(),
    }


def figures_of_parts(parts: list[Part], importance: Importance, windows: WindowSet) -> list[dict]:
    """One dict per part: `kind`, `name`, importance with its interval per gesture and over all, drops, replacement."""
    gestures = windows.class_names
    return [
        {
            "kind": part.kind,
            "name": part.name,
            "importance": {
                name: {"value": number(value), "low": number(low), "high": number(high)}
                for name, value, low, high in zip(
                    [*gestures, ALL], *(one[:, column] for one in importance[:3]), strict=True
                )
            },
            "recall_drop": dict(zip(gestures, map(number, importance.recall_drop[:-1, column]), strict=True)),
            "balanced_accuracy_drop": number(importance.recall_drop[-1, column]),
            "replacement": number(importance.replacement[column]),
        }
        for column, part in enumerate(parts)
    ]


def figures_of_filters(bank: Filters | None) -> list[dict]:
    """One dict per learned filter: the peak of its response, now and before training, and its use."""
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


# ---- what is shown ----------------------------------------------------------------------------------------------


def write_pictures(
    found: dict,
    importance: Importance,
    parts: list[Part],
    bank: Filters | None,
    model: EMGForSequenceClassification,
    out: Path,
) -> None:
    """The picture `explain`, with the mean over the gestures on top, and `filters` where there are filters."""
    gestures, captions = [ALL, *model.config.class_names], captions_of(found)
    rows = np.roll(np.arange(len(gestures)), 1)
    drawn = Importance(*(one[rows] for one in importance[:4]), importance.replacement)
    ring = model.config.ring
    draws = [lambda: draw_importance(drawn, parts, gestures, ring, captions, out / "explain.png")]
    if bank:
        draws.append(lambda: draw_filters(bank, captions, out / "filters.png"))
    for draw in track(draws, "pictures"):
        draw()


def captions_of(found: dict) -> list[str]:
    """What a reader of the pictures should know: of the data, and of the windows."""
    people, days, repetitions = (counted(found[key], name) for key, name in COUNTED.items())
    return [
        f"Data: {found['data_note'] or 'without a note on their origin.'}",
        *([f"{QUICK[0].upper()}{QUICK[1:]}."] if found["quick"] else []),
        f"{sum(found['windows'].values())} windows, {people}, {days}, {repetitions}; {found['part']} part; balanced "
        f"accuracy {found['balanced_accuracy']:.3f}; {start_words(found['weights'])} at the start. "
        f"{shortened(found['split_description'])}.",
        *([f"Transductive: {TRANSDUCTIVE}."] if found["transductive"] else []),
    ]


def largest_parts(importance: Importance, parts: list[Part]) -> list[str]:
    """One line for the most important part of each kind, over all gestures."""
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
