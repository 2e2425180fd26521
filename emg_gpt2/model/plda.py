"""The closed-form path of a model with context: gestures told in a sentence move the means of their classes.

Probabilistic linear discriminant analysis (Ioffe, ECCV 2006; Prince and Elder, ICCV 2007): a class has another mean in
every session. Windows scatter around that mean, and the means of the sessions around one of the class.
"""

import numpy as np
import torch
from scipy.linalg import eigh
from sklearn.covariance import ledoit_wolf
from torch import nn
from torch.nn import functional as F  # noqa: N812

WEIGHT = 0.3  # of its logits, which are too sure of the windows that it was fitted to (as LINEAR_WEIGHT)


class PLDA(nn.Module):
    """Log covariances and the gestures told → logits.

    directions (F, F): along them windows have variance 1 within a session, and session means variance `between` (F,)
    means (K, F): of the classes, along the directions
    """

    def __init__(self, features: int, classes: int):
        super().__init__()
        self.register_buffer("directions", torch.eye(features))
        self.register_buffer("between", torch.ones(features))
        self.register_buffer("means", torch.zeros(classes, features))

    def forward(self, covariance: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
        """Log covariances (E, N, F) of sentences and the gestures told (E, N), or UNTOLD → logits (E, N, K).

        Each window is judged from the gestures told before it.
        """
        along = covariance @ self.directions  # (E, N, F)
        said = F.one_hot(told + 1, len(self.means) + 1)[..., 1:].to(along.dtype)  # (E, N, K); UNTOLD is nothing
        count = (said.cumsum(1) - said)[..., None]  # (E, N, K, 1), of the windows before
        sums = torch.einsum("enk,enf->enkf", said, along)
        sums = sums.cumsum(1) - sums  # (E, N, K, F)
        known = 1 + count * self.between  # (E, N, K, F)
        means = (self.means + self.between * sums) / known
        variance = 1 + self.between / known
        distance = (along[:, :, None] - means).square() / variance + variance.log()
        return -0.5 * WEIGHT * distance.sum(-1)

    @torch.no_grad()
    def fit(self, covariance: np.ndarray, targets: np.ndarray, sessions: np.ndarray) -> None:
        """Fit to log covariances (n, F) of the classes `targets` (n,) in the sessions (n,).

        The scatter within sessions is shrunk as in `linear_discriminant`.
        """
        keys, group = np.unique(np.stack([targets, sessions]), axis=1, return_inverse=True)
        count = np.bincount(group)
        centres = np.stack([np.bincount(group, column) for column in covariance.T], 1) / count[:, None]  # (G, F)
        within, _ = ledoit_wolf(covariance - centres[group], assume_centered=True)
        means = np.stack([centres[keys[0] == target].mean(0) for target in range(len(self.means))])  # (K, F)
        moved = centres - means[keys[0]]
        variance, directions = eigh(moved.T @ moved / len(moved), within)
        for name, value in (("directions", directions), ("between", variance.clip(0)), ("means", means @ directions)):
            getattr(self, name).copy_(torch.from_numpy(value))
