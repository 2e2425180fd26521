"""Channels that look wrong in a raw recording: flat, clipped or noisy, with how much and where."""

from typing import NamedTuple

import numpy as np
from scipy.signal import welch

from emg_gpt2.raw.filter import LINE_FREQUENCIES
from emg_gpt2.raw.recording import Recording

FLAT_S = 0.25  # as long as a window; electrodes on skin (flexemg, armband) hold a value for at most 10 ms
CONVERTER_LIMITS = (-2048, 2047, 2048)  # counts, of putEMG's 12 bits
CLIPPED_RUN = 3  # samples; a peak that is not cut off seldom holds its highest value for so long
CLIPPED_SHARE = 1e-3  # of a putEMG recording, as long as a window; flexemg and armband stay below 2e-4
NOISY_FACTOR = 4.0  # good electrodes at rest reach 2.5 times the median in armband, 2.3 in simulated recordings
NOISY_DEVIATIONS = 3.5  # the usual limit of the modified z-score (Iglewicz and Hoaglin, 1993)
LINE_HZ = 2.5  # to either side of a line frequency: the main lobe of a piece's Hann window, and half a bin
LINE_SHARE = 0.5  # of the power; most channels have 0.1 to 0.3, because EMG has power near those frequencies too
PIECE_S = 1.0  # length of the pieces whose spectra are averaged


class Finding(NamedTuple):
    """What is wrong with a channel, counted from 0: its kind (flat, clipped or noisy), and how much and where."""

    channel: int
    kind: str
    words: str

    def __str__(self) -> str:
        return f"EMG_{self.channel + 1} {self.kind}: {self.words}"


class Spectrum(NamedTuple):
    """`frequencies` (F,) in Hz and `power` (F, C) in unit² per Hz."""

    frequencies: np.ndarray
    power: np.ndarray


def spectrum(emg: np.ndarray, rate: float) -> Spectrum:
    """Return Welch's estimate for (N, C) samples; one channel at a time, because scipy copies what it is given."""
    length = min(round(PIECE_S * rate), len(emg))
    estimates = [welch(x, rate, nperseg=length) for x in emg.T]
    return Spectrum(estimates[0][0], np.stack([power for _, power in estimates], axis=1))


def rms_per_label(emg: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(N, C) samples → (K, C) RMS about the channel's mean, for the K values of the labels (N,) in rising order."""
    _, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
    squares = [np.bincount(index, np.square(x - x.mean(dtype=np.float64))) for x in emg.T]  # C × (K,)
    return np.sqrt(np.stack(squares, axis=1) / counts[:, None])


def find_flat(recording: Recording) -> list[Finding]:
    """Find channels that hold one value for FLAT_S or longer."""
    rate, findings = recording.sampling_rate, []
    for channel, x in enumerate(recording.emg.T):
        bounds = np.concatenate([[0], np.flatnonzero(np.diff(x)) + 1, [len(x)]])
        runs = np.diff(bounds)  # lengths of the runs of one value
        still = runs[runs >= round(FLAT_S * rate)]
        if len(still):
            start = recording.time[bounds[runs.argmax()]]
            words = f"{still.max() / rate:.2f} s without a change from {start:.2f} s"
            more = f", {still.sum() / rate:.2f} s in {len(still)} such stretches" if len(still) > 1 else ""
            findings.append(Finding(channel, "flat", words + more))
    return findings


def find_clipped(emg: np.ndarray) -> list[Finding]:
    """Find channels of (N, C) samples that rest at their own extreme values, or often reach the converter's limits."""
    findings = []
    for channel, x in enumerate(emg.T):
        low, high = x.min(), x.max()
        share = _share_clipped(x, np.flatnonzero((x == low) | (x == high)))
        if low < high and share >= CLIPPED_SHARE:  # else it is flat
            findings.append(Finding(channel, "clipped", f"{share:.2%} of the samples rest at {low:g} or {high:g}"))
    return findings


def _share_clipped(x: np.ndarray, extreme: np.ndarray) -> float:
    """Share of (N,) samples that are clipped, of which the rows `extreme` hold the lowest or the highest value."""
    bounds = np.concatenate([[0], np.flatnonzero(np.diff(extreme) > 1) + 1, [len(extreme)]])
    run = np.repeat(np.diff(bounds), np.diff(bounds))  # length of the run that each extreme sample is in
    return ((run >= CLIPPED_RUN) | np.isin(x[extreme], CONVERTER_LIMITS)).sum() / len(x)


def find_noisy(rms: np.ndarray, names: dict[int, str], where: str = "") -> list[Finding]:
    """Find channels that are loud at rest, from the (K, C) RMS of the K labels of `names`.

    Rest is label 0, or the quietest label where there is no 0.
    """
    rest = list(names).index(0) if 0 in names else np.median(rms, axis=1).argmin()
    level = np.log(np.maximum(rms[rest], np.finfo(np.float32).tiny))
    above = level - np.median(level)
    deviation = 1.4826 * np.median(np.abs(above))  # equals the standard deviation of a normal distribution
    loud = np.flatnonzero(above > max(np.log(NOISY_FACTOR), NOISY_DEVIATIONS * deviation))
    words = f"times the median channel's RMS during {list(names.values())[rest]}{where}"
    return [Finding(int(channel), "noisy", f"{np.exp(above[channel]):.1f} {words}") for channel in loud]


def find_lines(filtered: Spectrum) -> list[Finding]:
    """Find channels whose power after the filter is mostly that of the power line."""
    frequencies, power = filtered
    lines = np.array([line for line in LINE_FREQUENCIES if line < frequencies[-1]])
    near = np.abs(frequencies[:, None] - lines) <= LINE_HZ  # (F, lines)
    share = power[near.any(axis=1)].sum(axis=0) / np.maximum(power.sum(axis=0), np.finfo(np.float32).tiny)
    strongest = lines[(near.T @ power).argmax(axis=0)]  # (C,)
    words = "{:.0%} of the power after the filter lies near line frequencies, most near {:g} Hz"
    loud = np.flatnonzero(share > LINE_SHARE)
    return [Finding(int(channel), "noisy", words.format(share[channel], strongest[channel])) for channel in loud]
