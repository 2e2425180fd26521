"""Adaptation of a trained model to one session, in closed form."""

import copy

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.special import softmax
from torch import nn

from EMG_DATA_LOADER import EVALUATION_BATCH, batches, read_emg
from emg_gpt2.model.model import EMGForSequenceClassification
from emg_gpt2.model.normalise import measure_reference
from emg_gpt2.training.new_model import LINEAR_WEIGHT, linear_discriminant
from emg_gpt2.windows.reading import WindowSet
from EMG_utils import balanced_loss


def adapt(
    model: EMGForSequenceClassification, windows: WindowSet, calibration: np.ndarray
) -> tuple[EMGForSequenceClassification, float]:
    """Return a copy of the model, adapted to the windows `calibration` of one session, and the factor on its logits.

    logits = factor · (the model's, measured against the session's reference) + LINEAR_WEIGHT · (those of LDA on the
    session's log covariances). Both are linear in head and linear path, so only their weights change.
    """
    adapted = with_reference_of(model, windows, calibration)
    add_linear_path(adapted)
    targets, covariance = windows.targets[calibration], covariances(adapted, windows, calibration)
    factor = best_factor(logits_of(adapted, windows, calibration), targets)
    coefficients, intercepts = linear_discriminant(covariance, targets, len(windows.classes))
    adapted.residual_weight.data *= factor
    adapted.linear.weight.data.mul_(factor).add_(LINEAR_WEIGHT * coefficients)
    adapted.linear.bias.data.mul_(factor).add_(LINEAR_WEIGHT * intercepts)
    return adapted, factor


def add_linear_path(model: EMGForSequenceClassification) -> None:
    """Add a linear path of zeros where the model was trained without one."""
    if model.linear is None:
        model.config.linear_path = True
        model.linear = nn.Linear(model.centre.shape[1], len(model.config.class_codes)).requires_grad_(False)
        nn.init.zeros_(model.linear.weight)
        nn.init.zeros_(model.linear.bias)


def with_reference_of(
    model: EMGForSequenceClassification, windows: WindowSet, rows: np.ndarray
) -> EMGForSequenceClassification:
    """Return a copy of the model whose own reference is that of the windows `rows`; labels are not used."""
    measured = copy.deepcopy(model)
    measured.set_reference(measure_reference(read_emg(windows, rows)))
    return measured


def best_factor(logits: np.ndarray, targets: np.ndarray) -> float:
    """Return the factor from 0 to 1 on logits (n, K) with the lowest cross entropy on targets (n,), mean over classes.

    Temperature scaling (Guo et al., ICML 2017), limited to making a model less sure.
    """
    loss = lambda factor: balanced_loss(targets, softmax(factor * logits, axis=1))  # noqa: E731
    return float(minimize_scalar(loss, bounds=(0, 1), method="bounded").x)


@torch.inference_mode()
def logits_of(model: EMGForSequenceClassification, windows: WindowSet, rows: np.ndarray) -> np.ndarray:
    """Return logits (n, K) of the windows `rows`, measured against the model's own reference."""
    return np.concatenate([model(emg=emg).logits.numpy() for emg, _, _ in batches(windows, rows, EVALUATION_BATCH)])


def covariances(model: EMGForSequenceClassification, windows: WindowSet, rows: np.ndarray) -> torch.Tensor:
    """Return log covariances (n, C(C+1)/2) of the windows `rows`, measured against the model's own reference."""
    parts = batches(windows, rows, EVALUATION_BATCH)
    return torch.cat([model.normalise(emg, model.reference)[1] for emg, _, _ in parts])
