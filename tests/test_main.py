"""main.py from the command line: what a run leaves behind, resuming, and what goes wrong in one sentence."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, call
from huggingface_hub import constants
from rich.console import Console
from safetensors.torch import load_file

from EMG_DATA_LOADER import read_emg
from emg_gpt2 import __version__
from emg_gpt2.base.errors import EMGError
from emg_gpt2.model.build import load_model
from emg_gpt2.results.figures import finish
from emg_gpt2.results.run import open_run, resumed_settings
from emg_gpt2.settings import Role, Settings, read_settings
from emg_gpt2.training.history import Histories
from emg_gpt2.training.task import load_task, warn_of_other_windows
from emg_gpt2.training.trainer import Trainer
from emg_gpt2.windows.reading import WindowSet, load_windows
from EMG_utils import draw_history, evaluate_linear_path

CODES = [0, 1, 2, 3, 6, 7, 8, 9]
ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # so small a model waits for its threads more than it computes
FIGURES = ["accuracy.png", "loss.png", "confusion_matrix.png"]
SMALL = {
    "LR": 3e-3,
    "BATCH_SIZE": 64,
    "PRECISION": "fp32",
    "TOKENS": "covariance,bands",
    "NUM_EPOCHS": 3,
    "REFIT": False,
}


def flags(**settings) -> list[str]:
    """NUM_EPOCHS=4, REFIT=False → --num-epochs=4 --no-refit"""
    named = {name.lower().replace("_", "-"): value for name, value in settings.items()}
    return [f"--no-{name}" if value is False else f"--{name}={value}" for name, value in named.items()]


def start(*arguments: str) -> subprocess.Popen:
    """main.py in the background, in the environment of `conftest.run`."""
    variables = {key: value for key, value in os.environ.items() if not key.startswith("EMG_")}
    variables |= {"HF_HUB_OFFLINE": "1"} | ONE_THREAD
    command = [sys.executable, "main.py", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=variables, **pipes)


def stop(process: subprocess.Popen, path: Path, number: int) -> tuple[str, str]:
    """Send the signal `number` as soon as `path` is there; returns what was printed."""
    end = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.02)
    process.send_signal(number)
    return process.communicate(timeout=60)


def history(folder: Path) -> pd.DataFrame:
    """history.csv without the one column that differs between equal runs."""
    return pd.read_csv(folder / "history.csv").drop(columns="seconds")


def read(folder: Path, name: str) -> dict:
    return json.loads((folder / name).read_text())


def one_sentence(text: str) -> str:
    """The message, once it is known to be one line of main.py's own."""
    lines = text.strip().splitlines()
    assert len(lines) == 1, text
    assert lines[0].startswith("main.py: ")
    return lines[0]


def compare_runs(one: Path, other: Path, but: set[str] = frozenset()) -> None:
    """Bit for bit, but for the clock and the figures `but` of metrics.json."""
    for inside in (".", "refit"):
        if (other / inside).exists():
            pd.testing.assert_frame_equal(history(one / inside), history(other / inside), check_exact=True)
    for file in ("best_model/model.safetensors", "predictions.parquet"):
        assert (one / file).read_bytes() == (other / file).read_bytes()
    metrics, expected = read(one, "metrics.json"), read(other, "metrics.json")
    assert {key for key, value in metrics.items() if value != expected[key]} <= {"seconds", "seconds_per_window"} | but
    assert {path.name for path in one.iterdir()} == {path.name for path in other.iterdir()}


# ---- a whole run ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def finished(windows_file, tiny_gpt2, tmp_path_factory) -> Path:
    """A run on two people with the default split, tokens, balance and refit."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    settings = {"LR": 2e-3, "BATCH_SIZE": 64, "PRECISION": "fp32", "FILTERS": 6, "NUM_EPOCHS": 2}
    settings |= {"DATA_LOCATION": windows_file, "MODEL_NAME": tiny_gpt2, "RUN_DIR": folder, "SAMPLING_RATIO": 0.25}
    done = call("main.py", *flags(**settings))
    assert (done.returncode, done.stderr) == (0, "")
    return folder


@pytest.fixture(scope="session")
def windows(windows_file) -> WindowSet:
    return load_windows(Settings(DATA_LOCATION=windows_file))


@pytest.fixture(scope="session")
def split(finished) -> pd.DataFrame:
    return pd.read_csv(finished / "split.csv", dtype={"subject": str}, keep_default_na=False)


@pytest.fixture(scope="session")
def predictions(finished) -> pd.DataFrame:
    return pd.read_parquet(finished / "predictions.parquet")


def test_the_run_folder_is_complete(finished):
    names = {"env.json", "split.csv", "history.csv", "metrics.json", "predictions.parquet", "log.txt", "tracker.json"}
    names |= set(FIGURES) | {"validation.parquet", "best_model", "last", "refit", "report.html", "tensorboard"}
    assert {path.name for path in finished.iterdir()} == names
    assert (finished / "best_model" / "model.safetensors").is_file()
    assert len(read(finished / "last", "history.json")) == 2


@pytest.mark.parametrize("name", FIGURES)
def test_the_figures_are_not_blank(finished, name):
    """Ink on a few percent of white paper at least."""
    image = matplotlib.image.imread(finished / name)[:, :, :3]
    assert min(image.shape[:2]) > 400
    assert image.std() > 0.02
    assert 0.005 < (image.min(2) < 0.9).mean() < 0.9


def test_the_settings_of_the_run_are_written_down(finished, windows_file, tiny_gpt2):
    saved = read(finished, "env.json")
    assert set(saved) == set(Settings.model_fields)
    assert saved["NUM_EPOCHS"] == 2
    assert saved["DATA_LOCATION"] == str(windows_file)
    assert saved["MODEL_NAME"] == str(tiny_gpt2)


def test_metrics_hold_what_the_readme_promises(finished, tiny_gpt2):
    """Parameters: tiny_gpt2's first two blocks without its 11 · 32 token embedding and its third block of
    12 · 32² + 13 · 32; 6 filters of 25 taps, the norm of 8 · 6 powers, their map to 32 and that of the 36 log
    covariances, the head of 8 classes and the weight before it. All that trains, and not the linear path 36 → 8."""
    metrics = read(finished, "metrics.json")
    promised = {"accuracy", "balanced_accuracy", "macro_f1", "per_class", "per_subject", "confusion_matrix", "classes"}
    promised |= {"n_train", "n_val", "n_test", "split", "weights", "parameters", "trainable_parameters", "epochs"}
    assert promised | {"seconds", "device", "versions"} <= set(metrics)
    backbone = sum(t.numel() for t in load_file(tiny_gpt2 / "model.safetensors").values()) - 11 * 32
    backbone -= 12 * 32**2 + 13 * 32
    own = 6 * 25 + 2 * 48 + 48 * 32 + 32 + 36 * 32 + 32 + 32 * 8 + 8 + 1
    assert metrics["trainable_parameters"] == backbone + own
    assert metrics["parameters"] == backbone + own + 36 * 8 + 8
    assert (metrics["split"], metrics["weights"], metrics["epochs"]) == ("trajectory", "pretrained", 2)
    assert metrics["classes"] == dict(zip(map(str, CODES), metrics["per_class"], strict=True))
    assert metrics["classes"]["6"] == "pinch index"
    assert metrics["versions"] | {"torch": torch.__version__, "emg_gpt2": __version__} == metrics["versions"]
    assert metrics["seconds"] == pytest.approx(pd.read_csv(finished / "history.csv")["seconds"].sum())
    assert 1e-5 < metrics["seconds_per_window"] < 1
    assert "leaky" not in metrics["split_description"]
    assert metrics["transductive"] is False


def test_metrics_follow_from_the_predictions(finished, predictions):
    metrics = read(finished, "metrics.json")
    true, called = predictions["TRAJ_GT"].to_numpy(), predictions["predicted"].to_numpy()
    confusion = [[int(((true == i) & (called == j)).sum()) for j in CODES] for i in CODES]
    assert metrics["confusion_matrix"] == confusion
    counts = np.array(confusion)
    recall, precision = counts.diagonal() / counts.sum(1), counts.diagonal() / np.maximum(counts.sum(0), 1)
    f1 = 2 * counts.diagonal() / (counts.sum(0) + counts.sum(1))
    assert metrics["accuracy"] == pytest.approx((true == called).mean())
    assert metrics["balanced_accuracy"] == pytest.approx(recall.mean())
    assert metrics["macro_f1"] == pytest.approx(f1.mean())
    for index, found in enumerate(metrics["per_class"].values()):
        expected = {"precision": precision[index], "recall": recall[index], "f1": f1[index]}
        assert found == pytest.approx(expected | {"support": counts[index].sum()})
    for subject, found in metrics["per_subject"].items():
        own = predictions["subject"] == subject
        assert found["accuracy"] == pytest.approx((true == called)[own].mean())
        assert found["windows"] == own.sum()
    assert sorted(metrics["per_subject"]) == ["03", "04"]


def test_split_and_predictions_tell_the_same_windows(finished, split, predictions, windows):
    metrics, parts = read(finished, "metrics.json"), split["part"].value_counts()
    assert parts.drop("").to_dict() == {
        "train": metrics["n_train"], "validation": metrics["n_val"], "test": metrics["n_test"]
    }  # fmt: skip
    identity = ["TRAJ_GT", "subject", "session", "trajectory", "recording", "repetition"]
    test = split[split["part"] == "test"].reset_index(drop=True)
    assert predictions[identity].astype(str).equals(test[identity].astype(str))
    assert np.allclose(predictions["start"], test["start"])
    assert split[identity].astype(str).equals(windows.table[identity].astype(str))
    assert not set(test["recording"]) & set(split.loc[split["part"] != "test", "recording"])
    assert predictions.attrs == {
        "split": metrics["split_description"], "weights": "pretrained", "data_note": metrics["data_note"]
    }  # fmt: skip


@torch.inference_mode()
def predict_again(folder: Path, part: str, windows: WindowSet, split: pd.DataFrame) -> np.ndarray:
    """(n, 8) probabilities of the saved model, each from nothing but its window."""
    model, rows = load_model(folder / "best_model"), np.flatnonzero(split["part"] == part)
    return model(emg=read_emg(windows, rows)).logits.softmax(1).numpy()


def test_the_probabilities_are_those_of_the_saved_model(finished, split, predictions, windows):
    """The saved model, on the samples of the file, gives the same probabilities again."""
    columns = [f"p_{code}" for code in CODES]
    again = predict_again(finished, "test", windows, split)
    assert np.allclose(predictions[columns], again, atol=1e-4)
    assert np.allclose(predictions[columns].sum(axis=1), 1, atol=1e-5)
    assert (np.array(CODES)[again.argmax(1)] == predictions["predicted"]).mean() > 0.999


def test_the_saved_model_knows_its_data(finished, split, windows):
    """The scale is that of the training part, which by then holds the validation part."""
    model, metadata = load_model(finished / "best_model"), windows.metadata
    train = windows.emg[split["part"].isin(["train", "validation"])].astype(np.float64).reshape(-1, 8) * 0.25
    assert np.allclose(model.scale, train.std(0), rtol=0.05)
    described = model.config
    assert described.class_codes == CODES
    assert described.class_names == list(metadata["class_names"].values())
    assert described.sampling_rate == metadata["sampling_rate"]
    assert (described.window, described.patch, described.unit) == (250, 50, "count")
    assert described.channels == metadata["channels"]
    assert described.preprocessing == metadata["settings"]
    assert described.weights == "pretrained"


def test_the_model_is_trained_anew_for_as_many_epochs_as_turned_out_best(finished):
    rows, metrics = history(finished), read(finished, "metrics.json")
    assert rows["epoch"].tolist() == [1, 2]
    assert metrics["best_epoch"] == rows["validation_loss"].argmin() + 1
    assert metrics["refit"]
    again = history(finished / "refit")
    assert again["epoch"].tolist() == list(range(1, metrics["best_epoch"] + 1))
    assert "validation_loss" not in again
    trained = metrics["n_train"] + metrics["n_val"]
    assert f"training anew on the validation part too: {trained} windows" in (finished / "log.txt").read_text()


def test_without_refit_the_epoch_that_is_best_on_the_validation_part_is_kept(undisturbed):
    """The loss is the mean over the classes of the mean −log p of their windows."""
    windows = load_windows(Settings(**read(undisturbed, "env.json")))
    split, rows = pd.read_csv(undisturbed / "split.csv"), history(undisturbed)
    best = rows["validation_loss"].argmin()
    assert read(undisturbed, "metrics.json")["best_epoch"] == best + 1
    found = predict_again(undisturbed, "validation", windows, split)
    true = windows.targets[split["part"] == "validation"]
    losses = -np.log(found[np.arange(len(true)), true])
    loss = np.mean([losses[true == label].mean() for label in range(8)])
    assert loss == pytest.approx(rows["validation_loss"][best], rel=1e-3)
    recall = np.mean([(found.argmax(1) == true)[true == label].mean() for label in range(8)])
    assert recall == pytest.approx(rows["validation_balanced_accuracy"][best], abs=1e-3)


def test_simulated_gestures_are_learned(finished):
    """Chance is 1/8; the folds of one run are too few windows for a closer bound."""
    assert read(finished, "metrics.json")["balanced_accuracy"] > 0.35


def test_the_log_tells_the_run(finished):
    log = (finished / "log.txt").read_text()
    assert "6960 windows of 250 samples at 1000 Hz, 8 channels, 8 classes" in log
    assert "whole recordings held out (SPLIT = trajectory), fold 0: " in log
    assert "validation on whole repetitions" in log
    assert "pretrained weights" in log
    assert all(f"epoch {epoch}/2: " in log for epoch in (1, 2))
    assert f"balanced accuracy {read(finished, 'metrics.json')['balanced_accuracy']:.3f} (chance 0.125)" in log
    assert "leaky" not in log
    for name in ("log.txt", "report.html", "best_model/README.md"):
        assert "ransductive" not in (finished / name).read_text(encoding="utf-8")
    assert "on the validation part: the backbone adds " in log
    assert f"no baseline was run beside it (python -m emg_gpt2 baselines --add-to {finished})" in log


def test_the_verdict_rests_on_the_chosen_epoch_and_not_on_the_model_that_knows_the_validation_part(finished, split):
    """validation.parquet is of the first training; its figures are those of history.csv and metrics.json."""
    table, history = pd.read_parquet(finished / "validation.parquet"), pd.read_csv(finished / "history.csv")
    expected = split.loc[split["part"] == "validation", ["TRAJ_GT", "recording", "start"]].reset_index(drop=True)
    pd.testing.assert_frame_equal(table[expected.columns.tolist()], expected, check_dtype=False)
    best = history.loc[history["validation_loss"].idxmin()]
    reached = {name: (table[name] == table["TRAJ_GT"]).mean() for name in ("predicted", "linear_path")}
    assert reached["predicted"] == pytest.approx(best["validation_accuracy"])
    assert reached["linear_path"] == pytest.approx(read(finished, "metrics.json")["linear_path"]["validation_accuracy"])


# ---- the linear path alone, and the curves --------------------------------------------------------------------


@pytest.fixture(scope="session")
def small_flags(small_file, tiny_gpt2) -> list[str]:
    return flags(DATA_LOCATION=small_file, MODEL_NAME=tiny_gpt2, **SMALL)


@pytest.fixture(scope="session")
def undisturbed(small_flags, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    done = call("main.py", *small_flags, *flags(RUN_DIR=folder))
    assert done.returncode == 0, done.stderr
    return folder


@torch.inference_mode()
def test_the_linear_path_alone_is_measured_on_the_validation_part(undisturbed):
    """Without REFIT the saved model's linear path is the one that was measured: it never trains."""
    settings = Settings(**read(undisturbed, "env.json"))
    task, model = load_task(settings), load_model(undisturbed / "best_model")
    rows = torch.from_numpy(task.split.validation)
    _, covariance = model.normalise(read_emg(task.windows, task.split.validation), task.references.of(rows))
    called, true = model.linear(covariance).argmax(1).numpy(), task.windows.targets[rows]
    expected = {
        "validation_accuracy": (called == true).mean(),
        "validation_balanced_accuracy": np.mean([(called == true)[true == label].mean() for label in range(8)]),
    }
    assert read(undisturbed, "metrics.json")["linear_path"] == pytest.approx(expected)
    model.linear = None
    assert evaluate_linear_path(model, task) == {}


def test_the_curves_show_the_linear_path_and_the_second_training(tmp_path, monkeypatch):
    """What matplotlib is given, by label; and no label is cut off at the edge of the picture."""
    drawn = {}

    def note_lines(figure, axes, note, path, columns):
        drawn[path.name] = {line.get_label(): line.get_ydata() for line in axes.get_lines()}
        if path.exists():
            return
        finish(figure, axes, note, path, columns)
        edge = figure.legends[0].get_window_extent()
        assert edge.x0 >= 0
        assert edge.x1 <= figure.bbox.x1

    monkeypatch.setattr("EMG_utils.finish", note_lines)
    figures = ("train_accuracy", "validation_accuracy", "validation_balanced_accuracy", "train_loss", "validation_loss")
    first = [{"epoch": epoch} | dict.fromkeys(figures, epoch / 4) for epoch in (1, 2, 3)]
    second = [{"epoch": 1, "train_accuracy": 0.5, "train_loss": 0.25}]
    draw_history(Histories(first, second, {"validation_balanced_accuracy": 0.625}), 0.125, "note", tmp_path)
    accuracy, loss = drawn["accuracy.png"], drawn["loss.png"]
    assert list(accuracy["linear path alone, validation, balanced: 0.625"]) == [0.625, 0.625]
    assert list(accuracy["second training, with validation"]) == [0.5]
    assert list(loss["second training, with validation"]) == [0.25]
    draw_history(Histories(first, [], {}), 0.125, "note", tmp_path)
    assert not any("second" in label or "linear" in label for label in [*drawn["accuracy.png"], *drawn["loss.png"]])


# ---- interrupted and resumed ----------------------------------------------------------------------------------


def test_an_interrupted_run_is_resumed_with_moved_data_and_another_tracker(
    small_flags, undisturbed, small_file, tmp_path, monkeypatch
):
    """SIGTERM, as a cluster sends it, after the second step of epoch 2, and again of epoch 3."""
    folder, end_step = tmp_path / "run", Trainer.end_step
    (tmp_path / "moved").mkdir()
    moved = shutil.copy(small_file, tmp_path / "moved" / "w.parquet")

    def end_step_and_stop(trainer, *given):
        if trainer.epoch == stopped_in and trainer.sums.step == 1:
            signal.raise_signal(signal.SIGTERM)
        end_step(trainer, *given)

    monkeypatch.setattr(Trainer, "end_step", end_step_and_stop)
    changed = flags(RESUME=folder, DATA_LOCATION=moved, TRACKER="none")
    for stopped_in, arguments in ((2, [*small_flags, *flags(RUN_DIR=folder)]), (3, changed)):
        done = call("main.py", *arguments)
        assert done.returncode == 130
        assert one_sentence(done.stderr) == f"main.py: interrupted; go on with --resume {folder}"
        assert len(read(folder / "last", "history.json")) == stopped_in - 1
        assert read(folder / "last", "epoch.json")["step"] == 2
    stopped_in, done = None, call("main.py", *flags(RESUME=folder))
    assert (done.returncode, done.stderr) == (0, "")
    saved = read(folder, "env.json")
    assert (saved["DATA_LOCATION"], saved["TRACKER"], saved["RESUME"]) == (str(moved), "none", None)
    compare_runs(folder, undisturbed, but={"data"})


@pytest.mark.skipif(os.name != "posix", reason="modes of files as POSIX has them")
def test_every_file_of_a_run_follows_the_umask_also_when_it_was_resumed(small_flags, tmp_path, monkeypatch):
    """Colleagues read a run, its model and its checkpoint as they read any other file that is made here."""
    folder, shared, stops, end_step = tmp_path / "run", tmp_path / "shared", [True], Trainer.end_step

    def end_step_and_stop(trainer: Trainer, *given) -> None:
        if stops and trainer.sums.step == 1:
            signal.raise_signal(signal.SIGTERM)
        end_step(trainer, *given)

    def modes() -> dict[str, int]:
        made = [*folder.rglob("*"), *shared.rglob("*")]
        return {path.name: path.stat().st_mode & 0o777 for path in made if path.is_file()}

    monkeypatch.setattr(Trainer, "end_step", end_step_and_stop)
    few = [*flags(RUN_DIR=folder, MODEL_SAVING_DIR=shared, SAMPLING_RATIO=0.5, NUM_EPOCHS=1), "--refit"]
    before = os.umask(0o027)
    try:
        assert call("main.py", *small_flags, *few).returncode == 130
        assert modes() == dict.fromkeys(modes(), 0o640)
        assert "state.safetensors" in modes()
        stops.clear()
        assert call("main.py", *flags(RESUME=folder)).returncode == 0
    finally:
        os.umask(before)
    assert modes() == dict.fromkeys(modes(), 0o640)
    assert {"model.safetensors", "predictions.parquet", "report.html", "accuracy.png", "README.md"} <= set(modes())


@pytest.mark.nightly
def test_a_finished_run_that_is_resumed_is_tested_again(undisturbed, tmp_path):
    folder = shutil.copytree(undisturbed, tmp_path / "run")
    done = call("main.py", *flags(RESUME=folder))
    assert (done.returncode, done.stderr) == (0, "")
    compare_runs(folder, undisturbed)


def test_settings_that_change_the_result_cannot_be_changed_by_a_resumed_run(undisturbed):
    def resumed(*argv: str) -> Settings:
        return resumed_settings(read_settings(Settings, [*flags(RESUME=undisturbed), *argv]))

    free = resumed("--memory-gb=1", "--tracker=mlflow", "--model-saving-dir=elsewhere")
    assert (1.0, "mlflow", Path("elsewhere")) == (free.MEMORY_GB, free.TRACKER, free.MODEL_SAVING_DIR)
    assert (3e-3, undisturbed) == (free.LR, free.RESUME)
    with pytest.raises(EMGError, match=r"^RESUME goes on with the run's own settings; leave out LR, RUN_DIR, SEED$"):
        resumed("--seed=1", "--lr=1e-3", "--workers=2", "--run-dir=other")


def test_a_resumed_run_refuses_other_data_and_keeps_its_settings(undisturbed, windows_file):
    before = (undisturbed / "env.json").read_bytes()
    done = call("main.py", *flags(RESUME=undisturbed, DATA_LOCATION=windows_file))
    assert done.returncode == 1
    assert "split.csv: the run was started on other data or another split" in one_sentence(done.stderr)
    assert (undisturbed / "env.json").read_bytes() == before


@pytest.mark.nightly
def test_ctrl_c_after_a_checkpoint_says_how_to_go_on(small_flags, tmp_path):
    process = start(*small_flags, *flags(RUN_DIR=tmp_path / "run", NUM_EPOCHS=500, PATIENCE=500))
    _, errors = stop(process, tmp_path / "run" / "last" / "history.json", signal.SIGINT)
    assert process.returncode == 130
    assert f"go on with --resume {tmp_path / 'run'}" in one_sentence(errors)


def test_an_interrupt_before_the_first_step_removes_the_folder(small_flags, tmp_path, monkeypatch):
    """The advice is to run the same command again, so the same RUN_DIR must be free."""

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("main.new_model", interrupt)
    done = call("main.py", *small_flags, *flags(RUN_DIR=tmp_path / "run"))
    assert done.returncode == 130
    assert one_sentence(done.stderr) == "main.py: interrupted; run the same command again"
    assert not (tmp_path / "run").exists()


@pytest.mark.nightly
def test_ctrl_c_before_the_first_step_says_what_works(small_flags, tmp_path):
    command, split = [*small_flags, *flags(RUN_DIR=tmp_path / "run")], tmp_path / "run" / "split.csv"
    process = start(*command)
    _, errors = stop(process, split, signal.SIGINT)
    assert process.returncode == 130
    if "go on with --resume" not in errors:  # it came before the first step
        assert "run the same command again" in one_sentence(errors)
        split.unlink(missing_ok=True)
        again = start(*command)
        stop(again, split, signal.SIGKILL)
        assert again.returncode == -signal.SIGKILL


# ---- what goes wrong ------------------------------------------------------------------------------------------

WRONG = {
    "patch": ({"PATCH_MS": 200}, ["PATCH_MS = 200 is 200 samples", "250 samples", "choose 1 to 125 ms"]),
    "filters": ({"FILTER_MS": 251, "TOKENS": "power"}, ["FILTER_MS = 251 is longer than a window, 250 ms"]),
    "missing": ({"DATA_LOCATION": "/nowhere/w.parquet"}, ["/nowhere/w.parquet", "no such file", "Preprocessing.py"]),
    "split": ({"SPLIT": "subject"}, ["single subject", "choose another SPLIT"]),
    "occupied": ({"RUN_DIR": ROOT / "tests"}, ["results already", "RESUME"]),
    "model": ({"MODEL_NAME": "gtp2"}, ["MODEL_NAME = gtp2", "distilgpt2"]),
    "rings": ({"ROTATION": 1, "RING": 3}, ["ROTATION = 1 turns rings of RING = 3 electrodes, not 8; set RING"]),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_the_user_can_put_right_is_said_in_one_sentence(small_flags, name, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    done = call("main.py", *small_flags, *flags(**{"RUN_DIR": tmp_path / name} | WRONG[name][0]))
    assert done.returncode == 1
    message = one_sentence(done.stderr)
    assert all(words in message for words in WRONG[name][1]), message
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "the memory is full; lower BATCH_SIZE, BLOCKS or MEMORY_GB, then go on with --resume"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "the memory is full; lower BATCH_SIZE"),
        (OSError(28, "No space left on device", "x"), "x: No space left on device; free or mend the place, then go on"),
    ],
)
def test_an_error_after_a_checkpoint_says_to_resume(small_flags, tmp_path, monkeypatch, error, said):
    def fail(trainer, fresh):
        trainer._write_checkpoint()
        raise error

    monkeypatch.setattr(Trainer, "finish", fail)
    small = flags(RUN_DIR=tmp_path / "run", SAMPLING_RATIO=0.2, NUM_EPOCHS=1)
    done = call("main.py", *small_flags, *small)
    assert done.returncode == 1
    assert said in one_sentence(done.stderr)
    assert (tmp_path / "run" / "last" / "history.json").is_file()


def test_settings_of_the_windows_file_are_named_where_they_differ(caplog):
    """FILTER comes from a flag, WINDOW_MS and LEGAL_VALUES from ENV.py: a sentence each for flags, one for the rest."""
    settings = read_settings(Settings, ["--filter", "causal", "--stride-ms", "125", "--data-note", "mine"])
    made_with = settings.model_dump(mode="json", include=settings.with_role(Role.WINDOWS))
    made_with |= {"FILTER": "putemg", "WINDOW_MS": 200.0, "LEGAL_VALUES": [0, 1]}
    with caplog.at_level("WARNING"):
        warn_of_other_windows(made_with, settings)
    assert caplog.messages == [
        "FILTER is putemg in the file, not causal; run Preprocessing.py to change it",
        "DATA_NOTE is the file's own; run Preprocessing.py to change it",
        "the windows were made with WINDOW_MS 200, LEGAL_VALUES 0,1, not as ENV.py has it; Preprocessing.py makes "
        "others",
    ]


def test_nothing_is_said_of_labels_that_nobody_set(caplog):
    """The file has names of its own, and CLASS_NAMES is as ENV.py has it."""
    with caplog.at_level("WARNING"):
        warn_of_other_windows({}, read_settings(Settings, ["--num-epochs", "3"]))
        assert caplog.messages == []
        warn_of_other_windows({}, read_settings(Settings, ["--class-names", "0=rest"]))
    assert caplog.messages == ["CLASS_NAMES is the file's own; run Preprocessing.py to change it"]


# ---- run folders ----------------------------------------------------------------------------------------------


def made(settings: Settings) -> Path:
    """The folder that a run with these settings gets."""
    with open_run(settings, Console(quiet=True)) as run:
        return run


def test_a_folder_with_results_is_not_written_to(finished):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    with pytest.raises(EMGError, match="results already"):
        made(Settings(RUN_DIR=finished))
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_an_empty_folder_and_a_new_one_are_taken(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("empty", "new/deeper"):
        assert made(Settings(RUN_DIR=tmp_path / name)) == tmp_path / name
        assert (tmp_path / name).is_dir()


def test_a_file_is_no_run_folder(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(EMGError, match=str(tmp_path / "file")):
        made(Settings(RUN_DIR=tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "mine"


def test_runs_that_start_at_the_same_moment_have_their_own_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    together = Barrier(8)

    def one(_):
        together.wait()
        return made(Settings())

    for _ in range(5):
        with ThreadPoolExecutor(8) as pool:
            folders = set(pool.map(one, range(8)))
        assert len(folders) == 8
        assert all(folder.parent == Path("runs") and folder.is_dir() for folder in folders)


def test_runs_that_start_at_the_same_moment_do_not_share_the_run_dir(tmp_path):
    together = Barrier(8)

    def one(number):
        together.wait()
        try:
            return made(Settings(RUN_DIR=tmp_path / f"{number // 8}"))
        except EMGError as error:
            return "there are results already" in str(error)

    with ThreadPoolExecutor(8) as pool:
        for number in range(0, 40, 8):
            ends = list(pool.map(one, range(number, number + 8)))
            assert sorted(ends, key=str) == [tmp_path / f"{number // 8}", *[True] * 7]


def test_a_run_without_a_checkpoint_cannot_be_resumed(tmp_path):
    with pytest.raises(EMGError, match="no checkpoint is there"):
        made(Settings(RESUME=tmp_path))


def test_a_folder_of_something_else_cannot_be_resumed(tmp_path):
    (tmp_path / "env.json").write_text('{"language": "en"}')
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(EMGError, match=f"{folder}: there is no run"):
            resumed_settings(Settings(RESUME=folder))
