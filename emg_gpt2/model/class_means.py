"""What each class looks like beside its session, so that a reference can be measured whatever gestures were made.

The plain mean of a recording that holds one gesture is that gesture, and measured against it every window looks like
the middle of all classes. Here each window is first compared with the mean of the classes that it may be of.
"""

from typing import NamedTuple

import torch
from torch.nn import functional

from emg_gpt2.model.normalise import POWER_FLOOR, SPREAD_FLOOR, Reference, log_covariance


class ClassMeans(NamedTuple):
    """Of K classes, measured against the references of their sessions.

    share (K,): of the windows
    level (K, C): mean logarithm of a window's RMS, in each channel
    centre, square (K, C(C+1)/2): mean of the normalised log covariance, and of its square
    """

    share: torch.Tensor
    level: torch.Tensor
    centre: torch.Tensor
    square: torch.Tensor


@torch.no_grad()
def measure_classes(levels: torch.Tensor, covariance: torch.Tensor, targets: torch.Tensor, classes: int) -> ClassMeans:
    """Means of K `classes` from `log_rms` (n, C), normalised log covariance (n, C(C+1)/2) and class indices (n,)."""
    of_class = functional.one_hot(targets.long(), classes).to(levels.dtype)  # (n, K)
    weights = of_class / of_class.sum(0).clamp(min=1)
    means = (weights.T @ each for each in (levels, covariance, covariance.square()))
    return ClassMeans(of_class.mean(0), *means)


def log_rms(signal: torch.Tensor) -> torch.Tensor:
    """Signal (n, T, C) of about unit power → logarithm of its RMS (n, C)."""
    return signal.square().mean(1).clamp(min=POWER_FLOOR).log() / 2


@torch.no_grad()
def reference_of_mixture(
    emg: torch.Tensor, probabilities: torch.Tensor, classes: ClassMeans, spread: torch.Tensor
) -> Reference:
    """The reference of one session, one row, from any windows emg (n, T, C) of it, and their probabilities (n, K).

    Scale and centre are those at which the windows lie, on average, where their classes lie in training; spread (1, P)
    is the model's own, with which the classes' distances are scaled.
    """
    signal = emg - emg.mean(1, keepdim=True)
    scale = signal.square().mean((0, 1)).sqrt()  # (C,)
    scale = torch.where(scale > 0, scale, 1.0)
    scale = scale * (log_rms(signal / scale) - probabilities @ classes.level).mean(0).exp()
    covariance = log_covariance(signal / scale)  # (n, P)
    centre = (covariance - spread * (probabilities @ classes.centre)).mean(0)
    squares = (covariance - centre).square().sum(0) / (probabilities @ classes.square).sum(0).clamp(min=1e-3)
    return Reference(scale[None], centre[None], squares.sqrt().clamp(min=SPREAD_FLOOR)[None])
