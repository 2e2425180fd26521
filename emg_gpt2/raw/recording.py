"""A recording in memory, and the checks that recordings of every format go through."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from emg_gpt2.base.errors import EMGError

LABEL_COLUMN = "TRAJ_GT"  # the label that the video shows, after the data set's own corrections
UNLABELLED = -1  # relax and pause: never a class; and the label where a file has none
MOST_BYTES = 1.5e9  # bytes of a recording in memory: 40 minutes of 24 channels at 5120 Hz; putEMG's longest has 6
ROWS_AT_ONCE, BYTES_AT_ONCE = 25_000, 1 << 26  # that are read from a file at once, at most

Chunk = tuple[np.ndarray, np.ndarray, np.ndarray]  # time (n,) s, channels (n, C) float32, other columns (n, k) float64
Choose = Callable[[list[str]], tuple[list[str], list[str]]]  # a file's columns → its channels, other columns to read


class Table(NamedTuple):
    """The columns of a file that are of use: time (N,) float64, emg (N, C) float32, others: name → (N,) float64."""

    channels: list[str]
    time: np.ndarray
    emg: np.ndarray
    others: dict[str, np.ndarray]


@dataclass(frozen=True)
class Recording:
    """One raw file: `time` (N,) float64 s, `emg` (N, C) float32 in the file's unit, `labels` (N,) int8.

    is_putemg: whether putEMG recorded it, or it is simulated in its image; other data may share its layout alone.
    """

    name: str
    subject: str
    session: str
    trajectory: str
    channels: tuple[str, ...]
    time: np.ndarray
    emg: np.ndarray
    labels: np.ndarray
    is_putemg: bool = False

    @property
    def sampling_rate(self) -> float:
        """Hz, from the file's own clock."""
        return (len(self.time) - 1) / (self.time[-1] - self.time[0])


def join_chunks(chunks: Iterable[Chunk], rows: int, channels: list[str], others: list[str]) -> Table:
    """All chunks in one table of so many rows; counts are exact in float32. Raises EMGError for another number."""
    whole = np.empty(rows), np.empty((rows, len(channels)), np.float32), np.empty((rows, len(others)))
    first = 0
    for chunk in chunks:
        last = first + len(chunk[0])
        for array, values in zip(whole, chunk, strict=True):
            array[first:last] = values
        first = last
    if first != rows:
        raise EMGError(f"the file holds {first} rows of {rows}; download it again")
    return Table(channels, *whole[:2], dict(zip(others, whole[2].T, strict=True)))


# ---- checks: each raises EMGError that says what is wrong and what to do ----------------------------------------


def check_length(rows: int, channels: int) -> None:
    """A recording fits the memory: 4 bytes per sample; clock, label, subject and video 32 bytes per row."""
    needed = rows * (4 * channels + 32)
    if needed > MOST_BYTES:
        raise EMGError(
            f"a recording of {rows} rows or more would take {needed / 1e9:.1f} GB of memory, and "
            f"{MOST_BYTES / 1e9:g} GB are the most; cut it into shorter ones"
        )


def check_clock(time: np.ndarray) -> None:
    """(N,) s are finite, rise, and leave no sample out."""
    if len(time) < 2:
        raise EMGError(f"the recording is empty ({len(time)} rows); download it again")
    if not np.isfinite(time).all():
        raise EMGError("the clock holds NaN or infinite values; download the file again")
    steps = np.diff(time)
    usual = np.median(steps)
    backwards, jumps = np.flatnonzero(steps <= 0), np.flatnonzero(np.abs(steps - usual) > 0.5 * usual)
    if len(backwards):
        row = backwards[0] + 1
        raise EMGError(f"the clock runs backwards at row {row} ({time[row]:.3f} s); download the file again")
    if len(jumps):
        row = jumps[0] + 1
        raise EMGError(
            f"the clock jumps by {steps[row - 1]:.4f} s at row {row} ({time[row]:.3f} s), samples are lost; "
            "download the file again, or leave it out"
        )


def check_emg(emg: np.ndarray, channels: list[str]) -> None:
    """(N, C) samples are finite."""
    bad = ~np.isfinite(emg)
    if bad.any():
        row, channel = np.argwhere(bad)[0]
        raise EMGError(
            f"{bad.sum()} samples are NaN or infinite, the first in {channels[channel]} at row {row}; "
            "repair the file or leave it out"
        )


def check_labels(labels: np.ndarray) -> None:
    """(N,) are whole numbers from −1 to 127."""
    with np.errstate(invalid="ignore"):
        wrong = np.flatnonzero(~((labels == np.rint(labels)) & (labels >= UNLABELLED) & (labels <= 127)))
    if len(wrong):
        raise EMGError(
            f"the label is {labels[wrong[0]]:g} at row {wrong[0]}, and labels are whole numbers from −1 to 127; "
            "repair the file or leave it out"
        )


def check_electrodes(recording: Recording) -> None:
    """No channel holds one value from beginning to end."""
    if constant := constant_channels(recording):
        raise EMGError(f"{', '.join(constant)} never changes, so the electrode was off; leave the recording out")


def constant_channels(recording: Recording) -> list[str]:
    """Names of the channels that hold one value from beginning to end."""
    spans = np.ptp(recording.emg, axis=0)
    return [name for name, span in zip(recording.channels, spans, strict=True) if span == 0]
