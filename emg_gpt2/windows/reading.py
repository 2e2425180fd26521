"""Read a windows file: all windows into memory or a mapped file, or some of them on demand."""

import os
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from emg_gpt2.base.errors import EMGError
from emg_gpt2.base.log import track
from emg_gpt2.settings import Settings
from emg_gpt2.windows.format import UnreadableError, open_file, read_samples, read_table


@dataclass(frozen=True)
class WindowSet:
    """All windows of a file.

    emg: (n, T, C) stored values, times `scale` in `unit`; table: one row per window (TRAJ_GT, subject, session,
    trajectory, recording, repetition, start); metadata: the file's own description of itself.
    """

    emg: np.ndarray
    table: pd.DataFrame
    metadata: dict

    @property
    def classes(self) -> list[int]:
        """Labels in the order of the model's class indices."""
        return sorted(int(label) for label in self.table["TRAJ_GT"].unique())

    @property
    def class_names(self) -> list[str]:
        return [self.metadata["class_names"][str(label)] for label in self.classes]

    @cached_property
    def targets(self) -> np.ndarray:
        """(n,) class indices."""
        return np.searchsorted(self.classes, self.table["TRAJ_GT"])

    @property
    def identity(self) -> pd.Series:
        """subject/session/recording of each window, what TRAIN_ON and TEST_ON match."""
        return self.table["subject"] + "/" + self.table["session"] + "/" + self.table["recording"]


def load_windows(settings: Settings) -> WindowSet:
    """Read `settings.DATA_LOCATION`, one row group at a time, into one array in memory or in a mapped file.

    Raises EMGError where there is no such file, or it is none that Preprocessing.py wrote.
    """
    path = settings.DATA_LOCATION
    with open_file(path) as (file, metadata):
        table = read_table(file, metadata)
        emg = _read_emg(file, metadata, path.parent, settings.MEMORY_GB)
    return WindowSet(emg, table.to_pandas(), metadata)


def open_windows(path: Path) -> WindowSet:
    """The same for a few windows of a file: their samples are read when `emg[rows]` asks for them. Raises EMGError."""
    with open_file(path) as (file, metadata):
        return WindowSet(StoredWindows(path), read_table(file, metadata).to_pandas(), metadata)


class StoredWindows:
    """`stored[rows]`: (len(rows), T, C) stored values, from those row groups of the file that hold them."""

    def __init__(self, path: Path):
        self.path = path

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        found = [None] * len(rows)
        with open_file(self.path) as (file, metadata):
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            groups = np.searchsorted(np.cumsum(sizes), rows, side="right")
            first = np.cumsum([0, *sizes])
            for group in np.unique(groups):
                windows = read_samples(file, group, metadata)
                for place in np.flatnonzero(groups == group):
                    found[place] = windows[rows[place] - first[group]]
        return np.stack(found)


def _read_emg(file: pq.ParquetFile, metadata: dict, folder: Path, memory_gb: float) -> np.ndarray:
    """(n, T, C), as int16 where all counts fit: half the memory, half the traffic."""
    whole = pa.types.is_integer(file.schema_arrow.field("emg").type.value_type)
    kind = np.int16 if whole else np.float32
    emg, row = _empty_emg(file, metadata, kind, folder, memory_gb), 0
    for group in track(
        range(file.num_row_groups), "reading windows"
    ):  # `iter_batches` would keep the compressed column
        windows = read_samples(file, group, metadata)
        if emg.dtype == np.int16 and np.abs(windows).max(initial=0) > np.iinfo(np.int16).max:
            narrow, emg = emg, _empty_emg(file, metadata, np.int32, folder, memory_gb)
            emg[:row] = narrow[:row]
        emg[row : row + len(windows)] = windows
        row += len(windows)
    if row != len(emg):
        raise UnreadableError(f"samples of {row} windows are there, of {len(emg)}")
    return emg


def _empty_emg(file: pq.ParquetFile, metadata: dict, kind: type, folder: Path, memory_gb: float) -> np.ndarray:
    shape, dtype = (file.metadata.num_rows, metadata["window"], len(metadata["channels"])), np.dtype(kind)
    return empty_array(shape, dtype, folder, in_memory=np.prod(shape) * dtype.itemsize <= memory_gb * 1e9)


def empty_array(shape: tuple[int, ...], dtype: np.dtype, folder: Path, in_memory: bool) -> np.ndarray:
    """An array in memory, or in a nameless temporary file in `folder` that vanishes with the process.

    Where `folder` cannot be written, the file lies in the system's place for such files, which may be memory.
    """
    if in_memory:
        return np.empty(shape, dtype)
    size = int(np.prod(shape)) * dtype.itemsize
    for place in (folder, Path(tempfile.gettempdir())):
        with suppress(OSError), tempfile.TemporaryFile(dir=place) as file:
            if hasattr(os, "posix_fallocate"):  # a full disk is an error now, not a crash when the page is written
                os.posix_fallocate(file.fileno(), 0, size)
            return np.memmap(file, dtype, "w+", shape=shape)
    raise EMGError(
        f"MEMORY_GB: neither {folder} nor {tempfile.gettempdir()} has room for a file of {size / 1e9:.1f} GB that "
        "holds the windows; free it or raise MEMORY_GB"
    )
