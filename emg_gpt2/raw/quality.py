"""Channels that look wrong in a recording: flat, clipped, noisy or unsteady, with how much and where.

A recording is looked at as a whole and in pieces of a quarter of a second, where a fault is what lasts for STEADY of
them. The limits are above what all good channels of flexemg, armband and simulated recordings reach.
"""

from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy.signal import periodogram, welch

from emg_gpt2.raw.filter import LINE_FREQUENCIES
from emg_gpt2.raw.recording import Recording

PIECE_S = 0.25  # as long as a window
STEADY = 3  # pieces; a second holds as many wherever it begins, and a movement's swing is over by then
FLAT_S = 0.25  # electrodes on skin (flexemg, armband) hold a value for at most 10 ms
CONVERTER_LIMITS = (-2048, 2047, 2048)  # counts, of putEMG's 12 bits
CLIPPED_RUN = 3  # samples; a peak that is not cut off seldom holds its highest value for so long
CLIPPED_SHARE = 1e-3  # of a putEMG recording, as long as a window; flexemg and armband stay below 2e-4
NOISY_FACTOR = 4.0  # good electrodes at rest reach 2.5 times the median in armband, 2.3 in simulated recordings
NOISY_DEVIATIONS = 3.5  # the usual limit of the modified z-score (Iglewicz and Hoaglin, 1993)
LOUD = 5.0  # times what other channels reach; good ones reach 4.2 in armband, 3.2 in flexemg, 4.3 simulated
JUMP = 12.0  # RMS of its loud pieces, or times what other channels jump; good ones reach 9
JUMPS_NAMED = 4  # of a channel
FEWEST_CHANNELS = 4  # with fewer there are no others to compare a piece with
LINE_HZ = 2.5  # to either side of a line frequency: the main lobe of a piece's Hann window, and half a bin
LINE_SHARE = 0.5  # of the power; most channels have 0.1 to 0.3, because EMG has power near those frequencies too
SPECTRUM_S = 1.0  # length of the pieces whose spectra are averaged
SPECTRA = 60  # pieces at the most, evenly spread, that decide whether the power is that of the line


class Finding(NamedTuple):
    """What is wrong with a channel, counted from 0.

    kind: flat, clipped, noisy or unsteady; words: how much and where.
    """

    channel: int
    kind: str
    words: str

    def __str__(self) -> str:
        return f"EMG_{self.channel + 1} {self.kind}: {self.words}"

    def described(self) -> dict[str, str]:
        """As the metadata of a windows file have it."""
        return {"channel": f"EMG_{self.channel + 1}", "kind": self.kind, "words": self.words}


class RawLook(NamedTuple):
    """What is to be known of raw samples before the filter takes their place.

    findings: flat and clipped channels; level: (P, C) means of the pieces; piece: their length in s.
    """

    findings: list[Finding]
    level: np.ndarray
    piece: float


class Spectrum(NamedTuple):
    """`frequencies` (F,) in Hz and `power` (F, C) in unit² per Hz."""

    frequencies: np.ndarray
    power: np.ndarray


def spectrum(emg: np.ndarray, rate: float) -> Spectrum:
    """Return Welch's estimate for (N, C) samples; one channel at a time, because scipy copies what it is given."""
    length = min(round(SPECTRUM_S * rate), len(emg))
    estimates = [welch(x, rate, nperseg=length) for x in emg.T]
    return Spectrum(estimates[0][0], np.stack([power for _, power in estimates], axis=1))


def rms_per_label(emg: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(N, C) samples → (K, C) RMS about the channel's mean, for the K values of the labels (N,) in rising order."""
    _, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
    squares = [np.bincount(index, np.square(x - x.mean(dtype=np.float64))) for x in emg.T]  # C × (K,)
    return np.sqrt(np.stack(squares, axis=1) / counts[:, None])


# ---- before the filter ------------------------------------------------------------------------------------------


def look_at_raw(recording: Recording) -> RawLook:
    """Find flat and clipped channels, and measure the level: a tenth of a second for a full recording of putEMG."""
    emg, rate = recording.emg, recording.sampling_rate
    length = max(8, int(FLAT_S / 2 * rate) // 8 * 8)  # every flat stretch holds such a piece
    low, high = extremes(emg, length)
    pieces = emg[: len(low) * length].reshape(len(low), length, emg.shape[1])
    level = np.matmul(np.full(length, 1 / length, np.float32), pieces)
    flat = find_flat(recording, np.flatnonzero((low == high).any(axis=0)))
    return RawLook(flat + find_clipped(emg, low, high, length), level, length / rate)


def extremes(emg: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest value of the pieces of (N, C) samples, (P, C) each; `length` is a multiple of 8."""
    count, channels = len(emg) // length, emg.shape[1]
    wide = emg[: count * length].reshape(count, length // 8, 8 * channels)  # a fifth of the time
    low, high = (reduce(wide, axis=1).reshape(count, 8, channels) for reduce in (np.min, np.max))
    return low.min(axis=1), high.max(axis=1)


def find_flat(recording: Recording, candidates: np.ndarray) -> list[Finding]:
    """Find the `candidates` among the channels that hold one value for FLAT_S or longer."""
    rate, findings = recording.sampling_rate, []
    for channel in candidates.tolist():
        x = recording.emg[:, channel]
        bounds = np.concatenate([[0], np.flatnonzero(np.diff(x)) + 1, [len(x)]])
        runs = np.diff(bounds)  # lengths of the runs of one value
        still = runs[runs >= round(FLAT_S * rate)]
        if len(still):
            start = recording.time[bounds[runs.argmax()]]
            words = f"{still.max() / rate:.2f} s without a change from {start:.2f} s"
            more = f", {still.sum() / rate:.2f} s in {len(still)} such stretches" if len(still) > 1 else ""
            findings.append(Finding(channel, "flat", words + more))
    return findings


def find_clipped(emg: np.ndarray, lows: np.ndarray, highs: np.ndarray, length: int) -> list[Finding]:
    """Find channels of (N, C) samples that rest at their own extreme values, or often reach the converter's limits.

    lows, highs: `extremes` of pieces of `length` samples, so that few of the samples have to be looked at.
    """
    findings, tail = [], np.arange(len(lows) * length, len(emg))
    for channel, x in enumerate(emg.T):
        low = min([*lows[:, channel], *x[tail]])
        high = max([*highs[:, channel], *x[tail]])
        near = np.flatnonzero((lows[:, channel] == low) | (highs[:, channel] == high))
        rows = np.concatenate([(near[:, None] * length + np.arange(length)).ravel(), tail])
        share = _share_clipped(x, rows[(x[rows] == low) | (x[rows] == high)])
        if low < high and share >= CLIPPED_SHARE:  # else it is flat
            findings.append(Finding(channel, "clipped", f"{share:.2%} of the samples rest at {low:g} or {high:g}"))
    return findings


def _share_clipped(x: np.ndarray, extreme: np.ndarray) -> float:
    """Share of (N,) samples that are clipped, of which the rows `extreme` hold the lowest or the highest value."""
    bounds = np.concatenate([[0], np.flatnonzero(np.diff(extreme) > 1) + 1, [len(extreme)]])
    run = np.repeat(np.diff(bounds), np.diff(bounds))  # length of the run that each extreme sample is in
    return ((run >= CLIPPED_RUN) | np.isin(x[extreme], CONVERTER_LIMITS)).sum() / len(x)


# ---- after the filter -------------------------------------------------------------------------------------------


def find_all(raw: RawLook, recording: Recording, filtered: np.ndarray, rate: float) -> list[Finding]:
    """All findings by channel, from the look at the raw samples, and the (M, C) filtered ones at `rate` Hz."""
    rows = np.rint(np.arange(len(filtered)) * recording.sampling_rate / rate).astype(int)
    labels = recording.labels[np.minimum(rows, len(recording.labels) - 1)]
    whole = find_noisy(rms_per_label(filtered, labels), np.unique(labels).tolist())
    whole += find_lines(_spectrum_of_some(filtered, rate))
    pieces = find_in_pieces(raw, recording, filtered, labels, rate)
    dated = {finding.channel for finding in pieces if finding.kind == "noisy"}  # which says more
    return sorted([*raw.findings, *pieces, *(finding for finding in whole if finding.channel not in dated)])


def find_in_pieces(
    raw: RawLook, recording: Recording, filtered: np.ndarray, labels: np.ndarray, rate: float
) -> list[Finding]:
    """Find faults that last for some pieces, where there are enough of these and of channels to compare them."""
    length = round(PIECE_S * rate)
    count, channels = len(filtered) // length, len(recording.channels)
    if count < 2 * STEADY or channels < FEWEST_CHANNELS:
        return []
    pieces = filtered[: count * length].reshape(count, length, channels)
    rms, start, noisy = _rms(pieces), recording.time[0], {}
    at_rest = (labels[: count * length].reshape(count, length) == 0).all(axis=1)
    for among, where in ((at_rest, " at rest"), (np.ones(count, bool), "")):  # the latter is the stronger
        noisy |= {one.channel: one for one in find_loud(pieces, rms, among, where, rate, start)}
    return [*noisy.values(), *find_jumps(raw, np.quantile(rms, 0.9, axis=0), start)]


def find_noisy(rms: np.ndarray, labels: list[int], where: str = "") -> list[Finding]:
    """Find channels that are loud at rest, from the (K, C) RMS of the K `labels`.

    Rest is label 0, or the quietest label where there is no 0.
    """
    rest = labels.index(0) if 0 in labels else int(np.median(rms, axis=1).argmin())
    level = np.log(np.maximum(rms[rest], np.finfo(np.float32).tiny))
    above = level - np.median(level)
    deviation = 1.4826 * np.median(np.abs(above))  # equals the standard deviation of a normal distribution
    loud = np.flatnonzero(above > max(np.log(NOISY_FACTOR), NOISY_DEVIATIONS * deviation))
    when = "at rest" if 0 in labels else f"during label {labels[rest]}, the quietest"
    words = f"times the median channel's RMS {when}{where}"
    return [Finding(int(channel), "noisy", f"{np.exp(above[channel]):.1f} {words}") for channel in loud]


def find_lines(filtered: Spectrum) -> list[Finding]:
    """Find channels whose power after the filter is mostly that of the power line."""
    share, strongest = _line_share(filtered)
    words = "{:.0%} of the power after the filter lies near line frequencies, most near {:g} Hz"
    loud = np.flatnonzero(share > LINE_SHARE)
    return [Finding(int(channel), "noisy", words.format(share[channel], strongest[channel])) for channel in loud]


def _line_share(filtered: Spectrum) -> tuple[np.ndarray, np.ndarray]:
    """(C,) share of the power near line frequencies, and (C,) the strongest of these frequencies in Hz."""
    frequencies, power = filtered
    lines = np.array([line for line in LINE_FREQUENCIES if line < frequencies[-1]] or LINE_FREQUENCIES[:1])
    near = np.abs(frequencies[:, None] - lines) <= LINE_HZ  # (F, lines)
    share = power[near.any(axis=1)].sum(axis=0) / np.maximum(power.sum(axis=0), np.finfo(np.float32).tiny)
    return share, lines[(near.T @ power).argmax(axis=0)]


def _spectrum_of_some(filtered: np.ndarray, rate: float) -> Spectrum:
    """The mean spectrum of SPECTRA pieces of (M, C) samples: a tenth of the time that all of them take."""
    length = min(round(SPECTRUM_S * rate), len(filtered))
    first = np.unique(np.linspace(0, len(filtered) - length, SPECTRA).astype(int))
    frequencies, power = periodogram(filtered[first[:, None] + np.arange(length)], rate, "hann", axis=1)
    return Spectrum(frequencies, power.mean(axis=0))


# ---- in pieces --------------------------------------------------------------------------------------------------


def find_jumps(raw: RawLook, loud: np.ndarray, start: float) -> list[Finding]:
    """Find channels whose level jumps and stays away, far above their `loud` RMS (C,) and what the others do.

    A jump is the difference of the medians of the level over STEADY pieces before and after.
    """
    few = round(STEADY * PIECE_S / raw.piece)
    if len(raw.level) < 2 * few:
        return []
    medians = np.median(sliding_window_view(raw.level, few, axis=0), axis=-1)
    steps = np.abs(medians[few:] - medians[:-few])  # counts
    jumps = steps / _no_less(loud)
    findings = []
    for channel, others in enumerate(_reached_by_others(jumps)):
        found = np.flatnonzero(jumps[:, channel] > JUMP * others)
        if len(found):
            each = [run[steps[run, channel].argmax()] for run in _runs(found)]
            times = [f"{start + (at + few) * raw.piece:.1f} s" for at in each[:JUMPS_NAMED]]
            more = f" and {len(each) - JUMPS_NAMED} more" if len(each) > JUMPS_NAMED else ""
            words = f"its level jumps by up to {steps[each, channel].max():.4g}, at {', '.join(times)}{more}"
            findings.append(Finding(channel, "unsteady", words))
    return findings


def find_loud(
    pieces: np.ndarray, rms: np.ndarray, among: np.ndarray, where: str, rate: float, start: float
) -> list[Finding]:
    """Find channels that are loud for STEADY successive pieces `among` (P,) the (P, n, C) pieces, whose RMS is (P, C).

    Loudness is the RMS over the channel's own median; it counts beside what the other channels reach.
    """
    if among.sum() < 2 * STEADY:
        return []
    loudness = rms / _no_less(np.median(rms[among], axis=0))
    lasting = sliding_window_view(np.where(among[:, None], loudness, 0), STEADY, axis=0).min(axis=-1)
    findings = []
    for channel, others in enumerate(_reached_by_others(lasting)):
        found = np.flatnonzero(lasting[:, channel] > LOUD * others)
        if len(found):
            stretch = max(_runs(found), key=len)
            first, last = stretch[0], stretch[-1] + STEADY
            words = f"{(last - first) * PIECE_S:.2f} s from {start + first * PIECE_S:.2f} s at "
            words += (
                f"{loudness[first:last, channel].mean():.0f} times its median RMS{where}; others reach {others:.1f}"
            )
            signal = pieces[first:last, :, channel].reshape(-1, 1)
            [share], [line] = _line_share(Spectrum(*periodogram(signal, rate, "hann", axis=0)))
            more = f", most of it near the line's {line:g} Hz" if share > LINE_SHARE else ""
            findings.append(Finding(channel, "noisy", words + more))
    return findings


def _runs(numbers: np.ndarray) -> list[np.ndarray]:
    """Rising whole numbers, cut where one is left out."""
    return np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)


def _rms(pieces: np.ndarray) -> np.ndarray:
    """(P, n, C) samples → (P, C) RMS about each piece's mean."""
    length = pieces.shape[1]
    mean = np.matmul(np.full(length, 1 / length, np.float32), pieces)
    return np.sqrt(np.maximum(np.einsum("pnc,pnc->pc", pieces, pieces) / length - mean**2, 0))


def _no_less(values: np.ndarray) -> np.ndarray:
    """(C,) values, none below a hundredth of their median: a channel that is still most of the time divides by it."""
    return np.maximum(values.astype(np.float64), max(0.01 * np.median(values), np.finfo(np.float32).tiny))


def _reached_by_others(values: np.ndarray) -> np.ndarray:
    """The median over the other channels of the highest of (P, C) values, at least 1; (C,)."""
    highest = values.max(axis=0)
    return np.array([max(1.0, np.median(np.delete(highest, channel))) for channel in range(len(highest))])
