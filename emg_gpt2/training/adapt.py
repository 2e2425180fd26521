"""Which weights train, and the two modules that train them: an augmented model, or the blocks above frozen ones."""

from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from EMG_DATA_LOADER import EVALUATION_BATCH, cut_rows
from emg_gpt2.model import backbone
from emg_gpt2.model.augment import Augmentation, Draws
from emg_gpt2.model.config import EMGConfig
from emg_gpt2.model.model import EMGForSequenceClassification
from emg_gpt2.model.normalise import Reference
from emg_gpt2.model.session_path import SessionPath
from emg_gpt2.settings import Settings
from emg_gpt2.training.lora import add_updates
from emg_gpt2.training.task import Task
from emg_gpt2.windows.feed import Feed
from emg_gpt2.windows.reading import empty_array


def choose_trained(model: EMGForSequenceClassification, settings: Settings) -> None:
    """Let train what ADAPT, NUM_LAYERS and FREEZE say; `lora` adds low-rank updates to the model.

    Norms, positions, tokenisers and head train beside fixed matrices (GPT4TS; Zhou et al., NeurIPS 2023), unless FREEZE
    or `frozen` fixes them. The linear path never trains: it is fitted in closed form.
    """
    inside, below = model.backbone, frozen_blocks(model, settings)
    model.requires_grad_(True)
    model.tokenisers.requires_grad_(not settings.FREEZE)
    if model.linear is not None:
        model.linear.requires_grad_(False)
    backbone.freeze_lower(inside, below if settings.ADAPT == "full" else len(backbone.blocks_of(inside)), whole=False)
    if settings.FREEZE:
        backbone.freeze_lower(inside, below, whole=True)
    if settings.ADAPT == "frozen":
        inside.requires_grad_(False)
    if settings.ADAPT == "lora":
        add_updates(inside, below)


def frozen_blocks(model: EMGForSequenceClassification, settings: Settings) -> int:
    """How many blocks lie below the last -NUM_LAYERS, which are adapted; all, where nothing of them trains."""
    blocks = len(backbone.blocks_of(model.backbone))
    return blocks if settings.ADAPT == "frozen" else max(0, blocks + settings.NUM_LAYERS)


def count_parameters(config: EMGConfig, settings: Settings) -> tuple[int, int]:
    """Parameters of a model as it is saved, and how many train: with `lora` those of the updates, which it lacks."""
    with torch.device("meta"):  # shapes without memory
        model = EMGForSequenceClassification(config)
        parameters = model.num_parameters()
        choose_trained(model, settings)
    return parameters, model.num_parameters(only_trainable=True)


class AugmentedModel(nn.Module):
    """A model whose normalised windows are augmented in training."""

    def __init__(self, model: EMGForSequenceClassification, augmentation: Augmentation, paths: list[SessionPath]):
        super().__init__()
        self.model, self.augmentation, self.paths = model, augmentation, nn.ModuleList(paths)

    def forward(
        self,
        emg: torch.Tensor,
        reference: Reference,
        told: torch.Tensor | None = None,
        remembered: int | None = None,
        draws: Draws | None = None,
        group: int | None = None,
    ) -> torch.Tensor:
        """emg (B, T, C) → logits (B, K); told, remembered: see `classify`; draws: of the augmentation, None without.

        group: of the windows' sessions, whose path was fitted without them; None: the model's own path
        """
        with torch.autocast(emg.device.type, enabled=False):
            signal, covariance = self.model.normalise(emg, reference)
            if draws is not None:
                signal, covariance = self.augmentation(signal, covariance, draws)
        path = None if group is None else self.paths[group]
        return self.model.classify(signal, covariance, told, remembered, path)


class UpperModel(nn.Module):
    """The trained blocks of a model and its head; the `frozen` blocks below are computed once (`run_lower_once`)."""

    def __init__(self, model: EMGForSequenceClassification, frozen: int):
        super().__init__()
        self.model, self.frozen = model, frozen

    def forward(self, hidden: torch.Tensor, linear_logits: torch.Tensor) -> torch.Tensor:
        """hidden (B, P, D), linear_logits (B, K) → logits (B, K)."""
        hidden = backbone.run_upper(self.model.backbone, hidden, self.frozen)
        return self.model.classify_hidden(hidden, linear_logits)


class LowerOutput(NamedTuple):
    """Of B windows: hidden (B, P, D) as it reaches the first trained block, and logits (B, K) of the linear path."""

    hidden: torch.Tensor
    linear_logits: torch.Tensor


@torch.no_grad()
def run_lower(model: EMGForSequenceClassification, emg: torch.Tensor, reference: Reference, frozen: int) -> LowerOutput:
    """Everything below the first trained block, of emg (B, T, C), in evaluation mode."""
    with torch.autocast(emg.device.type, enabled=False):
        signal, covariance = model.normalise(emg, reference)
        tokens = model.tokenise(signal, covariance)
    hidden = backbone.run_lower(model.backbone, tokens, frozen)
    return LowerOutput(hidden.float(), model.linear_logits(covariance))


def run_lower_once(
    model: EMGForSequenceClassification, feed: Feed, task: Task, settings: Settings, accelerator: Accelerator
) -> LowerOutput:
    """`run_lower` of every window of the training and validation part, (n, …); in a mapped file beyond MEMORY_GB."""
    model.to(feed.device).eval()
    frozen = frozen_blocks(model, settings)
    rows, found = np.concatenate([task.split.train, task.split.validation]), None
    with accelerator.autocast():
        for batch in feed(cut_rows(rows, EVALUATION_BATCH)):
            lower = run_lower(model, batch.emg, task.references.of(batch.rows), frozen)
            found = found or _empty_arrays(lower, len(task.references.groups), settings)
            for whole, part in zip(found, lower, strict=True):
                whole[batch.rows.cpu()] = part.cpu()
    return LowerOutput(*map(torch.from_numpy, found))


def _empty_arrays(lower: LowerOutput, windows: int, settings: Settings) -> list[np.ndarray]:
    """An array for `windows` windows per part of a batch's output."""
    shapes = [(windows, *part.shape[1:]) for part in lower]
    fits = 4 * np.prod(shapes[0]) <= settings.MEMORY_GB * 1e9
    return [empty_array(shape, np.dtype(np.float32), settings.DATA_LOCATION.parent, fits) for shape in shapes]
