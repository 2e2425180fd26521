"""TODO emg_gpt2.model.config."""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, Field, ValidationError, model_validator
from transformers import (
    PreTrainedConfig,
)
from transformers.activations import ACT2FN

from emg_gpt2.base.errors import EMGError
from emg_gpt2.base.text import OneLine, SomeLines, in_short

MOST_TURNED = 3e7  # pairs of channels, over all turns of the rings: 0.25 GB
KEPT = {  # of what transformers puts into a config; another name of an attention would fetch code from the hub
    "dtype": ("float32", "bfloat16", "float16", torch.float32, torch.bfloat16, torch.float16),
    "attn_implementation": ("eager", "sdpa", "flash_attention_2", "flex_attention"),
}


class Claims(BaseModel, strict=True, allow_inf_nan=False):
    """What is checked before anything of the size that it claims is built: it may be a stranger's."""


Share = Annotated[float, Field(ge=0, lt=1)]
Name = Annotated[OneLine, Field(max_length=200)]


class Backbone(Claims, extra="forbid"):
    """Of GPT2Config, all that shapes the blocks; the limits are some times those of GPT-2 XL."""

    n_embd: int = Field(ge=1, le=4096)
    n_layer: int = Field(ge=0, le=200)
    n_head: int = Field(ge=1, le=4096)
    n_positions: int = Field(1024, ge=1, le=16384)
    n_inner: int | None = Field(None, ge=1, le=16384)
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = Field(1e-5, gt=0, lt=1)
    resid_pdrop: Share = 0.1
    embd_pdrop: Share = 0.1
    attn_pdrop: Share = 0.1
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    reorder_and_upcast_attn: bool = False

    @model_validator(mode="after")
    def _is_one(self):
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd = {self.n_embd} is no multiple of n_head = {self.n_head}")
        if self.activation_function not in ACT2FN:
            raise ValueError(f"there is no activation_function {self.activation_function[:40]}")
        return self


class Described(Claims):
    """An EMGConfig."""

    backbone: Backbone
    tokens: list[Literal["covariance", "power", "bands", "raw"]] = Field(min_length=1, max_length=4)
    patch: int = Field(ge=1)
    window: int = Field(ge=2, le=10_000_000)
    filters: int = Field(ge=1, le=256)
    filter_taps: int = Field(ge=1, le=100_000)
    dropout: Share
    linear_path: bool
    ring: int = Field(ge=1, le=10_000)
    rotation: int = Field(ge=0, le=10_000)
    noise: float = Field(ge=0)
    sampling_rate: float = Field(ge=1, le=1e7)
    class_codes: list[Annotated[int, Field(ge=0, le=127)]] = Field(min_length=1, max_length=128)
    class_names: list[Name]
    channels: list[Name] = Field(min_length=1, max_length=2048)
    preprocessing: dict
    unit: Name
    scale: Literal["session", "training"]
    weights: Literal["pretrained", "random"]
    data_note: Annotated[SomeLines, Field(max_length=10_000)]

    @model_validator(mode="after")
    def _fits_together(self):
        pairs = len(self.channels) * (len(self.channels) + 1) // 2
        for kind in ("tokens", "class_codes", "class_names"):
            if len(set(getattr(self, kind))) < len(getattr(self, kind)):
                raise ValueError(f"{kind} has the same one twice")
        if len(self.class_names) != len(self.class_codes):
            raise ValueError(f"{len(self.class_names)} class_names for {len(self.class_codes)} class_codes")
        if not 2 * self.patch <= self.window:
            raise ValueError(f"a window of {self.window} samples holds no two patches of {self.patch}")
        if (2 * self.rotation + 1) * pairs > MOST_TURNED:
            raise ValueError(f"rotation = {self.rotation} is too much for {len(self.channels)} channels")
        return self


class EMGConfig(PreTrainedConfig):
    """Everything that rebuilds the model, and what a user of it needs to know of its data.

    backbone: arguments of GPT2Config; tokens: kinds, of TOKENISERS, in their order; patch, window, filter_taps:
    samples; linear_path: whether logits of log covariances are added to the backbone's; ring: electrodes per ring,
    consecutive channels; rotation: of the rings in training, ± electrodes; noise: on the log covariances in
    training, in their standard deviations; sampling_rate: Hz; class_codes: the data set's label of each class;
    class_names: its name; channels: names; preprocessing: the settings of Preprocessing.py, to be repeated before
    prediction; unit: of the samples; scale: `session` or `training`, what windows were measured against; weights:
    `pretrained` or `random`, what the backbone started from; data_note: where the training data came from.
    Raises EMGError where they are not what Described says. What else a config.json may tell transformers to load or
    to run (remote code, quantization, kernels, other files) is left out.
    """

    model_type = "emg-gpt2"

    def __init__(
        self,
        backbone: dict | None = None,
        tokens: Sequence[str] = ("covariance", "power"),
        patch: int = 50,
        window: int = 250,
        filters: int = 16,
        filter_taps: int = 25,
        dropout: float = 0.1,
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
        **kwargs,
    ):
        self.backbone = backbone or {"n_embd": 768, "n_head": 12, "n_layer": 4}
        self.tokens, self.patch, self.window = list(tokens), patch, window
        self.filters, self.filter_taps, self.dropout = filters, filter_taps, dropout
        self.linear_path, self.ring, self.rotation, self.noise = linear_path, ring, rotation, noise
        self.sampling_rate, self.channels, self.unit, self.scale = sampling_rate, list(channels), unit, scale
        self.class_codes, self.class_names = list(class_codes), list(class_names)
        self.preprocessing, self.weights, self.data_note = preprocessing or {}, weights, data_note
        try:
            Described.model_validate(self, from_attributes=True)
        except ValidationError as error:
            raise EMGError(f"the model's config is not one: {in_short(error)}") from None
        kept = {name: kwargs[name] for name, legal in KEPT.items() if kwargs.get(name) in legal}
        super().__init__(**kept, id2label=dict(enumerate(self.class_names)))
