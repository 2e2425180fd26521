"""TODO emg_gpt2.model.normalise."""

from typing import NamedTuple

import torch

POWER_FLOOR = 1e-4  # of a channel's variance: −40 dB, below the noise of any electrode
SHRINKAGE = 2e-3  # of a covariance towards its mean variance: a window's smallest eigenvalues are noise
SPREAD_FLOOR = 0.05  # of a log covariance; that of a silent electrode does not vary


class Reference(NamedTuple):
    """What the windows of S sessions are measured against, from their own unlabelled windows.

    scale (S, C): standard deviation of each channel, in its unit; centre, spread (S, C(C+1)/2): mean and standard
    deviation of the log covariances of the scaled windows.
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
    """What every window is measured against: a row of `reference` per group, and the group (n,) of each window."""

    reference: Reference
    groups: torch.Tensor

    def of(self, rows: torch.Tensor) -> Reference:
        """One row per window `rows` (B,)."""
        return self.reference.of(self.groups[rows])

    def to(self, device: torch.device) -> "References":
        return References(self.reference.to(device), self.groups.to(device))


def log_covariance(signal: torch.Tensor) -> torch.Tensor:
    """signal (B, T, C) → (B, C(C+1)/2): the upper triangle of the matrix logarithm of each window's covariance.

    Power of every channel and synchrony of every pair, on a scale where distances are those between muscle efforts
    (log-Euclidean metric: Arsigny et al., Magn. Reson. Med. 2006; for EEG: Barachant et al., IEEE TBME 2012).
    """
    return upper_triangle(matrix_logarithm(shrunk_covariance(signal))).to(signal.dtype)


def shrunk_covariance(signal: torch.Tensor) -> torch.Tensor:
    """signal (B, T, C) → (B, C, C), whose eigenvalues are at least SHRINKAGE · (mean variance + POWER_FLOOR).

    In double precision: of the smallest eigenvalues, a thousandth of the largest or less, single would leave three
    digits, which would differ from machine to machine.
    """
    signal = signal if signal.device.type == "mps" else signal.double()  # Apple's GPUs have no doubles
    _, time, channels = signal.shape
    centred = signal - signal.mean(1, keepdim=True)
    covariance = centred.mT @ centred / time  # (B, C, C)
    variance = covariance.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    identity = torch.eye(channels, device=signal.device, dtype=signal.dtype)
    return covariance + (SHRINKAGE * variance + SHRINKAGE * POWER_FLOOR) * identity


def matrix_logarithm(matrices: torch.Tensor) -> torch.Tensor:
    """(B, C, C), symmetric and of the eigenvalues that `shrunk_covariance` leaves, → (B, C, C); nan stays nan."""
    try:
        values, vectors = torch.linalg.eigh(matrices)
    except torch.linalg.LinAlgError:  # a single window whose samples are no numbers fails the whole batch
        finite = matrices.isfinite().all(2).all(1)[:, None]  # (B, 1)
        values, vectors = torch.linalg.eigh(torch.where(finite[..., None], matrices, 0.0))
        values = torch.where(finite, values, torch.nan)
    return (vectors * values.clamp(min=SHRINKAGE * POWER_FLOOR).log()[:, None]) @ vectors.mT


def upper_triangle(matrices: torch.Tensor) -> torch.Tensor:
    """(B, C, C) → (B, C(C+1)/2), row after row."""
    rows, columns = torch.triu_indices(matrices.shape[1], matrices.shape[1])
    return matrices[:, rows, columns]


@torch.no_grad()
def measure_reference(emg: torch.Tensor) -> Reference:
    """The reference of one session from its windows (n, T, C); labels are not used.

    A silent channel keeps its scale.
    """
    signal = emg - emg.mean(1, keepdim=True)
    scale = signal.square().mean((0, 1)).sqrt()
    scale = torch.where(scale > 0, scale, 1.0)
    covariance = torch.cat([log_covariance(part / scale) for part in signal.split(1024)])  # (n, C(C+1)/2)
    spread = covariance.std(0, correction=0).clamp(min=SPREAD_FLOOR)
    return Reference(scale[None], covariance.mean(0)[None], spread[None])
