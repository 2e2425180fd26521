"""What preprocessing costs: by stage, and as a whole command beside a process that only reads and writes."""

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from benchmarks.measure import ROOT, print_wide, simulate
from emg_gpt2.base.errors import EMGError
from emg_gpt2.base.log import track
from emg_gpt2.settings import PreprocessingSettings, read_settings
from emg_gpt2.windows import cut, parts
from Preprocessing import preprocess

COPIES, QUICK_COPIES = 8, 2
STAGES = {  # function, in the module that calls it → the stage that it belongs to
    (parts, "describe_file"): "read",
    (parts, "read_recording"): "read",
    (cut, "apply_filter"): "filter",
    (cut, "resample"): "resample",
    (parts, "cut_windows"): "cut",
    (parts, "encode"): "cut",
    (parts, "write_windows"): "write",
}
REFERENCE_COST = 0.70  # s per second of recording, of the data set's own filter on 24 channels and one core
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


def measure(args: argparse.Namespace, console: Console) -> dict:
    """One recording and copies of it, with one worker and with as many as there are cores."""
    results = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        recording = args.recording or simulate(folder, console)
        copies = QUICK_COPIES if args.quick else COPIES
        for count, workers in track([(1, 1), (copies, 1), (copies, os.cpu_count())], "ways"):
            console.print(f"{count} recordings, {workers} workers, {args.runs + 1} runs")
            paths = copy_recording(recording, folder / f"copies-{count}", count)
            results.append(measure_commands(paths, workers, folder, args.runs) | measure_stages(paths, folder))
    print_table(results, console)
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
    functions = {place: getattr(*place) for place in STAGES}
    for place, function in functions.items():
        setattr(*place, clocked(function, STAGES[place], spent))
    try:
        settings = read_settings(PreprocessingSettings, [str(copies[0].parent), "--data-location", str(output)])
        results = preprocess(copies, settings, Console(file=io.StringIO()))
    finally:
        for place, function in functions.items():
            setattr(*place, function)
    seconds = sum(result.part.seconds for result in results)
    return {"seconds_of_recording": seconds, "stages": {name: value / seconds for name, value in spent.items()}}


def clocked(function: Callable, stage: str, spent: dict[str, float]) -> Callable:
    def clocked(*args, **options):
        began = time.process_time()
        result = function(*args, **options)
        if stage == "cut":
            result = list(result) if function.__name__ == "encode" else result  # else its work falls into writing
        spent[stage] += time.process_time() - began
        return result

    return clocked


def print_table(results: list[dict], console: Console) -> None:
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
