"""From samples to decisions, for recordings and for streams alike.

raw samples ─ filter and resample as the model's data were ─ a window every hop ─ reference ─ model ─ smoothing
"""

from collections import deque
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import PartialState

from emg_gpt2.base.errors import EMGError
from emg_gpt2.live.memory import Calibration, Memory
from emg_gpt2.live.references import FixedReference, RunningReference
from emg_gpt2.live.signals import every_window
from emg_gpt2.model.build import load_model
from emg_gpt2.model.model import EMGForSequenceClassification
from emg_gpt2.model.normalise import Reference
from emg_gpt2.settings import Role, Settings

REJECTED = -1  # in place of a class index


def load_for_decisions(source: Path | str) -> EMGForSequenceClassification:
    """Load a saved model to this process's device; raises EMGError, also where it does not say how to make windows."""
    model = load_model(source)
    if missing := sorted(Settings.with_role(Role.WINDOWS) - set(model.config.preprocessing)):
        raise EMGError(f"{source}: the model does not say how its windows were made ({missing[0]}); train it again")
    return model.to(PartialState().device)


@torch.inference_mode()
def probabilities(
    model: EMGForSequenceClassification,
    emg: np.ndarray,
    reference: Reference | None = None,
    precision: str = "fp32",
    memory: Memory | None = None,
) -> np.ndarray:
    """Windows emg (B, T, C) in the unit of the training data → probabilities (B, K) float32.

    reference: one for all windows; None: the model's own; memory: of what came before; None: each by itself
    """
    with torch.autocast(model.device.type, torch.bfloat16, enabled=precision == "bf16"):
        emg = torch.from_numpy(np.array(emg)).to(model.device)  # a copy, because torch warns of read-only views
        logits = memory(emg, reference) if memory else model(emg=emg, reference=reference).logits
        return logits.softmax(1).float().cpu().numpy()


class Probabilities(NamedTuple):
    """Probabilities of n windows: values (n, K); first (n,): the number of each window's first sample."""

    first: np.ndarray
    values: np.ndarray


class Classifier:
    """Samples in pieces → probabilities of a window every `hop` samples, each measured against `measure.reference`.

    hop: at most the length of a window; decided, skipped: number of windows so far.
    """

    def __init__(
        self,
        model: EMGForSequenceClassification,
        hop: int,
        measure: FixedReference | RunningReference,
        calibration: Calibration | None = None,
    ):
        self.model, self.hop, self.measure = model, hop, measure
        self.memory = Memory(model, hop, calibration) if model.config.context else None
        self.samples = np.empty((0, len(model.config.channels)), np.float32)  # from the start of the next window
        self.decided = self.skipped = 0

    def __call__(self, samples: np.ndarray, most: int | None = None) -> Probabilities:
        """Take samples (n, C) float32; returns the probabilities of all windows that are complete now.

        most: classify no more than so many, the latest, and skip the others.
        """
        self.samples = np.concatenate([self.samples, samples])
        if most is not None:
            self._skip(max(0, self._complete - most))
        first = [np.empty(0, int)]
        values = [np.empty((0, len(self.model.config.class_codes)), np.float32)]
        while self._complete:
            windows = every_window(self.samples, self.model.config.window, self.hop)[: self.measure.left]
            values.append(probabilities(self.model, windows, self.measure.reference, memory=self.memory))
            first.append(self.hop * (self.decided + self.skipped + np.arange(len(windows))))
            self.measure.see(windows, values[-1])
            self.decided += len(windows)
            self.samples = self.samples[self.hop * len(windows) :]
        return Probabilities(np.concatenate(first), np.concatenate(values))

    @property
    def _complete(self) -> int:
        """Number of windows that are complete and not classified yet."""
        return max(0, (len(self.samples) - self.model.config.window) // self.hop + 1)

    def _skip(self, windows: int) -> None:
        self.samples, self.skipped = self.samples[self.hop * windows :], self.skipped + windows


class Smoother:
    """Probabilities of windows, in pieces → decisions: smoothed over the last `span` windows, or rejected.

    method: `mean` averages the probabilities; `vote` counts one vote per window (Englehart and Hudgins, IEEE Trans.
    Biomed. Eng. 2003), and the latest of the leading classes wins a tie; `none` is a span of one. A decision with a
    confidence below `threshold` is REJECTED (Scheme, Hudgins and Englehart, ibid. 2013).
    """

    def __init__(self, method: str, span: int, threshold: float):
        self.method, self.threshold = method, threshold
        self.latest = deque(maxlen=1 if method == "none" else span)

    def __call__(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(n, K) → class indices (n,), or REJECTED, and the confidence (n,) in the leading class, 0 … 1."""
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
