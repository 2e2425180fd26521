"""The ways in which windows can be stored: size, speed and error of numbers, encodings and codecs."""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from benchmarks.measure import print_wide, simulate
from emg_gpt2.base.log import track
from emg_gpt2.raw.putemg import read_recording
from emg_gpt2.settings import Settings
from emg_gpt2.windows import cut, parts

ENCODINGS = ("PLAIN", "BYTE_STREAM_SPLIT", "DELTA_BINARY_PACKED")
CODECS = (("none", None), ("snappy", None), ("lz4", None), ("zstd", 1), ("zstd", 3), ("zstd", 6))


def measure(args: argparse.Namespace, console: Console) -> dict:
    """The windows of one recording in every way."""
    with tempfile.TemporaryDirectory() as place:
        exact = exact_windows(args.recording or simulate(Path(place), console))
        rows = list(ways(exact, Path(place), args.runs))
    print_table(rows, console)
    return {"windows": len(exact), "samples": exact[0].size, "storage": rows}


def ways(exact: np.ndarray, folder: Path, runs: int) -> Iterator[dict]:
    """Figures of every way to store windows (n, T, C)."""
    numbers = {
        "float32": (exact, 1),
        "float16": (exact.astype(np.float16), 1),
        **{f"int32, 1/{n} count": (np.rint(exact * n).astype(np.int32), 1 / n) for n in (8, 4, 2, 1)},
        "int16, 1/4 count": (np.rint(exact * 4).astype(np.int16), 1 / 4),
    }
    for (name, (values, scale)), encoding, codec in track(list(product(numbers.items(), ENCODINGS, CODECS)), "ways"):
        if values.dtype.kind == "f" and encoding == "DELTA_BINARY_PACKED":
            continue
        error = rms(values * np.float32(scale) - exact)
        described = {"values": name, "encoding": encoding, "codec": " ".join(map(str, filter(None, codec)))}
        described |= {"error_rms_counts": error, "error_relative": error / rms(exact)}
        yield described | measure_file(values, encoding, codec, folder / "storage.parquet", runs)


def exact_windows(path: Path) -> np.ndarray:
    """(n, T, C) float32 windows of a recording as they are before they are stored, in counts."""
    settings, recording = Settings(), read_recording(path)
    emg, rate = cut.filter_and_resample(recording, settings)
    described = {"sampling_rate": recording.sampling_rate, "unit": "count"}
    layout = cut.agreed_layout(recording.name, recording.channels, described, None, settings)
    first = cut.cut_windows(recording, rate, len(emg), layout, settings).first
    return emg[first[:, None] + np.arange(layout.window)]


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


def measure_file(values: np.ndarray, encoding: str, codec: tuple, path: Path, runs: int) -> dict[str, float]:
    """Size in MB, and the median seconds that writing and reading on one thread take."""
    lists = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values[0].size)
    table, written, read = pa.table({"emg": lists}), [], []
    options = dict(zip(("compression", "compression_level"), codec, strict=True)) | {"use_dictionary": False}
    options |= {"column_encoding": {"emg.list.element": encoding}, "row_group_size": parts.WINDOWS_PER_ROW_GROUP}
    for _ in range(runs):
        written.append(seconds(lambda: pq.write_table(table, path, **options)))
        read.append(seconds(lambda: pq.read_table(path, use_threads=False)))
    return {"mb": path.stat().st_size / 1e6, "write_s": median(written), "read_s": median(read)}


def seconds(action: Callable) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def print_table(rows: list[dict], console: Console) -> None:
    table = Table("values", "encoding", "codec", "MB", "write, s", "read, s", "error, counts RMS", "relative", box=None)
    for column in table.columns[3:]:
        column.justify = "right"
    for row in sorted(rows, key=lambda row: row["mb"]):
        figures = [f"{row['mb']:.2f}", f"{row['write_s']:.3f}", f"{row['read_s']:.3f}"]
        errors = [f"{row['error_rms_counts']:.4f}", f"{row['error_relative']:.1e}"]
        table.add_row(row["values"], row["encoding"], row["codec"], *figures, *errors)
    print_wide(table, console)
