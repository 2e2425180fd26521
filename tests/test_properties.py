"""Windows, labels, splits and decisions keep their promises, whatever is drawn.

What should come out is found here by going through the samples one by one. A failure prints the smallest example.
`--hypothesis-profile nightly` draws 200 times as many, other ones with every `--hypothesis-seed`.
"""

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
import pytest
import torch
from drawing import (
    START,
    Plan,
    Take,
    cut_with,
    folder_of,
    noise,
    patterns,
    pieces,
    plans,
    split_settings,
    window_sets,
    with_a_window,
)
from hypothesis import assume, event, example, given, settings
from hypothesis import strategies as st
from scipy.signal import resample_poly

from EMG_DATA_LOADER import (
    LEVELS,
    MIN_TRAINING_WINDOWS,
    PARTS,
    WORDS,
    Split,
    class_weights,
    count_folds,
    split_windows,
)
from emg_gpt2.base.errors import EMGError
from emg_gpt2.live.decisions import REJECTED, Classifier, Smoother
from emg_gpt2.live.judging import truth_of
from emg_gpt2.live.references import FixedReference, RunningReference
from emg_gpt2.model.config import EMGConfig
from emg_gpt2.model.model import EMGForSequenceClassification
from emg_gpt2.model.normalise import measure_reference
from emg_gpt2.raw.filter import CausalFilter
from emg_gpt2.raw.resample import Resampler, resample
from emg_gpt2.settings import Settings
from emg_gpt2.study.calibration import cut_repetitions, windows_of_session
from emg_gpt2.study.folds import folds_of
from emg_gpt2.study.protocols import PROTOCOLS
from emg_gpt2.windows.reading import WindowSet, load_windows, open_windows

T = TypeVar("T")
EXAMPLES = settings().max_examples  # of the profile
slow = settings(max_examples=max(1, EXAMPLES // 4))

pytestmark = pytest.mark.usefixtures("one_thread")


# ---- windows: what should come out ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Expected:
    """One window: the number of its recording in the plan, its label and repetition, its first sample."""

    recording: int
    label: int
    repetition: int
    first: int


def expected_windows(plan: Plan, number: int, ratio: Fraction) -> list[Expected]:
    """Those of one recording, by looking at every sample; `ratio`: of the windows' rate to the recording's."""
    raw = plan.takes[number].labels.tolist()
    run, seen = [0], Counter({raw[0]: 1})  # which run every raw sample is in
    repetition = [0]  # of every run
    for before, label in pairwise(raw):
        run.append(run[-1] + (label != before))
        if label != before:
            repetition.append(seen[label])
            seen[label] += 1
    nearest = [min(round(place / ratio), len(raw) - 1) for place in range(-(-len(raw) * ratio // 1))]
    since = since_change([run[row] for row in nearest])
    left = since_change([run[row] for row in reversed(nearest)])[::-1]
    start_trim, end_trim = plan.trims
    found = []
    for first, row in enumerate(nearest):
        inside = nearest[first : first + plan.window]
        whole = len(inside) == plan.window and {run[one] for one in inside} == {run[row]}
        label = raw[row]
        legal = label != -1 and (not plan.legal or label in plan.legal)
        on_grid = since[first] >= start_trim and (since[first] - start_trim) % plan.stride == 0
        if whole and legal and on_grid and left[first + plan.window - 1] >= end_trim:
            found.append(Expected(number, label, repetition[run[row]], first))
    return found


def since_change(values: list[int]) -> list[int]:
    """How many samples before each one, without a break, have its value."""
    counted = []
    for place, value in enumerate(values):
        counted.append(counted[-1] + 1 if place and values[place - 1] == value else 0)
    return counted


def all_expected(plan: Plan, ratio: Fraction = Fraction(1)) -> list[Expected]:
    """Of the whole file: recordings in the order of their names; one sample is no recording."""
    numbers = [number for number, take in enumerate(plan.takes) if len(take.labels) > 1]
    return [one for number in sorted(numbers, key=plan.name) for one in expected_windows(plan, number, ratio)]


def read(path: Path) -> tuple[pd.DataFrame, np.ndarray, dict]:
    """Table, (n, T, C) samples in counts, and metadata of a windows file, by pandas and pyarrow alone."""
    table = pd.read_parquet(path)
    metadata = json.loads(pd.io.parquet.get_engine("pyarrow").api.parquet.read_schema(path).metadata[b"emg"])
    emg = np.stack(table.pop("emg")).reshape(len(table), metadata["window"], -1) * metadata["scale"]
    return table, emg, metadata


def check_table(table: pd.DataFrame, expected: list[Expected], plan: Plan, rate: float) -> None:
    """Every window that there should be is there once, in order, with its label, identity and start."""
    for column, values in {
        "TRAJ_GT": [one.label for one in expected],
        "repetition": [one.repetition for one in expected],
        "recording": [plan.name(one.recording) for one in expected],
        "subject": [f"{plan.takes[one.recording].subject:02}" for one in expected],
        "session": [f"2018-05-{plan.takes[one.recording].day:02}" for one in expected],
        "trajectory": [plan.takes[one.recording].trajectory for one in expected],
    }.items():
        assert table[column].tolist() == values, column
    start = [START + one.first / rate for one in expected]
    np.testing.assert_allclose(table["start"], start, rtol=0, atol=1e-6)


def attempt(work: Callable[[], T], words: str = "refused") -> T | None:
    """What comes out, or nothing where it was refused in one sentence; any other error goes through."""
    try:
        return work()
    except EMGError as error:
        event(words)
        if "\n" in str(error) or not str(error):
            raise AssertionError(f"not one sentence: {error}") from error
        return None


def cut_or_refused(plan: Plan, folder: Path, expected: list[Expected], **others) -> bool:
    """Whether there is a file; there is none, and a sentence says so, only where no window is eligible."""
    made = plan.settings(folder, **others)
    if expected:
        cut_with(made)
        return True
    event("refused")
    with pytest.raises(EMGError, match="gave a window"):
        cut_with(made)
    assert not made.DATA_LOCATION.exists()
    return False


# ---- windows --------------------------------------------------------------------------------------------------


@given(plan=plans())
def test_every_eligible_window_is_there_once_with_its_own_samples(plan):
    expected = all_expected(plan)
    with folder_of(plan) as folder:
        if not cut_or_refused(plan, folder, expected):
            return
        table, emg, metadata = read(folder / "windows.parquet")
    assert (metadata["window"], metadata["stride"]) == (plan.window, plan.stride)
    assert metadata["sampling_rate"] == pytest.approx(plan.rate, rel=1e-9)
    check_table(table, expected, plan, plan.rate)
    recordings = [plan.emg(number) for number in range(len(plan.takes))]
    for window, one in zip(emg, expected, strict=True):
        assert np.array_equal(window, recordings[one.recording][one.first : one.first + plan.window])


@given(plan=plans())
def test_windows_prove_by_their_samples_that_they_cross_nothing(plan):
    """No oracle: the first channel of a window's samples says which rows they are, the raw labels say the rest."""
    with folder_of(plan) as folder:
        if attempt(lambda: cut_with(plan.settings(folder))) is None:
            return
        table, emg, _ = read(folder / "windows.parquet")
    labels = [take.labels for take in plan.takes]
    rows = emg[:, :, 0].astype(int)
    assert len({tuple(one) for one in rows}) == len(rows)
    for window, label, name in zip(rows, table["TRAJ_GT"], table["recording"], strict=True):
        number, first = divmod(int(window[0]), 100_000)
        start_trim, end_trim = plan.trims
        around = labels[number][first - start_trim : first + plan.window + end_trim]
        assert plan.name(number) == name
        assert window.tolist() == list(range(window[0], window[0] + plan.window))
        assert first >= start_trim and len(around) == start_trim + plan.window + end_trim  # noqa: PT018
        assert set(around.tolist()) == {label}
        assert label >= 0 and (not plan.legal or label in plan.legal)  # noqa: PT018


def ratio_of(plan: Plan) -> Fraction:
    """The windows' rate over that of the file's clock, as `resample` takes it."""
    return Fraction(plan.target / plan.rate).limit_denominator(2000)


@given(plan=plans(resampled=True))
@example(  # one discarded sample, which is none of the slower ones
    Plan((Take(1, 1, "sequential", ((1, 52), (-1, 1), (1, 60)), ".csv"),), 1000.0, 200.0, 1, 4, 1, (0, 0), 0.0, ())
)
def test_resampled_windows_are_those_of_the_nearest_samples(plan):
    """Where two raw samples are as near, either is right: so only odd ratios are drawn."""
    ratio = ratio_of(plan)
    assume(ratio < 1 and ratio.numerator % 2)
    expected = all_expected(plan, ratio)
    with folder_of(plan) as folder:
        if not cut_or_refused(plan, folder, expected):
            return
        table, emg, metadata = read(folder / "windows.parquet")
    rate = metadata["sampling_rate"]
    assert rate == pytest.approx(plan.rate * ratio, rel=1e-9)
    assert abs(rate / plan.target - 1) < 1e-3
    check_table(table, expected, plan, rate)
    ups, downs = ratio.numerator, ratio.denominator
    slower = [resample_poly(plan.emg(n).astype(np.float32), ups, downs, axis=0) for n in range(len(plan.takes))]
    for window, one in zip(emg, expected, strict=True):
        samples = slower[one.recording][one.first : one.first + plan.window]
        np.testing.assert_allclose(window, samples, rtol=1e-5, atol=metadata["scale"] / 2 + 0.01)


@given(plan=plans(resampled=True))
def test_no_raw_label_changes_within_a_resampled_window(plan):
    with folder_of(plan) as folder:
        if attempt(lambda: cut_with(plan.settings(folder))) is None:
            return
        table, _, metadata = read(folder / "windows.parquet")
    labels = {plan.name(number): take.labels for number, take in enumerate(plan.takes)}
    seconds = (metadata["window"] - 1) / metadata["sampling_rate"]
    for start, label, name in zip(table["start"] - START, table["TRAJ_GT"], table["recording"], strict=True):
        first, last = np.ceil(start * plan.rate - 1e-6), np.floor((start + seconds) * plan.rate + 1e-6)
        assert set(labels[name][int(first) : int(last) + 1].tolist()) <= {label}
    assert not table.duplicated(["recording", "start"]).any()


@slow
@given(plan=(plans() | plans(resampled=True)).map(with_a_window), data=st.data())
def test_every_reader_sees_the_same_windows(plan, data):
    with folder_of(plan) as folder:
        if attempt(lambda: cut_with(plan.settings(folder))) is None:
            return
        path = folder / "windows.parquet"
        table, emg, metadata = read(path)
        held, mapped = (load_windows(Settings(DATA_LOCATION=path, MEMORY_GB=size)) for size in (8, 0))
        rows = np.array(data.draw(st.lists(st.integers(0, len(table) - 1), min_size=1, max_size=20)))
        stored = open_windows(path)
        assert np.array_equal(stored.emg[rows] * metadata["scale"], emg[rows])
    assert isinstance(mapped.emg, np.memmap)
    for windows in (held, mapped, stored):
        pd.testing.assert_frame_equal(windows.table, table)
        assert windows.metadata == metadata
        assert [windows.classes[index] for index in windows.targets] == table["TRAJ_GT"].tolist()
    assert np.array_equal(held.emg * metadata["scale"], emg)
    assert np.array_equal(mapped.emg, held.emg)


@slow
@given(plan=(plans() | plans(resampled=True)).map(with_a_window))
def test_hdf5_csv_and_zip_give_the_same_windows(plan):
    plan, seen = replace(plan, takes=plan.takes[:1]), []
    for suffix in (".hdf5", ".csv", ".zip"):
        with tempfile.TemporaryDirectory(prefix="drawn-") as folder:
            plan.write(Path(folder) / "raw", 0, suffix)
            try:
                (result,) = cut_with(plan.settings(Path(folder)))
                seen.append(result.part.source["windows_sha256"])
            except EMGError as error:
                event("refused")
                seen.append(str(error).replace(suffix, "").replace(folder, ""))
    assert len(set(seen)) == 1, seen


@slow
@given(
    plan=plans().map(with_a_window),
    order=st.randoms(use_true_random=False),
    filtered=st.sampled_from(["none", "causal"]),
)
def test_the_file_owes_nothing_to_workers_order_or_interruptions(plan, order, filtered):
    """Once with one worker; from shuffled paths with two; some recordings first, then all; parts kept by a kill."""
    with folder_of(plan) as folder:
        made = plan.settings(folder, FILTER=filtered, BAND_HZ=(20.0, 90.0))
        if attempt(lambda: cut_with(made)) is None:
            return
        whole = made.DATA_LOCATION.read_bytes()
        paths = sorted((folder / "raw").iterdir())
        order.shuffle(paths)
        again = [made.model_copy(update={"WORKERS": 2, "DATA_LOCATION": folder / "two.parquet"})]
        again.append(made.model_copy(update={"DATA_LOCATION": folder / "first.parquet"}))
        for some in (paths[:1], paths[1:]):
            try:
                cut_with(again[1], some or paths)
            except EMGError:
                assert not again[1].DATA_LOCATION.exists() or some == paths[1:]
        for one in again:
            cut_with(one, paths)
            assert one.DATA_LOCATION.read_bytes() == whole
        assert not list(folder.glob(".*.parts"))


lengths_ms = st.floats(1, 60) | st.floats(1, 300) | st.floats(0, 10_000, exclude_min=True)
trims_ms = st.floats(0, 30) | st.floats(0, 30) | st.floats(0, 1e6)
bands = st.tuples(st.floats(1, 300), st.floats(301, 900)) | st.lists(
    st.floats(0, exclude_min=True, allow_infinity=False), min_size=2, max_size=2, unique=True
).map(sorted)


@given(
    plan=plans().map(with_a_window),
    kind=st.sampled_from(["putemg", "causal", "none"]),
    lengths=st.tuples(lengths_ms, lengths_ms, trims_ms, trims_ms),
    band=bands,
    target=st.floats(100, 1000) | st.floats(100, 1e6),
)
def test_any_setting_gives_windows_or_one_sentence(plan, kind, lengths, band, target):
    names = ("WINDOW_MS", "STRIDE_MS", "TRIM_START_MS", "TRIM_END_MS")
    drawn = dict(zip(names, lengths, strict=True)) | {"FILTER": kind, "BAND_HZ": band, "SAMPLE_RATE": target}
    plan = replace(plan, takes=plan.takes[:1], channels=min(plan.channels, 2))
    with folder_of(plan) as folder:
        made = plan.settings(folder, **drawn)
        if attempt(lambda: cut_with(made)) is None:
            return
        windows = load_windows(made)
        assert len(windows.table) == len(windows.emg) > 0
        assert np.isfinite(windows.emg).all()


# ---- splits: what must hold -----------------------------------------------------------------------------------


def shares_samples(windows: WindowSet, first: np.ndarray, split: Split) -> bool:
    """Whether windows of two parts share a raw sample, by comparing every pair of a recording's windows."""
    part = np.array(split.part_of(len(first)), str)
    used = np.flatnonzero(part != "")
    for rows in windows.table.iloc[used].groupby("recording").indices.values():
        own = used[rows]
        near = np.abs(first[own][:, None] - first[own]) < windows.metadata["window"]
        if (near & (part[own][:, None] != part[own])).any():
            return True
    return False


def groups(windows: WindowSet, rows: np.ndarray, columns: list[str]) -> set[tuple]:
    return set(windows.table.iloc[rows][columns].itertuples(index=False, name=None))


def check_split(windows: WindowSet, first: np.ndarray, split: Split, drawn: Settings) -> None:
    """Parts share no window, no sample and no group; what is in none has a reason; every class can be learnt."""
    rows = np.concatenate([split.train, split.validation, split.test])
    assert len(set(rows.tolist())) == len(rows)
    assert set(rows.tolist()) <= set(range(len(windows.table)))
    assert all(len(getattr(split, part)) for part in PARTS)
    assert all((np.diff(getattr(split, part)) > 0).all() for part in PARTS)
    assert not shares_samples(windows, first, split)
    if drawn.SPLIT != "random":
        check_groups(windows, split, drawn)
    counts = Counter(windows.targets[split.train].tolist())
    assert min(counts[index] for index in range(len(windows.classes))) >= MIN_TRAINING_WINDOWS
    if drawn.BALANCE == "undersample":
        assert len(set(counts.values())) == 1
    check_left_out(windows, first, split, drawn)


def check_groups(windows: WindowSet, split: Split, drawn: Settings) -> None:
    rest = np.concatenate([split.train, split.validation])
    if split.name != "named":
        columns, _ = LEVELS[drawn.SPLIT]
        assert not groups(windows, rest, columns) & groups(windows, split.test, columns)
    words = split.description.rpartition("validation on ")[2]
    columns, _ = next(LEVELS[level] for level in LEVELS if WORDS[level] == words)
    assert not groups(windows, split.train, columns) & groups(windows, split.validation, columns)


def check_left_out(windows: WindowSet, first: np.ndarray, split: Split, drawn: Settings) -> None:
    """Windows are left out by SAMPLING_RATIO or undersampling, by patterns, or where random ones overlap."""
    left_out = np.flatnonzero(split.part_of(len(windows.table)) == "")
    if drawn.BALANCE == "undersample" or (drawn.TRAIN_ON and drawn.TEST_ON):
        return
    if drawn.SPLIT == "random":
        check_overlap(windows, first, split, left_out if drawn.SAMPLING_RATIO == 1 else left_out[:0])
        return
    keys = list(zip(windows.table["recording"], windows.targets, strict=True))
    kept, lost = (Counter(keys[row] for row in rows) for rows in (split.train, left_out))
    for key, count in kept.items():
        assert count == max(1, round(drawn.SAMPLING_RATIO * (count + lost[key])))
    assert set(lost) <= set(kept)


def check_overlap(windows: WindowSet, first: np.ndarray, split: Split, left_out: np.ndarray) -> None:
    """Every window that was left out shares a sample with another that was drawn for a later part."""
    names, length = windows.table["recording"].to_numpy(), windows.metadata["window"]
    for row in left_out:
        near = (names == names[row]) & (np.abs(first - first[row]) < length)
        assert near.sum() > 1


# ---- splits ---------------------------------------------------------------------------------------------------


@settings(max_examples=3 * EXAMPLES)
@given(drawn=window_sets, chosen=split_settings)
def test_parts_of_a_split_share_no_window_sample_or_group(drawn, chosen):
    windows, first = drawn.made
    split = attempt(lambda: split_windows(windows, chosen))
    if split:
        event(chosen.SPLIT)
        check_split(windows, first, split, chosen)


@settings(max_examples=2 * EXAMPLES)
@given(drawn=window_sets, chosen=split_settings, data=st.data())
def test_named_parts_hold_what_their_patterns_name(drawn, chosen, data):
    windows, first = drawn.made
    named = {name: data.draw(patterns(windows)) for name in ("TRAIN_ON", "TEST_ON")}
    assume(any(named.values()))
    chosen = chosen.model_copy(update=named)
    split = attempt(lambda: split_windows(windows, chosen))
    if not split:
        return
    check_split(windows, first, split, chosen)
    train, test = (matching(windows, named[name]) for name in ("TRAIN_ON", "TEST_ON"))
    assert set(split.test.tolist()) == (test or set(range(len(windows.table))) - train)
    assert not (set(split.train.tolist()) | set(split.validation.tolist())) - (train or set(range(len(first))) - test)


def matching(windows: WindowSet, named: list[str]) -> set[int]:
    """Rows of which subject/session/recording begins as a pattern does before its stars."""
    prefixes = tuple(pattern.rstrip("*/") + "/" for pattern in named)
    return {row for row, name in enumerate(windows.identity) if f"{name}/".startswith(prefixes)}


@settings(max_examples=2 * EXAMPLES)
@given(drawn=window_sets, chosen=split_settings)
def test_folds_together_test_every_eligible_window_once(drawn, chosen):
    """Where units give different numbers of folds, the groups of the larger ones beyond the fewest are no fold's."""
    assume(chosen.SPLIT != "session")
    windows, _ = drawn.made
    fewest, _ = count_folds(windows.table, chosen)
    tested, complete = Counter(), True
    for fold in range(fewest):
        try:
            split = split_windows(windows, chosen.model_copy(update={"FOLD": fold, "SAMPLING_RATIO": 1.0}))
            tested.update(split.test.tolist())
        except EMGError:
            complete = False
    event("complete" if complete else "a fold refused")
    assert set(tested.values()) <= {1}
    if complete:
        assert set(tested) == eligible_for_test(windows, chosen, fewest)
    with pytest.raises(EMGError):
        split_windows(windows, chosen.model_copy(update={"FOLD": fewest}))


def eligible_for_test(windows: WindowSet, chosen: Settings, folds: int) -> set[int]:
    """Rows of the groups that come first in their unit, as many as so many folds hold; a single group is none."""
    if chosen.SPLIT == "random":
        return set(range(len(windows.table)))
    columns, inside = LEVELS[chosen.SPLIT]
    names = list(windows.table[columns].itertuples(index=False, name=None))
    units = list(windows.table[inside].itertuples(index=False, name=None))
    found = set()
    for unit in set(units):
        members = sorted({name for name, own in zip(names, units, strict=True) if own == unit})
        if len(members) > 1:
            each = min(max(1, round(chosen.TEST_SHARE * len(members))), len(members) - 1)
            first = set(members[: folds * each])
            found |= {row for row, name in enumerate(names) if units[row] == unit and name in first}
    return found


@settings(max_examples=2 * EXAMPLES)
@given(drawn=window_sets, chosen=split_settings, seed=st.integers(0, 1000))
def test_a_split_is_the_same_again_and_in_any_order_of_the_rows(drawn, chosen, seed):
    """What is drawn (random windows, thinning) depends on the order of the rows; which groups are held out does not."""
    windows, _ = drawn.made
    chosen = chosen.model_copy(update={"SAMPLING_RATIO": 1.0, "BALANCE": "none"})
    order = np.random.default_rng(seed).permutation(len(windows.table))
    table = windows.table.iloc[order].reset_index(drop=True)
    split = attempt(lambda: split_windows(windows, chosen))
    if not split:
        return
    again = split_windows(windows, chosen)
    for part in PARTS:
        assert np.array_equal(getattr(again, part), getattr(split, part))
    if chosen.SPLIT == "random":
        return
    other = split_windows(WindowSet(windows.emg, table, windows.metadata), chosen)
    for part in PARTS:
        assert set(order[getattr(other, part)].tolist()) == set(getattr(split, part).tolist())


@settings(max_examples=2 * EXAMPLES)
@given(drawn=window_sets, chosen=split_settings, protocol=st.sampled_from(["none", *PROTOCOLS]))
def test_folds_of_a_protocol_are_splits_without_leaks(drawn, chosen, protocol):
    windows, first = drawn.made
    chosen = chosen.model_copy(update={"FOLD": 0})
    found = attempt(lambda: folds_of(windows.table, chosen, protocol))
    if not found:
        return
    folds, left_out = found
    tested = Counter()
    for fold in folds[:12]:
        changed = chosen.model_copy(update=fold.changes)
        split = attempt(partial(split_windows, windows, changed), "a fold refused")
        if not split:
            continue
        check_split(windows, first, split, changed)
        tested.update(split.test.tolist())
        if protocol in "AB":
            check_within_person(windows, split, fold, protocol)
    assert set(tested.values()) <= {1}
    if protocol == "A" and not left_out:
        assert {fold.name for fold in folds} == set(windows.table["recording"])


def check_within_person(windows: WindowSet, split: Split, fold, protocol: str) -> None:
    """A: one recording of a day against the day's others; B: one person's last days against those before."""
    part = {name: windows.table.iloc[getattr(split, name)] for name in PARTS}
    assert {one for table in part.values() for one in table["subject"]} == {fold.subject}
    if protocol == "A":
        assert len({one for table in part.values() for one in table["session"]}) == 1
        assert set(part["test"]["recording"]) == {fold.name}
    else:
        before = max(part["train"]["session"].max(), part["validation"]["session"].max())
        assert before < part["test"]["session"].min()


@settings(max_examples=2 * EXAMPLES)
@given(drawn=window_sets, count=st.integers(1, 4))
def test_the_calibration_part_is_the_first_repetitions_of_a_session(drawn, count):
    whole, whole_first = drawn.made
    one = argparse.Namespace(subject="01", session=None, data="drawn")
    windows = windows_of_session(whole, one)
    own = (whole.table["subject"] == "01") & (whole.table["session"] == windows.table["session"][0])
    first, table = whole_first[own], windows.table
    split = attempt(lambda: cut_repetitions(windows, count))
    if not split:
        return
    assert table["session"].nunique() == 1
    assert sorted([*split.train, *split.test]) == list(range(len(table)))
    assert not shares_samples(windows, first, split)
    for label, rows in table.groupby("TRAJ_GT").indices.items():
        when = [(table["recording"][row][-23:], first[row], table["repetition"][row]) for row in rows]
        in_order = sorted(when)
        repetitions = list(dict.fromkeys((name, repetition) for name, _, repetition in in_order))
        calibration = {(w[0], w[2]) for w, row in zip(when, rows, strict=True) if row in set(split.train.tolist())}
        assert calibration == set(repetitions[:count]), label


@given(counts=st.lists(st.integers(1, 50), min_size=2, max_size=12), seed=st.integers(0, 100))
def test_class_weights_give_every_class_the_same_say(counts, seed):
    targets = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    weights = class_weights(targets, len(counts))
    assert weights[targets].mean() == pytest.approx(1)
    for index, count in enumerate(counts):
        assert weights[index] * count == pytest.approx(len(targets) / len(counts))


# ---- decisions ------------------------------------------------------------------------------------------------


@given(
    rate=st.floats(200, 6000),
    band=st.tuples(st.floats(1, 60), st.floats(61, 3000)),
    samples=st.integers(1, 1500),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_a_causally_filtered_signal_is_the_same_in_any_pieces(rate, band, samples, seed, data):
    signal, cuts = noise(samples, 2, seed), data.draw(pieces(samples))
    whole, part = CausalFilter(rate, band), CausalFilter(rate, band)
    assert np.array_equal(np.concatenate([part(signal[cut].copy()) for cut in cuts]), whole(signal.copy()))


@given(
    rate=st.sampled_from([200.0, 1000.0, 5120.0, 5124.07]) | st.integers(200, 6000).map(float),
    target=st.sampled_from([100.0, 500.0, 1000.0, 2000.0]) | st.integers(100, 6000).map(float),
    samples=st.integers(1, 1500),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_a_resampled_signal_is_the_same_in_any_pieces_as_in_one(rate, target, samples, seed, data):
    signal, cuts = noise(samples, 2, seed), data.draw(pieces(samples))
    whole, part = Resampler(rate, target), Resampler(rate, target)
    streamed = whole(signal)
    np.testing.assert_allclose(np.concatenate([part(signal[cut]) for cut in cuts]), streamed, atol=1e-3)
    offline, offline_rate = resample(signal, rate, target)
    assert whole.rate == offline_rate
    assert len(streamed) <= len(offline)
    assert len(offline) - len(streamed) <= 12  # ten, and the ends of both rounded to whole input samples
    np.testing.assert_allclose(streamed, offline[: len(streamed)], atol=0.01)


@settings(max_examples=2 * EXAMPLES)
@given(
    method=st.sampled_from(["mean", "vote", "none"]),
    span=st.integers(1, 12),
    threshold=st.floats(0, 1),
    shape=st.tuples(st.integers(1, 60), st.integers(2, 9)),
    seed=st.integers(0, 1000),
    data=st.data(),
)
def test_smoothing_looks_at_the_last_windows_however_they_come(method, span, threshold, shape, seed, data):
    values = np.random.default_rng(seed).dirichlet(np.full(shape[1], 0.5), shape[0]).astype(np.float32)
    cuts, smoother = data.draw(pieces(len(values))), Smoother(method, span, threshold)
    found = [smoother(values[cut]) for cut in cuts]
    decided, confidence = (np.concatenate(part) for part in zip(*found, strict=True))
    for last in range(len(values)):
        latest = values[max(0, last + 1 - (1 if method == "none" else span)) : last + 1]
        if method == "vote":
            votes = latest.argmax(1).tolist()
            most = max(map(votes.count, votes))
            leading = next(vote for vote in reversed(votes) if votes.count(vote) == most)
            share = most / len(votes)
        else:
            leading, share = latest.mean(0).argmax(), latest.mean(0).max()
        assert confidence[last] == pytest.approx(share)
        assert 0 <= confidence[last] <= 1 + 1e-6
        assert decided[last] == (REJECTED if confidence[last] < threshold else leading)


def small_model() -> EMGForSequenceClassification:
    """Three channels, windows of 40 samples in four patches, random weights, a reference that was measured."""
    torch.manual_seed(0)
    shape = {"backbone": {"n_embd": 16, "n_head": 2, "n_layer": 1}, "window": 40, "patch": 10, "filters": 2}
    names = {"class_codes": [0, 1, 2], "class_names": ["a", "b", "c"], "channels": ["EMG_1", "EMG_2", "EMG_3"]}
    model = EMGForSequenceClassification(EMGConfig(**shape, **names, filter_taps=5)).eval()
    torch.nn.init.normal_(model.linear.weight)
    model.set_reference(measure_reference(torch.from_numpy(noise(4000, 3, 1).reshape(-1, 40, 3))))
    return model


MODEL = small_model()


@slow
@given(
    hop=st.integers(1, 40), samples=st.integers(1, 600), running=st.booleans(), seed=st.integers(0, 99), data=st.data()
)
def test_a_stream_decides_the_same_in_any_pieces(hop, samples, running, seed, data):
    signal, cuts = noise(samples, 3, seed), data.draw(pieces(samples))
    measure = lambda: RunningReference(MODEL, hop) if running else FixedReference(MODEL.reference)  # noqa: E731
    first, whole = Classifier(MODEL, hop, measure())(signal)
    part = Classifier(MODEL, hop, measure())
    places, values = (np.concatenate(each) for each in zip(*(part(signal[cut]) for cut in cuts), strict=True))
    assert first.tolist() == places.tolist() == list(range(0, samples - 39, hop))
    np.testing.assert_allclose(values, whole, atol=1e-5)
    np.testing.assert_allclose(whole.sum(1), 1, atol=1e-5)


@settings(max_examples=2 * EXAMPLES)
@given(plan=plans(), hop=st.integers(1, 60))
def test_the_truth_of_a_window_is_that_of_its_samples(plan, hop):
    labels, known = plan.takes[0].labels, [0, 1, 2, 5]
    assume(len(labels) >= plan.window)
    first = np.arange(0, len(labels) - plan.window + 1, hop)
    trims = tuple(trim * 1000 / plan.rate for trim in plan.trims)
    truth = truth_of(labels, first, plan.window, plan.rate, trims, known)
    since = since_change(labels.tolist())
    left = since_change(labels[::-1].tolist())[::-1]
    for begin, label in zip(first, truth.windows["label"], strict=True):
        own, last = labels[begin : begin + plan.window], begin + plan.window - 1
        inside = len(set(own)) == 1 and own[0] in known
        inside = inside and since[begin] >= plan.trims[0] and left[last] >= plan.trims[1]
        assert label == (own[0] if inside and since[last] - since[begin] == plan.window - 1 else -1)
