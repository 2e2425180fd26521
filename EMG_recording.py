"""The raw putEMG format: file names, HDF5 and CSV readers → `Recording`.

HDF5 files are pandas tables (`to_hdf(…, "data", format="table")`). pandas and PyTables unpickle attributes of
a file on opening it, which lets a doctored file run code; here h5py reads the rows, and the only pickles that are
looked at, the lists of column names, go through an unpickler that can build nothing but plain values.
"""

import io
import lzma
import pickle
import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from ENV import EMGError

RECORDING_NAME = re.compile(
    r"(?P<type>\w+)-(?P<subject>\d{2})-(?P<trajectory>\w+)-(?P<session>\d{4}-\d{2}-\d{2})-\d{2}-\d{2}-\d{2}-\d{3}"
)
SUFFIXES = (".hdf5", ".csv", ".zip")
LABEL_COLUMN = "TRAJ_GT"  # ground truth from video, after the data set's own processing
UNLABELLED = -1  # relax and pause: never a class
ROWS_PER_READ = 100_000
MAX_ATTRIBUTE_BYTES = 1 << 20  # HDF5 itself keeps attributes below 64 KB, unless they are stored apart

Chunk = tuple[np.ndarray, np.ndarray]  # time (n,) s; values (n, columns) float64


@dataclass(frozen=True)
class Recording:
    """One raw file: `time` (N,) float64 s, `emg` (N, C) float32 in ADC counts, `labels` (N,) int8."""

    name: str
    subject: str
    session: str
    trajectory: str
    channels: tuple[str, ...]
    time: np.ndarray
    emg: np.ndarray
    labels: np.ndarray

    @property
    def sampling_rate(self) -> float:
        """Hz, from the file's own clock."""
        return (len(self.time) - 1) / (self.time[-1] - self.time[0])


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


def read_recording(path: Path) -> Recording:
    """Read one HDF5, CSV or zipped CSV file.

    Raises EMGError, in one sentence with the file's name, for everything that is wrong with the file: no HDF5 or
    CSV, truncated, another layout, missing channels or labels, values that are not finite, a clock that jumps or
    runs backwards, constant channels, labels that are not whole numbers ≥ −1.
    """
    with named(path), _explained():
        identity = _parse_name(path.stem)
        channels, chunks = _read_hdf5(path) if path.suffix.lower() == ".hdf5" else _read_csv(path)
        time, values = _join(chunks, columns=len(channels) + 2)
        emg, labels, subjects = values[:, :-2], values[:, -2], values[:, -1]
        _check_clock(time)
        _check_emg(emg, channels)
        _check_labels(labels)
        _check_subject(subjects, identity["subject"])
        return Recording(path.stem, **identity, channels=channels, time=time, emg=emg, labels=labels.astype(np.int8))


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Put the file's name before the message of any EMGError."""
    try:
        yield
    except EMGError as error:
        raise EMGError(f"{path}: {error}") from None


@contextmanager
def _explained() -> Iterator[None]:
    """Turn whatever a broken file makes the readers raise into one EMGError."""
    try:
        yield
    except EMGError:
        raise
    except MemoryError:
        raise EMGError("the file claims more rows than memory holds; download it again") from None
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, pickle.UnpicklingError) as error:
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


def _read_hdf5(path: Path) -> tuple[tuple[str, ...], Iterator[Chunk]]:
    """Channel names, and chunks whose columns are the channels, the label and the subject."""
    with h5py.File(path) as file:
        places = _column_places(_table(file))
    channels, wanted = _choose_columns(list(places))

    def chunks() -> Iterator[Chunk]:
        with h5py.File(path) as file:
            table = _table(file)
            for start in range(0, len(table), ROWS_PER_READ):
                rows = table[start : start + ROWS_PER_READ]
                yield rows["index"], np.column_stack([rows[block][:, i] for block, i in (places[c] for c in wanted)])

    return channels, chunks()


def _table(file: h5py.File) -> h5py.Dataset:
    table = file.get("data/table")
    if not isinstance(table, h5py.Dataset) or table.ndim != 1 or "index" not in (table.dtype.names or ()):
        raise EMGError("there is no pandas table /data/table in it; only putEMG's own layout can be read")
    return table


def _column_places(table: h5py.Dataset) -> dict[str, tuple[str, int]]:
    """Column name → (block of the compound row, position in the block), from the attributes that pandas wrote."""
    blocks = [name for name in table.dtype.names if name.startswith("values_block_")]
    return {
        str(column): (block, position)
        for block in blocks
        for position, column in enumerate(_plain_list(table.attrs, f"{block}_kind"))
    }


def _plain_list(attributes: h5py.AttributeManager, name: str) -> list:
    """The pickled list in an attribute, or [] where it holds anything else; never runs what the pickle asks for."""
    if name not in attributes or attributes.get_id(name).get_storage_size() > MAX_ATTRIBUTE_BYTES:
        return []
    value = attributes[name]
    try:
        columns = _PlainUnpickler(io.BytesIO(value), encoding="latin1").load() if isinstance(value, bytes) else []
    except Exception as error:  # a broken pickle can raise anything
        raise EMGError(f"the attribute {name} is damaged ({error}); download the file again") from None
    return columns if isinstance(columns, list) else []


class _PlainUnpickler(pickle.Unpickler):
    """Builds numbers, strings and lists; refuses every class and function, and so can run nothing."""

    def find_class(self, module: str, name: str):
        raise pickle.UnpicklingError(f"an attribute asks to run {module}.{name}")


# ---- CSV ------------------------------------------------------------------------------------------------------


def _read_csv(path: Path) -> tuple[tuple[str, ...], Iterator[Chunk]]:
    """Channel names, and chunks whose columns are the channels, the label and the subject."""
    with _csv_stream(path) as stream:
        header = pd.read_csv(stream, nrows=0).columns
    channels, wanted = _choose_columns(list(header[1:]))

    def chunks() -> Iterator[Chunk]:
        columns = {header[0]: np.float64} | dict.fromkeys(wanted, np.float64)
        options = {"usecols": list(columns), "dtype": columns}
        with _csv_stream(path) as stream:
            for frame in pd.read_csv(stream, chunksize=ROWS_PER_READ, **options):
                yield frame[header[0]].to_numpy(), frame[wanted].to_numpy()

    return channels, chunks()


@contextmanager
def _csv_stream(path: Path) -> Iterator[io.IOBase]:
    if path.suffix.lower() != ".zip":
        with path.open("rb") as stream:
            yield stream
        return
    with zipfile.ZipFile(path) as archive:
        inside = [name for name in archive.namelist() if name.lower().endswith(".csv")]
        if len(inside) != 1:
            raise EMGError(f"the zip holds {len(inside)} CSV files instead of one; download it again")
        with archive.open(inside[0]) as stream:
            yield stream


# ---- what both have in common ---------------------------------------------------------------------------------


def _choose_columns(columns: list[str]) -> tuple[tuple[str, ...], list[str]]:
    """Channel names EMG_1 … EMG_C, and the columns to read: the channels, the label, the subject."""
    numbers = sorted(int(c[4:]) for c in columns if re.fullmatch(r"EMG_[1-9]\d{0,3}", c))
    if not numbers:
        raise EMGError("there are no columns EMG_1, EMG_2, …; only putEMG's own layout can be read")
    missing = sorted(set(range(1, numbers[-1] + 1)) - set(numbers))
    if missing:
        raise EMGError(f"channels are missing ({', '.join(f'EMG_{n}' for n in missing)}); download the file again")
    if "TRAJ_2" in columns or "FORCE_1" in columns:
        raise EMGError("the columns are those of a putEMG-Force recording, which has no gesture labels; leave it out")
    absent = [c for c in (LABEL_COLUMN, "subject") if c not in columns]
    if absent:
        raise EMGError(f"the column {absent[0]} is missing; only putEMG's own layout can be read")
    channels = tuple(f"EMG_{n}" for n in numbers)
    return channels, [*channels, LABEL_COLUMN, "subject"]


def _join(chunks: Iterator[Chunk], columns: int) -> tuple[np.ndarray, np.ndarray]:
    """time (N,) float64 and values (N, columns) float32; counts and labels are exact in float32."""
    times, values = [np.empty(0)], [np.empty((0, columns), np.float32)]
    for time, chunk in chunks:
        times.append(np.asarray(time, np.float64))
        values.append(chunk.astype(np.float32))
    return np.concatenate(times), np.concatenate(values)


def _check_clock(time: np.ndarray) -> None:
    if len(time) < 2:
        raise EMGError(f"the recording is empty ({len(time)} rows); download it again")
    if not np.isfinite(time).all():
        raise EMGError("the clock holds values that are no numbers; download the file again")
    steps = np.diff(time)
    usual = np.median(steps)
    backwards, jumps = np.flatnonzero(steps <= 0), np.flatnonzero(np.abs(steps - usual) > 0.5 * usual)
    if len(backwards):
        row = backwards[0] + 1
        raise EMGError(f"the clock runs backwards at row {row} ({time[row]:.3f} s); download the file again")
    if len(jumps):
        row = jumps[0] + 1
        raise EMGError(
            f"the clock jumps by {steps[row - 1]:.4f} s at row {row} ({time[row]:.3f} s), samples are lost; "
            "download the file again, or leave it out"
        )


def _check_emg(emg: np.ndarray, channels: tuple[str, ...]) -> None:
    bad = ~np.isfinite(emg)
    if bad.any():
        row, channel = np.argwhere(bad)[0]
        raise EMGError(
            f"{bad.sum()} samples are NaN or infinite, the first in {channels[channel]} at row {row}; "
            "mend the file or leave it out"
        )
    constant = [name for name, span in zip(channels, np.ptp(emg, axis=0), strict=True) if span == 0]
    if constant:
        raise EMGError(f"{', '.join(constant)} never changes, so the electrode was off; leave the recording out")


def _check_labels(labels: np.ndarray) -> None:
    with np.errstate(invalid="ignore"):
        wrong = np.flatnonzero(~((labels == np.rint(labels)) & (labels >= UNLABELLED) & (labels <= 127)))
    if len(wrong):
        raise EMGError(
            f"{LABEL_COLUMN} is {labels[wrong[0]]:g} at row {wrong[0]}, and labels are whole numbers from −1 to 127; "
            "mend the file or leave it out"
        )


def _check_subject(subjects: np.ndarray, subject: str) -> None:
    if not (subjects == int(subject)).all():
        found = subjects[subjects != int(subject)][0]
        raise EMGError(f"the name says subject {subject} but the rows say {found:g}; give the file its own name back")
