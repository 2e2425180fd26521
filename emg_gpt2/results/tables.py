"""Tables of a report: parts, calibration, size and speed, baselines, sweep."""

from pathlib import Path

import numpy as np
import pandas as pd

from EMG_DATA_LOADER import PARTS
from emg_gpt2.results.reading import FinishedRun
from emg_gpt2.results.used_settings import shown

BINS = 15  # of the confidence, as in Guo et al. (2017)
LONGEST_TABLE = 60  # rows of the table of recordings; more are summed up by day or by person

LEVELS = (["subject", "session", "recording"], ["subject", "session"], ["subject"])


def parts_table(run: FinishedRun) -> dict:
    """Windows in each part; empty without split.csv.

    `columns`: the parts; `levels`: what `people` has a row for (recordings, days or people); `gestures`: a row per
    gesture; `sums`: numbers of people, days, recordings and windows per part.
    """
    if run.split is None:
        return {}
    split = run.split.assign(part=run.split["part"].replace("", "left out"))
    columns = [part for part in (*PARTS, "left out") if (split["part"] == part).any()]
    levels = next(
        levels for levels in LEVELS if len(split[levels].drop_duplicates()) <= LONGEST_TABLE or levels == LEVELS[-1]
    )
    gestures = pd.crosstab(split["TRAJ_GT"], split["part"])[columns]
    gestures.index = [run.metrics["classes"][str(code)] for code in gestures.index]
    return {
        "columns": columns,
        "levels": levels,
        "people": _rows(pd.crosstab([split[level] for level in levels], split["part"])[columns]),
        "gestures": _rows(gestures),
        "sums": {part: _sums(rows) for part, rows in split.groupby("part")},
    }


def _rows(table: pd.DataFrame) -> list[tuple[list[str], list[int]]]:
    """Names and counts of each row."""
    keys = [key if isinstance(key, tuple) else (key,) for key in table.index]
    return list(zip(map(list, keys), table.to_numpy().tolist(), strict=True))


def _sums(rows: pd.DataFrame) -> dict[str, int]:
    """Numbers of recordings, days, people and windows."""
    counts = {
        name: len(rows[levels].drop_duplicates())
        for name, levels in zip(("recordings", "days", "people"), LEVELS, strict=True)
    }
    return counts | {"windows": len(rows)}


# ---- confidence -----------------------------------------------------------------------------------------------


def calibration(run: FinishedRun) -> tuple[pd.DataFrame, float]:
    """Reliability of the confidence on the test part, and the expected calibration error.

    The confidence of a window is its highest probability. There are M = 15 bins of equal width: bin m holds the windows
    with (m − 1)/M < confidence ≤ m/M. acc(m) is the share of them that were predicted correctly, conf(m) their mean
    confidence. Over all n windows

        ECE = Σ_m (windows in m / n) · |acc(m) − conf(m)|

    (Guo et al., On calibration of modern neural networks, ICML 2017, equations 2 and 3). Returns one row per bin that
    is not empty (`low`, `high`, `windows`, `accuracy`, `confidence`, and `bottom` and `top` of the accuracy's 95 %
    interval), and ECE.
    """
    confidence = run.probabilities.max(axis=1)
    right = (run.predictions["predicted"] == run.predictions["TRAJ_GT"]).to_numpy()
    number = np.clip(np.ceil(confidence * BINS).astype(int), 1, BINS)
    windows = pd.DataFrame({"number": number, "right": right, "confidence": confidence}).groupby("number")
    bins = pd.DataFrame(
        {"windows": windows.size(), "accuracy": windows["right"].mean(), "confidence": windows["confidence"].mean()}
    )
    bins.insert(0, "low", (bins.index - 1) / BINS)
    bins.insert(1, "high", bins.index / BINS)
    bins["bottom"], bins["top"] = wilson(bins["accuracy"], bins["windows"])
    gap = (bins["accuracy"] - bins["confidence"]).abs()
    return bins.reset_index(drop=True), float((bins["windows"] * gap).sum() / len(confidence))


def wilson(share: pd.Series, number: pd.Series) -> tuple[pd.Series, pd.Series]:
    """95 % interval of shares of so many windows, as if these were independent (Wilson, JASA 22, 1927)."""
    z = 1.96
    middle = (share + z**2 / (2 * number)) / (1 + z**2 / number)
    margin = z / (1 + z**2 / number) * np.sqrt(share * (1 - share) / number + z**2 / (4 * number**2))
    return middle - margin, middle + margin


# ---- size, speed, baselines, sweep ----------------------------------------------------------------------------


def size_and_speed(run: FinishedRun) -> dict[str, str]:
    """Size and speed of the model as texts; what an older run does not say is left out."""
    metrics, size = run.metrics, model_size(run.folder)
    rate = windows_per_second(run)
    known = {
        "parameters": (metrics.get("parameters"), "{:,}"),
        "of these trained": (metrics.get("trainable_parameters"), "{:,}"),
        "weights on disk (best_model)": (size and size / 1e6, "{:.1f} MB"),
        "epochs": (metrics.get("epochs"), "{}"),
        "chosen epoch": (metrics.get("best_epoch"), "{}"),
        "time of training": (metrics.get("seconds"), "{:,.0f} s"),
        "windows/s in training": (rate, "{:,.0f}"),
        "time of one window": (run.milliseconds, "{:.1f} ms"),
        "device": (metrics.get("device"), "{}"),
        "processes": (metrics.get("processes"), "{}"),
        "precision": (metrics.get("precision"), "{}"),
    }
    return {name: words.format(value) for name, (value, words) in known.items() if value is not None}


def model_size(folder: Path) -> int | None:
    """Bytes of the weights in best_model/."""
    sizes = [file.stat().st_size for file in (folder / "best_model").glob("*.safetensors")]
    return sum(sizes) or None


def windows_per_second(run: FinishedRun) -> float | None:
    """Speed of the training, over all its epochs, each with its validation."""
    known = [run.metrics.get(name) for name in ("n_train", "epochs", "seconds")]
    return known[0] * known[1] / known[2] if all(known) else None


def baseline_rows(run: FinishedRun) -> dict:
    """`levels`, `rows` and `best` of baselines.json; empty without it, or of an older version.

    A row: features, classifier, and per level the balanced accuracy (None where it has none) and whether this
    classifier is the best of the level on the validation part.
    """
    if not run.baselines or "best" not in run.baselines:
        return {}
    best, reached = run.baselines["best"], {}
    for one in run.baselines["baselines"]:
        reached.setdefault((one["features"], one["classifier"]), {})[one["level"]] = one["balanced_accuracy"]
    rows = [
        (*name, [(found.get(level), name == (top["features"], top["classifier"])) for level, top in best.items()])
        for name, found in reached.items()
    ]
    return {"levels": run.baselines["levels"], "rows": rows, "best": best}


def sweep_rows(run: FinishedRun) -> dict:
    """`columns` and `rows` of sweep.csv, the best trial first; empty without it."""
    if run.sweep is None or run.sweep.empty:
        return {}
    table = run.sweep.dropna(axis="columns", how="all")
    table = table.sort_values("validation_balanced_accuracy", ascending=False, kind="stable")
    rows = [["–" if pd.isna(value) else shown(value) for value in row] for row in table.itertuples(index=False)]
    return {"columns": [name.replace("_", " ") if name.islower() else name for name in table], "rows": rows}
