"""Hostile recordings for the programme `hostile`: HDF5, CSV, zip.

A case is a function (folder with whole files, folder to write to) → the hostile file.
"""

import io
import os
import pickle
import shutil
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

from stress.fuzz import STEM
from stress.intruder import Intruder

TRACE = "TRACE"  # the file that a planted pickle would make

Make = Callable[[Path, Path], Path]


def hdf5(change: Callable[[h5py.File], None]) -> Make:
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


def external_link(at: str, name: str) -> Make:
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


def csv(write: Callable[[bytes, io.BufferedWriter], None]) -> Make:
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


def zipped(name: str = f"{STEM}.csv", kind: int = zipfile.ZIP_DEFLATED) -> Make:
    def make(whole: Path, folder: Path) -> Path:
        with zipfile.ZipFile(folder / f"{STEM}.zip", "w", kind) as archive:
            archive.writestr(name, (whole / f"{STEM}.csv").read_bytes())
        return folder / f"{STEM}.zip"

    return make


def patched(make: Make, change: Callable[[bytes], bytes]) -> Make:
    def made(whole: Path, folder: Path) -> Path:
        path = make(whole, folder)
        path.write_bytes(change(path.read_bytes()))
        return path

    return made


def bomb(block: Callable[[bytes], bytes], blocks: int) -> Make:
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
