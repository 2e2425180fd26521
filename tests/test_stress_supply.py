"""The supply chain is what it is said to be, and the programme that says so would notice if it were not."""

import json
from pathlib import Path

import pytest
from conftest import ROOT

from emg_gpt2.commands.download import main
from emg_gpt2.raw import download
from stress import supply
from stress.row import Row


def test_what_is_pinned_is_installed_and_no_source_runs_data(tmp_path):
    """24: four pickles in each of the six protocols."""
    packages, sources, pickles = supply.pinned(ROOT), supply.sources(ROOT), supply.unpickler(tmp_path)
    assert [row.lost for row in (packages, sources, pickles)] == [[], [], []]
    assert packages.right == packages.times > 150
    assert sources.right > 100  # files
    assert pickles.refused == 24
    assert not (tmp_path / "executed").exists()


# ---- packages -------------------------------------------------------------------------------------------------


def project(folder: Path, requirements: str, constraints: str) -> Path:
    (folder / "requirements.txt").write_text(requirements)
    (folder / "constraints.txt").write_text(constraints)
    return folder


@pytest.mark.parametrize("line", ["rich>=15", "rich", "torch==2.13.0+cpu", "rich @ https://example.com/rich.whl"])
def test_a_line_that_does_not_pin_is_found(line, tmp_path):
    row = supply.pinned(project(tmp_path, f"# of main.py\n{line}\n", ""))
    assert row.lost == [f"requirements.txt: {line} is no exact pin"]


def test_other_versions_are_found(tmp_path):
    row = supply.pinned(project(tmp_path, "rich==1.0\nscikit_learn==0.1\n", "rich==1.0\nscikit-learn==0.2\n"))
    assert row.lost[0].startswith("rich ")
    assert row.lost[0].endswith(" is installed, 1.0 is pinned")
    assert row.lost[1] == "scikit_learn is 0.1 in one file and 0.2 in constraints.txt"


def package(name: str, *ids: str) -> dict:
    """As pip-audit writes it in JSON."""
    found = [{"id": one, "fix_versions": [], "aliases": [], "description": "…"} for one in ids]
    return {"name": name, "version": "2.0", "vulns": found}


SKIPPED = {"name": "odd", "skip_reason": "Dependency not found on PyPI and could not be audited: odd (1.0)"}


def audit(*packages: dict) -> Row:
    return supply.audit_row(json.dumps({"dependencies": packages, "fixes": []}), "the database is not reachable")


def test_known_vulnerabilities_are_lost():
    row = audit(package("good"), package("bad", "GHSA-1", "PYSEC-2"), SKIPPED)
    assert (row.right, row.lost) == (1, ["bad 2.0 has GHSA-1, PYSEC-2"])
    assert row.note == "1 packages are not in the database"


@pytest.mark.parametrize("row", [audit(SKIPPED), supply.audit_row("", "the database is not reachable")])
def test_without_a_database_nothing_counts_as_audited(row):
    assert (row.times, row.note) == (0, "not audited: the database is not reachable")


@pytest.mark.nightly
def test_pip_audit_gives_a_row_or_a_reason(tmp_path):
    """Without a network too."""
    (tmp_path / "constraints.txt").write_text("rich==15.0.0\n")
    row = supply.audited(tmp_path / "constraints.txt")
    assert row.times == 1 or row.note.startswith("not audited: the database is not reachable (")


# ---- sources --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("import torch\ntorch.load('x')", "line 2 has torch.load"),
        ("from torch import load as read\nread('x')", "line 2 has torch.load"),
        ("import pickle as p\nclass A(p.Unpickler): pass", "line 2 has pickle.Unpickler"),
        ("import pandas as pd\npd.read_pickle('x')", "line 2 has pandas.read_pickle"),
        ("import numpy as np\nnp.load('x', allow_pickle=True)", "line 2 has allow_pickle=True"),
        ("import numpy as np\nnp.load('x', allow_pickle=wanted)", "line 2 has allow_pickle=wanted"),
        ("import subprocess\nsubprocess.run('x', shell=True)", "line 2 has shell=True"),
        ("import yaml\nyaml.load(text)", "line 2 has yaml.load"),
        ("archive.extractall('x')", "line 1 has archive.extractall"),
        ("accelerator.load_state('x')", "line 1 has accelerator.load_state"),
        ("Model.from_pretrained('x')", "line 1 has Model.from_pretrained('x')"),
        ("Model.from_pretrained('x', use_safetensors=False)", "line 1 has Model.from_pretrained('x'"),
        ("AutoTokenizer.from_pretrained('x', trust_remote_code=True)", "line 1 has trust_remote_code=True"),
        ("x = eval(text)", "line 1 has eval"),
    ],
)  # fmt: skip
def test_what_runs_data_is_found_in_a_source(source, told):
    assert any(line.startswith(told) for line in supply.offences(source, "x.py"))


def test_what_only_looks_like_it_is_not():
    source = "import pickle\npickle.dumps(1)\nmodel.eval()\nnp.load('x', allow_pickle=False)\nre.compile('eval')"
    assert supply.offences(source, "x.py") == []


# ---- downloads ------------------------------------------------------------------------------------------------


@pytest.mark.nightly
def test_a_server_that_lies_leaves_nothing(tmp_path):
    """8 of the ten lies are refused; the truth, and the one good name among bad ones, are fetched."""
    row = supply.downloads(tmp_path, False)
    assert (row.lost, row.refused, row.right) == ([], 8, 2)


def test_an_endless_body_ends_at_the_limit(tmp_path, monkeypatch, capsys):
    """The limit is made as small as three pieces of the body."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download, "MAX_FILE_BYTES", 3 << 20)
    answers, status = supply.lies()["an endless body"]
    with supply.serving(answers) as address:
        assert main([str(tmp_path), "--retries", "0", "--download-url", address]) == status == 3
    assert "it is larger than 3.1 MB, and so no recording" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.nightly
def test_a_downloader_that_does_not_check_is_found(tmp_path):
    """The server gives the right checksum of the wrong file, which a downloader that does not check would fetch too."""
    wrong = supply.MAGIC + b"wrong"
    sums = supply.hashlib.md5(wrong).hexdigest() + f"  {supply.STEM}.hdf5\n"
    answers = {"records.txt": supply.STEM, "Data-HDF5/MD5SUMS": sums, f"Data-HDF5/{supply.STEM}.hdf5": wrong}
    outcome = supply.download(tmp_path / "case", {name: supply.body(content) for name, content in answers.items()}, 3)
    assert outcome == f"{tmp_path / 'case' / 'inside' / 'raw' / supply.STEM}.hdf5 is there"
