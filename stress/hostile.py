"""Files that mean harm, in the readers: pickles, links that lead elsewhere, bombs, absurd sizes.

Each file has to be refused in a sentence, or read as if the harmless part of it were all, with PATIENCE and MEMORY of
`children`; nothing that it asks for may run, and nothing may be written.
"""

import io
import json
import os
import pickle
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from emg_gpt2.base.errors import EMGError
from emg_gpt2.raw.putemg import read_recording
from emg_gpt2.settings import Settings
from emg_gpt2.windows.format import METADATA_KEY, with_checksum
from emg_gpt2.windows.reading import load_windows
from stress.children import Job, try_all
from stress.fuzz import STEM, make_files
from stress.intruder import Intruder
from stress.row import Row

TRACE = "TRACE"  # the file that a planted pickle would make


def rows(nightly: bool, folder: Path, seed: int, say: Callable[[str], None]) -> Iterator[Row]:
    """One row per kind of file; every case is tried once, however often the programme runs."""
    whole = folder / "whole"
    whole.mkdir()
    make_files(whole)
    for kind, cases in CASES.items():
        say(f"{len(cases)} hostile files: {kind}")
        row = Row("hostile", f"hostile {kind}")
        for end in try_all([Job(try_case, (kind, name, whole, folder / f"{kind} {name}")) for name in cases]):
            row.add(*end)
        yield row


def try_case(kind: str, name: str, whole: Path, folder: Path) -> str:
    """Make a hostile file in a new folder and read it: how that ended."""
    (folder / "inside").mkdir(parents=True)
    os.chdir(folder / "inside")  # so that what is written to the current folder is seen too
    path = CASES[kind][name](whole, folder / "inside")
    before = {p: p.lstat().st_mtime_ns for p in folder.rglob("*")}
    try:
        read_recording(path) if path.suffix in (".hdf5", ".csv", ".zip") else load_windows(Settings(DATA_LOCATION=path))
        end = "right"
    except EMGError as error:
        end = "refused" if "\n" not in str(error) and str(path) in str(error) else f"{name}: no sentence: {error}"
    except Exception as error:
        end = f"{name}: {type(error).__name__}: {error}"
    after = {p: p.lstat().st_mtime_ns for p in folder.rglob("*")}
    return end if after == before else f"{name}: {sorted(map(str, after.keys() ^ before.keys()))} was written"


# ---- HDF5 -------------------------------------------------------------------------------------------------------


def hdf5(change: Callable[[h5py.File], None]) -> Callable[[Path, Path], Path]:
    def make(whole: Path, folder: Path) -> Path:
        path = Path(shutil.copy(whole / f"{STEM}.hdf5", folder))
        with h5py.File(path, "r+") as file:
            change(file)
        return path

    return make


def pickles(spared: str = "nothing") -> Callable[[h5py.File], None]:
    """In every attribute but those whose names end in `spared`."""

    def plant(_, item) -> None:
        for name in [name for name in item.attrs if not name.endswith(spared)]:
            item.attrs[name] = np.bytes_(pickle.dumps(Intruder(TRACE), 0))

    def change(file: h5py.File) -> None:
        plant("/", file)
        file.visititems(plant)

    return change


def link(at: str, to) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        file.move(at, "elsewhere")
        file[at] = to(file) if callable(to) else to

    return change


def external_link(at: str, name: str) -> Callable[[Path, Path], Path]:
    """To a good recording, so that following it would be noticed as a right result."""

    def make(whole: Path, folder: Path) -> Path:
        shutil.copy(whole / f"{STEM}.hdf5", folder / "other")
        return hdf5(link(at, h5py.ExternalLink(folder / "other", name)))(whole, folder)

    return make


def another_table(**made) -> Callable[[h5py.File], None]:
    """The table's attributes on a dataset that is made otherwise."""

    def change(file: h5py.File) -> None:
        attributes, kind = dict(file["data/table"].attrs), file["data/table"].dtype
        del file["data/table"]
        options = {"shape": (100,), "dtype": kind} | made
        file.create_dataset("data/table", **options).attrs.update(attributes)

    return change


def virtual(file: h5py.File) -> None:
    table = file["data/table"]
    layout, attributes = h5py.VirtualLayout(table.shape, table.dtype), dict(table.attrs)
    layout[:] = h5py.VirtualSource(table)
    file.move("data/table", "elsewhere")
    file.create_virtual_dataset("data/table", layout).attrs.update(attributes)


def long_attribute(whole: Path, folder: Path) -> Path:
    """HDF5 of today's own layout keeps it apart from the table."""
    with h5py.File(whole / f"{STEM}.hdf5") as good, h5py.File(folder / f"{STEM}.hdf5", "w", libver="latest") as file:
        table = file.create_dataset("data/table", data=good["data/table"][:])
        table.attrs.update(dict(good["data/table"].attrs))
        table.attrs["values_block_0_kind"] = np.zeros(10**7, np.int8)
    return folder / f"{STEM}.hdf5"


def deep_pickle(file: h5py.File) -> None:
    file["data/table"].attrs["values_block_0_kind"] = np.bytes_(b"(l" * 20_000 + b".")


def absurd_row(size: int) -> np.dtype:
    return np.dtype([("index", "f8"), ("values_block_0", "f8", (size,))])


HDF5 = {
    "a pickle in every attribute": hdf5(pickles()),
    "a pickle in every attribute that is not needed": hdf5(pickles("_kind")),
    "an external link in place of the group": external_link("data", "data"),
    "an external link in place of the table": external_link("data/table", "data/table"),
    "a soft link to itself": hdf5(link("data/table", h5py.SoftLink("/data/table"))),
    "soft links in a circle": hdf5(link("data", h5py.SoftLink("/data/table"))),
    "a hard link in a circle": hdf5(link("data/table", lambda file: file["data"])),
    "rows in another file": hdf5(another_table(dtype="f8", external=[("/etc/passwd", 0, 800)])),
    "compound rows in another file": hdf5(another_table(dtype=absurd_row(9), external=[("/etc/passwd", 0, 8000)])),
    "a virtual table": hdf5(virtual),
    "10^15 rows": hdf5(another_table(shape=(10**15,), chunks=(100,), compression="gzip")),
    "10^15 rows that are not chunked": hdf5(another_table(shape=(10**15,), chunks=(1,))),
    "a row of 2 GB": hdf5(another_table(shape=(1,), dtype=absurd_row(2**28 - 9), chunks=(1,))),
    "chunks of 10^7 rows": hdf5(another_table(shape=(10,), maxshape=(None,), chunks=(10**7,), compression="gzip")),
    "text in place of numbers": hdf5(another_table(dtype=np.dtype([("index", h5py.string_dtype())]))),
    "references in place of numbers": hdf5(another_table(dtype=np.dtype([("index", h5py.ref_dtype)]))),
    "a table of two dimensions": hdf5(another_table(shape=(10, 10))),
    "an attribute of 10 MB": long_attribute,
    "a pickle that is nested 20,000 deep": hdf5(deep_pickle),
}


# ---- CSV and zip ------------------------------------------------------------------------------------------------


def csv(write: Callable[[bytes, io.BufferedWriter], None]) -> Callable[[Path, Path], Path]:
    """`write` is given the whole file and where to write."""

    def make(whole: Path, folder: Path) -> Path:
        with (folder / f"{STEM}.csv").open("wb") as file:
            write((whole / f"{STEM}.csv").read_bytes(), file)
        return folder / f"{STEM}.csv"

    return make


def endless_header(content: bytes, file: io.BufferedWriter) -> None:
    file.truncate(10**10)  # zeros that take no space on the disk


def endless_line(content: bytes, file: io.BufferedWriter) -> None:
    file.write(content)
    file.truncate(10**10)


def open_quotation(content: bytes, file: io.BufferedWriter) -> None:
    header, row, _ = content.split(b"\n", 2)
    file.write(header + b"\n" + row.replace(b"emg_gestures", b'"emg_gestures') + b"\n" + (row + b"\n") * 200_000)


def many_columns(content: bytes, file: io.BufferedWriter) -> None:
    file.write(b"," + b",".join(b"EMG_%d" % n for n in range(1, 10**6)) + b"\n" + b"0," * (10**6 - 1) + b"0\n")


def pipe(whole: Path, folder: Path) -> Path:
    os.mkfifo(folder / f"{STEM}.csv")
    return folder / f"{STEM}.csv"


def device(whole: Path, folder: Path) -> Path:
    (folder / f"{STEM}.csv").symlink_to("/dev/zero")
    return folder / f"{STEM}.csv"


def link_to_itself(whole: Path, folder: Path) -> Path:
    (folder / f"{STEM}.csv").symlink_to(folder / f"{STEM}.csv")
    return folder / f"{STEM}.csv"


def zipped(name: str = f"{STEM}.csv", kind: int = zipfile.ZIP_DEFLATED) -> Callable[[Path, Path], Path]:
    def make(whole: Path, folder: Path) -> Path:
        with zipfile.ZipFile(folder / f"{STEM}.zip", "w", kind) as archive:
            archive.writestr(name, (whole / f"{STEM}.csv").read_bytes())
        return folder / f"{STEM}.zip"

    return make


def patched(make: Callable[[Path, Path], Path], change: Callable[[bytes], bytes]) -> Callable[[Path, Path], Path]:
    def made(whole: Path, folder: Path) -> Path:
        path = make(whole, folder)
        path.write_bytes(change(path.read_bytes()))
        return path

    return made


def bomb(block: Callable[[bytes], bytes], blocks: int) -> Callable[[Path, Path], Path]:
    """A zip whose CSV is the whole file's header and then many times the same block, which deflate packs to little."""

    def make(whole: Path, folder: Path) -> Path:
        header, row, _ = (whole / f"{STEM}.csv").read_bytes().split(b"\n", 2)
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        packed = packer.compress(header + b"\n") + packer.flush(zlib.Z_FULL_FLUSH)
        repeated = packer.compress(block(row)) + packer.flush(zlib.Z_FULL_FLUSH)
        packed += repeated * blocks + packer.flush()
        path = folder / f"{STEM}.zip"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"{STEM}.csv", packed)  # stored; the directory then says that it is deflated
        size = len(header) + 1 + len(block(row)) * blocks
        old, new = (kind.to_bytes(2, "little") for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
        content = bytearray(path.read_bytes())
        for at, method, sizes in ((0, 8, 22), (content.rindex(b"PK\x01\x02"), 10, 24)):
            assert content[at + method : at + method + 2] == old
            content[at + method : at + method + 2] = new
            content[at + sizes : at + sizes + 4] = min(size, 2**32 - 2).to_bytes(4, "little")
        path.write_bytes(content)
        return path

    return make


CSV = {
    "a header of 10 GB": csv(endless_header),
    "a line of 10 GB": csv(endless_line),
    "a quotation mark that is not closed": csv(open_quotation),
    "10^6 columns": csv(many_columns),
    "a pipe": pipe,
    "a device": device,
    "a link to itself": link_to_itself,
}
ZIP = {
    "a name with ../": zipped("../../leaving.csv"),
    "an absolute name": zipped("/tmp/leaving.csv"),
    "a name with a drive": zipped("C:\\leaving.csv"),
    "a bomb of rows": bomb(lambda row: (row + b"\n") * 100_000, 400),
    "a bomb without a line's end": bomb(lambda row: b"0" * 10**7, 400),
    "a bomb of empty lines": bomb(lambda row: b"\n" * 10**7, 400),
    "LZMA, which may ask for 4 GB": zipped(kind=zipfile.ZIP_LZMA),
    "a zip in a zip": patched(zipped(), lambda content: zip_of(content)),
    "a password": patched(zipped(), lambda content: in_both_headers(content, 6, 8, b"\x01\x00")),
    "sizes of 4 GB in the headers": patched(zipped(), lambda content: in_both_headers(content, 18, 20, b"\xfe" * 8)),
}


def zip_of(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(f"{STEM}.csv", content)
    return buffer.getvalue()


def in_both_headers(content: bytes, local: int, central: int, value: bytes) -> bytes:
    """A zip's only member, with `value` at these places in its own header and in the directory."""
    changed = bytearray(content)
    for place in (local, content.rindex(b"PK\x01\x02") + central):
        changed[place : place + len(value)] = value
    return bytes(changed)


# ---- parquet ----------------------------------------------------------------------------------------------------


def described(**claims) -> Callable[[Path, Path], Path]:
    """A windows file that claims other things of itself, with a checksum that is right."""

    def make(whole: Path, folder: Path) -> Path:
        table = pq.read_table(whole / "windows.parquet")
        return write(table, json.loads(table.schema.metadata[METADATA_KEY]) | claims, folder)

    return make


def write(table: pa.Table, description: dict, folder: Path) -> Path:
    pq.write_table(table.replace_schema_metadata(with_checksum(description)), folder / "windows.parquet")
    return folder / "windows.parquet"


def changed_table(change: Callable[[pa.Table], pa.Table]) -> Callable[[Path, Path], Path]:
    def make(whole: Path, folder: Path) -> Path:
        table = pq.read_table(whole / "windows.parquet")
        return write(change(table), json.loads(table.schema.metadata[METADATA_KEY]), folder)

    return make


def raw_description(text: bytes) -> Callable[[Path, Path], Path]:
    def make(whole: Path, folder: Path) -> Path:
        table = pq.read_table(whole / "windows.parquet").replace_schema_metadata({METADATA_KEY: text})
        pq.write_table(table, folder / "windows.parquet")
        return folder / "windows.parquet"

    return make


def replaced(name: str, values: Callable[[int], pa.Array]) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.set_column(table.column_names.index(name), name, values(len(table)))


def silent(count: int) -> Callable[[Path, Path], Path]:
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


def rows_in_footer(rows: int) -> Callable[[Path, Path], Path]:
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
CASES = {"HDF5": HDF5, "CSV": CSV, "zip": ZIP, "parquet": PARQUET}
