"""The wheel: what it holds and needs, and that it works without the checkout, ENV.py and the scripts."""

import ast
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import requires
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
OPTIONAL_MODULES = {
    "tables",
    "gguf",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "pylsl",
    "pyriemann",
    "distributed",
    "mlflow",
    "wandb",
}
DISTRIBUTIONS = {"sklearn": "scikit-learn", "mlflow": "mlflow-skinny"}  # of modules with another name
BY_ANOTHER = {"tensorboard", "tables", "onnxscript"}  # accelerate, pandas and torch import them
IMPORTED = """
import pkgutil, sys
sys.path.insert(0, {installed!r})
sys.modules.update(dict.fromkeys({optional!r}))  # as if they were not installed
import emg_gpt2
from emg_gpt2 import *
needy = set()
for module in pkgutil.walk_packages(emg_gpt2.__path__, "emg_gpt2."):
    try:
        __import__(module.name)
    except ModuleNotFoundError as error:
        assert error.name.partition(".")[0] in {optional!r}, error
        needy.add(module.name)
own = {{name: module for name, module in sys.modules.items() if name.partition(".")[0] in {own!r}}}
assert all(module.__file__.startswith({installed!r}) for module in own.values())
assert not {{"main", "Preprocessing", "ENV", "benchmarks", "stress"}} & set(sys.modules)
assert not [name for name in needy if ".commands" in name], needy
print(len(own) + len(needy))
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


@pytest.mark.nightly
def test_every_module_of_the_wheel_imports_without_the_checkout(wheel, tmp_path):
    installed = tmp_path / "installed"
    zipfile.ZipFile(wheel).extractall(installed)
    code = IMPORTED.format(installed=str(installed), own=OWN, optional=OPTIONAL_MODULES)
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(SOURCES)


def test_the_package_needs_what_it_imports_and_nothing_else():
    needed, optional = names(PROJECT["dependencies"]), set()
    for extra in set(PROJECT["optional-dependencies"]) - {"docs", "test"}:
        optional |= names(PROJECT["optional-dependencies"][extra])
    imported = imported_distributions()
    brought = {canonicalize_name(Requirement(line).name) for name in needed for line in requires(name) or []}
    assert imported <= needed | optional | brought
    assert needed | optional <= imported | BY_ANOTHER


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


def imported_distributions() -> set[str]:
    """Those that the modules import, at once or in functions."""
    nodes = [node for path in SOURCES for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    modules = {module.partition(".")[0] for node in nodes for module in imported_modules(node)}
    return {canonicalize_name(DISTRIBUTIONS.get(module, module)) for module in modules - OWN - sys.stdlib_module_names}


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
