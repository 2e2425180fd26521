"""What preprocessing costs by stage, and the ways in which windows can be stored: `python -m tools.benchmark`."""

import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from emg_gpt2.base.errors import EMGError
from emg_gpt2.raw.putemg import read_recording
from emg_gpt2.settings import PreprocessingSettings, Settings, read_settings
from emg_gpt2.windows import cut, parts
from Preprocessing import preprocess as run_preprocessing

ROOT = Path(__file__).parent.parent
COPIES = 8
STAGES = {  # function of EMG_windows → the stage that it belongs to
    "describe_file": "read",
    "read_recording": "read",
    "apply_filter": "filter",
    "resample": "resample",
    "cut_windows": "cut",
    "encode": "cut",
    "write_windows": "write",
}
REFERENCE_COST = 0.70  # s per second of recording, of the data set's own filter on 24 channels and one core
ENCODINGS = ("PLAIN", "BYTE_STREAM_SPLIT", "DELTA_BINARY_PACKED")
CODECS = (("none", None), ("snappy", None), ("lz4", None), ("zstd", 1), ("zstd", 3), ("zstd", 6))
TIMER = """
import json, os, subprocess, sys, time
began = time.perf_counter()
process = subprocess.Popen([sys.executable, *sys.argv[1:]], stdout=subprocess.DEVNULL)
_, status, used = os.wait4(process.pid, 0)
wall = time.perf_counter() - began
print(json.dumps({"wall_s": wall, "cpu_s": used.ru_utime + used.ru_stime, "peak_mb": used.ru_maxrss / 1024}))
sys.exit(status != 0)
"""
READ_AND_WRITE = """
import h5py, pyarrow as pa, pyarrow.parquet as pq, sys
windows, out, group, *recordings = sys.argv[1:]
for recording in recordings:
    with h5py.File(recording) as file:
        table = file["data/table"]
        for start in range(0, len(table), 100_000):
            table[start : start + 100_000]
with pa.memory_map(windows) as file:
    pq.write_table(pa.ipc.open_file(file).read_all(), out, row_group_size=int(group), compression="zstd",
                   compression_level=3, use_dictionary=False, column_encoding={"emg.list.element": "BYTE_STREAM_SPLIT"})
"""


def simulate(folder: Path, console: Console) -> Path:
    """A recording of putEMG's full size: 24 channels, 341 s."""
    console.print("simulating a full-size recording")
    what = ["--subjects", "03", "--sessions", "1", "--trajectories", "repeats_long"]
    command = [sys.executable, "-m", "emg_gpt2", "simulate", folder / "raw", *what]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return next((folder / "raw").iterdir())


# ---- preprocess -----------------------------------------------------------------------------------------------


def preprocess(recording: Path, folder: Path, runs: int, console: Console) -> dict:
    """Preprocessing.py by stage and as a whole command, beside reading and writing alone."""
    results = []
    for count, workers in ((1, 1), (COPIES, 1), (COPIES, os.cpu_count())):
        console.print(f"{count} recordings, {workers} workers, {runs + 1} runs")
        copies = copy_recording(recording, folder / f"copies-{count}", count)
        results.append(measure_commands(copies, workers, folder, runs) | measure_stages(copies, folder))
    print_preprocess(results, console)
    return {"preprocess": results}


def copy_recording(recording: Path, folder: Path, count: int) -> list[Path]:
    """The recording under `count` names that differ in the last digits."""
    folder.mkdir(exist_ok=True)
    copies = [folder / f"{recording.stem[:-3]}{number:03d}{recording.suffix}" for number in range(count)]
    for copy in copies:
        shutil.copy(recording, copy)
    return copies


def measure_commands(copies: list[Path], workers: int, folder: Path, runs: int) -> dict:
    """The whole command and the process that only reads and writes, in turn; the medians of each."""
    output, windows = folder / "windows.parquet", folder / "windows.arrow"
    command = [ROOT / "Preprocessing.py", copies[0].parent, "--data-location", output, "--workers", workers]
    plain = ["-c", READ_AND_WRITE, windows, folder / "again.parquet", parts.WINDOWS_PER_ROW_GROUP, *copies]
    ours, theirs = [], []
    for run in range(runs + 1):  # the first fills the file cache, and makes what the other process writes
        output.unlink(missing_ok=True)
        ours.append(timed(command))
        if run == 0:
            to_arrow(output, windows)
        theirs.append(timed(plain))
    ours, theirs = ({name: median(run[name] for run in some[1:]) for name in some[0]} for some in (ours, theirs))
    return {
        "recordings": len(copies),
        "workers": workers,
        "command": ours,
        "read_and_write": theirs,
        "ratio": ours["wall_s"] / theirs["wall_s"],
        "output_mb": output.stat().st_size / 1e6,
    }


def timed(command: list) -> dict[str, float]:
    """Wall and processor seconds and peak memory (MB, of the largest process) of a Python process and its workers.

    A small process starts it: a new process begins with the peak of the one that it comes from.
    """
    done = subprocess.run([sys.executable, "-c", TIMER, *map(str, command)], cwd=ROOT, stdout=subprocess.PIPE)
    if done.returncode:
        raise EMGError(f"{command[0]} failed; run it by hand to see why")
    return json.loads(done.stdout)


def to_arrow(parquet: Path, arrow: Path) -> None:
    """Leave the windows where they can be had without decoding."""
    table = pq.read_table(parquet)
    with pa.OSFile(str(arrow), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def measure_stages(copies: list[Path], folder: Path) -> dict:
    """Processor seconds per second of recording of each stage, from clocks around the functions of one real run."""
    output, spent = folder / "stages.parquet", dict.fromkeys(STAGES.values(), 0.0)
    output.unlink(missing_ok=True)
    functions = {name: getattr(parts, name) for name in STAGES}
    for name, function in functions.items():
        setattr(parts, name, _clocked(function, STAGES[name], spent))
    try:
        settings = read_settings(PreprocessingSettings, [str(copies[0].parent), "--data-location", str(output)])
        results = run_preprocessing(copies, settings, Console(file=io.StringIO()))
    finally:
        for name, function in functions.items():
            setattr(parts, name, function)
    seconds = sum(result.part.seconds for result in results)
    return {"seconds_of_recording": seconds, "stages": {name: value / seconds for name, value in spent.items()}}


def _clocked(function: Callable, stage: str, spent: dict[str, float]) -> Callable:
    def clocked(*args, **options):
        began = time.process_time()
        result = function(*args, **options)
        if stage == "cut":
            result = list(result) if function.__name__ == "encode" else result  # else its work falls into writing
        spent[stage] += time.process_time() - began
        return result

    return clocked


def print_preprocess(results: list[dict], console: Console) -> None:
    table = Table("", *(f"{r['recordings']} rec., {r['workers']} workers" for r in results), box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for stage in results[0]["stages"]:
        table.add_row(f"{stage}, s per s of recording", *(f"{r['stages'][stage]:.5f}" for r in results))
    against = (f"{REFERENCE_COST / r['stages']['filter']:.0f} ×" for r in results)
    table.add_row(f"filter, against {REFERENCE_COST} s per s of the data set's own", *against)
    for name, kind in (("command", "whole command"), ("read_and_write", "reading and writing alone")):
        table.add_row(f"{kind}, s", *(f"{r[name]['wall_s']:.2f}" for r in results))
    table.add_row("ratio of the two", *(f"{r['ratio']:.2f}" for r in results))
    table.add_row("peak memory, MB", *(f"{r['command']['peak_mb']:.0f}" for r in results))
    table.add_row("output, MB", *(f"{r['output_mb']:.1f}" for r in results))
    print_wide(table, console)


# ---- storage --------------------------------------------------------------------------------------------------


def storage(recording: Path, folder: Path, runs: int, console: Console) -> dict:
    """Size, speed and error of the ways in which windows can be stored."""
    exact, rows = exact_windows(recording), []
    numbers = {
        "float32": (exact, 1),
        "float16": (exact.astype(np.float16), 1),
        **{f"int32, 1/{n} count": (np.rint(exact * n).astype(np.int32), 1 / n) for n in (8, 4, 2, 1)},
        "int16, 1/4 count": (np.rint(exact * 4).astype(np.int16), 1 / 4),
    }
    for (name, (values, scale)), encoding, codec in product(numbers.items(), ENCODINGS, CODECS):
        if values.dtype.kind == "f" and encoding == "DELTA_BINARY_PACKED":
            continue
        error = rms(values * np.float32(scale) - exact)
        described = {"values": name, "encoding": encoding, "codec": " ".join(map(str, filter(None, codec)))}
        described |= {"error_rms_counts": error, "error_relative": error / rms(exact)}
        rows.append(described | measure_storage(values, encoding, codec, folder / "storage.parquet", runs))
    print_storage(rows, console)
    return {"windows": len(exact), "samples": exact[0].size, "storage": rows}


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


def measure_storage(values: np.ndarray, encoding: str, codec: tuple, path: Path, runs: int) -> dict[str, float]:
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


def print_storage(rows: list[dict], console: Console) -> None:
    table = Table("values", "encoding", "codec", "MB", "write, s", "read, s", "error, counts RMS", "relative", box=None)
    for column in table.columns[3:]:
        column.justify = "right"
    for row in sorted(rows, key=lambda row: row["mb"]):
        figures = [f"{row['mb']:.2f}", f"{row['write_s']:.3f}", f"{row['read_s']:.3f}"]
        errors = [f"{row['error_rms_counts']:.4f}", f"{row['error_relative']:.1e}"]
        table.add_row(row["values"], row["encoding"], row["codec"], *figures, *errors)
    print_wide(table, console)


def print_wide(table: Table, console: Console) -> None:
    Console(file=console.file, width=120).print(table)  # a narrow terminal breaks the lines, not the names
