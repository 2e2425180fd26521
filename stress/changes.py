"""Files that change or vanish while Preprocessing.py and main.py read them."""

import os
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stress.row import Row
from stress.scripts import CUT, start
from stress.snapshot import difference, snapshot
from stress.work import Undisturbed, Work, undisturbed


def renamed(file: Path, other: Path, folder: Path) -> None:
    file.rename(folder / "renamed")


def truncated(file: Path, other: Path, folder: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def overwritten(file: Path, other: Path, folder: Path) -> None:
    file.write_bytes(other.read_bytes())


def replaced(file: Path, other: Path, folder: Path) -> None:
    shutil.copy(other, folder / "other")
    os.replace(folder / "other", file)


CHANGES = (renamed, truncated, overwritten, replaced)


def changing_recordings(work: Work, expected: Undisturbed, times: int, folder: Path, rng: random.Random) -> Row:
    """Each recording comes out right, as one of the two that had its name, or is skipped."""
    row = Row("faults", "a recording changes or vanishes while it is read")
    raw, output, right = folder / "changing", folder / "changed.parquet", work.older.with_name("windows.parquet")
    recordings = sorted(Path(work.arguments[0]).iterdir())
    for number in range(times):
        shutil.rmtree(raw, ignore_errors=True)
        shutil.copytree(work.arguments[0], raw)
        output.unlink(missing_ok=True)
        file, change = raw / rng.choice(recordings).name, CHANGES[number % len(CHANGES)]
        started = start(work.script, [raw, "--data-location", output, *CUT], folder)
        started.process.join(rng.uniform(0, expected.seconds))
        change(file, recordings[0], folder)
        ended = started.end()
        wrong = wrong_windows(output, right, file.stem, recordings[0].stem) if output.exists() else ""
        row.add_call(ended, f"{file.name} is {change.__name__}", wrong)
    return row


def wrong_windows(output: Path, right: Path, changed: str, other: str) -> str:
    """Windows that are neither the recording's nor, for the one that changed, the other one's."""
    made, expected = windows_by_recording(output), windows_by_recording(right)
    for name, windows in made.items():
        allowed = [expected[one] for one in ({name, other} if name == changed else {name})]
        if not any(windows.equals(one) for one in allowed):
            return f"the windows of {name} are wrong"
    return ""


def windows_by_recording(file: Path) -> dict[str, pa.Table]:
    """Samples, labels, repetitions and times of every recording in a windows file."""
    table = pq.read_table(file)
    names, columns = table["recording"], ["emg", "TRAJ_GT", "repetition", "start"]
    found = {name: table.filter(pc.equal(names, name)).select(columns) for name in names.unique().to_pylist()}
    return {name: one.combine_chunks().replace_schema_metadata() for name, one in found.items()}


def changing_windows(work: Work, expected: Undisturbed, times: int, folder: Path, rng: random.Random) -> Row:
    """While main.py starts, reads and trains: its results are those of one of the files, or it says what is wrong."""
    row, source = Row("faults", "the windows file changes or vanishes while main.py works"), work.arguments[1]
    other = source.with_name("older.parquet")
    windows = work.prepare(folder / "read") / source.name
    mine, possible = replace(work, arguments=[work.arguments[0], windows, *work.arguments[2:]]), []
    for number, file in enumerate((other, source)):
        shutil.copy(file, windows)
        possible.append(undisturbed(mine, mine.prepare(folder / f"read-alone-{number}")).files)
    for number in range(times):
        shutil.copy(source, windows)
        place, change = mine.prepare(folder / f"read-{number}"), CHANGES[number % len(CHANGES)]
        started = mine.start(place)
        started.process.join(rng.uniform(0, 0.3 * expected.seconds))
        change(windows, other, folder)
        ended = started.end()
        wrong = "" if ended.status else min((difference(files, snapshot(place)) for files in possible), key=len)
        row.add_call(ended, change.__name__, wrong)
        shutil.rmtree(place)
    return row
