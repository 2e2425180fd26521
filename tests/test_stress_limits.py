"""stress.limits: the limits hold; and what would break one is found."""

import sys

import pytest

from stress import limits
from stress.limits import own_folders, rows, together

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="it forks processes")


def test_the_limits_hold(tmp_path):
    found = list(rows(False, tmp_path, 0, lambda words: None))
    assert [row.lost for row in found] == [[] for _ in found]
    memory = 1 if sys.platform == "linux" else 0
    assert [row.times for row in found] == [limits.TOGETHER, limits.TOGETHER, limits.SHARED, memory, memory]
    assert (found[1].right, found[1].refused) == (1, limits.TOGETHER - 1)


SHARES = """
import sys, time
from pathlib import Path

def main():
    run = Path("runs/now")
    run.mkdir(parents=True, exist_ok=True)
    (run / "report.html").write_text("<html></html>")
    return 0
"""


def test_runs_that_share_a_folder_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "together", lambda commands, script, *places: together(commands, "shares", *places))
    (tmp_path / "shares.py").write_text(SHARES)
    monkeypatch.syspath_prepend(tmp_path)
    row = own_folders([], 3, tmp_path)
    assert row.times == 3
    assert row.lost == ["3 runs left 1 whole folders"]
