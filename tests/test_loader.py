"""Windows file → parts → statistics and batches."""

import json
import shutil
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import run

from EMG_DATA_LOADER import (
    PARTS,
    WORDS,
    Split,
    batches,
    class_weights,
    cut_rows,
    draw_rows,
    reference_groups,
    rows_to_measure,
    split_windows,
)
from emg_gpt2.base.errors import EMGError
from emg_gpt2.settings import Settings
from emg_gpt2.training.task import log_data
from emg_gpt2.windows.feed import Feed
from emg_gpt2.windows.reading import WindowSet, load_windows

SPLITS = ["trajectory", "repetition", "session", "subject", "random"]


@pytest.fixture(scope="session")
def windows(windows_file) -> WindowSet:
    return load_windows(Settings(DATA_LOCATION=windows_file))


@pytest.fixture(scope="session")
def repeats(windows) -> WindowSet:
    """Without `sequential`, where the simulated person missed one of the two repetitions of a gesture."""
    return subset(windows, windows.table["trajectory"] != "sequential")


def subset(windows: WindowSet, keep) -> WindowSet:
    keep = np.asarray(keep)
    return WindowSet(windows.emg[keep], windows.table[keep].reset_index(drop=True), windows.metadata)


def made_up(subjects=1, days=1, recordings=1, labels=2, repetitions=2, each=6) -> WindowSet:
    """Windows of 4 samples, a stride of 2 and two channels at 1 kHz; `each` windows per repetition.

    A recording runs through its repetitions one after the other, with 4 samples between them.
    """
    rows = []
    for s, d, r in product(range(subjects), range(days), range(recordings)):
        name, clock = f"rec-{s}-{d}-{r}", 0.3
        for repetition, label, _ in product(range(repetitions), range(labels), range(each)):
            rows.append((label, f"0{s}", f"2020-01-0{d + 1}", "repeats_long", name, repetition, clock))
            clock += 0.002 if _ < each - 1 else 0.008
    columns = ["TRAJ_GT", "subject", "session", "trajectory", "recording", "repetition", "start"]
    emg = np.random.default_rng(1).integers(-400, 400, (len(rows), 4, 2), dtype=np.int16)
    names = {str(label): f"gesture {label}" for label in range(labels)}
    metadata = {"window": 4, "sampling_rate": 1000.0, "scale": 0.25, "channels": ["a", "b"], "class_names": names}
    return WindowSet(emg, pd.DataFrame(rows, columns=columns), metadata)


def parts_per_sample(windows: WindowSet, split: Split) -> int:
    """The largest number of parts that any raw sample is in, by marking every sample of every window."""
    rate, length = windows.metadata["sampling_rate"], windows.metadata["window"]
    first = np.rint(windows.table["start"] * rate).to_numpy(int)
    most = 0
    for rows in windows.table.groupby("recording").indices.values():
        used = np.zeros((len(PARTS), first[rows].max() + length), bool)
        for index, name in enumerate(PARTS):
            for row in np.intersect1d(rows, getattr(split, name)):
                used[index, first[row] : first[row] + length] = True
        most = max(most, int(used.sum(0).max()))
    return most


def groups(windows: WindowSet, rows, *columns: str) -> set[tuple]:
    return set(windows.table.iloc[rows][list(columns)].itertuples(index=False, name=None))


def rewrite(source: Path, path: Path, change) -> Path:
    """A copy of the file in which `change(metadata)` has altered the metadata."""
    table = pq.read_table(source)
    metadata = json.loads(table.schema.metadata[b"emg"])
    change(metadata)
    pq.write_table(table.replace_schema_metadata({b"emg": json.dumps(metadata).encode()}), path)
    return path


# ---- reading --------------------------------------------------------------------------------------------------


def test_reads_what_pandas_reads(windows, windows_file):
    frame = pd.read_parquet(windows_file)
    pd.testing.assert_frame_equal(windows.table, frame.drop(columns="emg"))
    stored = np.stack(frame["emg"]).reshape(len(frame), 250, 8)
    assert np.array_equal(windows.emg, stored)
    emg, target, _ = next(batches(windows, np.arange(len(frame)), len(frame)))
    assert np.array_equal(emg.numpy(), stored * np.float32(0.25))
    codes = [0, 1, 2, 3, 6, 7, 8, 9]
    assert windows.classes == codes
    assert windows.class_names[4] == "pinch index"
    assert [codes[index] for index in target] == frame["TRAJ_GT"].tolist()


def test_a_memory_mapped_file_gives_the_same_windows(windows, windows_file):
    mapped = load_windows(Settings(DATA_LOCATION=windows_file, MEMORY_GB=0))
    assert isinstance(mapped.emg, np.memmap)
    assert not isinstance(windows.emg, np.memmap)
    assert np.array_equal(mapped.emg, windows.emg)
    rows = np.array([5, 3, 6000])
    for one, other in zip(batches(mapped, rows, 2), batches(windows, rows, 2), strict=True):
        assert torch.equal(one[0], other[0])


@pytest.mark.parametrize("reordered", [False, True], ids=["columns as written", "columns in another order"])
def test_values_beyond_16_bits_are_kept(small_file, tmp_path, reordered):
    table = pq.read_table(small_file).slice(0, 3)
    values = np.full(3 * 2000, 40_000, np.int32)
    values[7] = -100_000
    emg = pa.FixedSizeListArray.from_arrays(pa.array(values), 2000)
    table = table.set_column(0, table.schema.field("emg"), emg)
    if reordered:
        table = table.select([*table.column_names[1:], "emg"])
    pq.write_table(table, tmp_path / "strong.parquet")
    windows = load_windows(Settings(DATA_LOCATION=tmp_path / "strong.parquet"))
    assert np.array_equal(windows.emg.reshape(-1), values)


def no_metadata(source, path):
    pq.write_table(pq.read_table(source).replace_schema_metadata(None), path)


def other_parquet(source, path):
    pd.DataFrame({"a": [1, 2]}).to_parquet(path)


def other_version(source, path):
    rewrite(source, path, lambda metadata: metadata.update(version=2))


def text(source, path):
    path.write_text("subject,emg\n03,1\n")


def nothing(source, path):
    pass


def truncated(source, path):
    path.write_bytes(source.read_bytes()[:-2000])


def no_rows(source, path):
    pq.write_table(pq.read_table(source).slice(0, 0), path)


WRONG = {
    no_metadata: "no windows of sEMG",
    other_parquet: "no windows of sEMG",
    other_version: "version 2 .* version 1",
    text: "cannot be read",
    nothing: "no such file",
    truncated: "cannot be read",
    no_rows: "no windows",
}


@pytest.mark.parametrize(("make", "words"), WRONG.items(), ids=[make.__name__ for make in WRONG])
def test_a_wrong_file_is_named_with_what_to_do(small_file, tmp_path, make, words):
    path = tmp_path / "wrong.parquet"
    make(small_file, path)
    with pytest.raises(EMGError, match=words) as caught:
        load_windows(Settings(DATA_LOCATION=path))
    assert str(path) in str(caught.value)
    assert "Preprocessing.py" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_damaged_byte_is_noticed(windows_file, tmp_path):
    """One byte of the samples is turned over, in each of twelve places; the footer is left alone."""
    whole, path, reasons = windows_file.read_bytes(), tmp_path / "damaged.parquet", []
    for place in np.linspace(0.05, 0.9, 12):
        content = bytearray(whole)
        content[int(place * len(whole))] ^= 0xFF
        path.write_bytes(content)
        reasons.append(reason_against(path))
    assert all("the file cannot be read" in reason for reason in reasons), reasons


def reason_against(path: Path) -> str:
    """Why the file is refused; empty when it is read."""
    try:
        load_windows(Settings(DATA_LOCATION=path))
    except EMGError as error:
        return str(error)
    return ""


def test_a_folder_is_no_windows_file(tmp_path):
    with pytest.raises(EMGError, match=str(tmp_path)):
        load_windows(Settings(DATA_LOCATION=tmp_path))


# ---- splitting ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPLITS)
def test_no_two_parts_share_a_raw_sample(windows, repeats, name):
    windows = repeats if name == "repetition" else windows
    split = split_windows(windows, Settings(SPLIT=name))
    rows = np.concatenate([split.train, split.validation, split.test])
    assert len(np.unique(rows)) == len(rows)
    assert min(map(len, (split.train, split.validation, split.test))) > 0
    assert parts_per_sample(windows, split) == 1
    if name != "random":  # which drops the windows that would share a sample
        assert len(rows) == len(windows.table)


def test_the_proof_of_shared_samples_can_fail():
    """Two neighbours of 4 samples, 2 apart, in different parts share 2 samples; 4 apart they share none."""
    windows, empty = made_up(), np.array([], int)
    assert parts_per_sample(windows, Split(np.array([0]), empty, np.array([1]), "", "")) == 2
    assert parts_per_sample(windows, Split(np.array([0]), empty, np.array([2]), "", "")) == 1


def test_overlaps_across_several_strides_are_dropped_from_a_random_split():
    """A stride of 1 in windows of 4 samples: a window overlaps three neighbours on either side."""
    windows = made_up(repetitions=30, each=30)
    table = windows.table.assign(start=windows.table["start"].min() + np.arange(len(windows.table)) * 0.001)
    dense = WindowSet(windows.emg, table, windows.metadata)
    split = split_windows(dense, Settings(SPLIT="random", TEST_SHARE=0.05, VALIDATION_SHARE=0.05))
    assert parts_per_sample(dense, split) == 1
    test, train = set(split.test), np.array(sorted(split.train))
    assert len(test) == 90  # 5 % of 2 · 30 · 30
    assert not any(test & set(range(row - 3, row + 4)) for row in train)


def test_trajectory_holds_out_whole_recordings_of_every_person_and_day(windows):
    split = split_windows(windows, Settings(SPLIT="trajectory"))
    test, rest = (
        groups(windows, rows, "subject", "session", "recording")
        for rows in (split.test, np.concatenate([split.train, split.validation]))
    )
    assert not test & rest
    assert sorted(key[:2] for key in test) == sorted(groups(windows, slice(None), "subject", "session"))


def test_session_holds_out_the_last_day_of_every_person(windows):
    split = split_windows(windows, Settings(SPLIT="session"))
    assert groups(windows, split.test, "subject", "session") == {("03", "2018-06-14"), ("04", "2018-04-20")}
    assert groups(windows, split.train, "subject", "session") == {("03", "2018-05-11"), ("04", "2018-04-06")}


def test_session_holds_out_as_many_last_days_as_the_share_says():
    """Of three days, round(0.6 · 3) = 2."""
    windows = made_up(subjects=2, days=3, recordings=2)
    split = split_windows(windows, Settings(SPLIT="session", TEST_SHARE=0.6))
    assert groups(windows, split.test, "session") == {("2020-01-02",), ("2020-01-03",)}


def test_subject_holds_out_people(windows):
    split = split_windows(windows, Settings(SPLIT="subject"))
    assert groups(windows, split.test, "subject") == {("03",)}
    assert groups(windows, split.train, "subject") == groups(windows, split.validation, "subject") == {("04",)}


def test_repetition_holds_out_a_repetition_of_every_gesture_of_every_recording(repeats):
    split = split_windows(repeats, Settings(SPLIT="repetition"))
    columns = ("recording", "TRAJ_GT", "repetition")
    test = groups(repeats, split.test, *columns)
    assert not test & groups(repeats, np.concatenate([split.train, split.validation]), *columns)
    assert {key[:2] for key in test} == groups(repeats, slice(None), "recording", "TRAJ_GT")


@pytest.mark.parametrize(
    ("split", "kind", "crosses"),
    [("repetition", "putemg", 1), ("repetition", "causal", 0), ("trajectory", "putemg", 0)],
)
def test_filtering_that_crosses_the_split_is_warned_of(repeats, split, kind, crosses, caplog):
    about = repeats.metadata | {"settings": repeats.metadata["settings"] | {"FILTER": kind}}
    windows, settings = WindowSet(repeats.emg, repeats.table, about), Settings(SPLIT=split)
    log_data(windows, split_windows(windows, settings), settings)
    assert caplog.text.count("filtering crosses the split") == crosses


@pytest.mark.parametrize(("share", "held"), [(0.1, 1), (0.3, 1), (0.49, 2), (0.5, 2), (0.7, 3), (0.99, 3)])
def test_the_share_of_recordings_is_rounded(share, held):
    """Of 4 recordings a day 0.4, 1.2, 1.96, 2, 2.8 → 0, 1, 2, 2, 3; at least one, and one stays for training."""
    windows = made_up(days=2, recordings=4, repetitions=3)
    split = split_windows(windows, Settings(SPLIT="trajectory", TEST_SHARE=share))
    assert len(groups(windows, split.test, "recording")) == 2 * held


@pytest.mark.parametrize(
    ("name", "share", "folds"),
    [
        ("trajectory", 0.3, 3),
        ("trajectory", 0.7, 2),
        ("repetition", 0.3, 3),
        ("subject", 0.3, 2),
        ("random", 0.25, 4),
    ],
)
def test_every_window_is_in_the_test_part_of_one_fold(name, share, folds):
    """Of 3 recordings a day one each, or two and one; of 3 repetitions one each; of 2 people one each; quarters."""
    windows = made_up(subjects=2, recordings=3, repetitions=3)
    tests = [split_windows(windows, Settings(SPLIT=name, TEST_SHARE=share, FOLD=fold)).test for fold in range(folds)]
    assert np.array_equal(np.sort(np.concatenate(tests)), np.arange(len(windows.table)))


@pytest.mark.parametrize("name", ["trajectory", "subject"])
def test_a_fold_that_does_not_exist_is_refused(windows, name):
    with pytest.raises(EMGError, match=r"FOLD = 3: .* folds"):
        split_windows(windows, Settings(SPLIT=name, FOLD=3))


@pytest.mark.parametrize(
    ("name", "single"), [("trajectory", "recording"), ("session", "session"), ("subject", "subject")]
)
def test_a_single_group_cannot_be_held_out(name, single):
    with pytest.raises(EMGError, match=f"single {single}.*choose another SPLIT"):
        split_windows(made_up(repetitions=4), Settings(SPLIT=name))


def test_the_same_seed_splits_the_same_way(windows):
    def test_part(seed):
        return split_windows(windows, Settings(SPLIT="random", SEED=seed)).test

    assert np.array_equal(test_part(1), test_part(1))
    assert not np.array_equal(test_part(1), test_part(2))


def test_random_windows_are_announced_as_leaky(windows):
    split = split_windows(windows, Settings(SPLIT="random"))
    assert "leaky" in split.description
    assert len(split.test) == 2088  # 0.3 · 6960
    assert "leaky" not in split_windows(windows, Settings()).description


# ---- named parts ----------------------------------------------------------------------------------------------


def test_patterns_name_both_parts(windows):
    settings = Settings(TRAIN_ON=["03/2018-05-11/*", "04/*short*"], TEST_ON=["03/2018-06-14/*long*"])
    split = split_windows(windows, settings)
    names = windows.table["recording"]
    assert set(names[split.test]) == {"emg_gestures-03-repeats_long-2018-06-14-11-05-00-595"}
    rest = set(names[np.concatenate([split.train, split.validation])])
    assert rest == {n for n in names if "2018-05-11" in n or n.startswith("emg_gestures-04-repeats_short")}
    assert parts_per_sample(windows, split) == 1
    assert all(pattern in split.description for pattern in settings.TRAIN_ON + settings.TEST_ON)


@pytest.mark.parametrize("given", ["TRAIN_ON", "TEST_ON"])
def test_the_part_that_is_not_named_is_the_rest(windows, given):
    split = split_windows(windows, Settings(**{given: ["03/*"]}))
    train, test = (set(windows.table["subject"].iloc[rows]) for rows in (split.train, split.test))
    assert (train, test) == (({"03"}, {"04"}) if given == "TRAIN_ON" else ({"04"}, {"03"}))
    assert len(split.train) + len(split.validation) + len(split.test) == len(windows.table)


@pytest.mark.parametrize(
    ("patterns", "words"),
    [
        ({"TRAIN_ON": ["03/*"], "TEST_ON": ["*long*"]}, "03/2018-05-11/.*both"),
        ({"TRAIN_ON": ["03/*", "05/*"]}, r"TRAIN_ON = 05/\*: no recording matches.*03/2018-05-11"),
        ({"TEST_ON": ["03"]}, "TEST_ON = 03: no recording matches"),
        ({"TEST_ON": ["*"]}, "training part"),
        ({"TRAIN_ON": ["*"]}, "test part"),
    ],
)
def test_patterns_that_cannot_be_followed_are_refused(windows, patterns, words):
    with pytest.raises(EMGError, match=words):
        split_windows(windows, Settings(**patterns))


# ---- validation, thinning, balance ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape", "level", "columns"),
    [
        ("subject", {"subjects": 3, "days": 2}, "session", ["subject", "session"]),
        ("subject", {"subjects": 3, "recordings": 2}, "trajectory", ["recording"]),
        ("session", {"days": 3, "recordings": 2}, "trajectory", ["recording"]),  # two days are left to train on
        ("session", {"days": 4}, "session", ["subject", "session"]),
        ("session", {"days": 3}, "repetition", ["recording", "TRAJ_GT", "repetition"]),
        ("trajectory", {"recordings": 3}, "repetition", ["recording", "TRAJ_GT", "repetition"]),
        ("trajectory", {"recordings": 3, "repetitions": 1}, "trajectory", ["recording"]),
        ("trajectory", {"recordings": 4}, "trajectory", ["recording"]),
        ("repetition", {"repetitions": 3}, "repetition", ["recording", "TRAJ_GT", "repetition"]),
    ],
)
def test_validation_is_cut_by_whole_groups_of_the_same_or_the_next_finer_level(name, shape, level, columns):
    """Several recordings of a day with one repetition each still give one to validation, which is a whole recording."""
    windows = made_up(**shape)
    split = split_windows(windows, Settings(SPLIT=name))
    assert split.description.endswith(f"validation on {WORDS[level]}")
    train, validation = (groups(windows, rows, *columns) for rows in (split.train, split.validation))
    assert train
    assert validation
    assert not train & validation
    assert set(windows.table["TRAJ_GT"].iloc[split.validation]) == {0, 1}


def test_a_later_day_chooses_for_later_days():
    """Of five days round(1.5) = 2 are the test, and of the three others round(0.6) = 1, the last, is the validation."""
    windows = made_up(subjects=2, days=5, recordings=2)
    for settings in (Settings(SPLIT="session"), Settings(TEST_ON=["*/2020-01-0[45]/*"])):  # named parts ask the same
        split = split_windows(windows, settings)
        assert groups(windows, split.test, "session") == {("2020-01-04",), ("2020-01-05",)}
        assert groups(windows, split.validation, "session") == {("2020-01-03",)}
        assert groups(windows, split.train, "session") == {("2020-01-01",), ("2020-01-02",)}
    of_each = split_windows(windows, Settings(TEST_ON=["*/rec-?-?-1"]))  # a recording of every day is the test
    assert of_each.description.endswith("validation on whole repetitions")
    people = split_windows(windows, Settings(TEST_ON=["00/*"]))
    assert groups(windows, people.validation, "session") == {("2020-01-03",)}  # of five, in the middle


def test_no_validation_part_is_an_error():
    with pytest.raises(EMGError, match="no validation part"):
        split_windows(made_up(days=2, repetitions=1), Settings(SPLIT="session"))


def test_the_sampling_ratio_thins_the_training_part_alone(windows):
    whole, thin = (split_windows(windows, Settings(SAMPLING_RATIO=ratio)) for ratio in (1, 0.25))
    assert np.array_equal(whole.test, thin.test)
    assert np.array_equal(whole.validation, thin.validation)
    assert set(thin.train) < set(whole.train)
    before, after = (windows.table.iloc[s.train].groupby(["recording", "TRAJ_GT"]).size() for s in (whole, thin))
    assert after.to_dict() == {key: max(1, round(0.25 * count)) for key, count in before.items()}


def test_undersampling_leaves_as_many_of_every_class_as_the_rarest_has(windows):
    whole, balanced = (split_windows(windows, Settings(BALANCE=balance)) for balance in ("weights", "undersample"))
    fewest = np.bincount(windows.targets[whole.train]).min()
    assert np.bincount(windows.targets[balanced.train]).tolist() == [fewest] * 8
    assert set(balanced.train) < set(whole.train)
    assert np.array_equal(whole.test, balanced.test)
    assert np.array_equal(whole.validation, balanced.validation)


def test_class_weights_by_hand():
    """4 windows, 2 classes: 4 / (2 · 3) and 4 / (2 · 1), which is one on average over the windows."""
    assert class_weights(np.array([0, 0, 1, 0]), 2) == pytest.approx([2 / 3, 2])


@pytest.mark.parametrize("each", [1, 2])
def test_a_class_with_too_few_training_windows_is_named(each):
    """2 of 3 recordings train, less one of their 4 repetitions: 3 repetitions of 1 window are too few, of 2 enough."""
    windows = made_up(recordings=3, labels=3)
    number = windows.table.groupby(["recording", "TRAJ_GT", "repetition"]).cumcount()
    rare = subset(windows, (windows.table["TRAJ_GT"] != 2) | (number < each))
    if each == 1:
        with pytest.raises(EMGError, match=r"class 2 \(gesture 2\) has 3 windows in the training part.*at least 5"):
            split_windows(rare, Settings())
    else:
        split = split_windows(rare, Settings())
        assert (rare.targets[split.train] == 2).sum() == 6


def test_a_single_class_cannot_be_learned():
    with pytest.raises(EMGError, match="single class, gesture 0"):
        split_windows(made_up(recordings=3, labels=1), Settings())


# ---- statistics and batches -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "count"), [("trajectory", 8), ("session", 4)])
def test_every_day_is_measured_by_itself_and_its_test_part_apart(windows, name, count):
    """Two people, two days: by trajectory each has training and test windows, by session the one or the other."""
    split = split_windows(windows, Settings(SPLIT=name))
    groups, days = reference_groups(windows, split), windows.table["subject"] + windows.table["session"]
    rows = rows_to_measure(groups, split)
    assert len(rows) == count
    for group, own in enumerate(rows):
        where = groups == group
        assert days[where].nunique() == 1
        tested = np.isin(np.flatnonzero(where), split.test)
        assert tested.all() or not tested.any()
        assert own.tolist() == (np.flatnonzero(where) if tested.all() else split.train[where[split.train]]).tolist()


def test_windows_in_no_part_are_measured_nowhere(windows):
    split = split_windows(windows, Settings(TRAIN_ON=["03/2018-05-11/*"], TEST_ON=["04/*"]))
    groups = reference_groups(windows, split)
    assert set(np.flatnonzero(groups < 0)) == set(range(len(groups))) - {*split.train, *split.validation, *split.test}
    assert groups.max() == 2  # one day to train, two to test


def test_the_training_windows_reference_owes_nothing_to_the_test_part(windows):
    split = split_windows(windows, Settings())
    rows = rows_to_measure(reference_groups(windows, split), split)
    groups = reference_groups(windows, split)
    for row in split.train[::50]:
        assert not set(rows[groups[row]]) & set(split.test)


def test_at_most_so_many_rows_are_drawn():
    assert draw_rows(np.arange(5, 10), seed=0).tolist() == [5, 6, 7, 8, 9]
    drawn = draw_rows(np.arange(100), seed=0, at_most=10)
    assert len(set(drawn)) == 10
    assert drawn.tolist() == sorted(drawn)
    assert drawn.tolist() != draw_rows(np.arange(100), seed=1, at_most=10).tolist()


def test_a_batch_holds_the_windows_that_were_asked_for():
    """The values of made-up windows are distinct, so they tell which windows a batch holds."""
    windows = made_up(recordings=3)
    rows = np.random.default_rng(3).permutation(np.arange(1, 72, 2))
    cut = cut_rows(rows, 8)
    assert [len(part) for part in cut] == [8, 8, 8, 8, 4]
    for one in (batches(windows, rows, 8), Feed(windows, torch.device("cpu"))(iter(cut))):
        emg, target, told = map(torch.cat, zip(*one, strict=True))
        assert (emg.shape, emg.dtype, target.dtype) == ((36, 4, 2), torch.float32, torch.int64)
        assert np.array_equal(emg.numpy(), windows.emg[rows] * np.float32(0.25))
        assert target.tolist() == windows.table["TRAJ_GT"].iloc[rows].tolist()
        assert told.tolist() == rows.tolist()


def test_the_feed_reads_two_batches_ahead_and_no_more():
    windows, asked = made_up(recordings=3), []
    rows = cut_rows(np.arange(40), 4)
    feed = Feed(windows, torch.device("cpu"))(asked.append(len(asked)) or part for part in rows)
    next(feed)
    assert len(asked) == 3
    next(feed)
    assert len(asked) == 4
    feed.close()


def test_what_goes_wrong_while_reading_ahead_is_raised():
    feed = Feed(made_up(recordings=3), torch.device("cpu"))
    with pytest.raises(IndexError):
        list(feed([np.arange(4), np.array([10_000])]))


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells where a mapped file lies")
def test_a_mapped_file_lies_beside_the_windows_and_leaves_nothing(windows_file, tmp_path):
    path = Path(shutil.copy(windows_file, tmp_path))
    mapped = load_windows(Settings(DATA_LOCATION=path, MEMORY_GB=0))
    assert f"{tmp_path}/" in Path("/proc/self/maps").read_text()
    assert list(tmp_path.iterdir()) == [path]
    del mapped


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of a process's address space is Linux's")
def test_windows_that_fit_nowhere_are_one_sentence(small_file, tmp_path):
    """No file of this process may be larger than 10 kB."""
    script = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))\n"
    script += "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    script += "import main, sys; sys.exit(main.main())"
    done = run("-c", script, "--data-location", small_file, "--memory-gb", "0", "--run-dir", tmp_path / "run")
    assert done.returncode == 1
    assert done.stderr.startswith("main.py: MEMORY_GB: neither ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


# ---- found by tests/test_properties.py ------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"SAMPLING_RATIO": 0.5}, {"BALANCE": "undersample"}])
@pytest.mark.parametrize(("each", "words"), [(1, "single window"), (4, "none is left")])
def test_random_parts_that_nothing_is_left_of_are_refused(each, words, changes):
    """One window; or four of which each overlaps all others, so that those of the test part leave none."""
    windows = made_up(labels=1, repetitions=1, each=each)
    windows.table["start"] = 0.3 + 0.001 * np.arange(each)
    with pytest.raises(EMGError, match=words):
        split_windows(windows, Settings(SPLIT="random", **changes))


def test_random_parts_share_no_sample_of_a_recording_whose_clock_is_slower():
    """Windows of 5000 samples, 4997 apart: at 4996 Hz they begin 1.0002 s apart, longer than 5000 samples at 5 kHz."""
    windows = made_up(recordings=2, repetitions=10)
    first = np.tile(4997 * np.arange(120), 2)
    slower = windows.table["recording"] == "rec-0-0-1"
    windows.table["start"] = first / np.where(slower, 4996.0, 5000.0)
    sources = [{"name": "rec-0-0-0.csv", "sampling_rate": 5000.0}, {"name": "rec-0-0-1.csv", "sampling_rate": 4996.0}]
    changes = {"window": 5000, "sampling_rate": 5000.0, "sources": sources, "settings": {"SAMPLE_RATE": 5000.0}}
    windows = WindowSet(windows.emg, windows.table, windows.metadata | changes)
    part = split_windows(windows, Settings(SPLIT="random", TEST_SHARE=0.1)).part_of(240).reshape(2, 120)
    for neighbours in zip(part[:, :-1].ravel(), part[:, 1:].ravel(), strict=True):
        assert "" in neighbours or len(set(neighbours)) == 1
