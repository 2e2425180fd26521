"""Odd numbers, shapes and classes.

Each case goes through Preprocessing.py, main.py and, nightly, predict and baselines. It works (finite losses,
probabilities that sum to 1, figures and report, no warning), or it is refused in a sentence whose words are known.
Nothing else counts.
"""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from stress.numbers_cases import EMG, FAMILIES, Case
from stress.process import Ended, run_all
from stress.row import Row
from stress.scripts import make_gpt2, make_recordings, start

KEPT_LABELS = (-1, 0, 1, 2, 3)  # of the simulated ones: four classes are quicker than eight
RAW = "--subjects 3 --sessions 2 --trajectories sequential repeats_short --repetitions 2"
RAW += f" --channels {len(EMG)} --sampling-rate 500"
CUT = "--filter none --trim-start-ms 0 --trim-end-ms 0 --stride-ms 250"
SMALL = "--pretrained never --blocks 1 --filters 4 --num-epochs 2 --precision fp32 --tracker none --batch-size 32"
PATIENCE = 600.0  # s for a case
RESULTS = ("report.html", "accuracy.png", "loss.png", "confusion_matrix.png", "best_model/model.safetensors")
NO_NUMBER = re.compile(r"[>\s](nan|inf)\b", re.IGNORECASE)  # in the text of a report


def rows(nightly: bool, folder: Path, seed: int, log: Callable[[str], None]) -> Iterator[Row]:
    """One row per family of cases; with `nightly` all cases, and predict and baselines on what works."""
    recordings, backbone = write_recordings(folder, seed), make_gpt2(folder / "gpt2")
    for family, cases in FAMILIES.items():
        tried = [case for case in cases if nightly or case.quick]
        log(f"{family}: {len(tried)} cases")
        yield row_of(family, tried, recordings, backbone, folder / "family", nightly)


def row_of(family: str, cases: list[Case], recordings: Path, backbone: Path, folder: Path, more: bool) -> Row:
    """more: try predict and baselines too."""
    row = Row("numbers", family)
    calls = [(attempt, case, recordings, backbone, folder / f"{n}", more) for n, case in enumerate(cases)]
    for case, ended in zip(cases, run_all(calls, patience=PATIENCE), strict=True):
        row.add_call(ended, case.name)
    shutil.rmtree(folder, ignore_errors=True)
    return row


def write_recordings(folder: Path, seed: int) -> Path:
    """Two days of two simulated recordings of four classes, four channels at 500 Hz."""
    raw = make_recordings(folder, f"{RAW} --seed {seed}")
    for path in raw.iterdir():
        table = pd.read_hdf(path)
        table["TRAJ_GT"] = table["TRAJ_GT"].where(table["TRAJ_GT"].isin(KEPT_LABELS), -1.0)
        write(table, path)
    return raw


def write(table: pd.DataFrame, path: Path) -> None:
    table.to_hdf(path, key="data", mode="w", format="table", complevel=1, index=False)


# ---- one case -------------------------------------------------------------------------------------------------


def attempt(case: Case, recordings: Path, backbone: Path, folder: Path, more: bool) -> str:
    """The outcome of a case, in a new folder."""
    (folder / "raw").mkdir(parents=True)
    found = {path.stem: pd.read_hdf(path) for path in sorted(recordings.iterdir())}
    for stem, table in (case.change(found) if case.change else found).items():
        write(table, folder / "raw" / f"{stem}.hdf5")
    done = []
    for script, arguments in steps(case, backbone, folder, more):
        done.append((script, start(script, arguments, folder, before=case.before).end()))
        if done[-1][1].status not in (0, 3):
            break
    return outcome_of(case, done, folder)


def steps(case: Case, backbone: Path, folder: Path, more: bool) -> Iterator[tuple[str, list]]:
    """Scripts and their arguments."""
    windows, run = folder / "windows.parquet", folder / "run"
    yield "Preprocessing", ["raw", "--data-location", windows, *CUT.split(), *case.cut.split()]
    flags = (case.flags(windows) if callable(case.flags) else case.flags).split()
    yield "main", ["--data-location", windows, "--model-name", backbone, "--run-dir", run, *SMALL.split(), *flags]
    if more:
        recordings = sorted((folder / "raw").iterdir())[:2]
        yield "emg_gpt2 predict", [*recordings, "--model", run / "best_model", "--out", "predictions"]
        yield "emg_gpt2 baselines", ["--add-to", run]


def outcome_of(case: Case, done: list[tuple[str, Ended]], folder: Path) -> str:
    """ "refused", "right", or what was lost, in a sentence."""
    for script, ended in done:
        if not ended.tidy or "Warning" in ended.err:
            return f"{script} prints {ended.last_line} (and {len(ended.err.splitlines()) - 1} more lines)"
    script, ended = done[-1]
    if ended.status == 1:
        return flaw_of_refusal(case, done, folder) or "refused"
    if ended.status not in (0, 3):
        return f"{script} ended with status {ended.status}"
    if case.refusal:
        return f"it should be refused ({case.refusal}) and was not"
    return next(flaws_of_results(folder), "right")


def flaw_of_refusal(case: Case, done: list[tuple[str, Ended]], folder: Path) -> str:
    script, ended = done[-1]
    name, lines = script.split()[-1], len(ended.err.splitlines())
    if not (ended.refused and ended.last_line.startswith(name)) or (name == script and lines > 1):
        return f"{script} refused it in other than one sentence: {ended.err}"
    words = ended.last_line + done[0][1].out  # where Preprocessing.py names what it skips
    if not case.refusal or case.refusal not in words:
        wanted = f"with the words “{case.refusal}”" if case.refusal else "not at all"
        return f"should be refused {wanted}, and {ended.last_line}"
    missing = [name for name in case.kept if not (folder / "run" / name).exists()]
    return f"{', '.join(missing)} was not kept" if missing else ""


def flaws_of_results(folder: Path) -> Iterator[str]:
    """What is wrong with the results of a run that ended well."""
    run = folder / "run"
    yield from (f"{name} is missing" for name in RESULTS if not (run / name).is_file())
    for path in run.rglob("history.csv"):
        if not np.isfinite(pd.read_csv(path).select_dtypes("number").to_numpy()).all():
            yield f"{path.name} has a loss that is no number"
    for path in (run / "metrics.json", *run.glob("baselines.json")):
        if "NaN" in (text := path.read_text()) or "Infinity" in text:
            yield f"{path.name} has values that are no numbers"
    if NO_NUMBER.search(re.sub(r"<script.*?</script>", "", (run / "report.html").read_text(), flags=re.DOTALL)):
        yield "report.html shows values that are no numbers"
    tables = [pd.read_parquet(run / "predictions.parquet"), *map(pd.read_csv, (folder / "predictions").glob("*.csv"))]
    for table in tables:
        values = table[[name for name in table if name.startswith("p_")]].to_numpy()
        if not np.isfinite(values).all() or np.abs(values.sum(1) - 1).max() > 1e-4:
            yield f"probabilities of {len(table)} windows are not finite or do not sum to 1"
