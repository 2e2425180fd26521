"""Classifiers beside the model: on the same windows, with the same knowledge of the session, chosen on validation.

Each of rivals.py is scored at each of LEVELS (levels.py). What it leaves open (the strength of a regularisation, how
many windows the average of the training part counts for) is chosen on the validation part, after a fit to the training
part. Then it is fitted to what main.py's final model is fitted to, with REFIT the validation part too, and scored on
the test part once. The best classifier of a level is the best one on the validation part.

Thresholds of ZC, SSC and WAMP are 30 counts, 16 counts² and 10 counts, as in putEMG's own features, where the samples
are in counts: unit "count", level `inductive`. Everywhere else channels are divided by their standard deviation, which
is taken for 10 counts, about what a putEMG channel has: the thresholds are then 3, 0.16 and 1. Of 5, 10, 20, 50, 100
and 1000 counts, 10 did best on validation parts of the sample, armband and flexemg (balanced accuracy of LDA with
shrinkage and SVM on Hudgins and Du, mean 0.864; at most 0.853 with the others).
"""

import logging
import os
import time
from itertools import product
from pathlib import Path

import numpy as np
import sklearn
from rich.console import Console
from rich.table import Table

from EMG_DATA_LOADER import Split
from emg_gpt2.base.errors import EMGError
from emg_gpt2.base.files import replace_file, write_json
from emg_gpt2.base.log import time_to_go, track
from emg_gpt2.base.versions import versions
from emg_gpt2.model.config import start_words
from emg_gpt2.results.figures import draw_baselines, picture, shortened, use_format
from emg_gpt2.results.report import write_report
from emg_gpt2.results.run import resumed_settings
from emg_gpt2.results.verdicts import log_verdicts
from emg_gpt2.settings import Settings
from emg_gpt2.study.bench import Bench
from emg_gpt2.study.finished_run import load_split, read_metrics
from emg_gpt2.study.levels import LEVELS, USUAL_CONTEXT
from emg_gpt2.study.options import BaselineSettings
from emg_gpt2.study.people import over_values, people_of_run, read_json, wilcoxon_p
from emg_gpt2.study.rivals import SLOW, Rival, all_rivals
from emg_gpt2.study.views import HAS_PYRIEMANN
from emg_gpt2.training.task import fitted_split, log_data
from emg_gpt2.windows.reading import WindowSet
from EMG_utils import balanced_accuracy, compute_metrics

logger = logging.getLogger(__name__)

FEW_WINDOWS, FEW_TO_CHOOSE = 20_000, 2_000  # training windows of the SLOW; while their settings are chosen
WIDEST = 100  # columns of the table
KEPT = ("accuracy", "balanced_accuracy", "macro_f1", "per_class", "per_subject")
LEFT_OUT = "Tangent space is left out: it needs pyRiemann (pip install emg-gpt2[rivals])"


def compare_rivals(windows: WindowSet, split: Split, settings: Settings) -> list[dict]:
    """Figures of every classifier at every level, on split.test; the order is that of the table.

    One dict each: `features`, `classifier`, `level`, the `setting` and `strength` that were chosen, `validation`
    (balanced accuracy), `predicted` (labels of the validation part's windows `judged`), and on the test part accuracy,
    balanced_accuracy, macro_f1, per_class and per_subject as EMG_utils.compute_metrics has them.
    Raises EMGError where no channel has a signal.
    """
    context, fitted = settings.CONTEXT or USUAL_CONTEXT, fitted_split(split, settings)
    choice = Bench(windows, split.train, split.validation, context, settings.SEED)
    test = Bench(windows, fitted.train, split.test, context, settings.SEED)
    shared = choice.levels.keys() & test.levels.keys()
    rivals, found, began = all_rivals(), [], time.monotonic()
    for number, rival in enumerate(track(rivals, "classifiers")):
        if number and rival.features != rivals[number - 1].features:
            choice.forget()
            test.forget()
        found += [scored(rival, level, choice, test) for level in rival.levels if level in shared]
        reached = ", ".join(f"{one['level']} {one['balanced_accuracy']:.3f}" for one in found if one["rival"] is rival)
        left = len(rivals) - number - 1
        to_go = time_to_go(time.monotonic() - began, number + 1, left) if left else ""
        logger.info(f"{rival.features}, {rival.classifier}: {reached}{to_go}")
    return [{key: value for key, value in one.items() if key != "rival"} for one in found]


def scored(rival: Rival, level: str, choice: Bench, test: Bench) -> dict:
    """One row: what is left open is chosen on the validation part, the slow ones on fewer training windows."""
    options = list(product(rival.settings, rival.strengths(level)))
    target = choice.targets_of(level)

    def predict(setting, strength: float, few: int = FEW_WINDOWS) -> np.ndarray:
        return rival.predict(choice, level, setting, strength, few)

    few = FEW_TO_CHOOSE if rival.slow and len(options) > 1 else FEW_WINDOWS
    reached = [balanced_accuracy(target, predict(*option, few)) for option in options]
    setting, strength = options[int(np.argmax(reached))]
    judged, rows = predict(setting, strength), test.rows_of(level)
    one_hot = np.eye(test.classes)[rival.predict(test, level, setting, strength, FEW_WINDOWS)]
    metrics, labels = compute_metrics(test.windows, rows, one_hot), np.array(test.windows.classes)
    chosen = {"setting": setting, "strength": strength, "validation": balanced_accuracy(target, judged)}
    drawn = len(test.sample(FEW_WINDOWS)) if rival.slow else len(test.train)
    about = {"rival": rival, "features": rival.features, "classifier": rival.classifier, "level": level}
    kept = {"train_windows": drawn, "predicted": labels[judged[choice.rows_of(level).argsort()]].tolist()}
    return about | chosen | {name: metrics[name] for name in KEPT} | over_people(metrics["per_subject"]) | kept


def over_people(per_subject: dict) -> dict:
    """`people`: mean, deviation and 95 % bootstrap interval over people of the balanced accuracy; None for one person.

    The interval is None for fewer than three.
    """
    values = np.array([one["balanced_accuracy"] for one in per_subject.values()])
    if len(values) < 2:
        return {"people": None}
    return {"people": {"count": len(values)} | over_values(values)}


def best_of_levels(baselines: list[dict]) -> dict[str, dict]:
    """The classifier of each level that is best on the validation part, in the order of LEVELS."""
    found = {}
    for level in LEVELS:
        if rows := [one for one in baselines if one["level"] == level]:
            found[level] = max(rows, key=lambda one: one["validation"]) | {"tried": len(rows)}
    return found


# ---- beside a run -----------------------------------------------------------------------------------------------


def usual_level(settings: Settings) -> str:
    """What a model of main.py knows of a session when it judges."""
    if settings.CONTEXT:
        return "unlabelled"
    return "inductive" if settings.SCALE == "training" else "transductive"


def beside_run(best: dict[str, dict], run: dict[str, dict]) -> dict[str, dict]:
    """Level → balanced accuracy of the run, mean over people, its difference from the best classifier, and p."""
    found = {}
    for level in best.keys() & run.keys():
        theirs = best[level]["per_subject"]
        ours = {name: one["balanced_accuracy"] for name, one in run[level].items()}
        differences = np.array([ours[name] - theirs[name]["balanced_accuracy"] for name in sorted(ours)])
        found[level] = {"run": float(np.mean(list(ours.values()))), "difference": float(differences.mean())}
        found[level] |= {"p": wilcoxon_p(differences)}
    return found


# ---- the command ------------------------------------------------------------------------------------------------


def run_baselines(settings: BaselineSettings, console: Console) -> None:
    """Data → baselines → a table on `console`, the JSON file and, with ADD_TO, picture and report of the run.

    Raises EMGError.
    """
    run = settings.ADD_TO
    if settings.RESUME:
        raise EMGError("RESUME is for main.py; ADD_TO takes the settings of a run, or name them one by one")
    settings = resumed_settings(settings, "ADD_TO") if run else settings
    metrics = read_metrics(run, "balanced_accuracy", "weights", "per_subject") if run else {}
    out = run / "baselines.json" if run else settings.OUT
    check_place(out)
    windows, split = load_split(settings, run)
    log_data(windows, split, settings)
    began = time.perf_counter()
    found = compare(windows, split, settings, run) | {"seconds": time.perf_counter() - began}
    print_table(found, console)
    if run:
        use_format(settings.FIGURE_FORMAT)
        draw_beside_run(found, metrics, out)
    replace_file(out, lambda path: write_json(path, found))
    if run:
        write_report(run, windows)
        log_verdicts(run)
    logger.info(f"{out}" + (f", {picture(out)} and report.html" if run else ""))


def compare(windows: WindowSet, split: Split, settings: Settings, run: Path | None = None) -> dict:
    """The content of baselines.json: what was scored on what, all figures, the best of each level, and the run's.

    `validation`: the best one at the run's level, for the verdict (verdicts.py). Raises EMGError.
    """
    baselines = compare_rivals(windows, split, settings)
    best = best_of_levels(baselines)
    facts = facts_of_baselines(baselines, windows, split, settings)
    for one in (*baselines, *best.values()):
        predicted = one.pop("predicted")
        if one.get("tried") and one["level"] == usual_level(settings) and run:
            facts["validation"] = {key: one[key] for key in ("features", "classifier", "level", "tried")}
            facts["validation"] |= {"balanced_accuracy": one["validation"], "predicted": predicted}
    beside = {}
    if run:
        beside = beside_run(best, people_of_run(read_json(run / "metrics.json"), settings.model_dump()))
    best = {level: one | beside.get(level, {}) for level, one in best.items()}
    return facts | {"best": best, "baselines": baselines}


def check_place(out: Path) -> None:
    """Raise EMGError where the file cannot be written, before the work instead of after it."""
    if out.is_dir() or not os.access(out.parent, os.W_OK):
        raise EMGError(f"{out}: no file can be written there; name another place")


def facts_of_baselines(baselines: list[dict], windows: WindowSet, split: Split, settings: Settings) -> dict:
    """What was scored on what, in words and numbers."""
    fitted = fitted_split(split, settings)
    return {
        "data": str(settings.DATA_LOCATION),
        "data_note": windows.metadata["note"],
        "split": split.name,
        "split_description": split.description,
        "n_train": len(fitted.train),
        "n_test": len(split.test),
        "seed": settings.SEED,
        "context": settings.CONTEXT or USUAL_CONTEXT,
        "levels": {level: LEVELS[level] for level in LEVELS if any(one["level"] == level for one in baselines)},
        "classes": dict(zip(map(str, windows.classes), windows.class_names, strict=True)),
        "slow_train_windows": min(one["train_windows"] for one in baselines),
        "chance": 1 / len(windows.classes),
        "versions": versions() | {"scikit-learn": sklearn.__version__},
    }


# ---- table and picture ------------------------------------------------------------------------------------------


def print_table(found: dict, console: Console) -> None:
    """Print the balanced accuracy of every classifier at every level, the best of each on the validation part marked;
    then that one's figures over people, beside the run's."""
    baselines, best, levels = found["baselines"], found["best"], list(found["levels"])
    reached = {(one["features"], one["classifier"], one["level"]): one for one in baselines}
    table = Table("features", "classifier", *levels, box=None)
    console.width = max(console.width, WIDEST)  # a narrower one would break every name
    for name in dict.fromkeys((one["features"], one["classifier"]) for one in baselines):
        table.add_row(*name, *(cell(reached.get((*name, level)), best[level]) for level in levels))
    console.print("Balanced accuracy on the test part (* best of the level on the validation part)")
    console.print(table)
    for line in [*map(best_in_words, best.values()), *remarks(found)]:
        console.print(line, markup=False, soft_wrap=True)


def cell(one: dict | None, best: dict) -> str:
    """A figure, with a star where it is that of the best one."""
    if one is None:
        return ""
    is_best = (one["features"], one["classifier"]) == (best["features"], best["classifier"])
    return f"[bold]{one['balanced_accuracy']:.3f} *[/]" if is_best else f"{one['balanced_accuracy']:.3f}"


def best_in_words(one: dict) -> str:
    """The best classifier of a level, its figures over people, and how the run does beside it."""
    words = f"{one['level']}: {one['classifier']} on {one['features']}, the best of {one['tried']} on validation"
    words += f" ({one['validation']:.3f}), has {one['balanced_accuracy']:.3f} on the test part"
    if people := one["people"]:
        words += f"; mean over {people['count']} people {people['mean']:.3f} ± {people['std']:.3f}"
        words += "" if people["low"] is None else f", 95 % interval {people['low']:.3f} to {people['high']:.3f}"
    if "run" in one:
        words += f"; the run {one['run']:.3f}, {one['difference']:+.3f}"
        words += f", p = {one['p']:.2g} (Wilcoxon over people)" if one["p"] is not None else ", too few people to test"
    return words


def remarks(found: dict) -> list[str]:
    """What a reader of the figures should know, in lines."""
    drawn, lines = found["slow_train_windows"], [f"chance {found['chance']:.3f}, {found['n_test']} test windows"]
    lines += [f"{level}: known of the session: {words}" for level, words in found["levels"].items()]
    lines += [
        f"contexts of at most {found['context']} windows; the calibrated leave out the windows of the calibration"
    ]
    lines += ["LEAKY split: random windows"] if found["split"] == "random" else []
    lines += ["no calibrated figures: a session has no gesture to spare"] if "calibrated" not in found["levels"] else []
    lines += [f"{' and '.join(SLOW)} trained on {drawn} of the {found['n_train']} windows"] * (drawn < found["n_train"])
    return [*lines, *([] if HAS_PYRIEMANN else [LEFT_OUT]), *filter(None, [found["data_note"]])]


def draw_beside_run(found: dict, metrics: dict, path: Path) -> None:
    """Points of the balanced accuracy of the run and of every classifier at every level."""
    about = [shortened(found["split_description"]), Path(found["data"]).name, *remarks(found)]
    reached = {(one["features"], one["classifier"], one["level"]): one for one in found["baselines"]}
    names = list(dict.fromkeys((one["features"], one["classifier"]) for one in found["baselines"]))
    best = {level: names.index((one["features"], one["classifier"])) for level, one in found["best"].items()}
    values = {
        level: [reached.get((*name, level), {}).get("balanced_accuracy", np.nan) for name in names]
        for level in found["levels"]
    }
    order = np.argsort(
        [-max((reached.get((*name, level), {}).get("validation", 0)) for level in values) for name in names]
    )
    run = (f"this run, {start_words(metrics['weights'])}", metrics["balanced_accuracy"])
    groups = [f"{features}, {classifier}" for features, classifier in names]
    draw_baselines(groups, values, best, order, run, found["chance"], "; ".join(about), path)
