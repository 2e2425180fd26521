"""A new model for the windows at hand, with its reference and linear path fitted to the training part."""

import itertools
import logging

import numpy as np
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from EMG_DATA_LOADER import EVALUATION_BATCH, batches, draw_rows, read_emg
from emg_gpt2.base.errors import EMGError
from emg_gpt2.model.augment import Augmentation
from emg_gpt2.model.build import build_model
from emg_gpt2.model.class_means import ClassMeans, log_rms, measure_classes
from emg_gpt2.model.config import MOST_DAYS, EMGConfig, day_mark, start_words
from emg_gpt2.model.model import EMGForSequenceClassification
from emg_gpt2.model.normalise import measure_reference, normalise
from emg_gpt2.model.session_path import SessionPath
from emg_gpt2.settings import Settings
from emg_gpt2.training.adapt import choose_trained, count_parameters
from emg_gpt2.training.task import Task
from emg_gpt2.windows.reading import WindowSet

logger = logging.getLogger(__name__)

LINEAR_WINDOWS = 50_000  # of the training part fit the linear path, rotations included: bounded for any file
LINEAR_WEIGHT = 0.3  # chosen on held-out days of the armband (EXPERIMENTS.md)


def new_model(task: Task, settings: Settings) -> EMGForSequenceClassification:
    """A model for these windows: their channels, rate, classes, the reference and linear path of the training part.

    Where a window is no whole number of patches, the tokens leave out its first samples. Raises EMGError where it
    holds fewer than two, or nothing changes in the training part.
    """
    config = new_config(task.windows, settings)
    config.trained_days = trained_days(task)
    torch.manual_seed(settings.SEED)
    model = build_model(config, settings.MODEL_NAME, settings.PRETRAINED, settings.BLOCKS)
    emg = read_emg(task.windows, draw_rows(task.split.train, settings.SEED))
    if not (emg != emg[:, :1]).any():
        raise EMGError(
            "no channel changes in any window of the training part; look at the file with python -m emg_gpt2 inspect"
        )
    model.set_reference(measure_reference(emg))
    model.set_class_means(class_means_of(task, settings.SEED))
    if settings.LINEAR_PATH and settings.CONTEXT:
        fit_session_path(model.linear, model, task, task.split.train, settings.SEED)
    elif settings.LINEAR_PATH:
        fit_linear_path(model, task, settings.SEED)
    if settings.FREEZE:
        measure_norms(model, task, settings.SEED)
    choose_trained(model, settings)
    return model


def new_config(windows: WindowSet, settings: Settings) -> EMGConfig:
    """The configuration of a model for these windows; raises EMGError where patch or filters do not fit a window."""
    about, rate = windows.metadata, windows.metadata["sampling_rate"]
    window, patch = about["window"], round(settings.PATCH_MS * rate / 1000)
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
        head=settings.HEAD,
        patch=patch,
        window=window,
        filters=settings.FILTERS,
        filter_taps=taps,
        dropout=settings.DROPOUT,
        context=settings.CONTEXT,
        linear_path=settings.LINEAR_PATH,
        ring=settings.RING,
        rotation=settings.ROTATION,
        noise=settings.NOISE,
        sampling_rate=rate,
        class_codes=windows.classes,
        class_names=windows.class_names,
        channels=about["channels"],
        preprocessing=about["settings"],
        unit=about["unit"],
        scale=settings.SCALE,
        data_note=about["note"],
    )


def trained_days(task: Task) -> list[str]:
    """The marks of the days in the training and validation part; none where they are too many for a config."""
    seen = np.concatenate([task.split.train, task.split.validation])
    days = task.windows.table.iloc[seen][["subject", "session"]].drop_duplicates()
    return sorted(itertools.starmap(day_mark, days.to_numpy())) if len(days) <= MOST_DAYS else []


def class_means_of(task: Task, seed: int) -> ClassMeans:
    """What each class looks like beside its session, from windows of the training part."""
    drawn, levels, covariances = draw_rows(task.split.train, seed), [], []
    for emg, _, rows in batches(task.windows, drawn, EVALUATION_BATCH):
        signal, covariance = normalise(emg, task.references.of(rows))
        levels.append(log_rms(signal))
        covariances.append(covariance)
    targets = torch.from_numpy(task.windows.targets[drawn])
    return measure_classes(torch.cat(levels), torch.cat(covariances), targets, task.classes)


def fit_linear_path(model: EMGForSequenceClassification, task: Task, seed: int) -> None:
    """Fit the model's linear path to the training part in closed form: LDA on normalised log covariances.

    Every rotation of the rings that training will meet is learnt. LDA is too confident about the windows that it was
    fitted to, so its logits are scaled by LINEAR_WEIGHT.
    """
    turns = Augmentation(model.config).pairs  # (turns, C(C+1)/2)
    drawn = draw_rows(task.split.train, seed, LINEAR_WINDOWS // len(turns))
    turned = covariances(model, task, drawn)[:, turns].flatten(0, 1)
    coefficients, intercepts = linear_discriminant(turned, task.windows.targets[drawn].repeat(len(turns)), task.classes)
    model.linear.weight.data.copy_(LINEAR_WEIGHT * coefficients)
    model.linear.bias.data.copy_(LINEAR_WEIGHT * intercepts)


def fit_session_path(
    path: SessionPath, model: EMGForSequenceClassification, task: Task, rows: np.ndarray, seed: int
) -> None:
    """Fit a closed-form path of a model with context to the windows `rows`."""
    drawn = draw_rows(rows, seed, LINEAR_WINDOWS)
    covariance = (covariances(model, task, drawn) * model.spread + model.centre).double().numpy()
    sessions = task.windows.table.iloc[drawn].groupby(["subject", "session"]).ngroup().to_numpy()
    path.fit(covariance, task.windows.targets[drawn], sessions)


def covariances(model: EMGForSequenceClassification, task: Task, rows: np.ndarray) -> torch.Tensor:
    """(n, C(C+1)/2) normalised log covariances of the windows `rows`."""
    parts = batches(task.windows, rows, EVALUATION_BATCH)
    return torch.cat([model.normalise(emg, task.references.of(numbers))[1] for emg, _, numbers in parts])


def linear_discriminant(
    covariance: torch.Tensor, targets: np.ndarray, classes: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights (K, F) and biases (K,) of LDA on covariance (n, F), normalised, and targets (n,).

    All classes have the same prior, and the covariance within them is shrunk (Ledoit and Wolf, J. Multivar. Anal.
    2004).
    """
    lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto", priors=np.full(classes, 1 / classes))
    lda.fit(covariance.double().numpy(), targets)
    coefficients, intercepts = torch.from_numpy(lda.coef_), torch.from_numpy(lda.intercept_)
    if classes == 2:  # scikit-learn gives the difference of the two
        coefficients = torch.cat([-coefficients, coefficients]) / 2
        intercepts = torch.cat([-intercepts, intercepts]) / 2
    return coefficients, intercepts


@torch.no_grad()
def measure_norms(model: EMGForSequenceClassification, task: Task, seed: int) -> None:
    """Let the batch norms of tokenisers that will not train measure the training part: the mean over its batches."""
    norms = [module for module in model.tokenisers.modules() if isinstance(module, torch.nn.BatchNorm1d)]
    model.tokenisers.train()
    for number, batch in enumerate(batches(task.windows, draw_rows(task.split.train, seed), EVALUATION_BATCH)):
        for norm in norms:
            norm.momentum = 1 / (number + 1)
        model.tokenise(*model.normalise(batch.emg, task.references.of(batch.rows)))
    model.tokenisers.eval()


def log_model(model: EMGForSequenceClassification, settings: Settings) -> None:
    """Log what the backbone starts from, how it is adapted, and the numbers of parameters."""
    parameters, trained = count_parameters(model.config, settings)
    kind = f"{settings.MODEL_NAME}, {start_words(model.config.weights)}, ADAPT = {settings.ADAPT}"
    logger.info(f"{kind}: {parameters:,} parameters, {trained:,} trained")
