"""Does the language model help? Arms × shares of the training part × seeds: one run of main.py for each."""

import json
import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from rich.console import Console

from EMG_DATA_LOADER import Split, split_windows
from emg_gpt2.base.errors import EMGError
from emg_gpt2.base.files import make_folder, replace_file, write_json
from emg_gpt2.base.log import also_logged_to
from emg_gpt2.model.build import load_model
from emg_gpt2.results.figures import shortened, use_format
from emg_gpt2.results.run import write_predictions, write_split
from emg_gpt2.settings import Settings, settings_of_main
from emg_gpt2.study.arms import Arm, arms_named, arms_of
from emg_gpt2.study.differences import SHUFFLED_TEST, read_figures, results_of_ablation
from emg_gpt2.study.options import ABLATED, AblationSettings
from emg_gpt2.study.runs import Run, carry_out, check_identity, finished, identity, is_finished, locked, train_and_test
from emg_gpt2.study.showing_ablation import write_ablation
from emg_gpt2.study.shuffling import shuffle_patches
from emg_gpt2.training.new_model import new_model
from emg_gpt2.training.sweep import search
from emg_gpt2.training.task import Task, fitted_split, fitted_task, make_task
from emg_gpt2.training.tracker import require_tracker
from emg_gpt2.windows.reading import WindowSet, load_windows
from EMG_utils import draw_confusion_matrix, evaluate

logger = logging.getLogger(__name__)

MOST_STEPS = 4  # beyond the edge of RATES
UNTRAINED = {"weights": "none", "trainable_parameters": 0, "epochs": 0, "best_epoch": 0, "seconds": 0.0}


@dataclass(frozen=True)
class ArmRun(Run):
    """One arm, share of the training part and seed; `shuffled`: trained and tested on shuffled patches."""

    arm: Arm
    share: float
    seed: int
    shuffled: bool

    @property
    def files(self) -> tuple[str, ...]:
        return super().files if self.arm.is_trained else ("metrics.json", "predictions.parquet")


def ablate(given: AblationSettings, console: Console) -> dict:
    """Data → arms → a learning rate per arm → the runs → the content of ablation.json. Raises EMGError.

    console: of the log.
    """
    first = {"SEED": given.SEEDS[0], "SAMPLING_RATIO": given.SHARES[-1]}
    settings = settings_of_main(given, ABLATED, "ablate").model_copy(update=first)
    if settings.BLOCKS == 0:
        raise EMGError("BLOCKS = 0: there is no language model to ask about; set BLOCKS to 1 or more")
    require_tracker(settings)
    use_format(given.FIGURE_FORMAT)
    windows = load_windows(settings)
    with locked(given.OUT):
        check_identity(given.OUT, identity(settings, windows, ABLATED) | identity_of_rates(given))
        figures, facts = run_arms(given, settings, windows, console)
        found, table = results_of_ablation(figures, arms_named(given.ARMS), facts)
        write_ablation(found, table, given.OUT)
    return found


def run_arms(
    given: AblationSettings, settings: Settings, windows: WindowSet, console: Console
) -> tuple[pd.DataFrame, dict]:
    """The figures of all finished runs, and what was done, in words and numbers. Raises EMGError where all failed."""
    split = split_windows(windows, settings)
    logger.info(split.description)
    arms, missing, patch = arms_of(windows, settings, given.ARMS, given.OUT)
    for name, reason in missing.items():
        logger.info(f"{name} is left out: {reason}")
    rates, failed = choose_rates(arms, make_task(windows, split, settings), settings, given)
    runs = plan([arm for arm in arms if arm.name in rates], rates, given, settings)
    failed |= carry_out(
        runs, partial(finish, windows=windows, patch=patch, shuffle=given.SHUFFLE, console=console), console
    )
    facts = facts_of_ablation(given, settings, windows, split)
    figures = read_figures(finished(runs, failed))
    files = {arm.name: path for arm in arms if (path := chosen_rate(arm, given)).exists()}
    edge = [name for name, path in files.items() if json.loads(path.read_text(encoding="utf-8"))["at_the_edge"]]
    return figures, facts | {"missing": missing, "rates": rates, "at_the_edge": edge, "failed": failed}


def identity_of_rates(given: AblationSettings) -> dict:
    """What the choice of learning rates depends on. Other seeds and smaller shares may be added to an ablation."""
    return {"RATES": given.RATES, "first of SEEDS": given.SEEDS[0], "largest of SHARES": given.SHARES[-1]}


def facts_of_ablation(given: AblationSettings, settings: Settings, windows: WindowSet, split: Split) -> dict:
    """What was compared, in words and numbers that every result shows."""
    return {
        "model": settings.MODEL_NAME,
        "blocks": settings.BLOCKS,
        "epochs": settings.NUM_EPOCHS,
        "data": str(settings.DATA_LOCATION),
        "data_note": windows.metadata["note"],
        "split": split.name,
        "split_description": split.description,
        "transductive": settings.SCALE == "session",
        "chance": 1 / len(windows.classes),
        "seeds": given.SEEDS,
        "shares": given.SHARES,
        "rates_tried": given.RATES,  # and beyond them, see rates/
    }


# ---- learning rates ---------------------------------------------------------------------------------------------


def choose_rates(
    arms: list[Arm], task: Task, settings: Settings, given: AblationSettings
) -> tuple[dict[str, float | None], dict[str, str]]:
    """The learning rate of every arm, and why none was found for some."""
    rates, failed = {}, {}
    for arm in arms:
        try:
            rates[arm.name] = choose_rate(arm, task, settings, given) if arm.is_trained else None
        except EMGError as error:
            failed[f"rates of {arm.name}"] = str(error)
            logger.warning(f"rates of {arm.name} failed: {error}")
    return rates, failed


def choose_rate(arm: Arm, task: Task, settings: Settings, given: AblationSettings) -> float:
    """The rate with the best balanced accuracy on the validation part; chosen.json keeps it. Raises EMGError."""
    if len(given.RATES) == 1:
        return given.RATES[0]
    path = chosen_rate(arm, given)
    if not path.exists():
        logger.info(f"learning rate of {arm.name}")
        tried = search_rates(task, settings.model_copy(update=arm.changes), given.RATES, path.parent)
        edge = rate_beyond(tried) is not None
        chosen = {"LR": max(tried, key=tried.get), "at_the_edge": edge, "tried": sorted(tried.items())}
        replace_file(path, lambda new: write_json(new, chosen))
    return json.loads(path.read_text(encoding="utf-8"))["LR"]


def chosen_rate(arm: Arm, given: AblationSettings) -> Path:
    """The file with the chosen rate and the balanced accuracy of every rate that was tried."""
    return given.OUT / "rates" / arm.name / "chosen.json"


def search_rates(task: Task, settings: Settings, rates: list[float], folder: Path) -> dict[float, float]:
    """Rate → balanced accuracy on the validation part; beyond the edge as long as the best one lies there."""
    tried = try_rates(task, settings, rates, folder)
    for step in range(MOST_STEPS):
        if not (further := rate_beyond(tried)):
            break
        try:
            tried |= try_rates(task, settings, [further], folder / f"beyond-{step + 1}")
        except EMGError:  # it diverges, say; the ones before are as good as they were
            tried[further] = 0.0
    return tried


def rate_beyond(tried: dict[float, float]) -> float | None:
    """A rate as far beyond the edge as its neighbour is before it, where the best of the rates is the edge."""
    ordered, best = sorted(tried), max(tried, key=tried.get)
    neighbour = {ordered[0]: ordered[1], ordered[-1]: ordered[-2]}.get(best)
    further = float(f"{best * best / neighbour:.2g}") if neighbour else 1.0
    return further if further < 1 else None


def try_rates(task: Task, settings: Settings, rates: list[float], folder: Path) -> dict[float, float]:
    """Rate → best balanced accuracy in NUM_EPOCHS_FOR_VALIDATION epochs, 0 where it failed.

    Raises EMGError where all fail.
    """
    make_folder(folder)
    grid = {"SWEEP_SPACE": "grid", "SWEEP_NUM_LAYERS": [settings.NUM_LAYERS], "SWEEP_LR": rates}
    with also_logged_to(folder / "log.txt"):
        write_split(task, folder)
        search(task, settings.model_copy(update=grid), folder)
    table = pd.read_csv(folder / "sweep.csv")
    return table.groupby("LR")["validation_balanced_accuracy"].max().fillna(0.0).to_dict()


# ---- the runs ---------------------------------------------------------------------------------------------------


def plan(arms: list[Arm], rates: dict, given: AblationSettings, settings: Settings) -> list[ArmRun]:
    """Seed after seed, so that an unfinished ablation has something of every arm; runs on shuffled patches last."""
    runs = []
    for seed in given.SEEDS:
        chosen = [(arm, {"SEED": seed, "LR": rates[arm.name] or settings.LR}) for arm in arms]
        for share in reversed(given.SHARES):
            runs += [run_of(arm, settings, given.OUT, SAMPLING_RATIO=share, **changes) for arm, changes in chosen]
        trained = [(arm, changes) for arm, changes in chosen if arm.is_trained and given.SHUFFLE]
        runs += [run_of(arm, settings, given.OUT, shuffled=True, **changes) for arm, changes in trained]
    return runs


def run_of(arm: Arm, settings: Settings, out: Path, shuffled: bool = False, **changes) -> ArmRun:
    """The run of an arm with these changes of the settings, in the ablation's folder `out`."""
    settings = settings.model_copy(update=arm.changes | changes)
    share, seed = settings.SAMPLING_RATIO, settings.SEED
    folder = out / "runs" / f"{arm.name}{'-shuffled' * shuffled}-share{share:g}-seed{seed}"
    return ArmRun(folder, settings.model_copy(update={"RUN_DIR": folder}), arm, share, seed, shuffled)


def finish(run: ArmRun, windows: WindowSet, patch: int, shuffle: bool, console: Console) -> bool:
    """Train and test, unless that is done, and with `shuffle` test on shuffled patches too.

    Returns whether anything was left to do.
    """
    split = split_windows(windows, run.settings)
    shuffled = shuffle_patches(windows, patch, run.seed)
    left = not is_finished(run, windows, split)
    if left:
        task = make_task(shuffled if run.shuffled else windows, split, run.settings)
        if run.arm.is_trained:
            train_and_test(run, task, console)
        else:
            evaluate_linear_arm(run, task)
    if shuffle and run.arm.is_trained and not run.shuffled and not (run.folder / SHUFFLED_TEST).exists():
        evaluate_shuffled(run, shuffled, split)
        return True
    return left


def evaluate_shuffled(run: ArmRun, shuffled: WindowSet, split: Split) -> None:
    """Test the run's model, which was trained on windows in order, on shuffled ones."""
    task = make_task(shuffled, fitted_split(split, run.settings), run.settings)
    metrics = evaluate(load_model(run.folder / "best_model"), task, run.settings).metrics
    replace_file(run.folder / SHUFFLED_TEST, lambda new: write_json(new, metrics))


def evaluate_linear_arm(run: ArmRun, task: Task) -> None:
    """Fit the linear path as main.py does, leave out the rest of the model, and test it; nothing is trained."""
    fitted = fitted_task(task, run.settings)
    model = new_model(fitted, run.settings)
    torch.nn.init.zeros_(model.residual_weight)
    metrics, probabilities = evaluate(model, fitted, run.settings)
    del metrics["seconds_per_window"]  # of the whole model
    metrics |= UNTRAINED | {"parameters": sum(tensor.numel() for tensor in model.linear.state_dict().values())}
    make_folder(run.folder)
    write_split(task, run.folder)
    draw_confusion_matrix(metrics, run.arm.title, shortened(task.split.description), run.folder)
    replace_file(run.folder / "metrics.json", lambda new: write_json(new, metrics))
    origin = {"split": task.split.description}
    write_predictions(task.windows, task.split.test, probabilities, origin, run.folder)
