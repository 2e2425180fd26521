"""One recording → its windows → a windows file; and windows files → one.

The windows file of one recording is a part. Parts are made side by side, on this machine or on others, and joined in
the order of the recordings. A part that exists already, by itself or inside an earlier output, is used again where
recording, settings and code are still the same and its checksums match.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy
from filelock import FileLock

from emg_gpt2.base.errors import EMGError, named
from emg_gpt2.base.files import check_is_file, remove_lock
from emg_gpt2.raw.putemg import read_recording
from emg_gpt2.raw.quality import find_all, look_at_raw
from emg_gpt2.raw.recording import Recording, check_electrodes
from emg_gpt2.settings import Role, Settings
from emg_gpt2.windows.cut import (
    Layout,
    Windows,
    agreed_layout,
    class_names,
    cut_windows,
    filter_and_resample,
    unit_of,
)
from emg_gpt2.windows.format import FORMAT_VERSION, open_file, write_windows

SOURCE_KEYS = {
    "name",
    "size",
    "sha256",
    "rows",
    "sampling_rate",
    "unit",
    "putemg",
    "findings",
    "windows",
    "labels",
    "windows_sha256",
}
WINDOWS_PER_ROW_GROUP = 1000
WHAT_DECIDES = ("emg_gpt2.raw", "emg_gpt2.windows")  # packages whose code the windows depend on


@dataclass(frozen=True)
class Part:
    """The windows of one recording: row groups of a windows file."""

    file: Path
    groups: range
    layout: Layout  # of the file
    source: dict  # the recording, as the file's metadata describe it

    @property
    def counts(self) -> Counter:
        """Windows per label."""
        return Counter({int(label): count for label, count in self.source["labels"].items()})

    @property
    def stem(self) -> str:
        """Name of the recording."""
        return Path(self.source["name"]).stem

    @property
    def bad_channels(self) -> dict[str, str]:
        """Channel → what is wrong with it, each kind once."""
        kinds = {}
        for finding in self.source["findings"]:
            kinds.setdefault(finding["channel"], {})[finding["kind"]] = None
        return {channel: " and ".join(found) for channel, found in kinds.items()}

    @property
    def finding_lines(self) -> list[str]:
        """A sentence for each thing that is wrong with a channel."""
        return ["{channel} {kind}: {words}".format(**finding) for finding in self.source["findings"]]

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


@contextmanager
def open_workshop(output: Path, settings: Settings) -> Iterator[Workshop]:
    """A hidden folder beside the output for the parts. It is removed once the output is complete.

    Raises filelock's Timeout where another run uses it. Removes what a killed run has left half-written.
    """
    folder = output.with_name(f".{output.name}.parts")
    folder.mkdir(exist_ok=True)
    lock = FileLock(folder / "lock", timeout=0)
    lock.acquire()
    try:
        _remove(folder.glob("*.tmp"))
        yield Workshop(folder, settings)
        _remove(folder.glob("*.parquet"))
    finally:
        remove_lock(lock)
        with suppress(OSError):  # there are parts, or another run's
            folder.rmdir()


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def process(path: Path, layout: Layout | None, earlier: Part | None, workshop: Workshop) -> Result:
    """The part of one recording, found or made; without a `layout` it sets its own.

    `earlier` is the part of a recording of that name in the output of an earlier run. Raises OSError where the part
    cannot be written; what is wrong with the recording becomes the result's `problem`.
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
    raw = look_at_raw(recording)
    emg, rate = filter_and_resample(recording, settings)
    findings = [finding.described() for finding in find_all(raw, recording, emg, rate)]
    source |= {"putemg": recording.is_putemg, "findings": findings}
    windows = cut_windows(recording, rate, len(emg), layout, settings)
    if not len(windows.label):
        raise EMGError("no repetition is long enough for a window; lower WINDOW_MS, TRIM_START_MS or TRIM_END_MS")
    counts = Counter(windows.label.tolist())
    source |= {"windows": counts.total(), "labels": {str(label): counts[label] for label in sorted(counts)}}
    source["windows_sha256"] = checksum(encode(recording, emg, windows, layout))
    part = Part(file, _groups(0, source), layout, source)
    write_windows(file, encode(recording, emg, windows, layout), make_metadata([part], layout, settings))
    return part


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
        if agreed.stored == part.layout.stored and _is_whole(part):
            return Part(part.file, part.groups, agreed, part.source)
    return None


def finished_parts(file: Path, settings: Settings) -> dict[str, Part]:
    """Part of every recording in a windows file, by its file name; none where the file was made in another way or its
    metadata are damaged."""
    try:
        with open_file(file) as (_, metadata):
            pass
    except EMGError:
        return {}
    if [metadata["settings"], metadata["code"]] != [_windows_settings(settings), code()]:
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


def _is_whole(part: Part) -> bool:
    """Whether its windows are those that its source describes."""
    try:
        return checksum(read_part(part)) == part.source["windows_sha256"]
    except (OSError, pa.ArrowException, IndexError):
        return False


def read_part(part: Part) -> Iterator[pa.Table]:
    """One table a row group; raises OSError where a page's checksum is wrong."""
    with pq.ParquetFile(part.file, page_checksum_verification=True) as file:
        for group in part.groups:
            yield file.read_row_group(group)


def _part_file(source: dict, layout: Layout | None, workshop: Workshop) -> Path:
    """Named after all that decides its content, so that a late worker of a killed run can only write the same again."""
    made_from = [source["sha256"], _windows_settings(workshop.settings), code(), layout and layout.stored]
    digest = hashlib.sha256(json.dumps(made_from).encode()).hexdigest()
    return workshop.folder / f"{source['name']}.{digest[:16]}.parquet"


@cache
def code() -> str:
    """A checksum of the modules that make windows and of the libraries they compute with."""
    digest = hashlib.sha256(f"numpy {np.__version__}, scipy {scipy.__version__}".encode())
    for package in WHAT_DECIDES:
        for module in sorted(files(package).iterdir(), key=lambda file: file.name):
            if module.name.endswith(".py"):
                digest.update(module.name.encode() + module.read_bytes())
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


def join_parts(parts: list[Part], layout: Layout, settings: Settings, path: Path) -> None:
    """Write the windows of all parts, in their order, to one windows file; raises OSError."""
    tables = (table for part in parts for table in read_part(part))
    write_windows(path, tables, make_metadata(parts, layout, settings))


def make_metadata(parts: list[Part], layout: Layout, settings: Settings) -> dict:
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
        "settings": _windows_settings(settings),
        "code": code(),
        "class_names": class_names(labels, all_putemg(parts), settings),
        "note": settings.DATA_NOTE,
        "sources": [part.source for part in parts],
    }


def all_putemg(parts: list[Part]) -> bool:
    """Whether putEMG's names for the labels fit all recordings."""
    return all(part.source["putemg"] for part in parts)


def _windows_settings(settings: Settings) -> dict:
    return settings.model_dump(mode="json", include=settings.with_role(Role.WINDOWS))
