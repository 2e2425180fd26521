"""The classical time-domain features of surface EMG, vectorised over windows.

Feature sets, definitions and thresholds are those of putEMG's authors (biolab_utilities and putemg_features, MIT):
a zero crossing counts where the samples beyond the threshold change sign, a slope sign change where the product of
two neighbouring slopes reaches it. Their released waveform length and Willison amplitude sum signed differences; here
both take absolute ones, as the textbook does (Phinyomark, Phukpattaranont and Limsakul, Expert Systems with
Applications 39, 7420–7431, 2012), unless `reference` asks for theirs.
"""

import numpy as np

FEATURE_SETS = {
    "RMS": ("RMS",),
    "log-RMS": ("log-RMS",),
    "Hudgins": ("MAV", "WL", "ZC", "SSC"),
    "Du": ("IAV", "VAR", "WL", "ZC", "SSC", "WAMP"),
}
ZC_COUNTS, SSC_COUNTS2, WAMP_COUNTS = 30, 16, 10  # thresholds in ADC counts; that of slopes is of a product, counts²
SMALLEST_RMS = 1e-3  # so that the logarithm of a channel without signal is finite
CHUNK_SAMPLES = 2_000_000  # computed at a time: about 100 MB, however many windows there are


def compute_features(
    emg: np.ndarray, rows: np.ndarray, scale: float | np.ndarray = 1.0, count: float = 1.0, reference: bool = False
) -> dict[str, np.ndarray]:
    """Every feature of the windows `rows` of (n, T, C) `emg`, in the order of `rows`, (len(rows), C) each.

    The windows are multiplied by `scale` first, one number or one per row and channel. The thresholds are multiplied by
    `count`, the size of an ADC count after that. With `reference`, WL and WAMP are the signed ones of putEMG's release.
    """
    scale = np.broadcast_to(scale, (len(rows), emg.shape[2])).astype(np.float64)
    pieces = np.array_split(np.arange(len(rows)), -(-len(rows) * emg[0].size // CHUNK_SAMPLES))
    parts = [_of_chunk(emg[rows[piece]] * scale[piece, None], count, reference) for piece in pieces]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _of_chunk(emg: np.ndarray, count: float, reference: bool) -> dict[str, np.ndarray]:
    slope = np.diff(emg, axis=1)  # (n, T − 1, C)
    change = slope if reference else np.abs(slope)
    rms, rectified = np.sqrt(np.mean(emg**2, axis=1)), np.abs(emg)
    return {
        "RMS": rms,
        "log-RMS": np.log(np.maximum(rms, SMALLEST_RMS)),
        "MAV": rectified.mean(1),
        "IAV": rectified.sum(1),
        "VAR": emg.var(1),
        "WL": change.sum(1),
        "ZC": zero_crossings(emg, ZC_COUNTS * count),
        "SSC": np.sum(-slope[:, :-1] * slope[:, 1:] >= SSC_COUNTS2 * count**2, axis=1),
        "WAMP": np.sum(change > WAMP_COUNTS * count, axis=1),
    }


def zero_crossings(emg: np.ndarray, threshold: float) -> np.ndarray:
    """(n, C) changes of sign along the time axis of (n, T, C), among the samples beyond ± `threshold`."""
    beyond = np.abs(emg) > threshold
    times = np.arange(emg.shape[1], dtype=np.int32)[:, None]  # (T, 1)
    latest = np.maximum.accumulate(np.where(beyond, times, np.int32(0)), axis=1)  # the last one beyond, at each time
    sign = np.take_along_axis(np.sign(emg) * beyond, latest, axis=1)
    return np.sum(sign[:, 1:] * sign[:, :-1] < 0, axis=1)
