"""CSV files with a header, plain or zipped: column 0 is the clock."""

import csv
import io
import zipfile
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd

from emg_gpt2.base.errors import EMGError
from emg_gpt2.raw.recording import BYTES_AT_ONCE, ROWS_AT_ONCE, Choose, Chunk, Table, check_length, join_chunks

MAX_HEADER_BYTES = 1 << 18  # 9999 channels have 100 KB
LINE_PER_HEADER = 16  # a line of numbers is at most so many times as long as the header
DENSEST_ZIP = 200  # most bytes that one byte unpacks to: a clock never repeats itself, so even silence has only 40


def read_csv(path: Path, choose: Choose) -> Table:
    """The columns that `choose` picks. Raises EMGError, and what zipfile and pandas raise for damaged files."""
    with _open_text(path) as stream:
        first_line = stream.readline(MAX_HEADER_BYTES)
    header = pd.read_csv(io.BytesIO(first_line), nrows=0).columns
    channels, others = choose(list(header[1:]))
    wanted = [header[0], *channels, *others]
    options = {"usecols": wanted, "dtype": dict.fromkeys(wanted, np.float64)}
    options |= {"chunksize": min(ROWS_AT_ONCE, 1 + BYTES_AT_ONCE // len(first_line))}
    options |= {"names": header, "header": 0}  # the names as read above, which loses quotation marks
    options |= {"quoting": csv.QUOTE_NONE}  # an open quotation mark would make pandas collect the rest of the file
    chunks, rows = deque(), 0
    with _open_text(path) as stream:
        for frame in pd.read_csv(_ShortLines(stream, LINE_PER_HEADER * len(first_line)), **options):
            chunks.append(_as_chunk(frame, channels, others))
            check_length(rows := rows + len(frame), len(channels))
    taken = (chunks.popleft() for _ in range(len(chunks)))  # so that each is freed once it was copied
    return join_chunks(taken, rows, channels, others)


def _as_chunk(frame: pd.DataFrame, channels: list[str], others: list[str]) -> Chunk:
    return frame.iloc[:, 0].to_numpy(), frame[channels].to_numpy(np.float32), frame[others].to_numpy()


class _ShortLines(io.RawIOBase):
    """A stream of text that raises EMGError at a line of more than `longest` bytes: pandas would hold it whole."""

    def __init__(self, stream: io.IOBase, longest: int):
        self.stream, self.longest = stream, longest
        self.begun = 0  # bytes of the line in which the last piece ended

    def read(self, size: int = -1) -> bytes:
        piece = self.stream.read(size)
        ends = np.append(np.flatnonzero(np.frombuffer(piece, np.uint8) == ord("\n")), len(piece))
        lines = np.diff(ends, prepend=-1 - self.begun) - 1
        self.begun = lines[-1]
        if lines.max() > self.longest:
            raise EMGError(f"the file is damaged (a line has more than {self.longest} bytes); download it again")
        return piece


@contextmanager
def _open_text(path: Path) -> Iterator[io.IOBase]:
    """The CSV, or the only one in a zip. Nothing is unpacked to disk."""
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
    """Raises EMGError for what only a malicious zip has: a path that leaves the folder, a bomb, an LZMA dictionary."""
    name = member.filename.replace("\\", "/")
    if name.startswith("/") or ".." in name.split("/") or ":" in name:
        raise EMGError(f"the zip holds {member.filename}, a name that leads out of it; download it again")
    if member.compress_type == zipfile.ZIP_LZMA:  # which may ask for 4 GB
        raise EMGError("the zip is packed by LZMA and cannot be read; download it again")
    if member.file_size > DENSEST_ZIP * max(1, member.compress_size):
        raise EMGError(f"the zip claims {member.file_size} bytes in {member.compress_size}; download it again")
