"""The configuration of a model, and the limits that an untrusted config.json must keep.

All limits are checked before any memory is allocated for the model.
"""

import hashlib
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, Field, ValidationError, model_validator
from transformers import PreTrainedConfig

from emg_gpt2 import __version__
from emg_gpt2.base.errors import EMGError
from emg_gpt2.base.registry import HeadName, TokeniserName
from emg_gpt2.base.text import OneLine, SomeLines, in_short
from emg_gpt2.model.shapes import AnyShape, Shape, check_shape
from emg_gpt2.settings import Settings

KEPT = {  # legal values of the keys that transformers reads; other attention names would load code from the hub
    "dtype": ("float32", "bfloat16", "float16", torch.float32, torch.bfloat16, torch.float16),
    "attn_implementation": ("eager", "sdpa", "flash_attention_2", "flex_attention"),
}

MOST_CONTEXT = 100_000  # windows
MOST_DAYS = 5000  # of the training data that a config remembers

Share = Annotated[float, Field(ge=0, lt=1)]
Name = Annotated[OneLine, Field(max_length=200)]


class ConfigLimits(BaseModel, strict=True, allow_inf_nan=False):
    """Types and limits of the attributes of an EMGConfig."""

    backbone: AnyShape
    tokens: list[TokeniserName] = Field(min_length=1)
    head: HeadName
    patch: int = Field(ge=1)
    window: int = Field(ge=2, le=10_000_000)
    filters: int = Field(ge=1, le=256)
    filter_taps: int = Field(ge=1, le=100_000)
    dropout: Share
    context: int = Field(ge=0, le=MOST_CONTEXT)
    linear_path: bool
    ring: int = Field(ge=1, le=10_000)
    rotation: int = Field(ge=0, le=10_000)
    noise: float = Field(ge=0)
    sampling_rate: float = Field(ge=1, le=1e7)
    class_codes: list[Annotated[int, Field(ge=0, le=127)]] = Field(min_length=1, max_length=128)
    class_names: list[Name]
    channels: list[Name] = Field(min_length=1, max_length=2048)
    preprocessing: Settings
    unit: Name
    scale: Literal["session", "training"]
    weights: Literal["pretrained", "shuffled", "random", "none"]
    data_note: Annotated[SomeLines, Field(max_length=10_000)]
    trained_days: list[Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]] = Field(max_length=MOST_DAYS)

    @model_validator(mode="after")
    def _check_together(self):
        for kind in ("tokens", "class_codes", "class_names"):
            if len(set(getattr(self, kind))) < len(getattr(self, kind)):
                raise ValueError(f"{kind} names the same one twice")
        if len(self.class_names) != len(self.class_codes):
            raise ValueError(f"there are {len(self.class_names)} class_names for {len(self.class_codes)} class_codes")
        if 2 * self.patch > self.window:
            raise ValueError(f"a window of {self.window} samples is shorter than two patches of {self.patch}")
        return self


class EMGConfig(PreTrainedConfig):
    """Everything that rebuilds a model, and what its user needs to know about its data.

    backbone: `model_type` and the arguments of that family's config that shape the blocks (emg_gpt2/model/shapes.py)
    tokens: kinds of tokens, names of TOKENISERS, in the order in which the backbone reads them
    head: name of HEADS, from the hidden states to logits
    patch, window, filter_taps: samples
    filters: number of filters of the `power` tokeniser
    dropout: in the backbone and in the head
    context: windows of the session that the model reads before the one it judges, at most; 0: none
    linear_path: whether the logits of a linear map of log covariances are added to the backbone's
    ring: electrodes of a ring, which are consecutive channels
    rotation: in training the rings are turned by up to ± this many electrodes
    noise: in training, standard deviation of the noise on normalised log covariances
    sampling_rate: of the windows (Hz)
    class_codes, class_names: the data set's label and the name of each class, in the order of the logits
    channels: their names
    preprocessing: the settings of Preprocessing.py with which the windows were made
    unit: of the samples
    scale: what windows are measured against, `session` or `training`
    weights: what the backbone started from, `pretrained`, `shuffled` (the same values in a random order) or
    `random`; `none` where there are no blocks
    data_note: origin of the training data
    trained_days: `day_mark` of every person's day in the training and validation part; empty: not known

    A saved config.json also has `emg_gpt2_version`, the version that wrote it. Of other keys, `dtype` and
    `attn_implementation` are kept where they are legal. All others are dropped, because some would make transformers
    load more files or run code (remote code, quantization, kernels). Raises EMGError where a limit is broken.
    """

    model_type = "emg-gpt2"

    def __init__(
        self,
        backbone: dict | None = None,
        tokens: Sequence[str] = ("covariance", "power"),
        head: str = "linear",
        patch: int = 50,
        window: int = 250,
        filters: int = 16,
        filter_taps: int = 25,
        dropout: float = 0.1,
        context: int = 0,
        linear_path: bool = True,
        ring: int = 8,
        rotation: int = 0,
        noise: float = 0.0,
        sampling_rate: float = 1000.0,
        class_codes: Sequence[int] = (0, 1),
        class_names: Sequence[str] = ("idle", "fist"),
        channels: Sequence[str] = ("EMG_1",),
        preprocessing: dict | None = None,
        unit: str = "count",
        scale: str = "session",
        weights: str = "random",
        data_note: str = "",
        trained_days: Sequence[str] = (),
        **kwargs,
    ):
        self.backbone = backbone or {"n_embd": 768, "n_head": 12, "n_layer": 4}
        self.tokens, self.head, self.patch, self.window = list(tokens), head, patch, window
        self.filters, self.filter_taps, self.dropout = filters, filter_taps, dropout
        self.context, self.linear_path, self.ring, self.rotation, self.noise = (
            context,
            linear_path,
            ring,
            rotation,
            noise,
        )
        self.sampling_rate, self.channels, self.unit, self.scale = sampling_rate, list(channels), unit, scale
        self.class_codes, self.class_names = list(class_codes), list(class_names)
        self.preprocessing, self.weights, self.data_note = preprocessing or {}, weights, data_note
        self.trained_days = list(trained_days)
        self.check_limits()
        kept = {name: kwargs[name] for name, legal in KEPT.items() if kwargs.get(name) in legal}
        super().__init__(**kept, id2label=dict(enumerate(self.class_names)))

    @property
    def shape(self) -> Shape:
        """Of the backbone."""
        return check_shape(self.backbone)

    @property
    def width(self) -> int:
        """D, of tokens and hidden states."""
        return self.shape.hidden_size

    def check_limits(self) -> None:
        """Raise EMGError that names the first attribute outside its limits."""
        try:
            ConfigLimits.model_validate(self, from_attributes=True)
        except ValidationError as error:
            raise EMGError(f"the model's config is not valid: {in_short(error)}") from None

    def to_dict(self) -> dict[str, Any]:
        """As config.json holds it."""
        return super().to_dict() | {"emg_gpt2_version": __version__}


def start_words(weights: str) -> str:
    """A config's `weights` in words, for the log and figures: `random weights`, `no backbone`."""
    return "no backbone" if weights == "none" else f"{weights} weights"


def day_mark(subject: str, session: str) -> str:
    """What a config remembers of a person's day: a hash, so that a model that is shared names nobody."""
    return hashlib.sha256(f"{subject}/{session}".encode()).hexdigest()[:12]
