"""Raw files → Recording: one content whatever the container, and nothing in a file is ever run."""

import csv
import json
import multiprocessing
import pickle
import shutil
import time
import zlib
from contextlib import contextmanager

import faulty
import h5py
import numpy as np
import pandas as pd
import psutil
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, SHARED, STEM, cut, needs_shared, raw_table, run, write_raw

from emg_gpt2.base.errors import EMGError
from emg_gpt2.raw import hdf5_process, recording
from emg_gpt2.raw.putemg import find_recordings, read_recording

GENERATOR = SHARED / "putemg" / "make_raw_putemg.py"


@pytest.fixture
def hand_made() -> pd.DataFrame:
    """2 s of two channels at 1 kHz: EMG_1 counts up, EMG_2 counts down; pause, idle, fist."""
    rows = np.arange(2000)
    return raw_table(np.column_stack([rows, 1000 - rows]), np.repeat([-1, 0, 1], [500, 500, 1000]))


def assert_same(one, other):
    assert (one.name, one.subject, one.session) == (other.name, other.subject, other.session)
    assert (one.trajectory, one.channels) == (other.trajectory, other.channels)
    for field in ("time", "emg", "labels"):
        np.testing.assert_array_equal(getattr(one, field), getattr(other, field))


@pytest.mark.parametrize("suffix", [".hdf5", ".csv", ".zip"])
def test_a_recording_is_read_as_it_was_written(suffix, hand_made, tmp_path):
    recording = read_recording(write_raw(hand_made, tmp_path / f"{STEM}{suffix}"))
    assert (recording.name, recording.subject, recording.session) == (STEM, "03", "2018-05-11")
    assert (recording.trajectory, recording.channels) == ("sequential", ("EMG_1", "EMG_2"))
    assert (recording.time.dtype, recording.emg.dtype, recording.labels.dtype) == (np.float64, np.float32, np.int8)
    np.testing.assert_array_equal(recording.time, hand_made.index)
    np.testing.assert_array_equal(recording.emg[:, 0], np.arange(2000))
    np.testing.assert_array_equal(recording.emg[:, 1], 1000 - np.arange(2000))
    assert [(recording.labels == label).sum() for label in (-1, 0, 1)] == [500, 500, 1000]
    assert recording.sampling_rate == pytest.approx(1000, rel=1e-12)


def test_hdf5_zip_and_csv_of_one_recording_are_the_same(tiny_raw, tmp_path):
    shutil.unpack_archive(tiny_raw / f"{STEM}.zip", tmp_path)
    from_hdf5 = read_recording(tiny_raw / f"{STEM}.hdf5")
    assert from_hdf5.emg.shape[1] == 3
    assert_same(from_hdf5, read_recording(tiny_raw / f"{STEM}.zip"))
    assert_same(from_hdf5, read_recording(tmp_path / f"{STEM}.csv"))


@pytest.mark.parametrize("suffix", [".hdf5", ".csv"])
def test_columns_are_found_by_name_not_by_place(suffix, hand_made, tmp_path):
    expected = read_recording(write_raw(hand_made, tmp_path / f"{STEM}.zip"))
    shuffled = hand_made[hand_made.columns[::-1]]
    assert_same(read_recording(write_raw(shuffled, tmp_path / f"{STEM}{suffix}")), expected)


@pytest.mark.parametrize("dtype", ["int16", "float32", "float64"])
def test_samples_may_be_stored_in_any_type(dtype, hand_made, tmp_path):
    emg = ["EMG_1", "EMG_2"]
    recording = read_recording(write_raw(hand_made.astype(dict.fromkeys(emg, dtype)), tmp_path / f"{STEM}.hdf5"))
    np.testing.assert_array_equal(recording.emg, hand_made[emg])


def test_more_rows_than_one_read_takes(tmp_path):
    """50,001 rows are read in three pieces, the second of which ends within a chunk of the file."""
    rows = np.arange(50_001)
    table = raw_table((rows % 2000 - 1000)[:, None], rows // 10_000 % 4)
    for suffix in (".hdf5", ".csv"):
        recording = read_recording(write_raw(table, tmp_path / f"{STEM}{suffix}"))
        np.testing.assert_array_equal(recording.emg[:, 0], rows % 2000 - 1000)
        np.testing.assert_array_equal(recording.labels, rows // 10_000 % 4)


def test_folders_are_searched_to_the_bottom(hand_made, tmp_path):
    deep = tmp_path / "download" / "Data-HDF5"
    deep.mkdir(parents=True)
    path = write_raw(hand_made, deep / f"{STEM}.hdf5")
    (deep / "MD5SUMS").touch()
    assert find_recordings([tmp_path]) == [path]
    assert find_recordings([tmp_path, path, deep]) == [path]


# ---- the independent generator ----------------------------------------------------------------------------------


@needs_shared
@pytest.mark.nightly
@pytest.mark.parametrize("pickles", ["py3", "py2"])
def test_generated_recordings_give_the_same_windows_from_hdf5_and_csv(pickles, tmp_path):
    options = ["--subjects", "03", "--sessions", "1", "--trajectories", "sequential", "--max-reps", "1"]
    options += ["--seconds-scale", "0.15", "--format", "both"] + ["--py2-pickles"] * (pickles == "py2")
    done = run(GENERATOR, "--out", tmp_path, *options)
    assert done.returncode == 0, done.stderr
    tables = []
    for kind in ("Data-HDF5", "Data-CSV"):
        output = tmp_path / f"{kind}.parquet"
        done = run(
            "Preprocessing.py", tmp_path / kind, "--data-location", output, "--trim-start-ms=0", "--trim-end-ms=0"
        )
        assert done.returncode == 0, done.stderr + done.stdout
        tables.append(pq.read_table(output).replace_schema_metadata(None))
    assert len(tables[0]) > 10
    assert len(tables[0].column("emg")[0]) == 250 * 24
    assert tables[0].equals(tables[1])

    [truth] = (tmp_path / "_synthetic_truth").glob("*.json")
    recording = read_recording(tmp_path / "Data-HDF5" / f"{truth.stem}.hdf5")
    expected = json.loads(truth.read_text())
    assert recording.sampling_rate == pytest.approx(expected["fs"], rel=1e-9)
    assert len(recording.time) == expected["rows"]
    assert recording.time[0] == pytest.approx(expected["index_start"])


# ---- hostile files ----------------------------------------------------------------------------------------------


class Trap:
    """Unpickling it creates a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def doctor(path, group: str, name: str, content: bytes):
    """Replace an attribute; NUL bytes need HDF5's opaque type."""
    with h5py.File(path, "r+") as file:
        assert name in file[group].attrs, "only attributes that pandas wrote are doctored"
        file[group].attrs[name] = np.void(content) if b"\0" in content else np.bytes_(content)


@pytest.mark.parametrize("protocol", [0, *(pytest.param(number, marks=pytest.mark.nightly) for number in (2, 4))])
@pytest.mark.parametrize("place", ["table values_block_3_kind", "table values_block_3_dtype", "table TITLE"])
@pytest.mark.parametrize("place_above", ["data info", "data non_index_axes", "data data_columns", "/ TITLE"])
def test_a_planted_pickle_does_not_run(place, place_above, protocol, hand_made, tmp_path):
    """In the columns' names it gives one error; elsewhere, or where it is no text, it is passed over."""
    path, sprung = write_raw(hand_made, tmp_path / f"{STEM}.hdf5"), tmp_path / "sprung"
    trap = pickle.dumps(Trap(sprung), protocol)
    doctor(path, *place.replace("table", "data/table").split(), trap)
    doctor(path, *place_above.split(), trap)
    if "kind" in place:
        with pytest.raises(EMGError) as error:
            read_recording(path)
        assert str(error.value).startswith(f"{path}: ")
        assert "\n" not in str(error.value)
    else:
        assert len(read_recording(path).time) == 2000
    assert not sprung.exists()
    pickle.loads(trap).close()
    assert sprung.exists(), "the trap works where pickles are run"


BROKEN_PICKLES = {
    "names a function": b"cos\nsystem\n.",
    "builds upon a list": b"(lp0\n(dp1\nS'a'\nI1\nsb.",
    "a number": b"I1\n.",
    "cut short": b"(lp0\nI1\na",
    "no pickle": b"EMG_1 EMG_2",
    "persistent": b"Pid\n.",
    "nothing": b".",
    "one name too many": pickle.dumps([f"EMG_{n}" for n in range(1, 9)] + ["TRAJ_GT", "subject"], 0),
}


@pytest.mark.parametrize("content", BROKEN_PICKLES)
def test_a_broken_pickle_gives_one_message(content, hand_made, tmp_path):
    path = write_raw(hand_made, tmp_path / f"{STEM}.hdf5")
    doctor(path, "data/table", "values_block_3_kind", BROKEN_PICKLES[content])
    with pytest.raises(EMGError) as error:
        read_recording(path)
    assert str(error.value).startswith(f"{path}: ")


def test_preprocessing_skips_a_file_full_of_traps(hand_made, tmp_path):
    """Every attribute is one; the good recording beside it goes in."""
    path, sprung = write_raw(hand_made, tmp_path / f"{STEM}.hdf5"), tmp_path / "sprung"
    write_raw(hand_made, tmp_path / f"{STEM[:-3]}999.hdf5")
    with h5py.File(path) as file:
        places = [(group, name) for group in ("/", "data", "data/table") for name in file[group].attrs]
    for place in places:
        doctor(path, *place, pickle.dumps(Trap(sprung), 0))
    results, said = cut(tmp_path, "--data-location", tmp_path / "windows.parquet", "--filter", "none")
    assert [bool(result.problem) for result in results] == [True, False]
    assert path.name in said
    assert not sprung.exists()


@contextmanager
def packed_anew(path, **made):
    """The table in chunks of 256 rows, made with other options of h5py: the new dataset, and its rows."""
    with h5py.File(path, "a") as file:
        rows, attributes = file["data/table"][:], dict(file["data/table"].attrs)
        del file["data/table"]
        table = file.create_dataset("data/table", data=rows, chunks=(256,), **made)
        table.attrs.update(attributes)
        yield table, rows


@pytest.mark.parametrize(
    "made",
    [{"compression": "gzip", "shuffle": True}, {"compression": "gzip"}, {"compression": "lzf", "shuffle": True}, {}],
    ids=["as pandas writes", "not shuffled", "another codec", "plain"],
)
def test_rows_are_the_same_however_they_are_packed(made, hand_made, tmp_path):
    """1999 rows in chunks of 256: the last chunk is not full."""
    expected = read_recording(write_raw(hand_made.iloc[:1999], tmp_path / f"{STEM}.zip"))
    path = write_raw(hand_made.iloc[:1999], tmp_path / f"{STEM}.hdf5")
    with packed_anew(path, **made):
        pass
    assert_same(read_recording(path), expected)


def test_a_chunk_that_inflates_to_less_is_refused(hand_made, tmp_path):
    """Rows 256 to 511, well packed, but only half of them."""
    path = write_raw(hand_made, tmp_path / f"{STEM}.hdf5")
    with packed_anew(path, compression="gzip", shuffle=True) as (table, rows):
        table.id.write_direct_chunk((256,), zlib.compress(bytes(128 * rows.itemsize)))
    with pytest.raises(EMGError, match="the rows from 256 on are damaged; download the file again"):
        read_recording(path)


def test_a_chunk_that_was_not_deflated_is_read(hand_made, tmp_path):
    """HDF5 leaves a filter out where it would gain nothing, and says so in the chunk's mask: bit 1 is the second."""
    expected = read_recording(write_raw(hand_made, tmp_path / f"{STEM}.zip"))
    path = write_raw(hand_made, tmp_path / f"{STEM}.hdf5")
    with packed_anew(path, compression="gzip", shuffle=True) as (table, rows):
        shuffled = np.frombuffer(rows[256:512].tobytes(), np.uint8).reshape(256, -1).T.tobytes()
        table.id.write_direct_chunk((256,), shuffled, filter_mask=2)
    assert_same(read_recording(path), expected)


def test_more_rows_than_the_file_can_hold_are_refused_at_once(hand_made, tmp_path):
    """10¹² rows, of which nothing is stored: nothing of their size is taken from the memory."""
    path = write_raw(hand_made, tmp_path / f"{STEM}.hdf5")
    with h5py.File(path, "a") as file:
        rows, attributes = file["data/table"][:1], dict(file["data/table"].attrs)
        del file["data/table"]
        table = file.create_dataset("data/table", (10**12,), rows.dtype, chunks=(256,), compression="gzip")
        table.attrs.update(attributes)
    with pytest.raises(EMGError, match="claims 1000000000000 rows of 74 bytes, more than it holds"):
        read_recording(path)


@pytest.mark.parametrize("suffix", [".hdf5", ".csv", ".zip"])
def test_a_recording_that_the_memory_could_not_hold_is_refused(suffix, hand_made, tmp_path, monkeypatch):
    """2000 rows of two channels take 2000 · (2 · 4 + 4 · 8) bytes."""
    path = write_raw(hand_made, tmp_path / f"{STEM}{suffix}")
    monkeypatch.setattr(recording, "MOST_BYTES", 80_000)
    assert len(read_recording(path).time) == 2000
    monkeypatch.setattr(recording, "MOST_BYTES", 79_999)
    with pytest.raises(EMGError, match=r"a recording of 2000 rows or more would take .* cut it into shorter ones"):
        read_recording(path)


@pytest.mark.parametrize("suffix", [".hdf5", ".csv"])
def test_a_channel_whose_name_is_damaged_is_not_left_out(suffix, hand_made, tmp_path):
    path = write_raw(hand_made.rename(columns={"EMG_2": "EMG_\x7f"}), tmp_path / f"{STEM}{suffix}")
    with pytest.raises(EMGError, match=r"the column 'EMG_\\x7f' is no channel"):
        read_recording(path)


def test_quotation_marks_around_names_and_text_do_no_harm(hand_made, tmp_path):
    expected = read_recording(write_raw(hand_made, tmp_path / f"{STEM}.zip"))
    hand_made.to_csv(tmp_path / f"{STEM}.csv", quoting=csv.QUOTE_NONNUMERIC)
    assert '"EMG_1"' in (tmp_path / f"{STEM}.csv").read_text()[:100]
    assert_same(read_recording(tmp_path / f"{STEM}.csv"), expected)


# ---- the process that reads HDF5 --------------------------------------------------------------------------------


@pytest.fixture
def good(hand_made, tmp_path):
    return write_raw(hand_made, tmp_path / f"{STEM}.hdf5")


def readers() -> set[int]:
    return {process.pid for process in multiprocessing.active_children()}


@pytest.mark.parametrize("fault", [faulty.crash, faulty.loop])
def test_a_file_that_crashes_the_library_or_hangs_it_is_one_bad_file(fault, good, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(hdf5_process, "list_columns", fault)
        patched.setattr(hdf5_process, "LEAST_PATIENCE", 1)
        with pytest.raises(EMGError, match=r"damaged \(HDF5's library crashed on it, or found no end\)"):
            read_recording(good)
    assert len(read_recording(good).time) == 2000


def test_a_file_that_asks_for_more_memory_than_it_is_given_is_refused(good, monkeypatch):
    monkeypatch.setattr(hdf5_process, "list_columns", faulty.allocate)
    with pytest.raises(EMGError, match="more rows than memory holds"):
        read_recording(good)


def test_one_process_reads_good_and_bad_files_and_imports_little(good, tmp_path, monkeypatch):
    read_recording(good)
    before = readers()
    (tmp_path / f"{STEM[:-3]}999.hdf5").write_bytes(good.read_bytes()[:1000])
    with pytest.raises(EMGError, match="truncated"):
        read_recording(tmp_path / f"{STEM[:-3]}999.hdf5")
    read_recording(good)
    seen = []
    monkeypatch.setattr(hdf5_process, "list_columns", faulty.loaded)
    with pytest.raises(ZeroDivisionError):
        hdf5_process.read_hdf5(good, lambda modules: seen.extend(modules) or 1 / 0)
    assert readers() == before
    assert not {"torch", "pandas", "scipy", "Preprocessing", "conftest"} & set(seen)


def test_a_process_that_was_killed_while_idle_is_replaced(good):
    read_recording(good)
    for number in readers():
        psutil.Process(number).kill()
    while readers():
        time.sleep(0.01)
    assert len(read_recording(good).time) == 2000


def test_a_daemon_that_was_forked_reads_with_a_process_of_its_own(good):
    """As Dask's workers are daemons, to which `multiprocessing` allows no children."""
    read_recording(good)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        found = pool.apply(read_recording, [good])
    assert_same(found, read_recording(good))


def test_a_script_without_a_guard_reads_and_its_process_ends_with_it(good, tmp_path):
    """Also when it is killed: nothing outlives it."""
    script = tmp_path / "script.py"
    script.write_text(
        f"import os, pathlib, psutil, sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        "from emg_gpt2.raw.putemg import read_recording\n"
        f"print(len(read_recording(pathlib.Path({str(good)!r})).time), flush=True)\n"
        "print(*(one.pid for one in psutil.Process().children()), flush=True)\nos.kill(os.getpid(), 9)"
    )
    rows, children = run(script).stdout.splitlines()
    assert rows == "2000"
    patience = time.monotonic() + 20
    while (left := list(filter(runs, children.split()))) and time.monotonic() < patience:
        time.sleep(0.05)
    assert children
    assert not left


def runs(number: str) -> bool:
    try:
        return psutil.Process(int(number)).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
