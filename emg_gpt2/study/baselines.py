"""Classical classifiers on classical features, on the same windows and split as the model."""

import logging
import time

import numpy as np
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
from emg_gpt2.base.log import time_to_go
from emg_gpt2.study.features import FEATURE_SETS, compute_features
from emg_gpt2.windows.reading import WindowSet
from EMG_utils import compute_metrics

logger = logging.getLogger(__name__)

QDA_REGULARISATION = 0.3


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


SLOW, FEW_WINDOWS = ("kNN", "SVM"), 20_000  # their time grows with the square of the training windows


SCALINGS = {"training": "training part", "session": "session"}


TYPICAL_COUNTS = 10  # standard deviation of a putEMG channel, about


STILL = 1e-9  # of a channel's level: what rounding leaves of a standard deviation of 0


KEPT = ("accuracy", "balanced_accuracy", "macro_f1", "per_class", "per_subject")


def evaluate_baselines(windows: WindowSet, split: Split, seed: int = 0) -> list[dict]:
    """Figures of every feature set × classifier × scaling, fitted on split.train, on split.test.

    One dict each: `features`, `classifier`, `scaling` ("training" or "session"), `train_windows`, `seconds` of fit
    and prediction, and accuracy, balanced_accuracy, macro_f1, per_class and per_subject as EMG_utils.compute_metrics
    has them. kNN and SVM train on at most 20,000 windows, drawn with `seed` per recording and gesture.
    Raises EMGError where no channel has a signal.
    """
    results, few, began = [], draw_windows(windows, split.train, seed), time.monotonic()
    every = len(SCALINGS) * len(FEATURE_SETS) * len(CLASSIFIERS)
    for scaling, words in SCALINGS.items():
        features = scaled_features(windows, split, scaling)
        for name, members in FEATURE_SETS.items():
            table = np.concatenate([features[member] for member in members], axis=1)
            if not np.ptp(table[: len(split.train)], axis=0).any():
                raise EMGError("no channel changes in the training part; look at the file with tools.inspect")
            scored = [score(windows, split, table, kind, few) for kind in CLASSIFIERS]
            results += [{"features": name, "scaling": scaling} | one for one in scored]
            reached = ", ".join(f"{one['classifier']} {one['balanced_accuracy']:.3f}" for one in scored)
            left = time_to_go(time.monotonic() - began, len(results), every - len(results))
            logger.info(f"{name}, scale of the {words}: {reached}{left if len(results) < every else ''}")
    return results


def draw_windows(windows: WindowSet, train: np.ndarray, seed: int) -> np.ndarray:
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
    began, count = time.perf_counter(), len(split.train)
    chosen = few if kind in SLOW else np.arange(count)
    model = make_pipeline(VarianceThreshold(), StandardScaler(), clone(CLASSIFIERS[kind]))
    model.fit(table[chosen], windows.targets[split.train[chosen]])
    one_hot = np.eye(len(windows.classes))[model.predict(table[count:])]
    metrics = compute_metrics(windows, split.test, one_hot)
    spent = {"train_windows": len(chosen), "seconds": time.perf_counter() - began}
    return {"classifier": kind} | {name: metrics[name] for name in KEPT} | spent
