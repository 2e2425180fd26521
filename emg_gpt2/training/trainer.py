"""The state of a training: model, optimiser, schedule, batches, history; checks and checkpoints between the steps.

The loop itself is `fit` in EMG_utils.py. Random numbers are a function of seed, epoch and step, so a resumed training
ends with the same weights as one that was never stopped. Several processes (torchrun, accelerate launch) take equal
shares of every batch; their result is that of one process, within rounding, but for dropout, which each draws alone.
"""

import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from rich.progress import Progress
from transformers import get_cosine_schedule_with_warmup

from EMG_DATA_LOADER import class_weights, cut_rows
from emg_gpt2.base.files import replace_file
from emg_gpt2.model.augment import Augmentation, Draws
from emg_gpt2.model.backbone import POSITIONS
from emg_gpt2.model.model import EMGForSequenceClassification
from emg_gpt2.results.run import write_validation
from emg_gpt2.settings import Settings
from emg_gpt2.training.adapt import AugmentedModel, UpperModel, frozen_blocks, run_lower_once
from emg_gpt2.training.checkpoint import (
    Checkpoints,
    has_progress,
    has_state,
    load_state,
    read_progress,
    readable,
)
from emg_gpt2.training.crossed import crossed
from emg_gpt2.training.device import (
    device_line,
    has_share,
    is_main_process,
    make_accelerator,
    on_any_process,
    own_share,
    sum_over_processes,
)
from emg_gpt2.training.finite import Step, check_steps, check_weights
from emg_gpt2.training.history import EpochSums, best_epoch, epoch_line, epochs_since_best
from emg_gpt2.training.task import Task
from emg_gpt2.training.tracker import Tracker
from emg_gpt2.windows.feed import Batch, Feed
from emg_gpt2.windows.sentences import Sentences, draw_sentences, single_windows

logger = logging.getLogger(__name__)

ALONE = 0.25  # share of the steps of a model with context whose windows have none
STEPS_PER_LOOK = 10  # on a GPU, because reading a loss waits for all steps before it


class TrainingBatch(NamedTuple):
    """whole: the batch; own: this process's share of it; counts: whether it has one.

    told (E, N), judged (b,), draws: of the share's windows; what they are told, which count, their augmentation.
    group: of the sessions (`crossed`), or None
    """

    whole: Sentences
    own: Batch
    counts: bool
    told: torch.Tensor
    judged: torch.Tensor
    draws: Draws
    group: int | None


class Trainer:
    """Everything that one training needs beside its loop; `asked` holds the signals that ask for its end."""

    def __init__(
        self,
        model: EMGForSequenceClassification,
        task: Task,
        settings: Settings,
        epochs: int,
        run: Path | None = None,
        tracker: Tracker | None = None,
        last: int = 0,
    ):
        self.model, self.task, self.settings, self.epochs = model, task, settings, epochs
        self.last = last or epochs  # epoch to train, at the most
        self.run, self.tracker = run, tracker
        if run:
            run.mkdir(parents=True, exist_ok=True)
        self.accelerator = make_accelerator(settings)
        logger.info(device_line(settings))
        self.device, self.processes = self.accelerator.device, self.accelerator.num_processes
        if self.device.type == "cpu":
            model.set_attn_implementation("eager")  # 2 to 7 % of a step: the fused one is for many tokens
        if settings.COMPILE:
            model.backbone.compile()
        self.augmentation = Augmentation(model.config)
        self.samples, self.references = Feed(task.windows, self.device), task.references.to(self.device)
        length = settings.CONTEXT + 1
        self.sentences_per_step = max(1, settings.BATCH_SIZE // length)
        self.steps = -(-len(task.split.train) // (self.sentences_per_step * length))  # per epoch
        self.groups, self.paths = crossed(model, task, settings.SEED) if settings.CONTEXT else ([], [])
        self._prepare(settings)
        self.class_weight = self._class_weight()
        self.history, self.sums, self.unchecked = [], EpochSums.zero(), []
        self.checkpoints = Checkpoints(run, model, self.optimizer)
        self.asked, self.validated = [], None  # labels predicted for the validation part after the last epoch
        self.spent, self.trained, self.began = {"steps": 0.0, "data": 0.0}, 0, time.perf_counter()  # s, windows

    def _prepare(self, settings: Settings) -> None:
        """Make the module that is trained, its feed, optimiser and schedule."""
        optimizer = torch.optim.AdamW(
            decay_groups(self.model, settings.WEIGHT_DECAY),
            lr=settings.LR,
            betas=(0.9, 0.95),
            fused=self.device.type in ("cpu", "cuda"),
        )
        total = self.steps * self.epochs
        self.schedule = get_cosine_schedule_with_warmup(optimizer, round(settings.WARMUP * total), total)
        self.feed, self.linear_logits = self.samples, None
        module = AugmentedModel(self.model, self.augmentation, self.paths)
        if settings.FREEZE:
            self.feed, self.linear_logits = self._feed_of_lower()
            module = UpperModel(self.model, frozen_blocks(self.model, settings))
        # The schedule is not prepared: it would step once per process.
        self.module, self.optimizer = self.accelerator.prepare(module, optimizer)

    def _feed_of_lower(self) -> tuple[Feed, torch.Tensor]:
        """A feed of the windows as they reach the first trained block, and the linear path's logits (n, K)."""
        on_device = replace(self.task, references=self.references)
        lower = run_lower_once(self.model, self.samples, on_device, self.settings, self.accelerator)
        windows = self.task.windows
        stored = replace(windows, emg=lower.hidden.numpy(), metadata=windows.metadata | {"scale": 1})
        return Feed(stored, self.device), lower.linear_logits.to(self.device)

    def _class_weight(self) -> torch.Tensor:
        """(K,) the weight of each class in the loss."""
        if self.settings.BALANCE != "weights" or self.settings.CONTEXT:  # sentences have a random mix of gestures
            return torch.ones(self.task.classes, device=self.device)
        weight = class_weights(self.task.windows.targets[self.task.split.train], self.task.classes)
        return torch.from_numpy(weight).float().to(self.device)

    # ---- an epoch

    @property
    def epoch(self) -> int:
        """Number of the epoch that is under way, from 1."""
        return len(self.history) + 1

    @property
    def where(self) -> str:
        """Epoch and step, for messages."""
        return f"epoch {self.epoch}, step {self.sums.step}"

    def batches(self, bar: Progress) -> Iterator[TrainingBatch]:
        """The rest of the epoch's batches."""
        parts = self._sentences()
        shares = [Sentences(*map(own_share, part)) for part, _ in parts]
        shown = {"total": self.steps, "completed": self.sums.step, "loss": 0.0, "accuracy": 0.0}
        self.bar, self.shown = bar, bar.add_task(f"epoch {self.epoch}/{self.last}", **shown)
        self.clock = time.perf_counter()  # where the next step's time begins
        read = self._timed(self.feed(share.rows.ravel() for share in shares))
        for (part, group), share, own in zip(parts, shares, read, strict=True):
            told, targets, judged = (
                torch.from_numpy(one).to(self.device)
                for one in (share.told, share.targets.ravel(), share.judged.ravel())
            )
            counts, draws = has_share(part.rows), self._sample(part.rows)
            yield TrainingBatch(part, own._replace(targets=targets), counts, told, judged, draws, group)
        bar.remove_task(self.shown)

    def _sentences(self) -> list[tuple[Sentences, int | None]]:
        """The rest of the epoch's batches: windows by themselves, shuffled anew, or sentences that are drawn anew, and
        the group of their sessions."""
        seed, settings = [self.settings.SEED, len(self.history)], self.settings
        if settings.CONTEXT:
            rngs = [np.random.default_rng([*seed, step]) for step in range(self.sums.step, self.steps)]
            return [self._draw(rng) for rng in rngs]
        order = np.random.default_rng(seed).permutation(self.task.split.train)
        parts = cut_rows(order, settings.BATCH_SIZE)[self.sums.step :]
        return [(single_windows(self.task.windows, rows), None) for rows in parts]

    def _draw(self, rng: np.random.Generator) -> tuple[Sentences, int | None]:
        """The sentences of a step, of one group of sessions; in some steps they are of one window."""
        length, group = self.settings.CONTEXT + 1, int(rng.integers(len(self.groups)))
        size = (self.sentences_per_step * length, 1) if rng.random() < ALONE else (self.sentences_per_step, length)
        return draw_sentences(self.groups[group], *size, rng), group if self.paths else None

    @property
    def seen(self) -> int:
        """Windows of the epoch so far."""
        drawn = self.sums.step * self.sentences_per_step * (self.settings.CONTEXT + 1)
        return drawn if self.settings.CONTEXT else min(drawn, len(self.task.split.train))

    def _timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches; the time that they take to arrive is added to `spent`."""
        while True:
            began = time.perf_counter()
            batch = next(batches, None)
            self.spent["data"] += time.perf_counter() - began
            if batch is None:
                return
            yield batch

    def _sample(self, rows: np.ndarray) -> Draws:
        """Seed torch for the step; returns the augmentation of this process's share of the batch."""
        step = [self.settings.SEED, len(self.history), self.sums.step]
        dropout, augmentation = (int(word >> 1) for word in np.random.SeedSequence(step).generate_state(2, np.uint64))
        torch.manual_seed(dropout + self.accelerator.process_index)
        mine = torch.from_numpy(own_share(np.arange(rows.size).reshape(rows.shape)).ravel())
        return self.augmentation.sample(len(rows), augmentation, rows.shape[1]).of(mine).to(self.device)

    def logits(
        self,
        batch: Batch,
        told: torch.Tensor | None = None,
        remembered: int | None = None,
        draws: Draws | None = None,
        group: int | None = None,
    ) -> torch.Tensor:
        """(B, K) of a batch of `feed`; told, remembered: see `classify`; draws, group: see `AugmentedModel`."""
        with self.accelerator.autocast():
            if self.linear_logits is not None:  # FREEZE: there is no augmentation
                return self.module(batch.emg, self.linear_logits[batch.rows])
            return self.module(batch.emg, self.references.of(batch.rows), told, remembered, draws, group)

    def total_weight(self, batch: TrainingBatch) -> torch.Tensor:
        """Sum of the class weights of the whole batch, the shares of all processes together."""
        targets = batch.whole.targets[batch.whole.judged]
        return self.class_weight[torch.from_numpy(targets).to(self.device)].sum()

    def end_step(self, batch: TrainingBatch, logits: torch.Tensor, loss: torch.Tensor, norm: torch.Tensor) -> None:
        """Add the step to the sums of the epoch; check it, show it, and stop or write a checkpoint if that is due.

        loss: this process's share of the batch's mean; norm: of the gradient.
        """
        rows, share_judged = batch.whole.rows, batch.whole.judged.mean()  # 1 for windows by themselves
        right = (logits.argmax(1) == batch.own.targets)[batch.judged].sum() * batch.counts / share_judged
        lr = self.schedule.get_last_lr()[0]
        self.sums.add(lr, loss.detach() * rows.size, right)
        own = own_share(rows).ravel()
        self.unchecked.append(Step(self.sums.step, own, logits.detach(), batch.own.targets, loss.detach(), norm))
        self.schedule.step()
        last, every = self.sums.step == self.steps, 1 if self.device.type == "cpu" else STEPS_PER_LOOK
        look = last or self.sums.step % every == 0
        if look:
            self._look(lr, float(loss.detach()) * self.processes)
        self._count_time(rows.size)
        if look:
            self.pause()
        self.clock = time.perf_counter()

    def _look(self, lr: float, loss: float) -> None:
        """Check the steps since the last look; show and log the running figures, as this process sees them."""
        steps, self.unchecked = self.unchecked, []
        check_steps(steps, self.epoch, self.task.windows, self.run)
        running = [self.processes * float(value) / self.seen for value in (self.sums.loss_sum, self.sums.right)]
        self.bar.update(self.shown, completed=self.sums.step, loss=running[0], accuracy=running[1])
        if self.tracker and self.sums.step % STEPS_PER_LOOK == 0 and self.sums.step < self.steps:
            done = len(self.history) * self.steps + self.sums.step
            self.tracker.log({"step/lr": lr, "step/loss": loss}, done, spare=True)

    def _count_time(self, windows: int) -> None:
        """Add the time since the last step, without that of a checkpoint."""
        seconds = time.perf_counter() - self.clock
        self.trained += windows
        self.spent["steps"] += seconds
        self.sums.seconds += seconds

    def check_weights(self) -> None:
        """Raise NotFiniteError where a weight is not finite."""
        check_weights(self.model, self.where)

    def end_epoch(self, validated: dict) -> dict:
        """Add the row of history, and remember the weights where they are the best so far; returns the row."""
        loss, right = sum_over_processes(float(self.sums.loss_sum), float(self.sums.right))
        row = {"epoch": self.epoch, "lr": self.sums.lr_sum / self.steps}
        row |= {"train_loss": loss / self.seen, "train_accuracy": right / self.seen, **validated}
        seconds = self.sums.seconds + time.perf_counter() - self.clock  # the validation included
        row |= {"seconds": seconds, "weights": self.model.config.weights}
        self.history.append(row)
        self.sums = EpochSums.zero()
        logger.info(epoch_line(row, self.last))
        if self.tracker:
            self.tracker.log({f"epoch/{name}": value for name, value in row.items()}, len(self.history) * self.steps)
        if self.run and epochs_since_best(self.history) == 0:
            self.checkpoints.remember_best()
            if self.validated is not None and is_main_process():
                write_validation(self.task.windows, self.task.split.validation, self.validated, self.run)
        if self.run and is_main_process():
            table = pd.DataFrame(self.history)
            replace_file(self.run / "history.csv", lambda path: table.to_csv(path, index=False))
        return row

    # ---- between two steps

    def is_over(self) -> bool:
        """Whether the `last` epoch is done, or PATIENCE epochs have brought no lower loss on the validation part."""
        if len(self.history) >= self.last:
            return True
        patience = self.settings.PATIENCE
        if epochs_since_best(self.history) < patience:
            return False
        logger.info(f"no better epoch in {patience}: stopping early")
        return True

    def pause(self) -> None:
        """Write a checkpoint if one is due, and raise KeyboardInterrupt if a signal asked for an end."""
        due = self.run is not None and is_main_process() and self.checkpoints.due()
        stop, due = on_any_process(bool(self.asked)), on_any_process(due)
        if self.run and (stop or due):
            self.check_weights()
            self._write_checkpoint()
        if stop:
            raise KeyboardInterrupt

    def finish(self, fresh: bool) -> None:
        """Write the last checkpoint, which needs no weights and moments; `fresh`: something was trained."""
        if self.run and (fresh or has_state(self.run / "last")):  # has_state: killed after the last epoch
            self._write_checkpoint(ended=True)
            self._log_speed()
        if self.tracker:
            self.tracker.end_part(len(self.history) * self.steps)

    def _write_checkpoint(self, ended: bool = False) -> None:
        loss_sum, right = sum_over_processes(float(self.sums.loss_sum), float(self.sums.right))
        self.checkpoints.write(self.history, replace(self.sums, loss_sum=loss_sum, right=right), ended)
        self.accelerator.wait_for_everyone()

    def resume(self) -> bool:
        """Go on from the run's checkpoint, if it has one; returns whether it has. Raises EMGError."""
        if not (self.run and has_progress(self.run / "last")):
            return False
        with readable(self.run / "last") as last:
            validated = bool(len(self.task.split.validation))
            self.history, self.sums = read_progress(last, self.epochs, self.steps, validated)
            ended = len(self.history) >= self.last or epochs_since_best(self.history) >= self.settings.PATIENCE
            if not ended or has_state(last):
                load_state(self.model, self.optimizer, last)
                self._set_schedule(len(self.history) * self.steps + self.sums.step)
        if not is_main_process():
            self.sums.loss_sum = self.sums.right = 0.0  # the main process has the sums of all
        logger.info(f"going on after epoch {len(self.history)}, step {self.sums.step} of {last}")
        return True

    def _set_schedule(self, steps: int) -> None:
        """The learning rates after so many steps."""
        factors = zip(self.schedule.base_lrs, self.schedule.lr_lambdas, strict=True)
        rates = [base * factor(steps) for base, factor in factors]
        self.schedule.load_state_dict(self.schedule.state_dict() | {"last_epoch": steps, "_last_lr": rates})
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate

    def write_best(self) -> str:
        """Write the best model so far; returns where it is, as the end of a sentence."""
        if not self.run:
            return ""
        if not self.history:
            return "; no epoch was finished, so there is no model yet"
        self.checkpoints.write_best()
        return f"; the best model so far, of epoch {best_epoch(self.history) + 1}, is in {self.run / 'best_model'}"

    def _log_speed(self) -> None:
        """Log the speed, and the shares of this process's time that waiting for data and checkpoints took."""
        if not self.trained:
            return
        whole, written = time.perf_counter() - self.began, self.checkpoints
        logger.info(
            f"{self.trained / self.spent['steps']:.0f} windows/s; {self.spent['data'] / whole:.1%} of the time went "
            f"into waiting for data, {written.seconds / whole:.1%} into {written.count} checkpoints"
        )


def decay_groups(model: torch.nn.Module, weight_decay: float) -> list[dict]:
    """Trained parameters: matrices with decay; norms, biases, positions and filters without."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    decays = {name for name, p in trained if p.ndim == 2 and not name.endswith((*POSITIONS, "filters"))}
    return [
        {"params": [p for name, p in trained if name in decays], "weight_decay": weight_decay},
        {"params": [p for name, p in trained if name not in decays], "weight_decay": 0.0},
    ]
