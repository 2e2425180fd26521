"""Hostile windows files for the programme `hostile`.

A case is a function (folder with whole files, folder to write to) → the hostile file.
"""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from emg_gpt2.windows.format import METADATA_KEY, with_checksum
from stress.hostile_recordings import TRACE, Make
from stress.intruder import Intruder


def described(**claims) -> Make:
    """A windows file that claims other things of itself, with a checksum that is right."""

    def make(whole: Path, folder: Path) -> Path:
        table = pq.read_table(whole / "windows.parquet")
        return write(table, json.loads(table.schema.metadata[METADATA_KEY]) | claims, folder)

    return make


def write(table: pa.Table, description: dict, folder: Path) -> Path:
    pq.write_table(table.replace_schema_metadata(with_checksum(description)), folder / "windows.parquet")
    return folder / "windows.parquet"


def changed_table(change: Callable[[pa.Table], pa.Table]) -> Make:
    def make(whole: Path, folder: Path) -> Path:
        table = pq.read_table(whole / "windows.parquet")
        return write(change(table), json.loads(table.schema.metadata[METADATA_KEY]), folder)

    return make


def raw_description(text: bytes) -> Make:
    def make(whole: Path, folder: Path) -> Path:
        table = pq.read_table(whole / "windows.parquet").replace_schema_metadata({METADATA_KEY: text})
        pq.write_table(table, folder / "windows.parquet")
        return folder / "windows.parquet"

    return make


def replaced(name: str, values: Callable[[int], pa.Array]) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.set_column(table.column_names.index(name), name, values(len(table)))


def silent(count: int) -> Make:
    """So many windows of zeros, which take no space."""

    def make(whole: Path, folder: Path) -> Path:
        table = pq.read_table(whole / "windows.parquet")
        emg, description = table.schema.field("emg").type, json.loads(table.schema.metadata[METADATA_KEY])
        rows = table.drop_columns(["emg"]).take(np.zeros(count, int))
        values = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(count * emg.list_size, np.int32)), emg.list_size)
        return write(rows.add_column(0, "emg", values), description, folder)

    return make


def pickled_type(whole: Path, folder: Path) -> Path:
    """Old versions of pyarrow unpickled a column's type (CVE-2023-47248)."""
    table = pq.read_table(whole / "windows.parquet")
    planted = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": pickle.dumps(Intruder(TRACE)),
    }
    fields = [field.with_metadata(planted) for field in table.schema]
    table = pa.table(table.columns, schema=pa.schema(fields, table.schema.metadata))
    pq.write_table(table, folder / "windows.parquet")
    return folder / "windows.parquet"


def rows_in_footer(rows: int) -> Make:
    """The number of rows is the footer's third field: 0x16, and the number as a zigzag varint."""

    def make(whole: Path, folder: Path) -> Path:
        content = (whole / "windows.parquet").read_bytes()
        footer = content[-8 - int.from_bytes(content[-8:-4], "little") : -8]
        old = b"\x16" + varint(2 * pq.read_metadata(whole / "windows.parquet").num_rows) + b"\x19"
        assert footer.count(old) == 1
        new = footer.replace(old, b"\x16" + varint(2 * rows) + b"\x19")
        start = content[: -8 - len(footer)]
        (folder / "windows.parquet").write_bytes(start + new + len(new).to_bytes(4, "little") + b"PAR1")
        return folder / "windows.parquet"

    return make


def varint(number: int) -> bytes:
    digits = []
    while number > 127:
        digits.append(number & 127 | 128)
        number >>= 7
    return bytes([*digits, number])


def parquet_pipe(whole: Path, folder: Path) -> Path:
    os.mkfifo(folder / "windows.parquet")
    return folder / "windows.parquet"


PARQUET = {
    "ten times the window": described(window=10**3),
    "a window of 10^12": described(window=10**12),
    "a window of −1": described(window=-1),
    "a window that is text": described(window="100"),
    "10^5 channels": described(channels=["EMG"] * 10**5),
    "no channels": described(channels=[]),
    "a rate of 0": described(sampling_rate=0.0),
    "a scale that is no number": described(scale=float("nan")),
    "no names of classes": described(class_names={}),
    "classes whose names steer a terminal": described(class_names={str(n): "\x1b]0;x\x07" for n in range(10)}),
    "a description that is nested deep": raw_description(b"[" * 10**6),
    "a number of 10^6 digits": raw_description(b'{"version": ' + b"9" * 10**6 + b"}"),
    "a description that is a pickle": raw_description(pickle.dumps(Intruder(TRACE))),
    "types that are pickles": pickled_type,
    "labels of −1": changed_table(replaced("TRAJ_GT", lambda n: pa.array(np.full(n, -1, np.int8)))),
    "no labels": changed_table(replaced("TRAJ_GT", lambda n: pa.nulls(n, pa.int8()))),
    "starts that are no numbers": changed_table(replaced("start", lambda n: pa.array(np.full(n, np.nan)))),
    "text in place of labels": changed_table(replaced("TRAJ_GT", lambda n: pa.array(["1"] * n))),
    "no samples": changed_table(lambda table: table.drop_columns(["emg"])),
    "10^15 rows in the footer": rows_in_footer(10**15),
    "−1 rows in the footer": rows_in_footer(2**63 - 1),
    "10^5 silent windows": silent(10**5),
    "a pipe": parquet_pipe,
}
