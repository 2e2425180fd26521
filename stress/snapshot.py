"""The files of a folder, so that the results of two runs of the same command can be compared."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
from PIL import Image
from safetensors import safe_open

# Files that hold times: their content is not compared.
TIMED = {"log.txt", "report.html", "README.md", "sweep.journal", "sweep.png", "env.json"}
GROWING = {
    "history.csv",
    "validation.parquet",
    "sweep.csv",
    "history.json",
    "epoch.json",
    "settings.json",
    "config.json",
}
PLACES = {"RUN_DIR", "RESUME", "model", "data"}


@dataclass(frozen=True)
class Content:
    """A file's content without times and places; final: the file is written once, when all is done."""

    digest: str
    final: bool


def snapshot(folder: Path) -> dict[str, Content]:
    """Path → content of every file in the folder, at any depth, hidden ones too."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): _content(path) for path in files}


def _content(path: Path) -> Content:
    weights = path.suffix in (".safetensors", ".bin", ".pkl")  # replaced when a better epoch comes
    final = not weights and path.name not in TIMED | GROWING
    try:
        return Content(_digest(path), final)
    except (OSError, ValueError, KeyError):
        return Content("damaged", final)


def _digest(path: Path) -> str:
    if path.name in TIMED:
        return ""
    if path.suffix == ".json":
        return json.dumps(_timeless(json.loads(path.read_text(encoding="utf-8"))), sort_keys=True)
    if path.name in ("history.csv", "sweep.csv"):
        table = pd.read_csv(path).drop(columns=["seconds", "trial"], errors="ignore")
        if "state" in table:  # of a sweep, where an interrupted trial is tried again later
            table = table[table["state"] == "complete"].sort_values(table.columns.tolist())
        return table.to_csv(index=False)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _timeless(value):
    if isinstance(value, dict):
        kept = {key: one for key, one in value.items() if "seconds" not in key and key not in PLACES}
        return {key: _timeless(one) for key, one in kept.items()}
    return [_timeless(one) for one in value] if isinstance(value, list) else value


def difference(expected: dict[str, Content], found: dict[str, Content]) -> str:
    """What differs, in a sentence; empty where nothing does."""
    missing, stray = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or stray:
        return "; ".join([*(f"{name} is missing" for name in missing), *(f"{name} stays behind" for name in stray)])
    other = [name for name in expected if expected[name].digest != found[name].digest]
    return f"{', '.join(other)} differs from the undisturbed run's" if other else ""


def flaw(path: Path) -> str:
    """Why a file is not whole, in a sentence; empty where it is."""
    try:
        if path.suffix in CHECKS:
            CHECKS[path.suffix](path)
    except Exception as error:  # each library has its own
        return f"{path.name} is not whole ({type(error).__name__}: {error})"
    return ""


def _check_page(path: Path) -> None:
    if not path.read_text(encoding="utf-8").rstrip().endswith("</html>"):
        raise ValueError("it has no end")


def _check_weights(path: Path) -> None:
    with safe_open(path, "np") as file:
        for name in file.keys():  # noqa: SIM118
            file.get_tensor(name)


def _check_picture(path: Path) -> None:
    with Image.open(path) as picture:
        picture.load()


CHECKS = {
    ".json": lambda path: json.loads(path.read_text(encoding="utf-8")),
    ".csv": pd.read_csv,
    ".parquet": pq.read_table,
    ".html": _check_page,
    ".png": _check_picture,
    ".safetensors": _check_weights,
}
