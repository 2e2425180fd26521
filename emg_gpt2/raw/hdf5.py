"""The rows of pandas tables in HDF5 files, for EMG_recording, which runs this file as a process of its own.

HDF5 is a C library, and some damaged files crash it or send it round in circles: that must not end a run over night.
So a process that nothing else depends on reads the files, with little memory, and its parent ends it when it takes
too long. It reads one question a line from its input, in JSON, and answers in lines of JSON and raw numbers.

pandas and PyTables unpickle attributes of a file on opening it, which lets a doctored file run code; here h5py reads
the rows, and the only pickles that are looked at, the lists of column names, go through an unpickler that can build
nothing but plain values.
"""

import io
import json
import os
import pickle
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
from zlib_ng import zlib_ng

MEMORY = 1 << 30  # bytes that this process may take, beside its libraries
ROWS_PER_READ, BYTES_PER_READ = 100_000, 1 << 26
MAX_CHUNK_BYTES = 1 << 24  # larger chunks than pandas makes are left to h5py, up to BYTES_PER_READ
DEFLATE_LIMIT = 1032  # deflate makes no file smaller than this
MAX_ATTRIBUTE_BYTES = 1 << 20  # HDF5 itself keeps attributes below 64 KB, unless they are stored apart

Chunk = tuple[np.ndarray, np.ndarray, np.ndarray]  # time (n,), channels (n, C) float32, other columns (n, k) float64
Places = dict[str, tuple[str, int]]  # column name → block of the compound row, position in the block


class DamageError(Exception):
    """What is wrong with a file, and what to do."""


# ---- questions and answers ------------------------------------------------------------------------------------


def main() -> None:
    """Answer until the input ends, which it does when the parent is gone."""
    _limit_memory()
    for line in sys.stdin.buffer:
        question = json.loads(line)
        try:
            with h5py.File(question["path"]) as file:
                answer(file, Path(question["path"]).stat().st_size, question)
        except BrokenPipeError:  # the parent has gone away
            return
        except DamageError as error:
            say({"problem": str(error)})
        except zlib_ng.error as error:
            say({"problem": f"the file is damaged ({_first_line(error)}); download it again"})
        except Exception as error:  # of whatever kind: it is the file's fault
            say({"problem": f"the file cannot be read ({_first_line(error)}); download it again"})


def answer(file: h5py.File, size: int, question: dict) -> None:
    """Column names and the number of rows; or where a question names `channels` and `others`, those of all rows."""
    table = open_table(file, size)
    places = column_places(table)
    if "channels" not in question:
        say({"columns": list(places), "rows": len(table)})
        return
    for chunk in read_chunks(table, places, question["channels"], question["others"]):
        say({"rows": len(chunk[0])}, *chunk)
    say({"rows": 0})


def say(words: dict, *arrays: np.ndarray) -> None:
    sys.stdout.buffer.write(json.dumps(words).encode() + b"\n")
    for array in arrays:
        sys.stdout.buffer.write(np.ascontiguousarray(array))
    sys.stdout.buffer.flush()


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _limit_memory() -> None:
    """What a file claims cannot be had beyond MEMORY, where the system knows such limits and how much is taken."""
    with suppress(ImportError, OSError, ValueError):
        import resource  # Unix alone has it

        taken = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, resource.RLIM_INFINITY))


# ---- a table ----------------------------------------------------------------------------------------------------


def open_table(file: h5py.File, size: int) -> h5py.Dataset:
    """The table of a file of `size` bytes; raises DamageError where it is none of pandas', or cannot be as it says."""
    links = [file.get(name, getlink=True) for name in ("data", "data/table") if name in file]
    table = file.get("data/table") if all(isinstance(link, h5py.HardLink) for link in links) else None
    if not isinstance(table, h5py.Dataset) or table.ndim != 1 or "index" not in (table.dtype.names or ()):
        raise DamageError("there is no pandas table /data/table in it; only putEMG's own layout can be read")
    if table.external or table.is_virtual:
        raise DamageError("its rows are to be read from other files; only putEMG's own layout can be read")
    count, row_bytes = len(table), table.dtype.itemsize
    if count * row_bytes > DEFLATE_LIMIT * size or row_bytes > BYTES_PER_READ:
        raise DamageError(f"the file claims {count} rows of {row_bytes} bytes, more than it holds; download it again")
    if table.chunks and table.chunks[0] * row_bytes > BYTES_PER_READ:
        raise DamageError(f"the file claims to be read {table.chunks[0]} rows at a time, too many; download it again")
    return table


def column_places(table: h5py.Dataset) -> Places:
    """Where each column is, from the attributes that pandas wrote; raises DamageError where they do not fit."""
    places = {}
    for block in [name for name in table.dtype.names if name.startswith("values_block_")]:
        columns = [str(column) for column in _plain_list(table.attrs, f"{block}_kind")]
        if columns and len(columns) != np.prod(table.dtype[block].shape, dtype=int):
            raise DamageError(f"the attribute {block}_kind names {len(columns)} columns, not all; download it again")
        places |= {column: (block, position) for position, column in enumerate(columns)}
    return places


def _plain_list(attributes: h5py.AttributeManager, name: str) -> list:
    """The pickled list in an attribute, or [] where it holds anything else; never runs what the pickle asks for."""
    if name not in attributes or attributes.get_id(name).get_storage_size() > MAX_ATTRIBUTE_BYTES:
        return []
    value = attributes[name]
    try:
        columns = PlainUnpickler(io.BytesIO(value), encoding="latin1").load() if isinstance(value, bytes) else []
    except Exception as error:  # a broken pickle can raise anything
        raise DamageError(f"the attribute {name} is damaged ({_first_line(error)}); download the file again") from None
    return columns if isinstance(columns, list) else []


class PlainUnpickler(pickle.Unpickler):
    """Builds numbers, strings and lists; refuses every class and function, and so can run nothing."""

    def find_class(self, module: str, name: str):
        raise pickle.UnpicklingError(f"an attribute asks to run {module}.{name}")


# ---- its rows ---------------------------------------------------------------------------------------------------


def read_chunks(table: h5py.Dataset, places: Places, channels: list[str], others: list[str]) -> Iterator[Chunk]:
    for rows in _rows(table):
        emg, plain = _values(rows, places, channels, np.float32), _values(rows, places, others, np.float64)
        yield rows["index"].astype(np.float64), emg, plain


def _values(rows: np.ndarray, places: Places, names: list[str], kind: type) -> np.ndarray:
    """(n, len(names))"""
    values = np.empty((len(rows), len(names)), kind)
    for block in sorted({places[name][0] for name in names}):
        numbers = [number for number, name in enumerate(names) if places[name][0] == block]
        values[:, numbers] = rows[block][:, [places[names[number]][1] for number in numbers]]
    return values


def _rows(table: h5py.Dataset) -> Iterator[np.ndarray]:
    """All rows, some at a time.

    Chunks that were shuffled and deflated, as pandas does it, are inflated here: zlib-ng takes a third of the time
    that HDF5's own zlib does, which is most of the time of reading.
    """
    if not _is_as_pandas_writes(table):
        together = min(ROWS_PER_READ, BYTES_PER_READ // table.dtype.itemsize)
        for start in range(0, len(table), together):
            yield table[start : start + together]
        return
    (size,), width = table.chunks, table.dtype.itemsize
    for start in range(0, len(table), size):
        skipped_filters, deflated = table.id.read_direct_chunk((start,))
        if skipped_filters:  # as where deflating would not have made the chunk smaller
            yield table[start : start + size]
            continue
        inflater = zlib_ng.decompressobj()
        planes = inflater.decompress(deflated, size * width)
        more = inflater.decompress(inflater.unconsumed_tail, 1)  # nothing, but then zlib's checksum has been looked at
        if len(planes) < size * width or more or not inflater.eof:
            raise DamageError(f"the rows from {start} on are damaged; download the file again")
        rows = np.frombuffer(planes, np.uint8).reshape(width, size).T  # shuffled: the first bytes of all rows, …
        yield np.frombuffer(rows.tobytes(), table.dtype)[: len(table) - start]


def _is_as_pandas_writes(table: h5py.Dataset) -> bool:
    made = table.id.get_create_plist()
    filters = [made.get_filter(i)[0] for i in range(made.get_nfilters())]
    plain = table.dtype.itemsize == table.id.get_type().get_size() and not table.dtype.hasobject
    small = table.chunks and table.chunks[0] * table.dtype.itemsize <= MAX_CHUNK_BYTES
    return bool(plain and small and filters == [h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_DEFLATE])


if __name__ == "__main__":
    main()
