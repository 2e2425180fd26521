"""TODO emg_gpt2.raw.recording."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from emg_gpt2.base.errors import EMGError

LABEL_COLUMN = "TRAJ_GT"  # ground truth from video, after the data set's own processing
UNLABELLED = ABSENT = -1  # relax and pause: never a class; and what stands for a column that is not there
MOST_BYTES = 1.5e9  # bytes of a recording in memory: 40 minutes of 24 channels at 5120 Hz, where putEMG's longest has 3
PLAIN_COLUMNS = (LABEL_COLUMN, "subject")
Chunk = tuple[np.ndarray, ...]  # time (n,) s, emg (n, C) float32, labels (n,), subjects (n,)


@dataclass(frozen=True)
class Recording:
    """One raw file: `time` (N,) float64 s, `emg` (N, C) float32 in ADC counts, `labels` (N,) int8."""

    name: str
    subject: str
    session: str
    trajectory: str
    channels: tuple[str, ...]
    time: np.ndarray
    emg: np.ndarray
    labels: np.ndarray

    @property
    def sampling_rate(self) -> float:
        """Hz, from the file's own clock."""
        return (len(self.time) - 1) / (self.time[-1] - self.time[0])


def check_is_file(path: Path) -> None:
    """Raises EMGError for a folder, and for a pipe or device, which would be waited for or read without an end."""
    if path.exists() and not path.is_file():
        raise EMGError("this is a folder, a pipe or a device; name a file")


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Put the file's name before the message of any EMGError."""
    try:
        yield
    except EMGError as error:
        raise EMGError(f"{path}: {error}") from None


def check_length(rows: int, channels: int) -> None:
    needed = rows * (4 * channels + 8 * (1 + len(PLAIN_COLUMNS)))
    if needed > MOST_BYTES:
        raise EMGError(
            f"a recording of {rows} rows or more would take {needed / 1e9:.1f} GB of memory, and "
            f"{MOST_BYTES / 1e9:g} GB are the most; cut it into shorter ones"
        )


def join(chunks: Iterator[Chunk], rows: int, channels: int) -> Chunk:
    """All chunks in one; counts are exact in float32."""
    whole = np.empty(rows), np.empty((rows, channels), np.float32), np.empty(rows), np.empty(rows)
    first = 0
    for chunk in chunks:
        last = first + len(chunk[0])
        for array, values in zip(whole, chunk, strict=True):
            array[first:last] = values
        first = last
    if first != rows:
        raise EMGError(f"{first} rows are there, of {rows}; download it again")
    return whole


def check_clock(time: np.ndarray) -> None:
    if len(time) < 2:
        raise EMGError(f"the recording is empty ({len(time)} rows); download it again")
    if not np.isfinite(time).all():
        raise EMGError("the clock holds values that are no numbers; download the file again")
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


def check_emg(emg: np.ndarray, channels: tuple[str, ...]) -> None:
    bad = ~np.isfinite(emg)
    if bad.any():
        row, channel = np.argwhere(bad)[0]
        raise EMGError(
            f"{bad.sum()} samples are NaN or infinite, the first in {channels[channel]} at row {row}; "
            "mend the file or leave it out"
        )


def check_electrodes(recording: Recording) -> None:
    """Raises EMGError that names the channels which hold one value from beginning to end."""
    if constant := constant_channels(recording):
        raise EMGError(f"{', '.join(constant)} never changes, so the electrode was off; leave the recording out")


def constant_channels(recording: Recording) -> list[str]:
    """Those that hold one value from beginning to end."""
    spans = np.ptp(recording.emg, axis=0)
    return [name for name, span in zip(recording.channels, spans, strict=True) if span == 0]


def check_labels(labels: np.ndarray) -> None:
    with np.errstate(invalid="ignore"):
        wrong = np.flatnonzero(~((labels == np.rint(labels)) & (labels >= UNLABELLED) & (labels <= 127)))
    if len(wrong):
        raise EMGError(
            f"{LABEL_COLUMN} is {labels[wrong[0]]:g} at row {wrong[0]}, and labels are whole numbers from −1 to 127; "
            "mend the file or leave it out"
        )


def check_subject(subjects: np.ndarray, subject: str) -> None:
    if not (subjects == int(subject)).all():
        found = subjects[subjects != int(subject)][0]
        raise EMGError(f"the name says subject {subject} but the rows say {found:g}; give the file its own name back")
