"""Training: one process or several, on CPU or GPU, stopped and resumed at any step."""

import ctypes
import logging
import math
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache, wraps
from pathlib import Path
from typing import NamedTuple, NoReturn, TypeVar

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list, gather_object
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import SafetensorError
from sklearn.metrics import accuracy_score
from torch.nn import functional as F  # noqa: N812
from transformers import get_cosine_schedule_with_warmup

from EMG_checkpoint import has_state, load_state, read_progress, save_progress, save_state
from EMG_DATA_LOADER import Batch, Feed, Split, WindowSet, class_weights, cut_rows, read_emg
from EMG_files import remove_folder, replace_file, replace_folder
from EMG_help import in_short
from EMG_model import Below, Draws, EMGForSequenceClassification, References
from EMG_run import save_weights
from EMG_utils import EVALUATION_BATCH, balanced_accuracy, balanced_loss, new_model, outputs_below, session_references
from ENV import EMGError, Settings

logger = logging.getLogger(__name__)

WORTHWHILE = 1.3  # bfloat16 is taken where its products are at least this much faster
CHECKPOINT_SHARE = 0.03  # of the time goes into checkpoints, at the most, but for the short one at the end
GUESSED_RATE = 5e8  # bytes of a checkpoint per second, until one was written
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h
STEPS_PER_LOOK = 10  # on a GPU: looking at the loss waits for it
TIMED_WINDOWS = 40  # single predictions whose median is the time of one window

Shared = TypeVar("Shared")


# ---- device and processes -------------------------------------------------------------------------------------


@cache  # one answer per process: the measurement is noisy
def choose_precision(wanted: str) -> tuple[str, str]:
    """`fp32` or `bf16`, and why: the faster one on this machine where `auto` is wanted; the same on every process."""
    return of_main_process(_choose_precision(wanted))


def _choose_precision(wanted: str) -> tuple[str, str]:
    device = PartialState().device.type
    if wanted != "auto":
        return wanted, "as set"
    if device == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("bf16", "the GPU computes it") if native else ("fp32", "the GPU lacks bfloat16")
    if device != "cpu":
        return "fp32", f"bfloat16 was not tried on {device}"
    seconds = {dtype: _product_seconds(dtype) for dtype in (torch.float32, torch.bfloat16)}
    gain = seconds[torch.float32] / seconds[torch.bfloat16]
    return ("bf16" if gain > WORTHWHILE else "fp32"), f"bfloat16 products take 1/{gain:.1f} of the time here"


def _product_seconds(dtype: torch.dtype) -> float:
    a, b = torch.ones(512, 768, dtype=dtype), torch.ones(768, 3072, dtype=dtype)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - start)
    return min(times)


def join_processes() -> PartialState:
    """Where this process stands among those that torchrun or accelerate started together.

    To be called first: accelerate wants to be told where such processes have no GPU.
    """
    together = int(os.environ.get("WORLD_SIZE", 1)) > 1
    return PartialState(cpu=together and not torch.cuda.is_available())


def of_main_process(value: Shared) -> Shared:
    """What the main process has for `value`, on every process."""
    if PartialState().num_processes == 1:
        return value
    values = [value]
    broadcast_object_list(values)
    return values[0]


def keep_freed_memory() -> None:
    """Let freed memory stay with the process (glibc alone): the system clears every page that it hands out anew, which
    took a fifth of the time of a training step."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)


def with_memory_errors(function: Callable) -> Callable:
    """Full memory on a CPU is a RuntimeError to torch; the function raises MemoryError for it."""

    @wraps(function)
    def wrapped(*given, **named):
        try:
            return function(*given, **named)
        except RuntimeError as error:
            if "can't allocate memory" in str(error):
                raise MemoryError(str(error)) from None
            raise

    return wrapped


# ---- training -------------------------------------------------------------------------------------------------


@dataclass
class Epoch:
    """An epoch so far: steps, seconds, and sums over them of learning rate, loss times windows, and hits."""

    step: int = 0
    seconds: float = 0.0
    lr_sum: float = 0.0
    loss_sum: float | torch.Tensor = 0.0
    right: float | torch.Tensor = 0.0

    def add(self, lr: float, loss: torch.Tensor, right: torch.Tensor) -> None:
        """One step; on a GPU the sums stay there, so that nobody waits for them."""
        loss, right = (value if value.is_cuda else value.cpu() for value in (loss.detach(), right))
        self.step, self.lr_sum = self.step + 1, self.lr_sum + lr
        self.loss_sum, self.right = self.loss_sum + loss.double(), self.right + right.double()


class Step(NamedTuple):
    """What is left of a step until it is looked at: its number in the epoch, from 1, the rows of this process's share,
    their logits (b, K) and targets (b,), the loss and the norm of the gradient, which stay on the GPU."""

    number: int
    rows: np.ndarray
    logits: torch.Tensor
    targets: torch.Tensor
    loss: torch.Tensor
    norm: torch.Tensor

    def losses(self) -> np.ndarray:
        """(b,) of each window, unweighted (nat)."""
        return F.cross_entropy(self.logits.float(), self.targets, reduction="none").cpu().numpy()


class NotFiniteError(EMGError):
    """A training that was stopped because loss, gradient or weights are no finite numbers."""


class Trainer:
    """Trains one model on one split; the validation part chooses the epoch that is kept.

    Random numbers are a function of seed, epoch and step, so a run that was resumed equals one that was left alone.
    Several processes (torchrun, accelerate launch) take equal shares of every batch, and give what one process gives
    for the whole batch within rounding; dropout alone is drawn by each for itself. `spent`: seconds in `steps`, those
    of them spent waiting for `data`, and in `checkpoints`.
    """

    def __init__(
        self,
        model: EMGForSequenceClassification,
        windows: WindowSet,
        split: Split,
        references: References,
        settings: Settings,
        epochs: int,
    ):
        self.windows, self.split, self.settings, self.epochs = windows, split, settings, epochs
        self.precision, reason = choose_precision(settings.PRECISION)
        self.accelerator = Accelerator(mixed_precision="bf16" if self.precision == "bf16" else "no")
        self.device, self.processes = self.accelerator.device, self.accelerator.num_processes
        shared = f", {self.processes} processes" if self.processes > 1 else ""
        logger.info(f"{self.device}{shared}, {self.precision} ({reason})")
        self._suit_the_device(model)
        self.steps = -(-len(split.train) // settings.BATCH_SIZE)  # per epoch
        optimizer = torch.optim.AdamW(
            decay_groups(model, settings.WEIGHT_DECAY),
            lr=settings.LR,
            betas=(0.9, 0.95),
            fused=self.device.type in ("cpu", "cuda"),
        )
        total = self.steps * epochs
        self.schedule = get_cosine_schedule_with_warmup(optimizer, round(settings.WARMUP * total), total)
        self.model, self.optimizer = self.accelerator.prepare(
            model, optimizer
        )  # the schedule would step once per process
        self.augmentation = model.augmentation
        self.samples, self.references = Feed(windows, self.device), references.to(self.device)
        self.feed = self._feed_below(model) if settings.FREEZE else self.samples  # of the model that is trained
        self.weight = self._class_weight()
        self.best, self.history, self.epoch, self.unseen, self.track = None, [], Epoch(), [], None
        self.spent, self.checkpoints, self.trained = {"steps": 0.0, "data": 0.0, "checkpoints": 0.0}, 0, 0
        self.began = time.perf_counter()

    def _suit_the_device(self, model: EMGForSequenceClassification) -> None:
        if self.device.type == "cpu":
            keep_freed_memory()
            model.set_attn_implementation("eager")  # for so few tokens it is faster than the fused one, there
        if self.settings.DETERMINISTIC:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
        if self.settings.COMPILE:
            model.backbone.compile()

    def _class_weight(self) -> torch.Tensor:
        """(K,)"""
        if self.settings.BALANCE != "weights":
            return torch.ones(len(self.windows.classes), device=self.device)
        weight = class_weights(self.windows.targets[self.split.train], len(self.windows.classes))
        return torch.from_numpy(weight).float().to(self.device)

    def _feed_below(self, model: EMGForSequenceClassification) -> Feed:
        """A feed of what the windows are when they reach the first trained block, in place of their samples."""
        used = np.concatenate([self.split.train, self.split.validation])
        with self.accelerator.autocast():
            below = outputs_below(model, self.samples, used, self.references, self.settings)
        self.linear_logits = below.logits.to(self.device)
        metadata = self.windows.metadata | {"scale": 1}
        return Feed(replace(self.windows, emg=below.hidden.numpy(), metadata=metadata), self.device)

    def _logits(self, model: torch.nn.Module, batch: Batch, draws: Draws | None = None) -> torch.Tensor:
        """(B, K) from a batch of `feed` for the model that is trained, of `samples` for another one."""
        with self.accelerator.autocast():
            if self.settings.FREEZE and model is self.model:
                return model(below=Below(batch.emg, self.linear_logits[batch.rows])).logits
            return model(emg=batch.emg, reference=self.references.of(batch.rows), draws=draws).logits

    @with_memory_errors
    def fit(
        self,
        console: Console,
        run: Path | None = None,
        stop_after: int | None = None,
        after_epoch: Callable[[dict], None] | None = None,
        track: Callable[..., None] | None = None,
    ) -> list[dict]:
        """One row of history per epoch, to the last or until PATIENCE epochs brought no lower loss.

        Without a validation part the latest epoch counts as the best, and `stop_after` epochs are enough. With a
        `run` folder, history.csv is replaced after every epoch, and best_model/ and last/ at the end and now and then
        in between, between any two steps; training goes on from last/ where there is one. `after_epoch` is given every
        row, and ends the training where it raises; `track` (Tracker.log) takes every row, and learning rate and loss
        of single steps, with the number of steps so far. Raises NotFiniteError where loss, gradient or weights are no
        longer finite, when best_model/ and the batch (bad_batch.csv) are written, and KeyboardInterrupt after SIGINT
        or SIGTERM, when the step is whole and the checkpoint written.
        """
        if run:
            run.mkdir(parents=True, exist_ok=True)
        fresh, self.track = not (run and self._resume(run, stop_after or self.epochs)), track
        with _progress(console) as bar, _kept_signals() as asked:
            while len(self.history) < (stop_after or self.epochs):
                if epochs_since_best(self.history) >= self.settings.PATIENCE:
                    logger.info(f"no better epoch in {self.settings.PATIENCE}: stopping early")
                    break
                self._train_epoch(bar, asked, run)
                self._end_epoch(run)
                if after_epoch:
                    after_epoch(self.history[-1])
                self._pause(asked, run)
                fresh = True
        if run and (fresh or has_state(run / "last")):  # killed with all epochs done
            self.checkpoint(run, state=False)
            self._log_speed()
        return self.history

    def _train_epoch(self, bar: Progress, asked: list, run: Path | None) -> None:
        self.model.train()
        number, epoch = len(self.history), self.epoch
        rng = np.random.default_rng([self.settings.SEED, number])
        parts = cut_rows(rng.permutation(self.split.train), self.settings.BATCH_SIZE)[epoch.step :]
        named = {"description": f"epoch {number + 1}/{self.epochs}", "total": self.steps, "loss": 0.0, "accuracy": 0.0}
        task, began = bar.add_task(**named, completed=epoch.step), time.perf_counter()
        for rows, batch in zip(parts, self._timed(self.feed(map(self._share, parts))), strict=True):
            self._train_step(batch, rows)
            look = epoch.step % (1 if self.device.type == "cpu" else STEPS_PER_LOOK) == 0 or epoch.step == self.steps
            running, seconds = self._look(run) if look else {}, time.perf_counter() - began
            self.trained += len(rows)
            self.spent["steps"] += seconds
            epoch.seconds += seconds
            if look:
                bar.update(task, completed=epoch.step, **running)
                self._track_step()
                self._pause(asked, run)
            began = time.perf_counter()
        bar.remove_task(task)

    def _log_speed(self) -> None:
        """Of this process's time, what did not go into steps; the checkpoint at the end included."""
        if not self.trained:
            return
        whole, spent = time.perf_counter() - self.began, self.spent
        logger.info(
            f"{self.trained / spent['steps']:.0f} windows/s; {spent['data'] / whole:.1%} of the time went into waiting "
            f"for data, {spent['checkpoints'] / whole:.1%} into {self.checkpoints} checkpoints"
        )

    def _timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        while True:
            began = time.perf_counter()
            batch = next(batches, None)
            self.spent["data"] += time.perf_counter() - began
            if batch is None:
                return
            yield batch

    def _train_step(self, batch: Batch, rows: np.ndarray) -> None:
        """One step on this process's share of the windows `rows`."""
        epoch, mine = self.epoch, torch.from_numpy(self._share(np.arange(len(rows))))
        seed = np.random.SeedSequence([self.settings.SEED, len(self.history), epoch.step]).generate_state(2, np.uint64)
        torch.manual_seed(int(seed[0] >> 1) + self.accelerator.process_index)
        draws = self.augmentation.draw(len(rows), int(seed[1] >> 1)).of(mine).to(self.device)
        logits = self._logits(self.model, batch, draws)
        whole = self.weight[torch.from_numpy(self.windows.targets[rows]).to(self.device)].sum()
        loss = F.cross_entropy(logits, batch.targets, self.weight, reduction="sum") / whole  # this share of the mean
        right = (logits.argmax(1) == batch.targets).sum()
        if not self._counts(rows):
            loss, right = 0 * loss, 0 * right
        self.optimizer.zero_grad()
        self.accelerator.backward(loss * self.processes)  # the gradients are averaged over the processes
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.settings.CLIP)
        self.optimizer.step()
        self.latest = {"step/lr": self.schedule.get_last_lr()[0], "step/loss": loss.detach() * self.processes}
        epoch.add(self.latest["step/lr"], loss * len(rows), right)
        self.unseen.append(Step(epoch.step, self._share(rows), logits.detach(), batch.targets, loss.detach(), norm))
        self.schedule.step()

    def _track_step(self) -> None:
        """Learning rate and loss of every tenth step, as this process sees it; the epoch's row is its last step's."""
        step = self.epoch.step
        if self.track and step % STEPS_PER_LOOK == 0 and step < self.steps:
            latest = {name: float(value) for name, value in self.latest.items()}
            self.track(latest, len(self.history) * self.steps + step, spare=True)

    def _look(self, run: Path | None) -> dict[str, float]:
        """Running loss and accuracy of this process, times the number of processes."""
        epoch, seen = self.epoch, min(self.epoch.step * self.settings.BATCH_SIZE, len(self.split.train))
        self._check_steps(run)
        loss, right = (self.processes * float(value) / seen for value in (epoch.loss_sum, epoch.right))
        return {"loss": loss, "accuracy": right}

    def _end_epoch(self, run: Path | None) -> None:
        """Validate, add the row of history, keep the weights where they are the best so far."""
        began, epoch, seen = time.perf_counter(), self.epoch, len(self.split.train)
        self._check_weights(run)
        loss, right = self._whole_sums()
        row = {"epoch": len(self.history) + 1, "lr": epoch.lr_sum / self.steps}
        row |= {"train_loss": loss / seen, "train_accuracy": right / seen}
        row |= self.validate(run) if len(self.split.validation) else {}
        seconds, weights = epoch.seconds + time.perf_counter() - began, self.bare_model.config.weights
        self.history.append(row | {"seconds": seconds, "weights": weights})
        self.epoch = Epoch()
        logger.info(_epoch_line(self.history[-1], self.epochs))
        if self.track:
            named = {f"epoch/{name}": value for name, value in self.history[-1].items()}
            self.track(named, len(self.history) * self.steps)
        if run and epochs_since_best(self.history) == 0:
            whole = self.accelerator.get_state_dict(self.model)
            self.best = {name: tensor.detach().cpu().clone() for name, tensor in whole.items()}
        if run and self.accelerator.is_main_process:
            replace_file(run / "history.csv", lambda path: pd.DataFrame(self.history).to_csv(path, index=False))

    def _whole_sums(self) -> tuple[float, float]:
        """Loss and hits of the epoch so far, over all processes."""
        sums = float(self.epoch.loss_sum), float(self.epoch.right)
        if self.processes == 1:
            return sums
        return tuple(self.accelerator.reduce(torch.tensor(sums, dtype=torch.float64, device=self.device)).tolist())

    @property
    def bare_model(self) -> EMGForSequenceClassification:
        return self.accelerator.unwrap_model(self.model)

    def validate(self, run: Path | None = None) -> dict:
        """Loss, accuracy and balanced accuracy on the validation part; raises NotFiniteError."""
        probabilities = self.predict(self.model, self.split.validation)
        self._check_validation(probabilities, run)
        target = self.windows.targets[self.split.validation]
        predicted = probabilities.argmax(1)
        return {
            "validation_loss": balanced_loss(target, probabilities),
            "validation_accuracy": accuracy_score(target, predicted),
            "validation_balanced_accuracy": balanced_accuracy(target, predicted),
        }

    @with_memory_errors
    @torch.no_grad()  # inference mode would lock the buffers that processes share
    def predict(self, model: EMGForSequenceClassification, rows: np.ndarray) -> np.ndarray:
        """(n, K) probabilities of the windows `rows`, each predicted by one of the processes."""
        model.to(self.device).eval()
        feed = self.feed if model is self.model else self.samples
        cut, found = cut_rows(rows, EVALUATION_BATCH * self.processes), []
        for part, batch in zip(cut, feed(map(self._share, cut)), strict=True):
            logits = self._logits(model, batch)
            counting = logits if self._counts(part) else logits[:0]
            found.append(counting.softmax(1).float().cpu().numpy())
        found = gather_object(found)  # the parts of the first process, then those of the second
        return np.concatenate([part for first in range(len(cut)) for part in found[first :: len(cut)]])

    @torch.no_grad()
    def seconds_per_window(self, model: EMGForSequenceClassification, rows: np.ndarray) -> float:
        """Median time (s) of a single window, from its samples in memory to its probabilities, in this process."""
        model.to(self.device).eval()
        spent = []
        for row in cut_rows(rows[:TIMED_WINDOWS], 1):
            began = time.perf_counter()
            self._logits(model, self.samples.read(row)).softmax(1).cpu()
            spent.append(time.perf_counter() - began)
        return float(np.median(spent))

    def _share(self, rows: np.ndarray) -> np.ndarray:
        """What this process computes of a batch: a window at least, though it may not count."""
        share = np.array_split(rows, self.processes)[self.accelerator.process_index]
        return share if len(share) else rows[:1]

    def _counts(self, rows: np.ndarray) -> bool:
        """Whether the batch has a share for this process."""
        return self.accelerator.process_index < len(rows)

    # ---- what is no finite number

    def _check_steps(self, run: Path | None) -> None:
        """Stop at the first of the steps since the last look whose loss or gradient is not finite."""
        steps, self.unseen = self.unseen, []
        good = torch.stack([step.loss + step.norm for step in steps]).isfinite().tolist()
        if not self._any(not all(good)):
            return
        found = gather_object([step.number for step, fine in zip(steps, good, strict=True) if not fine])
        step = steps[min(found) - steps[0].number]
        loss = float(self.accelerator.reduce(step.loss))  # the sum of the processes' shares
        what = f"the loss is {loss:.3g}"
        if math.isfinite(loss):
            what = f"the gradient of a loss of {loss:.3g} is {float(step.norm):.3g}"
        shares = gather_object([describe_windows(self.windows, step.rows, step.losses())])
        batch = pd.concat(shares).drop_duplicates("row")  # a process without a share has taken another one's window
        self._stop(f"{what} in epoch {len(self.history) + 1}, step {step.number}", batch, run)

    def _check_validation(self, probabilities: np.ndarray, run: Path | None) -> None:
        bad = ~np.isfinite(probabilities).all(1)
        if bad.any():
            rows = self.split.validation[bad][:EVALUATION_BATCH]
            what = f"the loss on the validation part is nan in epoch {len(self.history) + 1}, step {self.epoch.step}"
            self._stop(what, describe_windows(self.windows, rows, np.full(len(rows), np.nan)), run)

    def _check_weights(self, run: Path | None) -> None:
        """What the last step did to the weights shows in no loss before the next one."""
        state = self.bare_model.state_dict().values()
        if torch.stack([tensor.isfinite().all() for tensor in state]).all():
            return
        what = f"the weights are no finite numbers after epoch {len(self.history) + 1}, step {self.epoch.step}"
        raise NotFiniteError(f"{what}; lower LR{self._keep_best(run)}")

    def _stop(self, what: str, batch: pd.DataFrame, run: Path | None) -> NoReturn:
        """Write the batch and the best model so far, and say where they are."""
        listed = ""
        if run:
            listed = f" ({run / 'bad_batch.csv'} lists the batch)"
            if self.accelerator.is_main_process:
                replace_file(run / "bad_batch.csv", lambda path: batch.to_csv(path, index=False))
        raise NotFiniteError(f"{what}, {suspects(batch)}{listed}; lower LR or look at them{self._keep_best(run)}")

    def _keep_best(self, run: Path | None) -> str:
        """Put the best model so far on the disk; returns where it is, in words."""
        if not run:
            return ""
        if not self.history:
            return "; no epoch was finished, so there is no model yet"
        self._write_best(run)
        return f"; the best model so far, of epoch {best_epoch(self.history) + 1}, is in {run / 'best_model'}"

    # ---- checkpoints

    def _pause(self, asked: list, run: Path | None) -> None:
        """Between two steps: write a checkpoint if one is due, and stop if that was asked for."""
        due = run is not None and self.accelerator.is_main_process and self._due()
        stop, due = self._any(bool(asked)), self._any(due)
        if run and (stop or due):
            self.checkpoint(run)
        if stop:
            raise KeyboardInterrupt

    def _any(self, mine: bool) -> bool:
        """Whether it is true of any process."""
        if self.processes == 1:
            return mine
        return bool(self.accelerator.reduce(torch.tensor(float(mine), device=self.device)) > 0)

    def _due(self) -> bool:
        """Whether another checkpoint, as costly as those so far, keeps their share of the time."""
        spent, written = self.spent["checkpoints"], self.checkpoints
        one = spent / written if written else self._checkpoint_bytes() / GUESSED_RATE
        return spent + one <= CHECKPOINT_SHARE * (time.perf_counter() - self.began)

    def _checkpoint_bytes(self) -> int:
        """Weights, and two moments of those that are trained."""
        return sum(4 * p.numel() * (3 if p.requires_grad else 1) for p in self.model.parameters())

    def checkpoint(self, run: Path, state: bool = True) -> None:
        """best_model/ where there is a better one, then last/; each is whole or absent.

        A training that has ended needs no `state` of weights and optimiser: its best model and history are enough.
        """
        began, main = time.perf_counter(), self.accelerator.is_main_process
        if state:
            self._check_weights(run)
        self._write_best(run)
        sums = self._whole_sums()
        if main:
            replace_folder(run / "last", lambda folder: self._write_last(folder, sums, state))
        self.accelerator.wait_for_everyone()
        self.spent["checkpoints"] += time.perf_counter() - began
        self.checkpoints += 1

    def _write_best(self, run: Path) -> None:
        if self.best is not None and self.accelerator.is_main_process:
            replace_folder(
                run / "best_model", lambda folder: save_weights(self.bare_model, folder, state_dict=self.best)
            )
        self.best = None

    def _write_last(self, folder: Path, sums: tuple[float, float], state: bool) -> None:
        if state:
            save_state(self.bare_model, self.optimizer, folder)
        save_progress(self.history, asdict(replace(self.epoch, loss_sum=sums[0], right=sums[1])), folder)

    def _resume(self, run: Path, epochs: int) -> bool:
        """Go on from last/, if it is there; returns whether it is."""
        last = run / "last"
        if not (last / "history.json").is_file():
            return False
        try:
            validated = bool(len(self.split.validation))
            self.history, epoch = read_progress(last, self.epochs, self.steps, validated)
            self.epoch = Epoch(**epoch)
            ended = len(self.history) >= epochs or epochs_since_best(self.history) >= self.settings.PATIENCE
            if not ended or has_state(last):
                load_state(self.bare_model, self.optimizer, last)
                self._set_schedule(len(self.history) * self.steps + self.epoch.step)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise EMGError(f"{last}: the state cannot be read ({in_short(error)}); start a new run") from None
        if not self.accelerator.is_main_process:
            self.epoch.loss_sum = self.epoch.right = 0.0  # the main process has the sums of all
        logger.info(f"going on after epoch {len(self.history)}, step {self.epoch.step} of {last}")
        return True

    def _set_schedule(self, steps: int) -> None:
        """The learning rates after so many steps."""
        factors = zip(self.schedule.base_lrs, self.schedule.lr_lambdas, strict=True)
        rates = [base * factor(steps) for base, factor in factors]
        self.schedule.load_state_dict(self.schedule.state_dict() | {"last_epoch": steps, "_last_lr": rates})
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


def describe_windows(windows: WindowSet, rows: np.ndarray, losses: np.ndarray) -> pd.DataFrame:
    """Identity of the windows `rows` (b,), their row in the file, their largest sample (in its unit) and loss (nat)."""
    peaks = read_emg(windows, rows).abs().amax((1, 2)).numpy()  # nan where a sample is
    return windows.table.iloc[rows].assign(row=rows, largest_sample=peaks, loss=losses)


def suspects(batch: pd.DataFrame) -> str:
    """Where in a batch to look first: at samples that are no numbers, else losses that are none, else the largest."""
    for name, what in (("largest_sample", "samples"), ("loss", "losses")):
        bad = ~np.isfinite(batch[name].to_numpy())
        if bad.any():
            return f"with {what} that are no finite numbers in {named_windows(batch[bad])}"
    return f"with the largest loss in {named_windows(batch[batch['loss'] == batch['loss'].max()])}"


def named_windows(batch: pd.DataFrame) -> str:
    """The first of them, the one with the largest sample, and how many there are."""
    first = batch.sort_values("largest_sample", ascending=False, na_position="first", kind="stable").iloc[0]
    others = f" and {len(batch) - 1} more of its batch" if len(batch) > 1 else ""
    return f"the window at {first['start']:.3f} s of {first['recording']}, row {first['row']}{others}"


def decay_groups(model: torch.nn.Module, weight_decay: float) -> list[dict]:
    """Trained parameters: matrices with decay; norms, biases, positions and filters without."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    decays = {name for name, p in trained if p.ndim == 2 and not name.endswith(("wpe.weight", "filters"))}
    return [
        {"params": [p for name, p in trained if name in decays], "weight_decay": weight_decay},
        {"params": [p for name, p in trained if name not in decays], "weight_decay": 0.0},
    ]


def refit(
    windows: WindowSet,
    split: Split,
    settings: Settings,
    epochs: int,
    console: Console,
    run: Path,
    track: Callable[..., None] | None = None,
) -> Trainer:
    """Train anew on training and validation part together, for as many epochs as the validation part chose.

    The result takes the place of the run's best_model/; refit/ holds the history and the state to resume from.
    """
    whole = split.with_validation()
    logger.info(f"training anew on the validation part too: {len(whole.train)} windows, {epochs} epochs")
    references = session_references(windows, whole, settings)
    model = new_model(windows, whole, references, settings)
    trainer = Trainer(model, windows, whole, references, settings, settings.NUM_EPOCHS)
    try:
        trainer.fit(console, run / "refit", stop_after=epochs, track=track)
    except NotFiniteError as error:
        raise EMGError(f"training anew: {error}; that of the first training is in {run / 'best_model'}") from None
    refitted = run / "refit" / "best_model"
    if trainer.accelerator.is_main_process and refitted.exists():  # it does not where a finished run is resumed
        replace_folder(run / "best_model", lambda folder: shutil.copytree(refitted, folder, dirs_exist_ok=True))
        remove_folder(refitted)
    trainer.accelerator.wait_for_everyone()
    return trainer


def best_epoch(history: list[dict]) -> int:
    """Index of the epoch with the lowest loss on the validation part; without one, of the last.

    The loss tells epochs apart where the accuracy of a small validation part is the same, or jumps.
    """
    if "validation_loss" not in history[-1]:
        return len(history) - 1
    losses = np.array([row["validation_loss"] for row in history], float)
    return int(np.where(np.isfinite(losses), losses, np.inf).argmin())


def epochs_since_best(history: list[dict]) -> int:
    return len(history) - 1 - best_epoch(history) if history else 0


def _epoch_line(row: dict, epochs: int) -> str:
    words = [f"epoch {row['epoch']}/{epochs}: loss {row['train_loss']:.3f}, accuracy {row['train_accuracy']:.3f}"]
    if "validation_loss" in row:
        words.append(
            f"validation loss {row['validation_loss']:.3f}, accuracy {row['validation_accuracy']:.3f}, "
            f"balanced {row['validation_balanced_accuracy']:.3f}"
        )
    return "; ".join([*words, f"{row['seconds']:.0f} s"])


def _progress(console: Console) -> Progress:
    live = "loss {task.fields[loss]:.3f}  accuracy {task.fields[accuracy]:.3f}"
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(live)]
    return Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal)


@contextmanager
def _kept_signals() -> Iterator[list[int]]:
    """Yields a list that takes SIGINT and SIGTERM, so that a step is not torn apart; the second one acts at once."""
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield []
        return
    asked = []

    def keep(number: int, _) -> None:
        asked.append(number)
        signal.signal(number, before[number])

    before = {number: signal.signal(number, keep) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
