"""Raw putEMG recordings → filtered, labelled windows → parquet.

    python Preprocessing.py DOWNLOADS [--data-location OUT.parquet] [any setting of ENV.py]

Exit status: 0 all recordings went in, 1 nothing was written, 3 written but some recordings were skipped,
130 interrupted.
"""

import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from EMG_filter import apply_filter, resample
from EMG_recording import Recording, find_recordings, named, read_recording
from ENV import EMGError, PreprocessingSettings, Settings, from_command_line

FORMAT_VERSION = 1
METADATA_KEY = b"emg"
SETTINGS_KEPT = (
    *("FILTER", "BAND_HZ", "SAMPLE_RATE", "WINDOW_MS", "STRIDE_MS", "TRIM_START_MS", "TRIM_END_MS"),
    "LEGAL_VALUES",
)
COUNT_STEP = 0.25  # counts per stored step: an error of 0.25 / √12 = 0.07 counts RMS, below the amplifier's noise
RATE_TOLERANCE = 1e-3  # putEMG's clocks differ by 1e-5
WINDOWS_PER_ROW_GROUP = 1000


@dataclass(frozen=True)
class Layout:
    """What all recordings of one file share: it is set by the first one, and the others must agree."""

    name: str  # of the recording that set it
    channels: tuple[str, ...]
    rate: float  # Hz, of the windows
    window: int  # samples
    stride: int  # samples
    counts: bool  # whether the raw samples are whole ADC counts

    @property
    def unit(self) -> str:
        return "count" if self.counts else "as recorded"

    @property
    def scale(self) -> float:
        """Stored value × scale = value in `unit`."""
        return COUNT_STEP if self.counts else 1.0


@dataclass(frozen=True)
class Windows:
    """The windows of one recording: `emg` (n, T, C), and one entry per window of what identifies it."""

    emg: np.ndarray
    label: np.ndarray
    repetition: np.ndarray
    start: np.ndarray  # s, in the recording's clock


@dataclass
class Result:
    """One line of the closing table."""

    name: str
    seconds: float = 0.0
    windows: Counter | None = None
    problem: str = ""


def main() -> int:
    sys.stdout.reconfigure(errors="replace")  # a Windows code page lacks − and ≤
    sys.stderr.reconfigure(errors="replace")
    console = Console(highlight=False)
    try:
        settings = from_command_line(PreprocessingSettings)
        results = preprocess(find_recordings(settings.RAW), settings, console)
    except EMGError as error:
        print(f"Preprocessing.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Preprocessing.py: interrupted; nothing was written, run the same command again", file=sys.stderr)
        return 130
    print_table(results, settings, console)
    return 3 if any(result.problem for result in results) else 0


def preprocess(paths: list[Path], settings: Settings, console: Console) -> list[Result]:
    """Write the windows of all readable recordings to `settings.DATA_LOCATION`; returns one result per file.

    One recording is held in memory at a time. The output is replaced only when the new one is complete.
    Raises EMGError where nothing could be written.
    """
    if any(path.resolve() == settings.DATA_LOCATION.resolve() for path in paths):
        raise EMGError(f"{settings.DATA_LOCATION}: the output would replace a recording; set another DATA_LOCATION")
    results, layout, sources = [], None, []
    with _complete_or_nothing(settings.DATA_LOCATION) as temporary, _Output(temporary) as output:
        for path in _progress(paths, console):
            try:
                if any(path.stem == Path(source["name"]).stem for source in sources):
                    raise EMGError(f"{path}: the same recording was read from another file already; leave one out")
                recording, windows, agreed = _cut(path, layout, settings)
                sources.append(_source(path, recording, windows))
            except EMGError as error:
                results.append(Result(path.stem, problem=str(error)))
                continue
            layout = agreed
            output.write(encode(recording, windows, layout))
            seconds = len(recording.time) / recording.sampling_rate
            results.append(Result(path.stem, seconds, Counter(windows.label.tolist())))
        if not sources:
            _print_skipped(results, console)
            raise EMGError(f"none of the {len(paths)} files gave a window; nothing was written, see the reasons above")
        output.describe(_metadata(layout, sources, results, settings))
    return results


def _cut(path: Path, layout: Layout | None, settings: Settings) -> tuple[Recording, Windows, Layout]:
    """A recording, its windows, and the layout that it agrees with or sets; raises EMGError that names the file."""
    recording = read_recording(path)
    with named(path):
        emg, rate = filter_and_resample(recording, settings)
        found = _layout(recording, rate, settings)
        layout = layout or found
        _check_agreement(found, layout)
        windows = cut_windows(recording, emg, rate, layout, settings)
        if not len(windows.label):
            raise EMGError("no repetition is long enough for a window; lower WINDOW_MS, TRIM_START_MS or TRIM_END_MS")
        return recording, windows, layout


# ---- one recording --------------------------------------------------------------------------------------------


def filter_and_resample(recording: Recording, settings: Settings) -> tuple[np.ndarray, float]:
    """(N, C) raw samples → (M, C) filtered samples, and their rate in Hz."""
    filtered = apply_filter(recording.emg, recording.time, settings.FILTER, settings.BAND_HZ)
    return resample(filtered, recording.sampling_rate, settings.SAMPLE_RATE)


def cut_windows(recording: Recording, emg: np.ndarray, rate: float, layout: Layout, settings: Settings) -> Windows:
    """Windows (n, T, C) of `emg` (M, C) at `rate` Hz, each inside one repetition less its trimmed edges.

    Repetitions are numbered from 0 for each label of the recording, −1 and labels that are not legal aside.
    """
    source_rows = np.rint(np.arange(len(emg)) * recording.sampling_rate / rate).astype(int)
    labels = recording.labels[np.minimum(source_rows, len(recording.labels) - 1)]
    trim_start, trim_end = (round(ms * rate / 1000) for ms in (settings.TRIM_START_MS, settings.TRIM_END_MS))
    starts, window_labels, repetitions, seen = [], [], [], Counter()
    for first, end, label in label_runs(labels):
        if label < 0 or (settings.LEGAL_VALUES and label not in settings.LEGAL_VALUES):
            continue
        inside = range(first + trim_start, end - trim_end - layout.window + 1, layout.stride)
        starts += inside
        window_labels += [label] * len(inside)
        repetitions += [seen[label]] * len(inside)
        seen[label] += 1
    rows = np.array(starts, int)[:, None] + np.arange(layout.window)  # (n, T)
    return Windows(
        emg=emg[rows],
        label=np.array(window_labels, np.int8),
        repetition=np.array(repetitions, np.int16),
        start=recording.time[0] + np.array(starts, np.float64) / rate,
    )


def label_runs(labels: np.ndarray) -> list[tuple[int, int, int]]:
    """(first, end, label) of each uninterrupted run in (M,) labels; `end` is one past the last sample."""
    bounds = [0, *(np.flatnonzero(np.diff(labels)) + 1), len(labels)]
    return [(int(first), int(end), int(labels[first])) for first, end in pairwise(bounds)]


def _layout(recording: Recording, rate: float, settings: Settings) -> Layout:
    window, stride = (round(ms * rate / 1000) for ms in (settings.WINDOW_MS, settings.STRIDE_MS))
    if min(window, stride) < 1:
        raise EMGError(f"WINDOW_MS and STRIDE_MS must each reach one sample, which is {1000 / rate:g} ms; raise them")
    return Layout(
        name=recording.name,
        channels=recording.channels,
        rate=rate,
        window=window,
        stride=stride,
        counts=bool((recording.emg == np.rint(recording.emg)).all()),
    )


def _check_agreement(found: Layout, layout: Layout) -> None:
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


# ---- parquet --------------------------------------------------------------------------------------------------


def encode(recording: Recording, windows: Windows, layout: Layout) -> pa.Table:
    """The rows of one recording as they are stored: int32 quarter counts, or float32 for samples that are no counts.

    Parquet has no 16-bit integers: int16 takes the same space, and a strong artefact would not fit.
    """
    samples = windows.emg.reshape(-1) / np.float32(layout.scale)
    values = pa.array(np.rint(samples).astype(np.int32) if layout.counts else samples)
    count = len(windows.label)
    return pa.table(
        {
            "emg": pa.FixedSizeListArray.from_arrays(values, layout.window * len(layout.channels)),
            "TRAJ_GT": windows.label,
            "subject": [recording.subject] * count,
            "session": [recording.session] * count,
            "trajectory": [recording.trajectory] * count,
            "recording": [recording.name] * count,
            "repetition": windows.repetition,
            "start": windows.start,
        }
    )


class _Output:
    """Row groups go to a body file as they come; `describe` copies them behind a schema that holds the metadata.

    The metadata names every source, so it is known last, and readers look for it first.
    """

    def __init__(self, path: Path):
        self.path, self.body, self.writer = path, path.with_suffix(".body.tmp"), None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.writer:
            self.writer.close()
        self.body.unlink(missing_ok=True)

    def write(self, table: pa.Table) -> None:
        self.writer = self.writer or _writer(self.body, table.schema)
        self.writer.write_table(table, row_group_size=WINDOWS_PER_ROW_GROUP)

    def describe(self, metadata: dict) -> None:
        self.writer.close()
        with pq.ParquetFile(self.body) as body:
            schema = body.schema_arrow.with_metadata({METADATA_KEY: json.dumps(metadata).encode()})
            with _writer(self.path, schema) as writer:
                for i in range(body.num_row_groups):
                    writer.write_table(body.read_row_group(i).replace_schema_metadata(schema.metadata))


def _writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    others = [name for name in schema.names if name != "emg"]
    split = {"emg.list.element": "BYTE_STREAM_SPLIT"}  # high and low bytes apart compress better
    options = {"compression": "zstd", "use_dictionary": others, "column_encoding": split}
    return pq.ParquetWriter(path, schema, write_page_checksum=True, **options)


def _metadata(layout: Layout, sources: list[dict], results: list[Result], settings: Settings) -> dict:
    labels = sorted(set().union(*(result.windows for result in results if result.windows)))
    return {
        "version": FORMAT_VERSION,
        "sampling_rate": layout.rate,
        "window": layout.window,
        "stride": layout.stride,
        "channels": layout.channels,
        "unit": layout.unit,
        "scale": layout.scale,
        "settings": {name: getattr(settings, name) for name in SETTINGS_KEPT},
        "class_names": _class_names(labels, settings),
        "note": settings.DATA_NOTE,
        "sources": sources,
    }


def _class_names(labels: list[int], settings: Settings) -> dict[int, str]:
    named = all(label in settings.CLASS_NAMES for label in labels)
    return {label: settings.CLASS_NAMES[label] if named else f"gesture {label}" for label in labels}


def _source(path: Path, recording: Recording, windows: Windows) -> dict:
    try:
        with path.open("rb") as file:
            checksum, size = hashlib.file_digest(file, "sha256").hexdigest(), file.tell()
    except OSError as error:
        raise EMGError(f"{path}: the file went away while it was read ({error.strerror}); put it back") from None
    return {
        "name": path.name,
        "size": size,
        "sha256": checksum,
        "rows": len(recording.time),
        "windows": len(windows.label),
    }


@contextmanager
def _complete_or_nothing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place at the end, or vanishes on any error."""
    if path.is_dir():
        raise EMGError(f"{path}: the output is a folder; name a file")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.open("wb").close()
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise EMGError(
            f"{path}: the output cannot be written ({error.strerror or error}); choose another place"
        ) from None
    finally:
        with suppress(OSError):  # where it could not be made, the reason was given above
            temporary.unlink(missing_ok=True)


# ---- what the user sees ---------------------------------------------------------------------------------------


def _progress(paths: list[Path], console: Console) -> Iterator[Path]:
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("reading", total=len(paths))
        for path in paths:
            bar.update(task, description=path.stem)
            yield path
            bar.advance(task)


def print_table(results: list[Result], settings: Settings, console: Console) -> None:
    """One line per recording: duration and windows per class; what was skipped, and why, below."""
    total = sum((result.windows for result in results if result.windows), Counter())
    labels = sorted(total)
    table = Table("recording", "seconds", "windows", *map(str, labels), box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for result in (r for r in results if r.windows):
        per_class = [str(result.windows[label]) for label in labels]
        table.add_row(escape(result.name), f"{result.seconds:.1f}", str(result.windows.total()), *per_class)
    seconds = sum(result.seconds for result in results)
    table.add_row("all", f"{seconds:.1f}", str(total.total()), *(str(total[label]) for label in labels), style="bold")
    Console(file=console.file, width=1000).print(table)  # a narrow terminal breaks the lines, not the names
    unnamed = [str(label) for label in labels if label not in settings.CLASS_NAMES]
    legend = ", ".join(f"{label} {name}" for label, name in _class_names(labels, settings).items())
    words = f"labels go by number, because CLASS_NAMES lacks {', '.join(unnamed)}" if unnamed else f"labels: {legend}"
    console.print(words, soft_wrap=True, markup=False)
    skipped = _print_skipped(results, console)
    counts = f"{total.total()} windows of {len(results) - skipped} recordings, {skipped} skipped"
    console.print(f"{settings.DATA_LOCATION}: {counts}", soft_wrap=True, markup=False)


def _print_skipped(results: list[Result], console: Console) -> int:
    """Say why each recording was skipped; returns how many."""
    skipped = [result for result in results if result.problem]
    for result in skipped:
        console.print(f"skipped: {result.problem}", soft_wrap=True, markup=False)
    return len(skipped)


if __name__ == "__main__":
    sys.exit(main())
