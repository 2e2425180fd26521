"""The training loop, the validation loop, the test, metrics, curves and confusion matrix.

emg_gpt2/training/trainer.py holds what a training needs beside its loop: device, batches, checkpoints, history.
"""

import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from rich.progress import Progress
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    precision_recall_fscore_support,
    recall_score,
)
from torch.nn import functional as F  # noqa: N812

from EMG_DATA_LOADER import cut_rows
from emg_gpt2.base.errors import EMGError
from emg_gpt2.base.files import remove_folder, replace_folder
from emg_gpt2.base.interrupts import deferred_signals
from emg_gpt2.base.log import progress
from emg_gpt2.base.versions import versions
from emg_gpt2.model.model import EMGForSequenceClassification
from emg_gpt2.results.figures import (
    BLACK,
    BLUE,
    FEW_CLASSES,
    GREEN,
    GREY,
    ORANGE,
    WIDTH,
    chosen_words,
    draw_chance,
    epoch_axes,
    finish,
    percent,
    plt,
    save,
    show_differences,
)
from emg_gpt2.settings import Settings
from emg_gpt2.training.answers import Answers, answers, predict, usual_context
from emg_gpt2.training.device import (
    is_main_process,
    make_accelerator,
    of_main_process,
    wait_for_everyone,
    with_memory_errors,
)
from emg_gpt2.training.finite import NotFiniteError, check_validation
from emg_gpt2.training.history import Histories, best_epoch
from emg_gpt2.training.new_model import new_model
from emg_gpt2.training.task import Task
from emg_gpt2.training.tracker import Tracker
from emg_gpt2.training.trainer import Trainer, TrainingBatch
from emg_gpt2.windows.feed import Batch, Feed
from emg_gpt2.windows.reading import WindowSet
from emg_gpt2.windows.sentences import CONTEXTS

logger = logging.getLogger("emg_gpt2.EMG_utils")

LIVE_FIGURES = ("loss {task.fields[loss]:.3f}", "accuracy {task.fields[accuracy]:.3f}")  # of the progress bar
TIMED_WINDOWS = 40  # single predictions whose median is the time of one window


# ---- training loop ----------------------------------------------------------------------------------------------


@with_memory_errors
def fit(
    model: EMGForSequenceClassification,
    task: Task,
    settings: Settings,
    run: Path | None = None,
    epochs: int = 0,
    stop_after: int = 0,
    after_epoch: Callable[[dict], None] | None = None,
    tracker: Tracker | None = None,
) -> list[dict]:
    """Train the model; returns the history, one row per epoch.

    epochs: that the learning rate is scheduled for (0: NUM_EPOCHS); stop_after: how many of them to train (0: all).
    Training stops early after PATIENCE epochs without a lower loss on the validation part. run: a folder that gets
    history.csv after every epoch, and best_model/ and last/ at the end and between some steps; where it has a last/,
    training goes on from there. after_epoch: called with every row; it ends the training by raising. tracker: logs
    every row, and learning rate and loss of single steps.

    Raises NotFiniteError where loss, gradient or weights are not finite, after best_model/ and the batch
    (bad_batch.csv) were written, and KeyboardInterrupt after SIGINT or SIGTERM, once a checkpoint is written.
    """
    trainer = Trainer(model, task, settings, epochs or settings.NUM_EPOCHS, run, tracker, stop_after)
    fresh = not trainer.resume()
    with deferred_signals() as trainer.asked, progress(*LIVE_FIGURES) as bar:
        try:
            while not trainer.is_over():
                train_epoch(trainer, bar)
                row = trainer.end_epoch(validate(trainer))
                if after_epoch:
                    after_epoch(row)
                trainer.pause()
                fresh = True
        except NotFiniteError as error:
            raise NotFiniteError(f"{error}{trainer.write_best()}") from None
    trainer.finish(fresh)
    return trainer.history


def train_epoch(trainer: Trainer, bar: Progress) -> None:
    """Forward, loss, backward, clip, step, for every batch that is left in the epoch. Raises NotFiniteError."""
    trainer.module.train()
    for batch in trainer.batches(bar):
        # logits (b, K) of this process's share of the batch
        logits = trainer.logits(batch.own, batch.told, draws=batch.draws, group=batch.group)
        loss = share_of_loss(logits, batch, trainer)
        trainer.optimizer.zero_grad()
        trainer.accelerator.backward(loss * trainer.processes)  # because gradients are averaged over the processes
        norm = trainer.accelerator.clip_grad_norm_(trainer.module.parameters(), trainer.settings.CLIP)
        trainer.optimizer.step()
        trainer.end_step(batch, logits, loss, norm)
    trainer.check_weights()  # no loss has shown yet what the last step did to them


def share_of_loss(logits: torch.Tensor, batch: TrainingBatch, trainer: Trainer) -> torch.Tensor:
    """This process's share of the batch's cross entropy, the mean over judged windows weighted by class.

    logits: (b, K)
    """
    judged = batch.judged
    summed = F.cross_entropy(logits[judged], batch.own.targets[judged], trainer.class_weight, reduction="sum")
    return summed / trainer.total_weight(batch) * batch.counts


def validate(trainer: Trainer) -> dict:
    """Loss, accuracy and balanced accuracy on the validation part, empty without one. Raises NotFiniteError.

    With CONTEXT the loss is the mean over CONTEXTS, the accuracies are those of `unlabelled`, and `none`, `unlabelled`
    and `calibrated` have a balanced accuracy each.
    """
    rows, windows = trainer.task.split.validation, trainer.task.windows
    if not len(rows):
        return {}
    trainer.module.eval()
    found = answers(trainer.logits, trainer.feed, windows, rows, trainer.settings.CONTEXT)
    for one in found.values():
        check_validation(one.probabilities, one.rows, trainer.where, windows, trainer.run)
    figures = {name: summary(windows.targets[one.rows], one.probabilities.argmax(1)) for name, one in found.items()}
    usual = usual_context(found)
    trainer.validated = np.array(windows.classes, np.int8)[found[usual].probabilities.argmax(1)]
    contexts = {f"validation_{name}": one["balanced_accuracy"] for name, one in figures.items()}
    return {
        "validation_loss": float(np.mean([balanced_loss(windows.targets[rows], one) for rows, one in found.values()])),
        "validation_accuracy": figures[usual]["accuracy"],
        "validation_balanced_accuracy": figures[usual]["balanced_accuracy"],
        **(contexts if trainer.settings.CONTEXT else {}),
    }


def refit(task: Task, settings: Settings, history: list[dict], run: Path, tracker: Tracker | None = None) -> list[dict]:
    """Train anew on training and validation part together, for as many epochs as the validation part chose.

    task: whose training part holds the validation part (`fitted_task`); history: of the first training. The result
    takes the place of the run's best_model/; refit/ holds the second history, which is returned, and a state to resume
    from.
    """
    epochs = best_epoch(history) + 1
    logger.info(f"training anew on the validation part too: {len(task.split.train)} windows, {epochs} epochs")
    if tracker:
        tracker.begin_part("refit/")
    try:
        again = fit(new_model(task, settings), task, settings, run / "refit", stop_after=epochs, tracker=tracker)
    except NotFiniteError as error:
        raise EMGError(f"training anew: {error}; that of the first training is in {run / 'best_model'}") from None
    refitted = run / "refit" / "best_model"
    if is_main_process() and refitted.exists():  # a finished run that is resumed has none
        replace_folder(run / "best_model", lambda folder: shutil.copytree(refitted, folder, dirs_exist_ok=True))
        remove_folder(refitted)
    wait_for_everyone()
    return again


# ---- test -------------------------------------------------------------------------------------------------------


class Evaluation(NamedTuple):
    """Of a test: figures for metrics.json, and the (n, K) probabilities of the test windows."""

    metrics: dict
    probabilities: np.ndarray


@with_memory_errors
def evaluate(model: EMGForSequenceClassification, task: Task, settings: Settings) -> Evaluation:
    """Test the model on the test part, measured against the references of `task`; the same on every process."""
    accelerator, rows = make_accelerator(settings), task.split.test
    model.to(accelerator.device).eval()
    feed, references = Feed(task.windows, accelerator.device), task.references.to(accelerator.device)

    def logits_of(batch: Batch, told: torch.Tensor | None = None, remembered: int | None = None) -> torch.Tensor:
        with accelerator.autocast():
            return model(batch.emg, references.of(batch.rows), told=told, remembered=remembered).logits  # (B, K)

    found = answers(logits_of, feed, task.windows, rows, settings.CONTEXT)
    probabilities = found[usual_context(found)].probabilities
    seconds = of_main_process(seconds_per_window(logits_of, feed, rows) if is_main_process() else None)
    metrics = compute_metrics(task.windows, rows, probabilities) | {"seconds_per_window": seconds}
    metrics["transductive"] = settings.SCALE == "session"  # the test part's signal as a whole was looked at
    if settings.CONTEXT:
        metrics["context"] = {name: context_figures(name, one, task.windows, settings) for name, one in found.items()}
    return Evaluation(metrics | facts_of_device(accelerator), probabilities)


def context_figures(name: str, found: Answers, windows: WindowSet, settings: Settings) -> dict:
    """For metrics.json: what the context was, and how the model did with it."""
    figures = compute_metrics(windows, found.rows, found.probabilities)
    kept = {key: figures[key] for key in ("accuracy", "balanced_accuracy", "macro_f1", "windows", "per_subject")}
    return {"what": CONTEXTS[name], "at_most": 0 if name == "none" else settings.CONTEXT} | kept


@torch.no_grad()
def seconds_per_window(logits_of: Callable[[Batch], torch.Tensor], feed: Feed, rows: np.ndarray) -> float:
    """Median time (s) of a single window, from its samples in memory to its probabilities, in this process."""
    spent = []
    for row in cut_rows(rows[:TIMED_WINDOWS], 1):
        began = time.perf_counter()
        logits_of(feed.read(row)).softmax(1).cpu()
        spent.append(time.perf_counter() - began)
    return float(np.median(spent))


def facts_of_device(accelerator: Accelerator) -> dict:
    """Device, processes, precision and versions, for metrics.json."""
    precision = "fp32" if accelerator.mixed_precision == "no" else accelerator.mixed_precision
    return {
        "device": str(accelerator.device),
        "processes": accelerator.num_processes,
        "precision": precision,
        "versions": versions(),
    }


def evaluate_linear_path(model: EMGForSequenceClassification, task: Task) -> dict:
    """Accuracies of the linear path alone on the validation part, on the CPU, and the `predicted` labels (n,).

    Empty without either.
    """
    rows, feed = task.split.validation, Feed(task.windows, torch.device("cpu"))
    if model.linear is None or not len(rows):
        return {}

    def logits_of(batch: Batch) -> torch.Tensor:
        _, covariance = model.normalise(batch.emg, task.references.of(batch.rows))
        return model.linear_logits(covariance)  # (B, K)

    target, predicted = task.windows.targets[rows], predict(logits_of, feed, rows).argmax(1)
    return {
        "validation_accuracy": accuracy_score(target, predicted),
        "validation_balanced_accuracy": balanced_accuracy(target, predicted),
        "predicted": np.array(task.windows.classes, np.int8)[predicted],
    }


# ---- metrics ----------------------------------------------------------------------------------------------------


def compute_metrics(windows: WindowSet, rows: np.ndarray, probabilities: np.ndarray) -> dict:
    """Figures of the windows `rows` from their (n, K) probabilities, overall, per class and per subject.

    Accuracy, balanced accuracy (mean recall over the classes present) and macro F1 as scikit-learn defines them;
    confusion_matrix[i][j] counts windows of class i that were predicted to be of class j.
    """
    target, predicted = windows.targets[rows], probabilities.argmax(1)
    indices = range(len(windows.classes))
    scores = precision_recall_fscore_support(target, predicted, labels=indices, zero_division=0)
    subjects = windows.table["subject"].to_numpy()[rows]
    return {
        **summary(target, predicted),
        "per_class": {
            name: {"precision": float(p), "recall": float(r), "f1": float(f), "support": int(n)}
            for name, p, r, f, n in zip(windows.class_names, *scores, strict=True)
        },
        "per_subject": {
            subject: summary(target[subjects == subject], predicted[subjects == subject])
            for subject in sorted(set(subjects))
        },
        "confusion_matrix": confusion_matrix(target, predicted, labels=indices).tolist(),
        "classes": {str(code): name for code, name in zip(windows.classes, windows.class_names, strict=True)},
    }


def summary(target: np.ndarray, predicted: np.ndarray) -> dict:
    """Accuracy, balanced accuracy and macro F1 of (n,) true and predicted classes or labels, and their number."""
    return {
        "accuracy": float(accuracy_score(target, predicted)),
        "balanced_accuracy": balanced_accuracy(target, predicted),
        "macro_f1": float(f1_score(target, predicted, average="macro", zero_division=0)),
        "windows": len(target),
    }


def balanced_accuracy(target: np.ndarray, predicted: np.ndarray) -> float:
    """Mean recall over the classes that are present in `target`."""
    return float(recall_score(target, predicted, labels=np.unique(target), average="macro", zero_division=0))


def balanced_loss(target: np.ndarray, probabilities: np.ndarray) -> float:
    """Cross entropy (nat), mean over the classes that are present in `target`, from (n, K) probabilities."""
    loss = -np.log(probabilities[np.arange(len(target)), target] + 1e-12)
    return float(np.mean([loss[target == index].mean() for index in np.unique(target)]))


# ---- curves and confusion matrix --------------------------------------------------------------------------------


def draw_history(histories: Histories, chance: float, caption: str, run: Path) -> None:
    """accuracy.png and loss.png, over the epochs; chance: balanced accuracy of guessing."""
    first, best = pd.DataFrame(histories.first), best_epoch(histories.first)
    figure, axes = epoch_axes("accuracy")
    axes.plot(first["epoch"], first["train_accuracy"], "o-", color=GREY, ms=7, mfc="none", label="training")
    axes.plot(first["epoch"], first["validation_accuracy"], "s--", color=BLUE, label="validation")
    balanced = first["validation_balanced_accuracy"]
    axes.plot(first["epoch"], balanced, "D-", color=ORANGE, ms=3, label="validation, balanced")
    for name, line, words in (("none", ":", "single windows"), ("calibrated", "-.", "calibrated")):  # with context
        if f"validation_{name}" in first:
            axes.plot(first["epoch"], first[f"validation_{name}"], line, color=GREEN, label=f"balanced, {words}")
    draw_second_training(axes, histories, "train_accuracy")
    if histories.linear_path:
        alone = histories.linear_path["validation_balanced_accuracy"]
        axes.axhline(alone, ls="-.", lw=1, color=BLACK, label=f"linear path alone, validation, balanced: {alone:.3f}")
    show_differences(axes)  # before the line, whose y are no accuracies
    mark_epoch(axes, best + 1)
    draw_chance(axes, chance)
    finish(figure, axes, caption, run / "accuracy.png", columns=2)
    figure, axes = epoch_axes("cross entropy (nat)")
    axes.plot(first["epoch"], first["train_loss"], "o-", color=GREY, ms=7, mfc="none", label="training, as optimised")
    axes.plot(first["epoch"], first["validation_loss"], "s--", color=BLUE, label="validation")
    draw_second_training(axes, histories, "train_loss")
    mark_epoch(axes, best + 1)
    axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
    finish(figure, axes, caption, run / "loss.png", columns=2)


def mark_epoch(axes: plt.Axes, epoch: int) -> None:
    """A line at the chosen epoch."""
    axes.axvline(epoch, ls=":", color=ORANGE, label=chosen_words(epoch))


def draw_second_training(axes: plt.Axes, histories: Histories, column: str) -> None:
    """One column of the second training's history, where there was one."""
    if second := histories.second:
        points = [row["epoch"] for row in second], [row[column] for row in second]
        axes.plot(*points, "^:", color=GREEN, ms=6, mfc="none", label="second training, with validation")


def draw_confusion_matrix(metrics: dict, title: str, caption: str, run: Path) -> None:
    """confusion_matrix.png: shares of each true gesture's windows, and up to FEW_CLASSES classes the counts."""
    counts = np.array(metrics["confusion_matrix"])
    sums, few = counts.sum(1), len(counts) <= FEW_CLASSES
    shares = 100 * counts / np.maximum(sums, 1)[:, None]
    names = list(metrics["classes"].values())
    size = min(WIDTH, 3 + 0.45 * len(names))
    figure, axes = plt.subplots(figsize=(size, 0.85 * size + 0.3))
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    for (i, j), count in np.ndenumerate(counts):
        text = percent(count, sums[i]) + f"\n{count}" * few if count else ""
        axes.text(j, i, text, ha="center", va="center", fontsize=6, color="white" if shares[i, j] > 50 else "black")
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), [f"{name} ({count})" for name, count in zip(names, sums, strict=True)])
    axes.set(xlabel="predicted gesture", ylabel="true gesture (windows)", title=title)
    axes.spines[:].set_visible(False)
    below = ", and their number" if few else ""
    figure.colorbar(image, ax=axes, label="share of the true gesture's windows (%)", shrink=0.8)
    words = f"In the cells: % of the true gesture's windows{below}; empty: none. {caption}"
    save(figure, words, run / "confusion_matrix.png")
