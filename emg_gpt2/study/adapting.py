"""Adaptation of a trained model to one session, in closed form, judged on the calibration windows alone."""

import copy
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from torch import nn

from EMG_DATA_LOADER import EVALUATION_BATCH, batches, read_emg
from emg_gpt2.model.model import EMGForSequenceClassification
from emg_gpt2.model.normalise import measure_reference
from emg_gpt2.training.new_model import LINEAR_WEIGHT, linear_discriminant
from emg_gpt2.windows.reading import WindowSet
from EMG_utils import balanced_accuracy, balanced_loss

MIXES = (0, 0.003, 0.01, 0.03, 0.1, 0.3, 0.6, 1)  # LDA of many channels and few windows is up to 100 times too sure
MEASURED = 4000  # windows that a reference is measured on, the calibration windows repeated


@dataclass(frozen=True)
class Adapted:
    """A copy of a model, adapted to a session, and how it does on the calibration windows beside the model as saved.

    factor, weight: of the model's logits and of those of LDA
    loss, loss_before: cross entropy (nat), mean over the calibration repetitions, of the adapted model and of the
        model as saved; the adapted model's is that of windows whose repetition LDA was not fitted to
    """

    model: EMGForSequenceClassification
    factor: float
    weight: float
    loss: float
    loss_before: float

    @property
    def is_better(self) -> bool:
        """Whether its loss is lower."""
        return self.loss < self.loss_before


def adapt(
    model: EMGForSequenceClassification, windows: WindowSet, calibration: np.ndarray, repetitions: np.ndarray
) -> Adapted:
    """Adapt a model to the windows `calibration` of one session; repetitions (n,): the place of each one's repetition.

    logits = factor · (the model's, measured against the session's reference) + weight · (those of LDA on the
    session's log covariances). Both are linear in head and linear path, so only their weights change.
    """
    measured = with_reference_of(model, windows, calibration)
    targets, covariance = windows.targets[calibration], covariances(measured, windows, calibration)
    own, theirs = logits_of(measured, windows, calibration), held_out_logits(covariance, targets, repetitions)
    sure = best_factor(own, targets)
    if theirs is None:  # one repetition: LDA cannot be judged, and gets what the model loses
        factor, weight, judged = sure**2, LINEAR_WEIGHT * (1 - sure), sure * own
    else:
        mix = best_mix(sure * own, LINEAR_WEIGHT * theirs, targets)
        factor, weight = (1 - mix) * sure, mix * LINEAR_WEIGHT
        scale = best_factor(factor * own + weight * theirs, targets)
        factor, weight = scale * factor, scale * weight
        judged = factor * own + weight * theirs
    before = mean_loss(logits_of(model, windows, calibration), targets, repetitions)
    add_to_model(measured, factor, weight, covariance, targets)
    return Adapted(measured, factor, weight, mean_loss(judged, targets, repetitions), before)


def held_out_logits(covariance: torch.Tensor, targets: np.ndarray, repetitions: np.ndarray) -> np.ndarray | None:
    """Logits (n, K) of LDA for each window, fitted without the repetitions of its place; None where all have one.

    Windows of one repetition are so alike that LDA is right on nearly all that it was not fitted to.
    """
    places = np.unique(repetitions)
    if len(places) < 2:
        return None
    logits = np.zeros((len(targets), targets.max() + 1))
    for place in places:
        learnt, held = repetitions != place, repetitions == place
        logits[held] = lda_logits(covariance[torch.from_numpy(learnt)], targets[learnt], covariance[held])
    return logits


def lda_logits(learnt: torch.Tensor, targets: np.ndarray, covariance: torch.Tensor) -> np.ndarray:
    """Logits (m, K) for log covariances (m, F) of LDA that is fitted to `learnt` (n, F) of the classes `targets`."""
    coefficients, intercepts = linear_discriminant(learnt, targets, targets.max() + 1)
    return (covariance.double() @ coefficients.T + intercepts).numpy()


def best_factor(logits: np.ndarray, targets: np.ndarray) -> float:
    """Return the factor from 0 to 1 on logits (n, K) with the lowest cross entropy on targets (n,), mean over classes.

    Temperature scaling (Guo et al., ICML 2017), limited to making a model less sure.
    """
    loss = lambda factor: balanced_loss(targets, softmax(factor * logits, axis=1))  # noqa: E731
    return float(minimize_scalar(loss, bounds=(0, 1), method="bounded").x)


def best_mix(own: np.ndarray, theirs: np.ndarray, targets: np.ndarray) -> float:
    """Return which of MIXES, the share of `theirs` beside `own` (logits (n, K)), has the best balanced accuracy.

    The middle one of those that are equally good. Cross entropy would choose too little of `theirs`: LDA of few
    windows is far too sure where it is wrong.
    """
    mixed = [((1 - mix) * own + mix * theirs).argmax(1) for mix in MIXES]
    reached = np.array([balanced_accuracy(targets, classes) for classes in mixed])
    best = np.flatnonzero(np.isclose(reached, reached.max()))
    return MIXES[best[len(best) // 2]]


def mean_loss(logits: np.ndarray, targets: np.ndarray, repetitions: np.ndarray) -> float:
    """Cross entropy (nat) of logits (n, K), mean over the repetitions of all classes."""
    each = -log_softmax(logits, axis=1)[np.arange(len(targets)), targets]
    keys = targets * (repetitions.max() + 1) + repetitions
    return float(np.mean([each[keys == key].mean() for key in np.unique(keys)]))


def add_to_model(
    model: EMGForSequenceClassification, factor: float, weight: float, covariance: torch.Tensor, targets: np.ndarray
) -> None:
    """Multiply the model's logits by `factor`, and add those of LDA, fitted to covariance (n, F), times `weight`."""
    add_linear_path(model)
    coefficients, intercepts = linear_discriminant(covariance, targets, len(model.config.class_codes))
    model.residual_weight.data *= factor
    model.linear.weight.data.mul_(factor).add_(weight * coefficients)
    model.linear.bias.data.mul_(factor).add_(weight * intercepts)


def add_linear_path(model: EMGForSequenceClassification) -> None:
    """Add a linear path of zeros where the model was trained without one."""
    if model.linear is None:
        model.config.linear_path = True
        model.linear = nn.Linear(model.centre.shape[1], len(model.config.class_codes)).requires_grad_(False)
        nn.init.zeros_(model.linear.weight)
        nn.init.zeros_(model.linear.bias)


def with_reference_of(
    model: EMGForSequenceClassification, windows: WindowSet, calibration: np.ndarray
) -> EMGForSequenceClassification:
    """Return a copy of the model whose own reference is that of the calibration windows of a session.

    The mean of a session depends on how much of it is rest, and a calibration has little. So the classes count with
    the shares that they had in the training part (all the same in a model of 0.2 or before, which does not know).
    """
    targets, counts = windows.targets[calibration], (MEASURED * model.class_share).round().int().clamp(min=1).tolist()
    rows = np.concatenate([np.resize(calibration[targets == index], count) for index, count in enumerate(counts)])
    measured = copy.deepcopy(model)
    measured.set_reference(measure_reference(read_emg(windows, rows)))
    return measured


@torch.inference_mode()
def logits_of(model: EMGForSequenceClassification, windows: WindowSet, rows: np.ndarray) -> np.ndarray:
    """Return logits (n, K) of the windows `rows`, measured against the model's own reference."""
    return np.concatenate([model(emg=emg).logits.numpy() for emg, _, _ in batches(windows, rows, EVALUATION_BATCH)])


def covariances(model: EMGForSequenceClassification, windows: WindowSet, rows: np.ndarray) -> torch.Tensor:
    """Return log covariances (n, C(C+1)/2) of the windows `rows`, measured against the model's own reference."""
    parts = batches(windows, rows, EVALUATION_BATCH)
    return torch.cat([model.normalise(emg, model.reference)[1] for emg, _, _ in parts])
