"""The command line of tools.stress: tables, files, exit status."""

import json

import pytest
from conftest import run

from stress import __main__ as stress
from stress.row import Row


def rows(nightly, folder, seed, say):
    row = Row("supply", "one thing")
    for end, seconds in (("right", 1.0), ("refused", 2.0), *[("it was lost with [bold]", 0.5)] * seed):
        row.add(end, seconds, 10)
    yield row
    yield Row("supply", "another", right=3, note="of which nothing is known")


@pytest.fixture
def tried(tmp_path, monkeypatch, capsys):
    def attempt(seed: int) -> tuple[int, str]:
        monkeypatch.setattr(stress, "rows_of", lambda name: rows)
        status = stress.main(["supply", "--seed", str(seed), "--out", str(tmp_path)])
        return status, capsys.readouterr().out

    return attempt


def test_nothing_lost_is_status_0_and_all_tables_agree(tried, tmp_path):
    status, said = tried(0)
    assert status == 0
    assert "lost:" not in said
    written = json.loads((tmp_path / "stress.json").read_text())["rows"]
    assert [(row["times"], row["refused"], row["right"], row["lost"]) for row in written] == [
        (2, 1, 1, []),
        (3, 0, 3, []),
    ]
    table = (tmp_path / "stress.md").read_text().splitlines()
    assert table[2] == "| supply | packages, sources, downloads | 5 | 1 | 4 | 0 | 2.0 s | 10 MB |"
    assert table[-2:] == [
        "| supply | one thing | 2 | 1 | 1 | 0 | 2.0 s | 10 MB |",
        "| supply | another (of which nothing is known) | 3 | 0 | 3 | 0 |  |  |",
    ]


def test_what_is_lost_is_said_and_is_status_1(tried):
    status, said = tried(2)
    assert status == 1
    assert said.count("lost: one thing: it was lost with [bold]\n") == 2


def test_a_programme_that_there_is_not_is_one_sentence(tmp_path):
    done = run("-m", "stress", "fuz", "--out", tmp_path / "out")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("stress: argument PROGRAMME: fuz is none of hostile, hostile_models, fuzz")
    assert not (tmp_path / "out").exists()
