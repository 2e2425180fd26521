"""Raw recordings as a trained model wants them."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from emg_gpt2.base.errors import EMGError, named
from emg_gpt2.live.decisions import CausalPath, as_stored, check_rate
from emg_gpt2.model.model import EMGForSequenceClassification
from emg_gpt2.raw.filter import apply_filter
from emg_gpt2.raw.putemg import RECORDING_NAME, read_recording
from emg_gpt2.raw.recording import Recording, constant_channels
from emg_gpt2.raw.resample import resample
from emg_gpt2.windows.cut import check_size, unit_of

logger = logging.getLogger(__name__)

SECONDS_AT_ONCE = 10  # of a recording through the causal filter
TIME = len("11-05-00-695")  # at the end of every recording's name


@dataclass(frozen=True)
class Signal:
    """A recording as windows are cut from it.

    samples (M, C) float32 and labels (M,) at `rate` Hz, from `start` s on in the recording's clock.
    """

    name: str
    channels: tuple[str, ...]
    start: float
    rate: float
    samples: np.ndarray
    labels: np.ndarray


def when(path: Path) -> tuple[str, ...]:
    """Person, day and time of a recording, from its name; what has another name comes first."""
    found = RECORDING_NAME.fullmatch(path.stem)
    return (found["subject"], found["session"], path.stem[-TIME:]) if found else ("", "", path.stem)


def read_signal(path: Path, model: EMGForSequenceClassification, kind: str) -> Signal:
    """One recording, filtered as the model's training data were, or by the causal filter. Raises EMGError."""
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
    """Raise EMGError where the recording is not like those that the model was trained on; warn of dead electrodes."""
    found, expected = len(recording.channels), len(model.config.channels)
    if found != expected:
        raise EMGError(f"{found} channels, and the model was trained on {expected}; choose another model")
    if model.config.unit == "count" and unit_of(recording) != "count":
        raise EMGError("the samples are no whole counts, and those that the model was trained on are; choose another")
    for channel in constant_channels(recording):
        logger.warning(f"{recording.name}: {channel} never changes, so the electrode was off; trust its decisions less")


def filtered(recording: Recording, model: EMGForSequenceClassification, kind: str) -> tuple[np.ndarray, float]:
    """(M, C) samples and their rate, Hz."""
    made, raw_rate = model.config.preprocessing, recording.sampling_rate
    if kind == "model" and made["FILTER"] == "putemg":
        emg = apply_filter(recording.emg, recording.time, made["FILTER"], made["BAND_HZ"], overwrite=True)
        samples, rate = resample(emg, raw_rate, made["SAMPLE_RATE"])
        check_rate(rate, model)
        return as_stored(samples, model.config.unit), rate
    path, block = CausalPath(model, raw_rate), int(SECONDS_AT_ONCE * raw_rate)
    pieces = [path(recording.emg[first : first + block]) for first in range(0, len(recording.emg), block)]
    return np.concatenate(pieces), path.rate
