"""Hostile GGUF files for the programme `hostile`.

A case is a function (folder with whole files, folder to write to) → the hostile file.
"""

import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

from stress.hostile_recordings import TRACE, Make
from stress.intruder import Intruder

NAN = float("nan")
KEY, OTHER = "blk.1.attn_k.weight", "blk.0.attn_k.weight"

Change = Callable[[bytes], bytes]


def put(name: str, at: int, form: str, value: float) -> Change:
    """A number `at` bytes behind a name.

    Of a field: 0 its type, 4 its value; of a list there: 4 its type, 8 its length. Of a tensor: 0 how many dimensions,
    4 and 12 the two of a matrix, 20 its type, 24 its place.
    """

    def change(content: bytes) -> bytes:
        place = content.index(name.encode()) + len(name) + at
        return content[:place] + struct.pack(f"<{form}", value) + content[place + struct.calcsize(form) :]

    return change


def one_more(key: str, kind: int, value: bytes) -> Change:
    """Another field in front of all, and one that keeps the place of the weights a multiple of 32."""
    fields = text(key.encode()) + struct.pack("<I", kind) + value
    fields += text(b"filler") + struct.pack("<I", 8) + text(bytes(-(len(fields) + 26) % 32))

    def change(content: bytes) -> bytes:
        (count,) = struct.unpack_from("<Q", content, 16)
        return content[:16] + struct.pack("<Q", count + 2) + fields + content[24:]

    return change


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


EIGHT_WIDE = one_more("llama.attention.key_length", 4, struct.pack("<I", 8))

CHANGES: dict[str, Change] = {
    "nothing": lambda _: b"",
    "a pickle": lambda _: pickle.dumps(Intruder(TRACE)),
    "cut in its header": lambda file: file[:600],
    "cut in its weights": lambda file: file[:-1],
    "big-endian": lambda file: file[:4] + b"\0\0\0\3" + file[8:],
    "2⁶⁴ tensors": lambda file: file[:8] + b"\xff" * 8 + file[16:],
    "2⁶⁴ fields": lambda file: file[:16] + b"\xff" * 8 + file[24:],
    "a field of 2⁶³ letters": put("general.name", 4, "Q", 2**63),
    "a list of 2⁶⁴ texts": put("tokenizer.ggml.tokens", 8, "Q", 2**64 - 1),
    "a list of 2⁶¹ numbers": one_more("x", 9, struct.pack("<IQ", 10, 2**61)),
    "lists in a list": put("tokenizer.ggml.tokens", 4, "I", 9),
    "10⁵ lists, each in the other": one_more("x", 9, struct.pack("<IQ", 9, 1) * 10**5),
    "10⁶ texts": one_more("x", 9, struct.pack("<IQ", 8, 10**6) + bytes(8 * 10**6)),
    "a field of an unknown type": put("general.name", 0, "I", 77),
    "an alignment of 0": one_more("general.alignment", 4, bytes(4)),
    "an alignment of 2³¹": one_more("general.alignment", 4, struct.pack("<I", 2**31)),
    "a tensor of 2³² dimensions": put(KEY, 0, "I", 2**32 - 1),
    "a tensor of no width": put(KEY, 4, "Q", 0),
    "a tensor of 2⁶³ rows": put(KEY, 12, "Q", 2**63),
    "a tensor of 2⁶⁴ values": put(KEY, 12, "Q", 2**59),
    "a tensor far behind the end": put(KEY, 24, "Q", 2**40),
    "a tensor in front of the file": put(KEY, 24, "Q", 2**64 - 32),
    "two tensors in one place": put(KEY, 24, "Q", 0),
    "weights of an unknown type": put(KEY, 20, "I", 999),
    "weights of a type that nobody reads": put(KEY, 20, "I", 26),
    "a name twice": lambda file: file.replace(KEY.encode(), OTHER.encode()),
    "a tensor of another model": lambda file: file.replace(KEY.encode(), b"blk.1.attn_x.weight"),
    "10⁹ blocks": put("llama.block_count", 4, "I", 10**9),
    "one block less": put("llama.block_count", 4, "I", 1),
    "a width of 10⁹": put("llama.embedding_length", 4, "I", 10**9),
    "a width that is text": put("llama.embedding_length", 0, "I", 8),
    "no heads": put("llama.attention.head_count", 4, "I", 0),
    "fewer heads": put("llama.attention.head_count_kv", 4, "I", 1),
    "heads that share no width": lambda file: put("llama.attention.head_count", 4, "I", 6)(EIGHT_WIDE(file)),
    "heads of width 1": put("llama.attention.head_count", 4, "I", 32),
    "positions that turn at no rate": put("llama.rope.freq_base", 4, "f", NAN),
    "positions that are stretched": one_more("llama.rope.scaling.type", 8, text(b"yarn")),
    "an unknown architecture": lambda file: file.replace(b"llama", b"bloom"),
    "an architecture that steers a terminal": lambda file: file.replace(b"llama", b"\x1b[2Jx"),
    "code": one_more("llama.auto_map", 8, text(b"evil--evil.Evil")),
    "weights that are not finite": lambda file: file[:-4] + struct.pack("<f", NAN),
}


def changed(change: Change) -> Make:
    def make(whole: Path, folder: Path) -> Path:
        path = folder / "small.gguf"
        path.write_bytes(change((whole / "small.gguf").read_bytes()))
        return path

    return make


def pipe(_: Path, folder: Path) -> Path:
    os.mkfifo(folder / "small.gguf")
    return folder / "small.gguf"


GGUF = {name: changed(change) for name, change in CHANGES.items()} | {"a pipe": pipe}
