"""Recordings → windows.parquet: exact windows worked out by hand, and an output that is whole or not there."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, SHARED, STEM, call, cut, needs_shared, raw_table, write_raw

from emg_gpt2.base.errors import EMGError
from emg_gpt2.raw.filter import apply_filter
from emg_gpt2.raw.putemg import read_recording
from emg_gpt2.raw.recording import Recording
from emg_gpt2.settings import Settings
from emg_gpt2.windows.cut import Layout, cut_windows
from emg_gpt2.windows.parts import checksum, code

OTHER = f"{STEM[:-3]}999"  # a later recording of the same day: sorts behind STEM
AS_IS = ["--filter", "none"]

# (label, ms) of the hand-made recording, with what 250 ms windows every 125 ms less 250 ms at both edges give:
PROGRAMME = [
    (-1, 300),  # 0     never a class
    (0, 1000),  # 300   550 … 1050 remain: windows at 550, 675, 800
    (1, 700),  #  1300  200 ms remain: no window, but repetition 0
    (0, 600),  #  2000  100 ms remain: no window, but repetition 1
    (1, 800),  #  2600  2850 … 3150: one window; at 2975 it would end at 3225
    (-1, 100),  # 3400  parts two repetitions
    (1, 750),  #  3500  3750 … 4000: one window that just fits
    (0, 875),  #  4250  4500 … 4875: windows at 4500 and 4625, which just fits
    (-1, 75),  #  5125
    (3, 749),  #  5200  one sample too short
]
WINDOWS = [  # start (ms), label, repetition
    *[(550, 0, 0), (675, 0, 0), (800, 0, 0)],
    (2850, 1, 1),
    (3750, 1, 2),
    *[(4500, 0, 2), (4625, 0, 2)],
]
START = 5.0  # s, on the recording's clock


def hand_made(rate: float = 1000.0) -> pd.DataFrame:
    """EMG_1 counts the samples up from −2000, EMG_2 down from 500."""
    labels = np.repeat(*np.array([(label, round(ms * rate / 1000)) for label, ms in PROGRAMME]).T)
    rows = np.arange(len(labels))
    return raw_table(np.column_stack([rows - 2000, 500 - rows]), labels, rate, START)


def metadata(path) -> dict:
    return json.loads(pq.read_schema(path).metadata[b"emg"])


def counts(path) -> np.ndarray:
    """(n, T, C) in counts."""
    stored, table = metadata(path), pd.read_parquet(path)
    return np.stack(table["emg"]).reshape(len(table), stored["window"], -1) * stored["scale"]


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return write_raw(hand_made(), tmp_path_factory.mktemp("raw") / f"{STEM}.hdf5")


@pytest.fixture(scope="module")
def output(raw):
    path = raw.parent / "windows.parquet"
    cut(raw, "--data-location", path, *AS_IS, "--data-note", "made by hand")
    return path


def test_windows_are_cut_where_they_should_be(output):
    table = pd.read_parquet(output)
    np.testing.assert_allclose(table["start"], [START + start / 1000 for start, _, _ in WINDOWS], atol=1e-9)
    assert table["TRAJ_GT"].tolist() == [label for _, label, _ in WINDOWS]
    assert table["repetition"].tolist() == [repetition for _, _, repetition in WINDOWS]


def test_windows_hold_their_own_samples(output):
    """Stored value × scale = count, in the order (time, channel)."""
    for window, (start, _, _) in zip(counts(output), WINDOWS, strict=True):
        rows = np.arange(start, start + 250)
        np.testing.assert_array_equal(window, np.column_stack([rows - 2000, 500 - rows]))


def test_columns_and_types(output):
    schema = pq.read_schema(output)
    assert schema.names == ["emg", "TRAJ_GT", "subject", "session", "trajectory", "recording", "repetition", "start"]
    assert pa.types.is_fixed_size_list(schema.field("emg").type)
    assert schema.field("emg").type.list_size == 250 * 2
    assert pa.types.is_integer(schema.field("emg").type.value_type)
    table = pd.read_parquet(output)
    assert [table[c].dtype for c in ("TRAJ_GT", "repetition", "start")] == [np.int8, np.int16, np.float64]
    identity = table[["subject", "session", "trajectory", "recording"]].drop_duplicates().values.tolist()
    assert identity == [["03", "2018-05-11", "sequential", STEM]]
    assert all(isinstance(value, str) for value in identity[0])


def test_metadata_says_all_that_a_reader_needs(raw, output):
    assert pq.read_metadata(output).metadata[b"emg"] == pq.read_schema(output).metadata[b"emg"]
    found = metadata(output)
    assert found.pop("sampling_rate") == pytest.approx(1000, rel=1e-9)
    assert found.pop("code") == code()
    assert found == {
        "version": 1,
        "window": 250,
        "stride": 125,
        "channels": ["EMG_1", "EMG_2"],
        "unit": "count",
        "scale": 0.25,
        "settings": {
            "FILTER": "none",
            "BAND_HZ": [20.0, 700.0],
            "SAMPLE_RATE": 1000.0,
            "WINDOW_MS": 250.0,
            "STRIDE_MS": 125.0,
            "TRIM_START_MS": 250.0,
            "TRIM_END_MS": 250.0,
            "LEGAL_VALUES": [],
        },
        "class_names": {"0": "idle", "1": "fist"},
        "note": "made by hand",
        "sources": [
            {
                "name": raw.name,
                "size": raw.stat().st_size,
                "sha256": hashlib.sha256(raw.read_bytes()).hexdigest(),
                "rows": sum(ms for _, ms in PROGRAMME),
                "sampling_rate": pytest.approx(1000, rel=1e-9),
                "unit": "count",
                "putemg": True,
                "findings": [],
                "windows": len(WINDOWS),
                "labels": {"0": 5, "1": 2},
                "windows_sha256": checksum([pq.read_table(output)]),
            }
        ],
    }


@pytest.mark.parametrize("suffix", [".csv", ".zip"])
def test_csv_gives_the_same_windows(suffix, output, tmp_path):
    path = write_raw(hand_made(), tmp_path / f"{STEM}{suffix}")
    cut(path, "--data-location", tmp_path / "windows.parquet", *AS_IS)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "windows.parquet"), pd.read_parquet(output))


def test_no_trim_cuts_up_to_the_change_of_label(raw, tmp_path):
    """100 ms windows side by side, no edges dropped: ⌊ms / 100⌋ per repetition, of one label each."""
    path = tmp_path / "windows.parquet"
    short = ["--window-ms", "100", "--stride-ms", "100", "--trim-start-ms", "0", "--trim-end-ms", "0"]
    cut(raw, "--data-location", path, *AS_IS, *short)
    expected, start = [], 0
    for label, ms in PROGRAMME:
        expected += [(start + 100 * i, label) for i in range(ms // 100) if label >= 0]
        start += ms
    table = pd.read_parquet(path)
    np.testing.assert_allclose(table["start"], [START + start / 1000 for start, _ in expected], atol=1e-9)
    assert table["TRAJ_GT"].tolist() == [label for _, label in expected]
    labels = hand_made()["TRAJ_GT"].to_numpy()
    for first, label in zip(counts(path)[:, 0, 0].astype(int) + 2000, table["TRAJ_GT"], strict=True):
        assert (labels[first : first + 100] == label).all()


def test_trims_are_apart(raw, tmp_path):
    """Of the 800 ms fist at 2600 ms: 100 ms off the start, 400 ms off the end leave 2700 … 3000."""
    path = tmp_path / "windows.parquet"
    cut(raw, "--data-location", path, *AS_IS, "--trim-start-ms", "100", "--trim-end-ms", "400", "--legal-values", "1")
    table = pd.read_parquet(path)
    second = table[table["repetition"] == 1]
    np.testing.assert_allclose(second["start"], [START + 2.7], atol=1e-9)


def test_legal_values_are_kept_alone(raw, tmp_path):
    path = tmp_path / "windows.parquet"
    cut(raw, "--data-location", path, *AS_IS, "--legal-values", "1,3")
    table = pd.read_parquet(path)
    assert table[["TRAJ_GT", "repetition"]].values.tolist() == [[1, 1], [1, 2]]
    assert metadata(path)["class_names"] == {"1": "fist"}
    assert metadata(path)["settings"]["LEGAL_VALUES"] == [1, 3]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("0=rest,1=closed,5=unused", {"0": "rest", "1": "closed"}),
        ("0=rest", {"0": "gesture 0", "1": "gesture 1"}),  # does not name 1, so no label is named
    ],
)
def test_class_names_count_when_they_name_every_label(given, expected, raw, tmp_path):
    path = tmp_path / "windows.parquet"
    cut(raw, "--data-location", path, *AS_IS, "--class-names", given)
    assert metadata(path)["class_names"] == expected


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, ""),
        ({"VIDEO_STAMP": lambda table: table.index}, "these recordings are not putEMG's"),  # as in ../shared/real
        ({"VIDEO_STAMP": lambda table: table.index - START}, "these recordings are not putEMG's"),
        ({"VIDEO_STAMP": 0.0}, "these recordings are not putEMG's"),
        ({"VIDEO_STAMP": None}, "these recordings are not putEMG's"),  # as in a plain CSV
        ({"TRAJ_GT": lambda table: table["TRAJ_GT"].replace(1, 4)}, "putEMG has no label 4"),
    ],
)
def test_names_of_putemg_are_for_its_files_and_labels(change, reason, tmp_path):
    table = hand_made().assign(**change)
    raw = write_raw(table.drop(columns=[name for name in change if change[name] is None]), tmp_path / f"{STEM}.csv")
    path = tmp_path / "windows.parquet"
    _, said = cut(raw, "--data-location", path, *AS_IS)
    warned = [line for line in said.splitlines() if line.startswith("WARNING")]
    advice = "name every label: --class-names '0=rest,1=fist,…'"
    assert warned == ([f"WARNING: gestures go by number, because {reason}; {advice}"] if reason else [])
    names = metadata(path)["class_names"]
    assert names == {label: f"gesture {label}" if reason else {"0": "idle", "1": "fist"}[label] for label in names}
    _, said = cut(raw, "--data-location", path, *AS_IS, "--class-names", "0=rest,1=closed,4=open")
    assert "WARNING" not in said
    assert set(metadata(path)["class_names"].values()) <= {"rest", "closed", "open"}


def test_without_its_video_a_putemg_file_is_known_by_its_shape(tmp_path):
    labels = np.repeat([0, 1], 300)
    emg = np.random.default_rng(0).integers(-20, 20, (len(labels), 24))
    table = raw_table(emg, labels, 5124.08).drop(columns="VIDEO_STAMP")
    raw = write_raw(table, tmp_path / f"{STEM}.csv")
    assert read_recording(raw).is_putemg
    assert not read_recording(write_raw(table.drop(columns="TRAJ_1"), raw)).is_putemg


@needs_shared
@pytest.mark.parametrize("folder", ["flexemg", "armband"])
def test_real_recordings_in_putemgs_layout_are_not_putemgs(folder):
    assert not read_recording(min((SHARED / "real" / folder).glob("*.hdf5"))).is_putemg


@pytest.mark.parametrize("rate", [2000.0, 1500.0])
def test_labels_follow_the_samples_to_the_new_rate(rate, tmp_path):
    """Every row a window, so that `TRAJ_GT` lists the label at each millisecond, and `start` the time."""
    raw, path = write_raw(hand_made(rate), tmp_path / f"{STEM}.hdf5"), tmp_path / "windows.parquet"
    one_by_one = ["--window-ms", "1", "--stride-ms", "1", "--trim-start-ms", "0", "--trim-end-ms", "0"]
    cut(raw, "--data-location", path, *AS_IS, *one_by_one)
    table, stored = pd.read_parquet(path), metadata(path)
    assert stored["sampling_rate"] == pytest.approx(1000, rel=1e-9)
    assert (stored["window"], stored["stride"]) == (1, 1)
    labels = np.repeat(*np.array(PROGRAMME).T)  # at 1000 Hz, whatever the recording's rate
    assert table["TRAJ_GT"].tolist() == labels[labels >= 0].tolist()
    np.testing.assert_allclose(table["start"], START + np.flatnonzero(labels >= 0) / 1000, atol=1e-9)


def test_resampled_windows_hold_the_signal_of_their_time(tmp_path):
    """A ramp over time keeps its values: 1 count per ms at 2000 Hz and at 1000 Hz (filter ripple below 1 %)."""
    table = hand_made(2000)
    ramp = np.arange(len(table)) / 2
    raw = write_raw(table.assign(EMG_1=np.floor(ramp), EMG_2=-np.floor(ramp)), tmp_path / f"{STEM}.hdf5")
    path = tmp_path / "windows.parquet"
    cut(raw, "--data-location", path, *AS_IS)
    for window, (start, _, _) in zip(counts(path), WINDOWS, strict=True):
        np.testing.assert_allclose(window[:, 0], np.arange(start, start + 250), atol=0.01 * start)
        np.testing.assert_allclose(window[:, 1], -window[:, 0], atol=0.5)


@pytest.mark.parametrize("sample_rate", ["1000", "2000"])
def test_clocks_that_differ_a_little_keep_labels_and_samples_together(sample_rate, tmp_path):
    """Two recordings of 60 s whose rates differ by 0.09 %, which is let through, resampled or as they are.

    EMG_1 is 100 × the label, so a window's mean tells its label; 0.09 % of 60 s would be 54 ms.
    """
    for name, rate in ((STEM, 1000.0), (OTHER, 1000.9)):
        labels = np.repeat(np.arange(120) % 2, 500)
        table = raw_table(np.column_stack([100 * labels, np.arange(len(labels)) % 7]), labels, rate)
        write_raw(table, tmp_path / f"{name}.hdf5")
    path = tmp_path / "windows.parquet"
    tight = ["--trim-start-ms", "20", "--trim-end-ms", "20", "--window-ms", "400", "--sample-rate", sample_rate]
    results, _ = cut(tmp_path, "--data-location", path, *AS_IS, *tight)
    assert [result.problem for result in results] == ["", ""]
    table, emg = pd.read_parquet(path), counts(path)[:, :, 0]
    assert table["recording"].nunique() == 2
    np.testing.assert_allclose(emg.mean(axis=1), 100 * table["TRAJ_GT"], atol=2)


def test_fractional_samples_are_stored_as_they_are(tmp_path):
    table = hand_made()
    raw = write_raw(table.assign(EMG_1=table["EMG_1"] / 1e4 + 0.123), tmp_path / f"{STEM}.hdf5")
    path = tmp_path / "windows.parquet"
    cut(raw, "--data-location", path, *AS_IS)
    assert pq.read_schema(path).field("emg").type.value_type == pa.float32()
    assert (metadata(path)["scale"], metadata(path)["unit"]) == (1.0, "as recorded")
    for window, (start, _, _) in zip(counts(path), WINDOWS, strict=True):
        expected = (np.arange(start, start + 250) - 2000) / 1e4 + 0.123
        np.testing.assert_array_equal(window[:, 0].astype(np.float32), expected.astype(np.float32))


def test_whole_numbers_beyond_any_converter_are_no_counts(tmp_path):
    """From 2²⁴ on every float32 is a whole number."""
    table = hand_made()
    raw = write_raw(table.assign(EMG_1=table["EMG_1"] * 2.0**16), tmp_path / f"{STEM}.hdf5")
    path = tmp_path / "windows.parquet"
    cut(raw, "--data-location", path, *AS_IS)
    assert metadata(path)["unit"] == "as recorded"
    for window, (start, _, _) in zip(counts(path), WINDOWS, strict=True):
        np.testing.assert_array_equal(window[:, 0], (np.arange(start, start + 250) - 2000) * 2.0**16)
    with pytest.raises(EMGError, match="nothing was written"):
        cut(write_raw(table.assign(EMG_1=table["EMG_1"] * 2.0**30), raw), "--data-location", path, *AS_IS)


@pytest.mark.parametrize("kind", ["putemg", "causal"])
def test_stored_windows_are_the_filtered_signal(kind, tiny_raw, tmp_path):
    """Rounding to a quarter count is all that the file adds."""
    path = tmp_path / "windows.parquet"
    recording = read_recording(tiny_raw / f"{STEM}.hdf5")
    cut(tiny_raw / f"{STEM}.hdf5", "--data-location", path, "--filter", kind, "--band-hz", "30,200")
    filtered = apply_filter(recording.emg, recording.time, kind, (30, 200))
    table, rate = pd.read_parquet(path), metadata(path)["sampling_rate"]
    assert rate == recording.sampling_rate  # 500.4 Hz is below SAMPLE_RATE
    first = np.rint((table["start"] - recording.time[0]) * rate).astype(int)
    expected = filtered[first.to_numpy()[:, None] + np.arange(metadata(path)["window"])]
    np.testing.assert_allclose(counts(path), expected, atol=0.125 + 1e-4)


def test_one_channel_at_200_hz(tmp_path):
    """Default filter and lengths: 250 ms are 50 samples, 125 ms are 25."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 0], 400)
    raw = write_raw(raw_table(rng.integers(-300, 300, (1200, 1)), labels, 200.0), tmp_path / f"{STEM}.hdf5")
    path = tmp_path / "windows.parquet"
    cut(raw, "--data-location", path)
    stored = metadata(path)
    assert (stored["window"], stored["stride"], stored["channels"]) == (50, 25, ["EMG_1"])
    assert stored["sampling_rate"] == pytest.approx(200, rel=1e-9)
    # 2 s less 2 × 0.25 s are 300 samples: ⌊(300 − 50) / 25⌋ + 1 = 11 windows
    assert pd.read_parquet(path).groupby(["TRAJ_GT", "repetition"]).size().to_dict() == {
        (0, 0): 11,
        (0, 1): 11,
        (1, 0): 11,
    }


def test_windows_shorter_than_a_sample_are_refused(raw, tmp_path):
    with pytest.raises(EMGError, match="nothing was written"):
        cut(raw, "--data-location", tmp_path / "windows.parquet", *AS_IS, "--stride-ms", "0.1")


@pytest.mark.parametrize("kind", ["putemg", "causal"])
def test_a_band_above_what_the_recording_holds_is_one_message(kind, raw, tmp_path):
    """600 Hz is above the 500 Hz that 1000 Hz sampling can hold."""
    with pytest.raises(EMGError):
        cut(raw, "--data-location", tmp_path / "windows.parquet", "--filter", kind, "--band-hz", "600,700")


# ---- several recordings -----------------------------------------------------------------------------------------


@pytest.fixture
def two(tmp_path):
    """A folder with the hand-made recording as STEM and as OTHER."""
    folder = tmp_path / "two"
    folder.mkdir()
    write_raw(hand_made(), folder / f"{STEM}.hdf5")
    shutil.copy(folder / f"{STEM}.hdf5", folder / f"{OTHER}.hdf5")
    return folder


def test_every_recording_has_its_own_row_group_and_repetitions(two, tmp_path):
    path = tmp_path / "windows.parquet"
    cut(two, "--data-location", path, *AS_IS)
    with pq.ParquetFile(path) as file:
        groups = [file.read_row_group(i).column("recording").to_pylist() for i in range(file.num_row_groups)]
    assert groups == [[STEM] * len(WINDOWS), [OTHER] * len(WINDOWS)]
    table = pd.read_parquet(path)
    assert table["repetition"].tolist() == 2 * [repetition for _, _, repetition in WINDOWS]
    assert [source["name"] for source in metadata(path)["sources"]] == [f"{STEM}.hdf5", f"{OTHER}.hdf5"]


def test_running_twice_gives_the_same_bytes(two, tmp_path):
    for name in ("first", "second"):
        cut(two, "--data-location", tmp_path / name)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


def test_the_closing_table_counts_every_recording(two, tmp_path):
    """Idle 5 and fist 2 of each recording, 5.949 s long; without --verbose one row for their day."""
    command = ["Preprocessing.py", two, "--data-location", tmp_path / "windows.parquet", *AS_IS]
    done, verbose = call(*command), call(*command, "--verbose")
    assert (done.returncode, done.stderr) == (verbose.returncode, verbose.stderr) == (0, "")
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["person", "day", "recordings", "seconds", "windows", "per", "gesture", "bad", "channels"] in lines
    assert ["03", "2018-05-11", "2", "11.9", "14", "4", "to", "10"] in lines
    assert "windows per gesture: 0 idle: 10, 1 fist: 4" in done.stdout.splitlines()
    assert STEM not in done.stdout
    lines = [line.split() for line in verbose.stdout.splitlines()]
    assert ["recording", "seconds", "windows", "0", "1", "bad", "channels"] in lines
    assert [STEM, "5.9", "7", "5", "2"] in lines
    assert [OTHER, "5.9", "7", "5", "2"] in lines
    assert ["all", "11.9", "14", "10", "4"] in lines


def test_the_last_line_names_the_output_as_it_is(raw, tmp_path):
    """Whole, in one line, however long, and with its brackets."""
    path = tmp_path / ("a long name " * 10 + "[new].parquet")
    done = call("Preprocessing.py", raw, "--data-location", path, *AS_IS)
    assert done.stdout.splitlines()[-1] == f"{path}: 7 windows of 1 recordings, 0 skipped"


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda: hand_made().drop(columns="EMG_2"), "1 channels, where"),
        (lambda: hand_made(200), "200.00 Hz, where"),
        (lambda: hand_made().assign(EMG_2=np.arange(5949) / 3), "the samples are not whole numbers"),
    ],
    ids=["channels", "rate", "unit"],
)
def test_files_that_disagree_are_refused(change, found, two, tmp_path):
    path = tmp_path / "windows.parquet"
    write_raw(change(), two / f"{OTHER}.hdf5")
    results, said = cut(two, "--data-location", path, *AS_IS)
    assert results[0].problem == ""
    assert results[1].problem.startswith(f"{two / OTHER}.hdf5: ")
    assert found in results[1].problem
    assert STEM in results[1].problem
    assert results[1].problem in said
    assert pd.read_parquet(path)["recording"].unique().tolist() == [STEM]


def test_a_lower_sample_rate_reconciles_two_rates(two, tmp_path):
    write_raw(hand_made(2000), two / f"{OTHER}.hdf5")
    results, _ = cut(two, "--data-location", tmp_path / "windows.parquet", *AS_IS, "--sample-rate", "500")
    assert [result.problem for result in results] == ["", ""]


def test_a_skipped_recording_does_not_decide_what_the_others_must_be(two, tmp_path):
    """The first file is too short for a window and has one channel; the two-channel one behind it is good."""
    write_raw(hand_made().drop(columns="EMG_2").iloc[:400], two / f"{STEM}.hdf5")
    results, _ = cut(two, "--data-location", tmp_path / "windows.parquet", *AS_IS)
    assert "no repetition is long enough" in results[0].problem
    assert results[1].problem == ""


def test_one_bad_file_is_skipped_and_the_status_says_so(two, tmp_path):
    path = tmp_path / "windows.parquet"
    (two / f"{STEM}.hdf5").write_bytes(b"nonsense")
    done = call("Preprocessing.py", two, "--data-location", path, *AS_IS)
    assert (done.returncode, done.stderr) == (3, "")
    assert f"\nskipped: {two / STEM}.hdf5: " in done.stdout
    assert " ".join(done.stdout.split()).endswith("7 windows of 1 recordings, 1 skipped")
    assert [source["name"] for source in metadata(path)["sources"]] == [f"{OTHER}.hdf5"]


# ---- the output is whole or not there ---------------------------------------------------------------------------


def assert_untouched(path, old: bytes = b"the old output"):
    assert path.read_bytes() == old
    assert [p.name for p in path.parent.iterdir()] == [path.name], "no temporary file is left"


@pytest.fixture
def old_output(tmp_path):
    path = tmp_path / "out" / "windows.parquet"
    path.parent.mkdir()
    path.write_bytes(b"the old output")
    return path


def test_only_bad_files_leave_the_old_output(two, old_output):
    for path in two.iterdir():
        path.write_bytes(b"nonsense")
    done = call("Preprocessing.py", two, "--data-location", old_output)
    assert done.returncode == 1
    assert "none of the 2 files gave a window" in done.stderr
    assert done.stderr.count("\n") == 1
    assert all(path.name in done.stdout for path in two.iterdir())
    assert_untouched(old_output)


def test_the_old_output_is_replaced(two, old_output, tmp_path):
    """By renaming: whoever has the old file open keeps it whole, as its second name here does."""
    os.link(old_output, tmp_path / "kept")
    cut(two, "--data-location", old_output, *AS_IS)
    assert len(pd.read_parquet(old_output)) == 2 * len(WINDOWS)
    assert (tmp_path / "kept").read_bytes() == b"the old output"
    assert [p.name for p in old_output.parent.iterdir()] == [old_output.name]


@pytest.mark.skipif(sys.platform == "win32", reason="Unix alone limits the size of files")
def test_a_disk_that_fills_up_leaves_the_old_output(tiny_raw, old_output):
    """A limit of 20 kB per file stands in for the full disk; the windows need about 300 kB."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        done = call("Preprocessing.py", tiny_raw / f"{STEM}.hdf5", "--data-location", old_output)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert done.returncode == 1
    assert f"{old_output}: the output cannot be written" in done.stderr
    assert done.stderr.count("\n") == 1
    assert_untouched(old_output)


def test_ctrl_c_leaves_the_old_output(tiny_raw, old_output, tmp_path):
    """Interrupted after the first of 200 recordings, which together would take a minute."""
    many = tmp_path / "many"
    many.mkdir()
    for number in range(200):
        os.link(tiny_raw / f"{STEM}.hdf5", many / f"{STEM[:-3]}{number:03d}.hdf5")
    command = [sys.executable, "Preprocessing.py", many, "--data-location", old_output]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    patience = time.monotonic() + 60
    while not (begun := list(old_output.parent.glob(".*/*.hdf5.*.parquet"))) and time.monotonic() < patience:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    said, complained = process.communicate(timeout=60)
    assert begun, "it was interrupted with some windows written"
    assert (process.returncode, said) == (130, "")
    assert complained.startswith("Preprocessing.py: interrupted")
    assert complained.count("\n") == 1
    assert old_output.read_bytes() == b"the old output"


def test_an_empty_folder(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(EMGError, match=r"the folder holds no recording \(.hdf5, .csv, .zip\)"):
        cut(tmp_path, "--data-location", tmp_path / "windows.parquet")


def test_a_path_that_is_not_there(tmp_path):
    done = call("Preprocessing.py", tmp_path / "nowhere", "--data-location", tmp_path / "windows.parquet")
    assert (done.returncode, done.stdout) == (1, "")
    expected = f"{tmp_path / 'nowhere'}: there is no such file or folder; check the path"
    assert done.stderr == f"Preprocessing.py: {expected}\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "place", ["missing/windows.parquet", ".", "/proc/windows.parquet", "/dev/null/windows.parquet"]
)
def test_an_output_that_cannot_be_written(place, raw, tmp_path):
    """A folder that is not there, a folder as the output, folders that take no file even from root."""
    with pytest.raises(EMGError) as error:
        cut(raw, "--data-location", tmp_path / place, *AS_IS)
    assert str(error.value).startswith(f"{tmp_path / place}: the output ")
    assert "\n" not in str(error.value)


def test_a_recording_is_not_overwritten_by_the_output(two):
    path = two / f"{STEM}.hdf5"
    before = path.read_bytes()
    with pytest.raises(EMGError):
        cut(path, "--data-location", path, *AS_IS)
    assert path.read_bytes() == before


# ---- found by tests/test_properties.py ------------------------------------------------------------------------


def test_a_label_too_short_for_a_resampled_sample_still_parts_two_repetitions(tmp_path):
    """At 200 Hz sample 10 is raw sample 50 and sample 11 raw sample 55: the discarded raw sample 52 is no sample."""
    labels = np.repeat([1, -1, 1], [52, 1, 47])
    raw = write_raw(raw_table(np.arange(100)[:, None], labels), tmp_path / f"{STEM}.csv")
    path, trims = tmp_path / "windows.parquet", ["--trim-start-ms", "0", "--trim-end-ms", "0"]
    cut(raw, "--data-location", path, *AS_IS, *trims, "--sample-rate", "200", "--window-ms", "25", "--stride-ms", "25")
    table = pd.read_parquet(path)
    np.testing.assert_allclose(table["start"] - START, [0, 0.025, 0.055], atol=1e-9)  # samples 0, 5; 11
    assert table["repetition"].tolist() == [0, 0, 1]


@pytest.mark.parametrize("times", [2**15 - 1, 2**15])
def test_labels_that_flicker_more_often_than_can_be_numbered_are_refused(times):
    """Repetitions are int16, numbered from 0; the last one alone is long enough for a window."""
    labels = np.r_[np.tile(np.array([1, 2], np.int8), times), np.full(600, 1, np.int8)]
    time, emg = np.arange(len(labels)) / 1000, np.zeros((len(labels), 1), np.float32)
    recording = Recording(STEM, "03", "2018-05-11", "sequential", ("EMG_1",), time, emg, labels)
    layout = Layout(STEM, recording.channels, 1000.0, 50, 50, "count")
    if times == 2**15 - 1:
        assert cut_windows(recording, 1000.0, len(labels), layout, Settings()).repetition.tolist() == [times, times]
    else:
        with pytest.raises(EMGError, match="more than 32767 times"):
            cut_windows(recording, 1000.0, len(labels), layout, Settings())
