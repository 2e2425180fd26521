"""The field's classical classifiers on exactly the windows and the split that main.py would use.

    python -m tools.baselines [any setting of main.py] [--out FILE]
    python -m tools.baselines --add-to RUN

Feature sets (tools/features.py) × classifiers × scalings. They train on what main.py's final model trains on: the
training part, with REFIT and the validation part too, which they have nothing to choose on. The test part is scored
once by each. The best of a column is the best of 20 on the test part, so it flatters the baselines.

Scalings: "training" keeps one scale per channel, that of the training part. "session" divides each channel by its
standard deviation over the windows of that person and day, the test part apart, without labels: as the model has it. A
StandardScaler, fitted on the training part, follows both.

Thresholds of ZC, SSC and WAMP are 30 counts, 16 counts² and 10 counts, as in putEMG's own features, where the samples
are in counts: unit "count" and scaling "training". Everywhere else channels are divided by their standard deviation
(that of the training part, or of the session), and a standard deviation stands for 10 counts, what a putEMG channel
has about: thresholds of 3, 0.16 and 1. Of 5, 10, 20, 50, 100 and 1000 counts, 10 did best on validation parts of
the sample, armband and flexemg (balanced accuracy of LDA with shrinkage and SVM on Hudgins and Du, mean 0.864; 0.853
and less with the others).

Classifiers have putEMG's parameters and scikit-learn's defaults otherwise, whatever BALANCE says. On the sample's
validation parts (splits trajectory and session, mean over feature sets and scalings) equal priors of LDA and QDA and
class weights of the SVM changed balanced accuracy from 0.793 to 0.795 (LDA), 0.808 to 0.787 (shrinkage), 0.765 to
0.767 (QDA) and 0.735 to 0.730 (SVM), and lowered each macro F1.

With --add-to, data and split are those of a finished run, and the run's folder gets baselines.json,
baselines.png and a new report.html.
Exit status: 0 done, 1 something that the user can put right, 130 interrupted.
"""

import json
import logging
import os
import sys
import time
from itertools import product
from pathlib import Path

import sklearn
from rich.console import Console
from rich.table import Table

from EMG_DATA_LOADER import Split, split_windows
from emg_gpt2.base.command_line import with_status
from emg_gpt2.base.errors import EMGError
from emg_gpt2.base.files import replace_file, write_json
from emg_gpt2.results.figures import draw_baselines
from emg_gpt2.results.report import write_report
from emg_gpt2.results.run import is_split_of, resumed_settings
from emg_gpt2.settings import Settings, read_settings
from emg_gpt2.study.baselines import CLASSIFIERS, SCALINGS, SLOW, evaluate_baselines
from emg_gpt2.study.features import FEATURE_SETS
from emg_gpt2.windows.reading import WindowSet, load_windows
from EMG_utils import versions
from main import ConsoleHandler, describe_data

GROUP = "study"

logger = logging.getLogger("baselines")


class BaselineSettings(Settings):
    """Score the field's classical classifiers on exactly the windows and the split that main.py would use."""

    ADD_TO: Path | None = None
    """A finished run: its data and split are taken, its folder gets baselines.json and baselines.png."""

    OUT: Path = Path("baselines.json")
    """File of the results (JSON); with ADD_TO it lies in the run's folder."""


def main(argv: list[str] | None = None) -> int:
    """Score the baselines that the command line names; returns the exit status."""
    start_log()
    return with_status(
        "baselines",
        lambda: run_baselines(read_settings(BaselineSettings, argv)),
        full_memory="lower MEMORY_GB or SAMPLING_RATIO",
    )


def start_log() -> None:
    """What happens, on the error output."""
    handler = ConsoleHandler(Console(stderr=True, highlight=False))
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler], force=True)
    for name in ("main", "baselines"):
        logging.getLogger(name).setLevel(logging.INFO)


def run_baselines(settings: BaselineSettings) -> None:
    """Data → baselines → table, json and, for a run, the picture. Raises EMGError."""
    settings, metrics = settings_and_metrics(settings)
    out = settings.ADD_TO / "baselines.json" if settings.ADD_TO else settings.OUT
    check_place(out)
    windows = load_windows(settings)
    split = split_windows(windows, settings)
    if settings.ADD_TO:
        check_split(windows, split, settings)
    describe_data(windows, split, settings)
    split = split.with_validation() if settings.REFIT else split
    began = time.perf_counter()
    baselines = evaluate_baselines(windows, split, settings.SEED)
    described = describe(baselines, windows, split, settings) | {"seconds": time.perf_counter() - began}
    print_table(baselines, described)
    if metrics:
        replace_file(out.with_suffix(".png"), lambda path: draw(baselines, described, metrics, path))
    replace_file(out, lambda path: write_json(path, described | {"baselines": baselines}))
    if metrics:
        write_report(settings.ADD_TO, windows)
    logger.info(f"{out}" + (f", {out.with_suffix('.png')} and report.html" if metrics else ""))


# ---- the run that they are added to ---------------------------------------------------------------------------


def settings_and_metrics(settings: BaselineSettings) -> tuple[BaselineSettings, dict | None]:
    """With ADD_TO the run's own settings, and its metrics. Raises EMGError where there is no finished run."""
    if not settings.ADD_TO:
        if settings.RESUME:
            raise EMGError("RESUME is for main.py; ADD_TO takes the settings of a run, or name them one by one")
        return settings, None
    settings = resumed_settings(settings, "ADD_TO")
    path = settings.ADD_TO / "metrics.json"
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
        return settings, {name: metrics[name] for name in ("balanced_accuracy", "weights")}
    except (OSError, ValueError, KeyError):
        raise EMGError(
            f"{path}: there are no results of a finished run; finish it with main.py --resume {settings.ADD_TO}"
        ) from None


def check_split(windows: WindowSet, split: Split, settings: BaselineSettings) -> None:
    try:
        same = is_split_of(settings.ADD_TO, windows, split)
    except (OSError, ValueError):
        same = False
    if not same:
        raise EMGError(
            f"{settings.ADD_TO / 'split.csv'}: the run was made on other windows or another split than "
            f"{settings.DATA_LOCATION} gives now; run main.py anew"
        )


def check_place(out: Path) -> None:
    """Raise EMGError now, not when the work is done."""
    if out.is_dir() or not os.access(out.parent, os.W_OK):
        raise EMGError(f"{out}: no file can be written there; name another place")


# ---- baselines ------------------------------------------------------------------------------------------------


# ---- results --------------------------------------------------------------------------------------------------


def describe(baselines: list[dict], windows: WindowSet, split: Split, settings: BaselineSettings) -> dict:
    return {
        "data": str(settings.DATA_LOCATION),
        "data_note": windows.metadata["note"],
        "split": split.name,
        "split_description": split.description,
        "n_train": len(split.train),
        "n_test": len(split.test),
        "seed": settings.SEED,
        "classes": dict(zip(map(str, windows.classes), windows.class_names, strict=True)),
        "slow_train_windows": max(one["train_windows"] for one in baselines if one["classifier"] in SLOW),
        "chance": 1 / len(windows.classes),
        "versions": versions() | {"scikit-learn": sklearn.__version__},
    }


def print_table(baselines: list[dict], described: dict) -> None:
    """Balanced accuracy of every baseline, the best of each scaling marked."""
    reached = {(one["features"], one["classifier"], one["scaling"]): one["balanced_accuracy"] for one in baselines}
    best = {scaling: max(value for key, value in reached.items() if key[2] == scaling) for scaling in SCALINGS}
    table = Table("features", "classifier", *SCALINGS.values(), box=None)
    for name, kind in product(FEATURE_SETS, CLASSIFIERS):
        values = [(reached[name, kind, scaling], best[scaling]) for scaling in SCALINGS]
        table.add_row(name, kind, *(f"[bold]{v:.3f} *[/]" if v == top else f"{v:.3f}" for v, top in values))
    console = Console(highlight=False)
    console.print("Balanced accuracy on the test part, by scale (* best of the column)")
    console.print(table)
    for line in notes(described):
        console.print(line, markup=False, soft_wrap=True)


def notes(described: dict) -> list[str]:
    """What a reader of the figures should know, in lines."""
    leak = ["LEAKY split: random windows"] if described["split"] == "random" else []
    drawn = described["slow_train_windows"]
    fewer = [f"{' and '.join(SLOW)} trained on {drawn} of the {described['n_train']} windows"]
    chance = f"chance {described['chance']:.3f}, {described['n_test']} test windows"
    return [chance, *leak, *(fewer if drawn < described["n_train"] else []), *filter(None, [described["data_note"]])]


def draw(baselines: list[dict], described: dict, metrics: dict, path: Path) -> None:
    """The run's balanced accuracy beside the baselines'."""
    note = "; ".join([described["split_description"], Path(described["data"]).name, *notes(described)])
    groups = [f"{name}, {kind}" for name, kind in product(FEATURE_SETS, CLASSIFIERS)]
    bars = {
        f"scale of the {words}": [one["balanced_accuracy"] for one in baselines if one["scaling"] == scaling]
        for scaling, words in SCALINGS.items()
    }
    run = (f"this run, {metrics['weights']} weights", metrics["balanced_accuracy"])
    draw_baselines(groups, bars, run, described["chance"], note, path)


if __name__ == "__main__":
    sys.exit(main())
