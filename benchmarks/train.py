"""How fast the model trains on this machine, beside transformers.Trainer and the original project's way.

Rows that are compared take turns, round after round, because a machine is not always equally fast.
"""

import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from benchmarks.measure import NoMemoryError, Process, Training, facts_of, prepare, print_wide, rows_of_steps
from benchmarks.rivals import TextTraining, TransformersTraining
from benchmarks.settings import TrainSettings
from emg_gpt2.base.errors import EMGError
from emg_gpt2.base.log import progress, time_to_go, track
from emg_gpt2.model.config import start_words
from emg_gpt2.training.checkpoint import CHECKPOINT_SHARE
from emg_gpt2.training.new_model import new_model
from emg_gpt2.training.task import load_task
from emg_gpt2.training.trainer import Trainer
from EMG_utils import train_epoch

FEW_TRAINED = -3  # NUM_LAYERS of the row that shows what freezing saves
BUSY = 1.5  # times that the matrix rate of an idle machine hardly varies by


class ThisTraining(Training):
    """This project's training loop on STEPS batches; with RUN_DIR it writes a checkpoint after every epoch."""

    def __init__(self, settings: TrainSettings):
        task = load_task(settings)
        model = new_model(task, settings)
        rows = rows_of_steps(task.split, settings.STEPS * settings.BATCH_SIZE, settings.SEED)
        steps = replace(task, split=replace(task.split, train=rows, validation=rows[:0]))
        note = {"weights": model.config.weights, "data_note": task.windows.metadata["note"]}
        self.precision, self.facts = settings.PRECISION, facts_of(task, settings) | note
        if settings.RUN_DIR:
            settings.RUN_DIR.mkdir(exist_ok=True)
        self.trainer = Trainer(model, steps, settings, settings.ROUNDS + 1, settings.RUN_DIR)

    def epoch(self) -> dict:
        """Train the next epoch; `checkpoint` is what one took on average so far."""
        trainer, waited = self.trainer, self.trainer.spent["data"]
        with progress() as bar:
            train_epoch(trainer, bar)
        row = trainer.end_epoch({})
        checkpoints = trainer.checkpoints
        if trainer.run:
            checkpoints.write(trainer.history, trainer.sums, ended=False)
        average = checkpoints.seconds / max(1, checkpoints.count)
        return {"seconds": row["seconds"], "data": trainer.spent["data"] - waited, "checkpoint": average}


class Row(NamedTuple):
    """What is measured, in words, and how: a Training and its settings."""

    name: str
    way: type[Training]
    settings: TrainSettings


class Comparison(NamedTuple):
    """Rows that take turns; the ratio is that of the first one's windows/s to the second one's."""

    title: str
    rows: list[Row]


def measure(settings: TrainSettings, console: Console) -> dict:
    """All comparisons; those that take more memory than there is are left out."""
    settings, described = prepare(settings, console)
    compared, left_out = [], []
    with tempfile.TemporaryDirectory() as folder:
        planned, began = list(comparisons(settings, Path(folder))), time.monotonic()
        for number, comparison in enumerate(track(planned, "comparisons")):
            left = time_to_go(time.monotonic() - began, number, len(planned) - number)
            console.print(f"comparison {number + 1} of {len(planned)}{left}", markup=False)
            try:
                compared.append(compare(comparison, console))
            except NoMemoryError as error:  # the others may still be measured
                console.print(f"left out: {error}", markup=False, soft_wrap=True)
                left_out.append(str(error))
    if not compared:
        raise EMGError(left_out[0])
    print_table(compared, console)
    return {"train": described | {"comparisons": compared, "left_out": left_out}}


def comparisons(settings: TrainSettings, folder: Path) -> Iterator[Comparison]:
    """Everything that is measured, in order; `folder` is for what is written meanwhile."""

    def ours(name: str = "this project", **changes) -> Row:
        return Row(name, ThisTraining, settings.model_copy(update=changes))

    def rival(name: str, way: type[Training], **changes) -> Row:
        return Row(name, way, settings.model_copy(update=changes | {"RUN_DIR": folder / "rival"}))

    for name, changes in settings.beside.items():
        this = ours(f"{settings.MODEL_NAME}:{settings.BLOCKS}")
        yield Comparison(f"backbones, batch size {settings.BATCH_SIZE}", [this, ours(name, **changes)])
    for size in settings.BATCH_SIZES:
        other = rival("transformers.Trainer", TransformersTraining, BATCH_SIZE=size)
        yield Comparison(f"batch size {size}", [ours(BATCH_SIZE=size), other])
    if settings.QUICK:
        return
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
        for number in track(range(settings.ROUNDS + 1), "rounds"):
            turn = f"round {number}/{settings.ROUNDS}" if number else "warming up"
            console.print(f"{title}: {settings.STEPS} steps, {turn}", markup=False)
            for process, epochs in zip(processes, measured, strict=True):
                epochs.append(process.ask("measured_epoch"))
        described = [process.ask("described") for process in processes]
    results = [
        {"name": row.name} | facts | figures_of(epochs[1:], facts)
        for row, epochs, facts in zip(rows, measured, described, strict=True)
    ]
    return {"title": title, "ratio": ratio_of(results), "rows": results}


def ratio_of(results: list[dict]) -> float | None:
    """Windows/s of the first row over those of the second; None for a row alone."""
    return results[0]["windows_per_s"] / results[1]["windows_per_s"] if len(results) > 1 else None


def figures_of(epochs: list[dict], facts: dict) -> dict:
    """Figures of a row from its measured epochs; epoch_s: of the whole training part at that rate."""
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


def print_table(compared: list[dict], console: Console) -> None:
    headings = (
        "parameters",
        "windows/s",
        "tokens/s",
        "epoch, s",
        "data",
        "saving, s",
        "GFLOP/s",
        "of matrix",
        "MB",
        "ratio",
    )
    table = Table("", *headings, box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for comparison in compared:
        table.add_row(comparison["title"], style="bold")
        for number, row in enumerate(comparison["rows"]):
            ratio = comparison["ratio"] if number == 0 else None
            table.add_row(f"  {row['name']}", *cells(row), "" if ratio is None else f"{ratio:.3g} ×")
    print_wide(table, console)
    console.print(
        "epoch: the whole training part at this rate; data: waiting for it; saving: one checkpoint "
        f"(they take {CHECKPOINT_SHARE:.0%} of the time at the most); "
        "of matrix: FLOP/s over those of a square product; ratio: windows/s of the first row over the second's",
        *remarks(compared),
        sep="\n",
        markup=False,
        soft_wrap=True,
    )


def cells(row: dict) -> list[str]:
    return [
        f"{row['parameters']:,}",
        f"{row['windows_per_s']:.4g}",
        f"{row['tokens_per_s']:.0f}",
        f"{row['epoch_s']:.4g}",
        "–" if row["data_share"] is None else f"{row['data_share']:.1%}",
        "–" if row["checkpoint_s"] is None else f"{row['checkpoint_s']:.3f}",
        f"{row['flops_per_s'] / 1e9:.1f}",
        f"{row['matrix_share']:.1%}",
        "–" if row["peak_mb"] is None else f"{row['peak_mb']:.0f}",
    ]


def remarks(compared: list[dict]) -> list[str]:
    """What the table does not show, in sentences."""
    rows = [row for comparison in compared for row in comparison["rows"]]
    low, high = zip(*(row["matrix_flops_per_s_range"] for row in rows), strict=True)
    busy = "; the machine was busy with something else: repeat" if min(low) * BUSY < max(high) else ""
    first, text = rows[0], [row for row in rows if "tokenizer" in row]
    return [
        f"{first['blocks']} blocks, {start_words(first['weights'])}, {first['tokens_per_window']} tokens a window",
        f"square products: {min(low) / 1e9:.0f} to {max(high) / 1e9:.0f} GFLOP/s{busy}",
        *(f"as text: {row['tokens_per_window']} tokens a window, by {row['tokenizer']}" for row in text),
        *filter(None, [first["data_note"]]),
    ]
