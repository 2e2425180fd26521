"""One recording → its windows → a windows file, and windows files → one.

A windows file (parquet) of one recording is a part. Parts are made side by side, on this machine or on others, and
joined in the order of the recordings. A part that is there already, by itself or inside an earlier output, is used
again where recording, settings and code are still the same, and checksums say that it is whole.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import chain, pairwise
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy

import EMG_filter
import EMG_hdf5
import EMG_recording
from EMG_filter import apply_filter, resample, resampled_rate
from EMG_format import FORMAT_VERSION, columns, open_file, with_checksum
from EMG_recording import Recording, check_electrodes, check_is_file, named, read_recording
from ENV import EMGError, Settings

SETTINGS_KEPT = (
    *("FILTER", "BAND_HZ", "SAMPLE_RATE", "WINDOW_MS", "STRIDE_MS", "TRIM_START_MS", "TRIM_END_MS"),
    "LEGAL_VALUES",
)
SOURCE_KEYS = {"name", "size", "sha256", "rows", "sampling_rate", "unit", "windows", "windows_sha256"}
LARGEST_SAMPLE = 1e9  # counts, µV or V: far above any amplifier, and safe to square
LARGEST_COUNT = 2**24  # from there on every float32 is a whole number
COUNT_STEP = 0.25  # counts per stored step: an error of 0.25 / √12 = 0.07 counts RMS, below the amplifier's noise
MOST_REPETITIONS = np.iinfo(np.int16).max  # of one label, in a recording
RATE_TOLERANCE = 1e-3  # putEMG's clocks differ by 1e-5
WINDOWS_PER_ROW_GROUP = 1000
ENCODING = {  # chosen by `python -m tools.benchmark storage`
    "compression": "zstd",
    "compression_level": 3,
    "column_encoding": {"emg.list.element": "BYTE_STREAM_SPLIT"},  # high and low bytes apart compress better
    "use_dictionary": ["TRAJ_GT", "subject", "session", "trajectory", "recording", "repetition", "start"],
    "write_page_checksum": True,
}


@dataclass(frozen=True)
class Layout:
    """What all recordings of one file share: it is set by the first one, and the others must agree."""

    name: str  # of the recording that set it
    channels: tuple[str, ...]
    rate: float  # Hz, of the windows
    window: int  # samples
    stride: int  # samples
    unit: str  # "count" where the raw samples are whole ADC counts, else "as recorded"

    @property
    def counts(self) -> bool:
        return self.unit == "count"

    @property
    def scale(self) -> float:
        """Stored value × scale = value in `unit`."""
        return COUNT_STEP if self.counts else 1.0

    @property
    def columns(self) -> pa.Schema:
        return columns(self.window, len(self.channels), self.counts)

    @property
    def stored(self) -> tuple:
        """What decides how a recording that agrees is cut and stored."""
        return self.channels, self.window, self.stride, self.unit


@dataclass(frozen=True)
class Windows:
    """One entry per window of a recording: its first row in the filtered signal, and what identifies it."""

    first: np.ndarray
    label: np.ndarray
    repetition: np.ndarray
    start: np.ndarray  # s, in the recording's clock


@dataclass(frozen=True)
class Part:
    """The windows of one recording: row groups of a windows file."""

    file: Path
    groups: range
    layout: Layout  # of the file
    source: dict  # the recording, as the file's metadata describe it
    counts: Counter = field(default_factory=Counter)  # windows per label

    @property
    def seconds(self) -> float:
        return self.source["rows"] / self.source["sampling_rate"]


@dataclass(frozen=True)
class Result:
    """What became of one file: a part, or a problem in one sentence."""

    name: str
    part: Part | None = None
    problem: str = ""
    reused: bool = False  # the part was there already


@dataclass(frozen=True)
class Workshop:
    """What every worker knows: where parts go, and how they are made."""

    folder: Path
    settings: Settings


def process(path: Path, layout: Layout | None, earlier: Part | None, workshop: Workshop) -> Result:
    """The part of one recording, found or made; without a `layout` it sets its own.

    `earlier` is the part of a recording of that name in the output of a run before. Raises OSError where the part
    cannot be written; whatever is wrong with the recording is the result's problem.
    """
    try:
        with named(path):
            before, source = _identity(path), describe_file(path)
            file = _part_file(source, layout, workshop)
            own = finished_parts(file, workshop.settings).get(path.name)
            part = _whole_part((own, earlier), path.stem, source, layout, workshop.settings)
        if part:
            return Result(path.stem, part, reused=True)
        recording = read_recording(path)
        with named(path):
            if _identity(path) != before:
                raise EMGError("the file changed while it was read; run the same command again when it is complete")
            return Result(path.stem, _make_part(recording, source, layout, file, workshop.settings))
    except EMGError as error:
        return Result(path.stem, problem=str(error))


# ---- one recording --------------------------------------------------------------------------------------------


def _make_part(recording: Recording, source: dict, layout: Layout | None, file: Path, settings: Settings) -> Part:
    check_electrodes(recording)
    source |= {"rows": len(recording.time), "sampling_rate": recording.sampling_rate, "unit": unit_of(recording)}
    layout = agreed_layout(recording.name, recording.channels, source, layout, settings)
    emg, rate = filter_and_resample(recording, settings)
    windows = cut_windows(recording, rate, len(emg), layout, settings)
    if not len(windows.label):
        raise EMGError("no repetition is long enough for a window; lower WINDOW_MS, TRIM_START_MS or TRIM_END_MS")
    source["windows"] = len(windows.label)
    source["windows_sha256"] = checksum(encode(recording, emg, windows, layout))
    part = Part(file, _groups(0, source), layout, source, _count(windows.label))
    write_windows(file, encode(recording, emg, windows, layout), describe([part], layout, settings))
    return part


def filter_and_resample(recording: Recording, settings: Settings) -> tuple[np.ndarray, float]:
    """(N, C) raw samples → (M, C) filtered samples, and their rate in Hz; the recording's samples are overwritten."""
    filtered = apply_filter(recording.emg, recording.time, settings.FILTER, settings.BAND_HZ, overwrite=True)
    if not np.isfinite(filtered.sum()):
        raise EMGError("the filter gives values that are no numbers at this sampling rate; choose another FILTER")
    check_size(filtered)
    return resample(filtered, recording.sampling_rate, settings.SAMPLE_RATE)


def check_size(samples: np.ndarray) -> None:
    """Raises EMGError where filtered samples are larger than any that an amplifier gives, or no numbers."""
    if not max(samples.max(initial=0), -samples.min(initial=0)) < LARGEST_SAMPLE:
        raise EMGError(f"its samples are no muscle's: {LARGEST_SAMPLE:g} or more after the filter; mend the file")


def cut_windows(recording: Recording, rate: float, samples: int, layout: Layout, settings: Settings) -> Windows:
    """Windows of a signal of `samples` at `rate` Hz, each inside one repetition less its trimmed edges.

    Repetitions are numbered from 0 for each label of the recording, −1 and labels that are not legal aside. Each
    sample belongs to the repetition of the recording's sample that is nearest to it, so none reaches over a label that
    was too short to leave a sample. Raises EMGError where there are more repetitions than a windows file can number.
    """
    nearest = np.rint(np.arange(samples) * recording.sampling_rate / rate).clip(max=len(recording.labels) - 1)
    trim_start, trim_end = (round(ms * rate / 1000) for ms in (settings.TRIM_START_MS, settings.TRIM_END_MS))
    starts, window_labels, repetitions, seen = [], [], [], Counter()
    for *bounds, label in label_runs(recording.labels):
        if label < 0 or (settings.LEGAL_VALUES and label not in settings.LEGAL_VALUES):
            continue
        first, end = np.searchsorted(nearest, bounds).tolist()
        inside = range(first + trim_start, end - trim_end - layout.window + 1, layout.stride)
        starts += inside
        window_labels += [label] * len(inside)
        repetitions += [seen[label]] * len(inside)
        seen[label] += 1
    if max(repetitions, default=0) > MOST_REPETITIONS:
        raise EMGError(f"a label comes and goes more than {MOST_REPETITIONS} times; mend the labels or leave it out")
    first = np.array(starts, int)
    start = recording.time[0] + first / rate
    return Windows(first, np.array(window_labels, np.int8), np.array(repetitions, np.int16), start)


def label_runs(labels: np.ndarray) -> list[tuple[int, int, int]]:
    """(first, end, label) of each uninterrupted run in (M,) labels; `end` is one past the last sample."""
    bounds = [0, *(np.flatnonzero(np.diff(labels)) + 1), len(labels)]
    return [(int(first), int(end), int(labels[first])) for first, end in pairwise(bounds)]


def agreed_layout(
    name: str, channels: tuple[str, ...], source: dict, layout: Layout | None, settings: Settings
) -> Layout:
    """The file's layout, or the recording's own where it is the first; raises EMGError where the two disagree."""
    found = _own_layout(name, channels, source, settings)
    if layout is None:
        return found
    apart = "preprocess the two kinds of recording into different files"
    if found.channels != layout.channels:
        raise EMGError(f"{len(found.channels)} channels, where {layout.name} has {len(layout.channels)}; {apart}")
    if abs(found.rate / layout.rate - 1) > RATE_TOLERANCE:
        raise EMGError(
            f"{found.rate:.2f} Hz, where {layout.name} has {layout.rate:.2f} Hz; set SAMPLE_RATE to a rate that all "
            f"recordings reach, or {apart}"
        )
    if layout.counts and not found.counts:
        raise EMGError(f"the samples are not whole numbers, where those of {layout.name} are; {apart}")
    return layout


def _own_layout(name: str, channels: tuple[str, ...], source: dict, settings: Settings) -> Layout:
    rate = resampled_rate(source["sampling_rate"], settings.SAMPLE_RATE)
    window, stride = (round(ms * rate / 1000) for ms in (settings.WINDOW_MS, settings.STRIDE_MS))
    if min(window, stride) < 1:
        raise EMGError(f"WINDOW_MS and STRIDE_MS must each reach one sample, which is {1000 / rate:g} ms; raise them")
    return Layout(name, channels, rate, window, stride, source["unit"])


def unit_of(recording: Recording) -> str:
    """`count` where all samples are whole ADC counts, else `as recorded`."""
    blocks = (recording.emg[first : first + 100_000] for first in range(0, len(recording.emg), 100_000))
    counts = all(((x == np.rint(x)) & (np.abs(x) < LARGEST_COUNT)).all() for x in blocks)
    return "count" if counts else "as recorded"


def describe_file(path: Path) -> dict:
    """Name, size and checksum of a recording; raises EMGError where it cannot be read."""
    try:
        check_is_file(path)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return {"name": path.name, "size": file.tell(), "sha256": digest}
    except OSError as error:
        raise _went_away(error) from None


def _identity(path: Path) -> tuple[int, int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise _went_away(error) from None
    return status.st_ino, status.st_size, status.st_mtime_ns


def _went_away(error: OSError) -> EMGError:
    return EMGError(f"the file is not there any more, or not seen from here ({error.strerror}); put it back")


# ---- parts that are there already -----------------------------------------------------------------------------


def _whole_part(
    candidates: Iterable[Part | None], name: str, source: dict, layout: Layout | None, settings: Settings
) -> Part | None:
    """The first part of the same recording that is whole and was cut as it would be now."""
    for part in filter(None, candidates):
        if part.source["sha256"] != source["sha256"]:
            continue
        agreed = agreed_layout(name, part.layout.channels, part.source, layout, settings)
        if agreed.stored == part.layout.stored and (counts := _counts_if_whole(part)):
            return Part(part.file, part.groups, agreed, part.source, counts)
    return None


def finished_parts(file: Path, settings: Settings) -> dict[str, Part]:
    """Part of every recording in a windows file, by its file name; none where the file was made in another way.

    A damaged description counts as none.
    """
    try:
        with open_file(file) as (_, metadata):
            pass
    except EMGError:
        return {}
    if [metadata["settings"], metadata["code"]] != [_kept(settings), code()]:
        return {}
    if any(set(source) != SOURCE_KEYS for source in metadata["sources"]):
        return {}
    names = ("sampling_rate", "window", "stride", "unit")
    layout = Layout(file.stem, tuple(metadata["channels"]), *(metadata[name] for name in names))
    return _parts_in(file, layout, metadata["sources"])


def _parts_in(file: Path, layout: Layout, sources: list[dict]) -> dict[str, Part]:
    parts, first = {}, 0
    for source in sources:
        parts[source["name"]] = part = Part(file, _groups(first, source), layout, source)
        first = part.groups.stop
    return parts


def _groups(first: int, source: dict) -> range:
    return range(first, first + -(-source["windows"] // WINDOWS_PER_ROW_GROUP))


def _counts_if_whole(part: Part) -> Counter | None:
    """Windows per label, or nothing where they are not those that the part's source describes."""
    try:
        if checksum(read_part(part)) != part.source["windows_sha256"]:
            return None
        return sum((_count(table["TRAJ_GT"].to_numpy()) for table in read_part(part, ["TRAJ_GT"])), Counter())
    except (OSError, pa.ArrowException, IndexError):
        return None


def read_part(part: Part, names: list[str] | None = None) -> Iterator[pa.Table]:
    """One table a row group, of all columns or those named; raises OSError where a page's checksum is wrong."""
    with pq.ParquetFile(part.file, page_checksum_verification=True) as file:
        for group in part.groups:
            yield file.read_row_group(group, names)


def _count(labels: np.ndarray) -> Counter:
    return Counter(labels.tolist())


def _part_file(source: dict, layout: Layout | None, workshop: Workshop) -> Path:
    """Named after all that decides its content, so that a late worker of a killed run can only write the same again."""
    made_from = [source["sha256"], _kept(workshop.settings), code(), layout and layout.stored]
    digest = hashlib.sha256(json.dumps(made_from).encode()).hexdigest()
    return workshop.folder / f"{source['name']}.{digest[:16]}.parquet"


@cache
def code() -> str:
    """A checksum of the modules that make windows and of the libraries they compute with."""
    modules = (EMG_recording.__file__, EMG_hdf5.__file__, EMG_filter.__file__, __file__)
    digest = hashlib.sha256(f"numpy {np.__version__}, scipy {scipy.__version__}".encode())
    for module in modules:
        digest.update(Path(module).read_bytes())
    return digest.hexdigest()[:16]


# ---- parquet --------------------------------------------------------------------------------------------------


def encode(recording: Recording, emg: np.ndarray, windows: Windows, layout: Layout) -> Iterator[pa.Table]:
    """Row groups of one recording as they are stored: int32 quarter counts, or float32 samples that are no counts."""
    samples = np.rint(emg / np.float32(layout.scale)).astype(np.int32) if layout.counts else emg  # (M, C)
    identity = [getattr(recording, name) for name in ("subject", "session", "trajectory", "name")]
    for begin in range(0, len(windows.label), WINDOWS_PER_ROW_GROUP):
        some = slice(begin, begin + WINDOWS_PER_ROW_GROUP)
        rows = windows.first[some, None] + np.arange(layout.window)  # (n, T)
        values = pa.array(samples[rows].reshape(-1))  # (n · T · C,)
        lists = pa.FixedSizeListArray.from_arrays(values, layout.window * len(layout.channels))
        texts = [[value] * len(rows) for value in identity]
        arrays = [lists, windows.label[some], *texts, windows.repetition[some], windows.start[some]]
        yield pa.table(arrays, schema=layout.columns)


def checksum(tables: Iterable[pa.Table]) -> str:
    """SHA-256 of the windows in all tables, samples and identity, however a file packs them."""
    digest = hashlib.sha256()
    for table in tables:
        digest.update(table["emg"].combine_chunks().flatten().to_numpy())
        digest.update(json.dumps(table.drop_columns(["emg"]).to_pydict()).encode())
    return digest.hexdigest()


def write_windows(path: Path, tables: Iterable[pa.Table], metadata: dict) -> None:
    """One row group a table, under a temporary name until the file is complete and on disk; raises OSError."""
    temporary = path.with_name(f"{path.name}.{uuid4().hex}.tmp")  # another machine may write the same
    try:
        with temporary.open("wb") as file:
            _write_tables(file, tables, with_checksum(metadata))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_tables(file: BinaryIO, tables: Iterable[pa.Table], metadata: dict) -> None:
    tables = iter(tables)
    first = next(tables)
    with pq.ParquetWriter(file, first.schema.with_metadata(metadata), **ENCODING) as writer:
        for table in chain([first], tables):
            writer.write_table(table.replace_schema_metadata(metadata))


def join(parts: list[Part], layout: Layout, settings: Settings, path: Path) -> None:
    """Write the windows of all parts, in their order, to one windows file; raises OSError."""
    tables = (table for part in parts for table in read_part(part))
    write_windows(path, tables, describe(parts, layout, settings))


def describe(parts: list[Part], layout: Layout, settings: Settings) -> dict:
    """A windows file's metadata."""
    labels = sorted(set().union(*(part.counts for part in parts)))
    return {
        "version": FORMAT_VERSION,
        "sampling_rate": layout.rate,
        "window": layout.window,
        "stride": layout.stride,
        "channels": layout.channels,
        "unit": layout.unit,
        "scale": layout.scale,
        "settings": _kept(settings),
        "code": code(),
        "class_names": class_names(labels, settings),
        "note": settings.DATA_NOTE,
        "sources": [part.source for part in parts],
    }


def _kept(settings: Settings) -> dict:
    return settings.model_dump(mode="json", include=set(SETTINGS_KEPT))


def class_names(labels: list[int], settings: Settings) -> dict[int, str]:
    """CLASS_NAMES where they name every label, else the labels go by number."""
    named = all(label in settings.CLASS_NAMES for label in labels)
    return {label: settings.CLASS_NAMES[label] if named else f"gesture {label}" for label in labels}
