"""Small simulated recordings through the real command line, made once per test run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"  # reference files and real recordings; not on a user's machine

needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the reference files in ../shared are not here")


def run(*command: str | Path, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    """Run a script of the project as a user would; `run("main.py", "--help")`."""
    variables = {key: value for key, value in os.environ.items() if not key.startswith("EMG_")}
    variables |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"} | environment
    arguments = [sys.executable, *map(str, command)]
    return subprocess.run(arguments, cwd=cwd, env=variables, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="session")
def raw_folder(tmp_path_factory) -> Path:
    """Two people, two days, three trajectories: 8 channels at 1 kHz, one repetition per block, HDF5."""
    folder = tmp_path_factory.mktemp("raw")
    small = ["--repetitions", "2", "--channels", "8", "--sampling-rate", "1000"]
    done = run("-m", "tools.simulate", folder, "--subjects", "03", "04", "--sessions", "2", *small)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def windows_file(raw_folder, tmp_path_factory) -> Path:
    """The windows of `raw_folder` with the default settings."""
    path = tmp_path_factory.mktemp("windows") / "windows.parquet"
    done = run("Preprocessing.py", raw_folder, "--data-location", path)
    assert done.returncode == 0, done.stderr
    return path
