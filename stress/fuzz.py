"""Damaged files: flipped bits, swapped blocks, cut ends.

A read has to end in an EMGError or in a right result, within the limits of stress.process. Right is what was written.
Where a format has no checksum, a change can go unnoticed: then right is what another reader finds in the file, h5py
alone for HDF5, Python's csv and zipfile for CSV, and the package gguf for GGUF.
"""

import csv
import io
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import h5py
import numpy as np
import pandas as pd

from emg_gpt2.base.errors import EMGError
from emg_gpt2.raw import hdf5
from emg_gpt2.raw.putemg import read_recording
from emg_gpt2.raw.recording import LABEL_COLUMN, Recording
from emg_gpt2.settings import Settings
from emg_gpt2.windows.reading import WindowSet, load_windows, open_windows
from stress.gguf_files import MIXED, is_converted, read_gguf, small_model, write_gguf
from stress.process import run_batches
from stress.row import Row
from stress.scripts import make_recordings, make_windows

FEW, MANY = 40, 5_000  # files of each kind
BATCH = 20  # files that a process reads, unless one of them ends it
ROWS = 3_000  # of a recording: short, so that many of a file's bytes are its structure
BLOCK = 4_096  # bytes, the largest that is swapped, overwritten, left out or put in
EXTREMES = [0, 1, 0x7F, 0xFF, 0xFFFF, 2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1]
STEM = "emg_gestures-03-repeats_short-2018-05-11-11-05-00-000"
SMALL = "--subjects 3 --sessions 1 --repetitions 1 --channels 3 --sampling-rate 500"

Table = tuple[np.ndarray, np.ndarray, np.ndarray]  # time (N,), emg (N, C), labels (N,)


def rows(nightly: bool, folder: Path, seed: int, log: Callable[[str], None]) -> Iterator[Row]:
    """One row per kind of file."""
    make_files(folder)
    for kind in KINDS:
        count = MANY if nightly else FEW
        log(f"{count} damaged files: {kind}")
        row = Row("fuzz", f"damaged {kind}")
        for ended in run_batches([(try_file, kind, folder, seed, number) for number in range(count)], BATCH):
            row.add_call(ended)
        yield row


# ---- whole files ------------------------------------------------------------------------------------------------


def make_files(folder: Path) -> None:
    """A short simulated recording in every format, the windows of three, and a small Llama."""
    raw = make_recordings(folder, SMALL)
    make_windows(raw, folder / "windows.parquet", "--filter", "putemg")
    table = pd.read_hdf(next(raw.glob("*repeats_short*"))).iloc[:ROWS]
    (folder / "plain").mkdir()
    stored = {"key": "data", "format": "table", "index": False}
    table.to_hdf(folder / f"{STEM}.hdf5", **stored, complevel=5, complib="zlib")
    table.to_hdf(folder / "plain" / f"{STEM}.hdf5", **stored)
    table.to_csv(folder / f"{STEM}.csv")
    table.to_csv(folder / f"{STEM}.zip", compression={"method": "zip", "archive_name": f"{STEM}.csv"})
    write_gguf(small_model("llama"), folder / "small.gguf", MIXED)


# ---- damage -----------------------------------------------------------------------------------------------------


def damage(content: bytes, rng: np.random.Generator) -> tuple[bytes, str]:
    """A damaged copy, and what was done to it in words."""
    kind = str(rng.choice(list(DAMAGES)))
    damaged = bytearray(content)
    words = DAMAGES[kind](damaged, rng)
    return bytes(damaged), words


def flip(content: bytearray, rng: np.random.Generator) -> str:
    places = [place_in(content, rng) for _ in range(1 << int(rng.integers(6)))]
    for place in places:
        content[place] ^= 1 << int(rng.integers(8))
    return f"bits flipped at {places}"


def truncate(content: bytearray, rng: np.random.Generator) -> str:
    del content[(place := place_in(content, rng)) :]
    return f"cut at {place}"


def swap(content: bytearray, rng: np.random.Generator) -> str:
    size = int(rng.integers(1, BLOCK))
    one, other = place_in(content, rng), place_in(content, rng)
    first, second = content[one : one + size], content[other : other + size]
    content[one : one + len(second)], content[other : other + len(first)] = second, first
    return f"{size} bytes swapped at {one} and {other}"


def overwrite(content: bytearray, rng: np.random.Generator) -> str:
    place, size = place_in(content, rng), int(rng.integers(1, BLOCK))
    there = len(content[place : place + size])
    fill = int(rng.choice([0, 0xFF, -1]))
    content[place : place + size] = rng.bytes(there) if fill < 0 else bytes([fill]) * there
    return f"{there} bytes overwritten at {place}"


def leave_out(content: bytearray, rng: np.random.Generator) -> str:
    place, size = place_in(content, rng), int(rng.integers(1, BLOCK))
    del content[place : place + size]
    return f"{size} bytes left out at {place}"


def put_in(content: bytearray, rng: np.random.Generator) -> str:
    place, size = place_in(content, rng), int(rng.integers(1, BLOCK))
    content[place:place] = rng.bytes(size)
    return f"{size} bytes put in at {place}"


def claim(content: bytearray, rng: np.random.Generator) -> str:
    """Sizes and addresses are whole numbers of 1 to 8 bytes."""
    place, size, value = place_in(content, rng), int(rng.choice([1, 2, 4, 8])), int(rng.choice(len(EXTREMES)))
    value = EXTREMES[value] & (1 << 8 * size) - 1
    content[place : place + size] = value.to_bytes(size, "little")
    return f"{value} in {size} bytes at {place}"


def place_in(content: bytearray, rng: np.random.Generator) -> int:
    """Anywhere, or as often near the beginning or the end, where formats keep their structure."""
    size = len(content)
    near = min(size, 2 * BLOCK)
    return int(rng.choice([rng.integers(size), rng.integers(near), size - 1 - rng.integers(near)]))


DAMAGES = {f.__name__: f for f in (flip, truncate, swap, overwrite, leave_out, put_in, claim)}


# ---- one file ---------------------------------------------------------------------------------------------------


def try_file(kind: str, folder: Path, seed: int, number: int) -> str:
    """The outcome of reading a damaged file: "refused", "right", or what was wrong."""
    source, read, is_right = KINDS[kind]
    rng = np.random.default_rng([seed, list(KINDS).index(kind), number])
    content, words = damage((folder / source).read_bytes(), rng)
    with TemporaryDirectory(dir=folder) as place:
        path = Path(place) / Path(source).name
        path.write_bytes(content)
        try:
            found = read(path)
        except EMGError:
            return "refused"
        except Exception as error:  # a traceback, to the user
            return f"{source} with {words}: {type(error).__name__}: {error}"
        return "right" if is_right(found, folder / source, path) else f"{source} with {words}: a wrong result"


def is_recorded(found: Recording, whole: Path, damaged: Path) -> bool:
    """Whether it is what the whole file holds, or what another reader finds in the damaged one."""
    if same(found, other_reader(whole)):
        return True
    try:
        return same(found, other_reader(damaged))
    except Exception:  # the other reader may raise anything
        return False


def same(found: Recording, other: Table) -> bool:
    ours = found.time, found.emg, found.labels
    return all(a.shape == b.shape and np.allclose(a, b, rtol=1e-7, atol=1e-9) for a, b in zip(ours, other, strict=True))


def other_reader(path: Path) -> Table:
    """The recording in a file, read without this project's readers."""
    if path.suffix == ".hdf5":
        return by_h5py(path)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.lower().endswith(".csv"))
            return by_csv(archive.read(name))
    return by_csv(path.read_bytes())


def by_h5py(path: Path) -> Table:
    """All rows at once, inflated and checked by HDF5 itself."""
    with h5py.File(path) as file:
        table, places = file["data/table"][:], hdf5.column_places(file["data/table"])
    columns = {name: table[block][:, number] for name, (block, number) in places.items()}
    return chosen(table["index"], columns)


def by_csv(content: bytes) -> Table:
    header, *lines = csv.reader(io.StringIO(content.decode(errors="replace"), newline=""))
    numbers = [i for i, name in enumerate(header) if i == 0 or name.startswith("EMG_") or name == LABEL_COLUMN]
    values = np.array([[float(line[i]) for i in numbers] for line in lines if line])
    columns = dict(zip([header[i] for i in numbers], values.T, strict=True))
    return chosen(values[:, 0], columns)


def chosen(time: np.ndarray, columns: dict[str, np.ndarray]) -> Table:
    """Of all columns those that a recording has."""
    channels = sorted((name for name in columns if name.startswith("EMG_")), key=lambda name: int(name[4:]))
    return time, np.stack([columns[name] for name in channels], 1).astype(np.float32), columns[LABEL_COLUMN]


def read_windows(path: Path) -> tuple[WindowSet, np.ndarray]:
    """The file as main.py reads it, and as commands read a few of its windows."""
    windows = load_windows(Settings(DATA_LOCATION=path))
    some = np.arange(0, len(windows.table), 7)
    return windows, open_windows(path).emg[some]


def is_written(found: tuple[WindowSet, np.ndarray], whole: Path, _: Path) -> bool:
    """Whether it is what was written: a windows file has checksums, so nothing else is right."""
    windows, some = found
    expected, expected_some = read_windows(whole)
    tables = windows.metadata == expected.metadata and windows.table.equals(expected.table)
    return tables and np.array_equal(windows.emg, expected.emg) and np.array_equal(some, expected_some)


KINDS = {  # what is damaged → a whole file, its reader, and whether what was found is right
    "HDF5 recordings": (f"{STEM}.hdf5", read_recording, is_recorded),
    "HDF5 recordings, not compressed": (f"plain/{STEM}.hdf5", read_recording, is_recorded),
    "CSV recordings": (f"{STEM}.csv", read_recording, is_recorded),
    "zipped CSV recordings": (f"{STEM}.zip", read_recording, is_recorded),
    "windows in parquet": ("windows.parquet", read_windows, is_written),
    "language models in GGUF": ("small.gguf", read_gguf, is_converted),
}
