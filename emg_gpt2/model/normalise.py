"""References, which windows are measured against, and log covariances.

A reference holds the mean and the spread of a session (one person's day). Windows that are measured against their own
session's reference look alike across people and days. No labels are used.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch

POWER_FLOOR = 1e-4  # of a channel's variance: −40 dB, below the noise of any electrode
SHRINKAGE = 2e-3  # of a covariance towards its mean variance: a window's smallest eigenvalues are noise
SPREAD_FLOOR = 0.05  # of a log covariance: that of a silent electrode does not vary
MEASURED_AT_ONCE = 1024  # windows


class Reference(NamedTuple):
    """References of S sessions, each measured on unlabelled windows of its session.

    scale (S, C): standard deviation of each channel, in its unit
    centre, spread (S, C(C+1)/2): mean and standard deviation of the log covariances of the scaled windows
    """

    scale: torch.Tensor
    centre: torch.Tensor
    spread: torch.Tensor

    def of(self, sessions: torch.Tensor) -> "Reference":
        """One row per window, from the index (B,) of its session."""
        return Reference(*(tensor[sessions] for tensor in self))

    def to(self, device: torch.device) -> "Reference":
        return Reference(*(tensor.to(device) for tensor in self))


class References(NamedTuple):
    """The references of a whole file: one row of `reference` per group, and the group (n,) of each window."""

    reference: Reference
    groups: torch.Tensor

    def of(self, rows: torch.Tensor) -> Reference:
        """One row per window, from the rows (B,) of the windows."""
        return self.reference.of(self.groups[rows])

    def to(self, device: torch.device) -> "References":
        return References(self.reference.to(device), self.groups.to(device))


@torch.no_grad()
def measure_reference(emg: torch.Tensor) -> Reference:
    """The reference of one session from its windows (n, T, C), without labels; a silent channel keeps its scale."""
    signal = emg - emg.mean(1, keepdim=True)
    scale = signal.square().mean((0, 1)).sqrt()  # (C,)
    scale = torch.where(scale > 0, scale, 1.0)
    covariance = torch.cat([log_covariance(part / scale) for part in signal.split(MEASURED_AT_ONCE)])  # (n, C(C+1)/2)
    spread = covariance.std(0, correction=0).clamp(min=SPREAD_FLOOR)
    return Reference(scale[None], covariance.mean(0)[None], spread[None])


@torch.no_grad()
def normalise(
    emg: torch.Tensor, reference: Reference, logarithm: Callable | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """emg (B, T, C) → signal (B, T, C) and log covariance (B, C(C+1)/2), both measured against the reference.

    reference: one row per window, or one for all; logarithm: of `log_covariance`.
    """
    signal = (emg - emg.mean(1, keepdim=True)) / reference.scale[:, None]
    return signal, (log_covariance(signal, logarithm) - reference.centre) / reference.spread


def log_covariance(signal: torch.Tensor, logarithm: Callable | None = None) -> torch.Tensor:
    """signal (B, T, C) → (B, C(C+1)/2): the upper triangle of the matrix logarithm of each window's covariance.

    It holds the power of every channel and the synchrony of every pair, on a scale on which differences between
    efforts are distances (log-Euclidean metric: Arsigny et al., Magn. Reson. Med. 2006; for EEG: Barachant et al.,
    IEEE TBME 2012). logarithm: takes the place of `matrix_logarithm`, for an export without eigenvectors.
    """
    return upper_triangle((logarithm or matrix_logarithm)(shrunk_covariance(signal))).to(signal.dtype)


def shrunk_covariance(signal: torch.Tensor) -> torch.Tensor:
    """signal (B, T, C) → (B, C, C), whose eigenvalues are at least SHRINKAGE · (mean variance + POWER_FLOOR).

    In double precision: the smallest eigenvalues are a thousandth of the largest or less, and single precision would
    leave three digits of them, which differ from machine to machine.
    """
    signal = signal if signal.device.type == "mps" else signal.double()  # Apple's GPUs have no doubles
    _, time, channels = signal.shape
    centred = signal - signal.mean(1, keepdim=True)
    covariance = centred.mT @ centred / time  # (B, C, C)
    variance = covariance.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]  # (B, 1, 1)
    identity = torch.eye(channels, device=signal.device, dtype=signal.dtype)
    return covariance + (SHRINKAGE * variance + SHRINKAGE * POWER_FLOOR) * identity


def matrix_logarithm(matrices: torch.Tensor) -> torch.Tensor:
    """The logarithm of symmetric matrices (B, C, C) from `shrunk_covariance`; a matrix with nan gives nan."""
    try:
        values, vectors = torch.linalg.eigh(matrices)  # (B, C), (B, C, C)
    except torch.linalg.LinAlgError:  # one matrix with nan makes the whole batch fail
        finite = matrices.isfinite().all(2).all(1)[:, None]  # (B, 1)
        values, vectors = torch.linalg.eigh(torch.where(finite[..., None], matrices, 0.0))
        values = torch.where(finite, values, torch.nan)
    return (vectors * values.clamp(min=SHRINKAGE * POWER_FLOOR).log()[:, None]) @ vectors.mT


def upper_triangle(matrices: torch.Tensor) -> torch.Tensor:
    """(B, C, C) → (B, C(C+1)/2), row after row."""
    rows, columns = torch.triu_indices(matrices.shape[1], matrices.shape[1])
    return matrices[:, rows, columns]
