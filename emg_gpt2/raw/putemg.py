"""The raw putEMG format: file names, HDF5 and CSV readers → `Recording`.

HDF5 files are pandas tables (`to_hdf(…, "data", format="table")`), which a process of its own reads: see hdf5.
"""

import csv
import io
import json
import lzma
import os
import re
import subprocess
import sys
import threading
import zipfile
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import numpy as np
import pandas as pd

from emg_gpt2.base.errors import EMGError
from emg_gpt2.raw import hdf5
from emg_gpt2.raw.recording import (
    ABSENT,
    PLAIN_COLUMNS,
    Chunk,
    Recording,
    check_clock,
    check_emg,
    check_is_file,
    check_labels,
    check_length,
    check_subject,
    join,
    named,
)

RECORDING_NAME = re.compile(
    r"(?P<type>\w+)-(?P<subject>\d{2})-(?P<trajectory>\w+)-(?P<session>\d{4}-\d{2}-\d{2})-\d{2}-\d{2}-\d{2}-\d{3}"
)
SUFFIXES = (".hdf5", ".csv", ".zip")
LEAST_PATIENCE, SLOWEST_DISK = 60, 1e6  # s, and bytes per s, that an HDF5 file is waited for
CRASHED = "the file is damaged (HDF5's library crashed on it, or found no end); download it again"
MAX_HEADER_BYTES = 1 << 18  # of a CSV: 9999 channels have 100 KB
DENSEST_ZIP = 200  # times smaller: a clock never repeats itself, so a CSV without any signal is 40 times smaller
LINE_PER_HEADER = 16  # a line of numbers is not longer than so many headers


_processes = threading.local()


def find_recordings(places: list[Path]) -> list[Path]:
    """Raw files among `places` and in the folders below them, by name; raises EMGError where there are none."""
    found = []
    for place in places:
        try:
            place.stat()
        except OSError as error:
            raise EMGError(f"{place}: there is no such file or folder ({error.strerror}); check the path") from None
        inside = [p for p in place.rglob("*") if p.suffix.lower() in SUFFIXES] if place.is_dir() else [place]
        if not inside:
            raise EMGError(
                f"{place}: the folder holds no recording ({', '.join(SUFFIXES)}); name the folder of the downloads"
            )
        found += inside
    return sorted(set(found), key=lambda path: (path.stem, path.suffix, str(path)))


def read_recording(path: Path, labelled: bool = True) -> Recording:
    """Read one HDF5, CSV or zipped CSV file; unless it has to be `labelled`, clock and channels are enough.

    Labels that are not there are −1 throughout.

    Raises EMGError, in one sentence with the file's name, for everything that is wrong with the file: no HDF5 or
    CSV, truncated, another layout, missing channels or labels, values that are not finite, a clock that jumps or
    runs backwards, labels that are not whole numbers ≥ −1. Dead electrodes are for `check_electrodes`.
    """
    with named(path), _explained():
        check_is_file(path)
        identity = _parse_name(path.stem)
        read = _read_hdf5 if path.suffix.lower() == ".hdf5" else _read_csv
        channels, rows, chunks = read(path, labelled)
        time, emg, labels, subjects = join(chunks, rows, len(channels))
        check_clock(time)
        check_emg(emg, channels)
        check_labels(labels)
        check_subject(subjects if labelled else subjects[subjects != ABSENT], identity["subject"])
        return Recording(path.stem, **identity, channels=channels, time=time, emg=emg, labels=labels.astype(np.int8))


@contextmanager
def _explained() -> Iterator[None]:
    """Turn whatever a broken file makes the readers raise into one EMGError."""
    try:
        yield
    except EMGError:
        raise
    except MemoryError:
        raise EMGError("the file claims more rows than memory holds; download it again") from None
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError) as error:
        raise EMGError(f"the file is damaged ({error}); download it again") from None
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, IndexError, EOFError) as error:
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise EMGError(f"the file cannot be read ({reason}); download it again") from None


def _parse_name(stem: str) -> dict[str, str]:
    match = RECORDING_NAME.fullmatch(stem)
    if not match:
        raise EMGError("the name is not TYPE-SUBJECT-TRAJECTORY-DATE-TIME; give the file the name it has in putEMG")
    if match["type"] != "emg_gestures":
        raise EMGError(f"a recording of {match['type']} has no gesture labels; leave it out")
    return {key: match[key] for key in ("subject", "session", "trajectory")}


# ---- HDF5 -----------------------------------------------------------------------------------------------------


def _read_hdf5(path: Path, labelled: bool) -> tuple[tuple[str, ...], int, Iterator[Chunk]]:
    """Channel names, number of rows, and the recording in chunks."""
    with _asked(path) as answer:
        found = _words(answer)
    channels = _choose_columns(found["columns"], labelled)
    check_length(found["rows"], len(channels))
    return channels, found["rows"], _hdf5_chunks(path, channels, [c for c in PLAIN_COLUMNS if c in found["columns"]])


def _hdf5_chunks(path: Path, channels: tuple[str, ...], others: list[str]) -> Iterator[Chunk]:
    with _asked(path, channels=channels, others=others) as answer:
        while count := _words(answer)["rows"]:
            time, emg = _numbers(answer, (count,), np.float64), _numbers(answer, (count, len(channels)), np.float32)
            values = dict(zip(others, _numbers(answer, (count, len(others)), np.float64).T, strict=True))
            yield time, emg, *(values.get(column, np.full(count, ABSENT)) for column in PLAIN_COLUMNS)


class _ProblemError(EMGError):
    """What the process found wrong with the file."""


@contextmanager
def _asked(path: Path, **columns: Sequence[str]) -> Iterator[IO[bytes]]:
    """The answer of a process that reads HDF5 (see hdf5): it ends where the process crashed or took too long."""
    process = _hdf5_process()
    timer = threading.Timer(LEAST_PATIENCE + path.stat().st_size / SLOWEST_DISK, process.kill)
    timer.start()
    try:
        process.stdin.write(json.dumps({"path": os.path.abspath(path)} | columns).encode() + b"\n")
        process.stdin.flush()
        yield process.stdout
    except _ProblemError:  # which is the whole answer
        raise
    except BrokenPipeError:
        with suppress(OSError):  # of what is still to be written
            process.stdin.close()
        raise EMGError(CRASHED) from None
    except BaseException:  # what is left of the answer is for nobody
        process.kill()
        process.wait()
        raise
    finally:
        timer.cancel()


def _hdf5_process() -> subprocess.Popen:
    """This thread's own, which reads one file after the other; a process that was forked starts another."""
    mine = getattr(_processes, "mine", None)
    if mine is None or mine.poll() is not None or _processes.parent != os.getpid():
        command = [sys.executable, hdf5.__file__]
        mine = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        _processes.mine, _processes.parent = mine, os.getpid()
    return mine


def _words(answer: IO[bytes]) -> dict:
    line = answer.readline()
    if not line.endswith(b"\n"):
        raise EMGError(CRASHED)
    words = json.loads(line)
    if "problem" in words:
        raise _ProblemError(words["problem"])
    return words


def _numbers(answer: IO[bytes], shape: tuple[int, ...], kind: type) -> np.ndarray:
    return np.frombuffer(answer.read(int(np.prod(shape)) * np.dtype(kind).itemsize), kind).reshape(shape)


# ---- CSV ------------------------------------------------------------------------------------------------------


def _read_csv(path: Path, labelled: bool) -> tuple[tuple[str, ...], int, Iterator[Chunk]]:
    """Channel names, number of rows, and the recording in chunks."""
    with _csv_stream(path) as stream:
        first_line = stream.readline(MAX_HEADER_BYTES)
    header = pd.read_csv(io.BytesIO(first_line), nrows=0).columns
    channels = _choose_columns(list(header[1:]), labelled)

    wanted = [header[0], *channels, *(name for name in PLAIN_COLUMNS if name in header)]
    together = min(hdf5.ROWS_PER_READ, 1 + hdf5.BYTES_PER_READ // len(first_line))
    options = {"usecols": wanted, "dtype": dict.fromkeys(wanted, np.float64), "chunksize": together}
    options |= {"names": header, "header": 0}  # as they were read, without quotation marks if there are any
    options |= {"quoting": csv.QUOTE_NONE}  # one that is never closed would collect all that follows
    chunks, count = deque(), 0
    with _csv_stream(path) as stream:
        for frame in pd.read_csv(_ShortLines(stream, LINE_PER_HEADER * len(first_line)), **options):
            chunks.append(_csv_chunk(frame, header[0], channels))
            check_length(count := count + len(frame), len(channels))
    return channels, count, (chunks.popleft() for _ in range(len(chunks)))  # each is freed when it was joined


def _csv_chunk(frame: pd.DataFrame, clock: str, channels: tuple[str, ...]) -> Chunk:
    others = [frame.get(name, pd.Series(ABSENT, frame.index)).to_numpy() for name in PLAIN_COLUMNS]
    return frame[clock].to_numpy(), frame[list(channels)].to_numpy(np.float32), *others


class _ShortLines(io.RawIOBase):
    """A stream of text that raises EMGError in a line of more than `longest` bytes: pandas would hold it whole."""

    def __init__(self, stream: io.IOBase, longest: int):
        self.stream, self.longest, self.begun = stream, longest, 0  # bytes of the line that the last piece ended in

    def read(self, size: int = -1) -> bytes:
        piece = self.stream.read(size)
        ends = np.append(np.flatnonzero(np.frombuffer(piece, np.uint8) == ord("\n")), len(piece))
        lines = np.diff(ends, prepend=-1 - self.begun) - 1
        self.begun = lines[-1]
        if lines.max() > self.longest:
            raise EMGError(f"the file is damaged (a line has more than {self.longest} bytes); download it again")
        return piece


@contextmanager
def _csv_stream(path: Path) -> Iterator[io.IOBase]:
    if path.suffix.lower() != ".zip":
        with path.open("rb") as stream:
            yield stream
        return
    with zipfile.ZipFile(path) as archive:
        inside = [member for member in archive.infolist() if member.filename.lower().endswith(".csv")]
        if len(inside) != 1:
            raise EMGError(f"the zip holds {len(inside)} CSV files instead of one; download it again")
        _check_member(inside[0])
        with archive.open(inside[0]) as stream:
            yield stream


def _check_member(member: zipfile.ZipInfo) -> None:
    """Nothing is unpacked here, but who hides the place of a file, or packs too much into it, means no good."""
    name = member.filename.replace("\\", "/")
    if name.startswith("/") or ".." in name.split("/") or ":" in name:
        raise EMGError(f"the zip holds {member.filename}, a name that leads out of it; download it again")
    if member.compress_type == zipfile.ZIP_LZMA:  # which may ask for 4 GB
        raise EMGError("the zip is packed by LZMA and cannot be read; download it again")
    if member.file_size > DENSEST_ZIP * max(1, member.compress_size):
        raise EMGError(f"the zip claims {member.file_size} bytes in {member.compress_size}; download it again")


# ---- what both have in common ---------------------------------------------------------------------------------


def _choose_columns(columns: list[str], labelled: bool) -> tuple[str, ...]:
    """Channel names EMG_1 … EMG_C; raises EMGError where they, or needed labels and subject, are missing."""
    numbers = sorted(int(c[4:]) for c in columns if re.fullmatch(r"EMG_[1-9]\d{0,3}", c))
    strange = [c for c in columns if c.startswith("EMG_") and not re.fullmatch(r"EMG_[1-9]\d{0,3}", c)]
    if not numbers:
        raise EMGError("there are no columns EMG_1, EMG_2, …; only putEMG's own layout can be read")
    if strange:
        raise EMGError(f"the column {strange[0]!r} is no channel, whose name is EMG_ and a number; mend the file")
    missing = sorted(set(range(1, numbers[-1] + 1)) - set(numbers))
    if missing:
        raise EMGError(f"channels are missing ({', '.join(f'EMG_{n}' for n in missing)}); download the file again")
    if "TRAJ_2" in columns or "FORCE_1" in columns:
        raise EMGError("the columns are those of a putEMG-Force recording, which has no gesture labels; leave it out")
    absent = [c for c in PLAIN_COLUMNS if c not in columns]
    if absent and labelled:
        raise EMGError(f"the column {absent[0]} is missing; only putEMG's own layout can be read")
    return tuple(f"EMG_{n}" for n in numbers)
