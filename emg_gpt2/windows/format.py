"""The windows file (parquet): its columns, its metadata, how it is written, and what is checked before it is read.

Parquet keeps a checksum of every page, and this module one of the metadata. Parquet's footer has none, so the columns
and the number of rows in it have to agree with the metadata and with the file's size.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Annotated, BinaryIO
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from emg_gpt2.base.errors import EMGError, named
from emg_gpt2.base.files import check_is_file
from emg_gpt2.base.text import OneLine, SomeLines, in_short

FORMAT_VERSION = 1
METADATA_KEY, CHECKSUM_KEY = b"emg", b"emg_sha256"
LEAST_BYTES = 1 / 1000  # per byte of samples: sEMG is packed to a third, and even silence to no less
ENCODING = {  # chosen by `python -m benchmarks storage`
    "compression": "zstd",
    "compression_level": 3,
    "column_encoding": {"emg.list.element": "BYTE_STREAM_SPLIT"},  # high and low bytes apart compress better
    "use_dictionary": ["TRAJ_GT", "subject", "session", "trajectory", "recording", "repetition", "start"],
    "write_page_checksum": True,
}

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Finding(BaseModel):
    """What is wrong with a channel of a recording, as `raw.quality` found it."""

    channel: OneLine
    kind: OneLine
    words: OneLine


class Source(BaseModel):
    """A recording, as far as others than Preprocessing.py read of it."""

    findings: list[Finding] = []  # files of 0.2.0 have none


class Metadata(BaseModel):
    """The metadata of a windows file, which `parts.make_metadata` writes."""

    model_config = ConfigDict(strict=True)

    version: int
    sampling_rate: Positive  # Hz
    window: int = Field(ge=1)  # samples
    stride: int = Field(ge=1)
    channels: list[OneLine] = Field(min_length=1)
    unit: OneLine
    scale: Positive
    settings: dict
    code: str
    class_names: dict[str, OneLine]
    note: SomeLines
    sources: list[Source]


def bad_channels(sources: list[dict]) -> str:
    """Channels with findings and in brackets the number of such recordings: EMG_18 (10), EMG_20 (7); empty for none."""
    found = [{finding["channel"] for finding in source.get("findings", [])} for source in sources]
    counts = sorted(Counter(chain.from_iterable(found)).items(), key=lambda item: (len(item[0]), item[0]))
    return ", ".join(f"{channel} ({count})" for channel, count in counts)


def columns(window: int, channels: int, counts: bool) -> pa.Schema:
    """The columns of a windows file.

    Parquet has no 16-bit integers: int16 takes the same space as int32, and a strong artefact would not fit.
    """
    emg = pa.list_(pa.int32() if counts else pa.float32(), window * channels)
    text = dict.fromkeys(("subject", "session", "trajectory", "recording"), pa.string())
    return pa.schema({"emg": emg, "TRAJ_GT": pa.int8()} | text | {"repetition": pa.int16(), "start": pa.float64()})


# ---- writing ----------------------------------------------------------------------------------------------------


def write_windows(path: Path, tables: Iterable[pa.Table], metadata: dict) -> None:
    """One row group per table, under a temporary name until the file is complete and on disk; raises OSError."""
    temporary = path.with_name(f"{path.name}.{uuid4().hex}.tmp")  # another machine may write the same
    try:
        with temporary.open("wb") as file:
            _write_tables(file, tables, with_checksum(metadata))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_tables(file: BinaryIO, tables: Iterable[pa.Table], metadata: dict[bytes, bytes]) -> None:
    tables = iter(tables)
    first = next(tables)
    with pq.ParquetWriter(file, first.schema.with_metadata(metadata), **ENCODING) as writer:
        for table in chain([first], tables):
            writer.write_table(table.replace_schema_metadata(metadata))


def with_checksum(metadata: dict) -> dict[bytes, bytes]:
    """The metadata as Parquet keeps it, and its checksum."""
    text = json.dumps(metadata).encode()
    return {METADATA_KEY: text, CHECKSUM_KEY: _checksum(text)}


def _checksum(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest().encode()


# ---- reading ----------------------------------------------------------------------------------------------------


class UnreadableError(EMGError):
    """What is wrong with a windows file; `open_file` adds the file's name and what to do."""


@contextmanager
def open_file(path: Path) -> Iterator[tuple[pq.ParquetFile, dict]]:
    """A windows file and its metadata; raises EMGError where it is none, or is damaged, also in what is read later."""
    anew = "write it anew with Preprocessing.py"
    with named(path):
        check_is_file(path)
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            yield file, _read_metadata(file, path.stat().st_size)
    except FileNotFoundError:
        raise EMGError(f"{path}: there is no such file; write it with Preprocessing.py or set DATA_LOCATION") from None
    except UnreadableError as error:
        raise EMGError(f"{path}: {error}; {anew}") from None
    except EMGError:  # a ValueError, but not about the file
        raise
    except (OSError, pa.ArrowException, ValueError, IndexError) as error:
        raise EMGError(f"{path}: the file cannot be read ({in_short(error)}); {anew}") from None


def _read_metadata(file: pq.ParquetFile, size: int) -> dict:
    """Raises UnreadableError unless all of it fits together and fits the file of `size` bytes."""
    stored = file.schema_arrow.metadata or {}
    text = stored.get(METADATA_KEY, b"")
    try:
        metadata = json.loads(text)
        version = metadata["version"]
    except (KeyError, TypeError, ValueError, RecursionError):
        raise UnreadableError("no windows of sEMG are in this parquet") from None
    if version != FORMAT_VERSION:
        raise UnreadableError(f"the file has format version {version} and this program reads version {FORMAT_VERSION}")
    if stored.get(CHECKSUM_KEY, checksum := _checksum(text)) != checksum:
        raise UnreadableError("the file is damaged: the checksum of its metadata does not match")
    try:
        Metadata.model_validate(metadata)
    except ValidationError as error:
        raise UnreadableError(f"the file's metadata are wrong ({in_short(error)})") from None
    _check_columns(file, size, metadata)
    return metadata


def _check_columns(file: pq.ParquetFile, size: int, metadata: dict) -> None:
    window, channels = metadata["window"], len(metadata["channels"])
    if window * channels >= 2**31:  # Parquet's limit
        raise UnreadableError(f"the file claims windows of {window} samples of {channels} channels")
    found = {field.name: _plain(field.type) for field in file.schema_arrow}
    kinds = [columns(window, channels, counts) for counts in (True, False)]
    if found not in [{field.name: field.type for field in kind} for kind in kinds]:
        raise UnreadableError("the columns are not those that its metadata describe")
    windows = file.metadata.num_rows
    if not windows:
        raise UnreadableError("the file holds no windows")
    if 4 * windows * window * channels * LEAST_BYTES > size:
        raise UnreadableError(f"the file claims {windows} windows of {window} samples, more than {size} bytes can hold")


def _plain(kind: pa.DataType) -> pa.DataType:
    """The same type for all ways in which other programs may have stored text."""
    return pa.string() if pa.types.is_large_string(kind) or pa.types.is_string_view(kind) else kind


def read_table(file: pq.ParquetFile, metadata: dict) -> pa.Table:
    """All columns but the samples; raises UnreadableError where a window lacks its identity, or its label a name."""
    table = file.read([name for name in file.schema_arrow.names if name != "emg"])
    incomplete = [name for name in table.column_names if table[name].null_count]
    if incomplete or not np.isfinite(table["start"].to_numpy()).all():
        raise UnreadableError(f"the column {[*incomplete, 'start'][0]} has empty places")
    labels = table["TRAJ_GT"].unique().to_pylist()
    strange = [label for label in labels if label < 0 or str(label) not in metadata["class_names"]]
    if strange:
        raise UnreadableError(f"TRAJ_GT has the label {strange[0]}, which is none of the classes that the file names")
    return table


def read_samples(file: pq.ParquetFile, group: int, metadata: dict) -> np.ndarray:
    """(n, T, C) stored values of a row group; raises UnreadableError where there are values that are no numbers."""
    shape = metadata["window"], len(metadata["channels"])
    column = file.read_row_group(group, ["emg"])["emg"].combine_chunks()
    values = column.flatten().to_numpy(zero_copy_only=False)  # which leaves out windows that are null
    if len(values) != len(column) * shape[0] * shape[1] or not np.isfinite(values).all():
        raise UnreadableError(f"row group {group} has samples that are no numbers")
    return values.reshape(-1, *shape)
