"""Training and metrics."""

import json
import logging
import pickle
import platform
import shutil
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import transformers
from accelerate import Accelerator, PartialState
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    precision_recall_fscore_support,
    recall_score,
)
from transformers import get_cosine_schedule_with_warmup

from EMG_DATA_LOADER import (
    Split,
    WindowSet,
    batches,
    class_weights,
    draw_rows,
    read_emg,
    reference_groups,
    rows_to_measure,
)
from EMG_model import (
    EMGConfig,
    EMGForSequenceClassification,
    Reference,
    References,
    build_model,
    measure_reference,
)
from EMG_run import replace_folder
from ENV import EMGError, Settings

logger = logging.getLogger(__name__)

EVALUATION_BATCH = 256  # windows; no gradients are kept, so it may be larger than BATCH_SIZE
LINEAR_WINDOWS = 50_000  # of the training part fit the linear path, rotations included: bounded for any file
LINEAR_WEIGHT = 0.3  # chosen on held-out days of the armband (EXPERIMENTS.md)
WORTHWHILE = 1.3  # bfloat16 is taken where its products are at least this much faster


# ---- model and data -------------------------------------------------------------------------------------------


def new_model(
    windows: WindowSet, split: Split, references: References, settings: Settings
) -> EMGForSequenceClassification:
    """A model for these windows: their channels, rate, classes, the reference and linear path of the training part.

    Where a window is no whole number of patches, the tokens leave out its first samples. Raises EMGError where it
    holds fewer than two.
    """
    config = describe_model(windows, settings)
    torch.manual_seed(settings.SEED)
    model = build_model(config, settings.MODEL_NAME, settings.PRETRAINED, settings.BLOCKS)
    model.set_reference(measure_reference(read_emg(windows, draw_rows(split.train, settings.SEED))))
    if settings.LINEAR_PATH:
        fit_linear_path(model, windows, split, references, settings.SEED)
    model.train_last(-settings.NUM_LAYERS)
    return model


def describe_model(windows: WindowSet, settings: Settings) -> EMGConfig:
    """What rebuilds a model for these windows; raises EMGError where a window holds fewer than two patches."""
    described, rate = windows.metadata, windows.metadata["sampling_rate"]
    window, patch = described["window"], round(settings.PATCH_MS * rate / 1000)
    if patch < 1 or window // patch < 2:
        raise EMGError(
            f"PATCH_MS = {settings.PATCH_MS:g} is {patch} samples, and a window of {window} samples should hold at "
            f"least two patches; choose {1000 / rate:g} to {500 * window / rate:g} ms"
        )
    if window % patch:
        logger.info(f"patches of {patch} samples: the first {window % patch} of {window} samples are in none")
    return EMGConfig(
        tokens=settings.TOKENS,
        patch=patch,
        window=window,
        filters=settings.FILTERS,
        filter_taps=max(3, round(settings.FILTER_MS * rate / 1000)),
        dropout=settings.DROPOUT,
        linear_path=settings.LINEAR_PATH,
        ring=settings.RING,
        rotation=settings.ROTATION,
        noise=settings.NOISE,
        sampling_rate=rate,
        class_codes=windows.classes,
        class_names=windows.class_names,
        channels=described["channels"],
        preprocessing=described["settings"],
        unit=described["unit"],
        data_note=described["note"],
    )


def session_references(windows: WindowSet, split: Split, settings: Settings) -> References:
    """Each person's day measured on its own windows, its test part apart; with SCALE = "training" all on that part."""
    groups = reference_groups(windows, split)
    if settings.SCALE == "training":
        groups = np.minimum(groups, 0)  # one group for all
    rows = rows_to_measure(groups, split)
    each = [measure_reference(read_emg(windows, draw_rows(one, settings.SEED))) for one in rows]
    return References(Reference(*map(torch.cat, zip(*each, strict=True))), torch.from_numpy(groups))


def fit_linear_path(
    model: EMGForSequenceClassification, windows: WindowSet, split: Split, references: References, seed: int
) -> None:
    """Fit the model's linear path to the training part in closed form: LDA on normalised log covariances.

    Every rotation of the rings that training will meet is learnt. LDA's logits are too sure of the windows they were
    fitted to, so they are taken times LINEAR_WEIGHT.
    """
    turns = model.augmentation.pairs  # (turns, C(C+1)/2)
    drawn = draw_rows(split.train, seed, LINEAR_WINDOWS // len(turns))
    parts = batches(windows, drawn, EVALUATION_BATCH)
    covariance = torch.cat([model.normalise(emg, references.of(rows))[1] for emg, _, rows in parts])
    targets = windows.targets[drawn].repeat(len(turns))
    coefficients, intercepts = linear_discriminant(covariance[:, turns].flatten(0, 1), targets, len(windows.classes))
    model.linear.weight.data.copy_(LINEAR_WEIGHT * coefficients)
    model.linear.bias.data.copy_(LINEAR_WEIGHT * intercepts)


def linear_discriminant(
    covariance: torch.Tensor, targets: np.ndarray, classes: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights (K, F) and biases (K,) of LDA on covariance (n, F), normalised, and targets (n,).

    Classes count the same, and the covariance within them is shrunk (Ledoit and Wolf, J. Multivar. Anal. 2004).
    """
    lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto", priors=np.full(classes, 1 / classes))
    lda.fit(covariance.double().numpy(), targets)
    coefficients, intercepts = torch.from_numpy(lda.coef_), torch.from_numpy(lda.intercept_)
    if classes == 2:  # scikit-learn gives the difference of the two
        coefficients = torch.cat([-coefficients, coefficients]) / 2
        intercepts = torch.cat([-intercepts, intercepts]) / 2
    return coefficients, intercepts


@cache  # one answer per process: the measurement is noisy
def choose_precision(wanted: str) -> tuple[str, str]:
    """`fp32` or `bf16`, and why: the faster one on this machine where `auto` is wanted."""
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


# ---- training -------------------------------------------------------------------------------------------------


class Trainer:
    """Trains one model on one split; the validation part chooses the epoch that is kept.

    Every epoch has its own seeds, so that a run that was resumed equals one that was left alone.
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
        logger.info(f"{self.accelerator.device}, {self.precision} ({reason})")
        optimizer = torch.optim.AdamW(decay_groups(model, settings.WEIGHT_DECAY), lr=settings.LR, betas=(0.9, 0.95))
        self.steps = -(-len(split.train) // settings.BATCH_SIZE)  # per epoch
        total = self.steps * epochs
        schedule = get_cosine_schedule_with_warmup(optimizer, round(settings.WARMUP * total), total)
        self.references = references.to(self.accelerator.device)
        self.model, self.optimizer, self.schedule = self.accelerator.prepare(model, optimizer, schedule)
        self.weight = None
        if settings.BALANCE == "weights":
            weight = class_weights(windows.targets[split.train], len(windows.classes))
            self.weight = torch.from_numpy(weight).float().to(self.accelerator.device)

    def fit(
        self,
        console: Console,
        run: Path | None = None,
        stop_after: int | None = None,
        after_epoch: Callable[[dict], None] | None = None,
    ) -> list[dict]:
        """One row of history per epoch, to the last or until PATIENCE epochs brought no lower loss.

        Without a validation part the latest epoch counts as the best, and `stop_after` epochs are enough. With a
        `run` folder, best_model/, last/ and history.csv are replaced after every epoch, and training goes on from
        last/ where there is one. `after_epoch` is given every row, and ends the training where it raises. Raises
        EMGError where the loss is no longer finite.
        """
        history = self._resume(run) if run else []
        with _progress(console) as bar:
            for epoch in range(len(history), stop_after or self.epochs):
                if epochs_since_best(history) >= self.settings.PATIENCE:
                    logger.info(f"no better epoch in {self.settings.PATIENCE}: stopping early")
                    break
                start = time.perf_counter()
                row = {"epoch": epoch + 1} | self._train_epoch(epoch, bar)
                row |= self.validate() if len(self.split.validation) else {}
                weights = self.accelerator.unwrap_model(self.model).config.weights
                history.append(row | {"seconds": time.perf_counter() - start, "weights": weights})
                logger.info(_epoch_line(history[-1], self.epochs))
                if run:
                    self._save(history, run)
                if after_epoch:
                    after_epoch(history[-1])
        return history

    def _train_epoch(self, epoch: int, bar: Progress) -> dict:
        self.model.train()
        torch.manual_seed(self.settings.SEED + 1_000_003 * (epoch + 1))
        rng = np.random.default_rng([self.settings.SEED, epoch])
        task = bar.add_task(f"epoch {epoch + 1}/{self.epochs}", total=self.steps, loss=0.0, accuracy=0.0)
        loss_sum, right, seen, rates = 0.0, 0, 0, []
        parts = batches(self.windows, self.split.train, self.settings.BATCH_SIZE, rng)
        for step, (emg, target, rows) in enumerate(parts):
            rates.append(self.schedule.get_last_lr()[0])
            loss, hits = self._train_step(emg, target, rows)
            if not np.isfinite(loss):
                raise EMGError(
                    f"the loss is {loss} in epoch {epoch + 1}, step {step + 1}; lower LR or look at the data"
                )
            loss_sum, right, seen = loss_sum + loss * len(target), right + hits, seen + len(target)
            bar.update(task, advance=1, loss=loss_sum / seen, accuracy=right / seen)
        bar.remove_task(task)
        return {"lr": np.mean(rates), "train_loss": loss_sum / seen, "train_accuracy": right / seen}

    def _train_step(self, emg: torch.Tensor, target: torch.Tensor, rows: torch.Tensor) -> tuple[float, int]:
        """emg (B, T, C), target (B,), rows (B,) → loss, and how many windows were classified right."""
        device = self.accelerator.device
        emg, target, reference = emg.to(device), target.to(device), self.references.of(rows.to(device))
        with self.accelerator.autocast():
            output = self.model(emg=emg, reference=reference, labels=target, weight=self.weight)
        self.optimizer.zero_grad()
        self.accelerator.backward(output.loss)
        self.accelerator.clip_grad_norm_(self.model.parameters(), self.settings.CLIP)
        self.optimizer.step()
        self.schedule.step()
        return output.loss.item(), int((output.logits.argmax(1) == target).sum())

    def validate(self) -> dict:
        probabilities = self.predict(self.model, self.split.validation)
        target = self.windows.targets[self.split.validation]
        predicted = probabilities.argmax(1)
        return {
            "validation_loss": balanced_loss(target, probabilities),
            "validation_accuracy": accuracy_score(target, predicted),
            "validation_balanced_accuracy": balanced_accuracy(target, predicted),
        }

    @torch.inference_mode()
    def predict(self, model: EMGForSequenceClassification, rows: np.ndarray) -> np.ndarray:
        """(n, K) probabilities of the windows `rows`."""
        device = self.accelerator.device
        model.to(device).eval()
        parts = []
        for emg, _, chosen in batches(self.windows, rows, EVALUATION_BATCH):
            reference = self.references.of(chosen.to(device))
            with self.accelerator.autocast():
                parts.append(model(emg=emg.to(device), reference=reference).logits.softmax(1).float().cpu().numpy())
        return np.concatenate(parts)

    def _save(self, history: list[dict], run: Path) -> None:
        """best_model/ where this epoch is the best so far, then last/ and history.csv; each is whole or absent."""
        if epochs_since_best(history) == 0:
            model = self.accelerator.unwrap_model(self.model)
            replace_folder(run / "best_model", model.save_pretrained)
        pd.DataFrame(history).to_csv(run / "history.csv", index=False)
        replace_folder(run / "last", lambda folder: self._save_state(history, folder))

    def _save_state(self, history: list[dict], folder: Path) -> None:
        self.accelerator.save_state(str(folder))
        (folder / "history.json").write_text(json.dumps(history))

    def _resume(self, run: Path) -> list[dict]:
        state = run / "last" / "history.json"
        if not state.is_file():
            return []
        try:
            self.accelerator.load_state(str(state.parent))
            history = json.loads(state.read_text())
        except (OSError, ValueError, RuntimeError, EOFError, KeyError, pickle.UnpicklingError) as error:
            reason = str(error).partition("\n")[0]
            raise EMGError(f"{state.parent}: the state cannot be read ({reason}); start a new run") from None
        logger.info(f"going on after epoch {len(history)} of {state.parent}")
        return history


def decay_groups(model: torch.nn.Module, weight_decay: float) -> list[dict]:
    """Trained parameters: matrices with decay; norms, biases, positions and filters without."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    decays = {name for name, p in trained if p.ndim == 2 and "wpe" not in name}
    return [
        {"params": [p for name, p in trained if name in decays], "weight_decay": weight_decay},
        {"params": [p for name, p in trained if name not in decays], "weight_decay": 0.0},
    ]


def refit(windows: WindowSet, split: Split, settings: Settings, epochs: int, console: Console, run: Path) -> Trainer:
    """Train anew on training and validation part together, for as many epochs as the validation part chose.

    The result takes the place of the run's best_model/; refit/ holds the history and the state to resume from.
    """
    whole = split.with_validation()
    logger.info(f"training anew on the validation part too: {len(whole.train)} windows, {epochs} epochs")
    references = session_references(windows, whole, settings)
    model = new_model(windows, whole, references, settings)
    trainer = Trainer(model, windows, whole, references, settings, settings.NUM_EPOCHS)
    trainer.fit(console, run / "refit", stop_after=epochs)
    refitted = run / "refit" / "best_model"
    if refitted.exists():  # it does not where a finished run is resumed
        replace_folder(run / "best_model", lambda folder: shutil.copytree(refitted, folder, dirs_exist_ok=True))
        shutil.rmtree(refitted)
    return trainer


def best_epoch(history: list[dict]) -> int:
    """Index of the epoch with the lowest loss on the validation part; without one, of the last.

    The loss tells epochs apart where the accuracy of a small validation part is the same, or jumps.
    """
    if "validation_loss" not in history[-1]:
        return len(history) - 1
    return int(np.argmin([row["validation_loss"] for row in history]))


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


# ---- metrics --------------------------------------------------------------------------------------------------


def compute_metrics(windows: WindowSet, rows: np.ndarray, probabilities: np.ndarray) -> dict:
    """Figures of the windows `rows` from their (n, K) probabilities, overall, per class and per subject.

    Accuracy, balanced accuracy (mean recall over the classes present) and macro F1 as scikit-learn defines them;
    confusion_matrix[i][j] counts windows of class i that were called class j.
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


def balanced_loss(target: np.ndarray, probabilities: np.ndarray) -> float:
    """Cross entropy (nat), mean over the classes that are present in `target`, from (n, K) probabilities."""
    loss = -np.log(probabilities[np.arange(len(target)), target] + 1e-12)
    return float(np.mean([loss[target == index].mean() for index in np.unique(target)]))


def balanced_accuracy(target: np.ndarray, predicted: np.ndarray) -> float:
    """Mean recall over the classes that are present in `target`."""
    return float(recall_score(target, predicted, labels=np.unique(target), average="macro", zero_division=0))


def summary(target: np.ndarray, predicted: np.ndarray) -> dict:
    """Accuracy, balanced accuracy and macro F1 of (n,) true and predicted classes or labels, and their number."""
    return {
        "accuracy": float(accuracy_score(target, predicted)),
        "balanced_accuracy": balanced_accuracy(target, predicted),
        "macro_f1": float(f1_score(target, predicted, average="macro", zero_division=0)),
        "windows": len(target),
    }


def versions() -> dict[str, str]:
    libraries = {"torch": torch, "transformers": transformers, "numpy": np, "pandas": pd}
    return {"python": platform.python_version()} | {name: library.__version__ for name, library in libraries.items()}
