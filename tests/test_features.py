"""Features of one signal worked out by hand, and of the data set's own reference processing."""

import numpy as np
import pytest
from conftest import SHARED, needs_shared

from emg_gpt2.study import features
from emg_gpt2.study.features import compute_features

SIGNAL = [0, 40, 35, -20, -40, -29, 31, 42, 42, 0]  # slopes 40, -5, -55, -20, 11, 60, 11, 0, -42
BY_HAND = {
    "RMS": np.sqrt(10155 / 10),  # 1600 + 1225 + 400 + 1600 + 841 + 961 + 1764 + 1764
    "log-RMS": 0.5 * np.log(1015.5),
    "MAV": 27.9,
    "IAV": 279,
    "VAR": 1015.5 - 10.1**2,  # the samples' sum is 101
    "WL": 244,
    "ZC": 2,  # beyond ± 30: 40, 35, -40, 31, 42, 42
    "SSC": 2,  # 40 → -5 and -20 → 11; 0 → -42 is none
    "WAMP": 7,  # all but -5 and 0
}


@pytest.fixture
def windows() -> np.ndarray:
    """(3, 10, 2): the signal, its quarter and nothing, beside a channel that is always nothing."""
    first = np.array(SIGNAL, float)
    return np.stack([np.stack([first * part, np.zeros(10)], axis=1) for part in (1, 0.25, 0)])


@pytest.mark.parametrize("name", BY_HAND)
def test_textbook_values(windows, name):
    found = compute_features(windows, np.array([0]))[name]
    assert found.shape == (1, 2)
    assert found[0, 0] == pytest.approx(BY_HAND[name])


def test_the_released_features_are_signed(windows):
    """The slopes sum to zero, and four of them are above 10: 40, 11, 60, 11."""
    found = compute_features(windows, np.array([0]), reference=True)
    assert (found["WL"][0, 0], found["WAMP"][0, 0]) == (0, 4)


def test_a_still_channel_counts_nothing_and_its_logarithm_is_finite(windows):
    found = compute_features(windows, np.array([0, 2]))
    assert found["log-RMS"][0, 1] == found["log-RMS"][1, 0] == pytest.approx(np.log(1e-3))
    assert all(values[1].tolist() == [0, 0] for name, values in found.items() if name != "log-RMS")


def test_thresholds_move_with_the_scale(windows):
    """The quarter of the signal, where a count is worth a quarter, has the counts of the whole one."""
    whole, quarter = compute_features(windows, np.array([0])), compute_features(windows, np.array([1]), count=0.25)
    for name in ("ZC", "SSC", "WAMP"):
        assert quarter[name].tolist() == whole[name].tolist()
    assert compute_features(windows, np.array([1]))["ZC"][0, 0] == 0


def test_scales_of_rows_and_channels_are_applied(windows):
    scale = np.array([[1.0, 1.0], [4.0, 7.0]])
    found = compute_features(windows, np.array([0, 1]), scale)
    assert found["RMS"][0, 0] == pytest.approx(found["RMS"][1, 0]) == pytest.approx(BY_HAND["RMS"])


def test_chunks_give_what_one_piece_gives(monkeypatch):
    emg, rows = np.random.default_rng(0).normal(0, 30, (7, 20, 3)), np.array([6, 0, 3, 5, 1])
    whole = compute_features(emg, rows)
    monkeypatch.setattr(features, "CHUNK_SAMPLES", 100)
    pieces = compute_features(emg, rows)
    for name, values in whole.items():
        np.testing.assert_array_equal(pieces[name], values)


@pytest.fixture(scope="module")
def reference() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(M, 8) of every feature: stored and computed here, of windows of 2500 samples that begin 1250 apart."""
    with np.load(SHARED / "putemg" / "reference_8ch.npz") as stored:
        filtered, names, values = stored["filtered"], stored["feature_names"], stored["features"]
    kinds = np.array([name.rpartition("_")[0] for name in names])
    expected = {str(kind): values[:, kinds == kind] for kind in np.unique(kinds)}
    emg = np.stack([filtered[1250 * number :][:2500] for number in range(len(values))])
    return expected, compute_features(emg, np.arange(len(emg)), reference=True)


@needs_shared
@pytest.mark.parametrize("name", ["RMS", "MAV", "IAV", "VAR"])
def test_amplitudes_agree_with_the_reference(reference, name):
    """The stored signal is the reference's, rounded to float32: 6e-8 of each sample."""
    expected, found = reference
    np.testing.assert_allclose(found[name], expected[name], rtol=1e-7)


@needs_shared
def test_the_signed_waveform_length_agrees_with_the_reference(reference):
    """Last minus first sample: its error is theirs, and not smaller where they are nearly equal."""
    expected, found = reference
    np.testing.assert_allclose(found["WL"], expected["WL"], rtol=0, atol=2e-5)


@needs_shared
@pytest.mark.parametrize("name", ["ZC", "SSC", "WAMP"])
def test_counts_agree_exactly_with_the_reference(reference, name):
    expected, found = reference
    assert expected[name].any()
    np.testing.assert_array_equal(found[name], expected[name])
