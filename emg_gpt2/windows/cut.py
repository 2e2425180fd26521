"""A recording → filtered, resampled samples → where its windows begin; and what the windows of a file share."""

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa

from emg_gpt2.base.errors import EMGError
from emg_gpt2.raw.filter import apply_filter
from emg_gpt2.raw.putemg import GESTURES
from emg_gpt2.raw.recording import Recording
from emg_gpt2.raw.resample import resample, resampled_rate
from emg_gpt2.settings import Settings
from emg_gpt2.windows.format import columns

LARGEST_SAMPLE = 1e9  # in any unit: far above what an amplifier gives, and safe to square
LARGEST_COUNT = 2**24  # larger float32 values are all whole numbers, so they prove nothing
COUNT_STEP = 0.25  # counts per stored step: an error of 0.25 / √12 = 0.07 counts RMS, below the amplifier's noise
MOST_REPETITIONS = np.iinfo(np.int16).max  # of one label, in a recording
RATE_TOLERANCE = 1e-3  # putEMG's clocks differ by 1e-5


@dataclass(frozen=True)
class Layout:
    """What all recordings of a windows file share: the first one sets it, and the others must agree."""

    name: str  # of the recording that set it
    channels: tuple[str, ...]
    rate: float  # Hz, of the windows
    window: int  # samples
    stride: int  # samples
    unit: str  # "count" where the raw samples are whole ADC counts, else "as recorded"

    @property
    def counts(self) -> bool:
        return self.unit == "count"

    @property
    def scale(self) -> float:
        """Stored value × scale = value in `unit`."""
        return COUNT_STEP if self.counts else 1.0

    @property
    def columns(self) -> pa.Schema:
        return columns(self.window, len(self.channels), self.counts)

    @property
    def stored(self) -> tuple:
        """The part of it that decides how a recording is cut and stored."""
        return self.channels, self.window, self.stride, self.unit


@dataclass(frozen=True)
class Windows:
    """One entry per window of a recording: its first row in the filtered signal, and what identifies it."""

    first: np.ndarray
    label: np.ndarray
    repetition: np.ndarray
    start: np.ndarray  # s, in the recording's clock


def filter_and_resample(recording: Recording, settings: Settings) -> tuple[np.ndarray, float]:
    """(N, C) raw samples → (M, C) filtered samples, and their rate in Hz; the recording's samples are overwritten."""
    filtered = apply_filter(recording.emg, recording.time, settings.FILTER, settings.BAND_HZ, overwrite=True)
    if not np.isfinite(filtered.sum()):
        raise EMGError("the filter gives NaN or infinite values at this sampling rate; choose another FILTER")
    check_size(filtered)
    return resample(filtered, recording.sampling_rate, settings.SAMPLE_RATE)


def check_size(samples: np.ndarray) -> None:
    """Raises EMGError where filtered samples are NaN, or larger than any amplifier gives."""
    if not max(samples.max(initial=0), -samples.min(initial=0)) < LARGEST_SAMPLE:
        raise EMGError(
            f"samples reach {LARGEST_SAMPLE:g} or more after the filter, which no amplifier gives; repair the file or "
            "leave it out"
        )


def cut_windows(recording: Recording, rate: float, samples: int, layout: Layout, settings: Settings) -> Windows:
    """Windows of a signal of `samples` at `rate` Hz, each inside one repetition less its trimmed edges.

    Repetitions are numbered from 0 for each label of the recording; −1 and labels outside LEGAL_VALUES have none. A
    resampled sample belongs to the repetition of the raw sample that is nearest to it. So two repetitions stay apart
    even where the label between them is too short to leave a sample. Raises EMGError where a label has more repetitions
    than a windows file can number.
    """
    nearest = np.rint(np.arange(samples) * recording.sampling_rate / rate).clip(max=len(recording.labels) - 1)
    trim_start, trim_end = (round(ms * rate / 1000) for ms in (settings.TRIM_START_MS, settings.TRIM_END_MS))
    starts, window_labels, repetitions, seen = [], [], [], Counter()
    for *bounds, label in label_runs(recording.labels):
        if label < 0 or (settings.LEGAL_VALUES and label not in settings.LEGAL_VALUES):
            continue
        first, end = np.searchsorted(nearest, bounds).tolist()
        inside = range(first + trim_start, end - trim_end - layout.window + 1, layout.stride)
        starts += inside
        window_labels += [label] * len(inside)
        repetitions += [seen[label]] * len(inside)
        seen[label] += 1
    if max(repetitions, default=0) > MOST_REPETITIONS:
        raise EMGError(f"a label comes and goes more than {MOST_REPETITIONS} times; correct the labels or leave it out")
    first = np.array(starts, int)
    start = recording.time[0] + first / rate
    return Windows(first, np.array(window_labels, np.int8), np.array(repetitions, np.int16), start)


def label_runs(labels: np.ndarray) -> list[tuple[int, int, int]]:
    """(first, end, label) of each uninterrupted run in (M,) labels; `end` is one past the last sample."""
    bounds = [0, *(np.flatnonzero(np.diff(labels)) + 1), len(labels)]
    return [(int(first), int(end), int(labels[first])) for first, end in pairwise(bounds)]


def agreed_layout(
    name: str, channels: tuple[str, ...], source: dict, layout: Layout | None, settings: Settings
) -> Layout:
    """The file's layout, or the recording's own where it is the first; raises EMGError where the two disagree."""
    found = _own_layout(name, channels, source, settings)
    if layout is None:
        return found
    apart = "preprocess the two kinds of recording into different files"
    if found.channels != layout.channels:
        raise EMGError(f"{len(found.channels)} channels, where {layout.name} has {len(layout.channels)}; {apart}")
    if abs(found.rate / layout.rate - 1) > RATE_TOLERANCE:
        raise EMGError(
            f"{found.rate:.2f} Hz, where {layout.name} has {layout.rate:.2f} Hz; set SAMPLE_RATE to a rate that all "
            f"recordings reach, or {apart}"
        )
    if layout.counts and not found.counts:
        raise EMGError(f"the samples are not whole numbers, where those of {layout.name} are; {apart}")
    return layout


def _own_layout(name: str, channels: tuple[str, ...], source: dict, settings: Settings) -> Layout:
    rate = resampled_rate(source["sampling_rate"], settings.SAMPLE_RATE)
    window, stride = (round(ms * rate / 1000) for ms in (settings.WINDOW_MS, settings.STRIDE_MS))
    if min(window, stride) < 1:
        raise EMGError(f"WINDOW_MS and STRIDE_MS must each reach one sample, which is {1000 / rate:g} ms; raise them")
    return Layout(name, channels, rate, window, stride, source["unit"])


def unit_of(recording: Recording) -> str:
    """`count` where all samples are whole ADC counts, else `as recorded`."""
    blocks = (recording.emg[first : first + 100_000] for first in range(0, len(recording.emg), 100_000))
    counts = all(((x == np.rint(x)) & (np.abs(x) < LARGEST_COUNT)).all() for x in blocks)
    return "count" if counts else "as recorded"


def class_names(labels: list[int], putemg: bool, settings: Settings) -> dict[int, str]:
    """CLASS_NAMES, or putEMG's own names where they are not set and all is `putemg`; numbers where a label has none."""
    names = settings.CLASS_NAMES or (GESTURES if putemg else {})
    numbered = any(label not in names for label in labels)
    return {label: f"gesture {label}" if numbered else names[label] for label in labels}


def why_numbers(labels: list[int], putemg: bool, settings: Settings) -> str:
    """The warning that belongs to the numbers of `class_names`, and says how to name the gestures; else empty."""
    unnamed = [str(label) for label in labels if label not in (settings.CLASS_NAMES or GESTURES)]
    if settings.CLASS_NAMES and unnamed:
        reason = f"CLASS_NAMES lacks {', '.join(unnamed)}"
    elif not settings.CLASS_NAMES and not putemg:
        reason = "these recordings are not putEMG's"
    elif unnamed:
        reason = f"putEMG has no label {', '.join(unnamed)}"
    else:
        return ""
    return f"WARNING: gestures go by number, because {reason}; name every label: --class-names '0=rest,1=fist,…'"
