"""The signal path: raw counts → power-line harmonics removed → band-pass → resampled.

`putemg` repeats the data set's own processing (Kaczmarek et al., Sensors 2019, 19, 3548, and its
released scripts): a sinusoid per line frequency, fitted in 10 s spans and subtracted, then a fifth-order
Butterworth band-pass forward and backward. `causal` is the same pass band, forward only, with narrow notches.
"""

import math
from cmath import exp
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
from scipy.optimize import _lbfgsb
from scipy.signal import (
    butter,
    fftconvolve,
    firwin,
    iirnotch,
    resample_poly,
    sos2zpk,
    sosfilt,
    sosfilt_zi,
    sosfiltfilt,
    tf2sos,
)
from scipy.special import factorial
from threadpoolctl import threadpool_limits

from ENV import EMGError

LINE_FREQUENCIES = (30.0, 49.99, 60.0, 90.0, 150.0)  # Hz, the reference's list
LINE_TOLERANCE = 0.01  # Hz, how far a fitted frequency may lie from its nominal value
SPAN_S = 10.0  # s, over which amplitude, phase and frequency are taken as constant
TAIL_S = 2.0  # s, the shortest piece that a sinusoid is fitted to at the end of a recording
NOTCH_WIDTH = 1.0  # Hz at −3 dB, of the causal notches
BAND_ORDER = 5
PUTEMG_RATE = 5124.07211903  # Hz, hard-coded in the reference
TAYLOR_TERMS = 11  # 2π · 0.01 Hz · 5 s = 0.31 rad, and 0.31^11 / 11! < 1e-13
NARROWEST = 1e-6  # of the rate, low edge and width of a band-pass: below it, rounding decides what comes out
SETTLED = 1e-9  # share of an impulse that is left when the band-pass counts as settled
NEW_ITERATION, EVALUATE = 1, 3  # what L-BFGS-B asks its caller for
OUTPUTS_AT_ONCE = 1000  # of `Resampler`: their input samples are gathered into one array
BLOCK = 30_000  # samples that are convolved at once: large for the FFT, small for the cache


@threadpool_limits.wrap(limits=1, user_api="blas")  # many small products: threads cost more than they give
def apply_filter(
    emg: np.ndarray, time: np.ndarray, kind: str, band: tuple[float, float], overwrite: bool = False
) -> np.ndarray:
    """Filter (N, C) samples taken at (N,) `time` in s, an even clock; returns (N, C) float32.

    `kind` is `putemg`, `causal` or `none`; `band` is (low, high) in Hz. With `overwrite` the filtered samples take
    the place of those in a float32 `emg`, which spares 170 MB on a full recording.
    """
    emg = emg.astype(np.float32, copy=not overwrite)
    if kind == "none":
        return emg
    rate = (len(time) - 1) / (time[-1] - time[0])
    if kind == "putemg" and abs(rate / PUTEMG_RATE - 1) < 1e-3:
        rate = PUTEMG_RATE  # as the reference does: its fit is bounded in Hz, where the fifth digit shows
    if kind == "causal":
        return CausalFilter(rate, band)(emg)
    _filter_as_reference(emg, time, rate, _band_pass(rate, band))
    return emg


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


def _band_pass(rate: float, band: tuple[float, float]) -> np.ndarray:
    """Second-order sections; only the low edge is kept where the high one is not below Nyquist."""
    low, high = band
    if low >= 0.99 * rate / 2:
        raise EMGError(f"BAND_HZ begins at {low:g} Hz, and {rate:g} samples a second hold less; lower its first value")
    if min(low, high - low) < NARROWEST * rate:
        raise EMGError(f"BAND_HZ = {low:g},{high:g}: no filter at {rate:g} Hz is so low or narrow; widen or raise it")
    if high < (1 - NARROWEST) * rate / 2:
        return butter(BAND_ORDER, band, "bandpass", fs=rate, output="sos")
    return butter(BAND_ORDER, low, "highpass", fs=rate, output="sos")


class CausalFilter:
    """`FILTER = "causal"` for signals that come in pieces: its state is carried from one to the next.

    rate: Hz; band: (low, high) in Hz. Raises EMGError where the band lies above the Nyquist frequency.
    """

    def __init__(self, rate: float, band: tuple[float, float]):
        self.sections = np.concatenate([_notches(rate), _band_pass(rate, band)])
        self.state = None

    def __call__(self, emg: np.ndarray) -> np.ndarray:
        """(n, C) float32 samples, n ≥ 1, in place, and returned. The first of all counts as having lasted for ever.

        One channel at a time: float64 copies of 24 channels of a recording would take a gigabyte.
        """
        if self.state is None:
            self.state = [sosfilt_zi(self.sections) * first for first in emg[0].astype(np.float64)]
        for number, channel in enumerate(emg.T):
            channel[:], self.state[number] = sosfilt(self.sections, channel.astype(np.float64), zi=self.state[number])
        return emg


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


def _filter_as_reference(emg: np.ndarray, time: np.ndarray, rate: float, sections: np.ndarray) -> None:
    """In place: lines fitted and subtracted, then forward and backward through the band-pass.

    The reference leaves the lines in what follows the last whole span, and its backward pass carries them 0.1 s
    back into the span. The whole spans agree with it to the end; the tail is filtered apart, without its lines.
    """
    span = _span(len(emg), rate)
    whole = len(emg) // span * span
    raw_tail = emg[whole:].copy()
    subtract_lines(emg, time, rate)
    clean_tail = emg[whole - span :].copy()
    emg[whole:] = raw_tail
    _forward_and_backward(emg, sections)
    if whole < len(emg):
        _forward_and_backward(clean_tail, sections)
        emg[whole:] = clean_tail[span:]


def _forward_and_backward(signal: np.ndarray, sections: np.ndarray) -> None:
    """Put (N, C) float32 in its own place through `sosfiltfilt`, with the reference's padding.

    Away from the ends that is a convolution with the answer to an impulse, which an FFT computes six times faster
    than ten recursive passes; what is nearer to an end than the answer is long goes through `sosfiltfilt` itself.
    """
    samples = len(signal)
    settle = math.ceil(math.log(SETTLED) / math.log(np.abs(sos2zpk(sections)[1]).max()))
    if samples < 4 * settle:
        signal[:] = _exactly(signal, sections)
        return
    impulse = np.zeros((2 * settle + 1, 1))
    impulse[settle] = 1
    answer = sosfiltfilt(sections, impulse, axis=0, padlen=0).astype(np.float32)
    start, end = (_exactly(part, sections) for part in (signal[: 2 * settle], signal[-2 * settle :]))
    before, offset = signal[:settle].copy(), signal[::1000].mean(axis=0)
    for first in range(settle, samples - settle, BLOCK):
        last = min(first + BLOCK, samples - settle)
        around = np.concatenate([before, signal[first : last + settle]])
        before = around[-2 * settle : -settle].copy()
        # No offset passes, but the float32 products would round it into the signal.
        signal[first:last] = fftconvolve(around - offset, answer, "valid", axes=0)
    signal[:settle], signal[-settle:] = start[:settle], end[-settle:]


def _exactly(signal: np.ndarray, sections: np.ndarray) -> np.ndarray:
    padding = min(3 * (2 * BAND_ORDER + 1), len(signal) - 1)  # the reference's filtfilt pads 3 × 11 samples
    return sosfiltfilt(sections, signal.astype(np.float64), axis=0, padlen=padding).astype(np.float32)


def _span(samples: int, rate: float) -> int:
    return min(int(SPAN_S * rate), samples)


def _notches(rate: float) -> np.ndarray:
    lines = [f for f in LINE_FREQUENCIES if f < 0.99 * rate / 2]
    return np.concatenate([np.empty((0, 6)), *(tf2sos(*iirnotch(f, f / NOTCH_WIDTH, fs=rate)) for f in lines)])


# ---- power-line harmonics -------------------------------------------------------------------------------------


def subtract_lines(emg: np.ndarray, time: np.ndarray, rate: float) -> None:
    """Take from (N, C) float32 samples, in place, the sinusoids that the reference fits to them.

    Each frequency is fitted on its own in consecutive 10 s spans. What is left at the end, which the reference
    does not treat, is fitted by itself, or with what precedes it to 2 s. Frequencies above Nyquist are passed over.
    """
    samples, channels = emg.shape
    span = _span(samples, rate)
    whole = samples // span * span
    last = max(0, min(whole, samples - int(TAIL_S * rate)))  # the first sample of the last piece
    raw_end = emg[last:].copy()
    lines = _Lines(span, rate)
    if not lines.frequencies:
        return
    amplitudes = np.zeros((len(lines.frequencies), channels, 2))
    for first in range(0, whole, span):
        part = emg[first : first + span]
        fits = lines.fit(part, time[first], amplitudes)
        part -= lines.sinusoids(fits, time[first])
        amplitudes = fits[..., :2]
    if whole < samples:
        lines = _Lines(samples - last, rate)
        fits = lines.fit(raw_end, time[last], np.zeros_like(amplitudes))
        emg[whole:] -= lines.sinusoids(fits, time[last])[whole - last :]


class _Lines:
    """Fits a·sin 2πft + b·cos 2πft to spans of a signal, with f within ± 0.01 Hz of each line frequency.

    The reference minimises the mean squared error with L-BFGS-B from the last span's amplitudes, in absolute time,
    and stops well before the optimum: the bounded least-squares solution differs from the released signal by
    about 10 % RMS. So the optimiser's very path is repeated here. It needs only sums over the span, which are
    smooth in f and given by a Taylor series around the line frequency: one pass over the samples, not
    one per step.
    """

    def __init__(self, span: int, rate: float):
        self.span, self.rate = span, rate
        self.frequencies = [f for f in LINE_FREQUENCIES if f < rate / 2 - 1]  # nearer to it, sine and cosine are one
        self.centre = (span - 1) / 2 / rate  # s after the span's first sample
        self.orders = np.arange(TAYLOR_TERMS)
        time = np.arange(span) / rate - self.centre  # s, centred: keeps the series short
        powers = (2 * np.pi * time) ** self.orders[:, None] / factorial(self.orders)[:, None]  # (terms, span)
        self.basis = np.empty((len(self.frequencies), 2, TAYLOR_TERMS, span))
        for frequency, (cosines, sines) in zip(self.frequencies, self.basis, strict=True):
            np.multiply(np.cos(2 * np.pi * frequency * time), powers, out=cosines)
            np.multiply(-np.sin(2 * np.pi * frequency * time), powers, out=sines)
        self.basis = self.basis.reshape(-1, span)  # (lines · 2 · terms, span)
        self.basis32 = self.basis.astype(np.float32)

    def fit(self, signals: np.ndarray, start: float, amplitudes: np.ndarray) -> np.ndarray:
        """(lines, C, 3) of a, b, f for (span, C) from `start` s; the search begins at (lines, C, 2) amplitudes."""
        signals = signals.astype(np.float64)
        energy = np.einsum("nc,nc->c", signals, signals)
        sums = (self.basis @ signals).reshape(len(self.frequencies), 2, TAYLOR_TERMS, -1)
        series = np.moveaxis(sums[:, 0] + 1j * sums[:, 1], 1, 2) * (-1j) ** self.orders  # (lines, C, terms)
        fits = np.empty((*amplitudes.shape[:2], 3))
        for line, channel in np.ndindex(fits.shape[:2]):
            frequency = self.frequencies[line]
            error = _LineError(series[line, channel], energy[channel], frequency, start + self.centre, self)
            fits[line, channel] = _search(error, [*amplitudes[line, channel], frequency])
        return fits

    def sinusoids(self, fits: np.ndarray, start: float) -> np.ndarray:
        """(lines, C, 3) of a, b, f → their sum, (span, C) float32, from the same series."""
        a, b, f = np.moveaxis(fits, 2, 0)[..., None]  # (lines, C, 1)
        at_centre = (b - 1j * a) * np.exp(2j * np.pi * f * (start + self.centre))
        weights = at_centre * (1j * (f - np.array(self.frequencies)[:, None, None])) ** self.orders  # (lines, C, terms)
        weights = np.moveaxis(np.stack([weights.real, weights.imag], axis=1), 2, 3)  # (lines, 2, terms, C)
        return self.basis32.T @ weights.reshape(len(self.basis), -1).astype(np.float32)


class _LineError:
    """Mean squared error of a·sin + b·cos over a span, and its gradient, as a function of a, b, f.

    From the sums alone, in plain numbers, which are faster than arrays of one. With z = Σ y e^(−jωt):
    Σ y cos = Re z, Σ y sin = −Im z, and Σ t y e^(−jωt) = j dz/dω.
    """

    def __init__(self, series: np.ndarray, energy: float, frequency: float, middle: float, lines: _Lines):
        self.series = series[::-1].tolist()  # coefficients of the powers of f − frequency, the highest first
        self.energy, self.frequency, self.middle = float(energy), frequency, float(middle)
        self.span, self.rate = lines.span, lines.rate

    def __call__(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        a, b, f = x.tolist()
        n, middle = self.span, self.middle
        turn = exp(-2j * math.pi * f * middle)
        value, slope = self._series(f - self.frequency)
        z = turn * value
        zt = turn * slope * 1j / (2 * math.pi) + middle * z
        g, gt = self._squares(f, turn * turn)
        ss, cc, sc = (n - g.real) / 2, (n + g.real) / 2, -g.imag / 2
        tss, tcc, tsc = (n * middle - gt.real) / 2, (n * middle + gt.real) / 2, -gt.imag / 2
        yc, ys, tyc, tys = z.real, -z.imag, zt.real, -zt.imag
        error = a * a * ss + b * b * cc + 2 * a * b * sc - 2 * a * ys - 2 * b * yc + self.energy
        in_f = a * (a * tsc + b * tcc - tyc) - b * (a * tss + b * tsc - tys)
        in_a, in_b = a * ss + b * sc - ys, a * sc + b * cc - yc
        return error / n, np.array((in_a, in_b, 2 * math.pi * in_f)) * (2 / n)

    def _series(self, offset: float) -> tuple[complex, complex]:
        """Σ y e^(−jω(t − middle)) and its slope in f, by Horner's rule."""
        value, slope = 0j, 0j
        for coefficient in self.series:
            slope = slope * offset + value
            value = value * offset + coefficient
        return value, slope

    def _squares(self, f: float, turn: complex) -> tuple[complex, complex]:
        """Σ e^(−2jωt) and Σ t e^(−2jωt) over the span: a Dirichlet kernel and its slope."""
        half = 2 * math.pi * f / self.rate
        s, c, sn, cn = math.sin(half), math.cos(half), math.sin(self.span * half), math.cos(self.span * half)
        kernel = sn / s
        slope = (self.span * cn * s - sn * c) / (s * s) / (2 * self.rate)
        return turn * kernel, turn * (1j * slope + self.middle * kernel)


def _search(error: _LineError, start: list[float]) -> np.ndarray:
    """Where `minimize(error, start, method="L-BFGS-B", options={"gtol": 1e-6})` ends with the frequency bounded.

    It is the same compiled routine, called as `minimize` calls it: the checks that `minimize` puts around it take
    three times as long as the search. A test holds the two together.
    """
    corrections, line_searches = 10, 20  # here and below, the defaults of `minimize`
    relative_reduction = 2.220446049250313e-09 / np.finfo(float).eps
    x, value, gradient = np.array(start), np.array(0.0), np.zeros(3)
    low, high = (np.array([0, 0, start[2] + d]) for d in (-LINE_TOLERANCE, LINE_TOLERANCE))
    bounded = np.array([0, 0, 2], np.int32)  # not, not, on both sides
    floats = np.zeros(2 * corrections * 3 + 5 * 3 + 11 * corrections**2 + 8 * corrections)
    integers, task, search_task = (np.zeros(n, np.int32) for n in (9, 2, 2))
    state = np.zeros(4, np.int32), np.zeros(44, np.int32), np.zeros(29)
    while True:
        _lbfgsb.setulb(
            *(corrections, x, low, high, bounded, value, gradient, relative_reduction, 1e-6),
            *(floats, integers, task, *state, line_searches, search_task),
        )
        if task[0] == EVALUATE:
            value, gradient = error(x)
        elif task[0] != NEW_ITERATION:
            return x
