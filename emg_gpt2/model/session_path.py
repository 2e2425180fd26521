"""The closed-form path of a model with context: the means of the classes move with what was read of the session.

In a session the mean of a class is that of all sessions, plus an offset that the session's classes share, plus one of
its own (probabilistic linear discriminant analysis: Ioffe, ECCV 2006; Prince and Elder, ICCV 2007). The windows read so
far give both: those whose gesture is told by their class, the others by the class that they look like (expectation
maximisation, as speakers are adapted to: Gauvain and Lee, IEEE TSAP 1994). How far the rings of electrodes are turned
on the arm is found in the same way: every turn is tried.
"""

from typing import NamedTuple

import numpy as np
import torch
from scipy.linalg import eigh
from sklearn.covariance import ledoit_wolf
from torch import nn
from torch.nn import functional as F  # noqa: N812

from emg_gpt2.model.augment import turn_rings
from emg_gpt2.model.config import EMGConfig

MOST_DIRECTIONS = 64  # along which windows are compared
SMALLEST_VARIANCE = 0.05  # of an offset, of the variance within a session: else one session teaches that none moves
ALIGNMENTS = 3  # times that the training sessions are turned towards each other
# chosen on the 22 people of myoarmband's pre-training part (EXPERIMENTS.md)
WEIGHT = 0.3  # of a log likelihood, whose directions are not as independent as the model has it
TOLD_WEIGHT, UNTOLD_WEIGHT = 0.5, 0.3  # of a window read, because neighbouring windows are alike
EXPECTED = 8  # windows of each class that are thought to have been read before the first
BLOCKS, SMALLEST_BLOCK = 8, 4  # of windows in a context, and the windows of one: after each the means move
STEPS = 3  # of the expectation maximisation
EVIDENCE = 20  # windows, at most, whose likelihood speaks for a turn


class State(NamedTuple):
    """What is known of E sessions at R turns, S times over: means and variances (E, R, S, K, G) of windows of each
    class, and log probabilities (E, R, S) of the turns."""

    means: torch.Tensor
    variances: torch.Tensor
    turns: torch.Tensor

    def at(self, places: torch.Tensor) -> "State":
        """The states at the places (E, N): N of them."""
        rows = torch.arange(len(places), device=places.device)[:, None]
        return State(*(tensor.transpose(1, 2)[rows, places].transpose(1, 2) for tensor in self))


class SessionPath(nn.Module):
    """Log covariances and the gestures told → logits.

    pairs (R, F): order of the features at each of R turns; shares (R,): of the training sessions
    centre (F,), directions (F, G): along them windows have variance 1 within a session
    means (K, G): of the classes; shared, own (G,): variances of a session's offset and of its classes' own
    """

    def __init__(self, config: EMGConfig):
        super().__init__()
        channels, classes = len(config.channels), len(config.class_codes)
        whole_rings = channels % config.ring == 0
        turns = [turn_rings(channels, config.ring, turn)[1] for turn in range(config.ring if whole_rings else 1)]
        features = len(turns[0])
        kept = min(features, MOST_DIRECTIONS)
        self.block = max(SMALLEST_BLOCK, config.context // BLOCKS)
        self.register_buffer("pairs", torch.stack(turns), persistent=False)
        self.register_buffer("shares", torch.full((len(turns),), 1 / len(turns)))
        self.register_buffer("centre", torch.zeros(features))
        self.register_buffer("directions", torch.eye(features, kept))
        self.register_buffer("means", torch.zeros(classes, kept))
        self.register_buffer("shared", torch.ones(kept))
        self.register_buffer("own", torch.ones(kept))

    @torch.no_grad()
    def forward(self, covariance: torch.Tensor, told: torch.Tensor, remembered: int | None = None) -> torch.Tensor:
        """Log covariances (E, N, F) of sentences and the gestures told (E, N), or UNTOLD → logits (E, N, K).

        Each window is judged from what is told, which comes first, and from whole blocks of windows before it. The
        first `remembered` windows are read (None: all).
        """
        count = told.shape[1]
        kept = min(count - 1, count if remembered is None else remembered)
        calibrated = (told >= 0).sum(1, keepdim=True)  # (E, 1)
        blocks = (torch.arange(count, device=told.device).clamp(max=kept) - calibrated) // self.block
        blocks = blocks.clamp(min=-1)  # what is told is not judged
        reads = calibrated + self.block * torch.arange(int(blocks.max()) + 1, device=told.device)  # (E, S)
        state = self.read(covariance[:, :kept], told[:, :kept], torch.cat([torch.zeros_like(calibrated), reads], 1))
        return self.judge(covariance, state.at(1 + blocks))

    def read(self, covariance: torch.Tensor, told: torch.Tensor, reads: torch.Tensor) -> State:
        """Log covariances (E, N, F) and the gestures told (E, N) → the states after the first `reads` (E, S) windows.

        The expectation maximisation begins with what is told.
        """
        along = self._along(covariance)  # (E, R, N, G)
        seen = torch.arange(told.shape[1], device=told.device) < reads[:, :, None]  # (E, S, N)
        seen = seen[:, None, :, :, None].to(along.dtype)
        said = seen * F.one_hot(told + 1, len(self.means) + 1)[:, None, None, :, 1:]  # (E, 1, S, N, K)
        untold = seen * (told < 0)[:, None, None, :, None]
        means, variances = self._moved(TOLD_WEIGHT * said, along)
        guessed, open_ = torch.zeros_like(said), bool((told < 0).any())
        for _ in range(STEPS if open_ else 1):
            expected = guessed.sum(3, keepdim=True) + EXPECTED
            shares = expected / expected.sum(-1, keepdim=True)  # (E, R, S, 1, K)
            likely = WEIGHT * log_likelihood(along, means, variances)  # (E, R, S, N, K)
            if open_:
                guessed = untold * (likely + shares.log()).softmax(-1)
                means, variances = self._moved(TOLD_WEIGHT * said + UNTOLD_WEIGHT * guessed, along)
        each = (said * likely).sum(-1) + untold[..., 0] * (likely + shares.log()).logsumexp(-1)
        heard = reads[:, None].clamp(min=EVIDENCE)
        return State(means, variances, self.shares.log()[:, None] + each.sum(-1) * EVIDENCE / heard)

    def judge(self, covariance: torch.Tensor, state: State) -> torch.Tensor:
        """Log covariances (E, N, F) → logits (E, N, K), each from its own state."""
        apart = self._along(covariance)[:, :, :, None] - state.means  # (E, R, N, K, G)
        likelihood = -0.5 * WEIGHT * (apart.square() / state.variances + state.variances.log()).sum(-1)
        return (likelihood + state.turns[..., None]).logsumexp(1)

    def _along(self, covariance: torch.Tensor) -> torch.Tensor:
        """Log covariances (E, N, F) → along the directions, at each turn (E, R, N, G)."""
        return (covariance[:, :, self.pairs].transpose(1, 2) - self.centre) @ self.directions

    def _moved(self, weights: torch.Tensor, along: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights (E, R, S, N, K) of windows (E, R, N, G) in each class → means and variances (E, R, S, K, G)."""
        count = weights.sum(3)[..., None]  # (E, R, S, K, 1)
        sums = torch.einsum("ersnk,erng->erskg", weights, along)
        apart = sums - count * self.means  # from the means of all sessions
        known = 1 + count * self.own
        precision = 1 / self.shared + (count / known).sum(3, keepdim=True)  # (E, R, S, 1, G) of the shared offset
        offset = (apart / known).sum(3, keepdim=True) / precision
        moved = self.means + offset + self.own * (apart - count * offset) / known
        return moved, 1 + self.own / known + 1 / (known.square() * precision)

    # ---- fit

    @torch.no_grad()
    def fit(self, covariance: np.ndarray, targets: np.ndarray, sessions: np.ndarray) -> None:
        """Fit to log covariances (n, F) of the classes `targets` (n,) in the sessions (n,).

        The training sessions are turned towards each other: each to where its classes are closest to those of all.
        """
        pairs, turns = self.pairs.numpy(), np.zeros(sessions.max() + 1, int)
        for _ in range(ALIGNMENTS):
            turned = np.take_along_axis(covariance, pairs[turns[sessions]], 1)
            self._fit_aligned(turned, targets, sessions)
            distances = [self._distance(covariance[:, order], targets, sessions) for order in pairs]
            turns = np.argmin(distances, 0)
        self._fit_aligned(np.take_along_axis(covariance, pairs[turns[sessions]], 1), targets, sessions)
        frequent = np.bincount(turns[np.unique(sessions)], minlength=len(pairs)) + 0.5
        self.shares.copy_(torch.from_numpy(frequent / frequent.sum()))

    def _fit_aligned(self, covariance: np.ndarray, targets: np.ndarray, sessions: np.ndarray) -> None:
        """`fit`, but for the turns; the scatter within sessions is shrunk (Ledoit and Wolf, 2004)."""
        centre = covariance.mean(0)
        group, keys, centres = class_centres(covariance - centre, targets, sessions)
        within, _ = ledoit_wolf(covariance - centre - centres[group], assume_centered=True)
        means = np.stack([centres[keys[0] == target].mean(0) for target in range(len(self.means))])  # (K, F)
        moved = centres - means[keys[0]]
        _, directions = eigh(moved.T @ moved / len(moved), within)
        apart = (means @ directions).var(0) + (moved @ directions).var(0)
        directions = directions[:, np.argsort(apart)[::-1][: len(self.own)]]
        shared, own = offsets(moved @ directions, keys[1])
        found = {"centre": centre, "directions": directions, "means": means @ directions, "shared": shared, "own": own}
        for name, value in found.items():
            getattr(self, name).copy_(torch.from_numpy(value))

    def _distance(self, covariance: np.ndarray, targets: np.ndarray, sessions: np.ndarray) -> np.ndarray:
        """(S,) how far each session's class centres are from the means of all sessions."""
        along = (covariance - self.centre.numpy()) @ self.directions.numpy()
        _, keys, centres = class_centres(along, targets, sessions)
        spread = (self.shared + self.own + SMALLEST_VARIANCE).numpy()
        far = ((centres - self.means.numpy()[keys[0]]) ** 2 / spread).sum(1)
        return np.bincount(keys[1], far) / np.bincount(keys[1]).clip(1)


def log_likelihood(along: torch.Tensor, means: torch.Tensor, variances: torch.Tensor) -> torch.Tensor:
    """Of windows (E, R, N, G) in each state's classes (E, R, S, K, G) → (E, R, S, N, K)."""
    precision = 1 / variances
    squares = torch.einsum("erng,erskg->ersnk", along.square(), precision)
    products = torch.einsum("erng,erskg->ersnk", along, means * precision)
    constant = (means.square() * precision + variances.log()).sum(-1)[:, :, :, None]  # (E, R, S, 1, K)
    return -0.5 * (squares - 2 * products + constant)


def class_centres(along: np.ndarray, targets: np.ndarray, sessions: np.ndarray) -> tuple[np.ndarray, ...]:
    """Group (n,) of each window, class and session (2, M) of each group, and its mean (M, F)."""
    keys, group = np.unique(np.stack([targets, sessions]), axis=1, return_inverse=True)
    sums = np.stack([np.bincount(group, column) for column in along.T], 1)
    return group, keys, sums / np.bincount(group)[:, None]


def offsets(moved: np.ndarray, sessions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Variances (G,) of the offset that a session's classes share and of their own ones, from centres less the means
    of their classes (M, G) and their sessions (M,): the usual estimates of a one-way random-effects model."""
    _, group, count = np.unique(sessions, return_inverse=True, return_counts=True)
    middles = np.stack([np.bincount(group, column) for column in moved.T], 1) / count[:, None]
    freedom = max(1, len(moved) - len(count))
    own = ((moved - middles[group]) ** 2).sum(0) / freedom
    shared = (middles**2).mean(0) - own * (1 / count).mean()
    return shared.clip(SMALLEST_VARIANCE), own.clip(SMALLEST_VARIANCE)
