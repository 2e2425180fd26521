"""Windows as numbers that a classifier reads, each measured against averages (levels.py).

Three ways of measuring: each channel is divided by its standard deviation (time-domain features, signals); each number
is standardised by mean and deviation (log covariances, Du features); covariances are whitened by their log-Euclidean
mean, which moves them to where the identity is the mean of a session (tangent space: Barachant et al., IEEE TBME 2012;
re-centring: Zanini et al., IEEE TBME 2018).
"""

from importlib.util import find_spec

import numpy as np
import torch

from EMG_DATA_LOADER import read_emg
from emg_gpt2.model.normalise import SPREAD_FLOOR, log_covariance
from emg_gpt2.study.features import FEATURE_SETS, compute_features
from emg_gpt2.windows.reading import WindowSet

TYPICAL_COUNTS = 10  # standard deviation of a putEMG channel, about
STILL = 1e-9  # of a channel's level: what rounding leaves of a standard deviation of 0
AT_ONCE = 1000  # windows
LEAST_VARIANCE = 1e-6  # of a scaled channel, so that a silent window has a logarithm
HAS_PYRIEMANN = find_spec("pyriemann") is not None


def in_pieces(rows: np.ndarray) -> list[np.ndarray]:
    return np.array_split(rows, -(-len(rows) // AT_ONCE))


def moments(windows: WindowSet, rows: np.ndarray) -> np.ndarray:
    """(n, 2C) mean and mean square of every channel, in the file's unit; 0 for the windows that are not in `rows`."""
    found = np.zeros((len(windows.table), 2 * windows.emg.shape[2]))
    for piece in in_pieces(rows):
        emg = windows.emg[piece] * np.float64(windows.metadata["scale"])
        found[piece] = np.concatenate([emg.mean(1), np.square(emg).mean(1)], axis=1)
    return found


def deviations(averages: np.ndarray) -> np.ndarray:
    """(n, C) standard deviation of the channels from averages of `moments`; 1 where a channel lies still."""
    means, squares = np.split(averages, 2, axis=-1)
    found = np.sqrt(np.maximum(squares - means**2, 0))
    return np.where(found > np.sqrt(STILL) * np.abs(means), found, 1)


class Channels:
    """Windows whose channels are divided by their standard deviation.

    table (n, M): what is averaged; `measure` returns what is read of some windows.
    """

    def __init__(self, windows: WindowSet, rows: np.ndarray):
        self.windows, self.table = windows, moments(windows, rows)

    def measure(self, rows: np.ndarray, averages: np.ndarray, over: str) -> np.ndarray:
        """(n, T, C) float32."""
        scale = self.windows.metadata["scale"] / deviations(averages)
        return self.windows.emg[rows].astype(np.float32) * scale[:, None].astype(np.float32)


class Features(Channels):
    """Time-domain features (features.py) of such windows, by feature set."""

    def __init__(self, windows: WindowSet, rows: np.ndarray, name: str):
        super().__init__(windows, rows)
        self.name = name

    def measure(self, rows: np.ndarray, averages: np.ndarray, over: str) -> np.ndarray:
        """(n, F). The thresholds are counts where the file has counts and the scale is that of all training windows."""
        scale = self.windows.metadata["scale"]
        if over == "all" and self.windows.metadata["unit"] == "count":
            found = compute_features(self.windows.emg, rows, scale)
        else:
            found = compute_features(self.windows.emg, rows, scale / deviations(averages), 1 / TYPICAL_COUNTS)
        return np.concatenate([found[member] for member in FEATURE_SETS[self.name]], axis=1)


class Entries:
    """Numbers of a window, each less its mean and divided by its deviation. values (n, F)."""

    def __init__(self, values: np.ndarray):
        self.values, self.table = values, np.concatenate([values, values**2], axis=1)

    def measure(self, rows: np.ndarray, averages: np.ndarray, over: str) -> np.ndarray:
        """(n, F)."""
        means, squares = np.split(averages, 2, axis=1)
        spread = np.sqrt(np.maximum(squares - means**2, 0))
        return (self.values[rows] - means) / np.maximum(spread, SPREAD_FLOOR)


class Tangent:
    """Covariances (n, C, C), whitened, in the tangent space at the identity."""

    def __init__(self, covariances: np.ndarray, rows: np.ndarray):
        from pyriemann.geometry.base import logm

        self.covariances, self.table = covariances, np.zeros((len(covariances), covariances[0].size))
        self.table[rows] = logm(covariances[rows]).reshape(len(rows), -1)

    def measure(self, rows: np.ndarray, averages: np.ndarray, over: str) -> np.ndarray:
        """(n, C(C+1)/2)."""
        from pyriemann.geometry.base import expm, invsqrtm, logm
        from pyriemann.geometry.tangentspace import upper

        covariances = self.covariances[rows]
        white = invsqrtm(expm(averages.reshape(covariances.shape)))
        return upper(logm(white @ covariances @ white))


class Joined:
    """Two views side by side."""

    def __init__(self, *views):
        self.views = views
        self.table = np.concatenate([view.table for view in views], axis=1)

    def measure(self, rows: np.ndarray, averages: np.ndarray, over: str) -> np.ndarray:
        ends = np.cumsum([view.table.shape[1] for view in self.views])[:-1]
        parts = np.split(averages, ends, axis=1)
        pairs = zip(self.views, parts, strict=True)
        return np.concatenate([view.measure(rows, part, over) for view, part in pairs], axis=1)


COVARIANCES = ("log covariance", "log covariance + Du", "tangent space", "tangent space + Du")


def covariance_views(windows: WindowSet, train: np.ndarray, rows: np.ndarray) -> dict[str, object]:
    """COVARIANCES by name, of windows at the scale of the training part; the last two need pyRiemann."""
    moment = moments(windows, rows)
    scale = windows.metadata["scale"] / deviations(moment[train].mean(0))
    found = compute_features(windows.emg, rows, scale, 1 / TYPICAL_COUNTS)
    channels = windows.emg.shape[2]
    du, logs = (np.zeros((len(windows.table), width)) for width in (6 * channels, channels * (channels + 1) // 2))
    du[rows] = np.concatenate([found[member] for member in FEATURE_SETS["Du"]], axis=1)
    factor = torch.from_numpy(scale / windows.metadata["scale"])
    for piece in in_pieces(rows):
        logs[piece] = log_covariance(read_emg(windows, piece).double() * factor)
    views = {"log covariance": Entries(logs), "log covariance + Du": Joined(Entries(logs), Entries(du))}
    if HAS_PYRIEMANN:
        tangent = Tangent(shrunk_covariances(windows, rows, scale), rows)
        views |= {"tangent space": tangent, "tangent space + Du": Joined(tangent, Entries(du))}
    return views


def shrunk_covariances(windows: WindowSet, rows: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """(n, C, C) by pyRiemann, shrunk as Chen et al. do (OAS, IEEE Trans. Signal Process. 2010)."""
    from pyriemann.estimation import Covariances

    found = np.tile(np.eye(windows.emg.shape[2]), (len(windows.table), 1, 1))
    for piece in in_pieces(rows):
        found[piece] = Covariances("oas").transform((windows.emg[piece] * scale).swapaxes(1, 2))
    return found + LEAST_VARIANCE * np.eye(windows.emg.shape[2])
