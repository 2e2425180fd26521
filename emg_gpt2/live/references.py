"""What windows are measured against: the model's own reference, another that stays, or that of the session so far."""

import logging
import math

import numpy as np
import torch

from emg_gpt2.model.class_means import reference_of_mixture
from emg_gpt2.model.model import EMGForSequenceClassification
from emg_gpt2.model.normalise import Reference, measure_reference

logger = logging.getLogger(__name__)

MEASURED_WINDOWS = 240  # of a session at most: a minute of windows of 250 ms
PRIOR_WINDOWS = 30  # that many windows of the session weigh as much as the training part's reference
SHORT_S = 15.0  # 10 s of real recordings held two or three gestures (EXPERIMENTS.md)
ONE_SIDED = 0.5  # of the training part's number of gestures; whole real sessions reach 0.5 to 1, with 90 % rest 0.3
SEEN = 0.05  # share of a session's windows from which on it is said to look like a gesture
FAR = 1.65  # standard deviations; real sessions of other days and people reach 1.4, one gesture of them 1.5


class FixedReference:
    """One reference for all windows: the model's own, or that of a session that is known beforehand."""

    left = 256  # windows that may be classified at once

    def __init__(self, reference: Reference):
        self.reference = reference

    def see(self, windows: np.ndarray, values: np.ndarray) -> None:
        """Does nothing: windows (n, T, C) do not change the reference."""


class RunningReference:
    """The reference of the session so far, without labels; it is measured again after every `every` windows.

    It is measured on at most MEASURED_WINDOWS windows that do not overlap and spread evenly over the session: when
    there are more, every second one is dropped.

    hop: samples from one window to the next; kept: windows (T, C) and the probabilities (K,) that they were given.
    """

    every = 20  # a second, at a hop of 50 ms

    def __init__(self, model: EMGForSequenceClassification, hop: int):
        self.model, self.latest = model, model.reference
        self.spacing, self.kept = math.ceil(model.config.window / hop), []
        self.seen = self.measured = 0  # windows so far, and at the last measurement

    @property
    def left(self) -> int:
        """Number of windows until the reference changes."""
        return self.every - self.seen % self.every

    def see(self, windows: np.ndarray, values: np.ndarray) -> None:
        """Take the next windows (n, T, C) and their probabilities (n, K), after the decisions on them."""
        for window, value in zip(windows, values, strict=True):
            if self.seen % self.spacing == 0:
                self.kept.append((window.copy(), value))
            if len(self.kept) > MEASURED_WINDOWS:
                self.kept, self.spacing = self.kept[::2], 2 * self.spacing
            self.seen += 1

    @property
    def reference(self) -> Reference:
        """The present reference, one row; measured when it is first asked for after `every` windows."""
        if self.seen - self.measured >= self.every:
            windows, values = map(np.stack, zip(*self.kept, strict=True))
            self.latest, self.measured = session_reference(self.model, windows, values), self.seen
        return self.latest

    def warn_of_doubts(self, name: str) -> None:
        """Log why the session so far, called `name`, is a doubtful reference."""
        if self.kept:
            warn_of_doubts(name, self.model, *map(np.stack, zip(*self.kept, strict=True)))


class OwnReference(RunningReference):
    """The model's own reference; windows are kept as those of a running one, to see whether they are far from it."""

    left = 256

    @property
    def reference(self) -> Reference:
        return self.model.reference

    def warn_of_doubts(self, name: str) -> None:
        """Log where the signal, called `name`, is far from the training part."""
        if self.kept:
            warn_if_far(name, self.model, np.stack([window for window, _ in self.kept]))


def session_reference(model: EMGForSequenceClassification, windows: np.ndarray, values: np.ndarray) -> Reference:
    """The reference of a session, one row, from windows (n, T, C) and their probabilities (n, K).

    The model's own reference counts as PRIOR_WINDOWS windows more. Where the session is short or one-sided its plain
    mean would be that of a few gestures: then each window is first compared with the gestures that it looks like.
    """
    emg, probabilities = (torch.from_numpy(array).to(model.device) for array in (windows, values))
    if is_doubtful(model, values):
        measured = reference_of_mixture(emg, probabilities, model.class_means, model.reference.spread)
    else:
        measured = measure_reference(emg)
    return mixed(model.reference, measured, len(emg) / (len(emg) + PRIOR_WINDOWS))


def mixed(one: Reference, other: Reference, share: float) -> Reference:
    """Return the weighted mean of two references: of centres, and of the squares of scales and spreads.

    share: the weight of `other`, 0 … 1.
    """
    centre = torch.lerp(one.centre, other.centre, share)
    scale, spread = (
        a.square().lerp(b.square(), share).sqrt() for a, b in ((one.scale, other.scale), (one.spread, other.spread))
    )
    return Reference(scale, centre, spread)


# ---- what makes a session a doubtful reference ------------------------------------------------------------------


def is_doubtful(model: EMGForSequenceClassification, values: np.ndarray) -> bool:
    """Whether a session of windows with the probabilities (n, K) is short or one-sided."""
    return is_short(model, len(values)) or is_one_sided(model, values)


def is_short(model: EMGForSequenceClassification, windows: int) -> bool:
    """Whether so many windows that do not overlap are less than SHORT_S of signal."""
    return windows * model.config.window < SHORT_S * model.config.sampling_rate


def is_one_sided(model: EMGForSequenceClassification, values: np.ndarray) -> bool:
    """Whether windows of the probabilities (n, K) look like far fewer gestures than the training part had."""
    return effective_number(values.mean(0)) < ONE_SIDED * effective_number(model.class_means.share.cpu().numpy())


def effective_number(shares: np.ndarray) -> float:
    """The exponential of the entropy of shares (K,): how many classes of equal size would be as varied (Hill, 1973)."""
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def distance_from_training(model: EMGForSequenceClassification, windows: np.ndarray) -> float:
    """RMS distance of the log covariances of windows (n, T, C) from the training part's, in its standard deviations."""
    _, covariance = model.normalise(torch.from_numpy(windows).to(model.device), model.reference)
    return float(covariance.square().mean().sqrt())


def warn_of_doubts(name: str, model: EMGForSequenceClassification, windows: np.ndarray, values: np.ndarray) -> None:
    """Log why the session `name` is a doubtful reference, and what is done about it."""
    doubts, seconds = [], len(windows) * model.config.window / model.config.sampling_rate
    if is_short(model, len(windows)):
        doubts.append(f"short ({seconds:.1f} s)")
    if is_one_sided(model, values):
        looks = [name for name, share in zip(model.config.class_names, values.mean(0), strict=True) if share > SEEN]
        doubts.append(f"one-sided (it looks like {', '.join(looks)} alone)")
    if doubts:
        own = PRIOR_WINDOWS / (len(windows) + PRIOR_WINDOWS)
        logger.warning(
            f"{name}: as a reference this signal is {' and '.join(doubts)}; so each window is compared with the "
            f"gestures that it looks like, and the training part counts {own:.0%}; a recording of the day with every "
            "gesture is better (--reference FILE)"
        )
    warn_if_far(name, model, windows)


def warn_if_far(name: str, model: EMGForSequenceClassification, windows: np.ndarray) -> None:
    """Log where the windows (n, T, C) of `name` are far from the training part."""
    if (far := distance_from_training(model, windows)) > FAR:
        logger.warning(
            f"{name}: the signal is far from the training part ({far:.2f} standard deviations on average; other "
            f"people and days reach 1.5, and more than {FAR:g} is far); check unit, electrodes and filter before "
            "trusting the decisions"
        )
