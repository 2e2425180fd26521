"""predict: the windows that training saw, what they are measured against, smoothing, rejection, figures."""

import json
import re
import shutil
from pathlib import Path

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import STEM, cut, raw_table, svg_texts, write_raw

from EMG_DATA_LOADER import read_emg
from emg_gpt2.commands.predict import main, parse
from emg_gpt2.live.decisions import REJECTED, Classifier, Smoother
from emg_gpt2.live.judging import figures_of, pooled, truth_of
from emg_gpt2.live.predicting import decided_recordings
from emg_gpt2.live.references import FixedReference, RunningReference, mixed
from emg_gpt2.live.setup import Setup
from emg_gpt2.model.build import load_model
from emg_gpt2.model.class_means import reference_of_mixture
from emg_gpt2.model.normalise import Reference
from emg_gpt2.raw.putemg import find_recordings
from emg_gpt2.settings import Settings
from emg_gpt2.windows.reading import load_windows

pytestmark = pytest.mark.usefixtures("one_thread")

GESTURES = [f"p_{code}" for code in (0, 1, 2, 3, 6, 7, 8, 9)]
DAY = [  # by name the second comes first, by time the first
    "emg_gestures-03-sequential-2018-05-12-11-05-52-120",
    "emg_gestures-03-repeats_long-2018-05-12-11-15-26-340",
]


def recorded(path: Path, fist: float = 40.0, seed: int = 3) -> Path:
    """Four seconds, 8 channels at 1 kHz: 1.5 s at rest, 1.5 s of a fist of that strength, 1 s unlabelled."""
    labels = np.repeat([0, 1, -1], [1500, 1500, 1000])
    strength = np.where(labels == 1, fist, 5)[:, None]
    emg = np.rint(np.random.default_rng(seed).normal(size=(4000, 8)) * strength + 100)
    return write_raw(raw_table(emg, labels), path)


@pytest.fixture(scope="module")
def short(tmp_path_factory) -> Path:
    """One recording."""
    return recorded(tmp_path_factory.mktemp("short") / f"{STEM}.hdf5")


@pytest.fixture(scope="module")
def day(tmp_path_factory) -> list[Path]:
    """Two recordings of a day, in the order of time."""
    folder = tmp_path_factory.mktemp("day")
    return [recorded(folder / f"{stem}.csv", fist=40.0 * (place + 1), seed=place) for place, stem in enumerate(DAY)]


def predicted(*argv: str | Path) -> dict[str, pd.DataFrame]:
    """The tables of `predict`, by recording, without its files."""
    args = parse([*map(str, argv)])
    found = [*decided_recordings(find_recordings(args.recordings), Setup(args))]
    return {signal.name: decided.table for signal, decided in found}


def written(out: Path, *argv: str | Path, status: int = 0) -> tuple[dict[str, pd.DataFrame], dict]:
    """The tables that `predict` writes, by recording, and metrics.json."""
    assert main([*map(str, argv), "--out", str(out)]) == status
    tables = {path.stem: pd.read_csv(path) for path in out.glob("*.csv")}
    return tables, json.loads((out / "metrics.json").read_text())


# ---- the same windows as in training ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["putemg", "causal"])
def test_every_window_of_training_is_seen_as_training_saw_it(kind, short, trained, causal_model, tmp_path):
    folder = causal_model if kind == "causal" else trained / "best_model"
    cut(short, "--data-location", tmp_path / "short.parquet", "--filter", kind)
    windows = load_windows(Settings(DATA_LOCATION=tmp_path / "short.parquet"))
    with torch.no_grad():
        logits = load_model(folder)(emg=read_emg(windows, np.arange(len(windows.table)))).logits
    every = ["--hop-ms", "1", "--smooth", "none", "--reference", "model"]  # 1 ms is one sample
    table = predicted(short, "--model", folder, *every)[STEM]
    assert len(windows.table) == 14  # (1500 − 2 · 250 − 250) / 125 + 1 of each label
    for start, label, expected in zip(windows.table["start"], windows.table["TRAJ_GT"], logits.softmax(1), strict=True):
        row = table.iloc[(table["start"] - start).abs().argmin()]
        assert row["start"] == pytest.approx(start, abs=1e-4)
        assert row["label"] == label
        np.testing.assert_allclose(row[GESTURES].astype(float), expected, atol=2e-5)


def test_the_filter_can_be_made_causal(short, trained, causal_model):
    given = [short, "--reference", "model", "--model"]
    causal = predicted(*given, causal_model)[STEM]
    made_causal = predicted(*given, trained / "best_model", "--filter", "causal")[STEM]
    pd.testing.assert_frame_equal(causal, made_causal)
    assert not predicted(*given, trained / "best_model")[STEM][GESTURES].equals(causal[GESTURES])


def test_a_setting_of_training_is_no_matter_of_a_trained_model(short, trained, tmp_path, monkeypatch):
    """A variable that main.py would refuse; the model has its own settings."""
    monkeypatch.setenv("EMG_NUM_EPOCHS", "0")
    assert written(tmp_path / "out", short, "--model", trained / "best_model")


def test_a_table_holds_a_row_per_window(short, trained, tmp_path):
    tables, _ = written(tmp_path / "out", short, "--model", trained / "best_model", "--smooth", "none")
    table = tables[STEM]
    assert list(table) == ["start", "end", "gesture", "confidence", *GESTURES, "label"]
    np.testing.assert_allclose(table["start"], 5 + 0.05 * np.arange(76), atol=1e-4)  # (4000 − 250) / 50 + 1 windows
    np.testing.assert_allclose(table["end"] - table["start"], 0.25, atol=1e-4)
    np.testing.assert_allclose(table[GESTURES].sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(table["confidence"], table[GESTURES].max(axis=1), atol=1e-6)
    names = np.array(
        ["idle", "fist", "flexion", "extension", "pinch index", "pinch middle", "pinch ring", "pinch small"]
    )
    assert list(table["gesture"]) == list(names[table[GESTURES].to_numpy().argmax(1)])
    # Inside 5.25 … 6.25 s at rest, 6.75 … 7.75 s the fist: windows of 250 ms every 50 ms.
    assert (table["label"] == 0).sum() == (table["label"] == 1).sum() == 16
    assert list(table["start"][table["label"] == 1].round(2))[::15] == [6.75, 7.5]
    assert matplotlib.image.imread(tmp_path / "out" / f"{STEM}.png").std() > 0.05
    assert not list((tmp_path / "out").glob(".*"))
    memory = predicted(short, "--model", trained / "best_model", "--smooth", "none")[STEM]
    pd.testing.assert_frame_equal(table, memory, check_dtype=False, atol=1e-6)


def test_the_picture_says_what_it_shows_and_where_it_is_wrong(short, trained, tmp_path):
    """The note of the model's data is one on the model, not on the recording; a lane has a unit."""
    model = shutil.copytree(trained / "best_model", tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"data_note": "SIMULATED: no person was recorded."}))
    flags = ["--smooth", "none", "--reference", "model", "--figure-format", "svg"]
    _, metrics = written(tmp_path / "out", short, "--model", model, *flags)
    said = svg_texts(tmp_path / "out" / f"{STEM}.svg")
    assert f"Model trained on: SIMULATED: no person was recorded; recording: {STEM}." in " ".join(said)
    assert any(re.fullmatch(r"\(lines \S+ counts apart\)", text) for text in said)
    assert f"wrong ({100 * (1 - metrics['all']['with']['accuracy']):.1f} %)" in said
    assert {"label", "predicted, not judged", "confidence", "time (s)"} <= {*said}
    assert sorted(path.suffix for path in (tmp_path / "out").iterdir()) == [".csv", ".json", ".svg"]


def test_parquet_holds_the_same(short, trained, tmp_path):
    model = ["--model", str(trained / "best_model")]
    assert main([str(short), *model, "--out", str(tmp_path), "--format", "parquet"]) == 0
    table = predicted(short, *model)[STEM]
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / f"{STEM}.parquet"), table, check_dtype=False)


# ---- what windows are measured against --------------------------------------------------------------------------


def test_the_reference_is_that_of_all_recordings_of_the_day(day, trained):
    model = ["--model", trained / "best_model", "--smooth", "none", "--reference"]
    together, alone = predicted(*day, *model, "session"), predicted(day[0], *model, "session")
    other = predicted(day[0], *model, day[1])
    itself = predicted(day[0], *model, day[0])
    assert list(together) == DAY
    assert not np.allclose(together[DAY[0]][GESTURES], alone[DAY[0]][GESTURES], atol=1e-3)
    assert not np.allclose(other[DAY[0]][GESTURES], alone[DAY[0]][GESTURES], atol=1e-3)
    np.testing.assert_allclose(itself[DAY[0]][GESTURES], alone[DAY[0]][GESTURES], atol=1e-6)


def test_what_comes_after_a_window_is_not_looked_at_unless_it_is_asked_for(day, trained, causal_model):
    def transductive(model: Path, *more: str | Path) -> bool:
        return Setup(parse([*map(str, [day[0], "--model", model, *more])])).is_transductive([DAY[0]])

    assert Setup(parse([str(day[0]), "--model", str(trained / "best_model")])).reference == "model"
    assert Setup(parse([str(day[0]), "--model", str(causal_model)])).reference == "running"  # SCALE was "session"
    assert not transductive(causal_model)
    assert not transductive(causal_model, "--reference", day[1])
    assert transductive(causal_model, "--reference", day[0])
    assert transductive(trained / "best_model", "--reference", "session")


def test_a_running_reference_is_kept_over_the_recordings_of_a_day(day, trained):
    given = ["--model", trained / "best_model", "--reference", "running"]
    together, first, second = predicted(*day, *given), predicted(day[0], *given), predicted(day[1], *given)
    pd.testing.assert_frame_equal(together[DAY[0]], first[DAY[0]])
    assert not np.allclose(together[DAY[1]][GESTURES], second[DAY[1]][GESTURES], rtol=0.1, atol=0)


def test_a_running_reference_measures_windows_that_do_not_overlap(trained):
    model, rng = load_model(trained / "best_model"), np.random.default_rng(0)
    windows = rng.normal(size=(40, 250, 8)).astype(np.float32)
    running = RunningReference(model, hop=100)  # so every third window
    values = np.full((40, len(model.config.class_codes)), 1 / len(model.config.class_codes), np.float32)
    running.see(windows[:19], values[:19])
    assert running.reference is model.reference or torch.equal(running.reference.scale, model.scale)
    running.see(windows[19:20], values[19:20])
    kept = torch.from_numpy(windows[:20:3]), torch.from_numpy(values[:7])
    measured = reference_of_mixture(*kept, model.class_means, model.reference.spread)  # 1.75 s are short
    expected = mixed(model.reference, measured, 7 / (7 + 30))
    for one, other in zip(running.reference, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_a_long_session_is_measured_on_windows_all_over_it(trained):
    running = RunningReference(load_model(trained / "best_model"), hop=250)
    for number in range(1000):
        running.see(np.full((1, 250, 8), number, np.float32), np.full((1, 8), 1 / 8, np.float32))
    assert [int(window[0, 0]) for window, _ in running.kept] == list(range(0, 1000, 8))  # twice 240 is less than 1000


def test_references_are_mixed_by_their_variances():
    one, other = (Reference(torch.full((1, 2), a), torch.full((1, 3), b), torch.full((1, 3), c))
                  for a, b, c in ((1.0, 0.0, 2.0), (7.0, 4.0, 1.0)))  # fmt: skip
    scale, centre, spread = mixed(one, other, 0.25)
    np.testing.assert_allclose([scale[0, 0], centre[0, 0], spread[0, 0]], [13**0.5, 1.0, 3.25**0.5], rtol=1e-6)


# ---- smoothing and rejection ------------------------------------------------------------------------------------


def test_probabilities_are_averaged_over_the_last_windows():
    smoother = Smoother("mean", 2, 0.5)
    classes, confidence = smoother(np.array([[0.6, 0.4, 0.0], [0.0, 0.4, 0.6]]))
    assert list(classes) == [0, REJECTED]  # means 0.3, 0.4, 0.3: the second leads, below 0.5
    np.testing.assert_allclose(confidence, [0.6, 0.4])
    classes, confidence = smoother(np.array([[0.0, 0.2, 0.8]]))
    assert (list(classes), confidence[0]) == ([2], pytest.approx(0.7))


def test_the_latest_of_the_leading_classes_wins_a_vote():
    one, two, three = np.eye(3) * 0.4 + 0.2
    classes, confidence = Smoother("vote", 3, 0.0)(np.stack([one, two, two, one, three]))
    assert list(classes) == [0, 1, 1, 1, 2]
    np.testing.assert_allclose(confidence, [1, 1 / 2, 2 / 3, 2 / 3, 1 / 3])


def test_none_takes_each_window_by_itself():
    classes, confidence = Smoother("none", 5, 0.65)(np.array([[0.7, 0.3], [0.4, 0.6]]))
    assert (list(classes), list(confidence)) == ([0, REJECTED], [0.7, 0.6])


def test_only_the_latest_windows_are_classified_where_time_is_short(trained):
    model = load_model(trained / "best_model")
    samples = np.random.default_rng(0).normal(size=(1000, 8)).astype(np.float32)
    every = Classifier(model, 100, FixedReference(model.reference))(samples)
    hurried = Classifier(model, 100, FixedReference(model.reference))
    few, rest = hurried(samples[:900], most=2), hurried(samples[900:])
    assert list(every.first) == [0, 100, 200, 300, 400, 500, 600, 700]
    assert (list(few.first), list(rest.first), hurried.skipped) == ([500, 600], [700], 5)
    np.testing.assert_allclose(np.concatenate([few.values, rest.values]), every.values[5:], atol=1e-6)


# ---- figures ----------------------------------------------------------------------------------------------------


@pytest.fixture
def judged():
    """10 samples a second, windows of 2 every sample; rest to 2 s, a fist to 4 s, then label 5, which nobody knows."""
    labels = np.repeat([0, 1, 5, 0, 1], [20, 20, 5, 10, 10])
    return truth_of(labels, np.arange(64), 2, 10.0, (200, 100), [0, 1])


def test_a_window_counts_inside_a_repetition_less_its_edges(judged):
    labels = judged.windows["label"].to_numpy()
    assert list(np.flatnonzero(labels == 0)) == [*range(2, 18), *range(47, 53)]  # 2 … 18, 47 … 53 of 20, 45 … 55
    assert list(np.flatnonzero(labels == 1)) == [*range(22, 38), *range(57, 63)]
    assert list(judged.repetitions["label"]) == [0, 1, 0, 1]
    assert list(judged.repetitions["start"]) == [0, 2, 4.5, 5.5]


def test_figures_by_hand(judged):
    decided = np.zeros(64, int)
    decided[25:40] = 1  # 22, 23, 24 of the first fist are called rest: it is found when window 25 ends, at 2.7 s
    decided[5] = 1  # one of 22 at rest
    decided[30] = REJECTED
    found = figures_of(judged, decided)
    assert found["windows"] == 44
    right = 21 + 16 - 3 - 1  # the second fist is missed
    assert found["accuracy"] == pytest.approx(right / 44)
    assert found["balanced_accuracy"] == pytest.approx((21 / 22 + 12 / 22) / 2)
    assert found["active_error"] == pytest.approx(1 / 13)
    assert found["rejected"] == pytest.approx(1 / 44)
    assert found["instability"] == pytest.approx((2 + 1 + 2) / (15 + 15 + 5 + 5))
    assert found["delay_ms"] == pytest.approx(700)
    assert (found["missed"], found["gestures"]) == (1, 2)
    assert found["confusion_matrix"] == {"labels": [0, 1, -1], "counts": [[21, 1, 0], [9, 12, 1]]}


def test_recordings_are_pooled_repetition_by_repetition(judged):
    alone = figures_of(judged, np.zeros(64, int))
    both = pooled([judged, judged])
    decided = np.concatenate([np.zeros(64, int), np.ones(64, int)])
    assert figures_of(both, decided)["missed"] == alone["missed"] == 2
    assert figures_of(both, decided)["accuracy"] == 0.5
    assert figures_of(both, decided)["delay_ms"] == pytest.approx(100)  # the sample before the label is in the window
    assert figures_of(both, decided)["instability"] == 0


def test_figures_are_given_with_smoothing_and_rejection_and_without(raw_folder, trained, tmp_path, capsys):
    path = next(raw_folder.glob("*-03-sequential-2018-06-14*"))
    given = ["--smooth", "vote", "--span-ms", "500", "--reject-below", "0.6", "--reference", "session"]
    tables, metrics = written(tmp_path, path, "--model", trained / "best_model", *given)
    table, found = tables[path.stem], metrics["all"]
    assert found["with"]["balanced_accuracy"] > 0.375  # three times chance: trained on another day, at its scale
    assert found["with"]["rejected"] > 0 == found["without"]["rejected"]
    assert found["with"]["instability"] < found["without"]["instability"]
    assert ((table["gesture"] == "rejected") == (table["confidence"] < 0.6)).all()
    assert (metrics["trained_on"], metrics["transductive"]) == ([], True)
    said = capsys.readouterr().out
    assert "smoothed (vote of 500 ms), rejected below 0.6" in said
    assert "\ntransductive: each window was measured against the signal of its whole session" in said
    assert f"{found['with']['balanced_accuracy']:.3f}" in said
    assert "missed" in said
    assert not [line for line in said.splitlines() if line.startswith(" all ")]  # it would repeat the one recording


def test_recordings_of_the_training_part_are_named(raw_folder, trained, tmp_path, capsys):
    name = next(raw_folder.glob("*-03-repeats_long-2018-05-11*")).stem
    _, metrics = written(tmp_path / "out", recorded(tmp_path / f"{name}.csv"), "--model", trained / "best_model")
    assert (metrics["trained_on"], metrics["transductive"]) == ([name], False)
    said = capsys.readouterr().out
    assert "trained on 1 of these recordings" in said
    assert "reject" not in said  # it is off


# ---- other recordings -------------------------------------------------------------------------------------------


def test_a_recording_without_labels_needs_only_clock_and_channels(short, trained, tmp_path):
    model = ["--model", trained / "best_model"]
    table, labelled = pd.read_hdf(short), predicted(short, *model)[STEM].drop(columns="label")
    columns = [name for name in table if name.startswith("EMG_")]
    path = write_raw(table[columns], tmp_path / f"{STEM}.csv")
    tables, metrics = written(tmp_path / "out", path, *model)
    pd.testing.assert_frame_equal(tables[STEM], labelled, check_dtype=False, atol=1e-4)
    assert metrics["recordings"] == {}
    path.unlink()
    path = write_raw(table[columns], tmp_path / f"{STEM}.zip")
    pd.testing.assert_frame_equal(predicted(path, *model)[STEM], labelled, atol=1e-4)


def test_what_cannot_be_predicted_is_named_and_the_rest_is(short, trained, tmp_path, capsys):
    rng = np.random.default_rng(0)
    bad = [  # what is wrong, samples, rate in Hz
        ("3 channels, and the model was trained on 8", np.arange(3000).reshape(1000, 3), 1000),
        ("the samples are not whole counts", rng.normal(size=(1000, 8)), 1000),
        ("500.00 Hz after resampling", np.rint(9 * rng.normal(size=(1000, 8))), 500),
        ("200 samples are less than a window", np.rint(9 * rng.normal(size=(200, 8))), 1000),
    ]
    for day, (_, emg, rate) in enumerate(bad, 12):
        table = raw_table(emg, np.zeros(len(emg)), rate)
        write_raw(table, tmp_path / f"emg_gestures-03-sequential-2018-05-{day}-11-10-52-120.csv")
    twin = write_raw(pd.read_hdf(short), tmp_path / f"{STEM}.csv")
    given = [tmp_path, short, "--model", trained / "best_model"]
    tables, _ = written(tmp_path / "out", *given, status=3)
    assert list(tables) == [STEM]
    said = capsys.readouterr().err
    for words, *_ in bad:
        assert words in said
    assert "the same recording was read from another file already" in said
    twin.unlink()
    assert main([str(tmp_path), "--model", str(trained / "best_model"), "--out", str(tmp_path / "none")]) == 1
    assert "nothing could be predicted" in capsys.readouterr().err


def test_a_dead_electrode_is_named_and_the_recording_predicted(short, trained, tmp_path, caplog):
    table = pd.read_hdf(short)
    table["EMG_3"] = 7.0
    path = write_raw(table, tmp_path / f"{STEM}.csv")
    assert len(predicted(path, "--model", trained / "best_model")[STEM]) == 76
    assert "EMG_3 never changes" in caplog.text


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--hop-ms", "300"], "--hop-ms 300: should be from 1 to 250"),
        (["--reject-below", "2"], "2 is not a number from 0 to 1"),
        (["--reference", "nowhere.hdf5"], "nowhere.hdf5: there is no such file"),
        (["--model", "runs/nowhere/best_model"], "best_model: no model can be loaded (there is no such folder)"),
        (["--smooth", "median"], "invalid choice: 'median'"),
    ],
)
def test_wrong_flags_end_in_one_sentence(given, words, short, trained, tmp_path, capsys):
    model = [] if "--model" in given else ["--model", str(trained / "best_model")]
    assert main([str(short), *model, *given, "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert words in said
    assert len(said.strip().splitlines()) == 1


@pytest.mark.parametrize("kept", [{}, {"FILTER": "causal"}])
def test_a_model_that_does_not_say_how_its_windows_were_made_is_refused(kept, short, trained, tmp_path, capsys):
    model = shutil.copytree(trained / "best_model", tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"preprocessing": kept}))
    assert main([str(short), "--model", str(model), "--out", str(tmp_path / "out")]) == 1
    assert f"{model}: the model does not say how its windows were made (BAND_HZ)" in capsys.readouterr().err
