"""Write the report of a run anew, or one page that compares several runs side by side.

    python -m tools.report runs/2026-01-01_12-00-00                      # its report.html
    python -m tools.report runs/FIRST runs/SECOND [--out FILE]           # runs/comparison.html

Figures are marked as best only where the runs were tested on the same windows and trained from weights of the same
kind; where they were not, the page says what differs.
Exit status: 0 done, 1 something that the user can put right, 130 interrupted.
"""

import argparse
import sys
from pathlib import Path

import pandas as pd
from jinja2 import TemplateError
from plotly.graph_objects import Figure

from emg_gpt2.base.command_line import Parser, with_status
from emg_gpt2.base.errors import EMGError
from emg_gpt2.base.files import make_folder
from emg_gpt2.base.text import in_short
from emg_gpt2.results.plots import confusion_matrix, overlaid_curves
from emg_gpt2.results.report import (
    FinishedRun,
    calibration,
    model_size,
    read_run,
    shown,
    used_settings,
    write_page,
    write_report,
)

GROUP = "study"

IDENTITY = ["subject", "session", "recording", "TRAJ_GT", "start"]
DAMAGE = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)
HIGHER, LOWER = max, min  # which of the runs' figures is the best


def main(argv: list[str] | None = None) -> int:
    """Write the page that the command line names; returns the exit status."""
    return with_status("report", lambda: report(parse(argv)), full_disk="name another --out")


def report(args: argparse.Namespace) -> None:
    """A run's report, or the comparison of several; prints where it is. Raises EMGError."""
    try:
        print(write_report(args.runs[0], out=args.out) if len(args.runs) == 1 else write_comparison(args))
    except EMGError:
        raise
    except (*DAMAGE, TemplateError) as error:  # files of a run may be a stranger's, and hold anything
        folders = ", ".join(map(str, args.runs))
        raise EMGError(
            f"{folders}: files are damaged, or not of one run ({in_short(error)}); run main.py anew"
        ) from None


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line; raises EMGError for what is wrong with it."""
    about = "Write the report of a run anew, or one page that compares several runs side by side."
    parser = Parser(prog="python -m tools.report", description=about)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of finished runs")
    where = "file of the page (report.html in the run's folder; runs/comparison.html for several)"
    parser.add_argument("--out", type=Path, metavar="FILE", help=where)
    return parser.parse_args(argv)


# ---- several runs ---------------------------------------------------------------------------------------------


def write_comparison(args: argparse.Namespace) -> Path:
    """One page for all runs; returns where it is. Raises EMGError where one of them is no finished run."""
    out = args.out or Path("runs/comparison.html")
    make_folder(out.parent)
    runs = dict(zip(names_of(args.runs), map(read_run, args.runs), strict=True))
    write_page(out, "comparison.html", contents(runs), plots(runs))
    return out


def names_of(folders: list[Path]) -> list[str]:
    """The folders' own names where they tell them apart, else their paths. Raises EMGError for a run named twice."""
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise EMGError("a run is named twice; name every run once")
    short = [folder.resolve().name for folder in folders]
    return short if len(set(short)) == len(short) else list(map(str, folders))


def contents(runs: dict[str, FinishedRun]) -> dict:
    """What the template of a comparison is filled with."""
    differences = why_not_comparable(runs)
    people = {name: run.metrics["per_subject"] for name, run in runs.items()}
    gestures = {name: run.metrics["per_class"] for name, run in runs.items()}
    return {
        "runs": runs,
        "notes": notes(runs),
        "weights": next(iter(runs.values())).metrics.get("weights", "unknown"),
        "matrices": matrix_names(runs),
        "differences": differences,
        "figures_of_runs": figures_of(runs, not differences),
        "settings": settings_that_differ(runs),
        "people": rows_of(people, "balanced_accuracy", not differences),
        "gestures": rows_of(gestures, "recall", not differences),
        "curves": [name for name in ("validation_loss", "validation_balanced_accuracy") if _known(runs, name)],
    }


def notes(runs: dict[str, FinishedRun]) -> list[str]:
    """What a reader of the figures should know of the data, and which runs have a leaky split."""
    leaky = [f"LEAKY split (random windows): {name}" for name, run in runs.items() if run.is_leaky]
    return [*dict.fromkeys(filter(None, (run.metrics.get("data_note") for run in runs.values()))), *leaky]


def plots(runs: dict[str, FinishedRun]) -> dict[str, Figure]:
    """Curves over each other, and a matrix of every run, by the names that the template has for them."""
    histories = {name: run.history for name, run in runs.items() if run.history is not None}
    columns = ("validation_loss", "validation_balanced_accuracy")
    found = {column: overlaid_curves(histories, column) for column in columns}
    matrices = zip(matrix_names(runs).values(), runs.values(), strict=True)
    return found | {place: confusion_matrix(run.metrics["confusion_matrix"], run.names) for place, run in matrices}


def matrix_names(runs: dict[str, FinishedRun]) -> dict[str, str]:
    """Run → the name of its plot."""
    return {name: f"matrix{number}" for number, name in enumerate(runs)}


def _known(runs: dict[str, FinishedRun], column: str) -> bool:
    return any(run.history is not None and column in run.history for run in runs.values())


# ---- may they be compared? ------------------------------------------------------------------------------------


def why_not_comparable(runs: dict[str, FinishedRun]) -> list[str]:
    """What keeps the runs' figures from being compared, in sentences; none where nothing does."""
    first, *others = runs.values()
    told = {
        "The data differ: the runs have other windows, or windows that were made otherwise": _same_data,
        "The split differs: the runs were not tested on the same windows": _same_test,
        "The weights differ: some backbones were pretrained and some were random before training": _same_weights,
    }
    return [words for words, same in told.items() if not all(same(first, other) for other in others)]


def _same_data(one: FinishedRun, other: FinishedRun) -> bool:
    """The same windows by identity, file name, note, preprocessing and classes, wherever the file lies."""
    about = [
        (
            Path(run.metrics.get("data", "")).name,
            run.metrics.get("data_note"),
            run.preprocessing,
            run.metrics["classes"],
        )
        for run in (one, other)
    ]
    return about[0] == about[1] and _same_rows(one.split, other.split)


def _same_test(one: FinishedRun, other: FinishedRun) -> bool:
    return _same_rows(one.predictions, other.predictions) and one.metrics.get("split") == other.metrics.get("split")


def _same_weights(one: FinishedRun, other: FinishedRun) -> bool:
    return one.metrics.get("weights") == other.metrics.get("weights")


def _same_rows(one: pd.DataFrame | None, other: pd.DataFrame | None) -> bool:
    """Whether both are there and tell of the same windows."""
    return one is not None and other is not None and one[IDENTITY].equals(other[IDENTITY])


# ---- tables ---------------------------------------------------------------------------------------------------


def figures_of(runs: dict[str, FinishedRun], comparable: bool) -> list[dict]:
    """`name` and `cells` of every figure: a text per run, and whether it is the best, which only some figures have."""
    errors = [calibration(run)[1] if run.predictions is not None else None for run in runs.values()]
    known = [run.metrics | {"chance": run.chance} for run in runs.values()]
    sizes = [model_size(run.folder) for run in runs.values()]
    table = [
        ("balanced accuracy", [one["balanced_accuracy"] for one in known], "{:.3f}", HIGHER),
        ("accuracy", [one["accuracy"] for one in known], "{:.3f}", HIGHER),
        ("macro F1", [one["macro_f1"] for one in known], "{:.3f}", HIGHER),
        ("expected calibration error", errors, "{:.3f}", LOWER),
        ("chance, balanced", [one["chance"] for one in known], "{:.3f}", None),
        ("weights before training", [one.get("weights") for one in known], "{}", None),
        ("split", [one.get("split") for one in known], "{}", None),
        ("test windows", [one.get("n_test") for one in known], "{:,}", None),
        ("training windows", [one.get("n_train") for one in known], "{:,}", None),
        ("parameters", [one.get("parameters") for one in known], "{:,}", None),
        ("of these trained", [one.get("trainable_parameters") for one in known], "{:,}", None),
        ("weights on disk (MB)", [size and size / 1e6 for size in sizes], "{:.1f}", None),
        ("epochs", [one.get("epochs") for one in known], "{}", None),
        ("chosen epoch", [one.get("best_epoch") for one in known], "{}", None),
        ("time of training (s)", [one.get("seconds") for one in known], "{:,.0f}", None),
        ("time of one window (ms)", [run.milliseconds for run in runs.values()], "{:.1f}", None),
        ("device", [one.get("device") for one in known], "{}", None),
    ]
    return [
        {"name": name, "cells": cells(values, words, best if comparable else None)}
        for name, values, words, best in table
    ]


def cells(values: list, words: str, best) -> list[tuple[str, bool]]:
    """Each value in words, and whether it is the best of those that are known; equal words are equally good."""
    texts = ["–" if value is None else words.format(value) for value in values]
    known = [value for value in values if value is not None]
    top = words.format(best(known)) if best and known else None
    return [(text, text == top and len(set(texts)) > 1) for text in texts]


def settings_that_differ(runs: dict[str, FinishedRun]) -> list[dict]:
    """`name` and `values` of the settings that are not the same in all runs."""
    used = [used_settings(run) for run in runs.values()]
    names = dict.fromkeys(name for one in used for name in one)
    rows = [(name, [shown(one[name]) if name in one else "–" for one in used]) for name in names]
    return [{"name": name, "values": values} for name, values in rows if len(set(values)) > 1]


def rows_of(found: dict[str, dict[str, dict]], figure: str, comparable: bool) -> list[dict]:
    """`name` and `cells` of every person or gesture that a run has: one figure of each run."""
    names = dict.fromkeys(name for one in found.values() for name in one)
    values = {name: [one.get(name, {}).get(figure) for one in found.values()] for name in names}
    best = HIGHER if comparable else None
    return [{"name": name, "cells": cells(row, "{:.3f}", best)} for name, row in values.items()]


if __name__ == "__main__":
    sys.exit(main())
