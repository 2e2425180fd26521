"""All programmes of stress as they run without --nightly: nothing is lost, as often as was asked for; more flaws."""

import multiprocessing.forkserver
import os
import shutil
import sys
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import ROOT, run

import EMG_utils
from emg_gpt2.training import trainer
from stress import faults, fuzz, hostile, hostile_models, hostile_recordings, limits, numbers, properties
from stress.__main__ import main
from stress.numbers_cases import FAMILIES, Case, spoil_training
from stress.row import Row
from stress.scripts import make_gpt2

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(sys.platform == "win32", reason="processes are forked"),
]


@pytest.fixture(scope="module", autouse=True)
def own_fork_server():
    multiprocessing.forkserver._forkserver._stop()


def rows_of(programme, folder: Path) -> list[Row]:
    """Its rows, of which none has lost anything."""
    found = list(programme.rows(False, folder, 0, print))
    assert [row.lost for row in found] == [[] for _ in found]
    return found


def test_every_hostile_file_is_refused_or_harmless(tmp_path):
    found = {row.tried: row for row in rows_of(hostile, tmp_path)}
    times = {f"hostile {kind}": len(cases) for kind, cases in hostile.CASES.items()}
    assert {tried: row.times for tried, row in found.items()} == times
    assert sum(times.values()) > 90
    assert {tried: row.right for tried, row in found.items() if row.right} == {
        "hostile HDF5": 1,  # the pickles that are not looked at
        "hostile parquet": 1,  # the pickled types, which pyarrow leaves alone
        "hostile GGUF": 2,  # a long list of texts and a field that asks for code, which are skipped
    }
    assert 0 < max(row.megabytes for row in found.values()) < 2000


def test_preprocessing_skips_all_hostile_recordings_at_once_and_takes_the_good_one(tmp_path):
    """Each has a sentence of its own, in one run; without those whose reading takes seconds."""
    whole, raw = tmp_path / "whole", tmp_path / "all"
    whole.mkdir(), raw.mkdir()
    fuzz.make_files(whole)
    cases = {**hostile.HDF5, **hostile.ZIP, "a pipe": hostile_recordings.pipe, "a device": hostile_recordings.device}
    for number, (name, make) in enumerate(cases.items()):
        (place := tmp_path / name.replace("/", " ")).mkdir()
        os.rename(path := make(whole, place), raw / f"{path.stem[:-3]}{number + 100}{path.suffix}")
    done = run("Preprocessing.py", raw, "--data-location", tmp_path / "windows.parquet")
    assert (done.returncode, done.stderr) == (3, "")
    assert "Traceback" not in done.stdout
    assert sum(line.startswith("skipped: ") for line in done.stdout.splitlines()) == len(cases) - 1
    assert pq.read_metadata(tmp_path / "windows.parquet").num_rows > 0
    assert not list(tmp_path.rglob(hostile_recordings.TRACE))


def test_no_damaged_file_is_read_wrongly(tmp_path):
    found = rows_of(fuzz, tmp_path)
    assert [row.times for row in found] == [fuzz.FEW] * len(fuzz.KINDS)
    assert all(row.refused for row in found)
    assert sum(row.right for row in found) > fuzz.FEW / 5
    assert max(row.megabytes for row in found) < 2000


def test_models_and_runs_from_strangers_lose_nothing(tmp_path):
    """Per folder and call: 4 pickles and 9 kinds of code, 2 commands; 15 strange tensors; 40 values and 7 texts."""
    plants, tensors, configs, mutated_configs, weights, states, files, pages = rows_of(hostile_models, tmp_path)
    assert plants.times == 2 * (4 + 9) + 2
    assert plants.refused == 2 * 2 + 2  # those in place of the weights
    assert (tensors.times, tensors.right) == (2 * 15 + 5, 0)
    assert configs.times == 2 * (40 + 7)
    assert (mutated_configs.times, weights.times, files.times) == hostile_models.TRIES
    assert (states.refused, states.right) == (2, 2)  # in place of the state; beside it, and in a finished run
    assert (pages.times, pages.right) == (3, 3)


def test_kills_full_disks_and_changing_files_lose_nothing(tmp_path):
    found = rows_of(faults, tmp_path)
    killed = [row for row in found if row.tried.startswith(("SIGKILL at", "SIGTERM at"))]
    assert [row.times for row in killed] == [faults.KILLS] * 8
    assert {row.tried.partition(" for ")[0] for row in found if " for " in row.tried} == {
        "full disk",
        "read-only folder",
    }
    assert all(row.times or row.note.startswith("not tried") for row in found)
    assert [row.times for row in found[-3:]] == [faults.CHANGES, 1, 1]


def test_the_limits_hold(tmp_path):
    found = rows_of(limits, tmp_path)
    memory = 1 if sys.platform == "linux" else 0
    assert [row.times for row in found] == [limits.TOGETHER, limits.TOGETHER, limits.SHARED, memory, memory]
    assert (found[1].right, found[1].refused) == (1, limits.TOGETHER - 1)


# ---- odd numbers ------------------------------------------------------------------------------------------------


def test_no_odd_number_shape_or_class_is_lost(tmp_path):
    found = rows_of(numbers, tmp_path)
    quick = [[case for case in cases if case.quick] for cases in FAMILIES.values()]
    assert [row.tried for row in found] == list(FAMILIES)
    assert [row.refused for row in found] == [sum(bool(case.refusal) for case in cases) for cases in quick]
    assert [row.right for row in found] == [sum(not case.refusal for case in cases) for cases in quick]


def without_checks(epoch: int, step: int, what: str) -> None:
    """The training goes on with what is no number."""
    trainer.check_steps = trainer.check_weights = EMG_utils.check_validation = lambda *given: None
    spoil_training(epoch, step, what)


def before_training(act) -> None:
    import main as script

    really = script.fit
    script.fit = lambda *given, **named: (act(), really(*given, **named))[1]


def warn() -> None:
    import warnings

    before_training(partial(warnings.warn, "odd", RuntimeWarning))


def fail() -> None:
    before_training(lambda: 1 / 0)


def keep_nothing() -> None:
    """The best model stays in memory."""
    trainer.Checkpoints.write_best = lambda self: None
    spoil_training(2, 1, "sample")


KEPT = {"refusal": "the loss is nan in epoch 2, step 1", "kept": ("best_model/model.safetensors",)}
SUBJECT = "--split subject"
FLAWED = {
    "a loss that nobody looks at": (
        {"before": partial(without_checks, 2, 2, "sample")},
        "has a loss that is no number",
    ),
    "a warning": ({"before": warn}, "main prints"),
    "a traceback": ({"before": fail}, "main prints ZeroDivisionError"),
    "a model that is not kept": ({"before": keep_nothing} | KEPT, "best_model/model.safetensors was not kept"),
    "a refusal that is not wanted": ({"flags": SUBJECT}, "should be refused not at all, and main.py: the file has a"),
    "another reason": ({"flags": SUBJECT, "refusal": "moon"}, "should be refused with the words “moon”, and main.py"),
    "no refusal": ({"refusal": "moon"}, "it should be refused (moon) and was not"),
}


def test_flaws_of_the_training_are_found(tmp_path):
    cases = [Case(name, **flawed) for name, (flawed, _) in FLAWED.items()]
    given = numbers.write_recordings(tmp_path, 0), make_gpt2(tmp_path / "gpt2"), tmp_path / "family"
    row = numbers.row_of("flawed", cases, *given, more=False)
    assert (row.refused, row.right) == (0, 0)
    for (name, (_, words)), sentence in zip(FLAWED.items(), row.lost, strict=True):
        assert sentence.startswith(f"{name}: ")
        assert words in sentence


def test_the_command_prints_the_table(tmp_path, monkeypatch):
    monkeypatch.setattr("stress.numbers.FAMILIES", {"short windows": FAMILIES["short windows"][:1]})
    assert main(["numbers", "--out", str(tmp_path)]) == 0
    assert "| numbers | short windows | 1 | 1 | 0 | 0 |" in (tmp_path / "stress.md").read_text()


# ---- properties -------------------------------------------------------------------------------------------------

FILE = "tests/test_properties.py"
WINDOWS = f"{FILE}::test_every_eligible_window_is_there_once_with_its_own_samples"


def test_a_row_counts_the_examples_of_its_property(monkeypatch, tmp_path):
    monkeypatch.setattr(properties, "TESTS", f"{FILE}::test_class_weights_give_every_class_the_same_say")
    printed = []
    (row,) = properties.rows(True, tmp_path, 0, printed.append)
    assert (row.tried, row.times, row.lost) == ("class weights give every class the same say", 1000, [])
    assert printed == ["class weights give every class the same say: held"]


def test_a_planted_flaw_is_lost_with_its_smallest_example(monkeypatch, tmp_path):
    """Repetitions keep the end that should be trimmed."""
    copy, ignored = tmp_path / "copy", shutil.ignore_patterns("__pycache__")
    for name in ("tests", "emg_gpt2"):
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    for path in [*ROOT.glob("*.py"), ROOT / "pyproject.toml"]:
        shutil.copy(path, copy)
    cut = copy / "emg_gpt2" / "windows" / "cut.py"
    right = cut.read_text(encoding="utf-8")
    assert right.count("end - trim_end - layout.window") == 1
    cut.write_text(right.replace("end - trim_end - layout.window", "end - layout.window"), encoding="utf-8")
    monkeypatch.setattr(properties, "ROOT", copy)
    monkeypatch.setattr(properties, "TESTS", WINDOWS)
    (row,) = properties.rows(False, tmp_path, 0, print)
    (sentence,) = row.lost
    assert "trims=(0, 1)" in sentence  # the smallest that shows it
    assert f"python -m pytest {WINDOWS}" in sentence
    assert "\n" not in sentence
