"""GGUF files, which may come from strangers: what their header says, and their weights as float32.

The header is read here and not by gguf.GGUFReader, which goes on for as long as a header claims: every size is
compared with the file before anything is done with it. The package gguf knows the types of weights and their names.
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np
from gguf import GGML_QUANT_SIZES, MODEL_ARCH, GGMLQuantizationType, dequantize, get_tensor_name_map

from emg_gpt2.base.errors import EMGError
from emg_gpt2.base.text import printable

MAX_HEADER_BYTES = 1 << 25  # that of a large vocabulary has about 15 MB
MOST = 10_000  # fields, and tensors: a model of 200 blocks has 3,000
MAX_DIMENSIONS = 4
ALIGNMENT = 32  # bytes, where the header has none
MAX_ALIGNMENT = 1 << 16
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
TEXT, ARRAY = 8, 9  # the other types of fields
MAGIC, VERSIONS = b"GGUF", (2, 3)
DAMAGED = "the file is damaged; fetch it again"

Value = int | float | bool | str | None  # None: an array, which is skipped


class Tensor(NamedTuple):
    """Where a tensor lies: `size` bytes from `place` on. shape: as in torch, the last one changes fastest."""

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    place: int
    size: int


class Header(NamedTuple):
    """The fields of a file and its tensors, both by name."""

    fields: dict[str, Value]
    tensors: dict[str, Tensor]


def read_header(path: Path) -> Header:
    """Read the header; raises EMGError where the file is not a GGUF, or does not have what its header says."""
    with path.open("rb") as file:
        cursor = _Cursor(file.read(MAX_HEADER_BYTES))
    if cursor.content[:4] != MAGIC:
        raise EMGError("this is not a GGUF file; name one")
    cursor.skip(4)
    version = cursor.number("I")
    if version not in VERSIONS:
        raise EMGError(f"a GGUF of version {version}; only little-endian ones of version 2 and 3 can be read")
    tensors, count = cursor.count(), cursor.count()
    fields = _by_name([(cursor.text(), cursor.value()) for _ in range(count)])
    claimed = [_read_claim(cursor) for _ in range(tensors)]
    return Header(fields, _place(claimed, cursor.place, _alignment(fields), path.stat().st_size))


def read_tensor(path: Path, tensor: Tensor) -> np.ndarray:
    """The values as float32; raises EMGError where they cannot be read or are not all finite."""
    stored = np.fromfile(path, np.uint8, tensor.size, offset=tensor.place)
    if stored.size < tensor.size:
        raise EMGError("the file has become shorter; fetch it again")
    try:
        with np.errstate(all="ignore"):  # what overflows is not finite
            values = dequantize(stored.reshape(*tensor.shape[:-1], -1), tensor.kind)
    except NotImplementedError:
        raise EMGError(f"its {tensor.name} is of type {tensor.kind.name}, which cannot be read; name another") from None
    if not np.isfinite(values).all():
        raise EMGError(f"its {tensor.name} is not all finite: {DAMAGED}")
    return values


def gguf_names(architecture: str, blocks: int, names: list[str]) -> dict[str, str]:
    """The name in transformers → the name in a GGUF, of weights and biases."""
    known = get_tensor_name_map(MODEL_ARCH[architecture.upper()], blocks)
    return {name: known.get_name(name, (".weight", ".bias")) for name in names}


# ---- the header -------------------------------------------------------------------------------------------------


class _Cursor:
    """Goes through the header's bytes; raises EMGError at their end."""

    def __init__(self, content: bytes):
        self.content, self.place = content, 0

    def skip(self, size: int) -> int:
        """Go on by `size` bytes; returns where they begin."""
        start = self.place
        if size > len(self.content) - start:
            raise EMGError(f"its header goes on beyond its end, or beyond {MAX_HEADER_BYTES:,} bytes: {DAMAGED}")
        self.place += size
        return start

    def number(self, form: str) -> int | float | bool:
        return struct.unpack_from(f"<{form}", self.content, self.skip(struct.calcsize(form)))[0]

    def count(self) -> int:
        found = self.number("Q")
        if found > MOST:
            raise EMGError(f"its header claims {found:,} fields or tensors; {MOST:,} are the most: {DAMAGED}")
        return found

    def text(self) -> str:
        size = self.number("Q")
        start = self.skip(size)
        return printable(self.content[start : start + size].decode(errors="replace"))

    def value(self) -> Value:
        kind = self.number("I")
        if kind == TEXT:
            return self.text()
        if kind == ARRAY:
            return self._skip_array()
        return self.number(_form(kind))

    def _skip_array(self) -> None:
        kind, count = self.number("I"), self.number("Q")
        if kind == TEXT:
            for _ in range(count):  # each takes 8 bytes of the header or more
                self.skip(self.number("Q"))
        else:
            self.skip(count * struct.calcsize(_form(kind)))


def _form(kind: int) -> str:
    if kind not in SCALARS:
        raise EMGError(f"its header has a field of the unknown type {kind}: {DAMAGED}")
    return SCALARS[kind]


def _by_name(pairs: list[tuple]) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise EMGError(f"its header has the same name twice: {DAMAGED}")
    return found


def _alignment(fields: dict[str, Value]) -> int:
    found = fields.get("general.alignment", ALIGNMENT)
    if type(found) is not int or not 1 <= found <= MAX_ALIGNMENT or found & (found - 1):
        raise EMGError(f"its general.alignment is {found}, which is no power of two up to {MAX_ALIGNMENT}: {DAMAGED}")
    return found


def _read_claim(cursor: _Cursor) -> tuple[Tensor, int]:
    """A tensor without its place, and the offset that the header claims for it."""
    name, dimensions = cursor.text(), cursor.number("I")
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        raise EMGError(f"its {name[:80]} has {dimensions} dimensions: {DAMAGED}")
    shape = tuple(cursor.number("Q") for _ in range(dimensions))[::-1]
    number, offset = cursor.number("I"), cursor.number("Q")
    if number not in list(GGMLQuantizationType):
        raise EMGError(f"its {name[:80]} is of the unknown type {number}; name another file, or update gguf")
    kind = GGMLQuantizationType(number)
    values, size = GGML_QUANT_SIZES[kind]  # of a block
    if 0 in shape or shape[-1] % values:
        raise EMGError(f"its {name[:80]} is {shape}, in blocks of {values}: {DAMAGED}")
    return Tensor(name, shape, kind, 0, math.prod(shape) // values * size), offset


def _place(claimed: list[tuple[Tensor, int]], header: int, alignment: int, end: int) -> dict[str, Tensor]:
    """The tensors by name. As llama.cpp does, raise an error where one does not begin where the last one ended."""
    start = place = header + -header % alignment
    found = []
    for tensor, offset in claimed:
        if start + offset != place or place + tensor.size > end:
            raise EMGError(f"its {tensor.name[:80]} does not lie where its header says: {DAMAGED}")
        found.append((tensor.name, tensor._replace(place=place)))
        place += tensor.size + -tensor.size % alignment
    return _by_name(found)
