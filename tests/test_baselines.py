"""The baselines through their command line, on simulated windows and on windows that are told apart by hand."""

import json

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from conftest import call
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.preprocessing import StandardScaler

from emg_gpt2.commands.baselines import main
from emg_gpt2.results.figures import plt
from emg_gpt2.study import rivals
from emg_gpt2.study.baselines import draw_beside_run
from emg_gpt2.study.levels import LEVELS

FAST = ("RMS", "log covariance")  # whose classifiers the tests run through the command line


def by_name(baselines: list[dict]) -> dict[tuple, dict]:
    return {(one["features"], one["classifier"], one["level"]): one for one in baselines}


# ---- the command line -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def fast_ones():
    """Those that are fitted in milliseconds; the others are tried one by one below, and all of them nightly."""
    everything, patch = rivals.all_rivals, pytest.MonkeyPatch()
    chosen = lambda: [one for one in everything() if one.features in FAST and one.classifier != "SVM"]  # noqa: E731
    patch.setattr("emg_gpt2.study.baselines.all_rivals", chosen)
    yield
    patch.undo()


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


def test_every_classifier_has_every_level_once(written):
    found = by_name(written["baselines"])
    names = {name[:2] for name in found}
    assert len(found) == len(written["baselines"])
    assert set(written["levels"]) == set(LEVELS)
    for name in names:
        own = {level for *both, level in found if tuple(both) == name}
        assert own == (
            set(LEVELS) if ("RMS", *name[1:]) == name or name[1] in ("LDA shrinkage", "logistic") else {"calibrated"}
        )


def test_the_best_of_a_level_is_chosen_on_the_validation_part(added, written):
    folder, done = added
    for level, best in written["best"].items():
        rows = [one for one in written["baselines"] if one["level"] == level]
        top = max(rows, key=lambda one: one["validation"])
        assert best["tried"] == len(rows)
        assert (best["features"], best["classifier"]) == (top["features"], top["classifier"])
        assert (
            f"{level}: {top['classifier']} on {top['features']}, the best of {len(rows)} on validation" in done.stdout
        )
    assert done.stdout.count(" *") == len(written["best"])
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.count(" (best)</td>") == len(written["best"])


def test_the_table_fits_a_terminal_and_says_what_each_level_knows(added):
    assert max(len(line) for line in added[1].stdout.splitlines() if " 0." in line and ":" not in line) <= 100
    for level, words in LEVELS.items():
        assert f"{level}: known of the session: {words}" in added[1].stdout
    assert "Warning" not in added[1].stderr + added[1].stdout


def test_the_split_and_the_data_are_those_of_the_run(written, finished):
    metrics = json.loads((finished / "metrics.json").read_text(encoding="utf-8"))
    for name in ("data", "data_note", "split", "split_description", "n_test", "classes"):
        assert written[name] == metrics[name], name
    assert written["n_train"] == metrics["n_train"] + metrics["n_val"]  # as the model that was trained anew
    for one in written["baselines"]:
        supports = {name: row["support"] for name, row in one["per_class"].items()}
        expected = {name: row["support"] for name, row in metrics["per_class"].items()}
        assert (supports == expected) == (one["level"] != "calibrated")  # which leaves the calibration out


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
    found = by_name(written["baselines"])["RMS", "LDA", "inductive"]
    assert found["accuracy"] == pytest.approx(right.mean())
    assert found["balanced_accuracy"] == pytest.approx(np.mean(recalls))


def test_the_verdict_names_the_best_baseline_of_the_run_s_level(added, written):
    best, validation = written["validation"], pd.read_parquet(added[0] / "validation.parquet")
    right = np.array(best["predicted"]) == validation["TRAJ_GT"]
    assert best["balanced_accuracy"] == pytest.approx(right.groupby(validation["TRAJ_GT"]).mean().mean())
    assert best["level"] == "inductive"  # a run without context, measured against the training part
    name = f"from {best['classifier']} on {best['features']}, inductive, the best of {best['tried']} baselines"
    assert name in added[1].stderr
    assert name in (added[0] / "report.html").read_text(encoding="utf-8")


def test_the_picture_shows_the_run_and_every_level(added, written, monkeypatch, tmp_path):
    assert (added[0] / "baselines.png").stat().st_size > 10_000
    metrics = json.loads((added[0] / "metrics.json").read_text(encoding="utf-8"))
    monkeypatch.setattr(plt, "close", lambda figure: None)
    draw_beside_run(written, metrics, tmp_path / "baselines.png")
    [axes] = plt.gcf().axes
    names = [text.get_text() for text in axes.get_yticklabels()]
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert list(lines[names[0]].get_xdata()) == [metrics["balanced_accuracy"]]
    for (features, kind, level), one in by_name(written["baselines"]).items():
        place = names.index(f"{features}, {kind}") - 1
        assert lines[level].get_xdata()[place] == one["balanced_accuracy"]


@pytest.mark.nightly
def test_named_settings_give_the_same_as_the_run(written, flags, tmp_path):
    assert main([*map(str, flags), "--out", str(tmp_path / "b.json")]) == 0
    alone = json.loads((tmp_path / "b.json").read_text(encoding="utf-8"))
    assert [p.name for p in tmp_path.iterdir()] == ["b.json"]
    assert alone["baselines"] == written["baselines"]


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
