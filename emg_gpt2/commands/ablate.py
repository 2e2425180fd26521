"""Does the language model help? GPT-2 with and without its weights beside simpler models, all else the same.

    python -m tools.ablate --data-location putemg.parquet [any setting of main.py]

Every arm, share of the training part and seed is one run of main.py in OUT/runs; each arm's learning rate is chosen
on the validation part, in OUT/rates. The same command goes on after an interruption.
Exit status: 0 done, 1 nothing to show, 3 some runs failed, 130 interrupted.
"""

import bisect
import copy
import json
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import field_validator
from pydantic_settings import NoDecode
from rich.console import Console
from transformers import GPT2Config

from EMG_DATA_LOADER import Split, split_windows
from emg_gpt2.base.errors import EMGError
from emg_gpt2.base.files import make_folder, replace_file, replace_folder, write_json
from emg_gpt2.commands.evaluate import (
    SeveralSeeds,
    carry_out,
    check_claim,
    claim,
    claimed,
    is_finished,
    runs_with_status,
    settings_of_main,
    train,
)
from emg_gpt2.model.build import build_model, load_model
from emg_gpt2.model.config import EMGConfig
from emg_gpt2.model.model import EMGForSequenceClassification
from emg_gpt2.results.figures import draw_confusion_matrix
from emg_gpt2.results.run import write_predictions, write_split
from emg_gpt2.settings import Settings, read_settings
from emg_gpt2.study.differences import SHUFFLED_TEST, print_results, read_figures, summarise, write_results
from emg_gpt2.training.sweep import sweep
from emg_gpt2.training.trainer import Trainer
from emg_gpt2.windows.reading import WindowSet, load_windows
from EMG_utils import compute_metrics, describe_model, new_model, session_references
from main import close_log, start_log

GROUP = "study"

OWN = {  # set for every run by this tool
    *("PRETRAINED", "NUM_LAYERS", "LR", "SAMPLING_RATIO", "SEED", "RUN_DIR", "RESUME", "MODEL_SAVING_DIR"),
    *("SWEEP", "SWEEP_SPACE", "SWEEP_TRIALS", "SWEEP_STUDY", "SWEEP_NUM_LAYERS", "SWEEP_LR"),
}
ALL = -999  # NUM_LAYERS: more blocks than any GPT-2 has


class AblationSettings(SeveralSeeds):
    """Does the language model help? Pretrained and random weights, frozen and trained, beside a small transformer, one
    block, no backbone and the linear path alone. The same command goes on after an interruption."""

    OUT: Path = Path("runs/ablate")
    """Folder of the results."""

    SHARES: Annotated[list[float], NoDecode] = [0.1, 0.3, 1]
    """Shares of the training windows to learn from, each 0 < x ≤ 1."""

    RATES: Annotated[list[float], NoDecode] = [3e-4, 1e-3, 3e-3, 1e-2]
    """Learning rates to choose from, per arm, after NUM_EPOCHS_FOR_VALIDATION epochs each; each 0 < x ≤ 1."""

    @field_validator("SHARES", "RATES", mode="before")
    @classmethod
    def _split_numbers(cls, value):
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @field_validator("SHARES", "RATES")
    @classmethod
    def _are_shares(cls, values):
        if not values or not all(0 < value <= 1 for value in values):
            raise ValueError("should be one number or more, each 0 < x ≤ 1")
        return sorted(set(values))


@dataclass(frozen=True)
class Arm:
    """One kind of model, and the settings that make it from those of the command line."""

    name: str
    title: str
    changes: dict

    @property
    def is_trained(self) -> bool:
        return self.name != "linear"


# Without blocks, GPT-2's positions and last layer norm remain. One block, attention and MLP, is LLM2Trsf of Tan et al.
# (NeurIPS 2024), who found it as good as whole language models on forecasting; `no-backbone` is their "w/o LLM".
ARMS = (
    Arm("pretrained-frozen", "pretrained, frozen + norms", {"PRETRAINED": "require", "NUM_LAYERS": 0}),
    Arm("pretrained-trained", "pretrained, fully trained", {"PRETRAINED": "require", "NUM_LAYERS": ALL}),
    Arm("random-frozen", "random, frozen + norms", {"PRETRAINED": "never", "NUM_LAYERS": 0}),
    Arm("random-trained", "random, fully trained", {"PRETRAINED": "never", "NUM_LAYERS": ALL}),
    Arm("small", "small transformer", {"PRETRAINED": "never", "NUM_LAYERS": ALL}),
    Arm("one-block", "one block", {"PRETRAINED": "never", "NUM_LAYERS": ALL, "BLOCKS": 1}),
    Arm("no-backbone", "no backbone", {"PRETRAINED": "never", "NUM_LAYERS": ALL, "BLOCKS": 0}),
    Arm("linear", "linear path alone", {"PRETRAINED": "never", "NUM_LAYERS": ALL, "BLOCKS": 0}),
)


@dataclass(frozen=True)
class Run:
    """One arm, share of the training part and seed; `shuffled`: trained and tested on shuffled patches."""

    arm: Arm
    share: float
    seed: int
    shuffled: bool
    folder: Path
    settings: Settings


def main(argv: list[str] | None = None) -> int:
    """Ablate as the command line says; returns the exit status."""
    return runs_with_status("ablate", lambda console: ablate(read_settings(AblationSettings, argv), console))


def ablate(given: AblationSettings, console: Console) -> int:
    """Data → arms → a learning rate per arm → the runs → table, figure and sentence. Raises EMGError."""
    first, out = {"SEED": given.SEEDS[0], "SAMPLING_RATIO": given.SHARES[-1]}, given.OUT
    settings = settings_of_main(given, OWN, "tools.ablate").model_copy(update=first)
    if settings.BLOCKS == 0:
        raise EMGError("BLOCKS = 0: there is no language model to ask about; set BLOCKS to 1 or more")
    windows = load_windows(settings)
    with claimed(out):
        check_claim(out, claim(settings, windows, OWN) | choice_of_rates(given))
        finished, described = run_arms(given, settings, windows, console)
        found, table = summarise(read_figures(finished), ARMS, described)
        write_results(found, table, out)
    print_results(found, Console(highlight=False))
    print(f"\n{out}: ablation.json, ablation.csv, ablation.png, rates/, runs/")
    return 3 if found["failed"] else 0


def run_arms(
    given: AblationSettings, settings: Settings, windows: WindowSet, console: Console
) -> tuple[list[Run], dict]:
    """The runs that are finished, and what was done, in words and numbers. Raises EMGError where there are none."""
    split = split_windows(windows, settings)
    console.print(split.description, markup=False, soft_wrap=True)
    arms, missing, patch = arms_of(windows, settings, given.OUT)
    for name, reason in missing.items():
        console.print(f"{name} is left out: {reason}", markup=False, soft_wrap=True)
    rates, failed = choose_rates(arms, windows, split, settings, given, console)
    runs = plan_all([arm for arm in arms if arm.name in rates], rates, given, settings)
    failed |= carry_out(runs, partial(finish, windows=windows, patch=patch, console=console), console)
    finished = [run for run in runs if run.folder.name not in failed]
    if not finished:
        raise EMGError(f"no run was finished, the first one because: {next(iter(failed.values()))}")
    return finished, describe(given, settings, windows, split) | {"missing": missing, "rates": rates, "failed": failed}


def choice_of_rates(given: AblationSettings) -> dict:
    """What the learning rates hang on; other seeds and smaller shares may be added to an ablation."""
    return {"RATES": given.RATES, "first of SEEDS": given.SEEDS[0], "largest of SHARES": given.SHARES[-1]}


def describe(given: AblationSettings, settings: Settings, windows: WindowSet, split: Split) -> dict:
    return {
        "model": settings.MODEL_NAME,
        "blocks": settings.BLOCKS,
        "epochs": settings.NUM_EPOCHS,
        "data": str(settings.DATA_LOCATION),
        "data_note": windows.metadata["note"],
        "split": split.name,
        "split_description": split.description,
        "chance": 1 / len(windows.classes),
        "seeds": given.SEEDS,
        "shares": given.SHARES,
        "rates_tried": given.RATES,
    }


# ---- the arms -------------------------------------------------------------------------------------------------


def arms_of(windows: WindowSet, settings: Settings, out: Path) -> tuple[list[Arm], dict[str, str], int]:
    """The arms that can be run, why others cannot, and the length of a patch (samples).

    The small transformer has as many trained parameters as the frozen blocks leave. Raises EMGError.
    """
    model = build_model(describe_model(windows, settings), settings.MODEL_NAME, "never", settings.BLOCKS)
    model.train_last(0)
    missing = {} if settings.LINEAR_PATH else {"linear": "LINEAR_PATH is off"}
    try:
        build_model(describe_model(windows, settings), settings.MODEL_NAME, "require", settings.BLOCKS)
    except EMGError as error:
        missing |= dict.fromkeys(("pretrained-frozen", "pretrained-trained"), f"weights not available here ({error})")
    small = write_small_backbone(model.config, model.num_parameters(only_trainable=True), out / "small")
    named = {"small": {"MODEL_NAME": str(small)}}
    arms = [replace(arm, changes=arm.changes | named.get(arm.name, {})) for arm in ARMS if arm.name not in missing]
    return arms, missing, model.config.patch


def write_small_backbone(like: EMGConfig, target: int, folder: Path) -> Path:
    """config.json of a GPT-2 so narrow that, fully trained, its model has about `target` trained parameters.

    Blocks and heads are as many as in `like`; the width is the nearest whole number of heads.
    """
    heads = like.backbone["n_head"]
    widths = range(heads, like.backbone["n_embd"] + heads, heads)
    above = bisect.bisect_left(widths, target, key=lambda width: count_trained(narrowed(like, width)))
    near = widths[max(0, above - 1) : above + 1]
    width = min(near, key=lambda width: abs(count_trained(narrowed(like, width)) - target))
    shape = GPT2Config(**narrowed(like, width).backbone)
    replace_folder(folder, shape.save_pretrained)
    return folder


def narrowed(config: EMGConfig, width: int) -> EMGConfig:
    config = copy.deepcopy(config)
    config.backbone |= {"n_embd": width, "n_inner": None}
    return config


def count_trained(config: EMGConfig) -> int:
    """Parameters that train when every block does."""
    with torch.device("meta"):  # shapes without memory
        model = EMGForSequenceClassification(config)
    return model.num_parameters(only_trainable=True)


def choose_rates(
    arms: list[Arm], windows: WindowSet, split: Split, settings: Settings, given: AblationSettings, console: Console
) -> tuple[dict[str, float | None], dict[str, str]]:
    """The learning rate of every arm, and why none was found for some."""
    rates, failed = {}, {}
    for arm in arms:
        try:
            run = plan(arm, settings, given.OUT)
            rates[arm.name] = choose_rate(run, windows, split, given.RATES, console) if arm.is_trained else None
        except EMGError as error:
            failed[f"rates of {arm.name}"] = str(error)
            console.print(f"rates of {arm.name} failed: {error}", markup=False, soft_wrap=True)
    return rates, failed


def choose_rate(run: Run, windows: WindowSet, split: Split, rates: list[float], console: Console) -> float:
    """That of the best balanced accuracy on the validation part, by main.py's sweep over one value of NUM_LAYERS."""
    folder = run.folder.parent.parent / "rates" / run.arm.name
    path = folder / "chosen.json"
    if len(rates) == 1:
        return rates[0]
    if not path.exists():
        console.print(f"learning rate of {run.arm.name}", markup=False)
        chosen = {"LR": sweep_rates(run, windows, split, rates, console, folder)}
        replace_file(path, lambda new: write_json(new, chosen))
    return json.loads(path.read_text(encoding="utf-8"))["LR"]


def sweep_rates(
    run: Run, windows: WindowSet, split: Split, rates: list[float], console: Console, folder: Path
) -> float:
    """Every rate for NUM_EPOCHS_FOR_VALIDATION epochs, the best one of them. Raises EMGError where all fail."""
    make_folder(folder)
    start_log(console, folder)
    try:
        write_split(windows, split, folder)
        grid = {"SWEEP_SPACE": "grid", "SWEEP_NUM_LAYERS": [run.settings.NUM_LAYERS], "SWEEP_LR": rates}
        references = session_references(windows, split, run.settings)
        return sweep(windows, split, references, run.settings.model_copy(update=grid), console, folder).LR
    finally:
        close_log()


# ---- the runs -------------------------------------------------------------------------------------------------


def plan_all(arms: list[Arm], rates: dict, given: AblationSettings, settings: Settings) -> list[Run]:
    """Seed after seed, so that an unfinished ablation has something of every arm; the shuffled ones last."""
    runs = []
    for seed in given.SEEDS:
        chosen = [(arm, {"SEED": seed, "LR": rates[arm.name] or settings.LR}) for arm in arms]
        for share in reversed(given.SHARES):
            runs += [plan(arm, settings, given.OUT, SAMPLING_RATIO=share, **changes) for arm, changes in chosen]
        trained = [(arm, changes) for arm, changes in chosen if arm.is_trained]
        runs += [plan(arm, settings, given.OUT, shuffled=True, **changes) for arm, changes in trained]
    return runs


def plan(arm: Arm, settings: Settings, out: Path, shuffled: bool = False, **changes) -> Run:
    settings = settings.model_copy(update=arm.changes | changes)
    share, seed = settings.SAMPLING_RATIO, settings.SEED
    folder = out / "runs" / f"{arm.name}{'-shuffled' * shuffled}-share{share:g}-seed{seed}"
    return Run(arm, share, seed, shuffled, folder, settings.model_copy(update={"RUN_DIR": folder}))


def finish(run: Run, windows: WindowSet, patch: int, console: Console) -> bool:
    """Train and test, also on shuffled patches, unless that is done; returns whether there was anything to do."""
    split = split_windows(windows, run.settings)
    shuffled = shuffle_patches(windows, patch, run.seed)
    began = not is_finished(run, windows, split)
    if began and run.arm.is_trained:
        train(run, shuffled if run.shuffled else windows, split, console)
    elif began:
        evaluate_linear_path(run, windows, split)
    if run.arm.is_trained and not run.shuffled and not (run.folder / SHUFFLED_TEST).exists():
        evaluate_shuffled(shuffled, run, split)
        return True
    return began


def shuffle_patches(windows: WindowSet, patch: int, seed: int) -> WindowSet:
    """The same windows with the patches of each in a random order of its own.

    One order for all windows would tell the model as much as the true one, for it learns a vector per position.
    Neither the mean nor the covariance of a window changes. What changes beside the order are the samples on both
    sides of a patch's edge, which the `power` filters see together: the arm without a backbone shows how much that is.
    """
    note = f"{windows.metadata['note'].rstrip('.')}. The patches of every window are shuffled.".removeprefix(". ")
    return WindowSet(ShuffledPatches(windows.emg, patch, seed), windows.table, windows.metadata | {"note": note})


class ShuffledPatches:
    """emg (n, T, C) whose rows are shuffled as they are read, for it may be larger than the memory.

    Samples before the first whole patch stay: the model's tokens leave them out.
    """

    def __init__(self, emg: np.ndarray, patch: int, seed: int):
        self.emg, self.patch = emg, patch
        order = np.arange(emg.shape[1] // patch)
        self.orders = np.random.default_rng(seed).permuted(np.tile(order, (len(emg), 1)), axis=1)  # (n, P)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        emg, orders = self.emg[rows], self.orders[rows]
        batch, time, channels = emg.shape
        first = time % self.patch
        patches = emg[:, first:].reshape(batch, -1, self.patch, channels)  # (B, P, p, C)
        shuffled = np.take_along_axis(patches, orders[:, :, None, None], 1).reshape(batch, -1, channels)
        return np.concatenate([emg[:, :first], shuffled], 1)  # (B, T, C)


def evaluate_shuffled(shuffled: WindowSet, run: Run, split: Split) -> None:
    """Test the run's model, which was trained on windows in order, on shuffled ones."""
    model = load_model(run.folder / "best_model")
    metrics = compute_metrics(shuffled, split.test, predict(model, shuffled, split, run.settings))
    replace_file(run.folder / SHUFFLED_TEST, lambda new: write_json(new, metrics))


def predict(model: EMGForSequenceClassification, windows: WindowSet, split: Split, settings: Settings) -> np.ndarray:
    """(n, K) probabilities of the test part, measured against what a run of main.py measures it against."""
    fitted = split.with_validation() if settings.REFIT else split
    references = session_references(windows, fitted, settings)
    return Trainer(model, windows, fitted, references, settings, epochs=1).predict(model, split.test)


def evaluate_linear_path(run: Run, windows: WindowSet, split: Split) -> None:
    """Fit the linear path as main.py does, leave out the rest of the model, and test it; nothing is trained."""
    fitted = split.with_validation() if run.settings.REFIT else split
    model = new_model(windows, fitted, session_references(windows, fitted, run.settings), run.settings)
    torch.nn.init.zeros_(model.residual_weight)
    probabilities = predict(model, windows, split, run.settings)
    parameters = sum(parameter.numel() for parameter in model.linear.parameters())
    nothing = {"weights": "none", "trainable_parameters": 0, "epochs": 0, "best_epoch": 0, "seconds": 0.0}
    metrics = compute_metrics(windows, split.test, probabilities) | {"parameters": parameters} | nothing
    make_folder(run.folder)
    (run.folder / "split.csv").unlink(missing_ok=True)
    write_split(windows, split, run.folder)
    replace_file(run.folder / "metrics.json", lambda new: write_json(new, metrics))
    write_predictions(windows, split.test, probabilities, {"split": split.description}, run.folder)
    draw_confusion_matrix(metrics, run.arm.title, split.description, run.folder)


if __name__ == "__main__":
    sys.exit(main())
