"""The benchmarks run, and their figures hang together; what they measure is the machine's."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import STEM, run

from tools.cost import exact_windows


def test_preprocessing_is_measured_by_stage_and_as_a_whole(tiny_raw, tmp_path):
    done = run("-m", "tools.benchmark", "preprocess", tiny_raw / f"{STEM}.hdf5", "--runs", "1")
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


def test_storage_is_measured_in_size_speed_and_error(tiny_raw, windows_file):
    """Rounding to steps of s leaves an error of s/√12 RMS; float16 keeps 11 bits, so less than 2⁻¹¹ of the value."""
    done = run("-m", "tools.benchmark", "storage", tiny_raw / f"{STEM}.hdf5", "--runs", "1")
    assert done.returncode == 0, done.stderr
    rows = {(r["values"], r["encoding"], r["codec"]): r for r in json.loads(done.stdout)["storage"]}
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
    assert run("Preprocessing.py", tiny_raw / f"{STEM}.hdf5", "--data-location", path).returncode == 0
    stored = pq.read_table(path)["emg"].combine_chunks().flatten().to_numpy() / 4
    exact = exact_windows(tiny_raw / f"{STEM}.hdf5").reshape(-1)
    assert np.abs(stored - exact).max() <= 1 / 8


def test_a_recording_that_cannot_be_read_is_one_sentence(tmp_path):
    path = tmp_path / f"{STEM}.hdf5"
    path.write_bytes(b"nonsense")
    done = run("-m", "tools.benchmark", "storage", path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"benchmark: {path}: the file cannot be read")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "found"),
    [(["storage", "--runs", "0"], "--runs: 0 is not a number from 1 to 99"), (["speed"], "invalid choice: 'speed'")],
)
def test_a_wrong_command_line_is_one_sentence(flags, found):
    done = run("-m", "tools.benchmark", *flags)
    assert (done.returncode, done.stdout) == (1, "")
    assert found in done.stderr
    assert done.stderr.count("\n") == 1
