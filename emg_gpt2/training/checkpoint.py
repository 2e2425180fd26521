"""A run's checkpoint: best_model/, and last/ with history.json, epoch.json and, until the end, state.safetensors.

best_model/ holds a plain model; after LoRA the updates are merged into it, and adapter/ inside has them by themselves.
One process writes for all: their weights and moments are the same. Random generators and the schedule need no state,
because they follow from seed, epoch and step. The files are not trusted: no pickle is read, only numbers, and they must
fit the training.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from emg_gpt2.base.errors import EMGError
from emg_gpt2.base.files import replace_folder
from emg_gpt2.base.text import in_short
from emg_gpt2.model.files import disk_errors, save_weights
from emg_gpt2.model.model import EMGForSequenceClassification
from emg_gpt2.training.device import is_main_process
from emg_gpt2.training.history import EpochSums, HistoryRow, ValidatedRow
from emg_gpt2.training.lora import adapter_weights, has_updates, merged_weights, save_adapter

STATE = "state.safetensors"  # weights and the optimiser's moments
HISTORY, SUMS = "history.json", "epoch.json"
CHECKPOINT_SHARE = 0.03  # of the training time, at most, goes into checkpoints; the short one at the end comes on top
GUESSED_RATE = 5e8  # bytes of a checkpoint per second, until one has been written


class Checkpoints:
    """Writes the checkpoints of one training; they take CHECKPOINT_SHARE of its time at most.

    seconds, count: the time they took so far, and how many there were.
    """

    def __init__(self, run: Path | None, model: EMGForSequenceClassification, optimizer: torch.optim.Optimizer):
        self.run, self.model, self.optimizer = run, model, optimizer
        self.best, self.adapter = None, {}  # weights to write
        self.seconds, self.count, self.began = 0.0, 0, time.perf_counter()

    def remember_best(self) -> None:
        """Copy the weights, the best so far; `write_best` writes the copy."""
        self.best = copies(merged_weights(self.model))
        if has_updates(self.model.backbone):
            self.adapter = copies(adapter_weights(self.model.backbone))

    def due(self) -> bool:
        """Whether there is time for another checkpoint, as slow as those so far."""
        one = self.seconds / self.count if self.count else self._size() / GUESSED_RATE
        return self.seconds + one <= CHECKPOINT_SHARE * (time.perf_counter() - self.began)

    def _size(self) -> int:
        """Bytes of the weights, and of two moments of those that are trained."""
        return sum(4 * p.numel() * (3 if p.requires_grad else 1) for p in self.model.parameters())

    def write(self, history: list[dict], sums: EpochSums, ended: bool) -> None:
        """Write best_model/ where there is a better one, then last/; each is replaced whole.

        A training that has `ended` needs no weights and moments: its best model and history are enough.
        """
        began = time.perf_counter()
        self.write_best()
        if is_main_process():
            replace_folder(self.run / "last", lambda folder: self._write_last(folder, history, sums, ended))
        self.seconds += time.perf_counter() - began
        self.count += 1

    def write_best(self) -> None:
        """Write best_model/ where there is a better one."""
        if self.best is not None and is_main_process():
            replace_folder(self.run / "best_model", self._write_best)
        self.best, self.adapter = None, {}

    def _write_best(self, folder: Path) -> None:
        save_weights(self.model, folder, state_dict=self.best)
        if self.adapter:
            save_adapter(self.model.backbone, self.adapter, folder / "adapter")

    def _write_last(self, folder: Path, history: list[dict], sums: EpochSums, ended: bool) -> None:
        if not ended:
            save_state(self.model, self.optimizer, folder)
        (folder / HISTORY).write_text(json.dumps(history))
        (folder / SUMS).write_text(json.dumps(asdict(sums)))


def copies(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors as they are now, in the memory of the CPU."""
    return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}


# ---- reading ----------------------------------------------------------------------------------------------------


@contextmanager
def readable(last: Path) -> Iterator[Path]:
    """Turn every error of a damaged checkpoint into one EMGError."""
    try:
        yield last
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise EMGError(f"{last}: the state cannot be read ({in_short(error)}); start a new run") from None


def has_progress(last: Path) -> bool:
    """Whether there is a checkpoint."""
    return (last / HISTORY).is_file()


def has_state(last: Path) -> bool:
    """Whether the training had not ended when the checkpoint was written."""
    return (last / STATE).is_file()


def read_progress(last: Path, epochs: int, steps: int, validated: bool) -> tuple[list[dict], EpochSums]:
    """Read the history and the sums of the epoch under way; raises OSError, or ValueError where they do not fit.

    epochs: the most that the training has; steps: of an epoch; validated: whether there is a validation part.
    """
    content = (last / HISTORY).read_bytes()
    rows = TypeAdapter(list[ValidatedRow if validated else HistoryRow]).validate_json(content)
    sums = TypeAdapter(EpochSums).validate_json((last / SUMS).read_bytes())
    numbers = [row.epoch for row in rows]
    if numbers != list(range(1, len(numbers) + 1)) or len(numbers) > epochs:
        raise ValueError(f"the {len(numbers)} epochs of {HISTORY} do not count from 1 to {epochs} at most")
    if sums.step > steps:
        raise ValueError(f"{SUMS} has step {sums.step} of {steps}")
    return json.loads(content), sums


def save_state(model: torch.nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Write weights and moments into `folder`; raises OSError."""
    moments = optimizer.state_dict()["state"]
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"optimizer.{n}.{name}": tensor for n, kept in moments.items() for name, tensor in kept.items()}
    with disk_errors(folder):
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / STATE)


def load_state(model: torch.nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Read weights and moments from `folder`.

    Raises OSError or SafetensorError, and ValueError or RuntimeError where they are of another model.
    """
    if not has_state(folder):
        raise ValueError(f"there is no {STATE}")
    state = load_file(folder / STATE)
    model.load_state_dict(_with_prefix("model.", state))
    moments = _by_parameter(_with_prefix("optimizer.", state), optimizer)
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


def _with_prefix(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors whose names begin with the prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
