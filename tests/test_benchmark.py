"""The benchmarks run, and their figures hang together; what they measure is the machine's.

By default their parts are tried in this process; the whole commands take minutes, and run at night.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import ROOT, STEM, cut, run
from huggingface_hub import constants

from benchmarks.__main__ import main, parse
from benchmarks.measure import facts_of
from benchmarks.rivals import TransformersTraining, find_tokenizer, text_config, text_facts, tokenise
from benchmarks.settings import LEFT_OUT, TrainSettings
from benchmarks.storage import exact_windows
from benchmarks.train import ThisTraining, comparisons
from EMG_DATA_LOADER import read_emg, split_windows
from emg_gpt2.live.decisions import probabilities
from emg_gpt2.settings import Settings
from emg_gpt2.training.new_model import new_model
from emg_gpt2.training.task import Task, load_task
from emg_gpt2.windows.reading import load_windows
from EMG_utils import evaluate


@pytest.mark.nightly
def test_preprocessing_is_measured_by_stage_and_as_a_whole(tiny_raw, tmp_path):
    done = run("-m", "benchmarks", "preprocess", tiny_raw / f"{STEM}.hdf5", "--runs", "1")
    assert done.returncode == 0, done.stderr
    one, eight, *_ = json.loads(done.stdout)["preprocess"]
    assert (one["recordings"], eight["recordings"]) == (1, 8)
    assert eight["seconds_of_recording"] == pytest.approx(8 * one["seconds_of_recording"])
    assert list(one["stages"]) == ["read", "filter", "resample", "cut", "write"]
    for result in (one, eight):
        assert all(
            value > 0 for name, value in result["stages"].items() if name != "resample"
        )  # 500 Hz stay as they are
        assert sum(result["stages"].values()) * result["seconds_of_recording"] < result["command"]["cpu_s"]
        assert result["ratio"] == pytest.approx(result["command"]["wall_s"] / result["read_and_write"]["wall_s"])
        assert 50 < result["command"]["peak_mb"] < 1500
    assert eight["output_mb"] > 5 * one["output_mb"]
    for line in ("whole command, s", "ratio of the two", "peak memory, MB", "output, MB"):
        assert line in done.stderr


def test_storage_is_measured_in_size_speed_and_error(tiny_raw, windows_file, capsys):
    """Rounding to steps of s leaves an error of s/√12 RMS; float16 keeps 11 bits, so less than 2⁻¹¹ of the value."""
    assert main(["storage", str(tiny_raw / f"{STEM}.hdf5"), "--runs", "1"]) == 0
    rows = {(r["values"], r["encoding"], r["codec"]): r for r in json.loads(capsys.readouterr().out)["storage"]}
    errors = {values: row["error_rms_counts"] for (values, _, _), row in rows.items()}
    assert errors["float32"] == 0
    for steps in (1, 2, 4, 8):
        assert errors[f"int32, 1/{steps} count"] == pytest.approx(1 / steps / np.sqrt(12), rel=0.02)
    assert rows["float16", "PLAIN", "none"]["error_relative"] < 2**-11
    plain, chosen = rows["float32", "PLAIN", "none"], rows["int32, 1/4 count", "BYTE_STREAM_SPLIT", "zstd 3"]
    assert chosen["mb"] < plain["mb"] / 3
    file = pq.ParquetFile(windows_file).metadata.row_group(0).column(0)  # and that is how windows are stored
    assert file.compression == "ZSTD"
    assert "BYTE_STREAM_SPLIT" in file.encodings


def test_the_error_is_that_of_the_windows_that_are_stored(tiny_raw, tmp_path):
    path = tmp_path / "windows.parquet"
    cut(tiny_raw / f"{STEM}.hdf5", "--data-location", path)
    stored = pq.read_table(path)["emg"].combine_chunks().flatten().to_numpy() / 4
    exact = exact_windows(tiny_raw / f"{STEM}.hdf5").reshape(-1)
    assert np.abs(stored - exact).max() <= 1 / 8


def test_a_recording_that_cannot_be_read_is_one_sentence(tmp_path, capsys):
    path = tmp_path / f"{STEM}.hdf5"
    path.write_bytes(b"nonsense")
    assert main(["storage", str(path)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"benchmarks: {path}: the file cannot be read")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        (["storage", "--runs", "0"], "--runs: 0 is not a number from 1 to 99"),
        (["speed"], "invalid choice: 'speed'"),
        (["train", "--step", "3"], "--step 3: there is no such flag (did you mean --steps?)"),
        (["train", "--rounds", "0"], "ROUNDS = 0"),
        (["train", "--batch-sizes", "8,8"], "BATCH_SIZES = 8,8: should be one number or more"),
        (["predict", "--blocks-to-try", "0"], "BLOCKS_TO_TRY = 0: should be one number or more"),
        (["train", "--beside", "smollm2"], "BESIDE = smollm2: should be written smollm2:4,gpt2:2"),
        (["predict", "--num-layers", "3"], "NUM_LAYERS = 3: should be less than or equal to 0"),
    ],
)
def test_a_wrong_command_line_is_one_sentence(flags, found, capsys):
    assert main(flags) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("benchmarks: ")
    assert found in err
    assert err.count("\n") == 1


def test_quick_leaves_out_what_its_help_says_and_keeps_what_was_asked_for(capsys):
    _, given = parse(["train", "--quick", "--rounds", "5"])
    assert (given.STEPS, given.ROUNDS, given.BATCH_SIZES) == (2, 5, [64])
    assert [one.title for one in comparisons(given, Path("unused"))] == ["batch size 64"]
    beside = next(iter(comparisons(parse(["train", "--quick", "--beside", "smollm2:4"])[1], Path("unused"))))
    assert [(row.name, row.settings.MODEL_NAME, row.settings.BLOCKS) for row in beside.rows] == [
        ("gpt2:12", "gpt2", 12),
        ("smollm2:4", "smollm2", 4),
    ]
    assert (parse(["storage", "--quick"])[1].runs, parse(["storage"])[1].runs) == (1, 3)
    for what, words in LEFT_OUT.items():
        with pytest.raises(SystemExit):
            parse([what, "--help"])
        assert re.sub(r"\s", "", words) in re.sub(r"\s", "", capsys.readouterr().out)


# ---- train and predict, their parts ---------------------------------------------------------------------------

COMPACT = "models/gpt2-compact"
WIDTH, BLOCKS, POSITIONS = 256, 4, 256  # of that GPT-2
SAMPLES, PATCH, CHANNELS, CLASSES = 250, 50, 8, 8  # of the windows
PAIRS = CHANNELS * (CHANNELS + 1) // 2
TOKENS = SAMPLES // PATCH


@pytest.fixture(scope="module")
def settings(small_file) -> TrainSettings:
    model = {"MODEL_NAME": str(ROOT / COMPACT), "TOKENS": ["raw"], "BLOCKS": BLOCKS, "PRECISION": "fp32"}
    return TrainSettings(DATA_LOCATION=small_file, BATCH_SIZE=16, STEPS=2, ROUNDS=1, BALANCE="none", **model)


@pytest.fixture(scope="module")
def task(settings) -> Task:
    return load_task(settings)


def test_flops_are_those_counted_by_hand(settings, task):
    """A matrix of n weights costs 2 n per token forward, and as much again for its own and for its input's gradient.

    A block has 12 D² weights, and attention has 2 products of P² D multiply-adds.
    """
    weights = 12 * WIDTH**2
    blocks = BLOCKS * 3 * (2 * weights * TOKENS + 2 * 2 * TOKENS**2 * WIDTH)
    tokeniser = 2 * 2 * PATCH * CHANNELS * WIDTH * TOKENS  # samples need no gradient
    head = 3 * 2 * WIDTH * CLASSES
    covariance = 2 * CHANNELS**2 * SAMPLES + 2 * CHANNELS**3 + 2 * PAIRS * CLASSES  # fixed: forward alone
    whole = blocks + tokeniser + head + covariance
    assert facts_of(task, settings)["flops_per_window"] == whole
    few = facts_of(task, settings.model_copy(update={"NUM_LAYERS": 1 - BLOCKS}))
    assert few["trained_blocks"] == BLOCKS - 1
    assert few["flops_per_window"] == whole - 2 * weights * TOKENS  # the gradient of one block's weights
    once = facts_of(task, settings.model_copy(update={"NUM_LAYERS": 0, "FREEZE": True}))
    assert once["flops_per_window"] == head  # and the last norm, which is no matrix
    fixed = facts_of(task, settings.model_copy(update={"ADAPT": "norms"}))["flops_per_window"]
    assert fixed == whole - 2 * weights * TOKENS * BLOCKS
    updates = 3 * 2 * TOKENS * 8 * (4 + 2 + 5 + 5) * WIDTH * BLOCKS  # of rank 8: their inputs and outputs together
    assert facts_of(task, settings.model_copy(update={"ADAPT": "lora"}))["flops_per_window"] == fixed + updates
    text = text_facts(text_config(task.windows, settings), POSITIONS)
    each = BLOCKS * 3 * (2 * weights * POSITIONS + 2 * 2 * POSITIONS**2 * WIDTH) + head * POSITIONS
    assert text["flops_per_window"] == each


@pytest.mark.parametrize("folder", [None, "run"])
def test_an_epoch_is_one_of_the_real_training_loop(settings, tmp_path, one_thread, folder):
    training = ThisTraining(settings.model_copy(update={"RUN_DIR": folder and tmp_path / folder, "BLOCKS": 1}))
    before = training.trainer.model.head.weight.clone()
    epochs = [training.epoch(), training.epoch()]
    assert not torch.equal(training.trainer.model.head.weight, before)
    assert [row["epoch"] for row in training.trainer.history] == [1, 2]
    for epoch in epochs:
        assert 0 < epoch["data"] < epoch["seconds"]
        assert (epoch["checkpoint"] > 0) == bool(folder)
    assert (tmp_path / "run" / "last" / "state.safetensors").exists() == bool(folder)


def test_transformers_trains_the_same_model_on_the_same_windows(settings, tmp_path, one_thread):
    chosen = settings.model_copy(update={"RUN_DIR": tmp_path, "BLOCKS": 1})
    rival, ours = TransformersTraining(chosen), ThisTraining(chosen)
    assert rival.facts.items() <= ours.facts.items()
    assert np.array_equal(rival.trainer.train_dataset.rows, ours.trainer.task.split.train)
    assert rival.epoch()["seconds"] > 0


# ---- whole commands -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(small_file) -> dict:
    """What `train` measured, with raw patches as tokens, and the seconds that the command took."""
    began = time.perf_counter()
    small = ["--batch-sizes", "16", "--batch-size", "16", "--steps", "4", "--rounds", "2", "--tokens", "raw"]
    done = run("-m", "benchmarks", "train", "--data-location", small_file, "--model-name", COMPACT, *small)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["train"] | {"said": done.stderr, "wall_s": time.perf_counter() - began}


def rows_of(trained: dict) -> dict[str, dict]:
    return {row["name"]: row for comparison in trained["comparisons"] for row in comparison["rows"]}


@pytest.mark.nightly
def test_training_is_measured_beside_other_ways(trained):
    titles = [comparison["title"] for comparison in trained["comparisons"]]
    assert titles == [
        "batch size 16",
        *(
            f"{what}, batch size 16"
            for what in ("frozen blocks", "computed once", "mapped file", "checkpoints", "numbers as text")
        ),
    ]
    for comparison in trained["comparisons"]:
        rates = [row["windows_per_s"] for row in comparison["rows"]]
        assert comparison["ratio"] == (pytest.approx(rates[0] / rates[1]) if len(rates) == 2 else None)
    rows = rows_of(trained)
    assert trained["comparisons"][-1]["ratio"] > 3  # at least: 256 tokens instead of 5
    assert [rows[name]["batch_size"] for name in ("this project", "transformers.Trainer")] == [16, 16]
    assert rows["text, batch size 4"]["batch_size"] == 4
    assert trained["left_out"] == []
    for said in ("numbers as text, batch size 16: 4 steps, round 2/2", "of matrix", "256 tokens a window, by"):
        assert said in trained["said"]


@pytest.mark.nightly
def test_figures_of_training_hang_together(trained, small_file):
    settings = Settings(DATA_LOCATION=small_file)
    training_windows = len(split_windows(load_windows(settings), settings).train)
    rows = [row for comparison in trained["comparisons"] for row in comparison["rows"]]
    assert sum(sum(row["seconds"]) for row in rows) < trained["wall_s"]
    for row in rows:
        steps = 1 if row["batch_size"] == 4 else 4
        assert row["windows_per_s"] == pytest.approx(steps * row["batch_size"] / np.median(row["seconds"]))
        assert row["step_s"] == pytest.approx(np.median(row["seconds"]) / steps)
        assert row["tokens_per_s"] == pytest.approx(row["windows_per_s"] * row["tokens_per_window"])
        assert row["epoch_s"] == pytest.approx(training_windows / row["windows_per_s"])
        assert row["flops_per_s"] == pytest.approx(row["windows_per_s"] * row["flops_per_window"])
        assert row["matrix_share"] == pytest.approx(row["flops_per_s"] / row["matrix_flops_per_s"])
        assert 0.001 < row["matrix_share"] < 1
        low, high = row["matrix_flops_per_s_range"]
        assert low <= row["matrix_flops_per_s"] <= high
        assert 200 < row["peak_mb"] < 4000


@pytest.mark.nightly
def test_shares_of_the_time_are_known_of_this_project(trained):
    rows = rows_of(trained)
    for name in ("transformers.Trainer", "text, batch size 4"):
        assert rows.pop(name)["data_share"] is None
    for name, row in rows.items():
        assert 0 < row["data_share"] < 1
        assert (row["checkpoint_s"] is not None) == (name == "with a run folder")


@pytest.mark.nightly
def test_prediction_is_measured_by_batch_size(small_file, tiny_gpt2):
    small = ["--batch-sizes", "8", "--predictions", "100", "--blocks-to-try", "2", "--precision", "fp32"]
    done = run("-m", "benchmarks", "predict", "--data-location", small_file, "--model-name", tiny_gpt2, *small)
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    assert measured["threads"] == 1
    assert measured["processor"]
    (one, eight), text = measured["predict"]["rows"], measured["predict"]["text"]
    assert [(row["batch_size"], row["predictions"]) for row in (one, eight, text)] == [(1, 100), (8, 12), (1, 10)]
    assert one["p99_ms"] >= one["median_ms"]
    assert eight["p99_ms"] is text["p99_ms"] is None  # of so few that would be the largest
    for row in (one, eight, text):
        assert row["blocks"] == 2
        assert row["windows_per_s"] == pytest.approx(1000 * row["batch_size"] / row["median_ms"])
        assert 200 < row["peak_mb"] < 4000
    assert text["ratio"] == pytest.approx(text["median_ms"] / one["median_ms"])
    assert text["ratio"] > 1
    for said in ("2 blocks, fp32, batch size 8: 12 predictions", "p99, ms", "random weights"):
        assert said in done.stderr


def test_what_is_timed_is_the_prediction_of_the_project(small_file, tiny_gpt2, one_thread):
    settings = Settings(DATA_LOCATION=small_file, MODEL_NAME=str(tiny_gpt2), SCALE="training", PRECISION="fp32")
    task = load_task(settings)
    model = new_model(task, settings).eval()
    expected = evaluate(model, task, settings).probabilities
    found = probabilities(model, read_emg(task.windows, task.split.test).numpy(), precision="fp32")
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_text_of_a_window_is_its_numbers(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    tokenizer, _ = find_tokenizer()
    windows = [{"emg": torch.tensor([[12.0, -345.25], [7.5, 999.0]]), "labels": 3}] * 2
    inputs = tokenise(windows, tokenizer, 1024)
    assert tokenizer.decode(inputs["input_ids"][1]) == "12.0 -345.25 7.5 999.0"
    assert inputs["labels"].tolist() == [3, 3]
    assert tokenise(windows, tokenizer, 5)["input_ids"].shape == (2, 5)
    assert len(tokenizer("12 345 7 999")["input_ids"]) == 4  # as GPT-2's: up to three digits are one token


def test_data_that_are_not_there_are_one_sentence(tmp_path, capsys):
    path = tmp_path / "nothing.parquet"
    assert main(["predict", "--data-location", str(path), "--precision", "fp32"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith(f"benchmarks: {path}: there is no such file")


@pytest.mark.nightly
def test_an_interrupted_measurement_ends_at_once(small_file, tiny_gpt2):
    command = [sys.executable, "-m", "benchmarks", "predict", "--predictions", "10000000", "--precision", "fp32"]
    command += ["--data-location", small_file, "--model-name", tiny_gpt2]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, **streams)
    while "batch size 1" not in process.stderr.readline():
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=10)
    assert (process.returncode, out) == (130, "")
    assert err == "benchmarks: interrupted; run the same command again\n"
