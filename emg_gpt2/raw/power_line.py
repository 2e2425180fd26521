"""Power-line harmonics as the data set's reference removes them: sinusoids, fitted in 10 s spans and subtracted.

The `putemg` filter alone imports this module.
"""

import math
from cmath import exp
from functools import cache

import numpy as np
from scipy.optimize import minimize
from scipy.special import factorial

from emg_gpt2.raw.filter import LINE_FREQUENCIES

LINE_TOLERANCE = 0.01  # Hz, how far a fitted frequency may lie from its nominal value
SPAN_S = 10.0  # s, over which amplitude, phase and frequency are taken as constant
TAIL_S = 2.0  # s, the shortest piece that a sinusoid is fitted to at the end of a recording
TAYLOR_TERMS = 11  # 2π · 0.01 Hz · 5 s = 0.31 rad, and 0.31^11 / 11! < 1e-13
GRADIENT_TOLERANCE = 1e-6  # where the reference's search ends
MOST_STEPS = 15_000  # as many as `minimize` allows
NEW_ITERATION, EVALUATE = 1, 3  # what L-BFGS-B asks its caller for


def span_of(samples: int, rate: float) -> int:
    return min(int(SPAN_S * rate), samples)


def subtract_lines(emg: np.ndarray, time: np.ndarray, rate: float) -> None:
    """Subtract from (N, C) float32 samples, in place, the sinusoids that the reference fits to them.

    Each frequency is fitted on its own in consecutive 10 s spans. The reference leaves the rest at the end as it is;
    here it is fitted too, by itself or, where it is shorter than 2 s, with the samples before it. Frequencies above
    Nyquist are left out.
    """
    samples, channels = emg.shape
    span = span_of(samples, rate)
    whole = samples // span * span
    last = max(0, min(whole, samples - int(TAIL_S * rate)))  # the first sample of the last piece
    raw_end = emg[last:].copy()
    lines = Lines(span, rate)
    if not lines.frequencies:
        return
    amplitudes = np.zeros((len(lines.frequencies), channels, 2))
    for first in range(0, whole, span):
        part = emg[first : first + span]
        fits = lines.fit(part, time[first], amplitudes)
        part -= lines.sinusoids(fits, time[first])
        amplitudes = fits[..., :2]
    if whole < samples:
        lines = Lines(samples - last, rate)
        fits = lines.fit(raw_end, time[last], np.zeros_like(amplitudes))
        emg[whole:] -= lines.sinusoids(fits, time[last])[whole - last :]


class Lines:
    """Fits a·sin 2πft + b·cos 2πft to spans of a signal, with f within ± 0.01 Hz of each line frequency.

    The reference minimises the mean squared error with L-BFGS-B from the last span's amplitudes, in absolute time,
    and stops well before the optimum: the bounded least-squares solution differs from the released signal by
    about 10 % RMS. So the optimiser's very path is repeated here. It needs only sums over the span. They are
    smooth in f, so a Taylor series around the line frequency gives them: one pass over the samples, not one per step.
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
            error = LineError(series[line, channel], energy[channel], frequency, start + self.centre, self)
            fits[line, channel] = search(error, [*amplitudes[line, channel], frequency])
        return fits

    def sinusoids(self, fits: np.ndarray, start: float) -> np.ndarray:
        """(lines, C, 3) of a, b, f → their sum, (span, C) float32, from the same series."""
        a, b, f = np.moveaxis(fits, 2, 0)[..., None]  # (lines, C, 1)
        at_centre = (b - 1j * a) * np.exp(2j * np.pi * f * (start + self.centre))
        weights = at_centre * (1j * (f - np.array(self.frequencies)[:, None, None])) ** self.orders  # (lines, C, terms)
        weights = np.moveaxis(np.stack([weights.real, weights.imag], axis=1), 2, 3)  # (lines, 2, terms, C)
        return self.basis32.T @ weights.reshape(len(self.basis), -1).astype(np.float32)


class LineError:
    """Mean squared error of a·sin + b·cos over a span, and its gradient, as a function of a, b, f.

    From the sums alone, in plain numbers, which are faster than arrays of one. With z = Σ y e^(−jωt):
    Σ y cos = Re z, Σ y sin = −Im z, and Σ t y e^(−jωt) = j dz/dω.
    """

    def __init__(self, series: np.ndarray, energy: float, frequency: float, middle: float, lines: Lines):
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


def search(error: LineError, start: list[float]) -> np.ndarray:
    """Minimise the error with L-BFGS-B from a, b, f at `start`, f within ± 0.01 Hz; returns a, b, f."""
    return search_fast(error, start) if fast_search_works() else search_slowly(error, start)


@cache
def fast_search_works() -> bool:
    """Whether SciPy's private routine is there and, on a short example, ends where the public function does."""
    lines = Lines(500, 1000.0)
    example = LineError(np.arange(TAYLOR_TERMS) + 3j, 1e6, 60.0, lines.centre, lines), [0.0, 0.0, 60.0]
    try:
        return np.array_equal(search_fast(*example), search_slowly(*example))
    except Exception:  # of whatever kind: another SciPy may have changed anything
        return False


def search_slowly(error: LineError, start: list[float]) -> np.ndarray:
    """By SciPy's public function."""
    bounds = [(None, None), (None, None), (start[2] - LINE_TOLERANCE, start[2] + LINE_TOLERANCE)]
    return minimize(error, start, method="L-BFGS-B", jac=True, bounds=bounds, options={"gtol": GRADIENT_TOLERANCE}).x


def search_fast(error: LineError, start: list[float]) -> np.ndarray:
    """The same, bit for bit, by the compiled routine that `minimize` calls, whose checks take three times as long.

    Raises ImportError where this SciPy lacks the routine, which is private.
    """
    from scipy.optimize._lbfgsb import setulb

    corrections, line_searches = 10, 20  # here and below, the defaults of `minimize`
    relative_reduction = 2.220446049250313e-09 / np.finfo(float).eps
    x, value, gradient = np.array(start), np.array(0.0), np.zeros(3)
    low, high = (np.array([0, 0, start[2] + d]) for d in (-LINE_TOLERANCE, LINE_TOLERANCE))
    bounded = np.array([0, 0, 2], np.int32)  # not, not, on both sides
    floats = np.zeros(2 * corrections * 3 + 5 * 3 + 11 * corrections**2 + 8 * corrections)
    integers, task, search_task = (np.zeros(n, np.int32) for n in (9, 2, 2))
    state = np.zeros(4, np.int32), np.zeros(44, np.int32), np.zeros(29)
    for _ in range(MOST_STEPS):
        setulb(
            *(corrections, x, low, high, bounded, value, gradient, relative_reduction, GRADIENT_TOLERANCE),
            *(floats, integers, task, *state, line_searches, search_task),
        )
        if task[0] == EVALUATE:
            value, gradient = error(x)
        elif task[0] != NEW_ITERATION:
            break
    return x
