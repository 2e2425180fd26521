"""What windows are measured against: a reference that stays, or that of the session so far."""

import math

import numpy as np
import torch

from emg_gpt2.live.signals import Signal, every_window
from emg_gpt2.model.model import EMGForSequenceClassification
from emg_gpt2.model.normalise import Reference, measure_reference

MEASURED_AT_MOST = 4000  # windows of a session that is known beforehand
MEASURED_WINDOWS = 240  # at most, of the session so far: a minute of windows of 250 ms
PRIOR_WINDOWS = 30  # that many windows of the session weigh as much as the training part's reference


class FixedReference:
    """One reference for all windows: the model's own, or that of a session that is known beforehand."""

    left = 256  # windows that may be classified at once

    def __init__(self, reference: Reference):
        self.reference = reference

    def see(self, windows: np.ndarray) -> None:
        """Does nothing: windows (n, T, C) do not change the reference."""


class RunningReference:
    """The reference of the session so far, without labels; it is measured again after every `every` windows.

    It is measured on at most MEASURED_WINDOWS windows that do not overlap and spread evenly over the session: when
    there are more, every second one is dropped. The model's own reference counts as PRIOR_WINDOWS windows more.
    hop: samples from one window to the next.
    """

    every = 20  # a second, at a hop of 50 ms

    def __init__(self, model: EMGForSequenceClassification, hop: int):
        self.prior = self.latest = model.reference
        self.spacing, self.kept = math.ceil(model.config.window / hop), []
        self.seen = self.measured = 0  # windows so far, and at the last measurement

    @property
    def left(self) -> int:
        """Number of windows until the reference changes."""
        return self.every - self.seen % self.every

    def see(self, windows: np.ndarray) -> None:
        """Take the next windows (n, T, C), after the decisions on them."""
        for window in windows:
            if self.seen % self.spacing == 0:
                self.kept.append(window.copy())
            if len(self.kept) > MEASURED_WINDOWS:
                self.kept, self.spacing = self.kept[::2], 2 * self.spacing
            self.seen += 1

    @property
    def reference(self) -> Reference:
        """The present reference, one row; measured when it is first asked for after `every` windows."""
        if self.seen - self.measured >= self.every:
            kept = torch.from_numpy(np.stack(self.kept)).to(self.prior.scale.device)
            share = len(self.kept) / (len(self.kept) + PRIOR_WINDOWS)
            self.latest, self.measured = mixed(self.prior, measure_reference(kept), share), self.seen
        return self.latest


def mixed(one: Reference, other: Reference, share: float) -> Reference:
    """Return the weighted mean of two references: of centres, and of the squares of scales and spreads.

    share: the weight of `other`, 0 … 1.
    """
    centre = torch.lerp(one.centre, other.centre, share)
    scale, spread = (
        a.square().lerp(b.square(), share).sqrt() for a, b in ((one.scale, other.scale), (one.spread, other.spread))
    )
    return Reference(scale, centre, spread)


def reference_of_signals(signals: list[Signal], model: EMGForSequenceClassification) -> Reference:
    """The reference of a whole session, without labels, from windows as far apart as in training, or further."""
    stride = round(model.config.preprocessing["STRIDE_MS"] * model.config.sampling_rate / 1000)
    step = max(stride, sum(len(signal.samples) for signal in signals) // MEASURED_AT_MOST)
    windows = np.concatenate([every_window(signal.samples, model.config.window, step) for signal in signals])
    return measure_reference(torch.from_numpy(windows).to(model.device))
