"""Training windows, and windows to judge: what each classifier of rivals.py reads at each level of knowledge."""

import logging
from collections.abc import Callable, Iterator

import numpy as np

from EMG_DATA_LOADER import thin
from emg_gpt2.study.features import FEATURE_SETS
from emg_gpt2.study.levels import TRAINED, Averages, judged_averages, known, rows_judged, training_averages
from emg_gpt2.study.networks import MiniRocket
from emg_gpt2.study.views import Channels, Features, covariance_views
from emg_gpt2.windows.reading import WindowSet

logger = logging.getLogger(__name__)


class Bench:
    """Training windows `train`, and the windows `rows` to judge with at most `context` windows of their session."""

    def __init__(self, windows: WindowSet, train: np.ndarray, rows: np.ndarray, context: int, seed: int = 0):
        self.windows, self.train, self.seed = windows, train, seed
        self.levels = known(windows, rows, context, train)
        self.classes, self.targets = len(windows.classes), windows.targets[train]
        told = [one.rows for one in self.levels.get("calibrated", [])]
        self.used = np.unique(np.concatenate([train, rows, *told]))
        self._kept, self._views = {}, {}

    def kept(self, key: tuple, make: Callable):
        """What `make` returned when it was asked for `key` first."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def forget(self) -> None:
        """Let go of what was kept: the next classifier needs none of it."""
        self._kept.clear()

    def rows_of(self, level: str) -> np.ndarray:
        """Rows of the windows that are judged, in the order of the predictions."""
        return rows_judged(self.levels[level])

    def targets_of(self, level: str) -> np.ndarray:
        return self.windows.targets[self.rows_of(level)]

    def view(self, name: str):
        """The view of the windows that a classifier names."""
        if name not in self._views:
            self._views |= self._make_views(name)
        return self._views[name]

    def _make_views(self, name: str) -> dict:
        if name in FEATURE_SETS:
            return {name: Features(self.windows, self.used, name)}
        if name == "signal":
            return {name: Channels(self.windows, self.used)}
        if name == "MiniRocket":
            return {name: MiniRocket(self.windows, self.used, self.seed)}
        return covariance_views(self.windows, self.train, self.used)

    def averages(self, name: str, over: str) -> Averages:
        table = self.view(name).table
        return self.kept((name, over, "averages"), lambda: training_averages(self.windows, self.train, table, over))

    def trained(self, name: str, over: str) -> np.ndarray:
        """The training windows in a view, measured against averages over `over`."""
        view, averages = self.view(name), self.averages(name, over)
        return self.kept((name, over), lambda: view.measure(self.train, averages.rows, over))

    def judged(self, name: str, level: str, strength: float) -> np.ndarray:
        """The judged windows of a level in a view; the training average counts for `strength` windows."""
        view, over = self.view(name), TRAINED[level]
        averages = self.averages(name, over)
        return self.kept(
            (name, level, strength),
            lambda: view.measure(
                self.rows_of(level),
                judged_averages(self.windows, self.levels[level], view.table, averages, strength),
                over,
            ),
        )

    def sessions(self, name: str, strength: float) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Of each session the calibration (N, F), its targets (N,) and the windows to judge (n, F)."""
        view, over, first = self.view(name), TRAINED["calibrated"], 0
        table, averages = self.judged(name, "calibrated", strength), self.averages(name, over)
        for one in self.levels["calibrated"]:
            each = one._replace(judged=one.rows, counts=np.full(len(one.rows), len(one.rows)))
            told = view.measure(one.rows, judged_averages(self.windows, [each], view.table, averages, strength), over)
            yield told, self.windows.targets[one.rows], table[first : first + len(one.judged)]
            first += len(one.judged)

    def sample(self, few: int) -> np.ndarray:
        """Which of the training windows a slow classifier gets: all, or about `few`, of each recording and gesture."""
        everything = np.arange(len(self.train))
        if len(self.train) <= few:
            return everything
        rng = np.random.default_rng(self.seed)
        return thin(self.windows.table.iloc[self.train], everything, few / len(self.train), rng)
