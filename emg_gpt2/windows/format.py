"""The windows file: its columns, and its description of itself, which is believed only where all of it fits.

Pages carry checksums of their own (Parquet's), the description one beside it. Parquet's footer has none, so what it
says of columns and rows has to agree with the description and with the file's size.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from emg_gpt2.base.errors import EMGError
from emg_gpt2.base.text import OneLine, SomeLines, in_short
from emg_gpt2.raw.recording import check_is_file, named

FORMAT_VERSION = 1
METADATA_KEY, CHECKSUM_KEY = b"emg", b"emg_sha256"
LEAST_BYTES = 1 / 1000  # per byte of samples: sEMG is packed to a third, and not even silence to less

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Description(BaseModel):
    """What a windows file says of itself: see `EMG_windows.describe`."""

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
    sources: list[dict]


def columns(window: int, channels: int, counts: bool) -> pa.Schema:
    """The columns of a windows file.

    Parquet has no 16-bit integers: int16 takes the same space as int32, and a strong artefact would not fit.
    """
    emg = pa.list_(pa.int32() if counts else pa.float32(), window * channels)
    text = dict.fromkeys(("subject", "session", "trajectory", "recording"), pa.string())
    return pa.schema({"emg": emg, "TRAJ_GT": pa.int8()} | text | {"repetition": pa.int16(), "start": pa.float64()})


def with_checksum(description: dict) -> dict[bytes, bytes]:
    """A description as Parquet metadata."""
    described = json.dumps(description).encode()
    return {METADATA_KEY: described, CHECKSUM_KEY: _checksum(described)}


def _checksum(described: bytes) -> bytes:
    return hashlib.sha256(described).hexdigest().encode()


# ---- reading ----------------------------------------------------------------------------------------------------


class UnreadableError(EMGError):
    """What is wrong with a windows file; `open_file` adds the file's name and what to do."""


@contextmanager
def open_file(path: Path) -> Iterator[tuple[pq.ParquetFile, dict]]:
    """A windows file and its description; raises EMGError where it is none, or is damaged, then or in what is read."""
    anew = "write it anew with Preprocessing.py"
    with named(path):
        check_is_file(path)
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            yield file, _read_description(file, path.stat().st_size)
    except FileNotFoundError:
        raise EMGError(f"{path}: there is no such file; write it with Preprocessing.py or set DATA_LOCATION") from None
    except UnreadableError as error:
        raise EMGError(f"{path}: {error}; {anew}") from None
    except EMGError:  # a ValueError, but not about the file
        raise
    except (OSError, pa.ArrowException, ValueError, IndexError) as error:
        raise EMGError(f"{path}: the file cannot be read ({in_short(error)}); {anew}") from None


def _read_description(file: pq.ParquetFile, size: int) -> dict:
    metadata = file.schema_arrow.metadata or {}
    described = metadata.get(METADATA_KEY, b"")
    try:
        description = json.loads(described)
        version = description["version"]
    except (KeyError, TypeError, ValueError, RecursionError):
        raise UnreadableError("no windows of sEMG are in this parquet") from None
    if version != FORMAT_VERSION:
        raise UnreadableError(f"the file has format version {version} and this program reads version {FORMAT_VERSION}")
    if metadata.get(CHECKSUM_KEY, checksum := _checksum(described)) != checksum:
        raise UnreadableError("the file is damaged: its description of itself has another checksum")
    _check_description(description)
    _check_columns(file, size, description)
    return description


def _check_description(description: dict) -> None:
    try:
        Description.model_validate(description)
    except ValidationError as error:
        raise UnreadableError(f"the file's description of itself is wrong ({in_short(error)})") from None


def _check_columns(file: pq.ParquetFile, size: int, description: dict) -> None:
    window, channels = description["window"], len(description["channels"])
    if window * channels >= 2**31:  # Parquet counts no further
        raise UnreadableError(f"the file claims windows of {window} samples of {channels} channels")
    found = {field.name: _plain(field.type) for field in file.schema_arrow}
    kinds = [columns(window, channels, counts) for counts in (True, False)]
    if found not in [{field.name: field.type for field in kind} for kind in kinds]:
        raise UnreadableError("the columns are not those that the file describes")
    windows = file.metadata.num_rows
    if not windows:
        raise UnreadableError("the file holds no windows")
    if 4 * windows * window * channels * LEAST_BYTES > size:
        raise UnreadableError(f"the file claims {windows} windows of {window} samples, more than {size} bytes can hold")


def _plain(kind: pa.DataType) -> pa.DataType:
    """Text is text, however another program has written it."""
    return pa.string() if pa.types.is_large_string(kind) or pa.types.is_string_view(kind) else kind


def read_table(file: pq.ParquetFile, description: dict) -> pa.Table:
    """All columns but the samples; raises UnreadableError where a window lacks its identity, or its label a name."""
    table = file.read([name for name in file.schema_arrow.names if name != "emg"])
    incomplete = [name for name in table.column_names if table[name].null_count]
    if incomplete or not np.isfinite(table["start"].to_numpy()).all():
        raise UnreadableError(f"the column {[*incomplete, 'start'][0]} has empty places")
    labels = table["TRAJ_GT"].unique().to_pylist()
    strange = [label for label in labels if label < 0 or str(label) not in description["class_names"]]
    if strange:
        raise UnreadableError(f"TRAJ_GT has the label {strange[0]}, which is none of the classes that the file names")
    return table


def read_samples(file: pq.ParquetFile, group: int, description: dict) -> np.ndarray:
    """(n, T, C) stored values of a row group; raises UnreadableError where there are values that are no numbers."""
    shape = description["window"], len(description["channels"])
    column = file.read_row_group(group, ["emg"])["emg"].combine_chunks()
    values = column.flatten().to_numpy(zero_copy_only=False)  # which leaves out windows that are null
    if len(values) != len(column) * shape[0] * shape[1] or not np.isfinite(values).all():
        raise UnreadableError(f"row group {group} has samples that are no numbers")
    return values.reshape(-1, *shape)
