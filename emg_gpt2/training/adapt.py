"""Which weights train, and the two forms in which a model does: augmented, or above what is frozen."""

from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from EMG_DATA_LOADER import EVALUATION_BATCH, Feed, cut_rows
from emg_gpt2.model import backbone
from emg_gpt2.model.augment import Augmentation, Draws
from emg_gpt2.model.model import EMGForSequenceClassification
from emg_gpt2.model.normalise import Reference
from emg_gpt2.settings import Settings
from emg_gpt2.training.task import Task
from emg_gpt2.windows.reading import empty_array


def train_last(model: EMGForSequenceClassification, blocks: int, freeze: bool = False) -> None:
    """Train the last `blocks` blocks; below them only layer norms, positions, tokenisers and head train.

    The recipe of GPT4TS (Zhou et al., NeurIPS 2023); with `freeze` nothing trains below them. The linear path never
    trains: it is fitted in closed form.
    """
    model.requires_grad_(True)
    backbone.freeze_lower(model.backbone, frozen_blocks(model, blocks), whole=freeze)
    model.tokenisers.requires_grad_(not freeze)
    if model.linear is not None:
        model.linear.requires_grad_(False)


def frozen_blocks(model: EMGForSequenceClassification, trained: int) -> int:
    """How many blocks lie below the last `trained` ones."""
    return max(0, backbone.count_blocks(model.backbone) - trained)


class AugmentedModel(nn.Module):
    """A model whose normalised windows are augmented: what trains, and what several processes share."""

    def __init__(self, model: EMGForSequenceClassification, augmentation: Augmentation):
        super().__init__()
        self.model, self.augmentation = model, augmentation

    def forward(self, emg: torch.Tensor, reference: Reference, draws: Draws) -> torch.Tensor:
        """emg (B, T, C) → logits (B, K)."""
        with torch.autocast(emg.device.type, enabled=False):
            signal, covariance = self.augmentation(*self.model.normalise(emg, reference), draws)
        return self.model.classify(signal, covariance)


class UpperModel(nn.Module):
    """The trained blocks of a model and its head, above what is frozen."""

    def __init__(self, model: EMGForSequenceClassification, frozen: int):
        super().__init__()
        self.model, self.frozen = model, frozen

    def forward(self, hidden: torch.Tensor, linear_logits: torch.Tensor) -> torch.Tensor:
        """hidden (B, P, D), linear_logits (B, K) → logits (B, K)."""
        hidden = backbone.run_upper(self.model.backbone, hidden, self.frozen)
        return self.model.classify_hidden(hidden, linear_logits)


class Lower(NamedTuple):
    """B windows as they reach the first trained block: hidden (B, P, D), and logits (B, K) of the linear path."""

    hidden: torch.Tensor
    linear_logits: torch.Tensor


@torch.no_grad()
def run_lower(model: EMGForSequenceClassification, emg: torch.Tensor, reference: Reference, frozen: int) -> Lower:
    """What training does not change, of emg (B, T, C), in evaluation mode."""
    with torch.autocast(emg.device.type, enabled=False):
        signal, covariance = model.normalise(emg, reference)
        tokens = model.tokenise(signal, covariance)
    hidden = backbone.run_lower(model.backbone, tokens, frozen)
    return Lower(hidden.float(), model.linear_logits(covariance))


def run_lower_once(
    model: EMGForSequenceClassification, feed: Feed, task: Task, settings: Settings, accelerator: Accelerator
) -> Lower:
    """`run_lower` of every window of the training and validation part, (n, …); in mapped files beyond MEMORY_GB."""
    model.to(feed.device).eval()
    frozen = frozen_blocks(model, -settings.NUM_LAYERS)
    rows, found = np.concatenate([task.split.train, task.split.validation]), None
    with accelerator.autocast():
        for batch in feed(cut_rows(rows, EVALUATION_BATCH)):
            lower = run_lower(model, batch.emg, task.references.of(batch.rows), frozen)
            found = found or _empty_like(lower, len(task.references.groups), settings)
            for whole, part in zip(found, lower, strict=True):
                whole[batch.rows.cpu()] = part.cpu()
    return Lower(*map(torch.from_numpy, found))


def _empty_like(lower: Lower, windows: int, settings: Settings) -> list[np.ndarray]:
    shapes = [(windows, *part.shape[1:]) for part in lower]
    fits = 4 * np.prod(shapes[0]) <= settings.MEMORY_GB * 1e9
    return [empty_array(shape, np.dtype(np.float32), settings.DATA_LOCATION.parent, fits) for shape in shapes]
