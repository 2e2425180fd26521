"""The stress programme: its tables, its one way to start a process, and each programme on a few cheap cases.

Half of the tests plant a flaw: a programme that would not find it proves nothing. All programmes as they run without
--nightly are in test_stress_nightly.py.
"""

import json
import multiprocessing.forkserver
import os
import pickle
import random
import signal
import sys
from pathlib import Path

import h5py
import pandas as pd
import pytest

from stress import __main__ as command
from stress import disks, fuzz, hostile, hostile_models, limits, numbers, properties
from stress.faults import kills
from stress.hostile_changes import mutation, odd_value, plant
from stress.numbers_cases import FAMILIES, Case
from stress.process import run, run_all, run_batches
from stress.row import Row
from stress.scripts import make_gpt2
from stress.snapshot import difference, flaw, snapshot
from stress.work import Undisturbed, Work, undisturbed

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="processes are forked")


@pytest.fixture(scope="module", autouse=True)
def own_fork_server():
    """Another test of this process may have started a fork server, without the imports of stress."""
    multiprocessing.forkserver._forkserver._stop()
    yield
    multiprocessing.forkserver._forkserver._stop()


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """planted(code): write a module that processes can import; returns its name."""
    folder = tmp_path_factory.mktemp("planted")
    sys.path.insert(0, str(folder))

    def write(code: str) -> str:
        name = f"planted_{len(list(folder.glob('*.py')))}"
        (folder / f"{name}.py").write_text(code)
        return name

    yield write
    sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """Whole files of every format."""
    folder = tmp_path_factory.mktemp("whole")
    fuzz.make_files(folder)
    return folder


@pytest.fixture
def stay():
    """A case changes the current folder."""
    before = Path.cwd()
    yield
    os.chdir(before)


# ---- command line and tables ------------------------------------------------------------------------------------


def rows(name, args, log):
    row = Row("supply", "one thing")
    for outcome, seconds in (("right", 1.0), ("refused", 2.0), *[("it was lost with [bold]", 0.5)] * args.seed):
        row.add(outcome, seconds, 10)
    yield row
    yield Row("supply", "another", right=3, note="of which nothing is known")


@pytest.fixture
def tried(tmp_path, monkeypatch, capsys):
    def attempt(seed: int) -> tuple[int, str]:
        monkeypatch.setattr(command, "rows_of", rows)
        status = command.main(["supply", "--seed", str(seed), "--out", str(tmp_path)])
        return status, capsys.readouterr().out

    return attempt


def test_nothing_lost_is_status_0_and_all_tables_agree(tried, tmp_path):
    status, printed = tried(0)
    assert status == 0
    assert "lost:" not in printed
    written = json.loads((tmp_path / "stress.json").read_text())["rows"]
    counts = [(row["times"], row["refused"], row["right"], row["lost"]) for row in written]
    assert counts == [(2, 1, 1, []), (3, 0, 3, [])]
    table = (tmp_path / "stress.md").read_text().splitlines()
    assert table[2] == "| supply | packages, sources, downloads | 5 | 1 | 4 | 0 | 2.0 s | 10 MB |"
    assert table[-2:] == [
        "| supply | one thing | 2 | 1 | 1 | 0 | 2.0 s | 10 MB |",
        "| supply | another (of which nothing is known) | 3 | 0 | 3 | 0 |  |  |",
    ]


def test_what_is_lost_is_printed_and_is_status_1(tried):
    status, printed = tried(2)
    assert status == 1
    assert printed.count("lost: one thing: it was lost with [bold]\n") == 2


def test_an_unknown_programme_is_one_sentence_with_the_known_ones(tmp_path, capsys):
    assert command.main(["fuz", "--out", str(tmp_path / "out")]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("stress: argument PROGRAMME: fuz is none of faults, fuzz, hostile, hostile_models")
    assert not (tmp_path / "out").exists()


# ---- processes --------------------------------------------------------------------------------------------------

CALLS = """
import os, signal
from emg_gpt2.base.errors import EMGError

def call(how):
    if how == "crash":
        os.abort()
    if how == "hang":
        while True:
            pass
    if how == "memory":
        bytearray(3 * 10**9)
    if how.startswith("sentence"):
        raise EMGError(how)
    if how == "status":
        print("x: 3 of 4 went in")
        return 3
    return how or "right"
"""


@pytest.mark.nightly
def test_a_call_ends_in_an_outcome_whatever_it_does(planted):
    call = __import__(planted(CALLS)).call
    given = ["", "crash", "memory", "sentence", "sentence\x1b[2J", "sentence\nand more", "status", "a wrong number"]
    ended = dict(zip(given, run_all([(call, how) for how in given]), strict=True))
    assert {how for how, one in ended.items() if one.outcome == "refused"} == {"sentence", "status"}
    assert (ended[""].outcome, ended["a wrong number"].outcome) == ("right", "a wrong number")
    assert ended["crash"].outcome.startswith("it ended with -6")
    assert "MemoryError" in ended["memory"].outcome
    assert 0 < ended[""].megabytes < 2000 or sys.platform != "linux"
    hung = run(call, "hang", patience=0.5)
    assert (hung.status, hung.last_line) == (-9, "it was killed after 0.5 s")


@pytest.mark.nightly
def test_calls_that_share_a_process_are_tried_alone_where_one_ends_it(planted):
    call = __import__(planted(CALLS)).call
    ended = list(run_batches([(call, how) for how in ("", "other", "", "crash", "sentence")], size=3))
    assert [one.outcome.partition(" with")[0] for one in ended] == ["right", "other", "right", "it ended", "refused"]


# ---- files from strangers, damaged files ------------------------------------------------------------------------


def test_hostile_files_are_refused_or_harmless(whole, tmp_path):
    cases = [("HDF5", "a pickle in every attribute"), ("HDF5", "a pickle in every attribute that is not needed")]
    cases += [("CSV", "a pipe"), ("zip", "a name with ../"), ("parquet", "a window of 10^12")]
    ended = run_all([(hostile.try_case, *case, whole, tmp_path / f"{n}") for n, case in enumerate(cases)])
    assert [one.outcome for one in ended] == ["refused", "right", "refused", "refused", "refused"]


def test_a_reader_that_unpickles_is_found(whole, tmp_path, monkeypatch, stay):
    def careless(path):
        with h5py.File(path) as file:
            pickle.loads(file["data/table"].attrs["values_block_0_kind"])

    monkeypatch.setattr(hostile, "read_recording", careless)
    outcome = hostile.try_case("HDF5", "a pickle in every attribute", whole, tmp_path / "case")
    assert outcome.endswith("TRACE'] was written")


def test_a_reader_that_follows_links_is_found(whole, tmp_path, monkeypatch, stay):
    """Its outcome is "right", which the number of right outcomes of the programme would show."""
    monkeypatch.setattr(hostile, "read_recording", lambda path: pd.read_hdf(path))
    assert hostile.try_case("HDF5", "an external link in place of the group", whole, tmp_path / "case") == "right"


@pytest.mark.parametrize("kind", ["CSV recordings", "windows in parquet", "language models in GGUF"])
def test_damaged_files_are_not_read_wrongly(whole, kind):
    outcomes = {one.outcome for one in run_batches([(fuzz.try_file, kind, whole, 0, n) for n in range(12)], size=12)}
    assert "refused" in outcomes
    assert outcomes <= {"refused", "right"}


def test_damage_that_goes_unnoticed_is_found(whole, monkeypatch):
    def careless(path):
        recording = really(path)
        object.__setattr__(recording, "time", recording.time + 1e-3)
        return recording

    really = fuzz.read_recording
    monkeypatch.setitem(fuzz.KINDS, "CSV recordings", (f"{fuzz.STEM}.csv", careless, fuzz.is_recorded))
    outcomes = {fuzz.try_file("CSV recordings", whole, 0, n).rpartition(": ")[2] for n in range(15)}
    assert outcomes == {"refused", "a wrong result"}


# ---- models from strangers --------------------------------------------------------------------------------------

CARELESS = """
import torch
from emg_gpt2.base.errors import EMGError

def load(folder):
    for path in folder.glob("*.bin"):
        torch.load(path, weights_only=False)
    (folder.parents[1] / "stray").write_text("")
    raise EMGError("\\x1b[2Jno model")

def build(folder):
    return {}["config"]
"""


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory) -> hostile_models.Sandbox:
    folder = tmp_path_factory.mktemp("models")
    hostile_models.make_models(folder)
    return hostile_models.Sandbox(folder)


def test_hostile_models_are_refused_or_harmless(sandbox):
    beside, in_place, *_ = hostile_models.model_plants(sandbox.trace)[0]
    tries = [("load", "model", beside), ("load", "model", in_place), ("build", "gpt2", in_place)]
    tries += [("load", "model", odd_value(("window",), 10**12)), ("load", "model", mutation("model.safetensors", 0))]
    row = sandbox.row("", tries)
    assert (row.right, row.refused, row.lost) == (1, 4, [])


def test_a_careless_loader_is_found(sandbox, planted, monkeypatch):
    """It unpickles, writes elsewhere, lets a terminal be cleared, and ends in a traceback."""
    careless = __import__(planted(CARELESS))
    monkeypatch.setattr(hostile_models, "FUNCTIONS", {"load": careless.load, "build": careless.build})
    nothing = plant("nothing", {})
    beside = hostile_models.model_plants(sandbox.trace)[0][2]
    tries = [("load", "model", beside), ("build", "gpt2", nothing)]
    lost = sandbox.row("", [*tries, ("load", "model", nothing)]).lost
    (sandbox.folder / "stray").unlink()
    assert lost[0] == "load of pickles: the pickle or code was run"
    assert lost[1].startswith("build of nothing: it ended with 1")
    assert "KeyError" in lost[1]
    (sandbox.folder / "stray").touch()
    assert r"\x1b[2Jno model" in sandbox.row("", [("load", "model", nothing)]).lost[0]
    (sandbox.folder / "stray").unlink()


# ---- kills and full disks ---------------------------------------------------------------------------------------

IN_PLACE = """
import sys, time
from pathlib import Path

def main():
    with Path(sys.argv[2]).open("w") as file:
        for part in ('{"a": ', "1, ", '"b": 2}'):
            file.write(part)
            file.flush()
            time.sleep(0.1)
    return 0
"""
RANDOM_NAME = """
import os, sys, time, uuid
from pathlib import Path

def main():
    new = Path(sys.argv[2]).with_name(f".{uuid.uuid4().hex}.tmp")
    new.write_text('{"a": 1}')
    time.sleep(0.3)
    os.replace(new, sys.argv[2])
    return 0
"""
NOT_THE_SAME = """
import os, sys, time
from pathlib import Path

def main():
    begun = Path(sys.argv[2]).with_name("log.txt")
    resumed = begun.exists()
    begun.touch()
    time.sleep(0.3)
    begun.unlink()
    Path(sys.argv[2]).write_text('{"a": 2}' if resumed else '{"a": 1}')
    return 0
"""
NOT_CAUGHT = """
import time
from emg_gpt2.base.interrupts import working

def main():
    with working():
        time.sleep(0.3)
    return 0
"""


@pytest.fixture
def flawed(planted, tmp_path):
    """A script with a flaw, and what it leaves by itself."""

    def make(code: str) -> tuple[Work, Undisturbed]:
        work = Work("planted", planted(code), [], "--out", "a.json")
        return work, undisturbed(work, tmp_path)

    return make


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (IN_PLACE, "a.json is not whole"),
        (RANDOM_NAME, ".tmp stays behind"),
        (NOT_THE_SAME, "a.json differs from the undisturbed run's"),
    ],
)
def test_a_script_that_loses_something_to_kills_is_found(code, words, flawed, tmp_path):
    row = kills(*flawed(code), signal.SIGKILL, 3, tmp_path, random.Random(0))
    assert row.times == 3
    assert row.lost
    assert all(words in sentence for sentence in row.lost), row.lost


def test_a_script_that_ends_in_a_traceback_after_sigterm_is_found(flawed, tmp_path):
    row = kills(*flawed(NOT_CAUGHT), signal.SIGTERM, 2, tmp_path, random.Random(0))
    assert any("SIGTERM ended it with 1, saying: " in sentence for sentence in row.lost), row.lost


def test_a_script_that_ends_in_a_traceback_on_a_full_disk_is_found(flawed, tmp_path):
    given = flawed(IN_PLACE.replace('"1, "', '"1, " + " " * 10000'))
    row = disks.in_own_mounts(disks.full, Row("faults", ""), *given, tmp_path / "disk", [0.1])
    if row.note:
        pytest.skip(row.note)
    assert "it ended with 1, saying: " in row.lost[0]
    assert "No space left on device" in row.lost[0]


def test_preprocessing_loses_nothing_to_a_kill(whole, tmp_path):
    work = Work("preprocessing", "Preprocessing", [whole / "raw", "--filter", "none"], "--data-location", "w.parquet")
    row = kills(work, undisturbed(work, tmp_path), signal.SIGKILL, 1, tmp_path, random.Random(0))
    assert (row.right, row.lost) == (1, [])


def test_differences_of_folders_are_named(tmp_path):
    (tmp_path / "metrics.json").write_text('{"accuracy": 0.5, "seconds": 3}')
    before = snapshot(tmp_path)
    (tmp_path / "metrics.json").write_text('{"accuracy": 0.5, "seconds": 4}')
    assert difference(before, snapshot(tmp_path)) == ""
    (tmp_path / "metrics.json").write_text('{"accuracy": 0.6, "seconds": 4}')
    assert difference(before, snapshot(tmp_path)) == "metrics.json differs from the undisturbed run's"
    (tmp_path / ".metrics.new.json").write_text("{")
    assert difference(before, snapshot(tmp_path)) == ".metrics.new.json stays behind"
    (tmp_path / "metrics.json").write_text('{"accuracy"')
    assert flaw(tmp_path / "metrics.json").startswith("metrics.json is not whole (JSONDecodeError: ")


# ---- odd numbers, limits ----------------------------------------------------------------------------------------


def test_odd_numbers_are_refused_as_they_should_be(tmp_path):
    recordings, backbone = numbers.write_recordings(tmp_path, 0), make_gpt2(tmp_path / "gpt2")
    cases = [case for case in FAMILIES["short windows"] if case.name == "shorter than a patch"]
    cases.append(Case("a refusal for another reason", flags="--validation-share 0", refusal="moon"))
    row = numbers.row_of("", cases, recordings, backbone, tmp_path / "family", more=False)
    assert row.refused == 1
    assert len(row.lost) == 1
    assert row.lost[0].startswith("a refusal for another reason: should be refused with the words “moon”, and main.py")


SHARES = """
from pathlib import Path

def main():
    run = Path("runs/now")
    run.mkdir(parents=True, exist_ok=True)
    (run / "report.html").write_text("<html></html>")
    return 0
"""


def test_runs_that_share_a_folder_are_found(planted, tmp_path):
    row = limits.own_folders(planted(SHARES), [], 3, tmp_path)
    assert row.times == 3
    assert row.lost == ["3 runs left 1 whole folders"]


def test_preprocessing_many_recordings_takes_no_more_memory_than_one(whole, tmp_path):
    row = limits.memory_of_recordings(whole / "raw", 4, tmp_path)
    assert row.lost == []
    assert row.right == (sys.platform == "linux")


# ---- properties -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "reason"), [("PACKAGES", ("nonesuch",), "pip install"), ("TESTS", "gone.py", "checkout")]
)
def test_what_is_missing_is_a_note(monkeypatch, tmp_path, name, value, reason):
    monkeypatch.setattr(properties, name, value)
    (row,) = properties.rows(False, tmp_path, 0, print)
    assert row.times == 0
    assert reason in row.note


def test_tests_that_do_not_run_are_lost(monkeypatch, tmp_path):
    monkeypatch.setattr(properties, "run_tests", lambda arguments, log: 4)  # as where a test's name is wrong
    (row,) = properties.rows(False, tmp_path, 0, print)
    assert "did not run" in row.lost[0]
