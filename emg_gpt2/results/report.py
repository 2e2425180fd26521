"""report.html: all about a finished run on one page, made of the files in its folder.

The page stands alone: it holds its style, its plots and the library that draws them, and its own policy forbids the
browser to fetch anything.
"""

import base64
import gzip
import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from plotly.graph_objects import Figure
from plotly.offline import get_plotlyjs

from EMG_DATA_LOADER import PARTS, read_emg
from emg_gpt2.base.command_line import as_written, flag
from emg_gpt2.base.errors import EMGError
from emg_gpt2.base.files import replace_file
from emg_gpt2.base.text import in_short
from emg_gpt2.results.plots import accuracy_curves, confusion_matrix, loss_curves, reliability
from emg_gpt2.settings import Role, Settings
from emg_gpt2.windows.reading import WindowSet, open_windows

NEEDED = ("accuracy", "balanced_accuracy", "macro_f1", "per_class", "per_subject", "confusion_matrix", "classes")
HELD_OUT = {
    "trajectory": "Whole recordings were held out: the model saw other recordings of the same people and days.",
    "repetition": "Repetitions were held out: the model saw other repetitions of the same gestures and recordings.",
    "session": "The last days of each person were held out: the model saw the same people on earlier days.",
    "subject": "People were held out: the model saw nothing of them in training.",
    "random": "Random windows were held out: the model saw their neighbours, cut from the same contractions.",
    "named": "The parts were named outright (TRAIN_ON and TEST_ON).",
}
WITHOUT_EFFECT = {"CLASS_NAMES", "DATA_NOTE", "WORKERS", "CLUSTER", "DOWNLOAD_URL"}  # on main.py
PLACES = {"RUN_DIR", "RESUME", "MODEL_SAVING_DIR"}  # of the results: repeated, they would be in the way
BINS = 15  # of the confidence, as in Guo et al. (2017)
LONGEST_TABLE = 60  # rows of the table of recordings; more are summed up by day or by person
PAIRS = 3  # most-confused pairs that are shown
LANE, PERCENTILE = 20, 99  # units of a channel's lane in a drawn window; this share of the samples stays inside it


@dataclass(frozen=True)
class FinishedRun:
    """The files of a run folder; None, or empty, for those that it does not have."""

    folder: Path
    metrics: dict
    settings: dict  # of main.py, as env.json has them
    preprocessing: dict  # settings that the windows were made with, as the model has them
    history: pd.DataFrame | None
    split: pd.DataFrame | None  # every window's identity and part
    predictions: pd.DataFrame | None
    sweep: pd.DataFrame | None
    baselines: dict

    @property
    def names(self) -> list[str]:
        """Of the classes, in the order of the confusion matrix."""
        return list(self.metrics["classes"].values())

    @property
    def chance(self) -> float:
        """Balanced accuracy of guessing."""
        return 1 / len(self.names)

    @property
    def probabilities(self) -> np.ndarray:
        """(n, K) of the test windows, in the order of `predictions`."""
        return self.predictions[[f"p_{code}" for code in self.metrics["classes"]]].to_numpy()

    @property
    def milliseconds(self) -> float | None:
        """Of a single window's prediction."""
        seconds = self.metrics.get("seconds_per_window")
        return seconds and 1000 * seconds

    @property
    def held_out(self) -> str:
        return HELD_OUT.get(self.metrics.get("split"), "")

    @property
    def is_leaky(self) -> bool:
        return self.metrics.get("split") == "random"


# ---- reading --------------------------------------------------------------------------------------------------


def read_run(folder: Path) -> FinishedRun:
    """Raises EMGError where there is no finished run, or a file of it cannot be read."""
    metrics = _read(folder / "metrics.json", _read_json)
    if metrics is None:
        advice = (
            f"finish it with main.py --resume {folder}" if (folder / "last").exists() else "name a folder under runs"
        )
        raise EMGError(f"{folder}: there are no results of a finished run; {advice}")
    missing = [name for name in NEEDED if name not in metrics]
    if missing:
        raise EMGError(f"{folder / 'metrics.json'}: {', '.join(missing)} is missing; run main.py anew")
    text = {"subject": str, "session": str}
    return FinishedRun(
        folder,
        metrics,
        _read(folder / "env.json", _read_json) or {},
        (_read(folder / "best_model" / "config.json", _read_json) or {}).get("preprocessing", {}),
        _read(folder / "history.csv", pd.read_csv),
        _read(folder / "split.csv", lambda path: pd.read_csv(path, dtype=text, keep_default_na=False)),
        _read(folder / "predictions.parquet", pd.read_parquet),
        _read(folder / "sweep.csv", pd.read_csv),
        _read(folder / "baselines.json", _read_json) or {},
    )


def _read(path: Path, read: Callable):
    """None where there is no such file."""
    if not path.is_file():
        return None
    try:
        return read(path)
    except (OSError, ValueError) as error:
        raise EMGError(f"{path}: the file cannot be read ({in_short(error)}); remove it or run main.py anew") from None


def _read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


# ---- the page -------------------------------------------------------------------------------------------------


def write_report(folder: Path, windows: WindowSet | None = None, out: Path | None = None) -> Path:
    """report.html of a run's folder, or the same page as `out`; returns where it is.

    Without `windows` the few that are drawn are read from the run's DATA_LOCATION. Raises EMGError where there is no
    finished run.
    """
    run, out = read_run(folder), out or folder / "report.html"
    write_page(out, "report.html", contents(run, windows), plots(run))
    return out


def write_page(out: Path, template: str, found: dict, figures: dict[str, Figure]) -> None:
    """Fill a file of templates/ and put the page into the place of `out`."""
    pages = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,  # names and notes come from strangers' files
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters["figure"] = lambda value, digits=3: "–" if value is None else f"{value:.{digits}f}"
    plain = {name: json.loads(figure.to_json()) for name, figure in figures.items()}
    text = pages.get_template(template).render(found, figures=plain, library=library())
    replace_file(out, lambda path: path.write_text(text, encoding="utf-8", newline="\n"))


@cache
def library() -> str:
    """plotly.js, compressed and in letters: 2 MB in place of 5."""
    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()


def plots(run: FinishedRun) -> dict[str, Figure]:
    """The plots of a report, by the names that the template has for them."""
    found = {"matrix": confusion_matrix(run.metrics["confusion_matrix"], run.names)}
    if run.history is not None:
        best = run.metrics.get("best_epoch")
        found |= {"loss": loss_curves(run.history, best), "accuracy": accuracy_curves(run.history, best, run.chance)}
    if run.predictions is not None:
        found["reliability"] = reliability(calibration(run)[0])
    return found


def contents(run: FinishedRun, windows: WindowSet | None) -> dict:
    """What the template of a report is filled with."""
    bins, error = calibration(run) if run.predictions is not None else (None, None)
    pairs = confused_pairs(run)
    return {
        "run": run,
        "metrics": run.metrics,
        "name": run.folder.resolve().name,
        "date": date(run.folder),
        "majority": majority(run.metrics),
        "settings": changed_settings(run),
        "parts": parts(run),
        "bins": bins,
        "bin_count": BINS,
        "calibration_error": error,
        "pairs": pairs,
        **draw_pairs(run, pairs, windows),
        "facts": facts(run),
        "baselines": baseline_rows(run),
        "sweep": sweep_rows(run),
        "command": command(run),
    }


def date(folder: Path) -> str:
    """When the run began, by its log; nothing where it has none."""
    log = folder / "log.txt"
    return log.read_text(encoding="utf-8", errors="replace")[: len("2026-01-01 12:00")] if log.is_file() else ""


def majority(metrics: dict) -> dict:
    """`name` of the most frequent gesture, and the `accuracy` of calling every window so."""
    supports = {name: row["support"] for name, row in metrics["per_class"].items()}
    name = max(supports, key=supports.get)
    return {"name": name, "accuracy": supports[name] / sum(supports.values())}


# ---- settings -------------------------------------------------------------------------------------------------


def changed_settings(run: FinishedRun) -> list[dict]:
    """`name`, `value`, `default` and `meaning` of the settings that are not ENV.py's."""
    defaults, fields = Settings.model_construct().model_dump(mode="json"), Settings.model_fields
    return [
        {
            "name": name,
            "value": shown(value),
            "default": shown(defaults[name]) if name in fields else "no such setting now",
            "meaning": fields[name].description.replace("`", "") if name in fields else "",
        }
        for name, value in used_settings(run).items()
        if name not in fields or value != defaults[name]
    ]


def used_settings(run: FinishedRun) -> dict:
    """The settings that made the run what it is, those of the preprocessing as the windows were made with them."""
    others = {*Settings.with_role(Role.WINDOWS), *WITHOUT_EFFECT, *PLACES}
    return {name: value for name, value in run.settings.items() if name not in others} | run.preprocessing


def shown(value) -> str:
    """As on a command line."""
    return as_written(value) or "none"


def command(run: FinishedRun) -> str:
    """What repeats the run; empty where another tool than main.py made it, or its settings are not known."""
    if not run.settings or belongs_to_tool(run.folder):
        return ""
    defaults = Settings.model_construct().model_dump(mode="json")
    own = defaults.keys() - {*Settings.with_role(Role.WINDOWS), *WITHOUT_EFFECT, *PLACES}
    changed = {name: value for name, value in run.settings.items() if name in own and value != defaults[name]}
    processes = run.metrics.get("processes", 1)
    start = ["python"] if processes == 1 else ["torchrun", "--nproc-per-node", str(processes)]
    return shlex.join([*start, "main.py", *(argument for item in changed.items() for argument in arguments(*item))])


def arguments(name: str, value) -> list[str]:
    """Of main.py's command line, for one setting."""
    if isinstance(value, bool):
        return [flag(name) if value else flag(name).replace("--", "--no-", 1)]
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return [f"{flag(name)}={text}"] if text.startswith("-") else [flag(name), text]


def belongs_to_tool(folder: Path) -> bool:
    """Whether tools.evaluate or tools.ablate made it: they change windows and settings in ways of their own."""
    above = folder.resolve().parent
    return above.name == "runs" and (above.parent / "settings.json").is_file()


# ---- data and split -------------------------------------------------------------------------------------------


def parts(run: FinishedRun) -> dict:
    """Windows in each part: `columns`, `people` (rows by recording, day or person), `gestures` (rows by gesture) and
    `sums` (people, days and recordings); empty without split.csv."""
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


LEVELS = (["subject", "session", "recording"], ["subject", "session"], ["subject"])


def _rows(table: pd.DataFrame) -> list[tuple[list[str], list[int]]]:
    """The names and the counts of each row."""
    keys = [key if isinstance(key, tuple) else (key,) for key in table.index]
    return list(zip(map(list, keys), table.to_numpy().tolist(), strict=True))


def _sums(rows: pd.DataFrame) -> dict[str, int]:
    counts = {
        name: len(rows[levels].drop_duplicates())
        for name, levels in zip(("recordings", "days", "people"), LEVELS, strict=True)
    }
    return counts | {"windows": len(rows)}


# ---- confidence -----------------------------------------------------------------------------------------------


def calibration(run: FinishedRun) -> tuple[pd.DataFrame, float]:
    """Reliability of the confidence on the test part, and the expected calibration error.

    The confidence of a window is its highest probability. M = 15 bins of equal width, (m − 1)/M < confidence ≤ m/M;
    acc(m) is the share of its windows that were called right, conf(m) their mean confidence, and over all n windows

        ECE = Σ_m (windows in m / n) · |acc(m) − conf(m)|

    (Guo et al., On calibration of modern neural networks, ICML 2017, equations 2 and 3 and section 2). Returns one row
    per bin that is not empty (`low`, `high`, `windows`, `accuracy`, `confidence`), and ECE.
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
    gap = (bins["accuracy"] - bins["confidence"]).abs()
    return bins.reset_index(drop=True), float((bins["windows"] * gap).sum() / len(confidence))


# ---- confused gestures ----------------------------------------------------------------------------------------


def confused_pairs(run: FinishedRun) -> list[dict]:
    """The PAIRS pairs of gestures with most windows of the one, `true`, that were called the other, `called`."""
    counts = np.array(run.metrics["confusion_matrix"])
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-wrong, axis=None, kind="stable")[:PAIRS]
    pairs = [divmod(int(place), len(counts)) for place in order if wrong.flat[place]]
    return [
        {"true": i, "called": j, "windows": int(counts[i, j]), "share": counts[i, j] / counts[i].sum()}
        for i, j in pairs
    ]


def draw_pairs(run: FinishedRun, pairs: list[dict], windows: WindowSet | None) -> dict:
    """`examples` of each pair, with `scale`, or `why_not` there are none, in a sentence."""
    if run.predictions is None:
        return {"examples": [], "why_not": "predictions.parquet is not in the folder."}
    chosen = [chosen_windows(run, pair) for pair in pairs]
    try:
        windows = windows or open_windows(Path(run.metrics.get("data", run.settings.get("DATA_LOCATION", "?"))))
        places = [places_of(windows, run.predictions.loc[rows]) for rows in chosen]
    except EMGError as error:
        return {"examples": [], "why_not": f"The windows cannot be shown: {error}."}
    return {"examples": [draw_windows(run, windows, *both) for both in zip(chosen, places, strict=True)], "why_not": ""}


def chosen_windows(run: FinishedRun, pair: dict) -> list[int]:
    """Rows of `predictions`: one window that was confused, and beside it one of each gesture that was called right.

    Each is the one with the highest confidence, and those called right come from the same person where there are any.
    """
    table, codes = run.predictions, list(map(int, run.metrics["classes"]))
    true, called = codes[pair["true"]], codes[pair["called"]]
    confidence = pd.Series(run.probabilities.max(axis=1), table.index)
    confused = confidence[(table["TRAJ_GT"] == true) & (table["predicted"] == called)].idxmax()
    rows = []
    for code in (true, called):
        right = (table["TRAJ_GT"] == code) & (table["predicted"] == code)
        own = right & (table["subject"] == table.loc[confused, "subject"])
        rows += [confidence[own if own.any() else right].idxmax()] if right.any() else []
    return [confused, *rows]


def places_of(windows: WindowSet, wanted: pd.DataFrame) -> np.ndarray:
    """Indices into `windows` of the rows of `predictions`; raises EMGError where they are not there."""
    identity = ["subject", "session", "recording", "TRAJ_GT", "start"]
    found = wanted[identity].merge(windows.table[identity].reset_index(), how="left", on=identity)["index"]
    if found.isna().any() or len(found) != len(wanted):
        raise EMGError("the windows file holds other windows now")
    return found.to_numpy(int)


def draw_windows(run: FinishedRun, windows: WindowSet, rows: list[int], places: np.ndarray) -> dict:
    """`drawn` windows on one scale: path, size and words of each; `lane` is the distance of two lines in `unit`."""
    emg = read_emg(windows, places).numpy()  # (n, T, C)
    emg = emg - emg.mean(axis=1, keepdims=True)
    half = float(np.percentile(np.abs(emg), PERCENTILE)) or 1.0
    names, unit = run.metrics["classes"], windows.metadata["unit"]
    drawn = []
    for row, window in zip(rows, emg, strict=True):
        one = run.predictions.loc[row]
        words = {
            "true": names[str(one["TRAJ_GT"])],
            "called": names[str(one["predicted"])],
            "confidence": one[f"p_{one['predicted']}"],
        }
        where = {"place": f"{one['subject']}/{one['session']}/{one['recording']}", "start": one["start"]}
        drawn.append(words | where | {"path": svg_path(window / half)})
    samples, channels = emg.shape[1:]
    about = {"channels": windows.metadata["channels"], "ms": 1000 * samples / windows.metadata["sampling_rate"]}
    size = {"width": samples - 1, "height": LANE * channels}
    return {"drawn": drawn, "lane": 2 * half, "unit": "counts" if unit == "count" else "a.u."} | about | size


def svg_path(window: np.ndarray) -> str:
    """An SVG path of a window (T, C) in units of half a lane: a line per channel, the first one on top.

    A sample is one unit wide, a lane LANE units high; what leaves the lane ends at the middle of the next.
    """
    channels = window.shape[1]
    middles = LANE * (np.arange(channels) + 0.5)
    y = np.rint(middles - np.clip(window, -2, 2) * LANE / 2).astype(int)  # (T, C)
    lines = []
    for first, steps in zip(y[0], np.diff(y, axis=0).T, strict=True):
        lines.append(f"M0 {first}l" + " ".join(f"1 {step}" for step in steps))
    return "".join(lines)


# ---- size, speed and what else was tried ----------------------------------------------------------------------


def facts(run: FinishedRun) -> dict[str, str]:
    """Size and speed of the model, as far as they are known, in words."""
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
    """Of the training part, over all its epochs, each with its validation."""
    known = [run.metrics.get(name) for name in ("n_train", "epochs", "seconds")]
    return known[0] * known[1] / known[2] if all(known) else None


def baseline_rows(run: FinishedRun) -> dict:
    """`scalings` and the `rows` of tools.baselines: features, classifier, balanced accuracy per scaling, and whether
    it is the best of its column; empty where they were not run."""
    if not run.baselines:
        return {}
    table = pd.DataFrame(run.baselines["baselines"])
    table = table.pivot_table("balanced_accuracy", ["features", "classifier"], "scaling", sort=False)
    best = table.max()
    rows = [(*key, [(value, value == best[name]) for name, value in row.items()]) for key, row in table.iterrows()]
    return {"scalings": list(table.columns), "rows": rows, "best": float(best.max())}


def sweep_rows(run: FinishedRun) -> dict:
    """`columns` and `rows` of sweep.csv, the best trial first; empty where there was no sweep."""
    if run.sweep is None or run.sweep.empty:
        return {}
    table = run.sweep.dropna(axis="columns", how="all")
    table = table.sort_values("validation_balanced_accuracy", ascending=False, kind="stable")
    rows = [["–" if pd.isna(value) else shown(value) for value in row] for row in table.itertuples(index=False)]
    return {"columns": [name.replace("_", " ") if name.islower() else name for name in table], "rows": rows}
