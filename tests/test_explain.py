"""explain: it finds the electrode, band and moment that carry a gesture, and nothing where there is nothing."""

import json
from itertools import product
from pathlib import Path

import matplotlib.image
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import call
from scipy.signal import firwin, freqz

from emg_gpt2.commands.explain import main
from emg_gpt2.model.config import EMGConfig
from emg_gpt2.model.model import EMGForSequenceClassification
from emg_gpt2.settings import Settings
from emg_gpt2.study.forearm import largest_move, read_filters
from emg_gpt2.study.occlusion import choose_windows, parts_of, replace_band, replace_level, replace_moment, resample
from emg_gpt2.windows.reading import load_windows

pytestmark = pytest.mark.usefixtures("one_thread")

# Of each gesture the one place that is louder: electrode, band (Hz), samples, and its power (times that elsewhere)
PLANTED = {
    1: (2, (60, 120), slice(0, 200), 4.0),
    2: (5, (120, 250), slice(0, 200), 4.0),
    3: (6, (0, 500), slice(150, 200), 9.0),
}
NAMES = {"0": "idle", "1": "fist", "2": "flexion", "3": "extension"}
COLUMNS = ["recording", "TRAJ_GT", "repetition", "start", "session", "subject", "trajectory"]


def planted_windows() -> tuple[np.ndarray, pd.DataFrame]:
    """(384, 200, 8) white noise of 100 counts RMS at 1 kHz, in every gesture louder where PLANTED says; and the table.

    Two days of two recordings, three repetitions of eight windows each.
    """
    rng, rows, emg = np.random.default_rng(0), [], []
    for recording, label, repetition, number in product(range(4), range(4), range(3), range(8)):
        window = 100 * rng.standard_normal((200, 8))
        if label:
            channel, (low, high), samples, power = PLANTED[label]
            spectrum = np.fft.rfft(window[samples, channel])
            frequencies = np.fft.rfftfreq(len(window[samples]), 1e-3)
            spectrum[(frequencies >= low) & (frequencies < high)] *= np.sqrt(power)
            window[samples, channel] = np.fft.irfft(spectrum, len(window[samples]))
        emg.append(window)
        start, day = 100.0 * label + 10 * repetition + 0.2 * number, f"2018-05-1{recording // 2}"
        rows.append((f"made-{recording}", label, repetition, start, day, "03", "sequential"))
    table = pd.DataFrame(rows, columns=COLUMNS).astype({"TRAJ_GT": np.int8, "repetition": np.int16})
    return np.array(emg, np.float32), table


@pytest.fixture(scope="module")
def planted_file(windows_file, tmp_path_factory) -> Path:
    """A windows file of them."""
    emg, table = planted_windows()
    described = json.loads(pq.read_schema(windows_file).metadata[b"emg"])
    described |= {"window": 200, "sampling_rate": 1000.0, "scale": 1.0, "class_names": NAMES, "note": "PLANTED"}
    lists = pa.FixedSizeListArray.from_arrays(pa.array(emg.reshape(-1)), emg[0].size)
    columns = pa.Table.from_pandas(table).append_column("emg", lists)
    path = tmp_path_factory.mktemp("planted") / "planted.parquet"
    pq.write_table(columns.replace_schema_metadata({b"emg": json.dumps(described).encode()}), path)
    return path


def trained(data: Path, backbone: Path, folder: Path, *flags: str) -> Path:
    named = ["--data-location", data, "--model-name", backbone, "--pretrained", "never", "--precision", "fp32"]
    done = call("main.py", *named, "--run-dir", folder, "--no-refit", *flags)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def planted_run(planted_file, tiny_gpt2, tmp_path_factory) -> Path:
    flags = [
        "--split",
        "repetition",
        "--patch-ms",
        "50",
        "--num-epochs",
        "12",
        "--lr",
        "3e-3",
        "--no-linear-path",
        "--batch-size",
        "32",
    ]
    return trained(planted_file, tiny_gpt2, tmp_path_factory.mktemp("run") / "planted", *flags, "--ring", "4")


@pytest.fixture(scope="module")
def explained(planted_run) -> tuple:
    done = call("emg_gpt2.commands.explain", planted_run, "--part", "test")
    assert done.returncode == 0, done.stderr
    return json.loads((planted_run / "explain" / "explain.json").read_text(encoding="utf-8")), done


@pytest.fixture(scope="module")
def importance(explained) -> pd.DataFrame:
    """Points of every part (rows) and gesture (columns)."""
    points = {
        part["name"]: {name: 100 * one["value"] for name, one in part["importance"].items()}
        for part in explained[0]["parts"]
    }
    return pd.DataFrame.from_dict(points, orient="index")


# ---- what is found where it was put ---------------------------------------------------------------------------


def test_planted_places_are_found(importance):
    electrodes, bands, moments = importance[:8], importance[10:14], importance[14:]
    assert electrodes.idxmax()[["fist", "flexion", "extension"]].tolist() == ["EMG_3", "EMG_6", "EMG_7"]
    assert bands.idxmax()[["fist", "flexion"]].tolist() == ["60–120 Hz", "120–250 Hz"]
    assert moments.idxmax()["extension"] == "150–200 ms"
    assert importance.loc["EMG_7", "extension"] > 40  # of 100: nothing else tells it
    assert importance.loc["ring 1", "fist"] > 10 > abs(importance.loc["ring 1", "flexion"])


def test_places_that_carry_nothing_have_no_importance(importance):
    silent = importance.loc[["EMG_1", "EMG_2", "EMG_4", "EMG_5", "EMG_8", "0–60 Hz"]]
    assert silent["all gestures"].abs().max() < 1.5
    assert silent.abs().max().max() < 4


def test_intervals_are_those_of_what_was_planted(explained):
    found = explained[0]
    assert found["interval_over"] == "repetitions"
    for part in found["parts"]:
        for one in part["importance"].values():
            assert one["low"] <= one["value"] <= one["high"]
    planted = {part["name"]: part for part in found["parts"]}["EMG_7"]
    assert planted["importance"]["extension"]["low"] > 0.3
    assert planted["balanced_accuracy_drop"] == pytest.approx(np.mean(list(planted["recall_drop"].values())))
    assert abs(planted["replacement"]) < 0.05  # of itself the replacement costs little


def test_results_say_what_was_explained(explained, planted_run):
    found, done = explained
    assert found["windows"] == dict.fromkeys(NAMES.values(), 32)  # one repetition of three, of four recordings: 8 × 4
    assert (found["people"], found["days"], found["repetitions"]) == (1, 2, 16)
    assert (found["part"], found["weights"], found["data_note"]) == ("test", "random", "PLANTED")
    assert [part["kind"] for part in found["parts"]] == 8 * ["electrode"] + 2 * ["ring"] + 4 * ["band"] + 4 * ["moment"]
    metrics = json.loads((planted_run / "metrics.json").read_text(encoding="utf-8"))
    assert found["balanced_accuracy"] == pytest.approx(metrics["balanced_accuracy"], abs=0.01)  # all test windows
    assert "electrode of most importance over all gestures: EMG_7" in done.stderr
    for name in ("explain.png", "filters.png"):
        picture = matplotlib.image.imread(planted_run / "explain" / name)
        assert picture.shape[1] > 1000
        assert len(np.unique(picture[:, :, :3] @ [1, 256, 65536])) > 50  # colours
    assert len(found["filters"]) == 16
    assert found["filters"][3]["start_peak_hz"] == pytest.approx(3.5 * 500 / 16, abs=10)


def test_a_quick_look_says_what_it_leaves_out_and_keeps_the_intervals(
    explained, planted_run, tmp_path, capsys, monkeypatch
):
    """Fewer windows and donors, all parts; so the intervals are wider, and hold the figures of the long way."""
    monkeypatch.setattr("emg_gpt2.study.explaining.write_pictures", lambda *_: None)  # they take seconds
    assert main([str(planted_run), "--quick", "--out", str(tmp_path)]) == 0
    assert "quick: about 96 windows with 1 donor of each kind, not 480 with 2" in capsys.readouterr().err
    found, whole = json.loads((tmp_path / "explain.json").read_text(encoding="utf-8")), explained[0]
    assert (found["quick"], found["draws"], sum(found["windows"].values())) == (True, 1, 96)
    assert [part["name"] for part in found["parts"]] == [part["name"] for part in whole["parts"]]
    few, many = ({one["name"]: one["importance"]["all gestures"] for one in each["parts"]} for each in (found, whole))
    assert few["EMG_7"]["low"] <= many["EMG_7"]["value"] <= few["EMG_7"]["high"]
    widths = [np.mean([one["high"] - one["low"] for one in each.values()]) for each in (few, many)]
    assert widths[0] > widths[1]


@pytest.mark.nightly
def test_without_filters_a_sentence(planted_file, tiny_gpt2, tmp_path, capsys):
    flags = ["--split", "repetition", "--num-epochs", "1", "--tokens", "covariance,bands", "--ring", "3"]
    folder = trained(planted_file, tiny_gpt2, tmp_path / "run", *flags)
    assert main([str(folder), "--out", str(tmp_path / "out")]) == 0
    assert "no learned filters" in capsys.readouterr().err
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["explain.json", "explain.png"]
    found = json.loads((tmp_path / "out" / "explain.json").read_text(encoding="utf-8"))
    assert found["filters"] == []
    assert "ring" not in {part["kind"] for part in found["parts"]}  # 8 channels are no whole number of rings of 3


# ---- parts, donors, figures -----------------------------------------------------------------------------------


def config(**changes) -> EMGConfig:
    names = [f"EMG_{number}" for number in range(1, 9)]
    backbone = {"n_embd": 8, "n_head": 2, "n_layer": 1}
    return EMGConfig(**{"channels": names, "window": 200, "patch": 50, "backbone": backbone} | changes)


def names_of(kind: str, **changes) -> list[str]:
    return [part.name for part in parts_of(config(**changes)) if part.kind == kind]


def test_parts_cover_the_window():
    assert names_of("band") == ["0–60 Hz", "60–120 Hz", "120–250 Hz", "250–500 Hz"]
    assert names_of("band", sampling_rate=200.0) == ["0–60 Hz", "60–100 Hz"]
    assert names_of("moment") == ["0–50 ms", "50–100 ms", "100–150 ms", "150–200 ms"]
    assert names_of("moment", patch=60) == ["0–80 ms", "80–140 ms", "140–200 ms"]  # 20 samples are in no patch
    assert len(names_of("moment", patch=2)) == 10
    assert names_of("ring", ring=4) == ["ring 1", "ring 2"]
    assert names_of("ring", ring=8) == names_of("ring", ring=3) == []
    emg, donors = torch.randn(2, 5, 200, 8)
    for kind in ("band", "moment"):  # all of a kind together make the donor
        changed = emg
        for part in parts_of(config()):
            changed = part.change(changed, donors) if part.kind == kind else changed
        torch.testing.assert_close(changed, donors, atol=1e-5, rtol=1e-4)


def test_replacements_by_hand():
    emg, donors = torch.zeros(1, 4, 2), torch.zeros(1, 4, 2)
    emg[0, :, 0] = torch.tensor([1.0, -1, 1, -1])
    donors[0, :, 0] = torch.tensor([3.0, 3, -3, -3])
    assert replace_level([0])(emg, donors)[0, :, 0].tolist() == [3, -3, 3, -3]
    assert replace_level([1])(emg, donors + 1).equal(emg)  # a silent channel stays silent
    assert replace_moment(slice(1, 3))(emg, donors)[0, :, 0].tolist() == [1, 3, -3, -1]
    both = replace_band(np.array([1]))(emg + 2 * donors, torch.zeros_like(emg))  # the slower of the two waves
    torch.testing.assert_close(both, emg)


def test_donors_are_of_other_repetitions_of_the_day(planted_file):
    windows = load_windows(Settings(DATA_LOCATION=planted_file))
    chosen, table = choose_windows(windows, np.arange(len(windows.table)), seed=0), windows.table
    own = table.iloc[chosen.rows].reset_index(drop=True)
    assert own.groupby(["session", "TRAJ_GT"]).size().eq(48).all()  # all that there are
    for draws, same in ((chosen.same, True), (chosen.any, False)):
        for rows in draws:
            donor = table.iloc[rows].reset_index(drop=True)
            assert (donor["session"] == own["session"]).all()
            key = ["recording", "TRAJ_GT", "repetition"]
            assert (donor[key] != own[key]).any(axis=1).all()
            share = (donor["TRAJ_GT"] == own["TRAJ_GT"]).mean()
            assert share == 1 if same else abs(share - 0.25) < 0.08
    assert len(choose_windows(windows, np.flatnonzero(table["repetition"] < 2), seed=0).rows) == 256
    few = choose_windows(windows, np.arange(len(table)), seed=0, quick=True)
    assert len(few.rows) <= 96 < len(chosen.rows)
    assert few.same.shape == few.any.shape == (1, len(few.rows))


def test_bootstrap_is_over_units():
    values, units = np.array([[0.0, 0, 4, 4], [1, 1, 1, 1]]), np.array([7, 7, 9, 9])
    means = resample(values, units)
    assert set(means[:, 0]) == {0.0, 2.0, 4.0}  # both from one unit, or one from each
    assert np.mean(means[:, 0] == 2) == pytest.approx(0.5, abs=0.05)
    assert (means[:, 1] == 1).all()
    assert np.isnan(resample(values, np.zeros(4))).all()


def test_filters_as_scipy_has_them():
    model = EMGForSequenceClassification(config(filters=4, filter_taps=25))
    bank = read_filters(model, np.zeros(4))
    assert largest_move(bank) == 0
    low_pass = firwin(25, 100, fs=1000)
    with torch.no_grad():
        model.tokenisers["power"].filters[1] = torch.from_numpy(low_pass).float()
    bank = read_filters(model, np.zeros(4))
    _, gain = freqz(low_pass, worN=bank.frequencies, fs=1000)
    expected = 20 * np.log10(np.abs(gain) / np.abs(gain).max())
    heard = expected > -60
    np.testing.assert_allclose(bank.learned[1][heard], expected[heard], atol=0.05)
    assert largest_move(bank) > 3


# ---- what the user can put right ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["{tmp}/none"], "there is no run"),
        (["{run}", "--part", "train"], "invalid choice"),
        (["{run}", "--part", "validation"], "no gesture has two repetitions on a day"),
        (["{run}", "--data-location", "{other}"], "other windows or another split"),
        (["{unfinished}"], "--resume"),
    ],
)
def test_errors_are_one_sentence(argv, words, planted_run, small_file, tmp_path, capsys):
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "env.json").write_bytes((planted_run / "env.json").read_bytes())
    places = {"tmp": tmp_path, "run": planted_run, "other": small_file, "unfinished": unfinished}
    assert main([one.format(**places) for one in argv]) == 1
    said = capsys.readouterr().err.strip()
    assert said.startswith("explain: ")
    assert words in said
    assert len(said.splitlines()) == 1
