"""The history of a training: sums over an epoch, a row per epoch, and which epoch is the best."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt


@dataclass
class EpochSums:
    """An epoch so far: steps, seconds, and sums over them of learning rate, loss times windows, and hits.

    On a GPU the last two are tensors that stay there, so that no step waits for them.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")  # of epoch.json

    step: NonNegativeInt
    seconds: float
    lr_sum: float
    loss_sum: float
    right: float

    @classmethod
    def zero(cls) -> "EpochSums":
        """Before the first step."""
        return cls(0, 0.0, 0.0, 0.0, 0.0)

    def add(self, lr: float, loss: torch.Tensor, right: torch.Tensor) -> None:
        """One step."""
        loss, right = (value if value.is_cuda else value.cpu() for value in (loss, right))
        self.step, self.lr_sum = self.step + 1, self.lr_sum + lr
        self.loss_sum, self.right = self.loss_sum + loss.double(), self.right + right.double()


class HistoryRow(BaseModel, extra="forbid"):
    """An epoch of a training without a validation part, as history.json has it."""

    epoch: PositiveInt
    lr: float
    train_loss: float
    train_accuracy: float
    seconds: float
    weights: str


class ValidatedRow(HistoryRow):
    """An epoch of a training with a validation part."""

    validation_loss: float
    validation_accuracy: float
    validation_balanced_accuracy: float
    validation_none: float | None = None  # with CONTEXT, balanced accuracies in each of CONTEXTS
    validation_unlabelled: float | None = None
    validation_calibrated: float | None = None


class Histories(NamedTuple):
    """What a run learnt: one row per epoch of the first training, and of the second one (empty without REFIT).

    linear_path: accuracies and predicted labels of the linear path alone on the validation part (empty without one).
    """

    first: list[dict]
    second: list[dict]
    linear_path: dict


def best_epoch(history: list[dict]) -> int:
    """Index of the epoch with the lowest loss on the validation part; without one, of the last.

    The loss tells epochs apart where the accuracy of a small validation part is the same, or jumps.
    """
    if "validation_loss" not in history[-1]:
        return len(history) - 1
    losses = np.array([row["validation_loss"] for row in history], float)
    return int(np.where(np.isfinite(losses), losses, np.inf).argmin())


def epochs_since_best(history: list[dict]) -> int:
    """How many epochs have passed since the best one."""
    return len(history) - 1 - best_epoch(history) if history else 0


def epoch_line(row: dict, epochs: int) -> str:
    """An epoch in words, for the log."""
    words = [f"epoch {row['epoch']}/{epochs}: loss {row['train_loss']:.3f}, accuracy {row['train_accuracy']:.3f}"]
    if "validation_loss" in row:
        words.append(
            f"validation loss {row['validation_loss']:.3f}, accuracy {row['validation_accuracy']:.3f}, "
            f"balanced {row['validation_balanced_accuracy']:.3f}"
        )
    return "; ".join([*words, f"{row['seconds']:.0f} s"])
