"""Rows of pandas tables (`to_hdf(…, "data", format="table")`) in HDF5 files: what runs in the process that reads them.

pandas and PyTables unpickle attributes of a file on opening it, which lets a doctored file run code. Here h5py reads
the rows. The only pickles that are looked at are the lists of column names, by an unpickler that builds nothing but
plain values.
"""

import io
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import h5py
import numpy as np
from zlib_ng import zlib_ng

from emg_gpt2.base.errors import EMGError
from emg_gpt2.raw.recording import BYTES_AT_ONCE, ROWS_AT_ONCE, Chunk

MEMORY = 1 << 30  # bytes that the process may take, beside its libraries
MAX_CHUNK_BYTES = 1 << 24  # larger chunks than pandas makes are left to h5py, up to BYTES_AT_ONCE
DEFLATE_LIMIT = 1032  # deflate makes no file smaller than this
MAX_ATTRIBUTE_BYTES = 1 << 20  # HDF5 itself keeps attributes below 64 KB, unless they are stored apart

Places = dict[str, tuple[str, int]]  # column name → block of the compound row, position in the block


# ---- the process ------------------------------------------------------------------------------------------------


def prepare() -> None:
    """Begin the process: silent, deaf to Ctrl-C, short of memory, and gone when its parent is."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):  # the library complains on its own, and a pipe should close when the parent ends
        os.dup2(nowhere, stream)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _limit_memory()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(0)


def _limit_memory() -> None:
    """What a file claims cannot be had beyond MEMORY, where the system knows such limits and how much is taken."""
    with suppress(ImportError, OSError, ValueError):
        import resource  # Unix alone has it

        taken = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, resource.RLIM_INFINITY))


# ---- what it is asked -------------------------------------------------------------------------------------------


def list_columns(path: str) -> tuple[list[str], int]:
    """Names of the table's columns, and its number of rows; raises EMGError."""
    with _open_table(path) as table:
        return list(column_places(table)), len(table)


def read_rows(path: str, first: int, channels: list[str], others: list[str]) -> Chunk:
    """Rows from `first` on, as many as are read at once; raises EMGError."""
    with _open_table(path) as table:
        places = column_places(table)
        width = max(table.dtype.itemsize, 4 * len(channels) + 8 * len(others))  # bytes of a row, there or here
        last = min(first + min(ROWS_AT_ONCE, BYTES_AT_ONCE // width), len(table))
        pieces = [_as_chunk(rows, places, channels, others) for rows in _stored_rows(table, first, last)]
        return tuple(np.concatenate(arrays) for arrays in zip(*pieces, strict=True))


# ---- a table ----------------------------------------------------------------------------------------------------


@contextmanager
def _open_table(path: str) -> Iterator[h5py.Dataset]:
    """The table of a file; raises EMGError for whatever goes wrong with it, then or in what is read."""
    try:
        with h5py.File(path) as file:
            yield _checked_table(file, os.stat(path).st_size)
    except EMGError:
        raise
    except zlib_ng.error as error:
        raise EMGError(f"the file is damaged ({_first_line(error)}); download it again") from None
    except Exception as error:  # of whatever kind: it is the file's fault
        raise EMGError(f"the file cannot be read ({_first_line(error)}); download it again") from None


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _checked_table(file: h5py.File, size: int) -> h5py.Dataset:
    """The table of a file of `size` bytes; raises EMGError where it is none of pandas', or cannot be as it says."""
    links = [file.get(name, getlink=True) for name in ("data", "data/table") if name in file]
    table = file.get("data/table") if all(isinstance(link, h5py.HardLink) for link in links) else None
    if not isinstance(table, h5py.Dataset) or table.ndim != 1 or "index" not in (table.dtype.names or ()):
        raise EMGError("there is no pandas table /data/table in it; only putEMG's own layout can be read")
    if table.external or table.is_virtual:
        raise EMGError("its rows are to be read from other files; only putEMG's own layout can be read")
    count, row_bytes = len(table), table.dtype.itemsize
    if count * row_bytes > DEFLATE_LIMIT * size or row_bytes > BYTES_AT_ONCE:
        raise EMGError(f"the file claims {count} rows of {row_bytes} bytes, more than it holds; download it again")
    if table.chunks and table.chunks[0] * row_bytes > BYTES_AT_ONCE:
        raise EMGError(f"the file claims to be read {table.chunks[0]} rows at a time, too many; download it again")
    return table


def column_places(table: h5py.Dataset) -> Places:
    """Where each column is, from the attributes that pandas wrote; raises EMGError where they do not fit."""
    places = {}
    for block in [name for name in table.dtype.names if name.startswith("values_block_")]:
        columns = [str(column) for column in _plain_list(table.attrs, f"{block}_kind")]
        if columns and len(columns) != np.prod(table.dtype[block].shape, dtype=int):
            raise EMGError(f"the attribute {block}_kind names {len(columns)} columns, not all; download it again")
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
        raise EMGError(f"the attribute {name} is damaged ({_first_line(error)}); download the file again") from None
    return columns if isinstance(columns, list) else []


class PlainUnpickler(pickle.Unpickler):
    """Builds numbers, strings and lists; refuses every class and function, and so can run nothing."""

    def find_class(self, module: str, name: str):
        raise pickle.UnpicklingError(f"an attribute asks to run {module}.{name}")


# ---- its rows ---------------------------------------------------------------------------------------------------


def _as_chunk(rows: np.ndarray, places: Places, channels: list[str], others: list[str]) -> Chunk:
    time, emg = rows["index"].astype(np.float64), _values(rows, places, channels, np.float32)
    return time, emg, _values(rows, places, others, np.float64)


def _values(rows: np.ndarray, places: Places, names: list[str], kind: type) -> np.ndarray:
    """(n, len(names)) columns of compound rows."""
    values = np.empty((len(rows), len(names)), kind)
    for block in sorted({places[name][0] for name in names}):
        numbers = [number for number, name in enumerate(names) if places[name][0] == block]
        values[:, numbers] = rows[block][:, [places[names[number]][1] for number in numbers]]
    return values


def _stored_rows(table: h5py.Dataset, first: int, last: int) -> Iterator[np.ndarray]:
    """The rows from `first` to before `last` in pieces.

    Chunks that were shuffled and deflated, as pandas does it, are inflated here: zlib-ng takes a third of the time
    that HDF5's own zlib does, which is most of the time of reading.
    """
    if not _is_as_pandas_writes(table):
        yield table[first:last]
        return
    (size,) = table.chunks
    for start in range(first // size * size, last, size):
        yield _inflated_chunk(table, start)[max(0, first - start) : last - start]


def _inflated_chunk(table: h5py.Dataset, start: int) -> np.ndarray:
    (size,), width = table.chunks, table.dtype.itemsize
    skipped_filters, deflated = table.id.read_direct_chunk((start,))
    if skipped_filters:  # as where deflating would not have made the chunk smaller
        return table[start : start + size]
    inflater = zlib_ng.decompressobj()
    planes = inflater.decompress(deflated, size * width)
    more = inflater.decompress(inflater.unconsumed_tail, 1)  # nothing, but then zlib's checksum has been looked at
    if len(planes) < size * width or more or not inflater.eof:
        raise EMGError(f"the rows from {start} on are damaged; download the file again")
    rows = np.frombuffer(planes, np.uint8).reshape(width, size).T  # shuffled: the first bytes of all rows, …
    return np.frombuffer(rows.tobytes(), table.dtype)[: len(table) - start]


def _is_as_pandas_writes(table: h5py.Dataset) -> bool:
    made = table.id.get_create_plist()
    filters = [made.get_filter(i)[0] for i in range(made.get_nfilters())]
    plain = table.dtype.itemsize == table.id.get_type().get_size() and not table.dtype.hasobject
    small = table.chunks and table.chunks[0] * table.dtype.itemsize <= MAX_CHUNK_BYTES
    return bool(plain and small and filters == [h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_DEFLATE])
