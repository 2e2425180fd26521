"""Where a model computes: device, precision, memory, and the processes that train together."""

import ctypes
import os
import sys
import time
from collections.abc import Callable
from functools import cache, wraps
from typing import TypeVar

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list, reduce

from emg_gpt2.settings import Settings

WORTHWHILE = 1.3  # bfloat16 is taken where its products are at least this much faster
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h
Shared = TypeVar("Shared")


def make_accelerator(settings: Settings) -> Accelerator:
    """Accelerate's handle on device, precision and processes, as PRECISION and DETERMINISTIC say."""
    precision, _ = choose_precision(settings.PRECISION)
    accelerator = Accelerator(mixed_precision="bf16" if precision == "bf16" else "no")
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    if settings.DETERMINISTIC:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    return accelerator


def device_line(settings: Settings) -> str:
    """Device, processes and precision, for the log."""
    state, (precision, reason) = PartialState(), choose_precision(settings.PRECISION)
    together = f", {state.num_processes} processes" if state.num_processes > 1 else ""
    return f"{state.device}{together}, {precision} ({reason})"


# ---- precision --------------------------------------------------------------------------------------------------


@cache  # one answer per process: the measurement is noisy
def choose_precision(wanted: str) -> tuple[str, str]:
    """`fp32` or `bf16`, and the reason; `auto` takes the faster one on this machine. The same on every process."""
    return of_main_process(_choose_precision(wanted))


def _choose_precision(wanted: str) -> tuple[str, str]:
    device = PartialState().device.type
    if wanted != "auto":
        return wanted, "as set"
    if device == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("bf16", "the GPU computes it") if native else ("fp32", "the GPU lacks bfloat16")
    if device != "cpu":
        return "fp32", f"bfloat16 was not tried on {device}"
    return faster_precision(*map(_product_seconds, (torch.float32, torch.bfloat16)))


def faster_precision(single: float, half: float) -> tuple[str, str]:
    """The precision to take on a CPU, and the reason, from the seconds of a product in float32 and in bfloat16."""
    if single > WORTHWHILE * half:
        return "bf16", f"bfloat16 products are {single / half:.1f} times as fast here"
    how = f"{half / single:.1f} times as slow" if half > 1.05 * single else "hardly faster"
    return "fp32", f"bfloat16 products are {how} here"


def _product_seconds(dtype: torch.dtype) -> float:
    a, b = torch.ones(512, 768, dtype=dtype), torch.ones(768, 3072, dtype=dtype)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - start)
    return min(times)


# ---- processes that train together ------------------------------------------------------------------------------


def join_processes() -> PartialState:
    """Join the processes that torchrun or accelerate started together; returns this process's place among them.

    Call it first: where these processes have no GPU, accelerate has to be told so.
    """
    together = int(os.environ.get("WORLD_SIZE", 1)) > 1
    return PartialState(cpu=together and not torch.cuda.is_available())


def is_main_process() -> bool:
    """Whether this process writes: the only one, or the first of several."""
    return PartialState().is_main_process


def of_main_process(value: Shared) -> Shared:
    """The main process's `value`, on every process."""
    if PartialState().num_processes == 1:
        return value
    values = [value]
    broadcast_object_list(values)
    return values[0]


def wait_for_everyone() -> None:
    """Return when every process has called this."""
    PartialState().wait_for_everyone()


def own_share(rows: np.ndarray) -> np.ndarray:
    """The part of a batch that this process computes; at least one window, which counts only if `has_share`."""
    state = PartialState()
    share = np.array_split(rows, state.num_processes)[state.process_index]
    return share if len(share) else rows[:1]


def has_share(rows: np.ndarray) -> bool:
    """Whether the batch has a window for this process."""
    return PartialState().process_index < len(rows)


def on_any_process(mine: bool) -> bool:
    """Whether `mine` is true on any process."""
    return bool(sum_over_processes(float(mine))[0] > 0)


def sum_over_processes(*values: float) -> tuple[float, ...]:
    """The sum of each value over all processes."""
    state = PartialState()
    if state.num_processes == 1:
        return values
    return tuple(reduce(torch.tensor(values, dtype=torch.float64, device=state.device), "sum").tolist())


# ---- memory -----------------------------------------------------------------------------------------------------


def keep_freed_memory() -> None:
    """Keep freed memory in the process (glibc only).

    The system clears every page that it hands out anew, which took a fifth of the time of a training step.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)


def with_memory_errors(function: Callable) -> Callable:
    """Raise MemoryError where torch has another error for a full memory, on a CPU or a GPU."""

    @wraps(function)
    def wrapper(*given, **named):
        try:
            return function(*given, **named)
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
                raise MemoryError(str(error)) from None
            raise

    return wrapper
