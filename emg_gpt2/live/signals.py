"""Raw samples as a trained model needs them: filtered, resampled and scaled as its training data were."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from emg_gpt2.base.errors import EMGError, named
from emg_gpt2.model.model import EMGForSequenceClassification
from emg_gpt2.raw.filter import CausalFilter, apply_filter
from emg_gpt2.raw.putemg import RECORDING_NAME, read_recording
from emg_gpt2.raw.recording import UNLABELLED, Recording, constant_channels
from emg_gpt2.raw.resample import Resampler, resample
from emg_gpt2.windows.cut import COUNT_STEP, RATE_TOLERANCE, check_size, unit_of

logger = logging.getLogger(__name__)

SECONDS_AT_ONCE = 10  # of a recording through the causal filter
TIME = len("11-05-00-695")  # the time of day at the end of a recording's name


@dataclass(frozen=True)
class Signal:
    """A recording that is ready to be cut into windows.

    samples: (M, C) float32; labels: (M,); both at `rate` Hz, from `start` (s, in the recording's clock).
    """

    name: str
    channels: tuple[str, ...]
    start: float
    rate: float
    samples: np.ndarray
    labels: np.ndarray

    @property
    def time(self) -> np.ndarray:
        """(M,) time of each sample (s)."""
        return self.start + np.arange(len(self.samples)) / self.rate

    @property
    def end(self) -> float:
        """Time after the last sample (s)."""
        return self.start + len(self.samples) / self.rate


def when(path: Path) -> tuple[str, ...]:
    """Person, day and time of a recording, from its name; recordings with other names sort first."""
    found = RECORDING_NAME.fullmatch(path.stem)
    return (found["subject"], found["session"], path.stem[-TIME:]) if found else ("", "", path.stem)


def read_signal(path: Path, model: EMGForSequenceClassification, kind: str) -> Signal:
    """Read and filter a recording; kind: `model`, as the training data were filtered, or `causal`. Raises EMGError."""
    recording = read_recording(path, labelled=False)
    with named(path):
        check_recording(recording, model)
        samples, rate = filtered(recording, model, kind)
        check_size(samples)
        if len(samples) < model.config.window:
            raise EMGError(f"{len(samples)} samples are less than a window of {model.config.window}; leave it out")
    places = np.rint(np.arange(len(samples)) * recording.sampling_rate / rate).astype(int)
    labels = recording.labels[np.minimum(places, len(recording.labels) - 1)]
    return Signal(path.stem, recording.channels, recording.time[0], rate, samples, labels)


def check_recording(recording: Recording, model: EMGForSequenceClassification) -> None:
    """Raise EMGError where the recording is not like the model's training data; warn of what is doubtful."""
    config, name = model.config, recording.name
    found, expected = len(recording.channels), len(config.channels)
    if found != expected:
        raise EMGError(f"{found} channels, and the model was trained on {expected}; choose another model")
    unit = unit_of(recording)
    if config.unit == "count" and unit != "count":
        raise EMGError("the samples are not whole counts, and the model was trained on whole counts; choose another")
    if unit == "count" != config.unit:
        logger.warning(f"{name}: the samples are whole counts, and those that the model was trained on were not")
    if others := sorted(set(recording.labels.tolist()) - {UNLABELLED, *config.class_codes}):
        logger.warning(f"{name}: the model does not know label {', '.join(map(str, others))}; no figure counts it")
    for channel in constant_channels(recording):
        logger.warning(f"{name}: {channel} never changes, so the electrode was off; trust its decisions less")


def filtered(recording: Recording, model: EMGForSequenceClassification, kind: str) -> tuple[np.ndarray, float]:
    """Return (M, C) filtered samples and their rate (Hz)."""
    made, raw_rate = model.config.preprocessing, recording.sampling_rate
    if kind == "model" and made["FILTER"] == "putemg":
        emg = apply_filter(recording.emg, recording.time, made["FILTER"], made["BAND_HZ"], overwrite=True)
        samples, rate = resample(emg, raw_rate, made["SAMPLE_RATE"])
        check_rate(rate, model)
        return as_stored(samples, model.config.unit), rate
    path, block = CausalPath(model, raw_rate), int(SECONDS_AT_ONCE * raw_rate)
    pieces = [path(recording.emg[first : first + block]) for first in range(0, len(recording.emg), block)]
    return np.concatenate(pieces), path.rate


class CausalPath:
    """Filter and resample raw samples piece by piece, with the model's band, rate and scale.

    raw_rate: Hz; rate: of the result, Hz. A model of FILTER = "none" gets no filter, any other model the causal one.
    Raises EMGError where raw_rate cannot be resampled to the model's rate.
    """

    def __init__(self, model: EMGForSequenceClassification, raw_rate: float):
        made = model.config.preprocessing
        self.filter = (lambda emg: emg) if made["FILTER"] == "none" else CausalFilter(raw_rate, made["BAND_HZ"])
        self.resampler = Resampler(raw_rate, made["SAMPLE_RATE"])
        self.rate, self.unit = self.resampler.rate, model.config.unit
        check_rate(self.rate, model)

    def __call__(self, emg: np.ndarray) -> np.ndarray:
        """(n, C), n ≥ 1 → (m, C) float32, m ≥ 0."""
        return as_stored(self.resampler(self.filter(emg)), self.unit)


def check_rate(rate: float, model: EMGForSequenceClassification) -> None:
    """Raise EMGError where windows at `rate` Hz are not like those that the model was trained on."""
    if abs(rate / model.config.sampling_rate - 1) > RATE_TOLERANCE:
        raise EMGError(
            f"{rate:.2f} Hz after resampling, and the model was trained at {model.config.sampling_rate:.2f} Hz; choose "
            "a model that was trained on such recordings"
        )


def as_stored(samples: np.ndarray, unit: str) -> np.ndarray:
    """Round counts to steps of COUNT_STEP, as a windows file does, so that the model sees what it was trained on."""
    return np.rint(samples / COUNT_STEP) * np.float32(COUNT_STEP) if unit == "count" else samples


def every_window(samples: np.ndarray, length: int, step: int) -> np.ndarray:
    """(n, C) → (windows, length, C), a view: a window every `step` samples, from the first sample on."""
    if len(samples) < length:
        return np.empty((0, length, samples.shape[1]), np.float32)
    return sliding_window_view(samples, length, axis=0)[::step].swapaxes(1, 2)
