"""The settings of the commands that compare: those of main.py and the command's own.

Nothing heavy is imported here, so that --help and a wrong flag are answered at once.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from emg_gpt2.settings import PLACES, Role, Settings
from emg_gpt2.study.protocols import PROTOCOLS

EVALUATED = PLACES | {"FOLD", "SEED"}  # set for every run of an evaluation
ABLATED = PLACES | {"PRETRAINED", "NUM_LAYERS", "ADAPT", "LR", "SAMPLING_RATIO", "SEED"}  # and of an ablation
ABLATED |= Settings.with_role(Role.SEARCH) - {"NUM_EPOCHS_FOR_VALIDATION"}

PROMPTED = EVALUATED | {"SPLIT", "TRAIN_ON", "TEST_ON"}  # and of a study of prompts


class SeveralSeeds(Settings):
    SEEDS: list[int] = [0, 1, 2]
    """Values of SEED, each 0 ≤ x < 2³¹."""

    @field_validator("SEEDS")
    @classmethod
    def _are_seeds(cls, seeds):
        if not seeds or len(set(seeds)) < len(seeds) or not all(0 <= seed < 2**31 for seed in seeds):
            raise ValueError("should be one seed or more, each given once")
        return seeds


class EvaluationSettings(SeveralSeeds):
    """Evaluate every fold of SPLIT, or of a protocol of the putEMG literature, with several seeds: mean, standard
    deviation and interval over people. The same command goes on after an interruption."""

    PROTOCOL: Literal["none", "A", "B", "C", "D"] = Field(
        "none", description="; ".join(f"{name}: {one.title} ({one.source})" for name, one in PROTOCOLS.items()) + "."
    )

    OUT: Path | None = None
    """Folder of the results; none: runs/evaluate-PROTOCOL or runs/evaluate-SPLIT."""

    BASELINES: bool = False
    """Also run the classical baselines on every fold (python -m emg_gpt2 baselines)."""


class AblationSettings(SeveralSeeds):
    """Does the language model help? Pretrained, random and shuffled weights, adapted in four ways, beside a small
    transformer, one block, no backbone and LDA. The same command goes on after an interruption."""

    OUT: Path = Path("runs/ablate")
    """Folder of the results."""

    ARMS: list[str] = []
    """Names of the arms to run, such as pretrained-full,random-full,linear; none: all 16."""

    SHUFFLE: bool = False
    """Also try every arm on windows whose patches are shuffled: what it loses there it knew from their order."""

    SHARES: list[float] = [0.1, 0.3, 1]
    """Shares of the training windows to learn from, each 0 < x ≤ 1."""

    RATES: list[float] = [3e-4, 1e-3, 3e-3, 1e-2]
    """Learning rates to choose from, per arm, after NUM_EPOCHS_FOR_VALIDATION epochs each; each 0 < x ≤ 1. Where the
    best is the lowest or highest, others beyond it are tried."""

    @field_validator("SHARES", "RATES")
    @classmethod
    def _are_shares(cls, values):
        if not values or not all(0 < value <= 1 for value in values):
            raise ValueError("should be one number or more, each 0 < x ≤ 1")
        return sorted(set(values))


class PromptSettings(SeveralSeeds):
    """People that the model has never met: accuracy against the number of people it learnt from, the seconds it has
    read of a new one, and the windows of each gesture in a calibration. The same command goes on after an
    interruption."""

    OUT: Path = Path("runs/prompt")
    """Folder of the results."""

    PEOPLE: list[int] = [5, 10, 15, 20]
    """Numbers of people to learn from, each at least 2."""

    SECONDS: list[float] = [2.5, 5, 10, 15]
    """Seconds of unlabelled signal to read, as far as CONTEXT reaches."""

    SHOTS: list[int] = [1, 2, 4, 8]
    """Windows of each gesture in a calibration, as far as CONTEXT reaches."""

    FOLDS: int = Field(0, ge=0)
    """How many folds of the people to hold out, from the first; 0: all."""

    @field_validator("PEOPLE", "SECONDS", "SHOTS")
    @classmethod
    def _are_amounts(cls, values, info):
        least = 2 if info.field_name == "PEOPLE" else 0
        if not values or min(values) < least or min(values) == 0:
            raise ValueError(f"should be one number or more, each {f'at least {least}' if least else 'above 0'}")
        return sorted(set(values))


class BaselineSettings(Settings):
    """Score the field's classical classifiers on exactly the windows and the split that main.py would use."""

    ADD_TO: Path | None = None
    """A finished run: its data and split are taken, its folder gets baselines.json and baselines.png."""

    OUT: Path = Path("baselines.json")
    """File of the results (JSON); with ADD_TO it lies in the run's folder."""
