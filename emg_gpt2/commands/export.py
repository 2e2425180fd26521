"""Write a model as ONNX files that run without torch, in float32 and with an int8 backbone, and measure them.

    python -m tools.export RUN [--format onnx] [--out FOLDER]

RUN is a run's folder or a model's. Where the run's data are there, the files are held against the model on windows of
its test part, else on noise. A file whose logits differ from torch's by more than 1e-4 is not left behind.
Exit status: 0 done, 1 something that the user can put right (one sentence says what), 130 interrupted.
"""

import argparse
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers.utils import logging as transformers_logging

from EMG_DATA_LOADER import STATISTICS_WINDOWS, cut_rows, draw_rows, read_emg, split_windows
from emg_gpt2.base.command_line import Parser, with_status
from emg_gpt2.base.errors import EMGError
from emg_gpt2.base.files import new_files, write_json
from emg_gpt2.model.build import load_model
from emg_gpt2.model.model import EMGForSequenceClassification
from emg_gpt2.model.normalise import Reference
from emg_gpt2.results.run import is_split_of
from emg_gpt2.settings import Settings
from emg_gpt2.windows.reading import load_windows
from EMG_utils import EVALUATION_BATCH, session_references, summary

GROUP = "share"

TOLERANCE = 1e-4  # of logits
NOISE_WINDOWS = 256
SINGLE, BATCHES, BATCH = 200, 10, 64  # windows that are timed one by one, and batches
FIGURES = {  # of export.json → in words, and how it is written
    "accuracy": ("accuracy", ".3f"),
    "balanced_accuracy": ("balanced accuracy", ".3f"),
    "agreement": ("windows called as by torch", ".1%"),
    "max_logit_difference": ("largest difference of logits", ".0e"),
    "median_ms": ("one window, median (ms)", ".2f"),
    "p99_ms": ("one window, p99 (ms)", ".2f"),
    "windows_per_second": (f"windows/s, {BATCH} at a time", ".0f"),
    "megabytes": ("size (MB)", ".1f"),
}
NEEDED = ("onnx", "onnxruntime", "onnxscript")


class Sample(NamedTuple):
    """Windows to compare on: emg (n, T, C), a reference row for each, class indices (n,) or None, and what they are."""

    emg: torch.Tensor
    reference: Reference
    targets: np.ndarray | None
    description: str


def main(argv: list[str] | None = None) -> int:
    """Export what the command line names; returns the exit status."""
    transformers_logging.disable_progress_bar()
    work = lambda: export(parse(argv), Console(stderr=True, highlight=False))  # noqa: E731
    return with_status(
        "export",
        work,
    )


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line; raises EMGError for what is wrong with it."""
    parser = Parser(prog="python -m tools.export", description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder, or a model's")
    parser.add_argument("--format", choices=["onnx"], default="onnx", help="of the files (%(default)s)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where they go (RUN/onnx)")
    return parser.parse_args(argv)


def require_packages() -> None:
    if not all(importlib.util.find_spec(name) for name in NEEDED):
        raise EMGError(f"packages are missing; pip install {' '.join(NEEDED)}")


def export(args: argparse.Namespace, console: Console) -> None:
    """Write model.onnx, model.int8.onnx where there is a backbone, and export.json; raises EMGError."""
    require_packages()
    from emg_gpt2.study.onnx_model import write_int8, write_onnx

    run, out = args.run, args.out or args.run / "onnx"
    model = load_model(find_model(run)).float()
    sample = take_sample(run, model, console)
    out.mkdir(parents=True, exist_ok=True)
    with new_files(out) as folder:
        exact, small = folder / "model.onnx", folder / "model.int8.onnx"
        console.print("writing model.onnx")
        write_onnx(model, exact)
        console.print("writing model.int8.onnx")
        variants = {"onnx float32": exact} | ({"onnx int8": small} if write_int8(exact, small) else {})
        console.print(f"comparing and timing them on {sample.description}", soft_wrap=True)
        measured = compare(model, variants, sample)
        check(measured["variants"]["onnx float32"])
        write_json(folder / "export.json", measured)
    if small not in variants.values():
        (out / small.name).unlink(missing_ok=True)
        console.print("no int8 file: the model has no blocks, whose matrices it would hold")
    print_table(measured)
    console.print(f"{out}: {', '.join(path.name for path in variants.values())}, export.json", soft_wrap=True)


def find_model(run: Path) -> Path:
    """The model's folder; raises EMGError where there is none."""
    for folder in (run / "best_model", run):
        if (folder / "config.json").is_file():
            return folder
    raise EMGError(f"{run}: there is no model; name a folder under runs, or a best_model folder")


# ---- windows to compare on --------------------------------------------------------------------------------------


def take_sample(run: Path, model: EMGForSequenceClassification, console: Console) -> Sample:
    """Windows of the run's test part, drawn, where its data are as they were; else noise."""
    if not (run / "split.csv").is_file():
        return noise(model)
    try:
        settings = Settings.model_validate(json.loads((run / "env.json").read_text(encoding="utf-8")))
        return held_out(run, settings)
    except (EMGError, OSError, ValueError) as error:
        console.print(f"noise in place of the test part: {error}", markup=False, soft_wrap=True)
        return noise(model)


def held_out(run: Path, settings: Settings) -> Sample:
    """Up to STATISTICS_WINDOWS of the test part, each with its session's reference; raises EMGError."""
    windows = load_windows(settings)
    split = split_windows(windows, settings)
    if not is_split_of(run, windows, split):
        raise EMGError(f"{settings.DATA_LOCATION} holds other windows than the run's split.csv")
    references = session_references(windows, split.with_validation() if settings.REFIT else split, settings)
    rows = draw_rows(split.test, settings.SEED, STATISTICS_WINDOWS)
    words = f"{len(rows)} of the {len(split.test)} test windows of {settings.DATA_LOCATION.name}"
    return Sample(read_emg(windows, rows), references.of(torch.from_numpy(rows)), windows.targets[rows], words)


def noise(model: EMGForSequenceClassification) -> Sample:
    """Gaussian noise whose log covariances are spread as the training part's."""
    chance, config, channels = torch.Generator().manual_seed(0), model.config, len(model.config.channels)
    rows, columns = torch.triu_indices(channels, channels)
    logarithm = torch.empty(NOISE_WINDOWS, channels, channels)
    drawn = model.centre + model.spread * torch.randn(NOISE_WINDOWS, len(rows), generator=chance)
    logarithm[:, rows, columns] = logarithm[:, columns, rows] = drawn
    emg = torch.randn(NOISE_WINDOWS, config.window, channels, generator=chance) @ torch.matrix_exp(logarithm / 2)
    reference = Reference(*(tensor.repeat(NOISE_WINDOWS, 1) for tensor in model.reference))
    return Sample(emg * model.scale, reference, None, f"{NOISE_WINDOWS} windows of noise")


# ---- comparing --------------------------------------------------------------------------------------------------


def compare(model: EMGForSequenceClassification, variants: dict[str, Path], sample: Sample) -> dict:
    """Figures of the model in torch and of each file, on as many threads."""
    from emg_gpt2.study.onnx_model import open_session, run_session

    threads = torch.get_num_threads()
    ways = {"torch float32": (partial(run_torch, model), 4 * model.num_parameters())}
    for name, path in variants.items():
        ways[name] = partial(run_session, open_session(path, threads)), path.stat().st_size
    exact, figures = None, {}
    for name, (logits_of, size) in ways.items():
        logits = run_all(logits_of, sample)
        exact = logits if exact is None else exact
        figures[name] = accuracies(logits, sample.targets) | difference(logits, exact) | speed(logits_of, sample)
        figures[name]["megabytes"] = size / 1e6
    return {"windows": sample.description, "threads": threads, "cores": os.cpu_count(), "variants": figures}


@torch.no_grad()
def run_torch(model: EMGForSequenceClassification, emg: torch.Tensor, reference: Reference) -> np.ndarray:
    return model(emg=emg, reference=reference).logits.numpy()


def run_all(logits_of: Callable, sample: Sample) -> np.ndarray:
    """(n, K)"""
    parts = map(torch.from_numpy, cut_rows(np.arange(len(sample.emg)), EVALUATION_BATCH))
    return np.concatenate([logits_of(sample.emg[rows], sample.reference.of(rows)) for rows in parts])


def accuracies(logits: np.ndarray, targets: np.ndarray | None) -> dict:
    """Nothing where the true classes are not known."""
    if targets is None:
        return {}
    found = summary(targets, logits.argmax(1))
    return {name: found[name] for name in ("accuracy", "balanced_accuracy")}


def difference(logits: np.ndarray, exact: np.ndarray) -> dict:
    """agreement: share of windows that are called the same."""
    same = logits.argmax(1) == exact.argmax(1)
    return {"agreement": float(same.mean()), "max_logit_difference": float(np.abs(logits - exact).max())}


def speed(logits_of: Callable, sample: Sample) -> dict:
    """Milliseconds for one window, and windows per second in batches of BATCH."""
    alone = timed(logits_of, sample, 1, SINGLE)
    together = timed(logits_of, sample, BATCH, BATCHES)
    return {
        "median_ms": 1000 * float(np.median(alone)),
        "p99_ms": 1000 * float(np.quantile(alone, 0.99)),
        "windows_per_second": BATCH / float(np.median(together)),
    }


def timed(logits_of: Callable, sample: Sample, size: int, times: int) -> list[float]:
    """Seconds of so many calls, after some that are not counted."""
    rows = torch.arange(size) % len(sample.emg)
    emg, reference, seconds = sample.emg[rows], sample.reference.of(rows), []
    for _ in range(times + 3):
        began = time.perf_counter()
        logits_of(emg, reference)
        seconds.append(time.perf_counter() - began)
    return seconds[3:]


def check(figures: dict) -> None:
    """Raises EMGError where the float32 file is not the model."""
    found = figures["max_logit_difference"]
    if not found <= TOLERANCE:
        raise EMGError(
            f"the exported model's logits differ from torch's by up to {found:.1e}, more than {TOLERANCE:g}, so it was "
            "not kept; please report the model's config.json"
        )


def print_table(measured: dict) -> None:
    """A column for each way to run the model, a line for each figure."""
    table = Table(title=f"On {measured['windows']}, {measured['threads']} threads", title_justify="left")
    table.add_column("")
    for name in measured["variants"]:
        table.add_column(name, justify="right")
    for key, (words, form) in FIGURES.items():
        cells = [format(row[key], form) for row in measured["variants"].values() if key in row]
        if cells:
            table.add_row(words, *cells)
    Console(highlight=False).print(table)


if __name__ == "__main__":
    sys.exit(main())
