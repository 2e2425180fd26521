"""What the measurements share: recordings, tables, processes of their own, clocks, and what the machine can do."""

import multiprocessing
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from statistics import median

import numpy as np
import torch
from accelerate import PartialState
from rich.console import Console
from rich.table import Table
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F  # noqa: N812
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers.utils import logging as transformers_logging

from EMG_DATA_LOADER import Split
from emg_gpt2.base.errors import EMGError
from emg_gpt2.model.build import build_model
from emg_gpt2.model.model import EMGForSequenceClassification
from emg_gpt2.settings import AnySettings, Settings
from emg_gpt2.training.adapt import UpperModel, choose_trained, frozen_blocks
from emg_gpt2.training.device import choose_precision
from emg_gpt2.training.new_model import new_config
from emg_gpt2.training.task import Task
from emg_gpt2.windows.reading import WindowSet, open_windows

try:
    import resource
except ImportError:  # Windows does not say how much memory a process took
    resource = None

ROOT = Path(__file__).parents[1]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PRODUCTS = 9  # matrix products whose median counts
SHAPES_ONLY = FakeTensorMode(allow_non_fake_inputs=True)  # tensors without numbers: they take no time and no memory


class NoMemoryError(EMGError):
    """What was measured takes more memory than there is."""


def simulate(folder: Path, console: Console) -> Path:
    """Simulate a recording of putEMG's full size: 24 channels, 341 s."""
    console.print("simulating a full-size recording")
    what = ["--subjects", "03", "--sessions", "1", "--trajectories", "repeats_long"]
    command = [sys.executable, "-m", "emg_gpt2", "simulate", folder / "raw", *what]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return next((folder / "raw").iterdir())


def print_wide(table: Table, console: Console) -> None:
    Console(file=console.file, width=120).print(table)  # a narrow terminal breaks the lines, not the names


def prepare(settings: AnySettings, console: Console) -> tuple[AnySettings, dict]:
    """The settings that every process is given, and facts for the JSON. Raises EMGError where there are no windows."""
    open_windows(settings.DATA_LOCATION)
    precision, reason = choose_precision(settings.PRECISION)
    given = f"{settings.MODEL_NAME}, {settings.DATA_LOCATION}; {precision} ({reason})"
    console.print(given, markup=False, soft_wrap=True)
    described = {"model": settings.MODEL_NAME, "data": str(settings.DATA_LOCATION), "precision": precision}
    common = {"PRECISION": precision, "RUN_DIR": None, "BALANCE": "none"}  # a few windows may lack a class
    return settings.model_copy(update=common), described


# ---- a process for every row ----------------------------------------------------------------------------------


class Process:
    """An object that lives in a process of its own, so that its peak of memory is its own."""

    def __init__(self, name: str, make: type, *given):
        self.name = name
        context = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
        if sys.platform == "linux":
            context.set_forkserver_preload([make.__module__])  # torch is imported once for all of them
        self.pool = ProcessPoolExecutor(1, mp_context=context)
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # new processes inherit it: Ctrl-C is this one's
        self.made = self.pool.submit(_make, make, given)
        signal.signal(signal.SIGINT, handler)

    def ask(self, method: str, *given):
        """What the object's method returns or raises, but NoMemoryError where the memory did not suffice."""
        try:
            self.made.result()
            return self.pool.submit(_ask, method, given).result()
        except (BrokenProcessPool, MemoryError, torch.OutOfMemoryError):
            raise NoMemoryError(
                f"{self.name}: the memory is full, or the process was ended; free some, or lower the batch size"
            ) from None

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, error: type | None, *_) -> None:
        for child in multiprocessing.active_children() if error else []:
            child.terminate()  # what it is at may take long
        self.pool.shutdown()


def _make(make: type, given: tuple) -> None:
    global _made  # there is one per process
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    _made = make(*given)


def _ask(method: str, given: tuple):
    return getattr(_made, method)(*given)


# ---- training, in its process ---------------------------------------------------------------------------------


class Training:
    """Measured epochs. A subclass trains one in `epoch`, and says in `facts` what it trains."""

    precision: str
    facts: dict

    def epoch(self) -> dict:
        """`seconds`, those of it that went into `data`, and the seconds of a `checkpoint`, as far as they are known."""
        raise NotImplementedError

    def measured_epoch(self) -> dict:
        """`epoch`, and the FLOP/s of matrix products right before and after it."""
        before = matrix_rate(self.precision)
        return self.epoch() | {"matrix_flops_per_s": [before, matrix_rate(self.precision)]}

    def described(self) -> dict:
        return self.facts | {"peak_mb": peak_mb()}


def rows_of_steps(split: Split, count: int, seed: int) -> np.ndarray:
    """So many rows of the training part, drawn; where it has fewer, they come again."""
    return np.resize(np.random.default_rng(seed).permutation(split.train), count)


def facts_of(task: Task, settings: Settings) -> dict:
    """What a row of this project's model trains; FLOPs are counted from the model's shapes."""
    with SHAPES_ONLY:
        model = model_of_shapes(task.windows, settings).train()
    parameters = model.num_parameters()
    choose_trained(model, settings)  # LoRA's few numbers are real: peft cannot make others
    config = model.config
    tokens = sum(tokeniser.count(config) for tokeniser in model.tokenisers.values())
    emg = torch.zeros(1, *task.windows.emg.shape[1:])  # (1, T, C)
    hidden, linear = torch.zeros(1, tokens, config.width), torch.zeros(1, task.classes)
    upper = UpperModel(model, frozen_blocks(model, settings))
    return {
        "batch_size": settings.BATCH_SIZE,
        "parameters": parameters,
        "blocks": config.shape.num_hidden_layers,
        "trained_blocks": config.shape.num_hidden_layers - frozen_blocks(model, settings),
        "tokens_per_window": tokens,
        "flops_per_window": training_flops(lambda: upper(hidden, linear) if settings.FREEZE else model(emg).logits),
        "windows": settings.STEPS * settings.BATCH_SIZE,
        "training_windows": len(task.split.train),
    }


def model_of_shapes(windows: WindowSet, settings: Settings) -> EMGForSequenceClassification:
    """The model without its numbers; to be called with SHAPES_ONLY."""
    return build_model(new_config(windows, settings), settings.MODEL_NAME, "never", settings.BLOCKS)


def training_flops(forward: Callable[[], torch.Tensor]) -> int:
    """FLOPs of a forward and backward pass over one window, in matrix products and convolutions, 2 per multiply-add.

    forward: gives the logits (1, K) of a model without numbers. All P² products of attention are counted, masked ones
    too.
    """
    plain = sdpa_kernel(SDPBackend.MATH)  # the counter knows no other attention on a CPU
    with SHAPES_ONLY, plain, FlopCounterMode(display=False) as counter:
        F.cross_entropy(forward(), torch.zeros(1, dtype=torch.long)).backward()
    return counter.get_total_flops()


# ---- the machine ----------------------------------------------------------------------------------------------


def matrix_rate(precision: str) -> float:
    """FLOP/s of the product of two square matrices: the median of several."""
    device = PartialState().device
    size = 2048 if device.type == "cpu" else 8192  # smaller ones do not keep a GPU busy
    a, b = torch.randn(2, size, size, device=device).to(DTYPES[precision])
    seconds = []
    for _ in range(PRODUCTS + 1):  # the first one is slow
        began = now()
        a @ b
        seconds.append(now() - began)
    return 2 * size**3 / median(seconds[1:])


def now() -> float:
    """Seconds, when all work that was given to the device is done."""
    if PartialState().device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_mb() -> float | None:
    """Largest memory of this process so far: on a GPU what torch took there."""
    if PartialState().device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    unit = 1 if sys.platform == "darwin" else 1024  # bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6 if resource else None
