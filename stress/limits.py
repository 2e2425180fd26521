"""Runs at the same moment, memory.

However many runs begin at once, each has its own folder and whole results; however much data there is, memory is
bounded.
"""

import random
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from EMG_DATA_LOADER import STATISTICS_WINDOWS
from emg_gpt2.raw import recording
from stress.process import Ended, Started
from stress.row import Row
from stress.scripts import CUT, make_gpt2, make_recordings, make_windows, run_well, small_training, start
from stress.snapshot import snapshot
from stress.work import flaw_after

TOGETHER, NIGHTLY_TOGETHER = 3, 20  # runs that begin at the same moment
SHARED, NIGHTLY_SHARED = 2, 50  # times that several preprocess into the same file
COPIES, NIGHTLY_COPIES = 12, 48  # recordings whose windows are cut, against one
MORE_MB = 30  # what many recordings may take above one: names, counts and a group of windows
LENGTHS, NIGHTLY_LENGTHS = (10, 30), (20, 100)  # times a recording of the programme's
TIMES_A_RECORDING = 2  # the reader and the filter hold some of it once more
TIMES_LARGER = 3  # a windows file, against one that is large already: statistics are of STATISTICS_WINDOWS at most
KB_A_WINDOW = 6  # that main.py may hold of each: identity, part, probabilities, and what fits the linear path
SHORT = [
    "--memory-gb",
    "0",
    "--num-epochs",
    "1",
    "--no-refit",
    "--batch-size",
    "256",
    "--blocks",
    "0",
    "--sampling-ratio",
    "0.2",
]
FILTERS = ("putemg", "none", "causal")
WIDE = "--subjects 03 --sessions 1 --trajectories sequential --repetitions 2 --channels 8 --sampling-rate 5120"
NOT_MEASURED = "not measured: this system does not say how much memory a process held"
FREE = {"memory": 0, "patience": 600.0}  # limits of a process whose memory is measured, or that waits for others


def rows(nightly: bool, folder: Path, seed: int, log: Callable[[str], None]) -> Iterator[Row]:
    """Runs that begin together, preprocessing runs with one output, memory."""
    log("making recordings, windows and a model to run on")
    raw, gpt2 = make_recordings(folder), make_gpt2(folder / "gpt2")
    windows = make_windows(raw, folder / "windows.parquet")
    train = [*small_training(windows, gpt2), "--no-refit"]
    count = NIGHTLY_TOGETHER if nightly else TOGETHER
    log(f"{count} runs at the same moment")
    yield own_folders("main", train, count, folder)
    yield one_folder(train, count, folder)
    log("several Preprocessing.py with the same output")
    yield shared_output(raw, NIGHTLY_SHARED if nightly else SHARED, folder, random.Random(seed))
    log("memory of Preprocessing.py and main.py")
    yield memory_of_recordings(raw, NIGHTLY_COPIES if nightly else COPIES, folder)
    yield memory_of_a_recording(raw, NIGHTLY_LENGTHS if nightly else LENGTHS, folder)
    if nightly:  # it takes minutes
        yield memory_of_windows(gpt2, folder)


# ---- at the same moment -----------------------------------------------------------------------------------------


def together(script: str, command: list, count: int, place: Path) -> list[Ended]:
    """The same command so many times in the same new working folder."""
    place.mkdir()
    started = [start(script, command, place, **FREE) for _ in range(count)]
    return [one.end() for one in started]


def own_folders(script: str, command: list, count: int, folder: Path) -> Row:
    """Runs without RUN_DIR: each has a folder with all that a run leaves."""
    row = Row("limits", f"{count} runs begin at the same moment: each has a folder of its own")
    for ended in together(script, command, count, folder / "apart"):
        row.add_call(ended, wrong=ended.last_line if ended.status else "")
    whole = list((folder / "apart" / "runs").glob("*/report.html"))
    if len(whole) != count:
        row.lost, row.right = [f"{count} runs left {len(whole)} whole folders"], row.right - 1
    return row


def one_folder(train: list, count: int, folder: Path) -> Row:
    """Runs with the same RUN_DIR: one has it, the others say so."""
    row = Row("limits", f"{count} runs begin with the same RUN_DIR: one has it")
    all_ended = together("main", [*train, "--run-dir", "run"], count, folder / "same")
    writers = sum(ended.status == 0 for ended in all_ended)
    for ended in all_ended:
        row.add_call(
            ended, wrong=f"{writers} runs claim to have written the folder" if ended.status == 0 and writers > 1 else ""
        )
    if writers == 0:
        row.lost.append("none of the runs could have the folder")
    return row


def shared_output(raw: Path, times: int, folder: Path, rng: random.Random) -> Row:
    """Two or three at once, one of them killed: the output is whole, and that of one of them; the others say so."""
    row = Row("limits", "two or three Preprocessing.py write the same output, one of them is killed")
    commands = [[raw, "--data-location", "windows.parquet", *CUT, "--filter", one] for one in FILTERS]
    alone, seconds = [], 0.0
    for name, command in zip(FILTERS, commands, strict=True):
        (folder / name).mkdir()
        seconds = max(seconds, run_well("Preprocessing", command, folder / name).seconds)
        alone.append(snapshot(folder / name))
    complete = [files["windows.parquet"] for files in alone]
    for number in range(times):
        place, some = folder / f"shared-{number}", commands[: 2 + number % 2]
        place.mkdir()
        started = [start("Preprocessing", one, place) for one in some]
        killed = rng.choice(started)
        killed.process.join(rng.uniform(0, len(some) * seconds))
        killed.process.kill()
        wrong = flaw_of_output(started, killed, place, complete)
        ended = start("Preprocessing", commands[0], place).end()
        if not (wrong or ended.status) and snapshot(place) != alone[0]:
            wrong = f"the next run leaves {sorted(snapshot(place))}"
        row.add(wrong or ("right" if not ended.status else ended.output[-500:]), ended.seconds)
        shutil.rmtree(place)
    return row


def flaw_of_output(started: list[Started], killed: Started, place: Path, complete: list) -> str:
    """What is wrong after all have ended, in a sentence; empty where nothing is."""
    for one in started:
        ended = one.end()
        told = ended.refused and "another Preprocessing.py is writing the output" in ended.output
        if one is not killed and ended.status and not told:
            return f"one of them ended with {ended.status}, saying: {ended.output[-500:]!r}"
    files = snapshot(place)
    if "windows.parquet" in files and files["windows.parquet"] not in complete:
        return "the output is none of theirs"
    return flaw_after(place, {}, files)


# ---- memory -----------------------------------------------------------------------------------------------------


def memory_of_recordings(raw: Path, copies: int, folder: Path) -> Row:
    """Many recordings take no more than one, but for MORE_MB."""
    row = Row("limits", f"Preprocessing.py of {copies} recordings takes at most {MORE_MB} MB more than of one")
    first, many = sorted(raw.iterdir())[0], folder / "many"
    many.mkdir()
    for number in range(copies):
        day = f"2018-{1 + number // 28:02d}-{1 + number % 28:02d}"
        shutil.copy(first, many / first.name.replace("2018-05-11", day))
    one, all_of_them = (preprocess(place, folder) for place in (first, many))
    more = all_of_them.megabytes - one.megabytes
    return add_memory(row, all_of_them, more <= MORE_MB, f"{more:.0f} MB more")


def memory_of_a_recording(raw: Path, lengths: tuple[int, int], folder: Path) -> Row:
    """What a longer recording takes above a shorter one, beside what it holds: 4 bytes a sample, 24 a row."""
    bound = f"{TIMES_A_RECORDING} times its {recording.MOST_BYTES / 1e9:g} GB, the most that is read"
    row = Row("limits", f"Preprocessing.py of a long recording takes at most {bound}")
    source = sorted(raw.iterdir())[0]
    table, peaks = pd.read_hdf(source), []
    for times in lengths:
        (place := folder / f"long-{times}").mkdir()
        longer = pd.concat([table] * times)
        longer.index = table.index[0] + np.arange(len(longer)) * (table.index[1] - table.index[0])
        longer.to_hdf(place / source.name, key="data", format="table", complevel=1, index=False)
        peaks.append(preprocess(place, folder))
    channels = sum(name.startswith("EMG_") for name in table)
    size = (lengths[1] - lengths[0]) * len(table) * (4 * channels + 24)
    taken = 1e6 * (peaks[1].megabytes - peaks[0].megabytes) / size
    return add_memory(row, peaks[1], taken <= TIMES_A_RECORDING, f"{taken:.1f} times")


def preprocess(place: Path, folder: Path) -> Ended:
    return run_well("Preprocessing", [place, "--data-location", folder / "m.parquet", *CUT], folder, **FREE)


def add_memory(row: Row, ended: Ended, within: bool, taken: str) -> Row:
    """taken: what was measured."""
    if ended.megabytes:
        row.note = taken
        row.add("right" if within else f"it took {taken}", ended.seconds, ended.megabytes)
    else:
        row.note = NOT_MEASURED
    return row


def memory_of_windows(gpt2: Path, folder: Path) -> Row:
    """With MEMORY_GB = 0 the windows stay in a mapped file; what a process holds for each is its name and part."""
    row = Row("limits", f"main.py with MEMORY_GB = 0 holds at most {KB_A_WINDOW} kB of each window of 20 kB in memory")
    if sys.platform != "linux":
        row.note = "not tried: only Linux says how much of a process's memory is its own"
        return row
    (wide := folder / "wide").mkdir()
    once = make_windows(make_recordings(wide, WIDE), wide / "wide.parquet")
    count = -(-2 * STATISTICS_WINDOWS // pq.read_metadata(once).num_rows)  # half of them are tested
    files = [repeated(once, count * number, wide / f"x{number}.parquet") for number in (1, TIMES_LARGER)]
    peaks = []
    for path in files:
        started = start("main", [*small_training(path, gpt2), *SHORT, "--run-dir", path.stem], wide, **FREE)
        peaks.append(own_memory(started))
        ended = started.end()
        if ended.status:
            row.add_call(ended)
            return row
    more = pq.read_metadata(files[1]).num_rows - pq.read_metadata(files[0]).num_rows
    kilobytes = 1000 * (peaks[1] - peaks[0]) / more
    return add_memory(row, ended, kilobytes <= KB_A_WINDOW, f"{kilobytes:.1f} kB for each of {more} windows more")


def repeated(windows: Path, times: int, larger: Path) -> Path:
    """The same windows so many times, as of so many recordings."""
    table = pq.read_table(windows)
    with pq.ParquetWriter(larger, table.schema) as writer:
        for number in range(times):
            names = pa.array([f"{name}-{number}" for name in table["recording"].to_pylist()])
            place = table.schema.get_field_index("recording")
            writer.write_table(table.set_column(place, table.schema.field(place), names))
    return larger


def own_memory(started: Started) -> float:
    """The most MB that the process held and no file stands for, looked at every 10 ms until it ends."""
    peak, status = 0.0, Path(f"/proc/{started.process.pid}/status")
    while not started.has_ended():
        try:
            lines = [line for line in status.read_text().splitlines() if line.startswith("RssAnon")]
        except OSError:
            break
        peak = max([peak, *(int(line.split()[1]) * 1024 / 1e6 for line in lines)])
        started.process.join(0.01)
    return peak
