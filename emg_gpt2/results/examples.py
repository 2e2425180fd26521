"""The gestures that are confused most, and example windows of them."""

from pathlib import Path

import numpy as np
import pandas as pd

from EMG_DATA_LOADER import read_emg
from emg_gpt2.base.errors import EMGError
from emg_gpt2.results.figures import percent
from emg_gpt2.results.lanes import unit_words
from emg_gpt2.results.reading import IDENTITY, FinishedRun
from emg_gpt2.windows.reading import WindowSet, open_windows

PAIRS = 3  # most-confused pairs that are shown
LANE = 20  # height of a channel's lane in a drawn window
PERCENTILE = 99  # of the samples lie inside the lanes


def confused_pairs(run: FinishedRun) -> list[dict]:
    """The PAIRS pairs of gestures with most windows of the gesture `true` that were predicted to be `predicted`.

    share: of the windows of `true`, in whole percent.
    """
    counts = np.array(run.metrics["confusion_matrix"])
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-wrong, axis=None, kind="stable")[:PAIRS]
    pairs = [divmod(int(place), len(counts)) for place in order if wrong.flat[place]]
    return [
        {"true": i, "predicted": j, "windows": int(counts[i, j]), "share": percent(counts[i, j], counts[i].sum())}
        for i, j in pairs
    ]


def examples_of(run: FinishedRun, pairs: list[dict], windows: WindowSet | None) -> dict:
    """`examples`: a panel for each pair; or none, and `why_not` in a sentence."""
    if run.predictions is None:
        return {"examples": [], "why_not": "predictions.parquet is not in the folder."}
    chosen = [example_rows(run, pair) for pair in pairs]
    try:
        windows = windows or open_windows(Path(run.metrics.get("data", run.settings.get("DATA_LOCATION", "?"))))
        places = [places_of(windows, run.predictions.loc[rows]) for rows in chosen]
    except EMGError as error:
        return {"examples": [], "why_not": f"The windows cannot be shown: {error}."}
    return {"examples": [panel(run, windows, *both) for both in zip(chosen, places, strict=True)], "why_not": ""}


def example_rows(run: FinishedRun, pair: dict) -> list[int]:
    """Rows of `predictions`: a window that was confused, and one of each gesture that was predicted correctly.

    Each is the one with the highest confidence. The correct ones are of the same person where there are any.
    """
    table, codes = run.predictions, list(map(int, run.metrics["classes"]))
    true, predicted = codes[pair["true"]], codes[pair["predicted"]]
    confidence = pd.Series(run.probabilities.max(axis=1), table.index)
    confused = confidence[(table["TRAJ_GT"] == true) & (table["predicted"] == predicted)].idxmax()
    rows = []
    for code in (true, predicted):
        correct = (table["TRAJ_GT"] == code) & (table["predicted"] == code)
        own = correct & (table["subject"] == table.loc[confused, "subject"])
        rows += [confidence[own if own.any() else correct].idxmax()] if correct.any() else []
    return [confused, *rows]


def places_of(windows: WindowSet, wanted: pd.DataFrame) -> np.ndarray:
    """Indices into `windows` of some rows of `predictions`; raises EMGError where they are not there."""
    found = wanted[IDENTITY].merge(windows.table[IDENTITY].reset_index(), how="left", on=IDENTITY)["index"]
    if found.isna().any() or len(found) != len(wanted):
        raise EMGError("the windows file holds other windows now")
    return found.to_numpy(int)


def panel(run: FinishedRun, windows: WindowSet, rows: list[int], places: np.ndarray) -> dict:
    """`drawn`: windows on one scale, each with its path and texts; `lane`: the distance of two lines in `unit`."""
    emg = read_emg(windows, places).numpy()  # (n, T, C)
    emg = emg - emg.mean(axis=1, keepdims=True)
    half = float(np.percentile(np.abs(emg), PERCENTILE)) or 1.0
    about, (_, samples, channels) = windows.metadata, emg.shape
    drawn = [example_texts(run, row) | {"path": svg_path(window / half)} for row, window in zip(rows, emg, strict=True)]
    return {
        "drawn": drawn,
        "lane": 2 * half,
        "unit": unit_words(about["unit"]),
        "channels": about["channels"],
        "ms": 1000 * samples / about["sampling_rate"],
        "width": samples - 1,
        "height": LANE * channels,
    }


def example_texts(run: FinishedRun, row: int) -> dict:
    """What is said of a window of `predictions`."""
    one, names = run.predictions.loc[row], run.metrics["classes"]
    return {
        "true": names[str(one["TRAJ_GT"])],
        "predicted": names[str(one["predicted"])],
        "confidence": one[f"p_{one['predicted']}"],
        "place": f"{one['subject']}/{one['session']}/{one['recording']}",
        "start": one["start"],
    }


def svg_path(window: np.ndarray) -> str:
    """An SVG path of a window (T, C) in units of half a lane: a line per channel, the first one on top.

    A sample is one unit wide and a lane LANE units high. No line is cut off: a large one runs over its neighbours.
    """
    channels = window.shape[1]
    middles = LANE * (np.arange(channels) + 0.5)
    y = np.rint(middles - window * LANE / 2).astype(int)  # (T, C)
    lines = []
    for first, steps in zip(y[0], np.diff(y, axis=0).T, strict=True):
        lines.append(f"M0 {first}l" + " ".join(f"1 {step}" for step in steps))
    return "".join(lines)
