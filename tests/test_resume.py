"""Many workers, a real cluster, and runs that are killed: the same bytes in the end, and nothing done twice."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, STEM, call, cut, raw_table, run, write_raw
from filelock import FileLock

from emg_gpt2.base.errors import EMGError
from emg_gpt2.settings import PreprocessingSettings, read_settings
from emg_gpt2.windows import cut as cutting
from emg_gpt2.windows import format, parts
from emg_gpt2.windows.parts import Workshop


def start(raw: Path, output: Path, *flags: str) -> subprocess.Popen:
    """Preprocessing.py as a process of its own group, so that a test can kill it with its workers."""
    command = [sys.executable, "Preprocessing.py", raw, "--data-location", output, *flags]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(list(map(str, command)), cwd=ROOT, start_new_session=True, **streams)


def kill(process: subprocess.Popen) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)


def parts_of(output: Path) -> list[Path]:
    """Finished recordings of an unfinished run."""
    return sorted(output.parent.glob(f".{output.name}.parts/*.hdf5.*.parquet"))


def wait_for_parts(output: Path, number: int) -> None:
    patience = time.monotonic() + 60
    while len(parts_of(output)) < number:
        assert time.monotonic() < patience
        time.sleep(0.01)


def cut_until_killed(after: int, *argv: str | Path) -> None:
    """Preprocessing.py, killed when so many parts are finished and the next one is about to get its name.

    It is a fork of this process, which saves the seconds that the imports take.
    """

    def work() -> None:
        really = os.replace
        format.os.replace = lambda *paths: really(*paths) if len(parts_of(output)) < after else os.kill(os.getpid(), 9)
        cut(*argv)

    output = Path(argv[argv.index("--data-location") + 1])
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert len(parts_of(output)) == after


@pytest.fixture
def read(monkeypatch) -> list[str]:
    """Names of the recordings that were really read and filtered, in this process."""
    names, really = [], parts.read_recording

    def noted(path):
        names.append(path.stem)
        return really(path)

    monkeypatch.setattr(parts, "read_recording", noted)
    return names


@pytest.fixture(scope="module")
def six(tmp_path_factory) -> Path:
    """A folder with six recordings of 8 s: two channels of noise at 1 kHz, rest and fist in turn."""
    folder, rng = tmp_path_factory.mktemp("six"), np.random.default_rng(0)
    for number in range(6):
        table = raw_table(np.rint(rng.normal(0, 50, (8000, 2))), np.repeat([0, 1, 0, 1], 2000))
        write_raw(table, folder / f"{STEM[:-3]}{number:03d}.hdf5")
    return folder


@pytest.fixture(scope="module")
def windows(six, tmp_path_factory) -> bytes:
    """The windows file of all six."""
    return fresh(six, tmp_path_factory.mktemp("windows"))


@pytest.fixture
def four(six, tmp_path) -> Path:
    """A folder with the first four."""
    folder = tmp_path / "four"
    folder.mkdir()
    for path in sorted(six.iterdir())[:4]:
        shutil.copy(path, folder)
    return folder


# ---- workers and clusters ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [2, pytest.param(3, marks=pytest.mark.nightly)])
def test_workers_give_the_same_bytes(workers, six, windows, tmp_path):
    output = tmp_path / "windows.parquet"
    done = call("Preprocessing.py", six, "--data-location", output, "--workers", workers)
    assert (done.returncode, done.stderr) == (0, "")
    assert output.read_bytes() == windows
    assert os.listdir(tmp_path) == [output.name]


class Cluster:
    """A scheduler and workers, each a process in a folder from which no module of the project is found."""

    def __init__(self, folder: Path):
        self.folder, self.file, self.workers = folder, folder / "scheduler.json", []
        self.scheduler = self._start("scheduler --host 127.0.0.1 --port 0")
        patience = time.monotonic() + 60
        while not self.file.exists() and time.monotonic() < patience:
            time.sleep(0.1)
        self.address = json.loads(self.file.read_text())["address"]

    def add_worker(self) -> None:
        self.workers.append(self._start("worker --nthreads 1 --no-nanny"))

    def stop(self) -> None:
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait(timeout=60)

    def _start(self, what: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "dask", *what.split(), "--no-dashboard", "--scheduler-file", str(self.file)]
        return subprocess.Popen(command, cwd=self.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """The address of a cluster with two workers."""
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    cluster.add_worker()
    cluster.add_worker()
    yield cluster.address
    cluster.stop()


def test_a_cluster_gives_the_same_bytes(cluster, six, windows, tmp_path):
    output = tmp_path / "windows.parquet"
    # A relative path means something else to a worker that stands in another folder.
    done = call("Preprocessing.py", os.path.relpath(six), "--data-location", output, "--cluster", cluster)
    assert (done.returncode, done.stderr) == (0, "")
    assert output.read_bytes() == windows
    assert os.listdir(tmp_path) == [output.name]


@pytest.mark.nightly
def test_a_bad_recording_on_a_cluster_is_named(cluster, four, tmp_path):
    bad = sorted(four.iterdir())[2]
    bad.write_bytes(b"nonsense")
    done = call("Preprocessing.py", four, "--data-location", tmp_path / "windows.parquet", "--cluster", cluster)
    assert (done.returncode, done.stderr) == (3, "")
    assert f"skipped: {bad}: the file cannot be read" in done.stdout


@pytest.mark.nightly
def test_a_cluster_that_is_not_there(four, tmp_path):
    """Nobody listens on port 9 of this machine."""
    output = tmp_path / "windows.parquet"
    done = call("Preprocessing.py", four, "--data-location", output, "--cluster", "tcp://127.0.0.1:9")
    assert (done.returncode, done.stdout) == (1, "")
    assert "CLUSTER = tcp://127.0.0.1:9: " in done.stderr.splitlines()[-1]
    assert not output.exists()


@pytest.mark.nightly
def test_a_cluster_that_dies_is_one_sentence(raw_folder, windows_file, tmp_path):
    """First a single worker, which joblib would not use; then two, killed at their work; then none comes back."""
    output, cluster = tmp_path / "windows.parquet", Cluster(tmp_path)
    try:
        cluster.add_worker()
        done = run("Preprocessing.py", raw_folder, "--data-location", output, "--cluster", cluster.address)
        assert (done.returncode, done.stdout) == (1, "")
        assert "it has fewer than two worker threads; start more workers" in done.stderr
        cluster.add_worker()
        process = start(raw_folder, output, "--cluster", cluster.address)
        wait_for_parts(output, 3)
        for worker in cluster.workers:
            worker.kill()
        said, complained = process.communicate(timeout=60)
    finally:
        cluster.stop()
    assert (process.returncode, said) == (1, "")
    assert "scheduler or workers went away" in complained
    assert complained.count("\n") == 1
    done = run("Preprocessing.py", raw_folder, "--data-location", output)
    assert done.returncode == 0
    assert output.read_bytes() == windows_file.read_bytes()


@pytest.mark.nightly
def test_memory_does_not_grow_with_the_recordings(raw_folder, tmp_path):
    """Twelve recordings hold 12 × 4 MB of float32 samples and 12 × 8 MB of windows: 60 MB would show if kept."""

    def peak(*raw: Path) -> float:
        code = "import resource, runpy, sys; sys.argv = sys.argv[1:]\n"
        code += "try: runpy.run_path('Preprocessing.py', run_name='__main__')\nexcept SystemExit: pass\n"
        code += "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        done = run("-c", code, "Preprocessing.py", *raw, "--data-location", tmp_path / "windows.parquet")
        return int(done.stdout.splitlines()[-1]) / (1024**2 if sys.platform == "darwin" else 1024)  # MB

    recordings = sorted(raw_folder.glob("*.hdf5"))
    assert peak(*recordings) < peak(recordings[0]) + 30


# ---- killed runs ------------------------------------------------------------------------------------------------


def test_killed_it_goes_on_and_ends_with_the_same_bytes(four, read, tmp_path):
    """Only what is missing is read; the third recording was written, but had no name yet."""
    output = tmp_path / "windows.parquet"
    cut_until_killed(2, four, "--data-location", output)
    _, said = cut(four, "--data-location", output)
    assert len(read) == 2
    assert said.endswith(" windows of 4 recordings, 2 of them finished before, 0 skipped\n")
    assert sorted(os.listdir(tmp_path)) == ["four", output.name], "nothing stays behind"
    assert output.read_bytes() == fresh(four, tmp_path)


@pytest.mark.nightly
def test_killed_at_random_moments_it_ends_with_the_same_bytes(raw_folder, windows_file, tmp_path):
    """Six kills within the 3 s that a run takes, alternately of one process and of two workers, on one output."""
    output, moment = tmp_path / "windows.parquet", random.Random(0)
    for attempt in range(6):
        process = start(raw_folder, output, "--workers", str(1 + attempt % 2))
        time.sleep(moment.uniform(0.3, 3.5))
        kill(process)
        if output.exists():  # it was quick: then it is complete
            assert output.read_bytes() == windows_file.read_bytes()
    done = run("Preprocessing.py", raw_folder, "--data-location", output)
    assert (done.returncode, done.stderr) == (0, "")
    assert output.read_bytes() == windows_file.read_bytes()
    assert os.listdir(tmp_path) == [output.name], "nothing stays behind"


@pytest.mark.nightly
def test_workers_that_outlive_a_killed_run_do_no_harm(raw_folder, tmp_path):
    """Only the parent is killed; its workers write on while the next run, with other settings, is at work."""
    output = tmp_path / "windows.parquet"
    process = start(raw_folder, output, "--workers", "2")
    wait_for_parts(output, 2)
    process.kill()
    done = run("Preprocessing.py", raw_folder, "--data-location", output, "--filter", "none", "--workers", "2")
    assert (done.returncode, done.stderr) == (0, "")
    with suppress(ProcessLookupError):  # they have ended by themselves
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert output.read_bytes() == fresh(raw_folder, tmp_path, "--filter", "none")


def test_parts_of_other_settings_are_other_files(tiny_raw, tmp_path):
    """So a late worker can write nothing but what its part should hold anyway."""
    made = []
    for flags in ([], ["--filter", "none"], ["--window-ms", "200"], []):
        settings = read_settings(PreprocessingSettings, [str(tiny_raw), *flags])
        made.append(parts.process(tiny_raw / f"{STEM}.hdf5", None, None, Workshop(tmp_path, settings)))
    assert [result.reused for result in made] == [False, False, False, True]
    assert len({result.part.file for result in made}) == 3
    assert made[3].part.file == made[0].part.file


def test_a_finished_run_is_used_again_by_the_next(four, read, six, windows, tmp_path):
    """Unchanged, nothing is read; with two new recordings, those two, and the bytes of a run from nothing."""
    output = tmp_path / "windows.parquet"
    cut(four, "--data-location", output)
    first = output.read_bytes()
    read.clear()
    _, said = cut(four, "--data-location", output)
    assert (read, output.read_bytes()) == ([], first)
    assert said.endswith(" windows of 4 recordings, 4 of them finished before, 0 skipped\n")
    cut(six, "--data-location", output)
    assert len(read) == 2
    assert output.read_bytes() == windows


def test_a_changed_recording_is_noticed(four, read, tmp_path):
    output = tmp_path / "windows.parquet"
    cut(four, "--data-location", output)
    one, other = sorted(four.iterdir())[:2]
    name = one.stem
    shutil.copy(other, one)
    read.clear()
    cut(four, "--data-location", output)
    assert read == [name]
    assert output.read_bytes() == fresh(four, tmp_path)


@pytest.mark.parametrize("flags", [["--filter", "none"], ["--window-ms", "200"], ["--legal-values", "1,2"]])
def test_changed_settings_are_noticed(flags, four, read, tmp_path):
    output = tmp_path / "windows.parquet"
    cut(four, "--data-location", output)
    read.clear()
    cut(four, "--data-location", output, *flags)
    assert len(read) == 4
    assert output.read_bytes() == fresh(four, tmp_path, *flags)


def fresh(raw: Path, folder: Path, *flags: str) -> bytes:
    """The output of a run from nothing."""
    cut(raw, "--data-location", folder / "fresh.parquet", *flags)
    return (folder / "fresh.parquet").read_bytes()


def test_names_and_notes_are_new_without_reading(four, read, tmp_path):
    output = tmp_path / "windows.parquet"
    cut(four, "--data-location", output)
    read.clear()
    cut(four, "--data-location", output, "--data-note", "another note")
    assert read == []
    assert output.read_bytes() == fresh(four, tmp_path, "--data-note", "another note")


@pytest.mark.parametrize("damage", ["flipped", "truncated", "empty"])
def test_a_damaged_part_is_made_anew(damage, four, read, tmp_path):
    output = tmp_path / "windows.parquet"
    cut_until_killed(2, four, "--data-location", output)
    finished = parts_of(output)
    content = bytearray(finished[0].read_bytes())
    content[len(content) // 3] ^= 0x10  # inside the samples
    damaged = {"flipped": content, "truncated": content[: len(content) // 2], "empty": b""}
    finished[0].write_bytes(damaged[damage])
    cut(four, "--data-location", output)
    assert len(read) == 3
    assert output.read_bytes() == fresh(four, tmp_path)


def test_a_damaged_output_is_made_anew(four, read, tmp_path):
    output = tmp_path / "windows.parquet"
    cut(four, "--data-location", output)
    content = bytearray(output.read_bytes())
    content[len(content) // 8] ^= 0x10  # inside the first of four recordings
    output.write_bytes(content)
    read.clear()
    cut(four, "--data-location", output)
    assert len(read) == 1
    assert output.read_bytes() == fresh(four, tmp_path)


def test_a_damaged_description_is_never_believed(tiny_raw, tmp_path, capsys):
    """One bit in every 301st byte of the footer: the next run uses the file or not, and ends with the right bytes."""
    output = tmp_path / "windows.parquet"
    recording = tiny_raw / f"{STEM}.hdf5"
    cut(recording, "--data-location", output)
    whole = output.read_bytes()
    length = int.from_bytes(whole[-8:-4], "little")  # of the footer, which ends with its length and PAR1
    for place in range(len(whole) - 8 - length, len(whole), 301):
        content = bytearray(whole)
        content[place] ^= 1 << place % 8
        output.write_bytes(content)
        cut(recording, "--data-location", output)
        assert output.read_bytes() == whole, place


def test_another_version_of_the_code_is_noticed(four, read, tmp_path, monkeypatch):
    output = tmp_path / "windows.parquet"
    cut(four, "--data-location", output)
    read.clear()
    monkeypatch.setattr(parts, "code", lambda: "another version")
    cut(four, "--data-location", output)
    assert len(read) == 4
    assert json.loads(pq.read_schema(output).metadata[b"emg"])["code"] == "another version"


def test_a_full_memory_is_one_sentence(four, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr(cutting, "apply_filter", fail)
    with pytest.raises(EMGError, match=r"^the memory is full; lower WORKERS .* goes on from here$"):
        cut(four, "--data-location", tmp_path / "windows.parquet")
    assert not list(tmp_path.glob(".*")), "nothing was finished, and nothing stays behind"


def test_a_recording_that_changes_while_it_is_read_is_refused(four, tmp_path, monkeypatch):
    """It grows after its checksum was taken."""
    victim, really = sorted(four.iterdir())[1], parts.read_recording

    def read_slowly(path):
        if path == victim:
            with path.open("ab") as file:
                file.write(b"more")
        return really(path)

    monkeypatch.setattr(parts, "read_recording", read_slowly)
    results, _ = cut(four, "--data-location", tmp_path / "windows.parquet")
    assert results[1].problem == f"{victim}: the file changed while it was read; " + (
        "run the same command again when it is complete"
    )
    assert sum(bool(result.problem) for result in results) == 1


def test_two_runs_do_not_write_the_same_output(four, tmp_path):
    output = tmp_path / "windows.parquet"
    folder = tmp_path / ".windows.parquet.parts"
    folder.mkdir()
    with FileLock(folder / "lock"):
        done = call("Preprocessing.py", four, "--data-location", output)
    assert (done.returncode, done.stdout) == (1, "")
    assert "another Preprocessing.py is writing the output" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.nightly
def test_a_killed_worker_is_one_sentence_and_the_next_run_goes_on(raw_folder, windows_file, tmp_path):
    output = tmp_path / "windows.parquet"
    process = start(raw_folder, output, "--workers", "2")
    wait_for_parts(output, 2)
    workers = []
    while not workers:
        children = psutil.Process(process.pid).children()
        workers = [child for child in children if any("LokyProcess" in word for word in child.cmdline())]
    workers[0].kill()
    said, complained = process.communicate(timeout=60)
    assert (process.returncode, said) == (1, "")
    assert complained.splitlines()[-1].startswith("Preprocessing.py: a worker was killed")
    assert "Traceback" not in complained
    done = run("Preprocessing.py", raw_folder, "--data-location", output)
    assert done.returncode == 0
    assert output.read_bytes() == windows_file.read_bytes()


@pytest.mark.nightly
def test_ctrl_c_with_workers_is_one_sentence(raw_folder, tmp_path):
    output = tmp_path / "windows.parquet"
    process = start(raw_folder, output, "--workers", "2")
    wait_for_parts(output, 2)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to the workers too
    said, complained = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, "")
    assert complained == "Preprocessing.py: interrupted; run the same command again to go on from here\n"
    assert parts_of(output)
