"""The signal path: raw counts → power-line harmonics removed → band-pass → resampled.

`putemg` repeats the data set's own processing (Kaczmarek et al., Sensors 2019, 19, 3548, and its
released scripts): a sinusoid per line frequency, fitted in 10 s spans and subtracted, then a fifth-order
Butterworth band-pass forward and backward. `causal` is the same pass band, forward only, with narrow notches.
"""

import math

import numpy as np
from scipy.signal import butter, fftconvolve, iirnotch, sos2zpk, sosfilt, sosfilt_zi, sosfiltfilt, tf2sos
from threadpoolctl import threadpool_limits

from emg_gpt2.base.errors import EMGError

LINE_FREQUENCIES = (30.0, 49.99, 60.0, 90.0, 150.0)  # Hz, the reference's list
NOTCH_WIDTH = 1.0  # Hz at −3 dB, of the causal notches
BAND_ORDER = 5
PUTEMG_RATE = 5124.07211903  # Hz, hard-coded in the reference
NARROWEST = 1e-6  # of the rate: a band-pass with a lower edge or a smaller width consists of rounding errors
SETTLED = 1e-9  # share of an impulse that is left when the band-pass counts as settled
BLOCK = 30_000  # samples that are convolved at once: large for the FFT, small for the cache


@threadpool_limits.wrap(limits=1, user_api="blas")  # many small products: threads cost more than they give
def apply_filter(
    emg: np.ndarray, time: np.ndarray, kind: str, band: tuple[float, float], overwrite: bool = False
) -> np.ndarray:
    """Filter (N, C) samples taken at (N,) `time` in s, an even clock; returns (N, C) float32.

    `kind` is `putemg`, `causal` or `none`; `band` is (low, high) in Hz. With `overwrite` the filtered samples take
    the place of those in a float32 `emg`, which saves 170 MB on a full recording.
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
        """Filter (n, C) float32 samples, n ≥ 1, in place, and return them. Before the first call the signal is taken to
        have been constant.

        One channel at a time: float64 copies of 24 channels of a recording would take a gigabyte.
        """
        if self.state is None:
            self.state = [sosfilt_zi(self.sections) * first for first in emg[0].astype(np.float64)]
        for number, channel in enumerate(emg.T):
            channel[:], self.state[number] = sosfilt(self.sections, channel.astype(np.float64), zi=self.state[number])
        return emg


def _filter_as_reference(emg: np.ndarray, time: np.ndarray, rate: float, sections: np.ndarray) -> None:
    """In place: lines fitted and subtracted, then forward and backward through the band-pass.

    The reference leaves the lines in what follows the last whole span, and its backward pass carries them 0.1 s
    back into the span. The whole spans agree with it to the end; the tail is filtered apart, without its lines.
    """
    from emg_gpt2.raw.power_line import span_of, subtract_lines  # which no other filter needs

    span = span_of(len(emg), rate)
    whole = len(emg) // span * span
    raw_tail = emg[whole:].copy()
    subtract_lines(emg, time, rate)
    clean_tail = emg[whole - span :].copy()
    emg[whole:] = raw_tail
    forward_and_backward(emg, sections)
    if whole < len(emg):
        forward_and_backward(clean_tail, sections)
        emg[whole:] = clean_tail[span:]


def forward_and_backward(signal: np.ndarray, sections: np.ndarray) -> None:
    """Filter (N, C) float32 samples in place, as `sosfiltfilt` does with the reference's padding.

    Away from the ends that is a convolution with the impulse response, which an FFT computes six times faster than
    ten recursive passes. Samples that are nearer to an end than the response is long go through `sosfiltfilt` itself.
    """
    samples = len(signal)
    settle = math.ceil(math.log(SETTLED) / math.log(np.abs(sos2zpk(sections)[1]).max()))
    if samples < 4 * settle:
        signal[:] = _exactly(signal, sections)
        return
    impulse = np.zeros((2 * settle + 1, 1))
    impulse[settle] = 1
    response = sosfiltfilt(sections, impulse, axis=0, padlen=0).astype(np.float32)
    start, end = (_exactly(part, sections) for part in (signal[: 2 * settle], signal[-2 * settle :]))
    before, offset = signal[:settle].copy(), signal[::1000].mean(axis=0)
    for first in range(settle, samples - settle, BLOCK):
        last = min(first + BLOCK, samples - settle)
        around = np.concatenate([before, signal[first : last + settle]])
        before = around[-2 * settle : -settle].copy()
        # The band-pass removes the offset anyway, but in float32 its products would round the signal.
        signal[first:last] = fftconvolve(around - offset, response, "valid", axes=0)
    signal[:settle], signal[-settle:] = start[:settle], end[-settle:]


def _exactly(signal: np.ndarray, sections: np.ndarray) -> np.ndarray:
    padding = min(3 * (2 * BAND_ORDER + 1), len(signal) - 1)  # the reference's filtfilt pads 3 × 11 samples
    return sosfiltfilt(sections, signal.astype(np.float64), axis=0, padlen=padding).astype(np.float32)


def _notches(rate: float) -> np.ndarray:
    lines = [f for f in LINE_FREQUENCIES if f < 0.99 * rate / 2]
    return np.concatenate([np.empty((0, 6)), *(tf2sos(*iirnotch(f, f / NOTCH_WIDTH, fs=rate)) for f in lines)])
