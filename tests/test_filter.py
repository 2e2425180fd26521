"""The signal path against the data set's own output, and against sinusoids of known amplitude."""

import importlib
import math
import sys
import types

import numpy as np
import pytest
from conftest import ROOT, SHARED, needs_shared
from scipy.optimize import minimize
from scipy.signal import butter, resample_poly, sosfiltfilt

from emg_gpt2 import raw
from emg_gpt2.base.errors import EMGError
from emg_gpt2.raw import power_line
from emg_gpt2.raw.filter import apply_filter, forward_and_backward
from emg_gpt2.raw.power_line import LineError, Lines, search
from emg_gpt2.raw.resample import resample

BAND = (20.0, 700.0)
SPAN = int(10 * 5124.07211903)  # samples that the reference fits at once


def amplitude(signal: np.ndarray, time: np.ndarray, frequency: float) -> np.ndarray:
    """Of the sinusoid at `frequency` (Hz) in each column of (N, C), exact over whole periods."""
    return 2 * np.abs(np.mean(signal * np.exp(-2j * np.pi * frequency * time)[:, None], axis=0))


def rms(signal: np.ndarray) -> np.ndarray:
    return np.sqrt(np.mean(np.square(signal, dtype=np.float64), axis=0))


def test_putemg_agrees_with_the_reference_on_two_channels():
    """The small file of the tests: every fifth sample of a span of 10 s (tests/data/README.md)."""
    with np.load(ROOT / "tests" / "data" / "putemg_filter.npz") as stored:
        raw, expected, start, step = (stored[name] for name in ("raw", "filtered", "start", "step"))
    filtered = apply_filter(raw, start + step * np.arange(len(raw)), "putemg", BAND)[: 5 * len(expected) : 5]
    assert (rms(filtered - expected) / rms(expected) <= 1e-3).all()


@pytest.fixture(scope="module")
def reference():
    """(raw, time, reference's output, this project's output) of 42 s on 8 channels."""
    with np.load(SHARED / "putemg" / "reference_8ch.npz") as stored:
        raw, time, expected = stored["raw"], stored["time"], stored["filtered"]
    return raw, time, expected, apply_filter(raw, time, "putemg", BAND)


@pytest.mark.nightly
@needs_shared
def test_putemg_agrees_with_the_reference(reference):
    _, _, expected, filtered = reference
    assert filtered.dtype == np.float32
    whole = len(expected) // SPAN * SPAN
    difference = rms(filtered[:whole] - expected[:whole]) / rms(expected[:whole])
    assert difference.max() <= 1e-3, difference


@pytest.mark.nightly
@needs_shared
def test_the_lines_are_removed_from_the_tail_too(reference):
    """The reference leaves the last 2 s, which are no whole span, as they are."""
    _, time, expected, filtered = reference
    tail = slice(len(expected) // SPAN * SPAN, None)
    left = amplitude(filtered[tail], time[tail], 49.99)
    assert (left < amplitude(expected[tail], time[tail], 49.99) / 10).all(), left


def with_line(seconds: float, hertz: float, rate: float = 1000.0) -> tuple[np.ndarray, np.ndarray]:
    """White noise of 10 counts RMS with a sinusoid of 30 counts, two channels."""
    time = 3.0 + np.arange(int(seconds * rate)) / rate
    noise = np.random.default_rng(0).normal(0, 10, (len(time), 2))
    return noise + 30 * np.sin(2 * np.pi * hertz * time + np.array([[0.3], [2.0]])).T, time


@pytest.mark.parametrize("hertz", [30.0, 49.99, 60.0, 90.0, 150.0])
def test_putemg_removes_a_line_from_noise(hertz):
    """25 s: two whole spans and a tail. Noise alone has an amplitude of 10 · √(4/N) ≈ 0.3 in 5 s."""
    signal, time = with_line(25, hertz)
    filtered = apply_filter(signal, time, "putemg", BAND)
    for part in (slice(10_000), slice(10_000, 20_000), slice(20_000, None)):
        assert amplitude(signal[part], time[part], hertz) == pytest.approx(30, abs=1)
        assert (amplitude(filtered[part], time[part], hertz) < 1).all()
    assert rms(filtered) == pytest.approx(10 * np.sqrt(480 / 500), rel=0.02)  # 20 … 500 Hz of the noise is left


@pytest.mark.parametrize("rate", [60.0, 61.0, 99.98, 100.0, 100.02, 120.0, 181.0])
def test_putemg_at_rates_that_hold_few_lines_or_none(rate):
    """49.99 ± 0.01 Hz touches the 50 Hz that a rate of 100 Hz can hold: sine and cosine are the same there."""
    signal, time = with_line(12, 25, rate)
    filtered = apply_filter(signal, time, "putemg", BAND)
    assert 5 < rms(filtered).max() < 30


@pytest.mark.parametrize("seconds", [0.3, 4])
def test_putemg_treats_recordings_shorter_than_a_span(seconds):
    signal, time = with_line(seconds, 49.99)
    filtered = apply_filter(signal, time, "putemg", BAND)
    assert filtered.shape == signal.shape
    middle = slice(len(time) // 4, -(len(time) // 4))
    assert (amplitude(filtered[middle], time[middle], 49.99) < 5).all()


def test_none_changes_nothing():
    signal, time = with_line(1, 50)
    np.testing.assert_array_equal(apply_filter(signal, time, "none", BAND), signal.astype(np.float32))


@pytest.mark.parametrize("kind", ["putemg", "causal", "none"])
def test_the_filter_leaves_its_input_alone(kind):
    signal, time = with_line(1, 50)
    before = signal.copy()
    apply_filter(signal, time, kind, BAND)
    np.testing.assert_array_equal(signal, before)


@pytest.mark.parametrize("kind", ["putemg", "causal", "none"])
def test_the_filter_can_work_in_place(kind):
    signal, time = with_line(11, 50)
    signal = signal.astype(np.float32)
    expected = apply_filter(signal, time, kind, BAND)
    filtered = apply_filter(signal, time, kind, BAND, overwrite=True)
    assert np.shares_memory(filtered, signal)
    np.testing.assert_array_equal(filtered, expected)


def test_causal_knows_no_future():
    signal, time = with_line(4, 50)
    changed = signal.copy()
    changed[2000:] += np.random.default_rng(1).normal(0, 500, (2000, 2))
    now, then = (apply_filter(x, time, "causal", BAND) for x in (signal, changed))
    np.testing.assert_array_equal(now[:2000], then[:2000])
    assert not np.array_equal(now[2000:2010], then[2000:2010])


@pytest.mark.parametrize(
    ("hertz", "low", "high"),
    [(5, 0, 0.1), (20, 0.65, 0.75), (100, 0.95, 1.05), (300, 0.95, 1.05), (50, 0, 0.05), (150, 0, 0.05)],
)
def test_causal_pass_band(hertz, low, high):
    """The gain, after 10 s in which the notches (1 Hz wide, 0.3 s) settle; 20 Hz is the −3 dB edge, 0.707."""
    time = np.arange(20_000) / 2000
    signal = 100 * np.sin(2 * np.pi * hertz * time)[:, None]
    filtered = apply_filter(signal, time, "causal", BAND)
    gain = amplitude(filtered[10_000:], time[10_000:], hertz)[0] / 100
    assert low <= gain <= high


def test_the_upper_edge_is_left_out_above_nyquist():
    """400 Hz is below 500 Hz and passes; at 2000 Hz sampling 900 Hz lies above the 700 Hz edge and does not."""
    for rate, hertz, passes in ((1000, 400, True), (2000, 900, False)):
        time = np.arange(4 * rate) / rate
        filtered = apply_filter(100 * np.sin(2 * np.pi * hertz * time)[:, None], time, "causal", BAND)
        gain = amplitude(filtered[rate:], time[rate:], hertz)[0] / 100
        assert (gain > 0.95) if passes else (gain < 0.2)


@pytest.mark.parametrize("rate", [5124.0841, 2000.0, 1500.0, 1000.797])
def test_resampling_keeps_a_tone(rate):
    """50 Hz is far below the new Nyquist frequency: same amplitude, same phase, at the stated rate."""
    tone = 100 * np.sin(2 * np.pi * 50 * np.arange(int(4 * rate)) / rate)[:, None]
    slower, stated = resample(tone, rate, 1000)
    assert stated == pytest.approx(1000, rel=1e-4)
    assert len(slower) == pytest.approx(4 * stated, abs=1)
    expected = 100 * np.sin(2 * np.pi * 50 * np.arange(len(slower)) / stated)
    np.testing.assert_allclose(slower[100:-100, 0], expected[100:-100], atol=0.5)


def test_resampling_lets_nothing_alias():
    """900 Hz would appear at 100 Hz."""
    time = np.arange(20_000) / 5000
    slower, stated = resample(100 * np.sin(2 * np.pi * 900 * time)[:, None], 5000.0, 1000)
    assert amplitude(slower, np.arange(len(slower)) / stated, 100)[0] < 0.5


@pytest.mark.parametrize(
    ("rate", "up", "down", "rows"),
    [(5124.08, 137, 702, 30_000), (5000, 1, 5, 3001), (1500, 2, 3, 2000), (5124.08, 137, 702, 1500), (2000, 1, 2, 7)],
)
def test_resampling_is_that_of_scipy(rate, up, down, rows):
    """137/702 · 5124.08 = 1000.000; the last two are too short for a period between the ends."""
    signal = np.random.default_rng(0).normal(0, 30, (rows, 2)).astype(np.float32)
    slower, stated = resample(signal, rate, 1000)
    assert stated == rate * up / down
    assert slower.dtype == np.float32
    np.testing.assert_allclose(slower, resample_poly(signal, up, down, axis=0), atol=1e-4)


@pytest.mark.parametrize("rate", [200.0, 1000.0])
def test_data_at_or_below_the_rate_stay_as_they_are(rate):
    signal = np.random.default_rng(0).normal(size=(300, 2)).astype(np.float32)
    same, stated = resample(signal, rate, 1000)
    assert stated == rate
    np.testing.assert_array_equal(same, signal)


@pytest.mark.parametrize("x", [(0.0, 0.0, 49.99), (3.0, -20.0, 49.985), (-7.0, 1.0, 50.0), (25.0, 25.0, 49.98)])
def test_the_error_of_a_line_is_the_mean_square_error(x):
    """Against the sum itself: e = mean(r²), r = y − a·sin ωt − b·cos ωt, ω = 2πf, in absolute time, where
    de/da = −2·mean(r·sin), de/db = −2·mean(r·cos), de/df = −2·mean(r·2πt·(a·cos − b·sin)).
    The Taylor coefficients of Σ y·e^(−jωu) around the nominal frequency, u from the middle of the span, are
    Σ y·e^(−jω₀u)·(−2πju)ⁿ/n!.
    """
    rate, span, start, nominal = 1000.0, 10_000, 123.4, 49.99
    rng = np.random.default_rng(0)
    time = start + np.arange(span) / rate
    y = rng.normal(0, 10, span) + 20 * np.sin(2 * np.pi * 49.987 * time + 1)
    middle = start + (span - 1) / 2 / rate
    u, series, term = time - middle, [], np.ones(span, complex)
    for n in range(11):
        series.append(np.sum(y * np.exp(-2j * np.pi * nominal * u) * term))
        term = term * (-2j * np.pi * u) / (n + 1)

    error, gradient = LineError(np.array(series), np.sum(y * y), nominal, middle, Lines(span, rate))(np.array(x))

    a, b, f = x
    s, c = np.sin(2 * np.pi * f * time), np.cos(2 * np.pi * f * time)
    r = y - a * s - b * c
    slope = [-2 * np.mean(r * s), -2 * np.mean(r * c), -2 * np.mean(r * 2 * np.pi * time * (a * c - b * s))]
    assert error == pytest.approx(np.mean(r * r), rel=1e-9)
    np.testing.assert_allclose(gradient, slope, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("rows", [100, 20_000, 150_000])
def test_forward_and_backward_is_that_of_scipy(rows):
    """Shorter than the filter's memory, one block, several blocks; the reference pads 33 samples."""
    sections = butter(5, (20, 700), "bandpass", fs=5124.07, output="sos")
    signal = (np.random.default_rng(0).normal(0, 30, (rows, 2)) + 500).astype(np.float32)  # an offset of 500 counts
    expected = sosfiltfilt(sections, signal.astype(np.float64), axis=0, padlen=33)
    forward_and_backward(signal, sections)
    np.testing.assert_allclose(signal, expected, atol=1e-3)


def test_a_large_offset_does_not_round_the_signal():
    """A 24-bit amplifier's electrode offset, 30 000 counts; float32 holds such values to 2/1000."""
    sections = butter(5, (20, 700), "bandpass", fs=5124.07, output="sos")
    signal = np.random.default_rng(0).normal([30_000, -30_000], 10, (100_000, 2)).astype(np.float32)
    expected = sosfiltfilt(sections, signal.astype(np.float64), axis=0, padlen=33)
    forward_and_backward(signal, sections)
    np.testing.assert_allclose(signal, expected, atol=1e-3)


def test_a_rate_far_above_the_wanted_one_is_refused():
    with pytest.raises(EMGError, match="more than 4000 times SAMPLE_RATE"):
        resample(np.zeros((10, 1), np.float32), 500_000.0, 100.0)


@pytest.mark.parametrize("module", [None, types.SimpleNamespace(setulb=lambda: None)], ids=["missing", "another"])
def test_the_filter_does_without_the_private_routine_of_scipy(module, monkeypatch):
    signal, time = with_line(12, 49.99)
    expected = apply_filter(signal, time, "putemg", BAND)
    monkeypatch.setitem(sys.modules, "scipy.optimize._lbfgsb", module)
    power_line.fast_search_works.cache_clear()
    np.testing.assert_array_equal(apply_filter(signal, time, "putemg", BAND), expected)
    power_line.fast_search_works.cache_clear()


def test_other_filters_do_not_import_the_private_routine(monkeypatch):
    monkeypatch.setattr(raw, "filter", raw.filter)  # to have it back afterwards
    for name in ("filter", "power_line"):
        monkeypatch.delitem(sys.modules, f"emg_gpt2.raw.{name}")
    signal, time = with_line(1, 50)
    importlib.import_module("emg_gpt2.raw.filter").apply_filter(signal, time, "causal", BAND)
    assert "emg_gpt2.raw.power_line" not in sys.modules


@pytest.mark.parametrize("start", [5.0, 333.0])
def test_the_search_ends_where_minimize_ends(start):
    """The compiled routine is called behind the back of `minimize`: bit for bit the same path, whatever the start."""
    rate, span = 1000.0, 10_000
    time = start + np.arange(span) / rate
    rng = np.random.default_rng(0)
    signals = rng.normal(0, 10, (span, 3)) + 20 * np.sin(2 * np.pi * 49.987 * time + 1)[:, None]
    lines = Lines(span, rate)
    fits = lines.fit(signals, start, np.zeros((5, 3, 2)))
    for line, channel in np.ndindex(5, 3):
        y, frequency, u = signals[:, channel], lines.frequencies[line], time - (start + lines.centre)
        powers = [(-2j * np.pi * u) ** n for n in range(11)]
        series = [np.sum(y * np.exp(-2j * np.pi * frequency * u) * p) / math.factorial(n) for n, p in enumerate(powers)]
        error = LineError(np.array(series), np.sum(y * y), frequency, start + lines.centre, lines)
        found = minimize(
            error,
            (0, 0, frequency),
            method="L-BFGS-B",
            jac=True,
            bounds=[(None, None), (None, None), (frequency - 0.01, frequency + 0.01)],
            options={"gtol": 1e-6},
        )
        np.testing.assert_array_equal(search(error, [0, 0, frequency]), found.x)
        np.testing.assert_allclose(fits[line, channel], found.x, atol=1e-3)


def test_sinusoids_are_what_their_parameters_say():
    """Against a·sin 2πft + b·cos 2πft itself, at frequencies off the nominal ones by up to 0.01 Hz."""
    rate, start = 5124.0, 100.0
    lines = Lines(51_240, rate)
    fits = np.zeros((5, 2, 3))
    fits[..., 2] = np.array(lines.frequencies)[:, None] + [[0.01, -0.004]]
    fits[1, 0, :2], fits[4, 1, :2] = (20, -5), (-3, 8)
    time = start + np.arange(51_240) / rate
    expected = [
        20 * np.sin(2 * np.pi * 50.0 * time) - 5 * np.cos(2 * np.pi * 50.0 * time),
        -3 * np.sin(2 * np.pi * 149.996 * time) + 8 * np.cos(2 * np.pi * 149.996 * time),
    ]
    np.testing.assert_allclose(lines.sinusoids(fits, start), np.transpose(expected), atol=2e-4)


@pytest.mark.parametrize("band", [(5e-324, 1.0), (1e-180, 1.0), (1e-9, 1.0), (20.0, 20.0 + 1e-9)])
@pytest.mark.parametrize("kind", ["putemg", "causal"])
def test_a_band_too_low_or_narrow_for_a_filter_is_refused(band, kind):
    signal, time = with_line(1, 50)
    with pytest.raises(EMGError, match="BAND_HZ"):
        apply_filter(signal, time, kind, band)
