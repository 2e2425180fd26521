"""Every setting of the project, one typed constant each: the only file that a user edits.

Change a default below, or leave the file alone and say it for one run: `NUM_EPOCHS` is also the flag
`--num-epochs` of `main.py` and `Preprocessing.py` and the environment variable `EMG_NUM_EPOCHS`
(flag before variable before this file). Lists are written with commas: `--train-on '01/*,02/*'`.
"""

import difflib
import os
import re
import sys
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    CliApp,
    CliPositionalArg,
    CliSettingsSource,
    NoDecode,
    SettingsConfigDict,
    SettingsError,
)

from EMG_help import SettingsParser, command_name, sections_of


class EMGError(ValueError):
    """Something that the user can put right; the scripts print it as one sentence, without a traceback."""


class Settings(BaseSettings):
    """Train a GPT-2 gesture classifier on windows of surface EMG."""

    model_config = SettingsConfigDict(
        env_prefix="EMG_",
        extra="forbid",
        use_attribute_docstrings=True,
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_exit_on_error=False,
        allow_inf_nan=False,
        frozen=True,
    )

    # ---- data ---------------------------------------------------------------------------------------------

    DATA_LOCATION: Path = Path("EMG_03_data.parquet")
    """Windows file (parquet): `Preprocessing.py` writes it, `main.py` reads it."""

    SAMPLING_RATIO: float = Field(1.0, gt=0, le=1)
    """Share of the training windows to use, drawn per recording and gesture; 0 < x ≤ 1."""

    BALANCE: Literal["weights", "undersample", "none"] = "weights"
    """Against the many idle windows: class weights in the loss, equal numbers per class, or nothing."""

    MEMORY_GB: float = Field(8.0, ge=0)
    """Windows up to this size (GB) are held in memory, larger ones in a memory-mapped file beside them; x ≥ 0."""

    # ---- preprocessing (read by Preprocessing.py alone) ---------------------------------------------------

    FILTER: Literal["putemg", "causal", "none"] = "putemg"
    """`putemg`: the data set's own zero-phase processing; `causal`: the same band, usable in real time."""

    BAND_HZ: Annotated[tuple[float, float], NoDecode] = (20.0, 700.0)
    """Pass band (Hz), low,high; above a recording's Nyquist frequency only the low edge is used."""

    SAMPLE_RATE: float = Field(1000.0, ge=100, le=1e6)
    """Rate to resample to (Hz); a recording at or below it keeps its own; 100 ≤ x ≤ 1e6."""

    WINDOW_MS: float = Field(250.0, gt=0, le=10_000)
    """Length of a window (ms); 0 < x ≤ 10000."""

    STRIDE_MS: float = Field(125.0, gt=0, le=10_000)
    """Step from one window to the next (ms); 0 < x ≤ 10000."""

    TRIM_START_MS: float = Field(250.0, ge=0, le=1e6)
    """Dropped from the start of every repetition (ms), where label and muscle disagree; 0 ≤ x ≤ 1e6."""

    TRIM_END_MS: float = Field(250.0, ge=0, le=1e6)
    """Dropped from the end of every repetition (ms); 0 ≤ x ≤ 1e6."""

    LEGAL_VALUES: Annotated[list[int], NoDecode] = []
    """Labels to keep, each 0 … 127; empty: every label of the recordings (−1 is never a class)."""

    CLASS_NAMES: Annotated[dict[int, str], NoDecode] = {
        0: "idle",
        1: "fist",
        2: "flexion",
        3: "extension",
        6: "pinch index",
        7: "pinch middle",
        8: "pinch ring",
        9: "pinch small",
    }
    """Gesture names as label=name pairs; used when they name every label found, else labels go by number."""

    DATA_NOTE: str = ""
    """A sentence on the origin of the data, shown with every result made from it."""

    WORKERS: int = Field(1, ge=1)
    """Processes that read and filter recordings side by side, each in up to 1.5 GB of memory; x ≥ 1."""

    CLUSTER: str = ""
    """Address of a Dask scheduler (tcp://host:port) whose workers do it instead; empty: this machine."""

    # ---- download (read by tools.download alone) ----------------------------------------------------------

    DOWNLOAD_URL: str = "https://chmura.put.poznan.pl/s/45NY5snj0U4tgQz/download?path=%2F"
    """Where putEMG lies: a share that takes ?path=FOLDER&files=NAME, or a plain address that takes FOLDER/NAME."""

    # ---- split --------------------------------------------------------------------------------------------

    SPLIT: Literal["trajectory", "repetition", "session", "subject", "random"] = "trajectory"
    """What is held out for the test: recordings, repetitions, later days, people, or (leaky) random windows."""

    TEST_SHARE: float = Field(0.3, gt=0, lt=1)
    """Share of the groups that are held out, rounded, at least one; 0 < x < 1."""

    VALIDATION_SHARE: float = Field(0.2, gt=0, lt=1)
    """Share of the training part's groups of the next finer level that choose the best epoch; 0 < x < 1."""

    FOLD: int = Field(0, ge=0)
    """Which of the folds is held out, from 0 (splits trajectory, repetition, subject and random)."""

    TRAIN_ON: Annotated[list[str], NoDecode] = []
    """Patterns over subject/session/recording that name the training part outright, e.g. 01/2018-01-01/*."""

    TEST_ON: Annotated[list[str], NoDecode] = []
    """Patterns over subject/session/recording that name the test part outright."""

    # ---- model --------------------------------------------------------------------------------------------

    MODEL_NAME: str = "gpt2"
    """Backbone: a GPT-2 name on the hub (gpt2, distilgpt2, gpt2-medium, …) or a local folder."""

    PRETRAINED: Literal["auto", "require", "never"] = "auto"
    """Language-model weights: taken when they can be had, insisted on, or left out (random weights)."""

    BLOCKS: int = Field(2, ge=0)
    """Number of the backbone's blocks to keep, from the first; 0: no backbone (more than it has: all); x ≥ 0."""

    NUM_LAYERS: int = Field(-9, le=0)
    """−n trains the last n blocks, the others stay frozen but for their layer norms; 0 trains none; x ≤ 0."""

    FREEZE: bool = False
    """Freeze all below the trained blocks, tokenisers too: computed once, without NOISE, so epochs take seconds."""

    SCALE: Literal["session", "training"] = "session"
    """What a window is measured against: the signal of its person and day (no labels), or the training part's."""

    LINEAR_PATH: bool = True
    """Add the logits of a linear classifier on log covariances, fitted in closed form, to the backbone's."""

    TOKENS: Annotated[list[Literal["covariance", "power", "bands", "raw"]], NoDecode] = ["covariance", "power"]
    """Tokens, kind after kind: log covariance of the window; per patch power of learned or fixed bands, or raw."""

    PATCH_MS: float = Field(50.0, gt=0)
    """Length of a patch, that is of one token (ms); a window holds at least two; x > 0."""

    FILTERS: int = Field(16, ge=1, le=256)
    """Filters of the `power` tokeniser, shared by all channels; 1 … 256."""

    FILTER_MS: float = Field(25.0, gt=0)
    """Length of those filters (ms); x > 0."""

    DROPOUT: float = Field(0.1, ge=0, lt=1)
    """Dropout in the backbone and before the head; 0 ≤ x < 1."""

    # ---- training -----------------------------------------------------------------------------------------

    NUM_EPOCHS: int = Field(8, ge=1)
    """Passes over the training part at the most; x ≥ 1."""

    PATIENCE: int = Field(4, ge=1)
    """Stop after this many epochs without a lower loss on the validation part; x ≥ 1."""

    REFIT: bool = True
    """Then train anew on training and validation part together, for as many epochs as turned out best."""

    BATCH_SIZE: int = Field(64, ge=1)
    """Windows per step, those of all processes together; x ≥ 1."""

    LR: float = Field(3e-4, gt=0, le=1)
    """Peak learning rate of AdamW; 0 < x ≤ 1."""

    WEIGHT_DECAY: float = Field(0.05, ge=0)
    """Weight decay of the matrices (not of norms, biases and positions); x ≥ 0."""

    WARMUP: float = Field(0.1, ge=0, lt=1)
    """Share of the steps over which the learning rate rises; afterwards it falls as a cosine; 0 ≤ x < 1."""

    NOISE: float = Field(0.5, ge=0)
    """Noise on the log covariances in training, in their standard deviations; x ≥ 0."""

    RING: int = Field(8, ge=1)
    """Electrodes in a ring, which are consecutive channels; x ≥ 1."""

    ROTATION: int = Field(0, ge=0)
    """Turn the rings by up to ± this many electrodes in training, where they may be placed anew; x ≥ 0."""

    CLIP: float = Field(1.0, gt=0)
    """Largest norm of the gradient; x > 0."""

    PRECISION: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the matrix products; `auto` takes bfloat16 where this machine computes it faster."""

    COMPILE: bool = False
    """Compile the backbone (torch.compile): a minute at the start, worth it for long training on a GPU."""

    DETERMINISTIC: bool = False
    """Same result run after run on a GPU too, from slower algorithms (on a CPU it is so by itself)."""

    SEED: int = Field(0, ge=0, lt=2**31)
    """Seed of weights, data order and splits; 0 ≤ x < 2³¹."""

    # ---- validation loop ----------------------------------------------------------------------------------

    SWEEP: bool = False
    """First try settings on the validation part, as SWEEP_SPACE says, then train with the best."""

    SWEEP_SPACE: Literal["grid", "wide"] = "grid"
    """`grid`: every SWEEP_NUM_LAYERS × SWEEP_LR; `wide`: SWEEP_TRIALS trials over the table WIDE of EMG_sweep.py."""

    SWEEP_TRIALS: int = Field(40, ge=1)
    """Trials of the wide search, those of all processes together; x ≥ 1."""

    SWEEP_STUDY: Path | None = None
    """File of the trials, which processes and machines may share; none: sweep.journal in the run's folder."""

    SWEEP_NUM_LAYERS: Annotated[list[int], NoDecode] = [0, -1, -9]
    """Values of NUM_LAYERS to try, each ≤ 0."""

    SWEEP_LR: Annotated[list[float], NoDecode] = [1e-4, 3e-4, 1e-3]
    """Values of LR to try, each 0 < x ≤ 1."""

    NUM_EPOCHS_FOR_VALIDATION: int = Field(3, ge=1)
    """Epochs of each trial of the validation loop; x ≥ 1."""

    # ---- results ------------------------------------------------------------------------------------------

    RUN_DIR: Path | None = None
    """Folder of the results, new or empty; none: runs/DATE-TIME."""

    RESUME: Path | None = None
    """Go on with an interrupted run from its last checkpoint or finished trial: the run's folder."""

    MODEL_SAVING_DIR: Path | None = None
    """Also put the finished model into this folder; none: it stays in the run's best_model/."""

    TRACKER: Literal["tensorboard", "wandb", "mlflow", "none"] = "tensorboard"
    """What logs the run's curves and settings, in its folder: tensorboard/, wandb/ or mlflow.db; or nothing does."""

    @field_validator(
        *("BAND_HZ", "LEGAL_VALUES", "TRAIN_ON", "TEST_ON", "TOKENS", "SWEEP_NUM_LAYERS", "SWEEP_LR"), mode="before"
    )
    @classmethod
    def _split_commas(cls, value):
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @field_validator("CLASS_NAMES", mode="before")
    @classmethod
    def _split_pairs(cls, value):
        if not isinstance(value, str):
            return value
        pairs = [pair.partition("=") for pair in value.split(",") if pair.strip()]
        if not all(equals for _, equals, _ in pairs):
            raise ValueError("should be written 0=idle,1=fist")
        return {label.strip(): name.strip() for label, _, name in pairs}

    @field_validator("CLASS_NAMES")
    @classmethod
    def _are_distinct(cls, names):
        if len(set(names.values())) < len(names):
            raise ValueError("two labels should not have the same name")
        return names

    @field_validator("LEGAL_VALUES")
    @classmethod
    def _are_labels(cls, labels):
        if any(not 0 <= label <= 127 for label in labels):
            raise ValueError("labels should lie in 0 … 127")
        return labels

    @field_validator("TOKENS")
    @classmethod
    def _are_distinct_kinds(cls, tokens):
        if not tokens or len(set(tokens)) < len(tokens):
            raise ValueError("should name at least one kind of tokens, and none twice")
        return tokens

    @field_validator("SWEEP_NUM_LAYERS", "SWEEP_LR")
    @classmethod
    def _can_be_swept(cls, values, info):
        legal = (lambda x: x <= 0) if info.field_name == "SWEEP_NUM_LAYERS" else (lambda x: 0 < x <= 1)
        if not values or not all(map(legal, values)):
            raise ValueError(f"should be at least one legal value of {info.field_name.removeprefix('SWEEP_')}")
        return values

    @model_validator(mode="after")
    def _frozen_windows_do_not_turn(self):
        if self.FREEZE and self.ROTATION:
            raise ValueError(
                f"FREEZE with ROTATION = {self.ROTATION}: windows that are computed once cannot be turned; set one only"
            )
        return self

    @model_validator(mode="after")
    def _frozen_backbone_is_not_compiled(self):
        if self.FREEZE and self.COMPILE:
            raise ValueError("FREEZE with COMPILE: the blocks that are left to train are not compiled; set one only")
        return self

    @model_validator(mode="after")
    def _band_rises(self):
        low, high = self.BAND_HZ
        if not 0 < low < high:
            raise ValueError(f"BAND_HZ = {low},{high}: should rise, 0 < low < high; put the lower edge first")
        return self


class PreprocessingSettings(Settings):
    """Filter, label and cut raw putEMG recordings into one parquet file of windows."""

    RAW: CliPositionalArg[list[Path]]
    """Raw recordings (.hdf5, .csv, .zip) and folders of them."""


AnySettings = TypeVar("AnySettings", bound=Settings)


def from_command_line(
    settings_class: type[AnySettings], argv: list[str] | None = None, command: str | None = None
) -> AnySettings:
    """The settings of one run: flags, then EMG_* variables, then the defaults of this file.

    `command` is what --help calls the script, where its name alone does not. Raises EMGError that names each wrong
    setting, its value and its legal range.
    """
    _refuse_unknown_variables()
    parser = SettingsParser(settings_class, sections_of(Settings), command or command_name())
    flags = CliSettingsSource(settings_class, root_parser=parser, add_argument_method=SettingsParser.add_setting)
    try:
        return CliApp.run(settings_class, _join_negative_values(sys.argv[1:] if argv is None else argv), flags)
    except ValidationError as error:
        raise EMGError("; ".join(_explain(settings_class, detail) for detail in error.errors())) from None
    except SettingsError as error:
        raise EMGError(_explain_flags(settings_class, str(error))) from None


def flag(name: str) -> str:
    """NUM_EPOCHS → --num-epochs"""
    return "--" + name.lower().replace("_", "-")


def _join_negative_values(argv: list[str]) -> list[str]:
    """--flag -1,-3 → --flag=-1,-3: argparse would take the value for a flag."""
    joined = []
    for argument in argv:
        if joined and re.match(r"-\d", argument) and re.fullmatch(r"--[a-z-]+", joined[-1]):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def _refuse_unknown_variables() -> None:
    known = [f"EMG_{name}" for name in Settings.model_fields]
    for variable in sorted(os.environ):
        if variable.upper().startswith("EMG_") and variable.upper() not in known:
            raise EMGError(f"{variable}: the environment sets a setting that does not exist{_closest(variable, known)}")


def _explain(settings_class: type[Settings], detail: dict) -> str:
    message = detail["msg"].removeprefix("Value error, ")
    if not detail["loc"]:
        return message
    name = str(detail["loc"][0])
    legal = (settings_class.model_fields[name].description or "").replace("`", "")
    value = ",".join(map(str, detail["input"])) if isinstance(detail["input"], list) else detail["input"]
    where = f"ENV.py, {flag(name)} or EMG_{name}" if name in Settings.model_fields else flag(name)
    return f"{name} = {value}: {message[0].lower()}{message[1:]} ({where}: {legal})"


def _explain_flags(settings_class: type[Settings], message: str) -> str:
    if "required: RAW" in message:
        return "no recording was named; name at least one file or folder, --help lists the flags"
    return explain_flags(message, [flag(name) for name in settings_class.model_fields])


def explain_flags(message: str, known: list[str]) -> str:
    """What argparse says of a wrong command line, with the nearest of the `known` flags where one is unknown."""
    unknown = message.partition("unrecognized arguments: ")[2]
    if unknown:
        what = (
            f"there is no such flag{_closest(unknown.split()[0], known)}" if unknown[0] == "-" else "not expected here"
        )
        message = f"{unknown}: {what}"
    return f"{message}; --help lists the flags"


def _closest(word: str, known: list[str]) -> str:
    matches = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {matches[0]}?" if matches else ""
