"""A model in use: samples in, decisions out; the same for recordings and for streams.

raw samples ─ filter and resample as the model's data were ─ a window every hop ─ reference ─ model ─ smoothing
"""

import math
from collections import deque
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from numpy.lib.stride_tricks import sliding_window_view

from emg_gpt2.base.errors import EMGError
from emg_gpt2.model.build import load_model
from emg_gpt2.model.model import EMGForSequenceClassification
from emg_gpt2.model.normalise import Reference, measure_reference
from emg_gpt2.raw.filter import CausalFilter
from emg_gpt2.raw.resample import Resampler
from emg_gpt2.settings import Role, Settings
from emg_gpt2.windows.cut import COUNT_STEP, RATE_TOLERANCE

REJECTED = -1  # in place of a class index
MEASURED_WINDOWS = 240  # of a session, at the most, make a running reference: a minute of windows of 250 ms
PRIOR_WINDOWS = 30  # as many windows of the session as count as much as the training part's reference


def load_for_decisions(source: Path | str) -> EMGForSequenceClassification:
    """A saved model on this process's device, which says how its windows were made; raises EMGError."""
    model = load_model(source)
    if missing := sorted(Settings.with_role(Role.WINDOWS) - set(model.config.preprocessing)):
        raise EMGError(f"{source}: the model does not say how its windows were made ({missing[0]}); train it anew")
    return model.to(PartialState().device)


class CausalPath:
    """Raw samples → the samples that windows are cut from, in pieces, by the model's band, rate and scale.

    raw_rate: Hz; rate: of what comes out. A model of FILTER = "none" gets no filter, any other the causal one. Raises
    EMGError where the raw rate does not lead to the model's.
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
    """Counts as a windows file holds them, in steps of COUNT_STEP, so that prediction sees what training saw."""
    return np.rint(samples / COUNT_STEP) * np.float32(COUNT_STEP) if unit == "count" else samples


def every_window(samples: np.ndarray, length: int, step: int) -> np.ndarray:
    """(n, C) → (windows, length, C), a view: from the first sample on, one every `step` samples."""
    if len(samples) < length:
        return np.empty((0, length, samples.shape[1]), np.float32)
    return sliding_window_view(samples, length, axis=0)[::step].swapaxes(1, 2)


# ---- what windows are measured against ------------------------------------------------------------------------


class FixedReference:
    """The same one always: of the training part, or of a session that is known beforehand."""

    left = 256  # windows that may be classified at once

    def __init__(self, reference: Reference):
        self.reference = reference

    def see(self, windows: np.ndarray) -> None:
        """Learns nothing from (n, T, C)."""


class RunningReference:
    """That of the session so far, without labels: measured anew after every `every` windows.

    What is measured does not overlap and is evenly spread over the session, MEASURED_WINDOWS at the most: when there
    are more, every second one goes. The training part's reference counts as PRIOR_WINDOWS besides. hop: samples from
    one window to the next.
    """

    every = 20  # a second, at a hop of 50 ms

    def __init__(self, model: EMGForSequenceClassification, hop: int):
        self.prior = self.latest = model.reference
        self.spacing, self.kept = math.ceil(model.config.window / hop), []
        self.seen = self.measured = 0  # windows; how many had been seen when it was measured

    @property
    def left(self) -> int:
        """Windows until it changes."""
        return self.every - self.seen % self.every

    def see(self, windows: np.ndarray) -> None:
        """The next windows (n, T, C), after the decisions on them."""
        for window in windows:
            if self.seen % self.spacing == 0:
                self.kept.append(window.copy())
            if len(self.kept) > MEASURED_WINDOWS:
                self.kept, self.spacing = self.kept[::2], 2 * self.spacing
            self.seen += 1

    @property
    def reference(self) -> Reference:
        """One row; measured when it is first asked for after `every` windows."""
        if self.seen - self.measured >= self.every:
            kept = torch.from_numpy(np.stack(self.kept)).to(self.prior.scale.device)
            share = len(self.kept) / (len(self.kept) + PRIOR_WINDOWS)
            self.latest, self.measured = mixed(self.prior, measure_reference(kept), share), self.seen
        return self.latest


def mixed(one: Reference, other: Reference, share: float) -> Reference:
    """The weighted mean of two references' centres and of the squares of their scales and spreads; share: the other's,
    0 … 1."""
    centre = torch.lerp(one.centre, other.centre, share)
    scale, spread = (
        a.square().lerp(b.square(), share).sqrt() for a, b in ((one.scale, other.scale), (one.spread, other.spread))
    )
    return Reference(scale, centre, spread)


# ---- probabilities, decisions ---------------------------------------------------------------------------------


@torch.inference_mode()
def probabilities(
    model: EMGForSequenceClassification, emg: np.ndarray, reference: Reference | None = None, precision: str = "fp32"
) -> np.ndarray:
    """Windows emg (B, T, C) in the unit of the training data, measured against one reference → (B, K) float32."""
    with torch.autocast(model.device.type, torch.bfloat16, enabled=precision == "bf16"):
        emg = torch.from_numpy(np.array(emg)).to(model.device)  # a copy: views cannot be written to, which torch minds
        return model(emg=emg, reference=reference).logits.softmax(1).float().cpu().numpy()


class Probabilities(NamedTuple):
    """Of n windows: first (n,), place of the first sample of each; values (n, K)."""

    first: np.ndarray
    values: np.ndarray


class Classifier:
    """Samples in pieces → probabilities of a window every `hop` samples, each measured against `measure.reference`.

    hop: at most a window's length; decided, skipped: windows so far.
    """

    def __init__(self, model: EMGForSequenceClassification, hop: int, measure: FixedReference | RunningReference):
        self.model, self.hop, self.measure = model, hop, measure
        self.samples = np.empty((0, len(model.config.channels)), np.float32)  # from the next window's first one on
        self.decided = self.skipped = 0

    def __call__(self, samples: np.ndarray, most: int | None = None) -> Probabilities:
        """(n, C) float32 → those of all windows that are complete by now, or of the `most` latest, skipping others."""
        self.samples = np.concatenate([self.samples, samples])
        if most is not None:
            self._skip(max(0, self._complete - most))
        first = [np.empty(0, int)]
        values = [np.empty((0, len(self.model.config.class_codes)), np.float32)]
        while self._complete:
            windows = every_window(self.samples, self.model.config.window, self.hop)[: self.measure.left]
            values.append(probabilities(self.model, windows, self.measure.reference))
            first.append(self.hop * (self.decided + self.skipped + np.arange(len(windows))))
            self.measure.see(windows)
            self.decided += len(windows)
            self.samples = self.samples[self.hop * len(windows) :]
        return Probabilities(np.concatenate(first), np.concatenate(values))

    @property
    def _complete(self) -> int:
        """Windows."""
        return max(0, (len(self.samples) - self.model.config.window) // self.hop + 1)

    def _skip(self, windows: int) -> None:
        self.samples, self.skipped = self.samples[self.hop * windows :], self.skipped + windows


class Smoother:
    """Probabilities of windows, in pieces → decisions: smoothed over the last `span` windows, or rejected.

    method: `mean` of the probabilities, or `vote`, each window's class one vote (Englehart and Hudgins, IEEE Trans.
    Biomed. Eng. 2003), where the latest of the leading classes wins; `none` is a span of one. A decision of which the
    smoothed share is below `threshold` is REJECTED (Scheme, Hudgins and Englehart, ibid. 2013).
    """

    def __init__(self, method: str, span: int, threshold: float):
        self.method, self.threshold = method, threshold
        self.latest = deque(maxlen=1 if method == "none" else span)

    def __call__(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(n, K) → class indices (n,), REJECTED among them, and the confidence (n,) in the leading class, 0 … 1."""
        leading, confidence = np.empty(len(values), int), np.empty(len(values))
        for number, row in enumerate(values):
            self.latest.append(row)
            leading[number], confidence[number] = self._vote() if self.method == "vote" else self._mean()
        return np.where(confidence < self.threshold, REJECTED, leading), confidence

    def _mean(self) -> tuple[int, float]:
        mean = np.mean(self.latest, axis=0)
        return mean.argmax(), mean.max()

    def _vote(self) -> tuple[int, float]:
        votes = [row.argmax() for row in reversed(self.latest)]  # the latest first
        leading = max(votes, key=votes.count)
        return leading, votes.count(leading) / len(votes)
