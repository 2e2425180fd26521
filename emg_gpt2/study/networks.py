"""MiniRocket, and two small networks that are trained on the windows themselves.

MiniRocket is written anew here because aeon asks for an older pandas and numpy than this project is tested with.
"""

import copy
from collections.abc import Callable, Iterator
from itertools import combinations

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from emg_gpt2.study.views import Channels
from emg_gpt2.windows.reading import WindowSet
from EMG_utils import balanced_accuracy

KERNEL, HIGH = 9, 3  # samples of a kernel; how many of its weights are 2, the others are −1
PER_KERNEL, DILATIONS = 24, 8  # biases, over at most so many dilations: 84 · 24 = 2,016 features
BATCH, RATE, DECAY = 128, 1e-3, 1e-2
MOST_EPOCHS, PATIENCE = 15, 3
PATCHES, WIDTH, HEADS, DEPTH = 10, 64, 4, 2  # of the transformer


class MiniRocket(Channels):
    """Shares of the samples at which a convolution exceeds a bias (Dempster, Schmidt and Webb, KDD 2021).

    The 84 kernels of nine samples, three of which weigh 2 and six −1, at several dilations; the biases are quantiles of
    the convolutions of training windows. Each kernel and dilation sums a random choice of channels, as in the authors'
    version for several channels.
    """

    def __init__(self, windows: WindowSet, rows: np.ndarray, seed: int):
        super().__init__(windows, rows)
        time, channels = windows.emg.shape[1:]
        self.rng, self.biases = np.random.default_rng(seed), None
        weights = torch.full((84, KERNEL), -1.0)
        for kernel, high in enumerate(combinations(range(KERNEL), HIGH)):
            weights[kernel, list(high)] = 2
        self.weights = weights
        longest = max(1, (time - 1) // (KERNEL - 1))
        self.dilations = sorted(set(np.geomspace(1, longest, min(DILATIONS, longest)).astype(int).tolist()))
        sizes = 2 ** self.rng.uniform(0, np.log2(min(channels, KERNEL) + 1), (len(self.dilations), 84))
        order = self.rng.random((len(self.dilations), 84, channels)).argsort(2).argsort(2)
        self.chosen = torch.from_numpy(order < sizes.astype(int)[..., None]).float()  # (dilations, 84, C)

    def measure(self, rows: np.ndarray, averages: np.ndarray, over: str) -> np.ndarray:
        """(n, 84 · PER_KERNEL) float32. The first windows that are measured, of the training part, give the biases."""
        if self.biases is None:
            drawn = self.rng.permutation(len(rows))[:BATCH]
            signal = super().measure(rows[drawn], averages[drawn], over)
            self.biases = [self._quantiles(found) for found in self._convolved(torch.from_numpy(signal))]
        found = []
        for piece in np.array_split(np.arange(len(rows)), -(-len(rows) // BATCH)):
            signal = torch.from_numpy(super().measure(rows[piece], averages[piece], over))
            pairs = zip(self._convolved(signal), self.biases, strict=True)
            shares = [(one[:, :, None] > bias[..., None]).float().mean(3).flatten(1) for one, bias in pairs]
            found.append(torch.cat(shares, 1).numpy())
        return np.concatenate(found)

    def _convolved(self, signal: torch.Tensor) -> Iterator[torch.Tensor]:
        """signal (n, T, C) → (n, 84, T) at each dilation."""
        for dilation, chosen in zip(self.dilations, self.chosen, strict=True):
            weights = chosen[:, :, None] * self.weights[:, None]  # (84, C, 9)
            yield F.conv1d(signal.mT, weights, padding="same", dilation=dilation)

    def _quantiles(self, found: torch.Tensor) -> torch.Tensor:
        """(84, biases) of the convolutions (n, 84, T)."""
        count = -(-PER_KERNEL // len(self.dilations))
        shares = torch.linspace(0, 1, count + 2)[1:-1]
        values = found.transpose(0, 1).flatten(1)[:, :: max(1, found[:, 0].numel() // 10_000)]
        return values.quantile(shares, dim=1).mT


# ---- networks ---------------------------------------------------------------------------------------------------


def convolutional(channels: int, time: int, classes: int) -> nn.Module:
    """The fully convolutional network of Wang, Yan and Oates (IJCNN 2017), half as wide. Input (B, C, T)."""
    widths, sizes, layers = (channels, 64, 128, 64), (7, 5, 3), []
    for before, after, size in zip(widths, widths[1:], sizes, strict=False):
        layers += [nn.Conv1d(before, after, size, padding="same"), nn.BatchNorm1d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(widths[-1], classes))


class Transformer(nn.Module):
    """A vision transformer on patches of a window, as TEMGNet is (Rahimian et al., arXiv:2109.12379, 2021): a linear
    map of each patch, a class token, learnt places, encoder blocks, and a linear map of the class token."""

    def __init__(self, channels: int, time: int, classes: int):
        super().__init__()
        self.size = -(-time // PATCHES)
        count = time // self.size
        self.embed = nn.Linear(self.size * channels, WIDTH)
        self.first, self.places = nn.Parameter(torch.zeros(1, 1, WIDTH)), nn.Parameter(torch.zeros(1, count + 1, WIDTH))
        nn.init.normal_(self.places, std=0.02)
        block = nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, 0.1, "gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, DEPTH, nn.LayerNorm(WIDTH), enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, classes)

    def forward(self, signal: torch.Tensor) -> torch.Tensor:
        """signal (B, C, T) → logits (B, K)."""
        patches = signal.mT.unfold(1, self.size, self.size).flatten(2)  # (B, patches, C · size)
        tokens = torch.cat([self.first.expand(len(signal), -1, -1), self.embed(patches)], 1) + self.places
        return self.head(self.blocks(tokens)[:, 0])


def train_network(
    build: Callable[[int, int, int], nn.Module],
    signal: np.ndarray,
    targets: np.ndarray,
    classes: int,
    judged: tuple[np.ndarray, np.ndarray] | None,
    epochs: int | None,
    seed: int,
) -> tuple[nn.Module, int]:
    """Train on windows (n, T, C) with their targets; returns the network and its number of epochs.

    Each class weighs alike. Without `epochs`, those of the best balanced accuracy on the windows `judged`, with their
    targets.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return _train(build, signal, targets, classes, judged, epochs)


def _train(build, signal, targets, classes, judged, epochs) -> tuple[nn.Module, int]:
    model = build(signal.shape[2], signal.shape[1], classes)
    optimiser = torch.optim.AdamW(model.parameters(), RATE, weight_decay=DECAY)
    weights = torch.from_numpy(len(targets) / (classes * np.bincount(targets, minlength=classes))).float()
    windows, labels, best = torch.from_numpy(signal).mT, torch.from_numpy(targets), (-1.0, 0, None)
    for epoch in range(1, (epochs or MOST_EPOCHS) + 1):
        model.train()
        for batch in torch.randperm(len(labels)).split(BATCH):
            if len(batch) > 1:  # a batch norm needs two
                loss = F.cross_entropy(model(windows[batch]), labels[batch], weights)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
        if judged is not None:
            reached = balanced_accuracy(judged[1], predicted(model, judged[0]))
            if reached > best[0]:
                best = reached, epoch, copy.deepcopy(model)
            if epoch - best[1] >= PATIENCE:
                break
    return (best[2], best[1]) if judged is not None else (model, epochs)


@torch.no_grad()
def predicted(model: nn.Module, signal: np.ndarray) -> np.ndarray:
    """(n,) classes of windows (n, T, C)."""
    model.eval()
    return torch.cat([model(piece.mT).argmax(1) for piece in torch.from_numpy(signal).split(1024)]).numpy()
