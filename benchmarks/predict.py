"""How fast the model predicts on this machine, one window and many at once, beside the original project's way."""

from itertools import product
from statistics import median

import numpy as np
from accelerate import PartialState
from rich.console import Console
from rich.table import Table

from benchmarks.measure import Process, now, peak_mb, prepare, print_wide
from benchmarks.rivals import TextPrediction
from benchmarks.settings import PredictSettings
from EMG_DATA_LOADER import read_emg, split_windows
from emg_gpt2.base.log import track
from emg_gpt2.live.decisions import probabilities
from emg_gpt2.model.build import build_model
from emg_gpt2.model.config import start_words
from emg_gpt2.model.normalise import measure_reference
from emg_gpt2.training.new_model import new_config
from emg_gpt2.windows.reading import load_windows

TEXT_PREDICTIONS = 10  # each takes about as long as a hundred of this project's
FEWEST_FOR_P99 = 100  # predictions
FEWEST_BATCHES = 5


class Prediction:
    """This project's model, untrained, and windows of the test part."""

    def __init__(self, settings: PredictSettings):
        windows = load_windows(settings)
        rows = np.resize(split_windows(windows, settings).test, max(settings.BATCH_SIZES))
        emg = read_emg(windows, rows)  # (n, T, C) in counts
        config, began = new_config(windows, settings), now()
        model = build_model(config, settings.MODEL_NAME, settings.PRETRAINED, settings.BLOCKS)
        self.start_s = now() - began
        model.set_reference(measure_reference(emg))
        self.model, self.precision, self.emg = model.to(PartialState().device).eval(), settings.PRECISION, emg.numpy()
        self.note = windows.metadata["note"]

    def seconds(self, batch_size: int, count: int) -> list[float]:
        """Of each of `count` predictions of a batch, after some that warm up."""
        warm_up = 1 + count // 10
        return [self._predict(number, batch_size) for number in range(warm_up + count)][warm_up:]

    def _predict(self, number: int, batch_size: int) -> float:
        emg = np.take(self.emg, np.arange(number, number + batch_size), axis=0, mode="wrap")
        began = now()
        probabilities(self.model, emg, precision=self.precision)
        return now() - began

    def described(self) -> dict:
        config = self.model.config
        facts = {"blocks": config.shape.num_hidden_layers, "weights": config.weights, "data_note": self.note}
        facts |= {"parameters": self.model.num_parameters(), "start_s": self.start_s}
        return facts | {"peak_mb": peak_mb()}


def measure(settings: PredictSettings, console: Console) -> dict:
    """Every backbone, precision and batch size, and the original's way."""
    settings, described = prepare(settings, console)
    backbones = [{"BLOCKS": blocks} for blocks in settings.BLOCKS_TO_TRY] + list(settings.beside.values())
    rows, ways = [], list(product(backbones, dict.fromkeys([settings.PRECISION, "fp32"])))
    for changes, precision in track(ways, "models"):
        rows += predict_batches(settings.model_copy(update=changes | {"PRECISION": precision}), console)
    text = predict_text(settings.model_copy(update={"BLOCKS": settings.BLOCKS_TO_TRY[0]}), console)
    text["ratio"] = text["median_ms"] / rows[0]["median_ms"]
    print_table(rows, text, console)
    return {"predict": described | {"rows": rows, "text": text}}


def predict_batches(settings: PredictSettings, console: Console) -> list[dict]:
    """A row per batch size, from small to large, so that the peak of memory is that of the batch size."""
    name, rows = f"{settings.MODEL_NAME}, {settings.BLOCKS} blocks, {settings.PRECISION}", []
    with Process(name, Prediction, settings) as process:
        for size in sorted({1, *settings.BATCH_SIZES}):
            count = max(FEWEST_BATCHES, settings.PREDICTIONS // size)
            console.print(f"{name}, batch size {size}: {count} predictions", markup=False)
            timed = figures_of(process.ask("seconds", size, count), size)
            rows.append(
                {"model": settings.MODEL_NAME, "precision": settings.PRECISION, **timed, **process.ask("described")}
            )
    return rows


def predict_text(settings: PredictSettings, console: Console) -> dict:
    """The original's way, one window at a time."""
    count = min(TEXT_PREDICTIONS, settings.PREDICTIONS)
    console.print(f"numbers as text, batch size 1: {count} predictions", markup=False)
    with Process("numbers as text", TextPrediction, settings) as process:
        timed = figures_of(process.ask("seconds", 1, count), 1)
        return {"precision": settings.PRECISION, **timed, **process.ask("described")}


def figures_of(seconds: list[float], batch_size: int) -> dict:
    """Figures from the seconds that each prediction of a batch took."""
    enough = len(seconds) >= FEWEST_FOR_P99
    return {
        "batch_size": batch_size,
        "predictions": len(seconds),
        "median_ms": 1000 * median(seconds),
        "p99_ms": 1000 * float(np.quantile(seconds, 0.99)) if enough else None,
        "windows_per_s": batch_size / median(seconds),
    }


def print_table(rows: list[dict], text: dict, console: Console) -> None:
    headings = ("blocks", "parameters", "start, s", "batch size", "median, ms", "p99, ms", "windows/s", "MB")
    table = Table("", *headings, box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in [*rows, text]:
        name = f"numbers as text, {row['precision']}" if row is text else f"{row['model']}, {row['precision']}"
        p99 = "–" if row["p99_ms"] is None else f"{row['p99_ms']:.2f}"
        peak = "–" if row["peak_mb"] is None else f"{row['peak_mb']:.0f}"
        times = [f"{row['median_ms']:.2f}", p99, f"{row['windows_per_s']:.4g}", peak]
        about = ["–", "–"] if row is text else [f"{row['parameters']:,}", f"{row['start_s']:.2f}"]
        table.add_row(name, str(row["blocks"]), *about, str(row["batch_size"]), *times)
    print_wide(table, console)
    console.print(
        "start: making the model, with its weights read; times: from samples to probabilities; "
        f"{start_words(rows[0]['weights'])}; as text (by {text['tokenizer']}) one window takes {text['ratio']:.3g} × "
        "as long as in the first row",
        *filter(None, [rows[0]["data_note"]]),
        sep="\n",
        markup=False,
        soft_wrap=True,
    )
