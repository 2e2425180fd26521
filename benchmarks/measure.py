"""What the measurements of speed share: settings, processes of their own, clocks, and what the machine can do."""

import multiprocessing
import signal
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from statistics import median
from typing import Literal

import numpy as np
import torch
from accelerate import PartialState
from pydantic import Field, field_validator
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from EMG_DATA_LOADER import Split
from emg_gpt2.base.errors import EMGError
from emg_gpt2.model.build import build_model
from emg_gpt2.model.model import Below, EMGForSequenceClassification
from emg_gpt2.settings import Settings
from emg_gpt2.windows.reading import WindowSet
from EMG_utils import describe_model

try:
    import resource
except ImportError:  # Windows does not say how much memory a process took
    resource = None

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PRODUCTS = 9  # matrix products whose median counts
SHAPES_ONLY = FakeTensorMode(allow_non_fake_inputs=True)  # tensors without numbers: they take no time and no memory


class NoMemoryError(EMGError):
    """What was measured takes more memory than there is."""


class SpeedSettings(Settings):
    BLOCKS: int = Field(12, ge=0)
    """Number of the backbone's blocks to keep, from the first; 0: no backbone (more than it has: all); x ≥ 0."""

    NUM_LAYERS: int = Field(-12, le=0)
    """−n trains the last n blocks, the others stay frozen but for their layer norms; 0 trains none; x ≤ 0."""

    PRETRAINED: Literal["auto", "require", "never"] = "never"
    """Language-model weights, as in ENV.py: random ones are as fast, and need no download."""

    @field_validator("BATCH_SIZES", "BLOCKS_TO_TRY", mode="before", check_fields=False)
    @classmethod
    def _split_numbers(cls, value):
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @field_validator("BATCH_SIZES", "BLOCKS_TO_TRY", check_fields=False)
    @classmethod
    def _are_different(cls, numbers):
        if not numbers or len(set(numbers)) < len(numbers) or min(numbers) < 1:
            raise ValueError("should be one number or more, each at least 1 and given once")
        return numbers


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


def facts_of(windows: WindowSet, split: Split, settings: Settings) -> dict:
    """What a row of this project's model trains; FLOPs are counted from the model's shapes."""
    with SHAPES_ONLY:
        model = model_of_shapes(windows, settings)
        model.train_last(-settings.NUM_LAYERS, settings.FREEZE)
    config, patches = model.config, model.config.window // model.config.patch
    tokens = sum(1 if kind == "covariance" else patches for kind in config.tokens)
    samples = {"emg": torch.zeros(1, *windows.emg.shape[1:])}  # (1, T, C)
    computed = {"below": Below(torch.zeros(1, tokens, config.backbone["n_embd"]), torch.zeros(1, 1))}
    return {
        "batch_size": settings.BATCH_SIZE,
        "blocks": config.backbone["n_layer"],
        "trained_blocks": min(-settings.NUM_LAYERS, config.backbone["n_layer"]),
        "tokens_per_window": tokens,
        "flops_per_window": training_flops(model, **computed if settings.FREEZE else samples),
        "windows": settings.STEPS * settings.BATCH_SIZE,
        "training_windows": len(split.train),
    }


def model_of_shapes(windows: WindowSet, settings: Settings) -> EMGForSequenceClassification:
    """The model without its numbers; to be called with SHAPES_ONLY."""
    return build_model(describe_model(windows, settings), settings.MODEL_NAME, "never", settings.BLOCKS)


def training_flops(model: PreTrainedModel, **window) -> int:
    """FLOPs of a forward and backward pass over one window, in matrix products and convolutions, 2 per multiply-add.

    All P² products of attention are counted, masked ones too. `model` has no numbers.
    """
    plain = sdpa_kernel(SDPBackend.MATH)  # the counter knows no other attention on a CPU
    with SHAPES_ONLY, plain, FlopCounterMode(display=False) as counter:
        model.train()(**window, labels=torch.zeros(1, dtype=torch.long)).loss.backward()
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
