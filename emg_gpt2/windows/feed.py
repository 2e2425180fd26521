"""Bring batches of windows to the device that computes with them."""

import mmap
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch

from emg_gpt2.windows.reading import WindowSet


class Batch(NamedTuple):
    """emg (B, T, C) float32 in the file's unit, targets (B,) class indices, rows (B,) of the windows."""

    emg: torch.Tensor
    targets: torch.Tensor
    rows: torch.Tensor


class Feed:
    """Brings windows to the device that computes with them.

    All of them lie on a GPU where they take at most half of its free memory. Else a batch is read, from memory or from
    a mapped file, and sent from page-locked memory while the one before it is computed.
    """

    def __init__(self, windows: WindowSet, device: torch.device):
        self.windows, self.scale, self.device = windows, windows.metadata["scale"], device
        base = getattr(windows.emg, "base", None)
        self.file = base if isinstance(base, mmap.mmap) else None
        if self.file and hasattr(mmap, "MADV_RANDOM"):
            self.file.madvise(mmap.MADV_RANDOM)  # else a window brings ten times its size from the disk
        self.there = None
        whole = device.type == "cuda" and isinstance(windows.emg, np.ndarray)  # others are made as they are read
        if whole and windows.emg.nbytes <= torch.cuda.mem_get_info(device)[0] / 2:
            self.there = torch.from_numpy(windows.emg).to(device)

    def __call__(self, parts: Iterable[np.ndarray]) -> Iterator[Batch]:
        """A batch for the rows of every part, read one or two batches ahead."""
        waiting = deque()
        with ThreadPoolExecutor(1) as reader:
            for rows in parts:
                waiting.append(reader.submit(self.read, rows))
                if len(waiting) > 2:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def read(self, rows: np.ndarray) -> Batch:
        if self.file and hasattr(mmap, "MADV_WILLNEED"):
            self._announce(rows)
        chosen, targets = (self._bring(torch.from_numpy(part)) for part in (rows, self.windows.targets[rows]))
        if self.device.type == "cpu":  # by numpy: torch would start threads that disturb those of the model
            emg = torch.from_numpy(self.windows.emg[rows].astype(np.float32) * np.float32(self.scale))
        elif self.there is None:
            emg = self._bring(torch.from_numpy(self.windows.emg[rows])).float() * self.scale
        else:
            emg = self.there[chosen].float() * self.scale
        return Batch(emg, targets, chosen)

    def _announce(self, rows: np.ndarray) -> None:
        """Let the system read all windows of a batch from the disk at once, not page by page."""
        size = self.windows.emg[0].nbytes
        for first in (rows * size).tolist():
            start = first // mmap.PAGESIZE * mmap.PAGESIZE
            self.file.madvise(mmap.MADV_WILLNEED, start, first + size - start)

    def _bring(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.device.type != "cuda":
            return tensor.to(self.device)
        return tensor.pin_memory().to(self.device, non_blocking=True)
