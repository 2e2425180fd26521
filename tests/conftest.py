"""Small simulated recordings through the real command line, made once per test run."""

import html
import importlib
import io
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from filelock import FileLock
from hypothesis import HealthCheck, Phase, settings
from rich.console import Console
from transformers import GPT2Config, GPT2Model

from emg_gpt2.commands import simulate
from emg_gpt2.raw.putemg import find_recordings
from emg_gpt2.settings import PreprocessingSettings, read_settings
from Preprocessing import Result, preprocess, print_table

# A test run in the background may have inherited "ignore Ctrl-C", and would hand it on to the scripts it interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"  # reference files and real recordings; not on a user's machine

# Of tests/test_properties.py: the same examples every time, or many that the seed decides.
CALM = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck), "report_multiple_bugs": False}
CALM |= {"phases": [phase for phase in Phase if phase != Phase.explain]}  # which takes minutes
settings.register_profile("small", max_examples=5, derandomize=True, **CALM)
settings.register_profile("stress", max_examples=12, derandomize=True, **CALM)
settings.register_profile("nightly", max_examples=1000, **CALM)
settings.load_profile("small")

needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the reference files in ../shared are not here")


def run(*command: str | Path, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    """Run a script of the project as a user would; `run("main.py", "--help")`."""
    variables = {key: value for key, value in os.environ.items() if not key.startswith("EMG_")}
    variables |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"} | environment
    arguments = [sys.executable, *map(str, command)]
    return subprocess.run(arguments, cwd=cwd, env=variables, capture_output=True, text=True, timeout=600)


def call(script: str, *arguments: str | Path) -> subprocess.CompletedProcess:
    """`run("main.py", …)` in this process, which saves the seconds that the imports take."""
    main, command = importlib.import_module(script.removesuffix(".py")).main, [script, *map(str, arguments)]
    streams = [io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2)]
    argv, handlers, threads = sys.argv, logging.getLogger().handlers[:], torch.get_num_threads()
    sys.argv = command
    torch.set_num_threads(1)
    try:
        with redirect_stdout(streams[0]), redirect_stderr(streams[1]):
            status = main()
    finally:
        sys.argv, logging.getLogger().handlers[:] = argv, handlers
        torch.set_num_threads(threads)
    return subprocess.CompletedProcess(command, status, *(one.buffer.getvalue().decode() for one in streams))


def svg_texts(path: Path) -> list[str]:
    """The texts of a picture in SVG."""
    return [html.unescape(text) for text in re.findall(r"<text[^>]*>([^<]*)</text>", path.read_text(encoding="utf-8"))]


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """The folder that `make` fills, made by one of the processes of pytest-xdist for all."""
    own = factory.getbasetemp()
    root = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    with FileLock(root / f"{name}.lock"):
        if not (root / name).exists():
            (new := root / f"{name}.new").mkdir()
            make(new)
            new.rename(root / name)
    return root / name


@pytest.fixture(scope="session")
def raw_folder(tmp_path_factory) -> Path:
    """Two people, two days, three trajectories: 8 channels at 1 kHz, two repetitions per block, HDF5."""
    flags = ["--subjects", "03", "04", "--repetitions", "2", "--channels", "8", "--sampling-rate", "1000"]
    return made_once(tmp_path_factory, "raw_folder", lambda folder: simulated(folder, *flags))


def simulated(folder: Path, *flags: str) -> None:
    assert simulate.main([str(folder), *flags]) == 0


@pytest.fixture(scope="session")
def windows_file(raw_folder, tmp_path_factory) -> Path:
    """The windows of `raw_folder` with the default settings."""

    def make(folder: Path) -> None:
        done = call("Preprocessing.py", raw_folder, "--data-location", folder / "windows.parquet")
        assert done.returncode == 0, done.stderr

    return made_once(tmp_path_factory, "windows_file", make) / "windows.parquet"


@pytest.fixture(scope="session")
def small_file(windows_file, tmp_path_factory) -> Path:
    """Person 03's four repeats recordings, every fourth idle window: two days of two recordings, quick to train on."""
    table = pq.read_table(windows_file)
    frame = table.drop_columns(["emg"]).to_pandas()
    kept = (frame["subject"] == "03") & (frame["trajectory"] != "sequential")
    kept &= (frame["TRAJ_GT"] != 0) | (frame.index % 4 == 0)
    path = tmp_path_factory.mktemp("small") / "small.parquet"
    pq.write_table(table.filter(pa.array(kept)), path)
    return path


@pytest.fixture(scope="session")
def tiny_gpt2(tmp_path_factory) -> Path:
    """A GPT-2 of width 32 and three blocks as transformers saves it; no tensor keeps its initial ones or zeros."""
    torch.manual_seed(7)
    model = GPT2Model(GPT2Config(n_embd=32, n_layer=3, n_head=2, vocab_size=11, bos_token_id=0, eos_token_id=0))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if "ln_" in name and name.endswith("weight") else 0.0
            parameter.copy_(centre + 0.1 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("gpt2")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def trained(small_file, tiny_gpt2, tmp_path_factory) -> Path:
    """A run on person 03's first day, tested on the second."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    parts = ["--train-on", "03/2018-05-11/*", "--test-on", "03/2018-06-14/*", "--no-refit", "--num-epochs", "1"]
    backbone = ["--model-name", tiny_gpt2, "--pretrained", "never", "--precision", "fp32"]
    done = call("main.py", "--data-location", small_file, *parts, *backbone, "--run-dir", folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def causal_model(trained, tmp_path_factory) -> Path:
    """The same model, as if its data had been filtered causally and each session measured by itself."""
    folder = tmp_path_factory.mktemp("causal") / "best_model"
    shutil.copytree(trained / "best_model", folder)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["preprocessing"] |= {"FILTER": "causal"}
    config["scale"] = "session"
    path.write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def one_thread():
    """So small a model waits for its threads more than it computes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# ---- hand-made recordings, and Preprocessing.py in this process ------------------------------------------------

STEM = "emg_gestures-03-sequential-2018-05-11-11-10-52-120"  # a name that putEMG has, for the one recording of a test


def raw_table(emg: np.ndarray, labels: np.ndarray, rate: float = 1000.0, start: float = 5.0) -> pd.DataFrame:
    """putEMG's columns, in its order, around (N, C) samples and (N,) labels of subject 03."""
    rows, channels = emg.shape
    table = pd.DataFrame(emg, columns=[f"EMG_{n}" for n in range(1, channels + 1)], dtype=np.float64)
    table.index = start + np.arange(rows) / rate
    kinds, trajectories = ["emg_gestures", "emg_force", "mmg_gestures"], ["repeats_long", "sequential", "repeats_short"]
    table["TRAJ_1"] = np.asarray(labels, float)
    table["type"] = pd.Categorical.from_codes(np.zeros(rows, np.int8), kinds)
    table["subject"] = 3.0
    table["trajectory"] = pd.Categorical.from_codes(np.ones(rows, np.int8), trajectories)
    table["date_time"] = np.datetime64("2018-05-11T11:10:52.120", "ns")
    table["TRAJ_GT_NO_FILTER"], table["VIDEO_STAMP"] = np.asarray(labels, float), table.index - start - 1
    table["TRAJ_GT"] = np.asarray(labels, float)
    return table


def write_raw(table: pd.DataFrame, path: Path) -> Path:
    """As HDF5, CSV or zipped CSV, by the suffix of `path`."""
    if path.suffix == ".hdf5":
        table.to_hdf(path, key="data", mode="w", format="table", complevel=5, complib="zlib", index=False)
    else:  # pandas zips by itself
        compression = {"method": "zip", "archive_name": f"{path.stem}.csv"} if path.suffix == ".zip" else None
        table.to_csv(path, compression=compression)
    return path


def cut(*argv: str | Path) -> tuple[list[Result], str]:
    """Preprocessing.py without its own process: one result per file, and what it said."""
    settings = read_settings(PreprocessingSettings, [*map(str, argv)])
    said = io.StringIO()
    console = Console(file=said, width=10_000, highlight=False)
    results = preprocess(find_recordings(settings.RAW), settings, console)
    print_table(results, settings, console)
    return results, said.getvalue()


@pytest.fixture(scope="session")
def tiny_raw(tmp_path_factory) -> Path:
    """One simulated recording as STEM.hdf5 and STEM.zip: 3 channels at 500 Hz, one block of every gesture."""
    flags = ["--subjects", "3", "--sessions", "1", "--trajectories", "sequential", "--repetitions", "1"]
    flags += ["--channels", "3", "--sampling-rate", "500", "--format", "both"]
    return made_once(tmp_path_factory, "tiny_raw", lambda folder: simulated(folder, *flags))
