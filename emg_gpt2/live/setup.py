"""How decisions are made: a trained model with the flags of live/options.py."""

import argparse
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from emg_gpt2.base.errors import EMGError
from emg_gpt2.live.calibrating import read_calibration
from emg_gpt2.live.decisions import Smoother, load_for_decisions, probabilities
from emg_gpt2.live.options import HOP_MS
from emg_gpt2.live.references import (
    MEASURED_WINDOWS,
    FixedReference,
    OwnReference,
    RunningReference,
    is_doubtful,
    session_reference,
    warn_of_doubts,
)
from emg_gpt2.live.signals import Signal, every_window, read_signal
from emg_gpt2.model.model import EMGForSequenceClassification
from emg_gpt2.model.normalise import Reference, measure_reference
from emg_gpt2.raw.putemg import find_recordings

MEASURED_AT_MOST = 4000  # windows of a session that is known beforehand
PASSES = 3  # of probabilities and reference in turn; more change nothing


class Setup:
    """A trained model, and how its decisions are made; raises EMGError where the flags do not fit the model.

    hop_ms, hop: step from one window to the next, in ms and in samples; reference: as --reference has it, else the
    model's own, or that of the session so far where SCALE was "session"; measured: names of the recordings of
    --reference; fixed: the reference where all recordings share one, else None; calibration: that of --calibrate.
    """

    def __init__(self, args: argparse.Namespace):
        self.args, self.model = args, load_for_decisions(args.model)
        rate, window = self.model.config.sampling_rate, self.model.config.window
        self.hop_ms = min(HOP_MS, 1000 * window / rate) if args.hop_ms is None else args.hop_ms
        self.hop = round(self.hop_ms * rate / 1000)
        if not 1 <= self.hop <= window:
            limits = f"from {1000 / rate:.2g} to {1000 * window / rate:.0f}, the length of a window"
            raise EMGError(f"--hop-ms {self.hop_ms:g}: should be {limits}")
        self.reference = args.reference or ("running" if self.model.config.scale == "session" else "model")
        self.measured: frozenset[str] = frozenset()
        self.fixed, self.calibration = self._fixed_reference(), read_calibration(args, self.model)

    def _fixed_reference(self) -> FixedReference | None:
        if self.reference in ("session", "running", "model"):
            return None
        paths = find_recordings([Path(self.reference)])
        signals = [read_signal(path, self.model, self.args.filter) for path in paths]
        self.measured = frozenset(signal.name for signal in signals)
        return FixedReference(reference_of_signals(self.reference, signals, self.model))

    def new_measure(self) -> FixedReference | RunningReference:
        """What the windows of a session are measured against, but for that of the session as a whole."""
        kind = OwnReference if self.reference == "model" else RunningReference
        return self.fixed or kind(self.model, self.hop)

    def is_transductive(self, names: Iterable[str]) -> bool:
        """Whether windows of the recordings `names` are measured against signal that comes after them."""
        return self.reference == "session" or not self.measured.isdisjoint(names)

    def new_smoother(self) -> Smoother:
        """A smoother for the start of a signal."""
        span = max(1, round(self.args.span_ms / self.hop_ms))
        return Smoother(self.args.smooth, span, self.args.reject_below)

    def __str__(self) -> str:
        args, made = self.args, self.model.config.preprocessing
        kind = made["FILTER"] if args.filter == "model" else "causal"
        smoothed = "not smoothed" if args.smooth == "none" else f"smoothed ({args.smooth} of {args.span_ms:g} ms)"
        rejected = f", rejected below {args.reject_below:g}" if args.reject_below else ""
        reference = f"reference {self.reference}"
        if most := self.model.config.context:
            told = f"{len(self.calibration.gestures)} of them" if self.calibration else "none"
            reference += f", from at most {most} windows before it, {told} with a gesture"
        return f"filter {kind}, {reference}, a window every {self.hop_ms:g} ms, {smoothed}{rejected}"


def reference_of_signals(name: str, signals: list[Signal], model: EMGForSequenceClassification) -> Reference:
    """The reference of a whole session called `name`, without labels; warns where it is doubtful.

    It is measured on windows as far apart as in training, or further. A short or one-sided session is measured on the
    windows and their probabilities, in turn.
    """
    stride = round(model.config.preprocessing["STRIDE_MS"] * model.config.sampling_rate / 1000)
    few = windows_all_over(signals, model.config.window, model.config.window, MEASURED_WINDOWS)
    reference = model.reference
    for _ in range(PASSES):
        values = probabilities(model, few, reference)
        reference = session_reference(model, few, values)
    warn_of_doubts(name, model, few, values)
    if is_doubtful(model, values):
        return reference
    windows = windows_all_over(signals, model.config.window, stride, MEASURED_AT_MOST)
    return measure_reference(torch.from_numpy(windows).to(model.device))


def windows_all_over(signals: list[Signal], length: int, step: int, at_most: int) -> np.ndarray:
    """(n, T, C): windows every `step` samples, or further apart where they would be more than `at_most`."""
    step = max(step, sum(len(signal.samples) for signal in signals) // at_most)
    return np.concatenate([every_window(signal.samples, length, step) for signal in signals])
