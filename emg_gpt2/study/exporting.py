"""Export a model: write its ONNX files, compare them with torch, and time all of them."""

import json
import logging
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from EMG_DATA_LOADER import EVALUATION_BATCH, STATISTICS_WINDOWS, cut_rows, draw_rows, read_emg
from emg_gpt2.base.errors import EMGError
from emg_gpt2.base.files import new_files, write_json
from emg_gpt2.base.log import track
from emg_gpt2.model.build import load_model
from emg_gpt2.model.model import EMGForSequenceClassification
from emg_gpt2.model.normalise import Reference
from emg_gpt2.results.run import is_split_of
from emg_gpt2.settings import Settings
from emg_gpt2.study.onnx_model import open_session, run_session, write_int8, write_onnx
from emg_gpt2.training.task import fitted_task, load_task
from EMG_utils import summary

logger = logging.getLogger(__name__)

TOLERANCE = 1e-4  # of logits
NOISE_WINDOWS = 256
SINGLE, BATCHES, BATCH = 200, 10, 64  # windows that are timed one by one; batches, and windows of a batch
UNTIMED = 3  # first calls
FIGURES = {  # of export.json → in words, and how it is written
    "accuracy": ("accuracy", ".3f"),
    "balanced_accuracy": ("balanced accuracy", ".3f"),
    "agreement": ("same class as torch", ".1%"),
    "max_logit_difference": ("largest difference of logits", ".0e"),
    "median_ms": ("one window, median (ms)", ".2f"),
    "p99_ms": ("one window, p99 (ms)", ".2f"),
    "windows_per_second": (f"windows/s, {BATCH} at a time", ".0f"),
    "megabytes": ("size (MB)", ".1f"),
}
LogitsOf = Callable[[torch.Tensor, Reference], np.ndarray]  # (B, T, C), one reference row per window → (B, K)


def export(run: Path, out: Path) -> None:
    """Write model.onnx, model.int8.onnx where there is a backbone, and export.json; raises EMGError."""
    model = load_model(find_model(run))
    if model.config.context:
        raise EMGError(f"{run}: a model with context cannot be exported yet; use it with predict and stream")
    sample = sample_of_run(run, model)
    out.mkdir(parents=True, exist_ok=True)
    with new_files(out) as folder:
        exact, small = folder / "model.onnx", folder / "model.int8.onnx"
        ways = [(exact, partial(write_onnx, model)), (small, partial(write_int8, exact))]
        for file, write in track(ways, "writing"):
            logger.info(f"writing {file.name}")
            write(file)
        variants = {"onnx float32": exact} | ({"onnx int8": small} if small.exists() else {})
        logger.info(f"comparing and timing them on {sample.description}")
        measured = measure(model, variants, sample)
        check_logits(measured["variants"]["onnx float32"])
        write_json(folder / "export.json", measured)
    if small not in variants.values():
        (out / small.name).unlink(missing_ok=True)  # of an earlier export
        logger.info("no int8 file: the model has no blocks, whose matrices it would hold")
    print_table(measured)
    logger.info(f"{out}: {', '.join(path.name for path in variants.values())}, export.json")


def find_model(run: Path) -> Path:
    """The model's folder in a run, or `run` itself; raises EMGError where neither holds a model."""
    for folder in (run / "best_model", run):
        if (folder / "config.json").is_file():
            return folder
    raise EMGError(f"{run}: there is no model; name a folder under runs, or a best_model folder")


# ---- windows to compare on --------------------------------------------------------------------------------------


class Sample(NamedTuple):
    """Windows to compare on: emg (n, T, C), a reference row for each, class indices (n,) or None, and a description."""

    emg: torch.Tensor
    reference: Reference
    targets: np.ndarray | None
    description: str


def sample_of_run(run: Path, model: EMGForSequenceClassification) -> Sample:
    """Windows drawn from the run's test part; noise where its data are missing or have changed."""
    if not (run / "split.csv").is_file():
        return sample_of_noise(model)
    try:
        settings = Settings.model_validate(json.loads((run / "env.json").read_text(encoding="utf-8")))
        return sample_of_test_part(run, settings)
    except (EMGError, OSError, ValueError) as error:
        logger.warning(f"noise in place of the test part: {error}")
        return sample_of_noise(model)


def sample_of_test_part(run: Path, settings: Settings) -> Sample:
    """Up to STATISTICS_WINDOWS of the test part, each with the reference of the run's test; raises EMGError."""
    task = load_task(settings)
    if not is_split_of(run, task.windows, task.split):
        raise EMGError(f"{settings.DATA_LOCATION} holds other windows than the run's split.csv")
    task = fitted_task(task, settings)
    rows = draw_rows(task.split.test, settings.SEED, STATISTICS_WINDOWS)
    description = f"{len(rows)} of the {len(task.split.test)} test windows of {settings.DATA_LOCATION.name}"
    description += " (transductive)" if settings.SCALE == "session" else ""
    reference = task.references.of(torch.from_numpy(rows))
    return Sample(read_emg(task.windows, rows), reference, task.windows.targets[rows], description)


def sample_of_noise(model: EMGForSequenceClassification) -> Sample:
    """Gaussian noise whose log covariances are spread as the training part's."""
    generator, config, channels = torch.Generator().manual_seed(0), model.config, len(model.config.channels)
    rows, columns = torch.triu_indices(channels, channels)
    logarithm = torch.empty(NOISE_WINDOWS, channels, channels)
    random = model.centre + model.spread * torch.randn(NOISE_WINDOWS, len(rows), generator=generator)
    logarithm[:, rows, columns] = logarithm[:, columns, rows] = random
    emg = torch.randn(NOISE_WINDOWS, config.window, channels, generator=generator) @ torch.matrix_exp(logarithm / 2)
    reference = Reference(*(tensor.repeat(NOISE_WINDOWS, 1) for tensor in model.reference))
    return Sample(emg * model.scale, reference, None, f"{NOISE_WINDOWS} windows of noise")


# ---- comparing and timing ---------------------------------------------------------------------------------------


def measure(model: EMGForSequenceClassification, variants: dict[str, Path], sample: Sample) -> dict:
    """The content of export.json: figures of the model in torch and of each file, on the same number of threads."""
    threads = torch.get_num_threads()
    ways = {"torch float32": (partial(run_torch, model), 4 * model.num_parameters())}
    for name, path in variants.items():
        ways[name] = partial(run_session, open_session(path, threads)), path.stat().st_size
    exact, figures = None, {}
    for name, (logits_of, size) in track(ways.items(), "comparing"):
        logits = run_all(logits_of, sample)
        exact = logits if exact is None else exact
        figures[name] = accuracies(logits, sample.targets) | differences(logits, exact) | speed(logits_of, sample)
        figures[name]["megabytes"] = size / 1e6
    return {"windows": sample.description, "threads": threads, "cores": os.cpu_count(), "variants": figures}


@torch.no_grad()
def run_torch(model: EMGForSequenceClassification, emg: torch.Tensor, reference: Reference) -> np.ndarray:
    """Logits (B, K) of windows (B, T, C)."""
    return model(emg=emg, reference=reference).logits.numpy()


def run_all(logits_of: LogitsOf, sample: Sample) -> np.ndarray:
    """Logits (n, K) of the sample."""
    parts = map(torch.from_numpy, cut_rows(np.arange(len(sample.emg)), EVALUATION_BATCH))
    return np.concatenate([logits_of(sample.emg[rows], sample.reference.of(rows)) for rows in parts])


def accuracies(logits: np.ndarray, targets: np.ndarray | None) -> dict:
    """Accuracy and balanced accuracy; empty where the true classes are not known."""
    if targets is None:
        return {}
    found = summary(targets, logits.argmax(1))
    return {name: found[name] for name in ("accuracy", "balanced_accuracy")}


def differences(logits: np.ndarray, exact: np.ndarray) -> dict:
    """Share of windows that get the same class, and the largest difference of logits."""
    same = logits.argmax(1) == exact.argmax(1)
    return {"agreement": float(same.mean()), "max_logit_difference": float(np.abs(logits - exact).max())}


def check_logits(figures: dict) -> None:
    """Raise EMGError where the float32 file's logits are not the model's."""
    found = figures["max_logit_difference"]
    if not found <= TOLERANCE:
        raise EMGError(
            f"the exported model's logits differ from torch's by up to {found:.1e}, more than {TOLERANCE:g}, so it was "
            "not kept; please report the model's config.json"
        )


def speed(logits_of: LogitsOf, sample: Sample) -> dict:
    """Milliseconds for one window, and windows per second in batches of BATCH."""
    alone = seconds_of_calls(logits_of, sample, 1, SINGLE)
    together = seconds_of_calls(logits_of, sample, BATCH, BATCHES)
    return {
        "median_ms": 1000 * float(np.median(alone)),
        "p99_ms": 1000 * float(np.quantile(alone, 0.99)),
        "windows_per_second": BATCH / float(np.median(together)),
    }


def seconds_of_calls(logits_of: LogitsOf, sample: Sample, size: int, times: int) -> list[float]:
    """Seconds of `times` calls on `size` windows, after UNTIMED calls."""
    rows = torch.arange(size) % len(sample.emg)
    emg, reference, seconds = sample.emg[rows], sample.reference.of(rows), []
    for _ in range(times + UNTIMED):
        began = time.perf_counter()
        logits_of(emg, reference)
        seconds.append(time.perf_counter() - began)
    return seconds[UNTIMED:]


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
