"""What holds however many runs begin at once and however much data there is: own folders, whole results, memory.

The scripts start as in stress.scripts.
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
from emg_gpt2.base.errors import EMGError
from emg_gpt2.commands import simulate
from emg_gpt2.raw import recording
from stress.faults import flaw_after
from stress.row import Row
from stress.scripts import CUT, Ended, Started, make_gpt2, make_recordings, make_windows, run, server, start, tiny
from stress.snapshot import snapshot

Say = Callable[[str], None]

TOGETHER, NIGHTLY_TOGETHER = 3, 20  # runs that begin at the same moment
SHARED, NIGHTLY_SHARED = 2, 50  # times that several preprocess into the same file
COPIES, NIGHTLY_COPIES = 12, 48  # recordings whose windows are cut, against one
MORE_MB = 30  # what many recordings may take above one: names, counts and a group of windows
LENGTHS, NIGHTLY_LENGTHS = (10, 30), (20, 100)  # times a recording of the programme's
TIMES_A_RECORDING = 2  # the reader and the filter hold some of it once more
TIMES_LARGER = 3  # a windows file, against one that is large already: statistics are of STATISTICS_WINDOWS at most
KB_A_WINDOW = 6  # that main.py may hold of each: identity, part, probabilities, and what fits the linear path
SHORT = ["--memory-gb", "0", "--num-epochs", "1", "--no-refit", "--batch-size", "256", "--blocks", "0"]
SHORT += ["--sampling-ratio", "0.2"]
FILTERS = ("putemg", "none", "causal")


def rows(nightly: bool, folder: Path, seed: int, say: Say) -> Iterator[Row]:
    """Runs that begin together, preprocessing runs with one output, memory."""
    try:
        server()
    except EMGError as error:
        yield Row("limits", "runs at the same moment, memory", note=f"not tried: {error}")
        return
    say("making recordings, windows and a model to run on")
    log, rng = folder / "log", random.Random(seed)
    raw, gpt2 = make_recordings(folder, log), make_gpt2(folder / "gpt2")
    windows = make_windows(raw, folder / "windows.parquet", log)
    train, count = tiny(windows, gpt2), NIGHTLY_TOGETHER if nightly else TOGETHER
    say(f"{count} runs at the same moment")
    yield own_folders([*train, "--no-refit"], count, folder)
    yield one_folder([*train, "--no-refit"], count, folder)
    say("several Preprocessing.py with the same output")
    yield shared_output(raw, NIGHTLY_SHARED if nightly else SHARED, folder, rng)
    say("memory of Preprocessing.py and main.py")
    yield memory_of_recordings(raw, NIGHTLY_COPIES if nightly else COPIES, folder)
    yield memory_of_a_recording(raw, NIGHTLY_LENGTHS if nightly else LENGTHS, folder)
    if nightly:  # it takes minutes
        yield memory_of_windows(gpt2, folder)


# ---- at the same moment -----------------------------------------------------------------------------------------


def together(commands: list[list], script: str, place: Path, folder: Path) -> list[Ended]:
    """All of them in the same working folder."""
    started = [start(script, command, place, folder / f"log-{number}") for number, command in enumerate(commands)]
    return [one.end(600) for one in started]


def own_folders(train: list, count: int, folder: Path) -> Row:
    """Runs without RUN_DIR: each has a folder with all that a run leaves."""
    row, place = Row("limits", f"{count} runs begin at the same moment: each has a folder of its own"), folder / "apart"
    place.mkdir()
    ended = together([train] * count, "main", place, folder)
    whole = [run for run in (place / "runs").iterdir() if (run / "report.html").exists()]
    for one in ended:
        row.add("right" if one.status == 0 else f"it ended with {one.status}: {one.last_line}", one.seconds)
    if len(whole) != count:
        row.lost, row.right = [f"{count} runs left {len(whole)} whole folders"], row.right - 1
    return row


def one_folder(train: list, count: int, folder: Path) -> Row:
    """Runs with the same RUN_DIR: one has it, the others say so."""
    row, place = Row("limits", f"{count} runs begin with the same RUN_DIR: one has it"), folder / "same"
    place.mkdir()
    ended = together([[*train, "--run-dir", "run"]] * count, "main", place, folder)
    taken = sum(one.status == 0 for one in ended)
    for one in ended:
        if one.status == 0:
            row.add("right" if taken == 1 else f"{taken} runs say that they wrote the folder", one.seconds)
        else:
            row.add("refused" if one.refused else f"it ended with {one.status}: {one.said[-500:]}", one.seconds)
    if taken == 0:
        row.lost.append("none of the runs could have the folder")
    return row


def shared_output(raw: Path, times: int, folder: Path, rng: random.Random) -> Row:
    """Two or three at once, one of them killed: the output is whole, and that of one of them; the others say so."""
    row = Row("limits", "two or three Preprocessing.py write the same output, one of them is killed")
    commands = [[raw, "--data-location", "windows.parquet", *CUT, "--filter", one] for one in FILTERS]
    alone = {one: whole_output(command, folder / one) for one, command in zip(FILTERS, commands, strict=True)}
    seconds = max(ended.seconds for ended, _ in alone.values())
    complete = [files["windows.parquet"].digest for _, files in alone.values()]
    for number in range(times):
        place, some = folder / f"shared-{number}", commands[: 2 + number % 2]
        place.mkdir()
        started = [start("Preprocessing", one, place, folder / f"log-{n}") for n, one in enumerate(some)]
        victim = rng.choice(started)
        victim.process.join(rng.uniform(0, len(some) * seconds))
        victim.process.kill()
        wrong, last = wrong_output(started, victim, place, complete), alone["putemg"]
        ended = run("Preprocessing", commands[0], place, folder / "log")
        if not wrong and (ended.status or snapshot(place) != last[1]):
            wrong = f"the next run ends with {ended.status}, {ended.last_line}, and leaves {sorted(snapshot(place))}"
        row.add(wrong or "right", ended.seconds)
        shutil.rmtree(place)
    return row


def whole_output(command: list, place: Path) -> tuple[Ended, dict]:
    place.mkdir()
    ended = run("Preprocessing", command, place, place.with_suffix(".log"))
    if ended.status:
        raise EMGError(f"preprocessing by itself ends with {ended.status}: {ended.last_line}")
    return ended, snapshot(place)


def wrong_output(started: list[Started], victim: Started, place: Path, complete: list[str]) -> str:
    """What is wrong after all have ended, in a sentence."""
    for one in started:
        ended = one.end()
        told = ended.refused and "another Preprocessing.py is writing the output" in ended.said
        if one is not victim and ended.status and not told:
            return f"one of them ended with {ended.status}, saying: {ended.said[-500:]}"
    files = snapshot(place)
    if "windows.parquet" in files and files["windows.parquet"].digest not in complete:
        return "the output is none of theirs"
    return flaw_after(place, {}, files)


# ---- memory -----------------------------------------------------------------------------------------------------


def memory_of_recordings(raw: Path, copies: int, folder: Path) -> Row:
    """Many recordings take no more than one, but for MORE_MB."""
    row = Row("limits", f"Preprocessing.py of {copies} recordings takes at most {MORE_MB} MB more than of one")
    first = sorted(raw.iterdir())[0]
    many = folder / "many"
    many.mkdir()
    for number in range(copies):
        day = f"2018-{1 + number // 28:02d}-{1 + number % 28:02d}"
        shutil.copy(first, many / first.name.replace("2018-05-11", day))
    peaks = []
    for place in (first, many):
        ended = run("Preprocessing", [place, "--data-location", folder / "m.parquet", *CUT], folder, folder / "log")
        if ended.status:
            row.add(f"it ended with {ended.status}: {ended.last_line}")
            return row
        peaks.append(ended.megabytes)
    if not all(peaks):
        row.note = "not measured: this system does not say how much memory a process held"
        return row
    more = peaks[1] - peaks[0]
    row.add("right" if more <= MORE_MB else f"it took {more:.0f} MB more", ended.seconds, max(peaks))
    return row


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
        simulate.write(longer, place / source.name)
        ended = run("Preprocessing", [place, "--data-location", folder / "l.parquet", *CUT], folder, folder / "log")
        if ended.status:
            row.add(f"it ended with {ended.status}: {ended.last_line}")
            return row
        peaks.append(ended.megabytes)
    if not all(peaks):
        row.note = "not measured: this system does not say how much memory a process held"
        return row
    channels = sum(name.startswith("EMG_") for name in table)
    taken = 1e6 * (peaks[1] - peaks[0]) / ((lengths[1] - lengths[0]) * len(table) * (4 * channels + 24))
    row.note = f"{taken:.1f} times"
    row.add("right" if taken <= TIMES_A_RECORDING else f"it took {taken:.1f} times", ended.seconds, peaks[1])
    return row


def memory_of_windows(gpt2: Path, folder: Path) -> Row:
    """With MEMORY_GB = 0 the windows stay in a mapped file; what a process holds for each is its name and part."""
    row = Row("limits", f"main.py with MEMORY_GB = 0 holds at most {KB_A_WINDOW} kB of each window of 20 kB in memory")
    if sys.platform != "linux":
        row.note = "not tried: only Linux says how much of a process's memory is its own"
        return row
    once = wide_windows(folder)
    count = -(-2 * STATISTICS_WINDOWS // pq.read_metadata(once).num_rows)  # half of them are tested
    files = [repeated(once, count * number, folder / f"x{number}.parquet") for number in (1, TIMES_LARGER)]
    peaks = []
    for path in files:
        started = start("main", [*tiny(path, gpt2), *SHORT, "--run-dir", folder / path.stem], folder, folder / "log")
        peaks.append(own_memory(started))
        ended = started.end()
        if ended.status:
            row.add(f"it ended with {ended.status}: {ended.last_line}")
            return row
    more = pq.read_metadata(files[1]).num_rows - pq.read_metadata(files[0]).num_rows
    row.note = f"{1000 * (peaks[1] - peaks[0]) / more:.1f} kB more for each of {more} windows more"
    row.add("right" if peaks[1] - peaks[0] <= KB_A_WINDOW * more / 1000 else row.note, ended.seconds, peaks[1])
    return row


def wide_windows(folder: Path) -> Path:
    """Of one recording with 8 channels, 1280 samples each."""
    log, raw = folder / "log", folder / "wide"
    shape = "--subjects 03 --sessions 1 --trajectories sequential --repetitions 2 --channels 8 --sampling-rate 5120"
    if (ended := run("tools.simulate", [raw, *shape.split()], folder, log)).status:
        raise EMGError(f"no recording could be simulated: {ended.last_line}")
    return make_windows(raw, folder / "wide.parquet", log)


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
    while started.process.exitcode is None:
        try:
            lines = [line for line in status.read_text().splitlines() if line.startswith("RssAnon")]
        except OSError:
            break
        peak = max([peak, *(int(line.split()[1]) * 1024 / 1e6 for line in lines)])
        started.process.join(0.01)
    return peak
