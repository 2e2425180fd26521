"""The classifiers that a model is compared with: each has settings to choose from, is fitted to training windows, and
predicts the judged windows of a level (levels.py).

* The field's time-domain features (features.py) with LDA, QDA, kNN and SVM. Classifiers have putEMG's parameters, and
  otherwise scikit-learn's defaults, whatever BALANCE says. On the sample's validation parts (splits trajectory and
  session, mean over feature sets and scalings) equal priors of LDA and QDA and class weights of the SVM changed
  balanced accuracy from 0.793 to 0.795 (LDA), 0.808 to 0.787 (shrinkage), 0.765 to 0.767 (QDA) and 0.735 to 0.730
  (SVM), and lowered each macro F1.
* Log covariances and tangent space (views.py), also joined with Du features, with LDA, logistic regression and SVM, in
  which each class weighs alike.
* MiniRocket with a ridge classifier, a convolutional network and a transformer (networks.py).
* Classifiers that are fitted to the calibration of the session that is judged.
"""

from collections.abc import Callable
from itertools import product

import numpy as np
from sklearn.base import clone
from sklearn.covariance import EmpiricalCovariance, ledoit_wolf
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis, QuadraticDiscriminantAnalysis
from sklearn.feature_selection import VarianceThreshold
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from emg_gpt2.base.errors import EMGError
from emg_gpt2.study.bench import Bench
from emg_gpt2.study.features import FEATURE_SETS
from emg_gpt2.study.levels import LEVELS, TRAINED
from emg_gpt2.study.networks import Transformer, convolutional, predicted, train_network
from emg_gpt2.study.views import COVARIANCES, HAS_PYRIEMANN

QDA_REGULARISATION = 0.3
SLOW = ("kNN", "SVM")  # their time grows with the square of the training windows
STRENGTHS = (8, 64, 512)  # windows that the training average counts for
KERNEL_C, LOGISTIC_C, RIDGE_ALPHA = (1, 10, 100), (0.01, 0.1, 1), (1e1, 1e2, 1e3, 1e4)
PSEUDO_WINDOWS = (0, 1, 4, 16)  # that a class mean of the training part counts for beside the calibration's


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


def balanced_lda(targets: np.ndarray) -> LinearDiscriminantAnalysis:
    count = len(set(targets))
    return LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto", priors=np.full(count, 1 / count))


BALANCED = {  # name → settings to choose from, and the classifier of a setting and the targets
    "LDA shrinkage": ([None], lambda _, targets: balanced_lda(targets)),
    "logistic": (LOGISTIC_C, lambda c, _: LogisticRegression(C=c, class_weight="balanced", max_iter=300, tol=1e-3)),
    "SVM": (KERNEL_C, lambda c, _: SVC(C=c, class_weight="balanced")),
}
RIDGE = RIDGE_ALPHA, lambda alpha, _: RidgeClassifier(alpha, class_weight="balanced", solver="cholesky")


class Rival:
    """A classifier on a view of the windows. `settings` and `strengths` are what is chosen from, for each level."""

    def __init__(self, features: str, classifier: str, settings: tuple, make: Callable, slow: bool = False):
        self.features, self.classifier, self.settings, self.make, self.slow = features, classifier, settings, make, slow
        self.levels = tuple(LEVELS)

    def strengths(self, level: str) -> tuple[float, ...]:
        """What the training average counts for at a level: all where nothing is known, nothing where all is."""
        return {"inductive": (1,), "transductive": (0,)}.get(level, STRENGTHS)

    def predict(self, bench: Bench, level: str, setting, strength: float, few: int) -> np.ndarray:
        """Classes of the judged windows; a slow classifier is fitted to at most `few` training windows."""
        fitted = bench.kept((self, TRAINED[level], setting, few), lambda: self.fit(bench, TRAINED[level], setting, few))
        return fitted.predict(bench.judged(self.features, level, strength))

    def fit(self, bench: Bench, over: str, setting, few: int):
        chosen = bench.sample(few) if self.slow else slice(None)
        table, targets = bench.trained(self.features, over)[chosen], bench.targets[chosen]
        if not np.ptp(table, axis=0).any():
            raise EMGError("no channel changes in the training part; look at the file with python -m emg_gpt2 inspect")
        return make_pipeline(VarianceThreshold(), StandardScaler(), self.make(setting, targets)).fit(table, targets)


class Network(Rival):
    """A network that is trained on the session scale, or without it; its epoch is chosen on the validation part."""

    def __init__(self, classifier: str, build: Callable):
        super().__init__("signal", classifier, (None,), build)
        self.epochs = {}

    def predict(self, bench: Bench, level: str, setting, strength: float, few: int) -> np.ndarray:
        over = "all" if level == "inductive" else "sessions"  # a third training costs minutes
        model = bench.kept((self, over), lambda: self.fit(bench, over, setting, few))
        return predicted(model, bench.judged(self.features, level, strength))

    def fit(self, bench: Bench, over: str, setting, few: int):
        judged, level = None, "inductive" if over == "all" else "unlabelled"
        if over not in self.epochs:
            middle = self.strengths(level)[len(self.strengths(level)) // 2]
            judged = bench.judged(self.features, level, middle), bench.targets_of(level)
        signal, epochs = bench.trained(self.features, over), self.epochs.get(over)
        model, epochs = train_network(self.make, signal, bench.targets, bench.classes, judged, epochs, bench.seed)
        self.epochs[over] = epochs
        return model


class OnCalibration(Rival):
    """Fitted to each session's calibration. `judge` gets calibration, its targets, the windows to judge, the training
    part's class means (K, F) and the covariance (F, F) within its classes, and the setting."""

    def __init__(self, features: str, classifier: str, settings: tuple, judge: Callable):
        super().__init__(features, classifier, settings, judge)
        self.levels = ("calibrated",)

    def predict(self, bench: Bench, level: str, setting, strength: float, few: int) -> np.ndarray:
        means, within = bench.kept((self.features, "within"), lambda: self.fit(bench, TRAINED[level], setting, few))
        found = []
        for told, targets, judged in bench.sessions(self.features, strength):
            found.append(self.make(told, targets, judged, means, within, setting))
        return np.concatenate(found)

    def fit(self, bench: Bench, over: str, setting, few: int) -> tuple[np.ndarray, np.ndarray]:
        table, targets = bench.trained(self.features, over), bench.targets
        sums, counts = class_sums(table, targets, bench.classes)
        means = sums / counts
        return means, ledoit_wolf(table - means[targets], assume_centered=True)[0]


def class_sums(table: np.ndarray, targets: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """(K, F) sums of a table (n, F) over the windows of each class, and their numbers (K, 1)."""
    one_hot = np.eye(classes)[targets]
    return one_hot.T @ table, one_hot.sum(0)[:, None]


def lda_alone(told, targets, judged, means, within, setting) -> np.ndarray:
    return make_pipeline(VarianceThreshold(), balanced_lda(targets)).fit(told, targets).predict(judged)


def nearest(judged: np.ndarray, means: np.ndarray) -> np.ndarray:
    """The class whose mean is nearest; a class without a mean (nan) never is."""
    distance = np.square(judged[:, None] - means).sum(2)
    return np.nanargmin(distance, axis=1)


def class_means(told, targets, judged, means, within, setting) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        sums, counts = class_sums(told, targets, len(means))
        return nearest(judged, sums / counts)


def shared_covariance(told, targets, judged, means, within, setting) -> np.ndarray:
    """Class means of the calibration and of the training part, which counts for `setting` windows."""
    white = np.linalg.cholesky(np.linalg.inv(within))
    sums, counts = class_sums(told, targets, len(means))
    with np.errstate(invalid="ignore"):
        joined = (setting * means + sums) / (setting + counts)
    return nearest(judged @ white, joined @ white)


def plain_rival(features: str, classifier: str) -> Rival:
    """One of FEATURE_SETS with one of CLASSIFIERS, of which nothing is chosen."""
    make = lambda setting, targets: clone(CLASSIFIERS[classifier])  # noqa: E731
    return Rival(features, classifier, (None,), make, classifier in SLOW)


def covariance_rivals(table: str) -> list[Rival]:
    """Those that read one of COVARIANCES."""
    return [
        *(Rival(table, name, *BALANCED[name], name in SLOW) for name in BALANCED),
        OnCalibration(table, "LDA of calibration", (None,), lda_alone),
        OnCalibration(table, "class means", (None,), class_means),
        OnCalibration(table, "means, shared cov.", PSEUDO_WINDOWS, shared_covariance),
    ]


def all_rivals() -> list[Rival]:
    """A new one of each, to be chosen and fitted; without pyRiemann none on the tangent space."""
    return [
        *(plain_rival(table, name) for table, name in product(FEATURE_SETS, CLASSIFIERS)),
        *(one for table in COVARIANCES if HAS_PYRIEMANN or "tangent" not in table for one in covariance_rivals(table)),
        Rival("MiniRocket", "ridge", *RIDGE),
        Network("CNN", convolutional),
        Network("transformer", Transformer),
    ]
