"""Each way a download can be wrong: one sentence with the file's name, what was found and what to do."""

import re
import shutil
import zipfile

import h5py
import numpy as np
import pandas as pd
import pytest
from conftest import STEM, call, cut, raw_table, write_raw

from emg_gpt2.base.errors import EMGError
from emg_gpt2.raw.putemg import read_recording

OTHER = f"{STEM[:-3]}999"  # a second recording of the same day
ADVICE = re.compile(r"download|leave|repair|give|lower|only putEMG's own layout")


@pytest.fixture(scope="module")
def good(tiny_raw) -> pd.DataFrame:
    """12,000 rows (24 s) of a simulated recording at 500 Hz."""
    return pd.read_hdf(tiny_raw / f"{STEM}.hdf5").iloc[:12_000]


def changed(column: str, row: int, value: float):
    """One value replaced, counted in rows from 0."""

    def damage(table):
        table = table.copy()
        table.iloc[row, table.columns.get_loc(column)] = value
        return table

    return damage


def clock_change(row: int, seconds: float):
    def damage(table):
        index = table.index.to_numpy().copy()
        index[row:] += seconds
        return table.set_axis(index)

    return damage


def clock_value(row: int, value: float):
    def damage(table):
        index = table.index.to_numpy().copy()
        index[row] = value
        return table.set_axis(index)

    return damage


DAMAGED_TABLES = {  # what happened to the table → what the message says; at 500.4 Hz a step is 2 ms
    "one row": (lambda t: t.iloc[:1], "empty (1 rows)"),
    "missing channel": (lambda t: t.drop(columns="EMG_2"), "channels are missing (EMG_2)"),
    "no channel": (lambda t: t.drop(columns=["EMG_1", "EMG_2", "EMG_3"]), "no columns EMG_1"),
    "no labels": (lambda t: t.drop(columns="TRAJ_GT"), "TRAJ_GT is missing"),
    "no subject": (lambda t: t.drop(columns="subject"), "subject is missing"),
    "NaN sample": (changed("EMG_2", 100, np.nan), "1 samples are NaN or infinite, the first in EMG_2 at row 100"),
    "infinite sample": (changed("EMG_3", 7, -np.inf), "1 samples are NaN or infinite, the first in EMG_3 at row 7"),
    "lost samples": (clock_change(1500, 0.25), "the clock jumps by 0.2520 s at row 1500"),
    "one lost sample": (lambda t: t.drop(index=t.index[300]), "the clock jumps by 0.0040 s at row 300"),
    "clock backwards": (clock_change(1600, -1.0), "the clock runs backwards at row 1600"),
    "clock stands": (clock_change(50, -1 / 500.3985), "the clock runs backwards at row 50"),
    "NaN clock": (clock_value(9, np.nan), "the clock holds NaN or infinite values"),
    "fractional label": (changed("TRAJ_GT", 40, 1.5), "the label is 1.5 at row 40"),
    "label below -1": (changed("TRAJ_GT", 41, -2), "the label is -2 at row 41"),
    "label above 127": (changed("TRAJ_GT", 42, 128), "the label is 128 at row 42"),
    "NaN label": (changed("TRAJ_GT", 43, np.nan), "the label is nan at row 43"),
    "another subject": (lambda t: t.assign(subject=4.0), "the name says subject 03 but the rows say 4"),
    "another subject in one row": (changed("subject", 8, 5.0), "the name says subject 03 but the rows say 5"),
    "force columns": (lambda t: t.assign(FORCE_1=0.0), "putEMG-Force"),
    "force trajectories": (lambda t: t.assign(TRAJ_2=0.0), "putEMG-Force"),
}
NAMES = {
    "recording.hdf5": "the name is not TYPE-SUBJECT-TRAJECTORY-DATE-TIME",
    "emg_gestures-3-sequential-2018-05-11-11-10-52-120.hdf5": "the name is not",
    "emg_gestures-03-sequential-2018-05-11-11-10-52-120 (1).hdf5": "the name is not",
    "emg_force-03-sequential-2018-05-11-11-10-52-120.hdf5": "a recording of emg_force has no gesture labels",
    "mmg_gestures-03-sequential-2018-05-11-11-10-52-120.zip": "a recording of mmg_gestures has no gesture labels",
}


def message(path) -> str:
    """What reading `path` says: the file's name, and advice, in one line."""
    with pytest.raises(EMGError) as error:
        read_recording(path)
    text = str(error.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    assert ADVICE.search(text.removeprefix(str(path))), text
    return text.removeprefix(f"{path}: ")


@pytest.mark.parametrize("damage", DAMAGED_TABLES)
def test_a_damaged_table(damage, good, tmp_path):
    """As CSV; as HDF5 below, through Preprocessing.py."""
    change, found = DAMAGED_TABLES[damage]
    assert found in message(write_raw(change(good.iloc[:2000]), tmp_path / f"{STEM}.csv"))


def test_the_undamaged_table_is_read(good, tmp_path):
    """So the messages above are due to the damage."""
    assert len(read_recording(write_raw(good, tmp_path / f"{STEM}.hdf5")).time) == len(good)


def test_dead_electrodes_are_read_but_make_no_windows(good, tmp_path):
    """python -m emg_gpt2 inspect shows them."""
    path = write_raw(good.assign(EMG_2=5.0, EMG_3=0.0), tmp_path / f"{STEM}.hdf5")
    assert np.ptp(read_recording(path).emg, axis=0)[1:].tolist() == [0, 0]
    write_raw(good, tmp_path / f"{OTHER}.hdf5")
    results, _ = cut(tmp_path, "--data-location", tmp_path / "windows.parquet")
    assert [result.problem for result in results if result.problem] == [
        f"{path}: EMG_2, EMG_3 never changes, so the electrode was off; leave the recording out"
    ]


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_name(name, tiny_raw, tmp_path):
    path = tmp_path / name
    shutil.copy(tiny_raw / f"{STEM}{path.suffix}", path)
    assert NAMES[name] in message(path)


def test_the_subject_of_another_file_name(tiny_raw, tmp_path):
    path = tmp_path / f"{STEM.replace('-03-', '-04-')}.hdf5"
    shutil.copy(tiny_raw / f"{STEM}.hdf5", path)
    assert "the name says subject 04 but the rows say 3" in message(path)


# ---- broken containers ------------------------------------------------------------------------------------------


def not_hdf5(path, _):
    path.write_text("<html>404 Not Found</html>")


def empty_file(path, _):
    path.touch()


def truncated(path, whole):
    path.write_bytes(whole.read_bytes()[:-20_000])


def only_the_start(path, whole):
    path.write_bytes(whole.read_bytes()[:3000])


def scrambled_rows(path, whole):
    """The compressed rows are overwritten in the middle of the file; the headers are whole."""
    content = bytearray(whole.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 5000] = b"\x55" * 5000
    path.write_bytes(content)


def other_key(path, _):
    raw_table(np.arange(6.0).reshape(3, 2), np.zeros(3)).to_hdf(path, key="recording", format="table")


def fixed_format(path, _):
    raw_table(np.arange(6.0).reshape(3, 2), np.zeros(3)).drop(columns=["type", "trajectory"]).to_hdf(path, key="data")


def plain_matrix(path, _):
    with h5py.File(path, "w") as file:
        file["data/table"] = np.arange(12.0).reshape(6, 2)


def no_index(path, whole):
    shutil.copy(whole, path)
    with h5py.File(path, "r+") as file:
        table = file["data/table"]
        rows, attributes = table[:], dict(table.attrs)
        del file["data/table"]
        fields = [name for name in rows.dtype.names if name != "index"]
        file["data/table"] = np.ascontiguousarray(rows[fields]).astype([(f, rows.dtype[f]) for f in fields])
        file["data/table"].attrs.update(attributes)


def no_column_names(path, whole):
    shutil.copy(whole, path)
    with h5py.File(path, "r+") as file:
        for name in [name for name in file["data/table"].attrs if name.endswith("_kind")]:
            del file["data/table"].attrs[name]


def no_rows(path, whole):
    shutil.copy(whole, path)
    with h5py.File(path, "r+") as file:
        file["data/table"].resize((0,))


BROKEN_HDF5 = {
    no_rows: "empty (0 rows)",
    not_hdf5: "cannot be read",
    empty_file: "cannot be read",
    truncated: "truncated",
    only_the_start: "truncated",
    scrambled_rows: "damaged",
    other_key: "no pandas table /data/table",
    fixed_format: "no pandas table /data/table",
    plain_matrix: "no pandas table /data/table",
    no_index: "no pandas table /data/table",
    no_column_names: "no columns EMG_1",
}


@pytest.mark.parametrize("make", BROKEN_HDF5, ids=lambda make: make.__name__)
def test_a_broken_hdf5_file(make, tiny_raw, tmp_path):
    path = tmp_path / f"{STEM}.hdf5"
    make(path, tiny_raw / f"{STEM}.hdf5")
    assert BROKEN_HDF5[make] in message(path)


def zipped(path, members: dict[str, str], kind: int = zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, text in members.items():
            archive.writestr(name, text)


@pytest.mark.parametrize(("members", "count"), [({}, 0), ({"readme.txt": "x"}, 0), ({"a.csv": "1", "b.csv": "2"}, 2)])
def test_a_zip_with_no_csv_or_two(members, count, tmp_path):
    path = tmp_path / f"{STEM}.zip"
    zipped(path, members)
    assert f"the zip holds {count} CSV files instead of one" in message(path)


@pytest.mark.parametrize("compression", ["DEFLATED", "BZIP2", "LZMA"])
def test_a_zip_with_scrambled_content(compression, good, tmp_path):
    path = tmp_path / f"{STEM}.zip"
    zipped(path, {f"{STEM}.csv": good.iloc[:2000].to_csv()}, getattr(zipfile, f"ZIP_{compression}"))
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 1000] = b"\x55" * 1000
    path.write_bytes(content)
    assert re.search("damaged|cannot be read", message(path))


@pytest.mark.parametrize("make", [not_hdf5, empty_file, truncated], ids=lambda make: make.__name__)
def test_a_broken_zip(make, tiny_raw, tmp_path):
    path = tmp_path / f"{STEM}.zip"
    make(path, tiny_raw / f"{STEM}.zip")
    assert re.search("damaged|cannot be read", message(path))


def test_a_csv_with_text_among_the_numbers(good, tmp_path):
    path = write_raw(good.iloc[:100], tmp_path / f"{STEM}.csv")
    lines = path.read_text().splitlines()
    fields = lines[51].split(",")
    lines[51] = ",".join([fields[0], "overflow", *fields[2:]])
    path.write_text("\n".join(lines))
    assert "overflow" in message(path)


def test_an_empty_csv(tmp_path):
    path = tmp_path / f"{STEM}.csv"
    path.touch()
    message(path)


def test_a_csv_with_a_header_alone(good, tmp_path):
    assert "empty (0 rows)" in message(write_raw(good.iloc[:0], tmp_path / f"{STEM}.csv"))


def test_a_csv_cut_in_the_middle_of_a_line(good, tmp_path):
    """The last row lacks its label."""
    path = write_raw(good.iloc[:100], tmp_path / f"{STEM}.csv")
    path.write_text(path.read_text().rstrip("\n").rpartition(",")[0])
    assert "the label is nan at row 99" in message(path)


def test_a_csv_that_is_no_text(tmp_path):
    path = tmp_path / f"{STEM}.csv"
    path.write_bytes(bytes(range(256)) * 20)
    message(path)


# ---- found while cutting ----------------------------------------------------------------------------------------


def test_a_recording_too_short_for_a_window(good, tmp_path):
    short, longer = write_raw(good.iloc[:80], tmp_path / f"{STEM}.hdf5"), tmp_path / f"{OTHER}.hdf5"
    write_raw(good, longer)
    results, said = cut(tmp_path, "--data-location", tmp_path / "windows.parquet")
    assert results[0].problem.startswith(f"{short}: no repetition is long enough for a window; lower WINDOW_MS")
    assert results[0].problem in said
    assert results[1].problem == ""


def test_the_same_recording_twice(tiny_raw, tmp_path):
    """hdf5 comes before zip."""
    results, said = cut(tiny_raw, "--data-location", tmp_path / "windows.parquet")
    assert [result.problem for result in results] == [
        "",
        f"{tiny_raw / STEM}.zip: the same recording was read from another file already; leave one out",
    ]
    assert results[1].problem in said


def test_a_good_zip_stands_in_for_a_broken_hdf5(tiny_raw, tmp_path):
    shutil.copy(tiny_raw / f"{STEM}.zip", tmp_path)
    (tmp_path / f"{STEM}.hdf5").write_bytes(b"broken")
    results, _ = cut(tmp_path, "--data-location", tmp_path / "windows.parquet")
    assert [bool(result.problem) for result in results] == [True, False]


def test_the_command_line_reports_every_bad_file_in_one_line(good, tmp_path):
    """All damaged tables, and broken containers, beside one good recording."""
    raw = tmp_path / "raw"
    raw.mkdir()
    write_raw(good, raw / f"{OTHER}.hdf5")
    bad = {}
    for number, (damage, (change, found)) in enumerate(DAMAGED_TABLES.items()):
        name = f"{STEM[:-3]}{number:03d}.hdf5"
        write_raw(change(good.iloc[:2000]), raw / name)
        bad[name] = (damage, found)
    for number, (make, found) in enumerate(BROKEN_HDF5.items(), start=500):
        name = f"{STEM[:-3]}{number}.hdf5"
        make(raw / name, raw / f"{OTHER}.hdf5")
        bad[name] = (make.__name__, found)

    done = call("Preprocessing.py", raw, "--data-location", tmp_path / "windows.parquet")
    assert (done.returncode, done.stderr) == (3, "")
    for name, (damage, found) in bad.items():
        lines = [line for line in done.stdout.splitlines() if name in line]
        assert len(lines) == 1, (damage, lines)  # below the closing table
        assert all(found in line for line in lines), (damage, lines)
    assert " ".join(done.stdout.split()).endswith(f"windows of 1 recordings, {len(bad)} skipped")
