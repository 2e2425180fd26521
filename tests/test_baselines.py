"""The baselines through their command line, on simulated windows and on windows that are told apart by hand."""

import io
import json
import warnings

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from conftest import call
from rich.console import Console
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis, QuadraticDiscriminantAnalysis
from sklearn.preprocessing import StandardScaler

from EMG_DATA_LOADER import Split, split_windows
from emg_gpt2.base.errors import EMGError
from emg_gpt2.commands.baselines import main
from emg_gpt2.results.figures import plt
from emg_gpt2.settings import Settings
from emg_gpt2.study import baselines
from emg_gpt2.study.baselines import (
    CLASSIFIERS,
    SCALES,
    channel_deviation,
    draw_beside_run,
    evaluate_baselines,
    scaled_features,
)
from emg_gpt2.study.features import FEATURE_SETS, compute_features
from emg_gpt2.windows.reading import WindowSet, load_windows

ALL = {(name, kind, scaling) for name in FEATURE_SETS for kind in CLASSIFIERS for scaling in SCALES}


def by_name(baselines: list[dict]) -> dict[tuple, dict]:
    return {(one["features"], one["classifier"], one["scaling"]): one for one in baselines}


# ---- the command line -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def flags(small_file, tiny_gpt2) -> list:
    return ["--data-location", small_file, "--model-name", tiny_gpt2, "--pretrained", "never", "--num-epochs", "1"]


@pytest.fixture(scope="module")
def finished(flags, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    done = call("main.py", *flags, "--run-dir", folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def added(finished) -> tuple:
    """The run's folder with baselines, and what the tool said."""
    return finished, call("emg_gpt2.commands.baselines", "--add-to", finished)


@pytest.fixture(scope="module")
def written(added) -> dict:
    folder, done = added
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "baselines.json").read_text(encoding="utf-8"))


def test_every_baseline_is_there_once(written):
    assert len(written["baselines"]) == len(ALL) == 40
    assert set(by_name(written["baselines"])) == ALL


def test_the_table_shows_each_figure_and_marks_the_best_of_each_column(added, written):
    rows = [line.split() for line in added[1].stdout.splitlines() if line.startswith(" ") and "0." in line]
    assert len(rows) == 20
    for name, kind in [(name, kind) for name in FEATURE_SETS for kind in CLASSIFIERS]:
        row = next(row for row in rows if row[: 1 + len(kind.split())] == [name, *kind.split()])
        figures = [by_name(written["baselines"])[name, kind, scaling]["balanced_accuracy"] for scaling in SCALES]
        assert [word for word in row if word.startswith("0.")] == [f"{figure:.3f}" for figure in figures]
    best = [max(one["balanced_accuracy"] for one in written["baselines"] if one["scaling"] == s) for s in SCALES]
    marked = [word for row in rows for word, after in zip(row, [*row[1:], ""], strict=True) if after == "*"]
    assert set(marked) == {f"{figure:.3f}" for figure in best}


def test_only_the_results_and_progress_are_said(added):
    assert "Warning" not in added[1].stderr + added[1].stdout
    assert "Traceback" not in added[1].stderr
    assert "SVM" in added[1].stderr
    assert "chance 0.125" in added[1].stdout


def test_the_split_and_the_data_are_those_of_the_run(written, finished):
    metrics = json.loads((finished / "metrics.json").read_text(encoding="utf-8"))
    for name in ("data", "data_note", "split", "split_description", "n_test", "classes"):
        assert written[name] == metrics[name], name
    assert written["n_train"] == metrics["n_train"] + metrics["n_val"]  # as the model that was trained anew
    assert written["versions"].keys() == {*metrics["versions"], "scikit-learn"}
    for one in written["baselines"]:
        assert {name: row["support"] for name, row in one["per_class"].items()} == {
            name: row["support"] for name, row in metrics["per_class"].items()
        }
        assert one["per_subject"].keys() == metrics["per_subject"].keys()


def test_lda_on_rms_is_what_scikit_learn_says_without_this_tool(written, finished, small_file):
    """From the windows and the run's split.csv, with nothing of this project."""
    windows = pq.read_table(small_file)
    emg = np.array(windows["emg"].to_pylist(), float).reshape(len(windows), 250, 8)
    rms, part = np.sqrt((emg**2).mean(1)), pd.read_csv(finished / "split.csv")["part"].to_numpy()
    label = windows["TRAJ_GT"].to_numpy()
    scaler = StandardScaler().fit(rms[part != "test"])
    model = LinearDiscriminantAnalysis().fit(scaler.transform(rms[part != "test"]), label[part != "test"])
    right = model.predict(scaler.transform(rms[part == "test"])) == label[part == "test"]
    recalls = [right[label[part == "test"] == one].mean() for one in np.unique(label[part == "test"])]
    found = by_name(written["baselines"])["RMS", "LDA", "training"]
    assert found["accuracy"] == pytest.approx(right.mean())
    assert found["balanced_accuracy"] == pytest.approx(np.mean(recalls))


def test_the_verdict_names_the_best_baseline_of_the_validation_part(added, written):
    best, validation = written["validation"], pd.read_parquet(added[0] / "validation.parquet")
    right = np.array(best["predicted"]) == validation["TRAJ_GT"]
    assert best["balanced_accuracy"] == pytest.approx(right.groupby(validation["TRAJ_GT"]).mean().mean())
    assert best["tried"] == 40
    scale = {"training": "training part", "session": "session (transductive)"}[best["scaling"]]
    name = f"from {best['classifier']} on {best['features']}, scale of the {scale}, the best of 40 baselines"
    assert name in added[1].stderr
    assert name in (added[0] / "report.html").read_text(encoding="utf-8")


def test_the_picture_shows_the_run_and_both_scalings_the_best_first(added, written, monkeypatch, tmp_path):
    assert (added[0] / "baselines.png").stat().st_size > 10_000
    metrics = json.loads((added[0] / "metrics.json").read_text(encoding="utf-8"))
    monkeypatch.setattr(plt, "close", lambda figure: None)
    draw_beside_run(written["baselines"], written, metrics, tmp_path / "baselines.png")
    [axes] = plt.gcf().axes
    names = [text.get_text() for text in axes.get_yticklabels()]
    lines = {line.get_label(): line for line in axes.get_lines()}
    run, training = lines[names[0]], lines["scale of the training part"]
    session = lines["scale of the session (transductive)"]
    assert list(run.get_xdata()) == [metrics["balanced_accuracy"]]
    for place, name in enumerate(names[1:]):
        features, kind = name.split(", ")
        for scaling, line in (("training", training), ("session", session)):
            expected = by_name(written["baselines"])[features, kind, scaling]["balanced_accuracy"]
            assert line.get_xdata()[place] == expected
    best = np.maximum(training.get_xdata(), session.get_xdata())
    assert list(best) == sorted(best, reverse=True)


def test_the_report_shows_them_afterwards(added, written):
    page = (added[0] / "report.html").read_text(encoding="utf-8")
    assert "Classical classifiers on the same windows" in page
    for one in written["baselines"]:
        assert f">{one['balanced_accuracy']:.3f}" in page


def test_named_settings_give_the_same_as_the_run(written, flags, tmp_path):
    assert main([*map(str, flags), "--out", str(tmp_path / "b.json")]) == 0
    alone = json.loads((tmp_path / "b.json").read_text(encoding="utf-8"))
    assert [p.name for p in tmp_path.iterdir()] == ["b.json"]
    for one, other in zip(alone["baselines"], written["baselines"], strict=True):
        assert one | {"seconds": 0} == other | {"seconds": 0}


def test_a_run_on_another_split_is_refused(finished, tmp_path, capsys):
    changed = tmp_path / "run"
    changed.mkdir()
    for name in ("env.json", "metrics.json", "split.csv"):
        (changed / name).write_text((finished / name).read_text(encoding="utf-8"), encoding="utf-8")
    settings = json.loads((changed / "env.json").read_text(encoding="utf-8")) | {"SPLIT": "session"}
    (changed / "env.json").write_text(json.dumps(settings), encoding="utf-8")
    before = {path.name for path in changed.iterdir()}
    one_sentence(["--add-to", changed], "another split", capsys)
    assert {path.name for path in changed.iterdir()} == before


def test_an_unfinished_run_is_refused(finished, tmp_path, capsys):
    (tmp_path / "env.json").write_text((finished / "env.json").read_text(encoding="utf-8"), encoding="utf-8")
    one_sentence(["--add-to", tmp_path], "finish it with main.py", capsys)


def test_what_the_user_can_put_right_is_said_in_one_sentence(finished, tmp_path, capsys):
    for wrong, words in (
        (["--add-to", tmp_path / "none"], "there is no run"),
        (["--add-to", finished, "--seed", "3"], "leave out SEED"),
        (["--out", tmp_path / "none" / "b.json"], "no file can be written"),
        (["--resume", finished], "ADD_TO"),
        (["--ad-to", finished], "did you mean --add-to"),
    ):
        one_sentence(wrong, words, capsys)


def one_sentence(arguments: list, words: str, capsys) -> None:
    assert main([*map(str, arguments)]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("baselines: ")
    assert len(said.err.splitlines()) == 1
    assert words in said.err


# ---- windows that are told apart by hand ----------------------------------------------------------------------


def made_windows(unit: str = "count", gain: float = 1.0, still: float | None = None) -> tuple[WindowSet, Split]:
    """Two gestures on two days of 40 windows (T = 30, C = 3): on day 2 every channel is `gain` times as strong."""
    rng, strength = np.random.default_rng(1), np.array([[5.0, 50, 20], [50.0, 5, 20]])  # counts, by gesture
    table = pd.DataFrame({"TRAJ_GT": np.tile([0, 1], 40), "session": np.repeat(["a", "b"], 40)})
    table = table.assign(subject="01", recording=table["session"], repetition=0, start=np.arange(80.0))
    emg = rng.normal(size=(80, 30, 3)) * strength[table["TRAJ_GT"], None]
    emg[40:] *= gain
    if still is not None:
        emg[..., 2] = still
    described = {"scale": 1.0, "unit": unit, "class_names": {"0": "rest", "1": "fist"}, "note": ""}
    windows = WindowSet(emg, table, described)
    return windows, Split(np.arange(40), np.arange(0), np.arange(40, 80), "named", "day a, then b")


def test_gestures_that_differ_in_strength_are_told_apart():
    for one in evaluate_baselines(*made_windows()):
        assert one["balanced_accuracy"] == 1, one
        assert one["train_windows"] == 40


def test_the_session_scale_takes_out_the_gain_of_a_day():
    """Ten times the amplitude puts a day outside of everything that the training part knew; divided out, it fits."""
    found = by_name(evaluate_baselines(*made_windows(gain=10)))
    assert found["RMS", "SVM", "training"]["balanced_accuracy"] == 0.5
    assert all(one["balanced_accuracy"] == 1 for (_, _, scaling), one in found.items() if scaling == "session")


@pytest.mark.parametrize("unit", ["count", "as recorded"])
@pytest.mark.parametrize("still", [0, 0.1])
def test_a_channel_that_lies_still_gives_neither_nan_nor_warnings(unit, still):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = evaluate_baselines(*made_windows(unit, still=still))
    assert all(one["balanced_accuracy"] == 1 for one in found)
    windows, split = made_windows(unit, still=still)
    assert channel_deviation(windows, split.train)[2] == 1


def test_no_signal_at_all_is_said_in_words():
    windows, split = made_windows()
    silent = WindowSet(np.zeros_like(windows.emg), windows.table, windows.metadata)
    with pytest.raises(EMGError, match="no channel changes"):
        evaluate_baselines(silent, split)


def test_thresholds_are_counts_where_the_unit_is_count_and_relative_elsewhere():
    """A standard deviation stands for 10 counts: of the training part, or of the day with its ten-fold gain."""
    (windows, split), (other, _) = made_windows(gain=10), made_windows("as recorded", gain=10)
    part, day = windows.emg[:40].std((0, 1)), windows.emg[40:].std((0, 1))
    rows = np.arange(80)
    for found, emg in (
        (scaled_features(windows, split, "training"), windows.emg),
        (scaled_features(other, split, "training"), 10 * windows.emg / part),
        (scaled_features(windows, split, "session"), 10 * windows.emg / np.repeat([part, day], 40, axis=0)[:, None]),
    ):
        expected = compute_features(emg, rows)
        for name in ("ZC", "SSC", "WAMP"):
            np.testing.assert_array_equal(found[name], expected[name])
        ratio = found["RMS"] / expected["RMS"]
        np.testing.assert_allclose(ratio, ratio[0, 0])


def test_qda_is_that_of_reg_param_where_both_work():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(60, 5)) * [1, 2, 3, 1, 1], np.repeat([0, 1], 30)
    x[30:] += 1
    ours = CLASSIFIERS["QDA"].fit(x, y).predict_proba(x)
    theirs = QuadraticDiscriminantAnalysis(reg_param=0.3).fit(x, y).predict_proba(x)
    np.testing.assert_allclose(ours, theirs, atol=1e-9)


def test_many_windows_are_thinned_for_the_slow_classifiers(monkeypatch):
    """24 of 40: 12 of each gesture; the same seed draws the same ones."""
    said = io.StringIO()
    monkeypatch.setattr(baselines, "FEW_WINDOWS", 24)
    windows, split = made_windows()
    drawn = baselines.sample_windows(windows, split.train[::-1], seed=5)
    assert np.bincount(windows.targets[split.train[::-1][drawn]]).tolist() == [12, 12]
    assert drawn.tolist() == baselines.sample_windows(windows, split.train[::-1], seed=5).tolist()
    found = evaluate_baselines(windows, split)
    assert {(one["classifier"] in ("kNN", "SVM"), one["train_windows"]) for one in found} == {(True, 24), (False, 40)}
    facts = baselines.facts_of_baselines(found, windows, split, Settings())
    baselines.print_table(found, facts, Console(file=said, width=100))
    assert "kNN and SVM trained on 24 of the 40 windows" in said.getvalue()
    assert facts["slow_train_windows"] == 24


def test_the_validation_part_is_not_used(small_file):
    """Windows of the validation part may be anything where the scale is that of the training part."""
    settings = Settings(DATA_LOCATION=small_file)
    windows = load_windows(settings)
    split = split_windows(windows, settings)
    before = scaled_features(windows, split, "training")
    windows.emg[split.validation] = 12345
    after = scaled_features(windows, split, "training")
    np.testing.assert_array_equal(before["RMS"], after["RMS"])
    assert len(before["RMS"]) == len(split.train) + len(split.test)
