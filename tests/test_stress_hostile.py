"""stress hostile and fuzz: nothing is lost; and a reader that does lose something is found out."""

import os
import pickle
import shutil
from pathlib import Path

import h5py
import pandas as pd
import pyarrow.parquet as pq
import pytest
from conftest import run

from emg_gpt2.raw import putemg
from stress import fuzz, hostile


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    fuzz.make_files(folder)
    return folder


@pytest.fixture
def stay():
    """A case goes into a folder of its own."""
    before = Path.cwd()
    yield
    os.chdir(before)


def rows(programme, folder: Path) -> dict[str, object]:
    return {row.tried: row for row in programme.rows(False, folder, 0, lambda words: None)}


# ---- hostile ----------------------------------------------------------------------------------------------------


def test_every_hostile_file_is_refused_or_harmless(tmp_path):
    found = rows(hostile, tmp_path)
    assert [row.lost for row in found.values()] == [[]] * 4
    times = {f"hostile {kind}": len(cases) for kind, cases in hostile.CASES.items()}
    assert {tried: row.times for tried, row in found.items()} == times
    assert sum(times.values()) > 50
    assert {tried: row.right for tried, row in found.items() if row.right} == {
        "hostile HDF5": 1,  # the pickles that are not looked at
        "hostile parquet": 1,  # the pickled types, which pyarrow leaves alone
    }
    assert 0 < max(row.megabytes for row in found.values()) < 2000


def test_preprocessing_skips_all_hostile_recordings_at_once_and_takes_the_good_one(whole, tmp_path):
    """Each has a sentence of its own, in one run; those whose reading takes seconds apart."""
    raw = tmp_path / "raw"
    raw.mkdir()
    cases = [*hostile.HDF5.items(), *hostile.ZIP.items(), ("a pipe", hostile.pipe), ("a device", hostile.device)]
    for number, (name, make) in enumerate(cases):
        (place := tmp_path / name.replace("/", " ")).mkdir()
        os.rename(path := make(whole, place), raw / f"{path.stem[:-3]}{number + 100}{path.suffix}")
    done = run("Preprocessing.py", raw, "--data-location", tmp_path / "windows.parquet")
    assert (done.returncode, done.stderr) == (3, "")
    assert "Traceback" not in done.stdout
    assert sum(line.startswith("skipped: ") for line in done.stdout.splitlines()) == len(cases) - 1
    assert pq.read_metadata(tmp_path / "windows.parquet").num_rows > 0
    assert not list(tmp_path.rglob(hostile.TRACE))


def test_a_reader_that_unpickles_is_found_out(whole, tmp_path, monkeypatch, stay):
    def careless(path):
        with h5py.File(path) as file:
            pickle.loads(file["data/table"].attrs["values_block_0_kind"])

    monkeypatch.setattr(hostile, "read_recording", careless)
    end = hostile.try_case("HDF5", "a pickle in every attribute", whole, tmp_path / "case")
    assert end.startswith("a pickle in every attribute: [")
    assert end.endswith("TRACE'] was written")


def test_a_reader_that_follows_links_is_found_out(whole, tmp_path, monkeypatch, stay):
    """It ends in "right", which the number of right ends above would show."""
    monkeypatch.setattr(hostile, "read_recording", lambda path: pd.read_hdf(path))
    assert hostile.try_case("HDF5", "an external link in place of the group", whole, tmp_path / "case") == "right"


# ---- fuzz -------------------------------------------------------------------------------------------------------


def test_no_damaged_file_is_read_wrongly(tmp_path):
    found = rows(fuzz, tmp_path)
    assert [row.lost for row in found.values()] == [[]] * 5
    assert {row.times for row in found.values()} == {fuzz.FEW}
    assert all(row.refused for row in found.values())
    assert sum(row.right for row in found.values()) > fuzz.FEW / 5
    assert max(row.megabytes for row in found.values()) < 2000


def test_damage_that_goes_unnoticed_is_found_out(whole, monkeypatch):
    """Without a look at the checksum of the description, and a reader that leaves out the last row."""
    really = fuzz.read_recording

    def careless(path):
        recording = really(path)
        object.__setattr__(recording, "time", recording.time + 1e-3)
        return recording

    monkeypatch.setitem(fuzz.KINDS, "CSV recordings", (f"{fuzz.STEM}.csv", careless, fuzz.is_recorded))
    ends = {fuzz.try_file("CSV recordings", whole, 0, number).rpartition(": ")[2] for number in range(30)}
    assert ends == {"refused", "a wrong result"}


# ---- the process that reads HDF5 ----------------------------------------------------------------------------------


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """Puts a script in place of EMG_hdf5.py for this thread."""

    def replace(script: str) -> None:
        (tmp_path / "reader.py").write_text(script)
        monkeypatch.setattr(putemg.EMG_hdf5, "__file__", str(tmp_path / "reader.py"))
        monkeypatch.setattr(putemg, "_processes", putemg.threading.local())

    return replace


CLOSED, ABORTED = "import os; os.close(0); os.abort()", "import os; os.abort()"
HALF_A_LINE, ENDLESS = "input(); print('{', end='')", "while True: pass"


@pytest.mark.parametrize("script", [CLOSED, ABORTED, HALF_A_LINE, ENDLESS])
def test_a_crash_of_the_library_is_one_bad_file(script, reader, whole, monkeypatch):
    monkeypatch.setattr(putemg, "LEAST_PATIENCE", 1)
    path = whole / f"{fuzz.STEM}.hdf5"
    with monkeypatch.context():
        reader(script)
        with pytest.raises(putemg.EMGError, match=r"damaged \(HDF5's library crashed on it, or found no end\)"):
            putemg.read_recording(path)


def test_one_process_reads_good_and_bad_files(whole, tmp_path):
    bad = shutil.copy(whole / f"{fuzz.STEM}.hdf5", tmp_path)
    Path(bad).write_bytes(Path(bad).read_bytes()[:1000])
    putemg.read_recording(whole / f"{fuzz.STEM}.hdf5")
    process = putemg._processes.mine
    with pytest.raises(putemg.EMGError, match="truncated"):
        putemg.read_recording(Path(bad))
    putemg.read_recording(whole / f"{fuzz.STEM}.hdf5")
    assert putemg._processes.mine is process
    assert process.poll() is None
