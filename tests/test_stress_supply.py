"""The supply chain is what it is said to be, and the programme that says so would notice if it were not."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from conftest import ROOT

from emg_gpt2.commands.download import main
from emg_gpt2.raw import download
from stress import supply

GOOD = {"records.txt", "Data-HDF5/MD5SUMS", f"Data-HDF5/{supply.STEM}.hdf5"}


def test_nothing_is_lost(tmp_path):
    """24: four pickles in each of the six protocols; 8 of the ten lies are refused, and the truth and the one good name
    among bad ones are fetched."""
    packages, advisories, sources, pickles, downloads = supply.rows(False, tmp_path, 0, print)
    assert [row.lost for row in (packages, sources, pickles, downloads)] == [[], [], [], []]
    assert advisories.times or "no database could be reached" in advisories.note  # what it finds is not up to us
    assert packages.right == packages.times > 150
    assert sources.right == len([*ROOT.glob("*.py"), *ROOT.glob("tools/**/*.py")])
    assert (pickles.refused, downloads.refused, downloads.right) == (24, 8, 2)
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


class Advisories(BaseHTTPRequestHandler):
    """Answers as osv.dev's documentation has it: a result per query, empty where nothing is known."""

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["queries"]
        known = {"vulns": [{"id": "GHSA-1", "modified": "2026-01-01"}, {"id": "PYSEC-2"}]}
        results = [known if one["package"]["name"] == "bad" else {} for one in asked]
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"results": results}).encode())

    def log_message(self, *_):
        """Quiet."""


def test_known_vulnerabilities_are_told(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with HTTPServer(("127.0.0.1", 0), Advisories) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        row = supply.audited({"good": "1.0", "bad": "2.0"}, f"http://127.0.0.1:{server.server_port}/")
    assert (row.right, row.lost) == (1, ["bad 2.0 has GHSA-1, PYSEC-2"])


def test_without_a_database_nothing_counts_as_audited(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    row = supply.audited({"good": "1.0"}, "http://127.0.0.1:9/")
    assert (row.times, row.note) == (0, "not audited: no database could be reached (ConnectionError)")


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


def test_an_endless_body_ends_at_the_limit(tmp_path, monkeypatch, capsys):
    """The limit is made as small as three pieces of the body."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download, "MAX_FILE_BYTES", 3 << 20)
    answers, status = supply.lies()["an endless body"]
    with supply.serving(answers) as address:
        assert main([str(tmp_path), "--retries", "0", "--download-url", address]) == status == 3
    assert "it is larger than 3.1 MB, and so no recording" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_the_programme_notices_a_downloader_that_does_not_check(tmp_path):
    """A server that says the right checksum of the wrong file: what is then fetched is not what was to come."""
    wrong = supply.MAGIC + b"wrong"
    sums = supply.hashlib.md5(wrong).hexdigest() + f"  {supply.STEM}.hdf5\n"
    answers = {"records.txt": supply.STEM, "Data-HDF5/MD5SUMS": sums, f"Data-HDF5/{supply.STEM}.hdf5": wrong}
    assert answers.keys() == GOOD
    end = supply.download(tmp_path / "case", {name: supply.body(content) for name, content in answers.items()}, 3)
    assert end == f"{tmp_path / 'case' / 'inside' / 'raw' / supply.STEM}.hdf5 is there"
