"""docs/slurm.sh without SLURM: it runs its index, goes on after SIGTERM, and leaves a finished run alone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

SCRIPT = ROOT / "docs" / "slurm.sh"
RUN = Path("runs") / "cluster" / "fold1-seed0"  # of index 2


@pytest.fixture
def start(tmp_path, small_file, tiny_gpt2):
    """Starts the script as SLURM does, in a folder with main.py and cluster.toml, where squeue knows no job."""
    (tmp_path / "main.py").symlink_to(ROOT / "main.py")
    settings = {"DATA_LOCATION": small_file, "MODEL_NAME": tiny_gpt2, "PRECISION": "fp32"}
    lines = [f'{name} = "{value}"' for name, value in settings.items()]
    (tmp_path / "cluster.toml").write_text("\n".join([*lines, "NUM_EPOCHS = 30", "PATIENCE = 30", "REFIT = false"]))
    places = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    variables = os.environ | places | {"SLURM_ARRAY_TASK_ID": "2", "SLURM_JOB_ID": "0"}
    log = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return lambda: subprocess.Popen(["bash", SCRIPT], cwd=tmp_path, env=variables, **log)


@pytest.mark.nightly
def test_the_script_resumes_after_sigterm_and_leaves_a_finished_run_alone(start, tmp_path):
    first, end = start(), time.monotonic() + 120
    while not (tmp_path / RUN / "last").exists():
        assert first.poll() is None, first.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)
    first.send_signal(signal.SIGTERM)
    said = first.communicate(timeout=60)[0]
    assert f"interrupted; go on with --resume {RUN}" in said
    assert not (tmp_path / RUN / "report.html").exists()
    second = start()
    said = second.communicate(timeout=300)[0]
    assert second.returncode == 0, said
    assert f"of {RUN / 'last'}" in said
    assert (tmp_path / RUN / "report.html").exists()
    third = start()
    assert (third.communicate(timeout=10)[0], third.returncode) == ("", 0)
