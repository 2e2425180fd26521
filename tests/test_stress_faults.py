"""stress.faults: nothing is lost, as often as was asked for; and what would lose something is found."""

import random
import signal
import sys

import pytest

from stress import faults
from stress.faults import Undisturbed, Work, in_own_mounts, kills, rows, undisturbed
from stress.snapshot import difference, flaw, snapshot

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="it forks and kills processes")


def test_nothing_is_lost(tmp_path):
    said = []
    found = list(rows(False, tmp_path, 0, said.append))
    assert [row.lost for row in found] == [[] for _ in found]
    killed = [row for row in found if row.tried.startswith(("SIGKILL at", "SIGTERM at"))]
    assert [row.times for row in killed] == [faults.KILLS] * 8
    assert {row.tried.partition(" for ")[0] for row in found if " for " in row.tried} == {
        "full disk",
        "read-only folder",
    }
    assert all(row.times or row.note.startswith("not tried") for row in found)
    assert [row.times for row in found[-3:]] == [faults.CHANGES, 1, 1]
    assert len(said) == 1 + 8 + 4 + 3


# ---- what would lose something ----------------------------------------------------------------------------------

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


def planted(code: str, tmp_path, monkeypatch, request) -> tuple[Work, Undisturbed]:
    """A script with a flaw, and what it leaves by itself."""
    name = f"planted_{request.node.name.split('[')[0]}_{abs(hash(code))}"
    (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    work = Work("planted", name, [], "--out", "a.json")
    return work, undisturbed(work, tmp_path)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (IN_PLACE, "a.json is not whole"),
        (RANDOM_NAME, ".tmp stays behind"),
        (NOT_THE_SAME, "a.json differs from the undisturbed run's"),
    ],
)
def test_a_script_that_loses_something_to_kills_is_found(code, words, tmp_path, monkeypatch, request):
    work, left = planted(code, tmp_path, monkeypatch, request)
    row = kills(work, left, signal.SIGKILL, 8, tmp_path, random.Random(0))
    assert row.times == 8
    assert row.lost
    assert all(words in sentence for sentence in row.lost), row.lost


def test_a_script_that_dies_of_sigterm_with_a_traceback_is_found(tmp_path, monkeypatch, request):
    work, left = planted(RANDOM_NAME, tmp_path, monkeypatch, request)
    row = kills(work, left, signal.SIGTERM, 4, tmp_path, random.Random(0))
    assert any("SIGTERM ended it with 1, saying: " in sentence for sentence in row.lost), row.lost


def test_a_script_that_a_full_disk_ends_with_a_traceback_is_found(tmp_path, monkeypatch, request):
    work, left = planted(IN_PLACE.replace('"1, "', '"1, " + " " * 10000'), tmp_path, monkeypatch, request)
    (found,) = in_own_mounts(faults.full, work, left, tmp_path / "disk", [0.1])
    if found[1] < 0:
        pytest.skip(found[0])
    assert "it ended with 1, saying: " in found[0]
    assert "No space left on device" in found[0]


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
