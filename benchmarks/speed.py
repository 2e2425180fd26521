"""How fast the model trains and predicts on this machine, and how fast other ways do: `python -m tools.benchmark`.

Rows that are compared take turns, round after round, because a machine is not always as fast.
"""

import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Annotated, NamedTuple

import numpy as np
from accelerate import PartialState
from pydantic import Field
from pydantic_settings import NoDecode
from rich.console import Console
from rich.table import Table

from benchmarks.cost import print_wide
from benchmarks.measure import NoMemoryError, Process, SpeedSettings, Training, facts_of, now, peak_mb, rows_of_steps
from benchmarks.rivals import TextPrediction, TextTraining, TransformersTraining
from EMG_DATA_LOADER import read_emg, split_windows
from emg_gpt2.base.errors import EMGError
from emg_gpt2.live.decisions import probabilities
from emg_gpt2.model.build import build_model
from emg_gpt2.model.normalise import measure_reference
from emg_gpt2.training.device import choose_precision
from emg_gpt2.training.trainer import CHECKPOINT_SHARE, Trainer
from emg_gpt2.windows.reading import load_windows
from EMG_utils import describe_model, new_model, session_references, time_to_go

FEW_TRAINED = -3  # NUM_LAYERS of the row that shows what freezing saves
TEXT_PREDICTIONS = 10  # each takes about as long as a hundred of this project's
FEWEST_FOR_P99 = 100  # predictions
FEWEST_BATCHES = 5
BUSY = 1.5  # times that the matrix rate of an idle machine hardly varies by


class TrainSettings(SpeedSettings):
    """Measure how fast the model trains, beside transformers.Trainer and the original project's way: windows/s,
    share of the time waiting for data and in checkpoints, share of the machine's matrix-multiply rate, memory."""

    STEPS: int = Field(4, ge=1)
    """Steps of an epoch that is measured; x ≥ 1."""

    ROUNDS: int = Field(3, ge=1)
    """Epochs of each row that count, after one that warms up; x ≥ 1."""

    BATCH_SIZES: Annotated[list[int], NoDecode] = [64, 256, 512]
    """Numbers of windows per step to try, each x ≥ 1; the other comparisons are made at BATCH_SIZE."""


class PredictSettings(SpeedSettings):
    """Measure how fast the model predicts: time of one window from samples to probabilities, windows/s by batch size,
    and the same of the original project's way."""

    PREDICTIONS: int = Field(1000, ge=1)
    """Windows to predict at every batch size, in at least five batches after some that warm up; x ≥ 1."""

    BATCH_SIZES: Annotated[list[int], NoDecode] = [1, 8, 64, 256]
    """Windows per prediction besides a single one, each x ≥ 1."""

    BLOCKS_TO_TRY: Annotated[list[int], NoDecode] = [12, 4]
    """Values of BLOCKS to try, each x ≥ 1; the original's way has as many as the first."""


# ---- train ----------------------------------------------------------------------------------------------------


class ThisTraining(Training):
    """This project's Trainer on STEPS batches; it writes a checkpoint after every epoch where RUN_DIR is set."""

    def __init__(self, settings: TrainSettings):
        windows = load_windows(settings)
        split = split_windows(windows, settings)
        references = session_references(windows, split, settings)
        model = new_model(windows, split, references, settings)
        rows = rows_of_steps(split, settings.STEPS * settings.BATCH_SIZE, settings.SEED)
        steps = replace(split, train=rows, validation=rows[:0])
        described = {"weights": model.config.weights, "data_note": windows.metadata["note"]}
        self.facts = facts_of(windows, split, settings) | described
        self.precision, self.run, self.epochs = settings.PRECISION, settings.RUN_DIR, 0
        self.trainer = Trainer(model, windows, steps, references, settings, settings.ROUNDS + 1)

    def epoch(self) -> dict:
        """The next one; `checkpoint` is what one took on average so far."""
        waited, self.epochs = self.trainer.spent["data"], self.epochs + 1
        history = self.trainer.fit(Console(quiet=True), stop_after=self.epochs)
        if self.run:
            self.trainer.checkpoint(self.run)
        checkpoint = self.trainer.spent["checkpoints"] / max(1, self.trainer.checkpoints)
        waited = self.trainer.spent["data"] - waited
        return {"seconds": history[-1]["seconds"], "data": waited, "checkpoint": checkpoint}


class Row(NamedTuple):
    """What is measured, in words, and how: a Training and its settings."""

    name: str
    way: type[Training]
    settings: TrainSettings


class Comparison(NamedTuple):
    """Rows that take turns; the ratio is that of the first one's windows/s to the second one's."""

    title: str
    rows: list[Row]


def train(settings: TrainSettings, console: Console) -> dict:
    """Speed of training: this project beside transformers.Trainer and the original's way."""
    settings, described = prepare(settings, console)
    compared, left_out = [], []
    with tempfile.TemporaryDirectory() as folder:
        planned, began = list(comparisons(settings, Path(folder))), time.monotonic()
        for number, comparison in enumerate(planned):
            left = time_to_go(time.monotonic() - began, number, len(planned) - number)
            console.print(f"comparison {number + 1} of {len(planned)}{left}", markup=False)
            try:
                compared.append(compare(comparison, console))
            except NoMemoryError as error:  # the others may still be measured
                console.print(f"left out: {error}", markup=False, soft_wrap=True)
                left_out.append(str(error))
    if not compared:
        raise EMGError(left_out[0])
    print_training(compared, console)
    return described | {"comparisons": compared, "left_out": left_out}


def prepare(settings: SpeedSettings, console: Console) -> tuple[SpeedSettings, dict]:
    """The settings that every process is given, and what the figures are of."""
    precision, reason = choose_precision(settings.PRECISION)
    given = f"{settings.MODEL_NAME}, {settings.DATA_LOCATION}; {precision} ({reason})"
    console.print(given, markup=False, soft_wrap=True)
    described = {"model": settings.MODEL_NAME, "data": str(settings.DATA_LOCATION), "precision": precision}
    common = {"PRECISION": precision, "RUN_DIR": None, "BALANCE": "none"}  # a few windows may lack a class
    return settings.model_copy(update=common), described


def comparisons(settings: TrainSettings, folder: Path) -> Iterator[Comparison]:
    """Everything that is measured, in order; `folder` is for what is written meanwhile."""

    def ours(name: str = "this project", **changes) -> Row:
        return Row(name, ThisTraining, settings.model_copy(update=changes))

    def rival(name: str, way: type[Training], **changes) -> Row:
        return Row(name, way, settings.model_copy(update=changes | {"RUN_DIR": folder / "rival"}))

    for size in settings.BATCH_SIZES:
        other = rival("transformers.Trainer", TransformersTraining, BATCH_SIZE=size)
        yield Comparison(f"batch size {size}", [ours(BATCH_SIZE=size), other])
    size, trained = f"batch size {settings.BATCH_SIZE}", settings.NUM_LAYERS
    few = ours(f"NUM_LAYERS = {FEW_TRAINED}", NUM_LAYERS=FEW_TRAINED)
    yield Comparison(f"frozen blocks, {size}", [few, ours(f"NUM_LAYERS = {trained}")])
    once = ours(f"NUM_LAYERS = {FEW_TRAINED}, FREEZE", NUM_LAYERS=FEW_TRAINED, FREEZE=True)
    yield Comparison(f"computed once, {size}", [once, ours(f"NUM_LAYERS = {trained}")])
    yield Comparison(f"mapped file, {size}", [ours("windows in a mapped file", MEMORY_GB=0), ours("windows in memory")])
    yield Comparison(f"checkpoints, {size}", [ours("with a run folder", RUN_DIR=folder / "run")])
    yield Comparison(f"numbers as text, {size}", [ours(), rival("text, batch size 4", TextTraining)])


def compare(comparison: Comparison, console: Console) -> dict:
    """Measure the rows in turn, each in a process of its own."""
    title, rows = comparison
    settings, measured = rows[0].settings, [[] for _ in rows]
    with ExitStack() as stack:
        processes = [stack.enter_context(Process(f"{title}, {row.name}", row.way, row.settings)) for row in rows]
        for number in range(settings.ROUNDS + 1):
            turn = f"round {number}/{settings.ROUNDS}" if number else "warming up"
            console.print(f"{title}: {settings.STEPS} steps, {turn}", markup=False)
            for process, epochs in zip(processes, measured, strict=True):
                epochs.append(process.ask("measured_epoch"))
        described = [process.ask("described") for process in processes]
    results = [
        {"name": row.name} | facts | summarise(epochs[1:], facts)
        for row, epochs, facts in zip(rows, measured, described, strict=True)
    ]
    return {"title": title, "ratio": ratio_of(results), "rows": results}


def ratio_of(results: list[dict]) -> float | None:
    """Windows/s of the first row over those of the second; None for a row alone."""
    return results[0]["windows_per_s"] / results[1]["windows_per_s"] if len(results) > 1 else None


def summarise(epochs: list[dict], facts: dict) -> dict:
    """Figures of a row from its measured epochs; `epoch_s` is a whole epoch of the training part at that rate."""
    seconds = [epoch["seconds"] for epoch in epochs]
    products = [rate for epoch in epochs for rate in epoch["matrix_flops_per_s"]]
    rate = facts["windows"] / median(seconds)
    epoch_s = facts["training_windows"] / rate
    return {
        "seconds": seconds,
        "windows_per_s": rate,
        "tokens_per_s": rate * facts["tokens_per_window"],
        "step_s": facts["batch_size"] / rate,
        "epoch_s": epoch_s,
        "data_share": sum(epoch["data"] for epoch in epochs) / sum(seconds) if "data" in epochs[0] else None,
        "checkpoint_s": epochs[-1].get("checkpoint") or None,
        "flops_per_s": rate * facts["flops_per_window"],
        "matrix_flops_per_s": median(products),
        "matrix_flops_per_s_range": [min(products), max(products)],
        "matrix_share": rate * facts["flops_per_window"] / median(products),
    }


def print_training(compared: list[dict], console: Console) -> None:
    headings = ("windows/s", "tokens/s", "epoch, s", "data", "saving, s", "GFLOP/s", "of matrix", "MB", "ratio")
    table = Table("", *headings, box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for comparison in compared:
        table.add_row(comparison["title"], style="bold")
        for number, row in enumerate(comparison["rows"]):
            ratio = comparison["ratio"] if number == 0 else None
            table.add_row(f"  {row['name']}", *training_cells(row), "" if ratio is None else f"{ratio:.3g} ×")
    print_wide(table, console)
    console.print(
        "epoch: the whole training part at this rate; data: waiting for it; saving: one checkpoint "
        f"(they take {CHECKPOINT_SHARE:.0%} of the time at the most); "
        "of matrix: FLOP/s over those of a square product; ratio: windows/s of the first row over the second's",
        *describe_rows(compared),
        sep="\n",
        markup=False,
        soft_wrap=True,
    )


def training_cells(row: dict) -> list[str]:
    return [
        f"{row['windows_per_s']:.4g}",
        f"{row['tokens_per_s']:.0f}",
        f"{row['epoch_s']:.4g}",
        "–" if row["data_share"] is None else f"{row['data_share']:.1%}",
        "–" if row["checkpoint_s"] is None else f"{row['checkpoint_s']:.3f}",
        f"{row['flops_per_s'] / 1e9:.1f}",
        f"{row['matrix_share']:.1%}",
        "–" if row["peak_mb"] is None else f"{row['peak_mb']:.0f}",
    ]


def describe_rows(compared: list[dict]) -> list[str]:
    """What the table leaves out, in sentences."""
    rows = [row for comparison in compared for row in comparison["rows"]]
    low, high = zip(*(row["matrix_flops_per_s_range"] for row in rows), strict=True)
    busy = "; the machine was busy with something else: repeat" if min(low) * BUSY < max(high) else ""
    first, text = rows[0], [row for row in rows if "tokenizer" in row]
    return [
        f"{first['blocks']} blocks, {first['weights']} weights, {first['tokens_per_window']} tokens a window",
        f"square products: {min(low) / 1e9:.0f} to {max(high) / 1e9:.0f} GFLOP/s{busy}",
        *(f"as text: {row['tokens_per_window']} tokens a window, by {row['tokenizer']}" for row in text),
        *filter(None, [first["data_note"]]),
    ]


# ---- predict --------------------------------------------------------------------------------------------------


class Prediction:
    """This project's model, untrained, and windows of the test part."""

    def __init__(self, settings: PredictSettings):
        windows = load_windows(settings)
        rows = np.resize(split_windows(windows, settings).test, max(settings.BATCH_SIZES))
        emg = read_emg(windows, rows)  # (n, T, C) in counts
        model = build_model(
            describe_model(windows, settings), settings.MODEL_NAME, settings.PRETRAINED, settings.BLOCKS
        )
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
        facts = {"blocks": config.backbone["n_layer"], "weights": config.weights, "data_note": self.note}
        return facts | {"peak_mb": peak_mb()}


def predict(settings: PredictSettings, console: Console) -> dict:
    """Speed of prediction: one window, and many at once, beside the original's way."""
    settings, described = prepare(settings, console)
    rows = []
    for blocks in settings.BLOCKS_TO_TRY:
        for precision in dict.fromkeys([settings.PRECISION, "fp32"]):
            changes = {"BLOCKS": blocks, "PRECISION": precision}
            rows += predict_batches(settings.model_copy(update=changes), console)
    text = predict_text(settings.model_copy(update={"BLOCKS": settings.BLOCKS_TO_TRY[0]}), console)
    text["ratio"] = text["median_ms"] / rows[0]["median_ms"]
    print_prediction(rows, text, console)
    return described | {"rows": rows, "text": text}


def predict_batches(settings: PredictSettings, console: Console) -> list[dict]:
    """A row per batch size, from small to large, so that the peak of memory is that of the batch size."""
    name, rows = f"{settings.BLOCKS} blocks, {settings.PRECISION}", []
    with Process(name, Prediction, settings) as process:
        for size in sorted({1, *settings.BATCH_SIZES}):
            count = max(FEWEST_BATCHES, settings.PREDICTIONS // size)
            console.print(f"{name}, batch size {size}: {count} predictions", markup=False)
            timed = describe_times(process.ask("seconds", size, count), size)
            rows.append({"precision": settings.PRECISION, **timed, **process.ask("described")})
    return rows


def predict_text(settings: PredictSettings, console: Console) -> dict:
    """The original's way, one window at a time."""
    count = min(TEXT_PREDICTIONS, settings.PREDICTIONS)
    console.print(f"numbers as text, batch size 1: {count} predictions", markup=False)
    with Process("numbers as text", TextPrediction, settings) as process:
        timed = describe_times(process.ask("seconds", 1, count), 1)
        return {"precision": settings.PRECISION, **timed, **process.ask("described")}


def describe_times(seconds: list[float], batch_size: int) -> dict:
    """Figures of the times that predictions of one batch took."""
    enough = len(seconds) >= FEWEST_FOR_P99
    return {
        "batch_size": batch_size,
        "predictions": len(seconds),
        "median_ms": 1000 * median(seconds),
        "p99_ms": 1000 * float(np.quantile(seconds, 0.99)) if enough else None,
        "windows_per_s": batch_size / median(seconds),
    }


def print_prediction(rows: list[dict], text: dict, console: Console) -> None:
    table = Table("", "blocks", "batch size", "median, ms", "p99, ms", "windows/s", "MB", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in [*rows, text]:
        name = f"numbers as text, {row['precision']}" if row is text else f"this project, {row['precision']}"
        p99 = "–" if row["p99_ms"] is None else f"{row['p99_ms']:.2f}"
        peak = "–" if row["peak_mb"] is None else f"{row['peak_mb']:.0f}"
        times = [f"{row['median_ms']:.2f}", p99, f"{row['windows_per_s']:.4g}", peak]
        table.add_row(name, str(row["blocks"]), str(row["batch_size"]), *times)
    print_wide(table, console)
    console.print(
        f"from samples to probabilities; {rows[0]['weights']} weights; as text (by {text['tokenizer']}) one window "
        f"takes {text['ratio']:.3g} × as long as in the first row",
        *filter(None, [rows[0]["data_note"]]),
        sep="\n",
        markup=False,
        soft_wrap=True,
    )
