"""Stop a training at the first loss, gradient or weight that is not finite, and name the windows."""

import math
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np
import pandas as pd
import torch
from accelerate.utils import gather_object
from torch.nn import functional as F  # noqa: N812

from EMG_DATA_LOADER import EVALUATION_BATCH, read_emg
from emg_gpt2.base.errors import EMGError
from emg_gpt2.base.files import replace_file
from emg_gpt2.training.device import is_main_process, on_any_process, sum_over_processes
from emg_gpt2.windows.reading import WindowSet


class NotFiniteError(EMGError):
    """A training was stopped because loss, gradient or weights are not finite."""


class Step(NamedTuple):
    """What is kept of a step until it is checked; the tensors stay on the GPU.

    number: of the step in the epoch, from 1; rows, logits (b, K), targets (b,): of this process's share of the batch;
    loss: its share of the mean; norm: of the gradient.
    """

    number: int
    rows: np.ndarray
    logits: torch.Tensor
    targets: torch.Tensor
    loss: torch.Tensor
    norm: torch.Tensor

    def losses(self) -> np.ndarray:
        """(b,) of each window, unweighted (nat)."""
        return F.cross_entropy(self.logits.float(), self.targets, reduction="none").cpu().numpy()


def check_steps(steps: list[Step], epoch: int, windows: WindowSet, run: Path | None) -> None:
    """Raise NotFiniteError at the first step whose loss or gradient is not finite, on whichever process."""
    good = torch.stack([step.loss + step.norm for step in steps]).isfinite().tolist()
    if not on_any_process(not all(good)):
        return
    found = gather_object([step.number for step, fine in zip(steps, good, strict=True) if not fine])
    step = steps[min(found) - steps[0].number]
    (loss,) = sum_over_processes(float(step.loss))  # each process has a share of the mean
    what = f"the loss is {loss:.3g}"
    if math.isfinite(loss):
        what = f"the gradient of a loss of {loss:.3g} is {float(step.norm):.3g}"
    shares = gather_object([batch_table(windows, step.rows, step.losses())])
    batch = pd.concat(shares).drop_duplicates("row")  # a process without a share computes another one's window
    _stop(f"{what} in epoch {epoch}, step {step.number}", batch, run)


def check_validation(
    probabilities: np.ndarray, rows: np.ndarray, where: str, windows: WindowSet, run: Path | None
) -> None:
    """Raise NotFiniteError where some of the (n, K) probabilities of the windows `rows` are not finite."""
    bad = ~np.isfinite(probabilities).all(1)
    if bad.any():
        some = rows[bad][:EVALUATION_BATCH]
        batch = batch_table(windows, some, np.full(len(some), np.nan))
        _stop(f"the loss on the validation part is nan in {where}", batch, run)


def check_weights(model: torch.nn.Module, where: str) -> None:
    """Raise NotFiniteError where a weight is not finite: no loss shows it before the next step."""
    if not torch.stack([tensor.isfinite().all() for tensor in model.state_dict().values()]).all():
        raise NotFiniteError(f"the weights are not finite after {where}; lower LR")


def _stop(what: str, batch: pd.DataFrame, run: Path | None) -> NoReturn:
    """Write bad_batch.csv and raise NotFiniteError."""
    listed = ""
    if run:
        listed = f" ({run / 'bad_batch.csv'} lists the batch)"
        if is_main_process():
            replace_file(run / "bad_batch.csv", lambda path: batch.to_csv(path, index=False))
    raise NotFiniteError(f"{what}, {_suspects(batch)}{listed}; lower LR or look at them")


def batch_table(windows: WindowSet, rows: np.ndarray, losses: np.ndarray) -> pd.DataFrame:
    """Identity of the windows `rows` (b,), their row in the file, largest sample (in its unit) and loss (nat)."""
    peaks = read_emg(windows, rows).abs().amax((1, 2)).numpy()  # nan where a sample is
    return windows.table.iloc[rows].assign(row=rows, largest_sample=peaks, loss=losses)


def _suspects(batch: pd.DataFrame) -> str:
    """The likely cause in a batch: samples that are not finite, else such losses, else the largest loss."""
    for name, what in (("largest_sample", "samples"), ("loss", "losses")):
        bad = ~np.isfinite(batch[name].to_numpy())
        if bad.any():
            return f"with {what} that are not finite in {_first_window(batch[bad])}"
    return f"with the largest loss in {_first_window(batch[batch['loss'] == batch['loss'].max()])}"


def _first_window(batch: pd.DataFrame) -> str:
    """Name the window with the largest sample, and count the others."""
    first = batch.sort_values("largest_sample", ascending=False, na_position="first", kind="stable").iloc[0]
    others = f" and {len(batch) - 1} more of its batch" if len(batch) > 1 else ""
    return f"the window at {first['start']:.3f} s of {first['recording']}, row {first['row']}{others}"
