"""The signal path: raw counts → power-line harmonics removed → band-pass → resampled.

`putemg` repeats the data set's own processing (Kaczmarek et al., Sensors 2019, 19, 3548, and its
released scripts): a sinusoid per line frequency, fitted in 10 s spans and subtracted, then a fifth-order
Butterworth band-pass forward and backward. `causal` is the same pass band, forward only, with narrow notches.
"""

from collections.abc import Callable
from fractions import Fraction

import numpy as np
from scipy.optimize import minimize
from scipy.signal import butter, iirnotch, resample_poly, sosfilt, sosfilt_zi, sosfiltfilt, tf2sos
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


@threadpool_limits.wrap(limits=1, user_api="blas")  # many small products: threads cost more than they give
def apply_filter(emg: np.ndarray, time: np.ndarray, kind: str, band: tuple[float, float]) -> np.ndarray:
    """Filter (N, C) samples taken at (N,) `time` in s, an even clock; returns (N, C) float32.

    `kind` is `putemg`, `causal` or `none`; `band` is (low, high) in Hz.
    """
    if kind == "none":
        return np.asarray(emg, np.float32)
    rate = (len(time) - 1) / (time[-1] - time[0])
    if kind == "putemg" and abs(rate / PUTEMG_RATE - 1) < 1e-3:
        rate = PUTEMG_RATE  # as the reference does: its fit is bounded in Hz, where the fifth digit shows
    sections = _band_pass(rate, band)
    if kind == "causal":
        sections = np.concatenate([_notches(rate), sections])
        return _per_channel(emg, lambda x: sosfilt(sections, x, zi=sosfilt_zi(sections) * x[0])[0])
    return _filter_as_reference(emg, time, rate, sections)


def resample(emg: np.ndarray, rate: float, target: float) -> tuple[np.ndarray, float]:
    """(N, C) at `rate` → (M, C) at the returned rate: `target` Hz, or unchanged where that is not lower.

    A linear-phase anti-alias filter, ten output samples to either side.
    """
    ratio = Fraction(target / rate).limit_denominator(2000)
    if ratio >= 1:
        return emg, rate
    channels = [resample_poly(channel, ratio.numerator, ratio.denominator) for channel in emg.T]
    return np.stack(channels, axis=1), rate * ratio.numerator / ratio.denominator


def _band_pass(rate: float, band: tuple[float, float]) -> np.ndarray:
    """Second-order sections; only the low edge is kept where the high one is not below Nyquist."""
    low, high = band
    if low >= 0.99 * rate / 2:
        raise EMGError(f"BAND_HZ begins at {low:g} Hz, and {rate:g} samples a second hold less; lower its first value")
    if high < rate / 2:
        return butter(BAND_ORDER, band, "bandpass", fs=rate, output="sos")
    return butter(BAND_ORDER, low, "highpass", fs=rate, output="sos")


def _filter_as_reference(emg: np.ndarray, time: np.ndarray, rate: float, sections: np.ndarray) -> np.ndarray:
    """Lines fitted and subtracted, then forward and backward through the band-pass.

    The reference leaves the lines in what follows the last whole span, and its backward pass carries them 0.1 s
    back into the span. The whole spans agree with it to the end; the tail is filtered apart, without its lines.
    """
    padding = min(3 * (2 * BAND_ORDER + 1), len(emg) - 1)  # the reference's filtfilt pads 3 × 11 samples
    span = _span(len(emg), rate)
    whole = len(emg) // span * span
    clean = emg - line_harmonics(emg, time, rate)
    as_reference = np.concatenate([clean[:whole], emg[whole:]])
    filtered = _per_channel(as_reference, lambda x: sosfiltfilt(sections, x, padlen=padding))
    if whole < len(emg):
        tail = _per_channel(clean[whole - span :], lambda x: sosfiltfilt(sections, x, padlen=padding))
        filtered[whole:] = tail[span:]
    return filtered


def _span(samples: int, rate: float) -> int:
    return min(int(SPAN_S * rate), samples)


def _notches(rate: float) -> np.ndarray:
    lines = [f for f in LINE_FREQUENCIES if f < 0.99 * rate / 2]
    return np.concatenate([np.empty((0, 6)), *(tf2sos(*iirnotch(f, f / NOTCH_WIDTH, fs=rate)) for f in lines)])


def _per_channel(emg: np.ndarray, function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Apply to one channel at a time: float64 copies of 24 channels at once would take a gigabyte."""
    filtered = np.empty(emg.shape, np.float32)
    for channel in range(emg.shape[1]):
        filtered[:, channel] = function(emg[:, channel].astype(np.float64))
    return filtered


# ---- power-line harmonics -------------------------------------------------------------------------------------


def line_harmonics(emg: np.ndarray, time: np.ndarray, rate: float) -> np.ndarray:
    """The sinusoids that the reference fits to (N, C) samples and subtracts, (N, C) float32.

    Each frequency is fitted on its own in consecutive 10 s spans. What is left at the end, which the reference
    does not treat, is fitted by itself, or with what precedes it to 2 s. Frequencies above Nyquist are passed over.
    """
    samples, channels = emg.shape
    span = _span(samples, rate)
    whole = samples // span * span
    harmonics = np.zeros(emg.shape, np.float32)
    for frequency in (f for f in LINE_FREQUENCIES if f < rate / 2):
        line, amplitudes = _Line(frequency, span, rate), np.zeros((channels, 2))
        for first in range(0, whole, span):
            fits = line.fit(emg[first : first + span], time[first], amplitudes)
            harmonics[first : first + span] += line.sinusoids(fits, time[first])
            amplitudes = fits[:, :2]
        if whole < samples:
            first = max(0, min(whole, samples - int(TAIL_S * rate)))
            line = _Line(frequency, samples - first, rate)
            fits = line.fit(emg[first:], time[first], np.zeros((channels, 2)))
            harmonics[whole:] += line.sinusoids(fits, time[first])[whole - first :]
    return harmonics


class _Line:
    """Fits a·sin 2πft + b·cos 2πft to spans of a signal, with f within ± 0.01 Hz of a nominal frequency.

    The reference minimises the mean squared error with L-BFGS-B from the last span's amplitudes, in absolute time,
    and stops well before the optimum: the bounded least-squares solution differs from the released signal by
    about 10 % RMS. So the optimiser's very path is repeated here. It needs only sums over the span, which are
    smooth in f and given by a Taylor series around the nominal frequency: one pass over the samples, not
    one per step.
    """

    def __init__(self, frequency: float, span: int, rate: float):
        self.frequency, self.span, self.rate = frequency, span, rate
        self.centre = (span - 1) / 2 / rate  # s after the span's first sample
        self.time = np.arange(span) / rate - self.centre  # s, centred: keeps the series short
        self.order = np.arange(TAYLOR_TERMS)
        carrier = np.exp(-2j * np.pi * frequency * self.time) * (2 * np.pi * self.time) ** self.order[:, None]
        self.basis = np.concatenate([carrier.real, carrier.imag])  # (2 · terms, span)

    def fit(self, signals: np.ndarray, start: float, amplitudes: np.ndarray) -> np.ndarray:
        """(C, 3) of a, b, f for a span (span, C) from `start` s, beginning the search at (C, 2) amplitudes."""
        signals = signals.astype(np.float64)
        real, imaginary = np.split(self.basis @ signals, 2)
        weights = (-1j) ** self.order / factorial(self.order)
        series = (real + 1j * imaginary).T * weights  # (C, terms), coefficients of the powers of f − nominal
        energy = np.einsum("nc,nc->c", signals, signals)
        low, high = self.frequency - LINE_TOLERANCE, self.frequency + LINE_TOLERANCE
        fits = [
            minimize(
                self._error,
                (a, b, self.frequency),
                args=(series[c], energy[c], start + self.centre),
                method="L-BFGS-B",
                jac=True,
                bounds=((None, None), (None, None), (low, high)),
                options={"gtol": 1e-6},
            ).x
            for c, (a, b) in enumerate(amplitudes)
        ]
        return np.array(fits)

    def sinusoids(self, fits: np.ndarray, start: float) -> np.ndarray:
        """(C, 3) of a, b, f → (span, C)"""
        a, b, frequency = fits.T
        angle = 2 * np.pi * (self.time + self.centre + start)[:, None] * frequency
        return a * np.sin(angle) + b * np.cos(angle)

    def _error(self, x, series, energy, middle) -> tuple[float, np.ndarray]:
        """Mean squared error of a·sin + b·cos, and its gradient, from the sums alone.

        With z = Σ y e^(−jωt): Σ y cos = Re z, Σ y sin = −Im z, and Σ t y e^(−jωt) = j dz/dω.
        """
        a, b, f = x
        n, turn = self.span, np.exp(-2j * np.pi * f * middle)
        powers = (f - self.frequency) ** self.order
        z = turn * (series @ powers)
        zt = turn * 1j / (2 * np.pi) * (series[1:] @ (self.order[1:] * powers[:-1])) + middle * z
        g, gt = self._squares(f, middle)
        ss, cc, sc = (n - g.real) / 2, (n + g.real) / 2, -g.imag / 2
        tss, tcc, tsc = (n * middle - gt.real) / 2, (n * middle + gt.real) / 2, -gt.imag / 2
        yc, ys, tyc, tys = z.real, -z.imag, zt.real, -zt.imag
        error = a * a * ss + b * b * cc + 2 * a * b * sc - 2 * a * ys - 2 * b * yc + energy
        in_f = a * (a * tsc + b * tcc - tyc) - b * (a * tss + b * tsc - tys)
        gradient = np.array([a * ss + b * sc - ys, a * sc + b * cc - yc, 2 * np.pi * in_f])
        return error / n, 2 * gradient / n

    def _squares(self, f: float, middle: float) -> tuple[complex, complex]:
        """Σ e^(−2jωt) and Σ t e^(−2jωt) over the span: a Dirichlet kernel and its slope."""
        half = 2 * np.pi * f / self.rate
        s, c, sn, cn = np.sin(half), np.cos(half), np.sin(self.span * half), np.cos(self.span * half)
        kernel = sn / s
        slope = (self.span * cn * s - sn * c) / (s * s) / (2 * self.rate)
        turn = np.exp(-4j * np.pi * f * middle)
        return turn * kernel, turn * (1j * slope + middle * kernel)
