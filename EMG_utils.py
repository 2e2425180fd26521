"""A model for the data at hand, and metrics."""

import logging
import platform
from datetime import timedelta

import numpy as np
import pandas as pd
import torch
import transformers
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    precision_recall_fscore_support,
    recall_score,
)

from EMG_build import build_model
from EMG_DATA_LOADER import (
    Feed,
    Split,
    WindowSet,
    batches,
    cut_rows,
    draw_rows,
    empty_array,
    read_emg,
    reference_groups,
    rows_to_measure,
)
from EMG_model import Below, EMGConfig, EMGForSequenceClassification, Reference, References, measure_reference
from ENV import EMGError, Settings

logger = logging.getLogger(__name__)

EVALUATION_BATCH = 256  # windows; no gradients are kept, so it may be larger than BATCH_SIZE
LINEAR_WINDOWS = 50_000  # of the training part fit the linear path, rotations included: bounded for any file
LINEAR_WEIGHT = 0.3  # chosen on held-out days of the armband (EXPERIMENTS.md)


# ---- model and data -------------------------------------------------------------------------------------------


def new_model(
    windows: WindowSet, split: Split, references: References, settings: Settings
) -> EMGForSequenceClassification:
    """A model for these windows: their channels, rate, classes, the reference and linear path of the training part.

    Where a window is no whole number of patches, the tokens leave out its first samples. Raises EMGError where it
    holds fewer than two, or nothing changes in the training part.
    """
    config = describe_model(windows, settings)
    torch.manual_seed(settings.SEED)
    model = build_model(config, settings.MODEL_NAME, settings.PRETRAINED, settings.BLOCKS)
    emg = read_emg(windows, draw_rows(split.train, settings.SEED))
    if not (emg != emg[:, :1]).any():
        raise EMGError("no channel changes in any window of the training part; look at the file with tools.inspect")
    model.set_reference(measure_reference(emg))
    if settings.LINEAR_PATH:
        fit_linear_path(model, windows, split, references, settings.SEED)
    if settings.FREEZE:
        calibrate(model, windows, split, references, settings.SEED)
    model.train_last(-settings.NUM_LAYERS, settings.FREEZE)
    return model


def describe_model(windows: WindowSet, settings: Settings) -> EMGConfig:
    """What rebuilds a model for these windows; raises EMGError where a window is too short for them."""
    described, rate = windows.metadata, windows.metadata["sampling_rate"]
    window, patch = described["window"], round(settings.PATCH_MS * rate / 1000)
    if patch < 1 or window // patch < 2:
        raise EMGError(
            f"PATCH_MS = {settings.PATCH_MS:g} is {patch} samples, and a window of {window} samples should hold at "
            f"least two patches; choose {1000 / rate:g} to {500 * window / rate:g} ms"
        )
    taps = max(3, round(settings.FILTER_MS * rate / 1000))
    if "power" in settings.TOKENS and taps > max(3, window):
        longest = 1000 * window / rate
        raise EMGError(f"FILTER_MS = {settings.FILTER_MS:g} is longer than a window, {longest:g} ms; lower it")
    if window % patch:
        logger.info(f"patches of {patch} samples: the first {window % patch} of {window} samples are in none")
    return EMGConfig(
        tokens=settings.TOKENS,
        patch=patch,
        window=window,
        filters=settings.FILTERS,
        filter_taps=taps,
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
        scale=settings.SCALE,
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


@torch.no_grad()
def calibrate(
    model: EMGForSequenceClassification, windows: WindowSet, split: Split, references: References, seed: int
) -> None:
    """Let the norms of tokenisers that will not train measure the training part: the mean over its batches."""
    norms = [module for module in model.tokenisers.modules() if isinstance(module, torch.nn.BatchNorm1d)]
    model.tokenisers.train()
    for number, batch in enumerate(batches(windows, draw_rows(split.train, seed), EVALUATION_BATCH)):
        for norm in norms:
            norm.momentum = 1 / (number + 1)
        model.tokenise(*model.normalise(batch.emg, references.of(batch.rows)))
    model.tokenisers.eval()


def outputs_below(
    model: EMGForSequenceClassification, feed: Feed, rows: np.ndarray, references: References, settings: Settings
) -> Below:
    """(n, P, D) and (n, K) of the windows `rows`; in a mapped file where they take more than MEMORY_GB."""
    model.to(feed.device).eval()
    found = None
    for batch in feed(cut_rows(rows, EVALUATION_BATCH)):
        below = model.below(batch.emg, references.of(batch.rows))
        if found is None:
            shapes = [(len(references.groups), *part.shape[1:]) for part in below]
            fits = 4 * np.prod(shapes[0]) <= settings.MEMORY_GB * 1e9
            found = [empty_array(shape, np.dtype(np.float32), settings.DATA_LOCATION.parent, fits) for shape in shapes]
        for whole, part in zip(found, below, strict=True):
            whole[batch.rows.cpu()] = part.cpu()
    return Below(*map(torch.from_numpy, found))


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


def time_to_go(seconds: float, done: int, left: int) -> str:
    """`, about 0:02:30 to go`, from the seconds that what is done took; nothing where nothing is."""
    return f", about {timedelta(seconds=round(seconds / done * left))} to go" if done else ""


def versions() -> dict[str, str]:
    libraries = {"torch": torch, "transformers": transformers, "numpy": np, "pandas": pd}
    return {"python": platform.python_version()} | {name: library.__version__ for name, library in libraries.items()}
