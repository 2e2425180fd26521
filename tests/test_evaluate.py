"""evaluate: every fold with every seed, the figures over people, what is kept after a kill, the protocols."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import matplotlib.image
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, call, run
from filelock import FileLock

from emg_gpt2.base.errors import EMGError
from emg_gpt2.commands.evaluate import main
from emg_gpt2.settings import Settings
from emg_gpt2.study.evaluation import add_baselines, facts_of_evaluation, run_of, settings_of_runs, windows_and_split
from emg_gpt2.study.folds import folds_of, reported_figures
from emg_gpt2.study.options import EvaluationSettings
from emg_gpt2.study.people import (
    METRICS,
    compare_methods,
    interval,
    over_people,
    per_subject_and_seed,
    read_fold_figures,
    read_predictions,
)
from emg_gpt2.study.rivals import plain_rival
from emg_gpt2.windows.reading import WindowSet, load_windows

LONG, SHORT = "emg_gestures-{}-repeats_long-{}-11-05-00-595", "emg_gestures-{}-repeats_short-{}-11-15-26-340"
DAYS = ("2018-05-11", "2018-06-14")  # of person 03
TINY = ["--precision", "fp32", "--tokens", "bands", "--lr", "3e-3", "--num-epochs"]


pytestmark = pytest.mark.usefixtures("one_thread")


def flags(data: Path, backbone: Path, out: Path, *more: str, epochs: int = 1) -> list[str]:
    paths = ["--data-location", data, "--model-name", backbone, "--out", out]
    return [*map(str, paths), *TINY, str(epochs), *more]


def filtered(source: Path, target: Path, keep) -> Path:
    """The windows for which `keep`, a function of the table, is true."""
    table = pq.read_table(source)
    pq.write_table(table.filter(pa.array(keep(table.drop_columns(["emg"]).to_pandas()))), target)
    return target


def parts_of(run_folder: Path) -> dict[str, set[str]]:
    """The recordings of the parts as split.csv lists them."""
    table = pd.read_csv(run_folder / "split.csv", keep_default_na=False)
    return {part: set(rows["recording"]) for part, rows in table.groupby("part")}


def snapshot(folder: Path) -> dict[Path, tuple[int, bytes]]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def read(folder: Path) -> dict:
    return json.loads((folder / "evaluation.json").read_text())


# ---- all folds and seeds --------------------------------------------------------------------------------------


class Evaluated(NamedTuple):
    """A finished evaluation with the seeds 0 and 1: its folder, what was said, its command line, and its folds."""

    out: Path
    done: subprocess.CompletedProcess
    split: list[str]
    folds: list[str]

    def flags(self, data: Path, backbone: Path, out: Path, *more: str) -> list[str]:
        return flags(data, backbone, out, "--seeds", "0,1", *self.split, *more)


@pytest.fixture(scope="session", params=["session", pytest.param("trajectory", marks=pytest.mark.nightly)])
def evaluated(small_file, tiny_gpt2, tmp_path_factory, request) -> Evaluated:
    """One fold of days, at night two of recordings; one epoch and one more of the second training each.

    Each session is measured by itself.
    """
    out, split = tmp_path_factory.mktemp("evaluated"), ["--split", request.param, "--scale", "session"]
    done = call("emg_gpt2.commands.evaluate", *flags(small_file, tiny_gpt2, out, "--seeds", "0,1", *split))
    assert done.returncode == 0, done.stderr
    return Evaluated(out, done, split, ["fold0"] if request.param == "session" else ["fold0", "fold1"])


def test_every_fold_and_seed_is_a_run_of_main(evaluated, small_file, tiny_gpt2, tmp_path):
    runs = evaluated.out / "runs"
    assert sorted(os.listdir(runs)) == [f"{fold}-seed{seed}" for fold in evaluated.folds for seed in (0, 1)]
    for fold, stem in zip(evaluated.folds, (LONG, SHORT), strict=False):
        days = {stem.format("03", day) for day in DAYS}
        days = days if len(evaluated.folds) == 2 else {stem.format("03", DAYS[1]) for stem in (LONG, SHORT)}
        assert parts_of(runs / f"{fold}-seed0")["test"] == days
    alone = ["--data-location", small_file, "--model-name", tiny_gpt2, "--run-dir", tmp_path / "run", *TINY, "1"]
    last = len(evaluated.folds) - 1
    assert call("main.py", *alone, *evaluated.split, "--fold", str(last), "--seed", "1").returncode == 0
    theirs, ours = tmp_path / "run", runs / f"fold{last}-seed1"
    for name in ("predictions.parquet", "split.csv"):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes()
    assert names_in(ours) == names_in(theirs)
    env = [json.loads((folder / "env.json").read_text()) for folder in (ours, theirs)]
    assert {name for name in env[0] if env[0][name] != env[1][name]} == {"RUN_DIR"}


def names_in(folder: Path) -> set[Path]:
    """All files and folders, but for those of tensorboard: their names hold the time."""
    names = {path.relative_to(folder) for path in folder.rglob("*")}
    return {name for name in names if len(name.parts) == 1 or name.parts[0] != "tensorboard"}


def test_figures_are_those_of_pooled_predictions(evaluated):
    """Recomputed with nothing but counts: recall and precision of every label, from all folds of a seed together."""
    found, runs = read(evaluated.out), evaluated.out / "runs"
    seeds = []
    for seed in (0, 1):
        folds = [pd.read_parquet(runs / f"{fold}-seed{seed}" / "predictions.parquet") for fold in evaluated.folds]
        pooled = pd.concat(folds)
        right, labels = pooled["predicted"] == pooled["TRAJ_GT"], sorted(set(pooled["TRAJ_GT"]))
        recalls = [right[pooled["TRAJ_GT"] == label].mean() for label in labels]
        hits = [2 * (right & (pooled["TRAJ_GT"] == label)).sum() for label in labels]
        named = [(pooled["TRAJ_GT"] == label).sum() + (pooled["predicted"] == label).sum() for label in labels]
        seeds.append([np.mean(recalls), right.mean(), np.mean(np.array(hits) / np.array(named))])
    assert len(pooled) == found["per_subject"]["03"]["windows"]
    assert len(pooled) == 1447 or len(evaluated.folds) == 1
    for metric, values in zip(METRICS, np.transpose(seeds), strict=True):
        person, overall = found["per_subject"]["03"], found["overall"][metric]
        for mean in (person[metric], overall["mean"]):
            assert mean == pytest.approx(values.mean())
        for deviation in (person[f"{metric}_std_over_seeds"], overall["std_over_seeds"]):
            assert deviation == pytest.approx(values.std(ddof=1))
        assert overall["std"] is overall["low"] is overall["high"] is None
    assert np.trace(found["confusion_matrix"]) == pytest.approx(found["overall"]["accuracy"]["mean"] * 2 * len(pooled))


def test_results_are_printed_and_written(evaluated):
    out, done = evaluated.out, evaluated.done
    found, folds = read(out), "1 fold" if len(evaluated.folds) == 1 else "2 folds"
    mean = f"{found['overall']['balanced_accuracy']['mean']:.3f}"
    assert f"1 person, {folds}, 2 seeds; chance (balanced) 0.125" in done.stdout
    assert done.stdout.count(mean) >= 2  # over people, and that of person 03
    assert "no interval over fewer than three people" in done.stdout
    assert "On the validation parts the backbone adds " in done.stdout
    assert "too few people to say (1)" in done.stdout
    assert "Reported by others" not in done.stdout
    assert f"run {2 * len(evaluated.folds)} of {2 * len(evaluated.folds)}" in done.stderr
    people = pd.read_csv(out / "per_subject.csv", dtype={"subject": str}).set_index("subject")
    assert people.loc["03", "macro_f1"] == pytest.approx(found["overall"]["macro_f1"]["mean"])
    assert not found["leaky"]
    for name in ("evaluation.png", "confusion_matrix.png"):
        image = matplotlib.image.imread(out / name)[:, :, :3]
        assert 0.005 < (image.min(2) < 0.9).mean() < 0.9
    assert {path.name for path in out.iterdir()} == {
        *("runs", "evaluation.json", "evaluation.png", "per_subject.csv"),
        *("confusion_matrix.png", "settings.json"),
    }


# ---- going on -------------------------------------------------------------------------------------------------


def test_the_same_command_finishes_what_was_interrupted_and_leaves_the_rest(evaluated, small_file, tiny_gpt2, tmp_path):
    """As a kill leaves a run when its training is done."""
    out = shutil.copytree(evaluated.out, tmp_path / "out")
    before = snapshot(out / "runs")
    for name in ("metrics.json", "predictions.parquet", "report.html"):
        (out / "runs" / "fold0-seed1" / name).unlink()
    done = call("emg_gpt2.commands.evaluate", *evaluated.flags(small_file, tiny_gpt2, out))
    assert done.returncode == 0, done.stderr
    after = snapshot(out / "runs")
    assert {path for path in before if before[path] != after.get(path) and "fold0-seed1" not in path.parts} == set()
    log = (out / "runs" / "fold0-seed1" / "log.txt").read_text()
    assert "going on after epoch 1" in log
    assert "run 2 of" not in log  # what is said of the evaluation is not in the log of a run
    for name in ("evaluation.json", "per_subject.csv", "runs/fold0-seed1/predictions.parquet"):
        assert (out / name).read_bytes() == (evaluated.out / name).read_bytes()


def stop(arguments: list[str], path: Path, number: int) -> tuple[int, str]:
    """Send evaluate the signal `number` as soon as `path` is there; returns its status and stderr."""
    command = [sys.executable, "-m", "emg_gpt2", "evaluate", *arguments]
    variables = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=ROOT, env=variables, **streams)
    patience = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < patience
        time.sleep(0.005)
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    return process.returncode, said


@pytest.mark.nightly
def test_after_a_kill_the_same_command_gives_what_an_undisturbed_one_gives(evaluated, small_file, tiny_gpt2, tmp_path):
    arguments, runs = evaluated.flags(small_file, tiny_gpt2, tmp_path), tmp_path / "runs"
    status, said = stop(arguments, runs / "fold0-seed0" / "last" / "history.json", signal.SIGINT)
    assert status == 130
    assert said.endswith("evaluate: interrupted; run the same command again, which goes on where it was\n")
    status, _ = stop(arguments, runs / "fold0-seed1" / "last" / "history.json", signal.SIGKILL)
    assert status == -signal.SIGKILL
    first = snapshot(runs / "fold0-seed0")

    done = run("-m", "emg_gpt2", "evaluate", *arguments)
    assert done.returncode == 0, done.stderr
    assert snapshot(runs / "fold0-seed0") == first
    for name in ("fold0-seed0", "fold0-seed1"):
        assert "going on after epoch" in (runs / name / "log.txt").read_text()
    for name in ("evaluation.json", "per_subject.csv"):
        assert (tmp_path / name).read_text() == (evaluated.out / name).read_text()
    for folder in (evaluated.out / "runs").iterdir():
        predictions = [path / "predictions.parquet" for path in (folder, runs / folder.name)]
        assert predictions[0].read_bytes() == predictions[1].read_bytes()


@pytest.mark.parametrize(
    ("more", "found"),
    [
        (["--lr", "1e-3"], "its runs were made with LR = 0.003, not 0.001; name another --out"),
        (["--protocol", "B"], "PROTOCOL = none, not B"),
        (["--fold", "1"], "evaluate sets FOLD itself; leave out --fold"),
        (["--protocol", "D", "--balance", "none"], "protocol D sets BALANCE itself; leave out --balance"),
        (["--protocol", "A", "--train-on", "03/*"], "protocol A sets TRAIN_ON itself; leave out --train-on"),
        (["--protocol", "E"], "PROTOCOL = E: should be 'none', 'A', 'B', 'C' or 'D' (--protocol: A: within"),
        (["--seeds", "0,1,1"], "SEEDS = 0,1,1: should be one seed or more, each given once (--seeds: "),
        (["--sed", "1"], "there is no such flag (did you mean --seed?)"),
    ],
)
def test_what_does_not_fit_is_one_sentence(evaluated, small_file, tiny_gpt2, more, found, capsys):
    before, given = snapshot(evaluated.out), evaluated.flags(small_file, tiny_gpt2, evaluated.out, *more)
    if "--protocol" in more:
        del given[given.index("--split") : given.index("--split") + 2]  # which a protocol sets
    assert main(given) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert found in said.err.splitlines()[-1]
    assert "Traceback" not in said.err
    assert snapshot(evaluated.out) == before


def test_other_windows_under_the_same_name_are_refused(evaluated, windows_file, tiny_gpt2, capsys):
    assert main(evaluated.flags(windows_file, tiny_gpt2, evaluated.out)) == 1
    assert "contents of DATA_LOCATION = " in capsys.readouterr().err


def test_one_at_a_time_works_in_a_folder(small_file, tiny_gpt2, tmp_path, capsys):
    with FileLock(tmp_path / ".lock"):
        assert main(flags(small_file, tiny_gpt2, tmp_path)) == 1
    assert capsys.readouterr().err.endswith("works there; wait for it, or name another --out\n")
    assert os.listdir(tmp_path) == [".lock"]


def test_a_run_that_fails_is_named_and_the_others_count(evaluated, small_file, tiny_gpt2, tmp_path, capsys):
    """A finished run that is of another split."""
    out = shutil.copytree(evaluated.out, tmp_path / "out")
    split = out / "runs" / "fold0-seed0" / "split.csv"
    split.write_text(split.read_text().replace("train", "test"))
    assert main(evaluated.flags(small_file, tiny_gpt2, out)) == 3
    said, found = capsys.readouterr(), read(out)
    reason = f"{split.parent}: the run is of another split; remove it, or name another --out"
    assert found["failed"] == {"fold0-seed0": reason}
    assert "FAILED, and missing above:\n  fold0-seed0: " in said.out
    assert f"fold0-seed0 failed: {reason}\n" in said.err
    tested = Counter()
    for name in {f"{fold}-seed{seed}" for fold in evaluated.folds for seed in (0, 1)} - {"fold0-seed0"}:
        tested[int(name[-1])] += len(pd.read_parquet(out / "runs" / name / "predictions.parquet"))
    assert {row["seed"]: row["windows"] for row in found["per_subject_and_seed"]} == tested


@pytest.mark.nightly
def test_a_fold_that_fails_is_named_and_the_others_go_on(small_file, tiny_gpt2, tmp_path, capsys):
    """Fold 0 holds the long trajectories out, and label 9 is in no other."""
    data = filtered(
        small_file,
        tmp_path / "data.parquet",
        lambda table: (table["TRAJ_GT"] != 9) | (table["trajectory"] == "repeats_long"),
    )
    arguments = flags(data, tiny_gpt2, tmp_path / "out", "--seeds", "0")
    assert main(arguments) == 3
    said, found = capsys.readouterr(), read(tmp_path / "out")
    assert list(found["failed"]) == ["fold0-seed0"]
    assert found["failed"]["fold0-seed0"].startswith("class 9 (pinch small) has 0 windows in the training part")
    assert "fold0-seed0: class 9" in said.out
    assert "fold0-seed0 failed: class 9" in said.err
    assert found["per_subject"]["03"]["windows"] == len(
        pd.read_parquet(tmp_path / "out" / "runs" / "fold1-seed0" / "predictions.parquet")
    )


def test_nothing_is_written_where_every_run_fails(small_file, tiny_gpt2, tmp_path, capsys):
    assert main(flags(small_file, tiny_gpt2, tmp_path, "--patch-ms", "200", "--seeds", "0", "--split", "session")) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("evaluate: no run was finished, the first one because:")
    assert not (tmp_path / "evaluation.json").exists()


# ---- protocols ------------------------------------------------------------------------------------------------


def planned(data: Path, protocol: str, **changes) -> tuple[dict[str, dict[str, set]], dict]:
    """Fold → part → recordings, of the runs that are planned for a protocol, and the facts of the evaluation."""
    given = EvaluationSettings(PROTOCOL=protocol, DATA_LOCATION=data, SEEDS=[0], **changes)
    settings, windows = settings_of_runs(given), load_windows(given)
    folds, left_out = folds_of(windows.table, settings, protocol)
    runs = [run_of(fold, 0, settings, Path("out")) for fold in folds]
    found = {}
    for one in runs:
        part, split = windows_and_split(one, windows)
        names = part.table.assign(part=split.part_of(len(part.table)))
        found[one.fold.name] = {name: set(rows["recording"]) for name, rows in names.groupby("part")}
    return found, facts_of_evaluation(given, windows, runs, left_out)


def test_protocol_a_holds_out_each_recording_of_each_day(small_file, tmp_path):
    """Without the first day's short trajectory, that day has a single recording and is left out."""
    gone = SHORT.format("03", DAYS[0])
    data = filtered(small_file, tmp_path / "data.parquet", lambda table: table["recording"] != gone)
    found, facts = planned(data, "A")
    long, short = LONG.format("03", DAYS[1]), SHORT.format("03", DAYS[1])
    rest = {LONG.format("03", DAYS[0])}
    assert found == {
        long: {"train": {short}, "validation": {short}, "test": {long}, "": rest},
        short: {"train": {long}, "validation": {long}, "test": {short}, "": rest},
    }
    assert facts["left_out"] == [f"03/{DAYS[0]} has a single recording"]
    assert "Sensors 2019, 19, 3548" in facts["source"]


def test_protocol_c_tests_on_unseen_people(four_people):
    windows = load_windows(Settings(DATA_LOCATION=four_people)).table
    recordings = {subject: set(rows["recording"]) for subject, rows in windows.groupby("subject")}
    found, facts = planned(four_people, "C")
    assert list(found) == facts["folds"] == ["fold0", "fold1", "fold2", "fold3"]
    for parts, (subject, own) in zip(found.values(), recordings.items(), strict=True):
        assert parts["test"] == own
        assert parts["train"] | parts["validation"] == set(windows.loc[windows["subject"] != subject, "recording"])


def test_protocol_d_is_balanced_and_says_that_it_leaks(small_file):
    """A share of 0.4 held out gives three folds."""
    found, facts = planned(small_file, "D", TEST_SHARE=0.4)
    assert len(found) == 3
    assert facts["leaky"]
    assert "LEAKY" in facts["title"]
    settings = settings_of_runs(EvaluationSettings(PROTOCOL="D", DATA_LOCATION=small_file, TEST_SHARE=0.4))
    windows = load_windows(settings)
    folds, _ = folds_of(windows.table, settings, "D")
    splits = [windows_and_split(run_of(fold, 0, settings, Path("out")), windows)[1] for fold in folds]
    assert sorted(np.concatenate([split.test for split in splits])) == list(range(1447))  # every window once
    assert len(set(np.bincount(windows.targets[splits[0].train]))) == 1


@pytest.mark.nightly
def test_protocol_a_from_the_command_line(small_file, tiny_gpt2, tmp_path):
    """Without the first day's short trajectory, that day has a single recording and is left out."""
    gone = SHORT.format("03", DAYS[0])
    data = filtered(small_file, tmp_path / "data.parquet", lambda table: table["recording"] != gone)
    assert main(flags(data, tiny_gpt2, tmp_path / "out", "--protocol", "A", "--seeds", "0")) == 0
    long, short = LONG.format("03", DAYS[1]), SHORT.format("03", DAYS[1])
    assert sorted(os.listdir(tmp_path / "out" / "runs")) == [f"{long}-seed0", f"{short}-seed0"]
    for test, train in ((long, short), (short, long)):
        parts = parts_of(tmp_path / "out" / "runs" / f"{test}-seed0")
        assert (parts["train"], parts["validation"], parts["test"]) == ({train}, {train}, {test})
        assert parts[""] == {LONG.format("03", DAYS[0])}
    assert read(tmp_path / "out")["left_out"] == [f"03/{DAYS[0]} has a single recording"]
    assert "Sensors 2019, 19, 3548" in read(tmp_path / "out")["source"]


def one_person_with_two_days(source: Path, target: Path) -> Path:
    """Person 04 keeps the first day alone; every fourth idle window stays."""

    def keep(table: pd.DataFrame) -> pd.Series:
        first = table["session"] == table["session"][table["subject"] == "04"].min()
        return ((table["TRAJ_GT"] != 0) | (table.index % 4 == 0)) & ((table["subject"] == "03") | first)

    return filtered(source, target, keep)


def test_protocol_b_trains_on_the_first_day_and_tests_on_the_later(windows_file, tmp_path):
    data = one_person_with_two_days(windows_file, tmp_path / "data.parquet")
    found, facts = planned(data, "B")
    table = load_windows(Settings(DATA_LOCATION=data)).table
    days = [set(table.loc[(table["subject"] == "03") & (table["session"] == day), "recording"]) for day in DAYS]
    assert list(found) == ["03"]
    parts = found["03"]
    assert parts["train"] | parts["validation"] == days[0]
    assert not parts["train"] & parts["validation"]
    assert parts["test"] == days[1]
    assert set(parts) == {"train", "validation", "test"}  # person 04 is not even listed
    assert facts["left_out"] == ["04 has a single day"]


@pytest.mark.nightly
def test_protocol_b_from_the_command_line(windows_file, tiny_gpt2, tmp_path, capsys):
    data = one_person_with_two_days(windows_file, tmp_path / "data.parquet")
    assert main(flags(data, tiny_gpt2, tmp_path / "out", "--protocol", "B", "--seeds", "5")) == 0
    assert os.listdir(tmp_path / "out" / "runs") == ["03-seed5"]
    assert "Left out:\n  04 has a single day" in capsys.readouterr().out


@pytest.fixture(scope="session")
def four_people(windows_file, tmp_path_factory) -> Path:
    """Each of the four days becomes a person of its own."""
    table = pq.read_table(windows_file)
    frame = table.drop_columns(["emg"]).to_pandas()
    people = {day: f"{number:02d}" for number, day in enumerate(sorted(frame["session"].unique()), 11)}
    subject = pa.array(frame["session"].map(people))
    table = table.set_column(table.schema.get_field_index("subject"), "subject", subject)
    path = tmp_path_factory.mktemp("four") / "four.parquet"
    pq.write_table(table.filter(pa.array((frame["TRAJ_GT"] != 0) | (frame.index % 4 == 0))), path)
    return path


@pytest.mark.nightly
def test_protocol_c_from_the_command_line(four_people, tiny_gpt2, tmp_path, capsys):
    assert main(flags(four_people, tiny_gpt2, tmp_path, "--protocol", "C", "--seeds", "0")) == 0
    found = read(tmp_path)
    assert list(found["per_subject"]) == ["11", "12", "13", "14"]
    for fold, subject in enumerate(found["per_subject"]):
        predictions = pd.read_parquet(tmp_path / "runs" / f"fold{fold}-seed0" / "predictions.parquet")
        assert set(predictions["subject"]) == {subject}
        split = pd.read_csv(tmp_path / "runs" / f"fold{fold}-seed0" / "split.csv", dtype={"subject": str})
        assert set(split.loc[split["part"] == "train", "subject"]) == set(found["per_subject"]) - {subject}
    means = [one["balanced_accuracy"] for one in found["per_subject"].values()]
    overall = found["overall"]["balanced_accuracy"]
    assert (overall["mean"], overall["std"]) == pytest.approx((np.mean(means), np.std(means, ddof=1)))
    assert min(means) <= overall["low"] < overall["mean"] < overall["high"] <= max(means)
    assert f"{overall['low']:.3f} to {overall['high']:.3f}" in capsys.readouterr().out


@pytest.mark.nightly
def test_protocol_d_from_the_command_line(small_file, tiny_gpt2, tmp_path, capsys):
    """A share of 0.4 held out gives three folds."""
    assert main(flags(small_file, tiny_gpt2, tmp_path, "--protocol", "D", "--seeds", "0", "--test-share", "0.4")) == 0
    said, found = capsys.readouterr(), read(tmp_path)
    assert found["folds"] == ["fold0", "fold1", "fold2"]
    assert found["leaky"]
    assert found["per_subject"]["03"]["windows"] == 1447  # every window once
    split = pd.read_csv(tmp_path / "runs" / "fold0-seed0" / "split.csv")
    assert split.loc[split["part"] == "train", "TRAJ_GT"].value_counts().nunique() == 1
    for text in (said.out, said.err, (tmp_path / "per_subject.csv").read_text()):
        assert "LEAKY" in text


def table_of(*people: str) -> pd.DataFrame:
    """One window of each person on each of two days, in a recording of its own."""
    rows = [{"subject": one, "session": day, "recording": f"{one}-{day}"} for one in people for day in DAYS]
    return pd.DataFrame(rows)


def test_protocol_c_takes_the_tabpfn_studys_people_where_they_and_others_are_there():
    [fold], _ = folds_of(table_of("03", "08", "24", "34", "39"), Settings(), "C")
    assert fold.changes == {"SPLIT": "subject", "TEST_ON": ["08/*", "24/*", "34/*", "39/*"]}
    for people in (("08", "24", "34", "39"), ("03", "04", "08", "24", "34")):
        folds, _ = folds_of(table_of(*people), Settings(TEST_SHARE=0.1), "C")
        assert [one.changes["FOLD"] for one in folds] == list(range(len(people)))


def test_folds_that_only_some_units_give_are_named():
    """With a share of 0.3, three recordings of a day give three folds and two give two."""
    table = table_of("03", "04").assign(session="2018-05-11")
    folds, left_out = folds_of(table, Settings(), "none")
    assert ([fold.name for fold in folds], left_out) == (["fold0", "fold1"], [])
    third = pd.DataFrame([{"subject": "03", "session": "2018-05-11", "recording": "third"}])
    folds, left_out = folds_of(pd.concat([table, third]), Settings(), "none")
    assert [fold.name for fold in folds] == ["fold0", "fold1"]
    assert left_out == ["folds 2 to 2: some units of the split give 2 folds and others 3"]


@pytest.mark.parametrize(("split", "folds"), [("session", 1), ("subject", 2), ("trajectory", 1)])
def test_number_of_folds(split, folds):
    """Where no unit can be cut there is one fold, whose run says what is wrong."""
    assert len(folds_of(table_of("03", "04"), Settings(SPLIT=split), "none")[0]) == folds


@pytest.mark.parametrize("protocol", ["A", "B"])
def test_a_protocol_that_nobody_has_the_recordings_for(protocol):
    table = table_of("03").iloc[:1]
    with pytest.raises(EMGError, match=f"protocol {protocol} needs a .* or more, and the file has none"):
        folds_of(table, Settings(), protocol)


def putemg_windows(note: str = "", recording: str = "emg_gestures-03-sequential-2018-05-11-11-10-50-475") -> WindowSet:
    """What tells putEMG's windows: 24 channels of whole counts at 5124.08 Hz."""
    metadata = {"channels": ["EMG"] * 24, "unit": "count", "note": note, "sources": [{"sampling_rate": 5124.09}]}
    return WindowSet(np.empty((1, 1, 24)), pd.DataFrame({"recording": [recording]}), metadata)


def test_the_literature_is_quoted_for_its_own_protocol_on_putemg_alone(small_file):
    for protocol, figure in {"A": "90 %", "B": "0.18", "C": "84.69 %", "D": "71.28 %"}.items():
        assert figure in " ".join(reported_figures(putemg_windows(), protocol))
        assert "71.28" not in " ".join(reported_figures(putemg_windows(), "C"))
    simulated = [putemg_windows(note="SIMULATED: nobody"), putemg_windows(recording=LONG.format("03", DAYS[0]))]
    for windows in (*simulated, load_windows(Settings(DATA_LOCATION=small_file))):
        assert reported_figures(windows, "A") == ()
    assert reported_figures(putemg_windows(), "none") == ()


# ---- figures over people --------------------------------------------------------------------------------------


def test_interval_of_a_hand_made_example():
    """(0, 0, 0, 4): a resample's mean is how often 4 is drawn in four times, binomial with p = 1/4.

    P(0) = 0.316 > 2.5 %, and P(≤ 2) = 0.949 < 97.5 % < P(≤ 3) = 0.996, so the interval is 0 to 3.
    """
    assert interval(np.array([0.0, 0.0, 0.0, 4.0])) == (0, 3)
    assert interval(np.array([0.5, 0.5, 0.5])) == (0.5, 0.5)
    assert interval(np.array([0.1, 0.9])) is None


def test_a_person_is_the_unit():
    """Person 03 has a hundred times the windows of 04 and counts as much; seed means 0.6 and 0.8."""
    rows = [("03", 0, 0.5, 1000), ("03", 1, 0.7, 1000), ("04", 0, 0.7, 10), ("04", 1, 0.9, 10)]
    figures = pd.DataFrame(rows, columns=["subject", "seed", "accuracy", "windows"]).set_index(["subject", "seed"])
    figures = figures.assign(balanced_accuracy=0.5, macro_f1=0.5)
    found = over_people(figures)["accuracy"]
    assert found["mean"] == pytest.approx(0.7)  # of 0.6 and 0.8
    assert found["std"] == pytest.approx(0.2 / np.sqrt(2))
    assert found["std_over_seeds"] == pytest.approx(0.2 / np.sqrt(2))
    assert found["low"] is None


def test_baselines_stand_beside_ours_fold_by_fold(tmp_path):
    """Two folds of 30 and 10 windows: ours (3·0.8 + 0.4)/4 = 0.7, the baseline (3·0.4 + 0.8)/4 = 0.5."""
    runs = {}
    for fold, windows, ours, theirs in (("fold0", 30, 0.8, 0.4), ("fold1", 10, 0.4, 0.8)):
        folder = runs[fold, 0] = tmp_path / fold
        folder.mkdir()
        scores = [{"03": dict.fromkeys(METRICS, value) | {"windows": windows}} for value in (ours, theirs)]
        (folder / "metrics.json").write_text(json.dumps({"per_subject": scores[0]}))
        (folder / "env.json").write_text(json.dumps({"SCALE": "session"}))
        method = {"features": "RMS", "classifier": "LDA", "level": "transductive", "validation": 0.9}
        method["per_subject"] = scores[1]
        (folder / "baselines.json").write_text(json.dumps({"baselines": [method]}))
    first, second = compare_methods(read_fold_figures(runs))
    assert (first["features"], first["level"], first["accuracy"]["mean"]) == (
        "ours",
        "transductive",
        pytest.approx(0.7),
    )
    assert [second[name] for name in ("features", "classifier", "level")] == ["RMS", "LDA", "transductive"]
    assert second["validation"] == pytest.approx(0.9)
    assert second["p"] is None  # of one person
    assert second["balanced_accuracy"]["mean"] == pytest.approx(0.5)
    assert second["ahead"] == pytest.approx(0.2)


def test_windows_of_all_folds_are_pooled(tmp_path):
    """One window of the first fold is right, three of the second are wrong: 1/4, not the mean over folds, 1/2."""
    runs = {}
    for fold, predicted in (("fold0", [1]), ("fold1", [2, 2, 2])):
        runs[fold, 7] = tmp_path / fold
        runs[fold, 7].mkdir()
        table = pd.DataFrame({"subject": "03", "TRAJ_GT": 1, "predicted": predicted})
        table.to_parquet(runs[fold, 7] / "predictions.parquet")
    figures = per_subject_and_seed(read_predictions(runs)).loc["03", 7]
    assert (figures["accuracy"], figures["balanced_accuracy"], figures["windows"]) == (0.25, 0.25, 4)


def test_every_figure_of_a_transductive_evaluation_says_so(evaluated):
    found, run = read(evaluated.out), evaluated.out / "runs" / "fold0-seed0"
    assert found["transductive"]
    assert found["title"].endswith(", transductive")  # which the table, the picture and per_subject.csv show
    assert f"\n{found['title']}\n" in evaluated.done.stdout
    assert json.loads((run / "metrics.json").read_text())["transductive"]
    for name, words in (
        ("log.txt", "test (transductive): accuracy"),
        ("report.html", "<strong>Transductive.</strong>"),
        ("best_model/README.md", "The figures are **transductive**"),
    ):
        assert words in (run / name).read_text(encoding="utf-8")


def test_baselines_are_run_once_per_split_and_shown(evaluated, small_file, tiny_gpt2, tmp_path, capsys, monkeypatch):
    """The runs stay as they are, and the second seed gets a copy; given again, the command fits nothing."""
    monkeypatch.setattr("emg_gpt2.study.baselines.all_rivals", lambda: [plain_rival("RMS", "LDA")])
    out = shutil.copytree(evaluated.out, tmp_path / "out")
    arguments = evaluated.flags(small_file, tiny_gpt2, out, "--baselines")
    models = snapshot(out / "runs")
    assert main(arguments) == 0
    said, found, first = capsys.readouterr(), read(out), snapshot(out / "runs")
    assert {path: first[path] for path in models} == models
    for fold in evaluated.folds:
        files = [out / "runs" / f"{fold}-seed{seed}" / "baselines.json" for seed in (0, 1)]
        assert files[0].read_bytes() == files[1].read_bytes()
    assert {row["level"] for row in found["baselines"]} >= {"inductive", "unlabelled", "transductive"}
    assert "LDA on" in said.out
    assert said.err.count("\nRMS, LDA: inductive ") == len(evaluated.folds)
    windows = load_windows(Settings(DATA_LOCATION=small_file))
    settings = settings_of_runs(EvaluationSettings(SPLIT=evaluated.split[1]))
    folds, _ = folds_of(windows.table, settings, "none")
    assert add_baselines([run_of(fold, seed, settings, out) for fold in folds for seed in (0, 1)], windows) == {}
    assert snapshot(out / "runs") == first
