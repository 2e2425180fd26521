"""docs/extend.md: a package and a script that add a tokeniser and a head, made from the page's own blocks."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, call

from emg_gpt2.base.errors import EMGError
from emg_gpt2.base.registry import HEADS, TOKENISERS
from emg_gpt2.model.build import build_model, load_model
from emg_gpt2.model.config import EMGConfig
from emg_gpt2.results.run import resumed_settings
from emg_gpt2.settings import read_settings

PAGE = (ROOT / "docs" / "extend.md").read_text(encoding="utf-8")
PARTS, SCRIPT = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
(PROJECT,) = re.findall(r"^```toml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
INSTALL, TRAIN = (line.split()[1:] for line in re.findall(r"^\$ .*", PAGE, re.MULTILINE))


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder into which the page's package was installed by pip."""
    work = tmp_path_factory.mktemp("extend")
    (work / "my-parts").mkdir()
    (work / "my-parts" / "my_parts.py").write_text(PARTS, encoding="utf-8")
    (work / "my-parts" / "pyproject.toml").write_text(PROJECT, encoding="utf-8")
    offline = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--no-compile", "--target", work / "site"]
    subprocess.run([sys.executable, "-m", *INSTALL, *offline], cwd=work, check=True)
    return work / "site"


@pytest.fixture
def installed(site, monkeypatch) -> None:
    monkeypatch.syspath_prepend(site)
    yield
    sys.modules.pop("my_parts", None)


def flags(data: Path, backbone: Path, folder: Path) -> list:
    small = [
        "--num-epochs",
        "1",
        "--no-refit",
        "--sampling-ratio",
        "0.3",
        "--precision",
        "fp32",
        "--pretrained",
        "never",
    ]
    return [*small, "--data-location", data, "--model-name", backbone, "--run-dir", folder]


@pytest.fixture(scope="module")
def saved(site, small_file, tiny_gpt2, tmp_path_factory) -> Path:
    """The model of the page's command."""
    folder = tmp_path_factory.mktemp("extended") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(site)
        done = call(*TRAIN[1:], *flags(small_file, tiny_gpt2, folder))
    sys.modules.pop("my_parts", None)
    assert done.returncode == 0, done.stderr
    return folder / "best_model"


def test_a_package_adds_a_tokeniser_and_a_head(saved, installed):
    config = json.loads((saved / "config.json").read_text())
    assert (config["tokens"], config["head"]) == (["covariance", "slope"], "largest")
    model = load_model(saved)
    named = [type(model.tokenisers["slope"]), type(model.head)]
    assert [one.__name__ for one in named] == ["SlopeTokens", "LargestHead"]
    assert {one.__module__ for one in named} == {"my_parts"}
    emg = torch.randn(3, 250, 8)
    tokens = model.tokenise(*model.normalise(emg, model.reference))
    assert tokens.shape == (3, 1 + 5, 32)  # a window of 250 ms has five patches of 50 ms
    assert model(emg=emg).logits.shape == (3, 8)


def test_without_the_package_loading_says_what_is_missing(saved):
    with pytest.raises(EMGError, match=r"tokens\.1: there is no tokeniser slope; here are covariance, power, "):
        load_model(saved)
    with pytest.raises(EMGError, match=r"no run that can be read \(TOKENS\.1: there is no tokeniser slope"):
        resumed_settings(read_settings(argv=["--resume", str(saved.parent)]))


def test_names_are_checked_before_anything_is_imported(installed):
    given = read_settings(argv=["--tokens", "slope,power", "--head", "largest"])
    assert (given.TOKENS, given.HEAD) == (["slope", "power"], "largest")
    assert "my_parts" not in sys.modules
    with pytest.raises(EMGError, match=r"^TOKENS = slop: there is no tokeniser slop \(did you mean slope\?\); here "):
        read_settings(argv=["--tokens", "power,slop"])
    with pytest.raises(EMGError, match=r"^HEAD = os:system: there is no head os:system; here are linear, largest, "):
        read_settings(argv=["--head", "os:system"])


def test_a_config_can_name_no_code_that_is_not_a_part(saved, tmp_path, installed):
    """json is importable; a config that names it must not import it as a part."""
    shutil.copytree(saved, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    for name in ("json:loads", "my_parts", "my_parts:SlopeTokens", "../slope", "emg_gpt2.tokenisers"):
        path.write_text(json.dumps(json.loads((saved / "config.json").read_text()) | {"tokens": ["power", name]}))
        with pytest.raises(EMGError, match=re.escape(f"there is no tokeniser {name}")):
            load_model(tmp_path / "model")
    assert "my_parts" not in sys.modules


def test_a_part_that_cannot_be_imported_is_one_sentence(saved, tmp_path, monkeypatch):
    about = tmp_path / "broken-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1\n")
    (about / "entry_points.txt").write_text(
        "[emg_gpt2.tokenisers]\nslope = gone:Slope\n[emg_gpt2.heads]\nlargest = a:B\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(EMGError, match=r"tokeniser slope \(gone:Slope\) cannot be imported: No module named"):
        load_model(saved)


def test_a_script_registers_a_part(site, monkeypatch):
    monkeypatch.syspath_prepend(site.parent / "my-parts")  # the file alone, which is not installed
    monkeypatch.setattr(TOKENISERS, "registered", {})
    exec(SCRIPT, {"__name__": "my_script"})
    sys.modules.pop("my_parts")
    given = read_settings(argv=["--tokens", "slope"])
    model = build_model(EMGConfig(tokens=given.TOKENS), "gpt2", "never", 1)
    assert type(model.tokenisers["slope"]).__name__ == "SlopeTokens"


@pytest.mark.parametrize("parts", [TOKENISERS, HEADS], ids=lambda parts: parts.kind)
def test_built_in_parts_exist_and_keep_their_names(parts):
    for name in parts.built_in:
        assert parts.load(name).__module__.startswith("emg_gpt2.model")
        with pytest.raises(EMGError, match=f"{name} is a built-in {parts.kind}"):
            parts.register(name, object)
