"""The field's classical classifiers: feature sets (features.py) × classifiers × scalings of the channels.

They train on what main.py's final model trains on: the training part, with REFIT the validation part too, from which
they choose nothing. Each one is scored on the test part once. The best figure of a column is the best of 20 on the
test part, so it is flattering. For the verdict on a run they are fitted to the training part alone, and the best one
on the validation part is compared with the model there.

Scalings: "training" keeps one scale per channel, that of the training part. "session" divides each channel by its
standard deviation over the windows of that person and day, as SCALE = "session" does: without labels, and the windows
of the test part by themselves. So it is transductive. A StandardScaler, fitted to the training part, follows both.

Thresholds of ZC, SSC and WAMP are 30 counts, 16 counts² and 10 counts, as in putEMG's own features, where the samples
are in counts: unit "count" and scaling "training". Everywhere else channels are divided by their standard deviation
(that of the training part or of the session), which is taken for 10 counts, about what a putEMG channel has: the
thresholds are then 3, 0.16 and 1. Of 5, 10, 20, 50, 100 and 1000 counts, 10 did best on validation parts of the
sample, armband and flexemg (balanced accuracy of LDA with shrinkage and SVM on Hudgins and Du, mean 0.864; at most
0.853 with the others).

Classifiers have putEMG's parameters, and otherwise scikit-learn's defaults, whatever BALANCE says. On the sample's
validation parts (splits trajectory and session, mean over feature sets and scalings) equal priors of LDA and QDA and
class weights of the SVM changed balanced accuracy from 0.793 to 0.795 (LDA), 0.808 to 0.787 (shrinkage), 0.765 to
0.767 (QDA) and 0.735 to 0.730 (SVM), and lowered each macro F1.
"""

import logging
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import sklearn
from rich.console import Console
from rich.table import Table
from sklearn.base import clone
from sklearn.covariance import EmpiricalCovariance
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis, QuadraticDiscriminantAnalysis
from sklearn.feature_selection import VarianceThreshold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from EMG_DATA_LOADER import Split, reference_groups, rows_to_measure, thin
from emg_gpt2.base.errors import EMGError
from emg_gpt2.base.files import replace_file, write_json
from emg_gpt2.base.log import time_to_go, track
from emg_gpt2.base.versions import versions
from emg_gpt2.model.config import start_words
from emg_gpt2.results.figures import draw_baselines, picture, shortened, use_format
from emg_gpt2.results.reading import SCALES
from emg_gpt2.results.report import write_report
from emg_gpt2.results.run import resumed_settings
from emg_gpt2.results.verdicts import log_verdicts
from emg_gpt2.study.features import FEATURE_SETS, compute_features
from emg_gpt2.study.finished_run import load_split, read_metrics
from emg_gpt2.study.options import BaselineSettings
from emg_gpt2.training.task import fitted_split, log_data
from emg_gpt2.windows.reading import WindowSet
from EMG_utils import balanced_accuracy, compute_metrics

logger = logging.getLogger(__name__)

QDA_REGULARISATION = 0.3
SLOW, FEW_WINDOWS = ("kNN", "SVM"), 20_000  # their time grows with the square of the training windows
TYPICAL_COUNTS = 10  # standard deviation of a putEMG channel, about
STILL = 1e-9  # of a channel's level: what rounding leaves of a standard deviation of 0
KEPT = ("accuracy", "balanced_accuracy", "macro_f1", "per_class", "per_subject")


class RegularisedCovariance(EmpiricalCovariance):
    """(1 − r) · covariance + r · identity: what QDA's `reg_param` does, but with fewer windows than features too."""

    def fit(self, X, y=None):  # noqa: N803 - scikit-learn's name
        super().fit(X)
        identity = np.eye(X.shape[1])
        self._set_covariance((1 - QDA_REGULARISATION) * self.covariance_ + QDA_REGULARISATION * identity)
        return self


CLASSIFIERS = {
    "LDA": LinearDiscriminantAnalysis(),
    "LDA shrinkage": LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto"),
    "QDA": QuadraticDiscriminantAnalysis(solver="eigen", covariance_estimator=RegularisedCovariance()),
    "kNN": KNeighborsClassifier(5),
    "SVM": SVC(C=50, gamma="auto"),
}
FITS = list(product(SCALES, FEATURE_SETS, CLASSIFIERS))


def evaluate_baselines(windows: WindowSet, split: Split, seed: int = 0) -> list[dict]:
    """Figures of every feature set × classifier × scaling, fitted on split.train, on split.test.

    One dict each: `features`, `classifier`, `scaling` ("training" or "session"), `train_windows`, `seconds` of fit
    and prediction, and accuracy, balanced_accuracy, macro_f1, per_class and per_subject as EMG_utils.compute_metrics
    has them. kNN and SVM train on at most 20,000 windows, drawn with `seed` per recording and gesture.
    Raises EMGError where no channel has a signal.
    """
    results, few, began = [], sample_windows(windows, split.train, seed), time.monotonic()
    for scaling, name, kind, table in fits_of(windows, split):
        results.append({"features": name, "scaling": scaling} | score(windows, split, table, kind, few))
        if len(results) % len(CLASSIFIERS) == 0:
            scored = results[-len(CLASSIFIERS) :]
            reached = ", ".join(f"{one['classifier']} {one['balanced_accuracy']:.3f}" for one in scored)
            left = len(FITS) - len(results)
            to_go = time_to_go(time.monotonic() - began, len(results), left) if left else ""
            logger.info(f"{name}, scale of the {SCALES[scaling]}: {reached}{to_go}")
    return results


def best_on_validation(windows: WindowSet, split: Split, seed: int = 0) -> dict:
    """The baseline that is best on split.validation, fitted on split.train, for the verdict on a run (verdicts.py).

    `features`, `classifier`, `scaling`, `balanced_accuracy`, how many were `tried`, and the `predicted` labels.
    """
    part, few = replace(split, test=split.validation), sample_windows(windows, split.train, seed)
    logger.info("the same on the validation part, for the verdict")
    found, names = [], np.array(windows.classes)
    for scaling, name, kind, table in fits_of(windows, part):
        predicted = predict(windows, part, table, kind, few)
        reached = balanced_accuracy(windows.targets[part.test], predicted)
        about = {"features": name, "classifier": kind, "scaling": scaling, "balanced_accuracy": reached}
        found.append(about | {"predicted": names[predicted].tolist()})
    return max(found, key=lambda one: one["balanced_accuracy"]) | {"tried": len(found)}


def fits_of(windows: WindowSet, split: Split) -> Iterator[tuple[str, str, str, np.ndarray]]:
    """Yield scaling, feature set, classifier and features (n_train + n_test, F) of all FITS, behind a progress bar.

    Raises EMGError where no channel has a signal.
    """
    for scaling, name, kind in track(FITS, "classifiers"):
        if (name, kind) == (next(iter(FEATURE_SETS)), next(iter(CLASSIFIERS))):
            features = scaled_features(windows, split, scaling)
        table = np.concatenate([features[member] for member in FEATURE_SETS[name]], axis=1)
        if not np.ptp(table[: len(split.train)], axis=0).any():
            raise EMGError("no channel changes in the training part; look at the file with python -m emg_gpt2 inspect")
        yield scaling, name, kind, table


def sample_windows(windows: WindowSet, train: np.ndarray, seed: int) -> np.ndarray:
    """Which of the training windows the slow classifiers get: all, or a share of each recording and gesture."""
    everything = np.arange(len(train))
    if len(train) <= FEW_WINDOWS:
        return everything
    logger.info(f"{' and '.join(SLOW)} train on about {FEW_WINDOWS:,} of the {len(train):,} windows")
    return thin(windows.table.iloc[train], everything, FEW_WINDOWS / len(train), np.random.default_rng(seed))


def scaled_features(windows: WindowSet, split: Split, scaling: str) -> dict[str, np.ndarray]:
    """(n_train + n_test, C) of every feature: the training windows, then the test windows."""
    rows, scale = np.concatenate([split.train, split.test]), windows.metadata["scale"]
    if scaling == "training" and windows.metadata["unit"] == "count":
        return compute_features(windows.emg, rows, scale)
    of_day = scaling == "session"
    deviation = session_deviations(windows, split)[rows] if of_day else channel_deviation(windows, split.train)
    return compute_features(windows.emg, rows, scale / deviation, 1 / TYPICAL_COUNTS)


def session_deviations(windows: WindowSet, split: Split) -> np.ndarray:
    """(n, C) standard deviation of each window's channels over the windows of its reference group."""
    deviations = np.ones((len(windows.table), windows.emg.shape[2]))
    groups = reference_groups(windows, split)
    for group, rows in enumerate(rows_to_measure(groups, split)):
        deviations[groups == group] = channel_deviation(windows, rows)
    return deviations


def channel_deviation(windows: WindowSet, rows: np.ndarray) -> np.ndarray:
    """(C,) standard deviation of each channel over the windows `rows`, in the file's unit; 1 where it lies still."""
    means, variances = np.zeros((2, len(rows), windows.emg.shape[2]))
    for piece in np.array_split(np.arange(len(rows)), -(-len(rows) // 1000)):
        emg = windows.emg[rows[piece]] * np.float64(windows.metadata["scale"])
        means[piece], variances[piece] = emg.mean(1), emg.var(1)
    deviation = np.sqrt(variances.mean(0) + means.var(0))
    return np.where(deviation > STILL * np.abs(means).max(0), deviation, 1)


def score(windows: WindowSet, split: Split, table: np.ndarray, kind: str, few: np.ndarray) -> dict:
    """Fit one classifier on the first n_train rows of `table`, or on the `few` of them, and score the others."""
    began = time.perf_counter()
    one_hot = np.eye(len(windows.classes))[predict(windows, split, table, kind, few)]
    metrics = compute_metrics(windows, split.test, one_hot)
    drawn = len(few) if kind in SLOW else len(split.train)
    spent = {"train_windows": drawn, "seconds": time.perf_counter() - began}
    return {"classifier": kind} | {name: metrics[name] for name in KEPT} | spent


def predict(windows: WindowSet, split: Split, table: np.ndarray, kind: str, few: np.ndarray) -> np.ndarray:
    """Fit as `score` does; returns the classes (n_test,) of the other rows."""
    count = len(split.train)
    chosen = few if kind in SLOW else np.arange(count)
    model = make_pipeline(VarianceThreshold(), StandardScaler(), clone(CLASSIFIERS[kind]))
    model.fit(table[chosen], windows.targets[split.train[chosen]])
    return model.predict(table[count:])


# ---- the command ------------------------------------------------------------------------------------------------


def run_baselines(settings: BaselineSettings, console: Console) -> None:
    """Data → baselines → a table on `console`, the JSON file and, with ADD_TO, picture and report of the run.

    Raises EMGError.
    """
    run = settings.ADD_TO
    if settings.RESUME:
        raise EMGError("RESUME is for main.py; ADD_TO takes the settings of a run, or name them one by one")
    settings = resumed_settings(settings, "ADD_TO") if run else settings
    metrics = read_metrics(run, "balanced_accuracy", "weights") if run else {}
    out = run / "baselines.json" if run else settings.OUT
    check_place(out)
    windows, split = load_split(settings, run)
    log_data(windows, split, settings)
    fitted, began = fitted_split(split, settings), time.perf_counter()
    baselines = evaluate_baselines(windows, fitted, settings.SEED)
    facts = facts_of_baselines(baselines, windows, fitted, settings)
    facts |= validated(run, windows, split, settings.SEED) | {"seconds": time.perf_counter() - began}
    print_table(baselines, facts, console)
    if run:
        use_format(settings.FIGURE_FORMAT)
        draw_beside_run(baselines, facts, metrics, out)
    replace_file(out, lambda path: write_json(path, facts | {"baselines": baselines}))
    if run:
        write_report(run, windows)
        log_verdicts(run)
    logger.info(f"{out}" + (f", {picture(out)} and report.html" if run else ""))


def validated(run: Path | None, windows: WindowSet, split: Split, seed: int = 0) -> dict:
    """`validation`, see `best_on_validation`, where a run has predictions to compare it with; else nothing."""
    if run and (run / "validation.parquet").is_file():
        return {"validation": best_on_validation(windows, split, seed)}
    return {}


def check_place(out: Path) -> None:
    """Raise EMGError where the file cannot be written, before the work instead of after it."""
    if out.is_dir() or not os.access(out.parent, os.W_OK):
        raise EMGError(f"{out}: no file can be written there; name another place")


def facts_of_baselines(baselines: list[dict], windows: WindowSet, split: Split, settings: BaselineSettings) -> dict:
    """What was scored on what, in words and numbers."""
    return {
        "data": str(settings.DATA_LOCATION),
        "data_note": windows.metadata["note"],
        "split": split.name,
        "split_description": split.description,
        "n_train": len(split.train),
        "n_test": len(split.test),
        "seed": settings.SEED,
        "classes": dict(zip(map(str, windows.classes), windows.class_names, strict=True)),
        "slow_train_windows": max(one["train_windows"] for one in baselines if one["classifier"] in SLOW),
        "chance": 1 / len(windows.classes),
        "versions": versions() | {"scikit-learn": sklearn.__version__},
    }


def print_table(baselines: list[dict], facts: dict, console: Console) -> None:
    """Print the balanced accuracy of every baseline, the best of each scaling marked."""
    reached = {(one["features"], one["classifier"], one["scaling"]): one["balanced_accuracy"] for one in baselines}
    best = {scaling: max(value for key, value in reached.items() if key[2] == scaling) for scaling in SCALES}
    table = Table("features", "classifier", *SCALES.values(), box=None)
    for name, kind in product(FEATURE_SETS, CLASSIFIERS):
        values = [(reached[name, kind, scaling], best[scaling]) for scaling in SCALES]
        table.add_row(name, kind, *(f"[bold]{v:.3f} *[/]" if v == top else f"{v:.3f}" for v, top in values))
    console.print("Balanced accuracy on the test part, by scale (* best of the column)")
    console.print(table)
    for line in remarks(facts):
        console.print(line, markup=False, soft_wrap=True)


def remarks(facts: dict) -> list[str]:
    """What a reader of the figures should know, in lines."""
    leak = ["LEAKY split: random windows"] if facts["split"] == "random" else []
    drawn = facts["slow_train_windows"]
    fewer = [f"{' and '.join(SLOW)} trained on {drawn} of the {facts['n_train']} windows"]
    chance = f"chance {facts['chance']:.3f}, {facts['n_test']} test windows"
    return [chance, *leak, *(fewer if drawn < facts["n_train"] else []), *filter(None, [facts["data_note"]])]


def draw_beside_run(baselines: list[dict], facts: dict, metrics: dict, path: Path) -> None:
    """Points of the balanced accuracy of the run and of every baseline, the best one first."""
    about = [shortened(facts["split_description"]), Path(facts["data"]).name, *remarks(facts)]
    groups = [f"{name}, {kind}" for name, kind in product(FEATURE_SETS, CLASSIFIERS)]
    values = {
        f"scale of the {words}": [one["balanced_accuracy"] for one in baselines if one["scaling"] == scaling]
        for scaling, words in SCALES.items()
    }
    run = (f"this run, {start_words(metrics['weights'])}", metrics["balanced_accuracy"])
    draw_baselines(groups, values, run, facts["chance"], "; ".join(about), path)
