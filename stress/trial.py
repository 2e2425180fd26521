"""One try of the programme `numbers`: recordings → Preprocessing.py → main.py → tools, in a process of its own.

The process is forked from one that has imported everything, so a try does not begin with seconds of imports.
"""

import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import main as training
import Preprocessing
from emg_gpt2.commands import baselines, predict

AT_ONCE = 2  # tries side by side, of one thread each
WHOLE = ("report.html", "accuracy.png", "loss.png", "confusion_matrix.png", "best_model/model.safetensors")
NO_NUMBER = re.compile(r"[>\s](nan|inf)\b", re.IGNORECASE)  # in the text of a report

Recordings = dict[str, pd.DataFrame]  # the file's stem → putEMG's table


@dataclass(frozen=True)
class Case:
    """Something odd: what is done to the recordings, the settings, and how it should end.

    change: takes the recordings and returns the odd ones; cut: flags of Preprocessing.py; flags: of main.py; before:
    what is done to the pipeline itself; refusal: words of the sentence that should refuse it, by whichever script;
    none: it should work.
    """

    name: str
    change: Callable[[Recordings], Recordings] | None = None
    cut: tuple[str, ...] = ()
    flags: tuple[str | Callable[[Path], str], ...] = ()  # or how a flag follows from the windows file
    before: Callable[[], None] | None = None
    refusal: str = ""
    quick: bool = False  # tried without --nightly too
    kept: tuple[str, ...] = field(default=())  # files that a refused training leaves in the run's folder


def ends(
    cases: list[Case], recordings: Path, backbone: Path, folder: Path, tools: bool
) -> Iterator[tuple[Case, str, float]]:
    """How each case ended ("refused", "right" or what was lost) and its seconds; `tools`: they are tried too."""
    method = "forkserver" if "forkserver" in get_all_start_methods() else "spawn"
    context = get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(AT_ONCE, context, max_tasks_per_child=1) as pool:
        tries: list[Future] = [
            pool.submit(attempt, case, recordings, backbone, folder / f"{number}", tools)
            for number, case in enumerate(cases)
        ]
        for case, done in zip(cases, tries, strict=True):
            yield case, *done.result()


def attempt(case: Case, recordings: Path, backbone: Path, folder: Path, tools: bool) -> tuple[str, float]:
    """How it ended, and its seconds."""
    began = time.monotonic()
    folder.mkdir(parents=True)
    torch.set_num_threads(1)
    for name in [name for name in os.environ if name.startswith("EMG_")]:
        del os.environ[name]
    os.environ["HF_HUB_OFFLINE"] = "1"
    found = pd.read_pickle(recordings)
    (folder / "raw").mkdir()
    for stem, table in (case.change(found) if case.change else found).items():
        table.to_hdf(folder / "raw" / f"{stem}.hdf5", key="data", mode="w", format="table", complevel=1, index=False)
    if case.before:
        case.before()
    end = judged(case, list(steps(case, backbone, folder, tools)), folder)
    return end, time.monotonic() - began


# ---- the scripts ----------------------------------------------------------------------------------------------


def steps(case: Case, backbone: Path, folder: Path, tools: bool) -> Iterator[tuple[str, int, str]]:
    """Script, exit status and error output of each step, up to the first that fails."""
    windows, run = folder / "windows.parquet", folder / "run"
    cut = ["--filter", "none", "--trim-start-ms", "0", "--trim-end-ms", "0", "--stride-ms", "250", *case.cut]
    small = ["--model-name", backbone, "--pretrained", "never", "--blocks", "1", "--filters", "4", "--num-epochs", "2"]
    small += ["--precision", "fp32", "--tracker", "none", "--batch-size", "32", *case.flags]
    raw = sorted((folder / "raw").iterdir())
    planned = [
        ("Preprocessing.py", Preprocessing.main, [folder / "raw", "--data-location", windows, *cut]),
        ("main.py", training.main, ["--data-location", windows, "--run-dir", run, *small]),
    ]
    if tools:
        model = ["--model", run / "best_model", "--out", folder / "predictions"]
        planned += [("predict", predict.main, [*raw[:2], *model]), ("baselines", baselines.main, ["--add-to", run])]
    for script, function, arguments in planned:
        told = [given(windows) if callable(given) else str(given) for given in arguments]
        status, said = called(function, [script, *told], folder / f"{script}.txt")
        yield script, status, said
        if status not in (0, 3):
            return


def called(function: Callable[[], int], argv: list[str], output: Path) -> tuple[int, str]:
    """Exit status and error output of a script's `main`; the standard output goes into the file."""
    sys.argv = argv
    errors = output.with_suffix(".err")
    kept = [os.dup(number) for number in (1, 2)]
    with output.open("wb") as out, errors.open("wb") as err:
        os.dup2(out.fileno(), 1), os.dup2(err.fileno(), 2)
        try:
            status = function()
        except BaseException:
            traceback.print_exc()
            status = 70
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os.dup2(kept[0], 1), os.dup2(kept[1], 2)
    return status, errors.read_text(errors="replace")


# ---- how it ended ---------------------------------------------------------------------------------------------


def judged(case: Case, done: list[tuple[str, int, str]], folder: Path) -> str:
    """ "refused", "right", or what was lost, in a sentence."""
    script, status, said = done[-1]
    for name, _, errors in done:
        if "Traceback" in errors or "Warning" in errors:
            return f"{case.name}: {name} said {errors.strip().splitlines()[-1]} (of {len(errors.splitlines())} lines)"
    if status == 1:
        return refused(case, script, said, folder)
    if status not in (0, 3):
        return f"{case.name}: {script} ended with status {status}"
    if case.refusal:
        return f"{case.name}: it should be refused ({case.refusal}) and was not"
    return next((f"{case.name}: {problem}" for problem in problems(folder)), "right")


def refused(case: Case, script: str, said: str, folder: Path) -> str:
    sentence = said.strip().splitlines()[-1] if said.strip() else ""
    if not sentence.startswith(f"{script}: ") or (script.endswith(".py") and len(said.strip().splitlines()) > 1):
        return f"{case.name}: {script} refused it in other than one sentence: {said.strip()}"
    words = sentence + (folder / "Preprocessing.py.txt").read_text()
    if not case.refusal or case.refusal not in words:
        wanted = f"with the words “{case.refusal}”" if case.refusal else "not at all"
        return f"{case.name}: should be refused {wanted}, and {sentence}"
    missing = [name for name in case.kept if not (folder / "run" / name).exists()]
    return f"{case.name}: {', '.join(missing)} was not kept" if missing else "refused"


def problems(folder: Path) -> Iterator[str]:
    """What is wrong with the results of a run that ended well."""
    run = folder / "run"
    yield from (f"{name} is missing" for name in WHOLE if not (run / name).is_file())
    yield from (f"{path.name} has a loss that is no number" for path in run.rglob("history.csv") if not finite(path))
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


def finite(path: Path) -> bool:
    return bool(np.isfinite(pd.read_csv(path).select_dtypes("number").to_numpy()).all())
