"""Resampling to a lower rate: of a whole recording, and of a signal that comes in pieces."""

import math
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
from scipy.signal import firwin, resample_poly
from threadpoolctl import threadpool_limits

from emg_gpt2.base.errors import EMGError

OUTPUTS_AT_ONCE = 1000  # of `Resampler`, which gathers their input samples into one array


@threadpool_limits.wrap(limits=1, user_api="blas")
def resample(emg: np.ndarray, rate: float, target: float) -> tuple[np.ndarray, float]:
    """(N, C) at `rate` → (M, C) float32 at the returned rate: `target` Hz, or unchanged where that is not lower.

    The linear-phase anti-alias filter of `scipy.signal.resample_poly`, ten output samples to either side. It repeats
    itself every `down` samples in, `up` samples out; away from the ends such a period is one matrix product, which
    takes a third of the time.
    """
    ratio = _resampling_ratio(rate, target)
    if ratio == 1:
        return emg, rate
    up, down = ratio.numerator, ratio.denominator
    filters, near = _period_filters(up, down)
    reach = math.ceil(near / down)  # periods at either end that the ends reach into
    last = len(emg) // down - reach
    if last <= reach:
        return resample_poly(emg, up, down, axis=0).astype(np.float32), resampled_rate(rate, target)
    slower = np.empty((math.ceil(len(emg) * ratio), emg.shape[1]), np.float32)
    slower[: reach * up] = resample_poly(emg[: 2 * reach * down], up, down, axis=0)[: reach * up]
    for period in range(reach, last):
        around = emg[period * down - near : (period + 1) * down + near]
        np.matmul(filters, around, out=slower[period * up : (period + 1) * up])
    slower[last * up :] = resample_poly(emg[(last - reach) * down :], up, down, axis=0)[reach * up :]
    return slower, resampled_rate(rate, target)


def _period_filters(up: int, down: int) -> tuple[np.ndarray, int]:
    """(up, near + down + near) float32: each output of a period from the samples in it and `near` on either side."""
    taps, half = _anti_alias(up, down)
    near = math.ceil(half / up)
    place = half + np.arange(up)[:, None] * down - np.arange(-near, down + near) * up
    return np.where(abs(place - half) <= half, taps[place.clip(0, 2 * half)], 0).astype(np.float32), near


def _anti_alias(up: int, down: int) -> tuple[np.ndarray, int]:
    """(2 · half + 1,) taps of the filter that `resample_poly` uses, and `half`."""
    if up == down:
        return np.ones(1), 0
    half = 10 * max(up, down)
    return up * firwin(2 * half + 1, 1 / max(up, down), window=("kaiser", 5.0)), half


def resampled_rate(rate: float, target: float) -> float:
    """Hz after `resample`: `target`, or the nearest to it that is a simple fraction of `rate`."""
    ratio = _resampling_ratio(rate, target)
    return rate * ratio.numerator / ratio.denominator


def _resampling_ratio(rate: float, target: float) -> Fraction:
    ratio = Fraction(target / rate).limit_denominator(2000)
    if not ratio:
        raise EMGError(f"{rate:g} Hz is more than 4000 times SAMPLE_RATE = {target:g}; raise it")
    return min(ratio, Fraction(1))


class Resampler:
    """`resample` for signals that come in pieces, its state carried from one to the next.

    The same filter, so an output sample comes when the ten output samples after it have been seen. `rate` is that of
    the output, in Hz. At the beginning the signal counts as zero before its first sample.
    """

    def __init__(self, rate: float, target: float):
        ratio = _resampling_ratio(rate, target)
        self.up, self.down = ratio.numerator, ratio.denominator
        self.rate = resampled_rate(rate, target)
        self.taps, self.half = _anti_alias(self.up, self.down)
        self.reach = math.ceil(self.half / self.up)  # input samples to either side of an output sample
        self.kept, self.first = None, -self.reach  # input samples that are still wanted, place of the first of them
        self.made = 0  # output samples

    def __call__(self, emg: np.ndarray) -> np.ndarray:
        """(n, C) float32 samples → (m, C) float32, m ≥ 0, as many as can be told by now."""
        if self.up == self.down:
            return emg
        if self.kept is None:
            self.kept = np.zeros((self.reach, emg.shape[1]), np.float32)
        signal = np.concatenate([self.kept, emg])
        seen = self.first + len(signal)
        ready = max(self.made, ((seen - 1 - self.reach) * self.up) // self.down + 1)
        made = [self._samples(signal, range(*few)) for few in _cut(self.made, ready, OUTPUTS_AT_ONCE)]
        self.made = ready
        wanted = max(self.first, self.made * self.down // self.up - self.reach)
        self.kept, self.first = signal[wanted - self.first :].copy(), wanted
        return np.concatenate([np.empty((0, emg.shape[1]), np.float32), *made])

    def _samples(self, signal: np.ndarray, outputs: range) -> np.ndarray:
        """(m, C): each output sample from the input samples within its reach."""
        place = np.arange(outputs.start, outputs.stop) * self.down
        near = (place // self.up)[:, None] + np.arange(-self.reach, self.reach + 1)  # (m, taps)
        taps = self.half + place[:, None] - near * self.up
        weights = np.where(abs(taps - self.half) <= self.half, self.taps[taps.clip(0, 2 * self.half)], 0)
        around = signal[(near - self.first).clip(0, len(signal) - 1)]  # (m, taps, C)
        return np.matmul(weights.astype(np.float32)[:, None], around)[:, 0]


def _cut(first: int, end: int, size: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + size, end)) for start in range(first, end, size))
