"""The wheel: what it holds and needs, and that it works without the checkout, ENV.py and the scripts."""

import ast
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions, requires
from itertools import chain
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from emg_gpt2 import __version__

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SOURCES = [*ROOT.glob("emg_gpt2/**/*.py"), ROOT / "EMG_DATA_LOADER.py", ROOT / "EMG_utils.py"]
OWN = {"emg_gpt2", "EMG_DATA_LOADER", "EMG_utils"}
BY_ANOTHER = {"tensorboard"}  # accelerate imports it, for the default of TRACKER
IMPORTED = """
import pkgutil, sys
sys.path.insert(0, {installed!r})
import emg_gpt2
from emg_gpt2 import EMGForSequenceClassification, load_windows
for module in pkgutil.walk_packages(emg_gpt2.__path__, "emg_gpt2."):
    __import__(module.name)
own = [module for name, module in sys.modules.items() if name.partition(".")[0] in {own!r}]
print(len(own), all(module.__file__.startswith({installed!r}) for module in own))
print(sorted({{"main", "Preprocessing", "ENV", "benchmarks", "stress"}} & set(sys.modules)))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel that `pip wheel .` makes, from a copy of what it is made of."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "emg_gpt2", folder / "emg_gpt2", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "EMG_DATA_LOADER.py", "EMG_utils.py", "main.py", "ENV.py"):
        shutil.copy(ROOT / name, folder)
    command = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder / "dist", folder]
    pip(sys.executable, command, folder)
    (made,) = (folder / "dist").glob("*.whl")
    return made


def pip(python: Path | str, arguments: list, cwd: Path) -> None:
    command = [python, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_wheel_holds_the_package_its_templates_and_the_two_modules_it_stands_on(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    package = {path for path in ROOT.glob("emg_gpt2/**/*") if path.is_file() and path.suffix != ".pyc"}
    wanted = {path.relative_to(ROOT).as_posix() for path in {*SOURCES, *package}}
    assert {name for name in held if ".dist-info/" not in name} == wanted
    assert "emg_gpt2/results/templates/report.html" in wanted


def test_the_version_is_that_of_the_package(wheel):
    assert wheel.name == f"emg_gpt2-{__version__}-py3-none-any.whl"
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == __version__
    assert f"\n## {__version__} (" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_every_module_of_the_wheel_imports_without_the_checkout(wheel, tmp_path):
    installed = tmp_path / "installed"
    zipfile.ZipFile(wheel).extractall(installed)
    code = IMPORTED.format(installed=str(installed), own=OWN)
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n") == [f"{len(SOURCES) - 1} True", "[]", ""]  # all but __main__, which is run


def test_the_package_needs_what_it_imports_and_nothing_else():
    needed, optional = names(PROJECT["dependencies"]), set()
    for extra in set(PROJECT["optional-dependencies"]) - {"docs", "test"}:
        optional |= names(PROJECT["optional-dependencies"][extra])
    on_import, in_functions = imported_distributions()
    brought = {canonicalize_name(Requirement(line).name) for name in needed for line in requires(name) or []}
    assert on_import <= needed | brought
    assert in_functions <= needed | brought | optional
    assert needed | optional <= on_import | in_functions | BY_ANOTHER


def test_the_pins_are_those_that_the_package_asks_for():
    pinned = {file: pins(file) for file in ("requirements.txt", "requirements-optional.txt", "requirements-test.txt")}
    extras = PROJECT["optional-dependencies"]
    optional = {name for extra in extras if extra not in ("docs", "test") for name in names(extras[extra])}
    assert set(pinned["requirements.txt"]) == names(PROJECT["dependencies"])
    assert set(pinned["requirements-optional.txt"]) == optional
    assert set(pinned["requirements-test.txt"]) == names(extras["docs"] + extras["test"]) - {"emg-gpt2"}
    versions = {name: version for file in pinned.values() for name, version in file.items()}
    for one in map(Requirement, chain(PROJECT["dependencies"], *extras.values())):
        if one.name != "emg-gpt2":
            assert versions[canonicalize_name(one.name)] in one.specifier, one


@pytest.mark.nightly
def test_in_an_empty_environment_the_command_predicts_with_the_example_model(wheel, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    programs = tmp_path / "venv" / ("Scripts" if sys.platform == "win32" else "bin")
    pip(programs / "python", ["install", "--quiet", "--no-compile", "-c", ROOT / "constraints.txt", wheel], tmp_path)
    shutil.copytree(ROOT / "best_model", tmp_path / "best_model")

    def call(*command: str) -> str:
        done = subprocess.run([programs / command[0], *command[1:]], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert call("emg-gpt2", "--version") == f"emg-gpt2 {__version__}\n"
    assert "\n  predict " in call("emg-gpt2", "--help")
    call("python", "-c", "from emg_gpt2 import EMGForSequenceClassification, load_windows")
    small = ["--sessions", "1", "--trajectories", "repeats_short", "--repetitions", "1"]
    call("emg-gpt2", "simulate", "raw", "--subjects", "03", *small, "--format", "csv")  # HDF5 needs an extra
    call("emg-gpt2", "predict", "raw", "--model", "best_model", "--out", "decisions")
    (table,) = (tmp_path / "decisions").glob("*.csv")
    assert table.read_text().startswith("start,end,gesture,confidence,")


def imported_distributions() -> tuple[set[str], set[str]]:
    """Those that the modules import when they are imported, and those that they import in functions."""
    at_once, later = set(), set()
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            (at_once if node in tree.body else later).update(imported_modules(node))
    return distributions(at_once), distributions(later)


def distributions(modules: set[str]) -> set[str]:
    by_module = packages_distributions()
    foreign = {module.partition(".")[0] for module in modules} - OWN - sys.stdlib_module_names
    return {canonicalize_name(by_module[module][0]) for module in foreign}


def imported_modules(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) else []


def names(lines: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(line).name) for line in lines}


def pins(file: str) -> dict[str, str]:
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    found = [line.split("==") for line in lines if line and not line.startswith(("#", "-r"))]
    return {canonicalize_name(name): version for name, version in found}
