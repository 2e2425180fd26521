"""comparison.html: several runs side by side on one page.

Figures are marked as best only where the runs were tested on the same windows and trained from weights of the same
kind; where they were not, the page says what differs.
"""

from pathlib import Path

import pandas as pd
from plotly.graph_objects import Figure

from emg_gpt2.base.errors import EMGError
from emg_gpt2.base.files import make_folder
from emg_gpt2.model.config import start_words
from emg_gpt2.results.plots import confusion_matrix, overlaid_curves
from emg_gpt2.results.reading import IDENTITY, TRANSDUCTIVE, FinishedRun, read_run
from emg_gpt2.results.report import write_page
from emg_gpt2.results.tables import calibration, model_size
from emg_gpt2.results.used_settings import shown, used_settings

CURVES = ("validation_loss", "validation_balanced_accuracy")  # columns of history.csv
HIGHER, LOWER = max, min  # which of the runs' figures is the best


def write_comparison(folders: list[Path], out: Path) -> Path:
    """Write one page for all runs; returns `out`. Raises EMGError where a folder has no finished run."""
    make_folder(out.parent)
    runs = dict(zip(names_of(folders), map(read_run, folders), strict=True))
    write_page(out, "comparison.html", contents(runs), comparison_plots(runs))
    return out


def names_of(folders: list[Path]) -> list[str]:
    """The folders' names where these differ, else their paths. Raises EMGError for a run named twice."""
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise EMGError("a run is named twice; name every run once")
    short = [folder.resolve().name for folder in folders]
    return short if len(set(short)) == len(short) else list(map(str, folders))


def contents(runs: dict[str, FinishedRun]) -> dict:
    """The values of the template comparison.html."""
    differences = why_not_comparable(runs)
    people = {name: run.metrics["per_subject"] for name, run in runs.items()}
    gestures = {name: run.metrics["per_class"] for name, run in runs.items()}
    return {
        "runs": runs,
        "notes": notes_of(runs),
        "start": start_words(next(iter(runs.values())).metrics.get("weights", "unknown")),
        "matrices": matrix_names(runs),
        "differences": differences,
        "figures_of_runs": figures_of(runs, not differences),
        "settings": settings_that_differ(runs),
        "people": rows_of(people, "balanced_accuracy", not differences),
        "gestures": rows_of(gestures, "recall", not differences),
        "curves": [column for column in CURVES if _known(runs, column)],
    }


def notes_of(runs: dict[str, FinishedRun]) -> list[str]:
    """The notes on the origin of the data, and which runs have a leaky split or a transductive test."""
    found = list(dict.fromkeys(filter(None, (run.metrics.get("data_note") for run in runs.values()))))
    found += [f"LEAKY split (random windows): {name}" for name, run in runs.items() if run.is_leaky]
    transductive = [name for name, run in runs.items() if run.is_transductive]
    return found + [f"Transductive ({TRANSDUCTIVE}): {', '.join(transductive)}"] * bool(transductive)


def comparison_plots(runs: dict[str, FinishedRun]) -> dict[str, Figure]:
    """The curves of all runs, and a confusion matrix of each, by their names in the template."""
    histories = {name: run.history for name, run in runs.items() if run.history is not None}
    found = {column: overlaid_curves(histories, column) for column in CURVES}
    matrices = zip(matrix_names(runs).values(), runs.values(), strict=True)
    return found | {place: confusion_matrix(run.metrics["confusion_matrix"], run.names) for place, run in matrices}


def matrix_names(runs: dict[str, FinishedRun]) -> dict[str, str]:
    """Run → the name of its confusion matrix in the template."""
    return {name: f"matrix{number}" for number, name in enumerate(runs)}


def _known(runs: dict[str, FinishedRun], column: str) -> bool:
    """Whether any run has the column of history.csv."""
    return any(run.history is not None and column in run.history for run in runs.values())


# ---- may they be compared? ------------------------------------------------------------------------------------


def why_not_comparable(runs: dict[str, FinishedRun]) -> list[str]:
    """Sentences on what differs, so that the runs' figures must not be compared; empty where they may be."""
    first, *others = runs.values()
    checks = {
        "The data differ: the runs have other windows, or windows that were made otherwise": _same_data,
        "The split differs: the runs were not tested on the same windows": _same_test,
        "The information differs: some models saw the signal of the whole test session and some did not": _same_scale,
        "The weights differ: some backbones were pretrained and some were random before training": _same_weights,
    }
    return [sentence for sentence, same in checks.items() if not all(same(first, other) for other in others)]


def _same_data(one: FinishedRun, other: FinishedRun) -> bool:
    """Whether windows, file name, note, preprocessing and classes are the same; the folder may differ."""
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
    """Whether the test windows and the kind of split are the same."""
    return _same_rows(one.predictions, other.predictions) and one.metrics.get("split") == other.metrics.get("split")


def _same_scale(one: FinishedRun, other: FinishedRun) -> bool:
    """Whether both tests, or none, are transductive."""
    return one.is_transductive == other.is_transductive


def _same_weights(one: FinishedRun, other: FinishedRun) -> bool:
    """Whether both were pretrained, or both random."""
    return one.metrics.get("weights") == other.metrics.get("weights")


def _same_rows(one: pd.DataFrame | None, other: pd.DataFrame | None) -> bool:
    """Whether both tables are there and list the same windows."""
    return one is not None and other is not None and one[IDENTITY].equals(other[IDENTITY])


# ---- tables ---------------------------------------------------------------------------------------------------


def figures_of(runs: dict[str, FinishedRun], comparable: bool) -> list[dict]:
    """`name` and `cells` of every figure; a cell is a text and whether it is the best of the runs."""
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
        ("transductive", ["yes" if run.is_transductive else "no" for run in runs.values()], "{}", None),
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
        {"name": name, "cells": cells(values, form, best if comparable else None)} for name, values, form, best in table
    ]


def cells(values: list, form: str, best) -> list[tuple[str, bool]]:
    """The text of each value, and whether it is the best; equal texts are equally good. best: HIGHER, LOWER or None."""
    texts = ["–" if value is None else form.format(value) for value in values]
    known = [value for value in values if value is not None]
    top = form.format(best(known)) if best and known else None
    return [(text, text == top and len(set(texts)) > 1) for text in texts]


def settings_that_differ(runs: dict[str, FinishedRun]) -> list[dict]:
    """`name` and `values` of the settings that differ between the runs."""
    used = [used_settings(run) for run in runs.values()]
    names = dict.fromkeys(name for one in used for name in one)
    rows = [(name, [shown(one[name]) if name in one else "–" for one in used]) for name in names]
    return [{"name": name, "values": values} for name, values in rows if len(set(values)) > 1]


def rows_of(found: dict[str, dict[str, dict]], figure: str, comparable: bool) -> list[dict]:
    """`name` and `cells` of every person or gesture of any run: one figure per run."""
    names = dict.fromkeys(name for one in found.values() for name in one)
    values = {name: [one.get(name, {}).get(figure) for one in found.values()] for name in names}
    best = HIGHER if comparable else None
    return [{"name": name, "cells": cells(row, "{:.3f}", best)} for name, row in values.items()]
