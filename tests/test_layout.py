"""The rules of the layout that import-linter cannot see: the scripts, and what an import does."""

import ast
import json
import re
from pathlib import Path

import pytest
from conftest import ROOT, run

SCRIPTS = sorted(path.stem for path in ROOT.glob("*.py"))
FOLDERS = ("emg_gpt2", "benchmarks", "stress")
MODULES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
PACKAGE = [path for path in MODULES if path.is_relative_to(ROOT / "emg_gpt2")]
SHARED_SCRIPTS = {"EMG_DATA_LOADER", "EMG_utils"}  # the two that others may import


def name_of(path: Path) -> str:
    """emg_gpt2/base/log.py → emg_gpt2.base.log"""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports_of(path: Path) -> set[str]:
    """Full names of the modules that a file imports anywhere, and of what it takes from them."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def rooms_of(path: Path) -> set[str]:
    """The rooms of the package that a file imports: emg_gpt2.base.log.progress → base."""
    return {name.split(".")[1] for name in imports_of(path) if name.startswith("emg_gpt2.")}


def test_there_are_five_scripts():
    assert SCRIPTS == ["EMG_DATA_LOADER", "EMG_utils", "ENV", "Preprocessing", "main"]


def test_the_data_loader_stands_on_the_lower_rooms_alone():
    assert rooms_of(ROOT / "EMG_DATA_LOADER.py") <= {"base", "settings", "raw", "windows"}


def test_the_loops_use_nothing_that_is_built_on_them():
    assert not rooms_of(ROOT / "EMG_utils.py") & {"live", "study", "commands"}


@pytest.mark.parametrize("path", [*PACKAGE, *ROOT.glob("*.py")], ids=name_of)
def test_package_and_scripts_import_no_script_but_the_two(path):
    assert {name.partition(".")[0] for name in imports_of(path)} & set(SCRIPTS) <= SHARED_SCRIPTS


@pytest.mark.parametrize("path", [*MODULES, *ROOT.glob("*.py")], ids=name_of)
def test_no_private_name_crosses_a_module(path):
    names = [name for name in imports_of(path) if name.partition(".")[0] in (*FOLDERS, *SCRIPTS)]
    assert [name for name in names if re.search(r"\._(?!_)", name)] == []


def test_no_module_is_longer_than_400_lines():
    lines = {name_of(path): path.read_text(encoding="utf-8").count("\n") for path in [*MODULES, *ROOT.glob("*.py")]}
    assert {name: count for name, count in lines.items() if count > 400} == {}


@pytest.mark.nightly  # 12 s of processor time
def test_importing_prints_nothing_and_reads_no_command_line():
    names = json.dumps([*SCRIPTS, *map(name_of, MODULES)])
    code = f"import importlib, sys; sys.argv += ['--nonsense', '--help']; list(map(importlib.import_module, {names}))"
    done = run("-c", code, "--more")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
