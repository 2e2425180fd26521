"""Recordings, windows files and GGUF files from strangers.

Pickles, links that lead elsewhere, bombs, absurd sizes. Each file has to be refused in a sentence that names it, or
read as if its harmless part were all, within the limits of stress.process; nothing that it asks for may run, and
nothing may be written.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from emg_gpt2.base.errors import EMGError
from emg_gpt2.raw.putemg import read_recording
from emg_gpt2.settings import Settings
from emg_gpt2.windows.reading import load_windows
from stress.fuzz import make_files
from stress.gguf_files import read_gguf
from stress.hostile_gguf import GGUF
from stress.hostile_recordings import CSV, HDF5, ZIP
from stress.hostile_windows import PARQUET
from stress.process import run_all
from stress.row import Row

CASES = {"HDF5": HDF5, "CSV": CSV, "zip": ZIP, "parquet": PARQUET, "GGUF": GGUF}  # kind → name → makes the file
READERS = {".parquet": lambda path: load_windows(Settings(DATA_LOCATION=path)), ".gguf": read_gguf}


def rows(nightly: bool, folder: Path, seed: int, log: Callable[[str], None]) -> Iterator[Row]:
    """One row per kind of file; every case is tried once, however often the programme runs."""
    whole = folder / "whole"
    whole.mkdir()
    make_files(whole)
    for kind, cases in CASES.items():
        log(f"{len(cases)} hostile files: {kind}")
        row = Row("hostile", f"hostile {kind}")
        calls = [(try_case, kind, name, whole, folder / f"{kind} {number}") for number, name in enumerate(cases)]
        for name, ended in zip(cases, run_all(calls), strict=True):
            row.add_call(ended, name)
        yield row


def try_case(kind: str, name: str, whole: Path, folder: Path) -> str:
    """Make a hostile file in a new folder and read it; returns the outcome, and raises EMGError where it is refused."""
    inside = folder / "inside"
    inside.mkdir(parents=True)
    os.chdir(inside)  # so that what is written to the current folder is seen too
    path = CASES[kind][name](whole, inside)
    before, refusal = written(folder), None
    try:
        READERS.get(path.suffix, read_recording)(path)
    except EMGError as error:
        refusal = error
    if changed := sorted(dict(written(folder) ^ before)):
        return f"{changed} was written"
    if refusal and str(path) not in str(refusal):
        return f"the sentence does not name the file: {refusal}"
    if refusal:
        raise refusal
    return "right"


def written(folder: Path) -> set[tuple[str, int]]:
    """Every path in the folder with the time at which it was last written."""
    return {(str(path), path.lstat().st_mtime_ns) for path in folder.rglob("*")}
