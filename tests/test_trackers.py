"""Trackers: what TensorBoard, Weights & Biases and MLflow show of a run that was killed and resumed."""

import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import ROOT, call, run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_main import flags, history, one_sentence, read
from test_training import die_at, in_a_copy

from emg_gpt2.base.errors import EMGError
from emg_gpt2.settings import Settings
from emg_gpt2.training import tracker
from emg_gpt2.training.tracker import tracking

TRACKERS = ["tensorboard", "wandb", "mlflow"]
BY_DEFAULT = ["tensorboard", *(pytest.param(name, marks=pytest.mark.nightly) for name in TRACKERS)]
VARIABLES = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}

Curves = dict[str, list[tuple[int, float]]]  # of every name, its steps and values


# ---- reading them back ----------------------------------------------------------------------------------------


def tensorboard_curves(folder: Path) -> tuple[Curves, dict]:
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    curves = {tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    (settings,) = (folder / "tensorboard").glob("*/hparams.yml")
    return curves, yaml.safe_load(settings.read_text())


def mlflow_curves(folder: Path) -> tuple[Curves, dict]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiments = [one.experiment_id for one in client.search_experiments()]
    (found,) = client.search_runs(experiments)
    assert (found.info.run_name, found.info.status) == (folder.name, "FINISHED")
    histories = {name: client.get_metric_history(found.info.run_id, name) for name in found.data.metrics}
    curves = {name: [(point.step, point.value) for point in points] for name, points in histories.items()}
    return curves, found.data.params


def wandb_curves(folder: Path) -> tuple[Curves, dict]:
    """The files of both processes, one after the other, as `wandb sync` sends them."""
    curves, settings = {}, {}
    paths = sorted((folder / "wandb").glob("offline-run-*/*.wandb"))
    assert len({path.name for path in paths}) == 1, "one run, or the server would show two"
    for record in (record for path in paths for record in wandb_records(path.read_bytes())):
        settings |= {item.key: json.loads(item.value_json) for item in record.run.config.update if item.key}
        settings |= {item.key: json.loads(item.value_json) for item in record.config.update if item.key}
        items = {(item.key or item.nested_key[0]): json.loads(item.value_json) for item in record.history.item}
        for name in items.keys() - {"_step", "_timestamp", "_runtime"}:
            curves.setdefault(name, []).append((items["_step"], items[name]))
    return curves, settings


def wandb_records(content: bytes) -> Iterator:
    """The log format of LevelDB, after seven bytes: blocks of 32 KiB, records that may go on from block to block."""
    from wandb.proto.wandb_internal_pb2 import Record

    place, parts = 7, b""
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
        length, kind = struct.unpack_from("<HB", content, place + 4)
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # the whole, or the last part
            yield Record.FromString(parts)
            parts = b""


CURVES = {"tensorboard": tensorboard_curves, "wandb": wandb_curves, "mlflow": mlflow_curves}


# ---- runs -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tracked_flags(small_file, tiny_gpt2) -> list[str]:
    small = {"DATA_LOCATION": small_file, "MODEL_NAME": tiny_gpt2, "LR": 3e-3, "BATCH_SIZE": 16, "BLOCKS": 1}
    return flags(**small, PRECISION="fp32", NUM_EPOCHS=2, TOKENS="covariance")


@pytest.fixture(scope="module")
def resumed(tracked_flags, tmp_path_factory) -> Path:
    """A run with TensorBoard, killed after 21 steps with a checkpoint of the 16th, and resumed."""
    folder = tmp_path_factory.mktemp("runs") / "tensorboard"

    def die() -> None:
        tracker.SHARE = 1.0  # no step is spared, however slow the machine is
        die_at(21, every=8)
        call("main.py", *tracked_flags, *flags(RUN_DIR=folder))

    in_a_copy(die)
    assert saved_step(folder) < tracked_step(folder)
    (folder / "killed_at").write_text(str(tracked_step(folder)))
    done = call("main.py", *flags(RESUME=folder))
    assert (done.returncode, done.stderr) == (0, "")
    return folder


@pytest.fixture
def tracked(request, name) -> Path:
    """The folder of the run with this tracker: by default the one that is made in this process."""
    nightly = request.node.get_closest_marker("nightly")
    return request.getfixturevalue("runs") / name if nightly else request.getfixturevalue("resumed")


@pytest.fixture(scope="module")
def runs(tracked_flags, tmp_path_factory) -> Path:
    """A folder with one run per tracker, killed between two checkpoints and resumed, and one without, left alone.

    One process of main.py after the other would spend most of the time on imports, so the last four are one.
    """
    base = tmp_path_factory.mktemp("runs")
    with ThreadPoolExecutor(2) as pool:
        for process in [pool.submit(kill, base / name, name, tracked_flags) for name in TRACKERS]:
            process.result()
    commands = [[*tracked_flags, *flags(RUN_DIR=base / "none", TRACKER="none")]]
    commands += [flags(RESUME=base / name) for name in TRACKERS]
    script = f"import sys, main\nfor sys.argv[1:] in {commands}:\n    assert main.main() == 0"
    done = run("-c", script, **VARIABLES)
    assert done.returncode == 0, done.stderr
    assert all(line.startswith("wandb: ") for line in done.stderr.splitlines()), done.stderr
    return base


def kill(folder: Path, tracker: str, tracked_flags: list[str]) -> None:
    """Where the log is ahead of the checkpoint."""
    command = [sys.executable, "main.py", *tracked_flags, *flags(RUN_DIR=folder, TRACKER=tracker)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("EMG_", "MLFLOW_"))}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=ROOT, env=environment | VARIABLES, **pipes)
    patience = time.monotonic() + 120
    while tracked_step(folder) <= saved_step(folder):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < patience
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (folder / "metrics.json").exists()
    (folder / "killed_at").write_text(str(tracked_step(folder)))


def tracked_step(folder: Path) -> int:
    """Of the last point that was logged; a point, not only the beginning."""
    path = folder / "tracker.json"
    return read(folder, "tracker.json")["step"] if path.exists() else 0


def saved_step(folder: Path) -> float:
    """Of the last checkpoint, or infinity without one."""
    try:
        epochs = read(folder / "last", "history.json")
        return len(epochs) * steps_of(folder, ["train"]) + read(folder / "last", "epoch.json")["step"]
    except FileNotFoundError:  # not yet, or just being replaced
        return float("inf")


def steps_of(folder: Path, parts: list[str]) -> int:
    """Per epoch, from 16 windows a step."""
    return -(-int(pd.read_csv(folder / "split.csv")["part"].isin(parts).sum()) // 16)


# ---- tests ----------------------------------------------------------------------------------------------------


def same(curve: list[tuple[int, float]], steps: list[int], values: list[float]) -> bool:
    """TensorBoard keeps single precision."""
    return [step for step, _ in curve] == steps and np.allclose([value for _, value in curve], values, rtol=1e-6)


@pytest.mark.parametrize("name", BY_DEFAULT)
def test_curves_are_those_of_history_and_metrics(tracked, name):
    """Names and steps by hand: an epoch is shown after its last step, the second training after the first."""
    curves, _ = CURVES[name](tracked)
    steps, more = steps_of(tracked, ["train"]), steps_of(tracked, ["train", "validation"])
    rows, again = (history(folder).drop(columns="weights") for folder in (tracked, tracked / "refit"))
    assert len(rows) == 2
    assert set(curves) - {"refit/step/loss", "refit/step/lr"} == {  # these are spared where they take too long
        *(f"epoch/{column}" for column in [*rows, "seconds"]),
        *(f"refit/epoch/{column}" for column in [*again, "seconds"]),
        *("step/loss", "step/lr"),
        *("test/accuracy", "test/balanced_accuracy", "test/macro_f1"),
    }
    ends = [2 * steps + more * number for number in range(1, len(again) + 1)]
    assert all(same(curves[f"epoch/{column}"], [steps, 2 * steps], rows[column]) for column in rows)
    assert all(same(curves[f"refit/epoch/{column}"], ends, again[column]) for column in again)
    for figure in ("accuracy", "balanced_accuracy", "macro_f1"):
        assert same(curves[f"test/{figure}"], [ends[-1] + 1], [read(tracked, "metrics.json")[figure]])


@pytest.mark.parametrize("name", BY_DEFAULT)
def test_a_resumed_run_goes_on_with_its_log_and_shows_no_step_twice(tracked, name):
    curves, _ = CURVES[name](tracked)
    killed_at = int((tracked / "killed_at").read_text())
    for curve in curves.values():
        shown = [step for step, _ in curve]
        assert shown == sorted(set(shown))
    shown = [step for step, _ in curves["step/loss"] + curves["epoch/train_loss"]]
    assert killed_at in shown or name == "wandb"  # which writes five times a second
    assert max(shown) > killed_at
    steps = steps_of(tracked, ["train"])
    assert all(step % steps % 10 == 0 for step, _ in curves["step/loss"])


@pytest.mark.parametrize("name", BY_DEFAULT)
def test_the_learning_rate_of_a_step_is_that_of_the_schedule(tracked, name):
    """It rises to LR over a tenth of the steps, and falls to zero as half a cosine."""
    curves, _ = CURVES[name](tracked)
    total = 2 * steps_of(tracked, ["train"])
    rise = round(0.1 * total)
    for step, value in curves["step/lr"]:
        done = step - 1  # steps before this one
        share = done / rise if done < rise else (1 + np.cos(np.pi * (done - rise) / (total - rise))) / 2
        assert value == pytest.approx(3e-3 * share, rel=1e-5)


@pytest.mark.parametrize("name", BY_DEFAULT)
def test_the_settings_are_shown(tracked, name):
    _, settings = CURVES[name](tracked)
    assert set(Settings.model_fields) <= set(settings)
    assert (str(settings["NUM_EPOCHS"]), float(settings["LR"])) == ("2", 3e-3)
    assert settings["TOKENS"] == '["covariance"]'


@pytest.mark.nightly
@pytest.mark.parametrize("name", TRACKERS)
def test_a_tracker_changes_no_result(runs, name):
    alone, tracked = runs / "none", runs / name
    for inside in (".", "refit"):
        pd.testing.assert_frame_equal(history(tracked / inside), history(alone / inside), check_exact=True)
    for file in ("best_model/model.safetensors", "predictions.parquet"):
        assert (tracked / file).read_bytes() == (alone / file).read_bytes()
    files = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow.db"}
    added = {path.name for path in tracked.iterdir()} - {path.name for path in alone.iterdir()}
    assert added == {files[name], "tracker.json", "killed_at"}


def test_what_is_not_installed_is_said_before_anything_is_done(tracked_flags, tmp_path, monkeypatch):
    monkeypatch.setitem(tracker.PACKAGES, "wandb", (lambda: False, "wandb"))
    done = call("main.py", *tracked_flags, *flags(RUN_DIR=tmp_path / "run", TRACKER="wandb"))
    assert done.returncode == 1
    assert one_sentence(done.stderr).startswith("main.py: TRACKER = wandb: it is not installed; pip install wandb")
    assert not (tmp_path / "run").exists()


@pytest.mark.nightly
def test_a_package_that_is_not_there_is_not_installed(tracked_flags, tmp_path):
    """None in sys.modules is how Python is told that there is no such module."""
    hidden = "import sys; sys.modules['wandb'] = None; import main; sys.argv[0] = 'main.py'; sys.exit(main.main())"
    done = run("-c", hidden, *tracked_flags, *flags(RUN_DIR=tmp_path / "run", TRACKER="wandb"), **VARIABLES)
    assert done.returncode == 1
    assert one_sentence(done.stderr).startswith("main.py: TRACKER = wandb: it is not installed; pip install wandb")


def test_a_log_that_cannot_be_begun_is_an_error(tmp_path):
    (tmp_path / "tensorboard").write_text("mine")
    with (
        pytest.raises(EMGError, match=r"^TRACKER = tensorboard: it cannot begin \("),
        tracking(Settings(TRACKER="tensorboard"), tmp_path),
    ):
        pass


def test_a_log_that_breaks_off_is_a_warning(tmp_path, caplog):
    with tracking(Settings(TRACKER="tensorboard"), tmp_path) as log:
        log.log({"step/loss": 1.0}, 1)
        log.theirs.writer.close()
        log.theirs.writer = None  # it has lost its file
        log.log({"step/loss": 0.5}, 2)
        log.log({"step/loss": 0.5}, 3)
    (message,) = (record.message for record in caplog.records if record.name == "emg_gpt2.training.tracker")
    assert message.startswith("tensorboard fails (")
    assert message.endswith("; the run goes on without it")
    assert read(tmp_path, "tracker.json")["step"] == 1


@pytest.mark.nightly
def test_a_database_that_breaks_is_a_warning(tmp_path, caplog):
    with tracking(Settings(TRACKER="mlflow"), tmp_path) as log:
        log.log({"step/loss": 1.0}, 1)
        (tmp_path / "mlflow.db").write_bytes(b"no database" * 1000)
        log.log({"step/loss": 0.5}, 2)
        log.log({"step/loss": 0.5}, 3)
    (message,) = (record.message for record in caplog.records if record.name == "emg_gpt2.training.tracker")
    assert message.startswith("mlflow fails (")
    assert read(tmp_path, "tracker.json")["step"] == 1


def test_a_resumed_run_may_change_its_tracker(tmp_path):
    """The new one begins at the first step that it sees, and the one before is left alone."""
    (tmp_path / "tracker.json").write_text('{"tracker": "mlflow", "run": "0123", "step": 7}')
    with tracking(Settings(TRACKER="tensorboard"), tmp_path) as log:
        log.log({"step/loss": 1.0}, 6)
    curves, settings = tensorboard_curves(tmp_path)
    assert curves == {"step/loss": [(6, 1.0)]}
    assert settings["TRACKER"] == "tensorboard"
    assert read(tmp_path, "tracker.json") == {"tracker": "tensorboard", "run": None, "step": 6}


def test_a_log_of_an_older_version_is_gone_on_with(tmp_path):
    """Its tracker.json does not say which tracker it was."""
    (tmp_path / "tracker.json").write_text('{"run": null, "step": 7}')
    with tracking(Settings(TRACKER="tensorboard"), tmp_path) as log:
        for step in (7, 8):
            log.log({"step/loss": 1.0}, step)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [point.step for point in events.Scalars("step/loss")] == [8]
