"""A checkpoint (last/): history.json, epoch.json, and while the training goes on state.safetensors.

Processes that train together have the same weights and moments, chance has no state, and the schedule follows from the
number of steps. The files may be a stranger's: no pickle is read, only numbers, and they have to fit the training.
"""

import json
from pathlib import Path

import torch
from pydantic import BaseModel, NonNegativeInt, PositiveInt, TypeAdapter
from safetensors.torch import load_file, save_file

from EMG_run import disk_errors

STATE = "state.safetensors"  # weights and the optimiser's moments


class EpochSums(BaseModel, extra="forbid"):
    """An Epoch as epoch.json has it."""

    step: NonNegativeInt
    seconds: float
    lr_sum: float
    loss_sum: float
    right: float


class HistoryRow(BaseModel, extra="forbid"):
    """A row of history as history.json has it, of a training without a validation part."""

    epoch: PositiveInt
    lr: float
    train_loss: float
    train_accuracy: float
    seconds: float
    weights: str


class ValidatedRow(HistoryRow):
    validation_loss: float
    validation_accuracy: float
    validation_balanced_accuracy: float


def save_progress(history: list[dict], epoch: dict, folder: Path) -> None:
    (folder / "history.json").write_text(json.dumps(history))
    (folder / "epoch.json").write_text(json.dumps(epoch))


def read_progress(folder: Path, epochs: int, steps: int, validated: bool) -> tuple[list[dict], dict]:
    """The history and the sums of the epoch; raises OSError, or ValueError where they are not those of such a training.

    epochs: the most that the training has; steps: of an epoch; validated: whether there is a validation part.
    """
    content = (folder / "history.json").read_bytes()
    rows = TypeAdapter(list[ValidatedRow if validated else HistoryRow]).validate_json(content)
    epoch = EpochSums.model_validate_json((folder / "epoch.json").read_bytes())
    numbers = [row.epoch for row in rows]
    if numbers != list(range(1, len(numbers) + 1)) or len(numbers) > epochs:
        raise ValueError(f"the {len(numbers)} epochs of history.json do not count from 1 to {epochs} at most")
    if epoch.step > steps:
        raise ValueError(f"epoch.json has step {epoch.step} of {steps}")
    return json.loads(content), epoch.model_dump()


def has_state(folder: Path) -> bool:
    """Whether the training had not ended when the checkpoint was written."""
    return (folder / STATE).is_file()


def save_state(model: torch.nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Raises OSError."""
    moments = optimizer.state_dict()["state"]
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"optimizer.{n}.{name}": tensor for n, kept in moments.items() for name, tensor in kept.items()}
    with disk_errors(folder):
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / STATE)


def load_state(model: torch.nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Raises OSError or SafetensorError, and ValueError or RuntimeError where the state is of another model."""
    if not has_state(folder):
        raise ValueError(f"there is no {STATE}")
    state = load_file(folder / STATE)
    model.load_state_dict(_below("model.", state))
    moments = _by_parameter(_below("optimizer.", state), optimizer)
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})


def _by_parameter(
    moments: dict[str, torch.Tensor], optimizer: torch.optim.Optimizer
) -> dict[int, dict[str, torch.Tensor]]:
    """The moments of every parameter that has any, by its number; raises ValueError where they do not fit it."""
    found = {}
    for number, parameter in enumerate(one for group in optimizer.param_groups for one in group["params"]):
        shapes = {"step": (), "exp_avg": parameter.shape, "exp_avg_sq": parameter.shape}
        kept = {name: moments.pop(f"{number}.{name}") for name in shapes if f"{number}.{name}" in moments}
        if kept and {name: tensor.shape for name, tensor in kept.items()} != shapes:
            raise ValueError(f"the optimiser's state of parameter {number} does not fit it")
        found |= {number: kept} if kept else {}
    if moments:
        raise ValueError(f"the optimiser has no {min(moments)}")
    return found


def _below(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
