"""Where the samples of a stream come from: a recording, standard input, UDP or the Lab Streaming Layer.

A source yields packets as they arrive, and a Trouble in place of a packet that cannot be used.
"""

import os
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from emg_gpt2.base.errors import EMGError
from emg_gpt2.live.options import ENCODINGS
from emg_gpt2.raw.putemg import read_recording

PACKET_MS = 10.0  # of a replayed recording
LOOK_S = 0.2  # how often a source that waits checks whether it should end
LSL_GAP_S = 0.02  # time stamps of a stream jitter; a longer gap between two samples is a loss
LONGEST_LINE = 1 << 20  # bytes
HEADER = struct.Struct("<Q")  # of a UDP packet: the number of its first sample


class Packet(NamedTuple):
    """Samples emg (n, C) that arrived together at `arrived` (s, time.perf_counter); first: number of the first one."""

    first: int
    emg: np.ndarray
    arrived: float


class Trouble(NamedTuple):
    """A fault that does not end a stream: its kind, and what happened."""

    kind: str
    words: str


class Source(NamedTuple):
    """A source that is open. rate: Hz, of the raw samples; start: time of sample 0 (s).

    live: whether samples arrive in real time; waits: whether they wait until they are taken; packets: yields them until
    the function that it is given returns True.
    """

    rate: float
    start: float
    live: bool
    waits: bool
    packets: Callable[[Callable[[], bool]], Iterator[Packet | Trouble]]


def open_source(name: str, channels: tuple[str, ...], rate: float | None, encoding: str | None, speed: float) -> Source:
    """Open a file, `-`, `udp://HOST:PORT` or `lsl://NAME`; `speed` is for files. Raises EMGError."""
    if name.startswith("lsl://"):
        return lsl_source(name.removeprefix("lsl://"), len(channels))
    if name == "-" or name.startswith("udp://"):
        if rate is None:
            raise EMGError(f"{name}: its sampling rate is not known; say it with --rate")
        if name == "-":
            return stdin_source(len(channels), rate, encoding or "csv")
        return udp_source(name, len(channels), rate, encoding or "float32")
    return replay(Path(name), len(channels), speed)


# ---- a recording ----------------------------------------------------------------------------------------------


def replay(path: Path, channels: int, speed: float) -> Source:
    """Replay a recording at `speed` times its own; 0: as fast as possible. Raises EMGError where it cannot be read."""
    recording = read_recording(path, labelled=False)
    if len(recording.channels) != channels:
        raise EMGError(
            f"{path}: {len(recording.channels)} channels, and the model was trained on {channels}; choose another"
        )
    rate, emg = recording.sampling_rate, recording.emg
    size = max(1, round(PACKET_MS * rate / 1000))

    def packets(ended: Callable[[], bool]) -> Iterator[Packet]:
        began = time.perf_counter()
        for first in range(0, len(emg), size):
            part = emg[first : first + size]
            if speed:
                time.sleep(max(0, began + (first + len(part)) / (rate * speed) - time.perf_counter()))
            if ended():
                return
            yield Packet(first, part, time.perf_counter())

    return Source(rate, float(recording.time[0]), bool(speed), not speed, packets)


# ---- standard input -------------------------------------------------------------------------------------------


def stdin_source(channels: int, rate: float, encoding: str) -> Source:
    """Read text, a sample per line with commas or blanks between numbers, or binary samples, channel after channel."""
    read = _lines if encoding == "csv" else _frames

    def packets(ended: Callable[[], bool]) -> Iterator[Packet | Trouble]:
        first, rest = 0, b""
        while not ended() and (bytes_read := os.read(sys.stdin.fileno(), 1 << 16)):
            arrived = time.perf_counter()
            samples, rest, wrong = read(rest + bytes_read, channels, encoding)
            yield from (Trouble("unreadable", f"a sample of standard input: {words}") for words in wrong)
            if len(samples):
                yield Packet(first, samples, arrived)
                first += len(samples)
        if rest:
            yield Trouble("unreadable", f"standard input ended in the middle of a sample ({len(rest)} bytes)")

    return Source(rate, 0.0, True, True, packets)


def _lines(text: bytes, channels: int, _: str) -> tuple[np.ndarray, bytes, list[str]]:
    """Return samples (n, C), the beginning of the next line, and what is wrong with lines that are no sample."""
    *lines, rest = text.split(b"\n")
    samples, wrong = [], []
    if len(rest) > LONGEST_LINE:
        rest, wrong = b"", [f"{len(rest)} bytes without the end of a line"]
    for line in filter(None, map(bytes.strip, lines)):
        values = line.replace(b",", b" ").split()
        try:
            sample = [float(value) for value in values]
        except ValueError:
            wrong.append(f"{line[:40].decode(errors='replace')!r} is not numbers")
            continue
        if len(sample) == channels:
            samples.append(sample)
        else:
            wrong.append(f"{len(sample)} channels, where the model has {channels}")
    return np.array(samples, np.float32).reshape(-1, channels), rest, wrong


def _frames(data: bytes, channels: int, encoding: str) -> tuple[np.ndarray, bytes, list[str]]:
    """Return samples (n, C) and the beginning of the next one; nothing can be wrong with them."""
    size = channels * np.dtype(ENCODINGS[encoding]).itemsize
    whole = len(data) // size * size
    samples = np.frombuffer(data[:whole], ENCODINGS[encoding]).reshape(-1, channels)
    return samples.astype(np.float32), data[whole:], []


# ---- UDP ------------------------------------------------------------------------------------------------------


def udp_source(name: str, channels: int, rate: float, encoding: str) -> Source:
    """Listen for packets: the number of the first sample (64 bits), then n samples, little-endian. Raises EMGError."""
    listening = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        host, port = name.removeprefix("udp://").rsplit(":", 1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        listening.bind((host, int(port)))
    except (OSError, ValueError, OverflowError) as error:
        raise EMGError(f"{name}: cannot listen there ({error}); write udp://HOST:PORT with a free port") from None
    listening.settimeout(LOOK_S)
    print("listening on {}:{}".format(*listening.getsockname()), file=sys.stderr, flush=True)
    frame = channels * np.dtype(ENCODINGS[encoding]).itemsize

    def packets(ended: Callable[[], bool]) -> Iterator[Packet | Trouble]:
        usual = 0
        while not ended():
            try:
                data = listening.recv(1 << 16)
            except TimeoutError:
                continue
            arrived, size = time.perf_counter(), len(data) - HEADER.size
            if size <= 0 or size % frame:
                words = f"a packet of {len(data)} bytes is not {HEADER.size} and a number of samples of {frame} bytes"
                yield Trouble("wrong size", f"{words} ({channels} channels, {encoding})")
                continue
            samples = np.frombuffer(data, ENCODINGS[encoding], offset=HEADER.size).reshape(-1, channels)
            if usual not in (0, len(samples)):
                yield Trouble("packet size", f"{len(samples)} samples, {usual} before")
            usual = len(samples)
            yield Packet(HEADER.unpack_from(data)[0], samples.astype(np.float32), arrived)

    return Source(rate, 0.0, True, False, packets)


# ---- Lab Streaming Layer --------------------------------------------------------------------------------------


def lsl_source(name: str, channels: int) -> Source:
    """Find the stream of that name, within ten seconds; lost samples show in its time stamps. Raises EMGError."""
    try:
        import pylsl
    except (ImportError, RuntimeError):  # RuntimeError where its C library is missing
        raise EMGError("lsl://: the Lab Streaming Layer is not installed; pip install pylsl") from None
    found = pylsl.resolve_byprop("name", name, timeout=10)
    if not found:
        raise EMGError(f"lsl://{name}: no stream of that name was found within 10 s; start it first")
    inlet, info = pylsl.StreamInlet(found[0], recover=True), found[0]
    if info.channel_count() != channels or info.nominal_srate() <= 0:
        raise EMGError(
            f"lsl://{name}: {info.channel_count()} channels at {info.nominal_srate():g} Hz, and the model was trained "
            f"on {channels} at an even rate; choose another stream or model"
        )
    rate = info.nominal_srate()

    def packets(ended: Callable[[], bool]) -> Iterator[Packet | Trouble]:
        first, last = 0, None
        while not ended():
            samples, stamps = inlet.pull_chunk(timeout=LOOK_S, max_samples=max(1, round(PACKET_MS * rate / 1000)))
            if not stamps:
                continue
            arrived = time.perf_counter()
            steps = np.diff(stamps, prepend=stamps[0] - 1 / rate if last is None else last)
            cuts = np.flatnonzero(steps > LSL_GAP_S + 1 / rate)
            missing = np.rint(steps * rate).astype(int) - 1
            for begin, end in pairwise([*sorted({0, *cuts}), len(stamps)]):
                first += missing[begin] if begin in cuts else 0
                yield Packet(first, np.array(samples[begin:end], np.float32), arrived)
                first += end - begin
            last = stamps[-1]

    return Source(rate, 0.0, True, False, packets)
