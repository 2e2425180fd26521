"""Windows (B, T, C) → tokens (B, P, D) → GPT-2 → logits (B, K), as a Hugging Face model.

model = EMGForSequenceClassification.from_pretrained("best_model")
logits = model(emg=emg).logits  # emg (B, T, C) in the unit of the training data
"""

import filecmp
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import torch
from huggingface_hub import ModelCard
from pydantic import BaseModel, Field, ValidationError, model_validator
from torch import distributed, nn
from torch.nn import functional as F  # noqa: N812
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2Model,
    PreTrainedConfig,
    PreTrainedModel,
    initialization,
)
from transformers.activations import ACT2FN
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils import SAFE_WEIGHTS_NAME

from EMG_help import OneLine, SomeLines, in_short

BAND_EDGES_HZ = (20, 40, 60, 90, 140, 250, 500)  # of the fixed bands; those above Nyquist are left out
POWER_FLOOR = 1e-4  # of a channel's variance: −40 dB, below the noise of any electrode
SHRINKAGE = 2e-3  # of a covariance towards its mean variance: a window's smallest eigenvalues are noise
SPREAD_FLOOR = 0.05  # of a log covariance; that of a silent electrode does not vary
RESIDUAL_WEIGHT = 0.1  # of the backbone beside the linear path, before training


MOST_TURNED = 3e7  # pairs of channels, over all turns of the rings: 0.25 GB
KEPT = {  # of what transformers puts into a config; another name of an attention would fetch code from the hub
    "dtype": ("float32", "bfloat16", "float16", torch.float32, torch.bfloat16, torch.float16),
    "attn_implementation": ("eager", "sdpa", "flash_attention_2", "flex_attention"),
}


class ModelError(ValueError):
    """A model that cannot be built or loaded, in one sentence."""


# ---- what a config may say ------------------------------------------------------------------------------------


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
    Raises ModelError where they are not what Described says. What else a config.json may tell transformers to load or
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
            raise ModelError(f"the model's config is not one: {in_short(error)}") from None
        kept = {name: kwargs[name] for name, legal in KEPT.items() if kwargs.get(name) in legal}
        super().__init__(**kept, id2label=dict(enumerate(self.class_names)))


# ---- normalisation and augmentation ---------------------------------------------------------------------------


class Reference(NamedTuple):
    """What the windows of S sessions are measured against, from their own unlabelled windows.

    scale (S, C): standard deviation of each channel, in its unit; centre, spread (S, C(C+1)/2): mean and standard
    deviation of the log covariances of the scaled windows.
    """

    scale: torch.Tensor
    centre: torch.Tensor
    spread: torch.Tensor

    def of(self, sessions: torch.Tensor) -> "Reference":
        """One row per window, from the index (B,) of its session."""
        return Reference(*(tensor[sessions] for tensor in self))

    def to(self, device: torch.device) -> "Reference":
        return Reference(*(tensor.to(device) for tensor in self))


class Below(NamedTuple):
    """What B windows are when they reach the first trained block: hidden (B, P, D), and logits (B, K) of the linear
    path."""

    hidden: torch.Tensor
    logits: torch.Tensor


class References(NamedTuple):
    """What every window is measured against: a row of `reference` per group, and the group (n,) of each window."""

    reference: Reference
    groups: torch.Tensor

    def of(self, rows: torch.Tensor) -> Reference:
        """One row per window `rows` (B,)."""
        return self.reference.of(self.groups[rows])

    def to(self, device: torch.device) -> "References":
        return References(self.reference.to(device), self.groups.to(device))


def log_covariance(signal: torch.Tensor) -> torch.Tensor:
    """signal (B, T, C) → (B, C(C+1)/2): the upper triangle of the matrix logarithm of each window's covariance.

    Power of every channel and synchrony of every pair, on a scale where distances are those between muscle efforts
    (log-Euclidean metric: Arsigny et al., Magn. Reson. Med. 2006; for EEG: Barachant et al., IEEE TBME 2012).
    """
    return upper_triangle(matrix_logarithm(shrunk_covariance(signal))).to(signal.dtype)


def shrunk_covariance(signal: torch.Tensor) -> torch.Tensor:
    """signal (B, T, C) → (B, C, C), whose eigenvalues are at least SHRINKAGE · (mean variance + POWER_FLOOR).

    In double precision: of the smallest eigenvalues, a thousandth of the largest or less, single would leave three
    digits, which would differ from machine to machine.
    """
    signal = signal if signal.device.type == "mps" else signal.double()  # Apple's GPUs have no doubles
    _, time, channels = signal.shape
    centred = signal - signal.mean(1, keepdim=True)
    covariance = centred.mT @ centred / time  # (B, C, C)
    variance = covariance.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    identity = torch.eye(channels, device=signal.device, dtype=signal.dtype)
    return covariance + (SHRINKAGE * variance + SHRINKAGE * POWER_FLOOR) * identity


def matrix_logarithm(matrices: torch.Tensor) -> torch.Tensor:
    """(B, C, C), symmetric and of the eigenvalues that `shrunk_covariance` leaves, → (B, C, C); nan stays nan."""
    try:
        values, vectors = torch.linalg.eigh(matrices)
    except torch.linalg.LinAlgError:  # a single window whose samples are no numbers fails the whole batch
        finite = matrices.isfinite().all(2).all(1)[:, None]  # (B, 1)
        values, vectors = torch.linalg.eigh(torch.where(finite[..., None], matrices, 0.0))
        values = torch.where(finite, values, torch.nan)
    return (vectors * values.clamp(min=SHRINKAGE * POWER_FLOOR).log()[:, None]) @ vectors.mT


def upper_triangle(matrices: torch.Tensor) -> torch.Tensor:
    """(B, C, C) → (B, C(C+1)/2), row after row."""
    rows, columns = torch.triu_indices(matrices.shape[1], matrices.shape[1])
    return matrices[:, rows, columns]


class Draws(NamedTuple):
    """What chance does to B windows: turn (B,), index of the turn of their rings; noise (B, C(C+1)/2)."""

    turn: torch.Tensor
    noise: torch.Tensor

    def of(self, windows: torch.Tensor) -> "Draws":
        """Those of the windows at the places `windows`."""
        return Draws(self.turn[windows], self.noise[windows])

    def to(self, device: torch.device) -> "Draws":
        return Draws(self.turn.to(device), self.noise.to(device))


class Augmentation(nn.Module):
    """In training, every window's electrode rings are turned by a random number of electrodes up to ± `rotation`,
    and its log covariances get noise."""

    def __init__(self, config: EMGConfig):
        super().__init__()
        self.noise, self.turns = config.noise, range(-config.rotation, config.rotation + 1)
        self.of_rings = len(config.channels), config.ring
        for name, orders in self.orders().items():
            self.register_buffer(name, orders, persistent=False)

    def orders(self) -> dict[str, torch.Tensor]:
        """channels (turns, C) and pairs (turns, C(C+1)/2): what takes the place of each one, turn by turn."""
        turned = zip(*(turn_rings(*self.of_rings, turn) for turn in self.turns), strict=True)
        return {name: torch.stack(orders) for name, orders in zip(("channels", "pairs"), turned, strict=True)}

    def draw(self, count: int, seed: int) -> Draws:
        """The chances of a batch of `count` windows: a function of the seed, whichever device or process asks."""
        chance = torch.Generator().manual_seed(seed)
        turn = torch.randint(len(self.turns), (count,), generator=chance)
        return Draws(turn, self.noise * torch.randn(count, self.pairs.shape[1], generator=chance))

    def forward(
        self, signal: torch.Tensor, covariance: torch.Tensor, draws: Draws
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """signal (B, T, C), covariance (B, C(C+1)/2), both normalised."""
        if len(self.turns) > 1:
            signal = signal.gather(2, self.channels[draws.turn][:, None].expand_as(signal))
            covariance = covariance.gather(1, self.pairs[draws.turn])
        return signal, covariance + draws.noise


def turn_rings(channels: int, ring: int, turn: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Orders of the channels (C,) and of their pairs (C(C+1)/2,) when each ring is turned by `turn` electrodes.

    Channel order[c] takes the place of channel c. Raises ModelError where the channels are no whole number of rings.
    """
    if turn == 0:
        return torch.arange(channels), torch.arange(channels * (channels + 1) // 2)
    if channels % ring:
        raise ModelError(f"ROTATION = {abs(turn)} turns rings of RING = {ring} electrodes, not {channels}; set RING")
    order = torch.arange(channels).reshape(-1, ring).roll(turn, 1).flatten()
    rows, columns = torch.triu_indices(channels, channels)
    number = torch.empty(channels, channels, dtype=torch.long)
    number[rows, columns] = number[columns, rows] = torch.arange(len(rows))
    return order, number[order[rows], order[columns]]


# ---- tokenisers and the layers they need ----------------------------------------------------------------------


class Dropout(nn.Dropout):
    """The same in a tenth of the time on a CPU, from eight random bits a value: p is rounded to 1/256, below 1."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """values of any shape."""
        if not self.training or values.device.type != "cpu":
            return super().forward(values)
        dropped = min(round(256 * self.p), 255)
        bits = torch.empty(-(-values.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
        kept = bits.view(torch.uint8)[: values.numel()].view(values.shape) >= dropped
        return values * kept.to(values.dtype).mul_(256 / (256 - dropped))


def use_quick_dropout(module: nn.Module) -> None:
    """Exchange every nn.Dropout in it."""
    for name, child in module.named_children():
        if type(child) is nn.Dropout:
            setattr(module, name, Dropout(child.p))
        use_quick_dropout(child)


class SumOverProcesses(torch.autograd.Function):
    """The sum of each process's tensor, on all of them; and so with the gradients."""

    @staticmethod
    def forward(_, tensor: torch.Tensor) -> torch.Tensor:
        total = tensor.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(_, gradient: torch.Tensor) -> torch.Tensor:
        return SumOverProcesses.forward(_, gradient)


class BatchNorm(nn.BatchNorm1d):
    """The same, and where several processes share a batch, over the whole of it (nn.SyncBatchNorm needs a GPU)."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens (B, features, P), of this process."""
        if not self.training or not (distributed.is_initialized() and distributed.get_world_size() > 1):
            return super().forward(tokens)
        count = torch.full((1,), tokens.shape[0] * tokens.shape[2], dtype=tokens.dtype, device=tokens.device)
        sums = [tokens.sum((0, 2)), tokens.square().sum((0, 2)), count]
        total, squares, count = SumOverProcesses.apply(torch.cat(sums)).split([*2 * [self.num_features], 1])
        mean = total / count
        variance = (squares / count - mean.square()).clamp(min=0)
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (tokens - mean[:, None]) * scale[:, None] + self.bias[:, None]


class CovarianceToken(nn.Module):
    """A linear map of the whole window's normalised log covariance: one token."""

    def __init__(self, config: EMGConfig):
        super().__init__()
        channels = len(config.channels)
        self.linear = nn.Linear(channels * (channels + 1) // 2, config.backbone["n_embd"])

    def forward(self, covariance: torch.Tensor) -> torch.Tensor:
        return self.linear(covariance)[:, None]  # (B, 1, D)


class PowerTokens(nn.Module):
    """Log power per channel, patch and learned filter, then a linear map.

    One bank of FIR filters is shared by all channels. The power behind a filter h is h'Rh with the autocorrelation R of
    the patch: no filter touches R, so the samples need no gradient, only these small matrices do.
    """

    def __init__(self, config: EMGConfig):
        super().__init__()
        self.patch = config.patch
        self.filters = nn.Parameter(spread_filters(config.filters, config.filter_taps))  # (F, taps)
        self.norm = BatchNorm(len(config.channels) * config.filters)
        self.linear = nn.Linear(len(config.channels) * config.filters, config.backbone["n_embd"])

    def forward(self, emg: torch.Tensor) -> torch.Tensor:
        batch, time, channels = emg.shape
        count, taps = self.filters.shape
        correlation = autocorrelation(emg.transpose(1, 2).reshape(batch * channels, time), self.patch, taps)
        squares = (self.filters[:, :, None] * self.filters[:, None]).flatten(1)  # (F, taps²)
        power = (correlation.flatten(2) @ squares.T).clamp(min=0) / self.patch  # (B·C, P, F); rounding may be below 0
        log_power = torch.log(power + POWER_FLOOR).reshape(batch, channels, time // self.patch, count)  # (B, C, P, F)
        log_power = log_power.transpose(2, 3).flatten(1, 2)  # (B, C·F, P)
        return self.linear(self.norm(log_power).transpose(1, 2))  # (B, P, D)


def spread_filters(count: int, taps: int) -> torch.Tensor:
    """(count, taps): Hann-windowed cosines from 0 to Nyquist, of norm 1."""
    time = torch.arange(taps) - (taps - 1) / 2
    cycles = 0.5 * (torch.arange(count) + 0.5)[:, None] / count  # per sample, up to Nyquist
    waves = torch.cos(2 * torch.pi * cycles * time) * torch.hann_window(taps + 2, periodic=False)[1:-1]
    return waves / waves.norm(dim=1, keepdim=True)


@torch.no_grad()
def autocorrelation(signals: torch.Tensor, patch: int, taps: int) -> torch.Tensor:
    """signals (N, T) → (N, P, taps, taps): sums over every patch of the products of samples under a filter's taps.

    The signal goes on with zeros beyond its ends.
    """
    count, time = signals.shape
    before = (taps - 1) // 2
    heard = F.pad(signals, (before, taps - 1 - before)).unfold(1, taps, 1)  # (N, T, taps)
    heard = heard.reshape(count * time // patch, patch, taps)  # (N·P, p, taps)
    return torch.bmm(heard.mT, heard).reshape(count, time // patch, taps, taps)


class BandTokens(nn.Module):
    """Log power in fixed frequency bands per channel and patch, then a linear map."""

    def __init__(self, config: EMGConfig):
        super().__init__()
        self.patch, self.rate = config.patch, config.sampling_rate
        size = len(config.channels) * len(self.bands())
        self.norm = BatchNorm(size)
        self.linear = nn.Linear(size, config.backbone["n_embd"])

    def bands(self) -> list[list[int]]:
        """FFT bins of each band, over a patch padded to twice its length; a band without a bin is left out."""
        edges = [round(edge * 2 * self.patch / self.rate) for edge in BAND_EDGES_HZ]
        bands = [list(range(low, min(high, self.patch + 1))) for low, high in pairwise(edges)]
        return [band for band in bands if band] or [list(range(1, self.patch + 1))]

    def forward(self, emg: torch.Tensor) -> torch.Tensor:
        batch, time, channels = emg.shape
        patches = emg.reshape(batch, time // self.patch, self.patch, channels)
        spectrum = torch.fft.rfft(patches.float(), n=2 * self.patch, dim=2).abs().square() / self.patch  # (B, P, f, C)
        power = torch.stack([spectrum[:, :, band].mean(2) for band in self.bands()], -1)  # (B, P, C, bands)
        log_power = torch.log(power + POWER_FLOOR).flatten(2)  # (B, P, C·bands)
        return self.linear(self.norm(log_power.transpose(1, 2)).transpose(1, 2))  # (B, P, D)


class RawTokens(nn.Module):
    """A linear map of the raw patch: the plain baseline, which cannot express signal power."""

    def __init__(self, config: EMGConfig):
        super().__init__()
        self.patch = config.patch
        self.linear = nn.Linear(config.patch * len(config.channels), config.backbone["n_embd"])

    def forward(self, emg: torch.Tensor) -> torch.Tensor:
        batch, time, channels = emg.shape
        return self.linear(emg.reshape(batch, time // self.patch, self.patch * channels))  # (B, P, D)


TOKENISERS = {"covariance": CovarianceToken, "power": PowerTokens, "bands": BandTokens, "raw": RawTokens}


# ---- model ----------------------------------------------------------------------------------------------------


class EMGForSequenceClassification(PreTrainedModel):
    """Normalisation → tokenisers → GPT-2 blocks → mean over the tokens → linear head, beside a linear path.

    The linear path maps the window's log covariance to logits, and the backbone learns what it misses.
    GPT-2's token embedding is never used: it is not part of the model.
    """

    config_class = EMGConfig
    base_model_prefix = "backbone"
    main_input_name = "emg"

    def __init__(self, config: EMGConfig):
        super().__init__(config)
        channels, width, classes = len(config.channels), config.backbone["n_embd"], len(config.class_codes)
        pairs = channels * (channels + 1) // 2
        self.register_buffer("scale", torch.ones(1, channels))
        self.register_buffer("centre", torch.zeros(1, pairs))
        self.register_buffer("spread", torch.ones(1, pairs))
        self.augmentation = Augmentation(config)
        self.tokenisers = nn.ModuleDict({name: TOKENISERS[name](config) for name in config.tokens})
        self.backbone = GPT2Model(_backbone_config(config))
        self.backbone.wte = None
        use_quick_dropout(self.backbone)
        self.dropout = Dropout(config.dropout)
        self.head = nn.Linear(width, classes)
        self.linear = nn.Linear(pairs, classes).requires_grad_(False) if config.linear_path else None
        self.residual_weight = nn.Parameter(torch.tensor(RESIDUAL_WEIGHT if config.linear_path else 1.0))
        self.first_trained = 0
        self.post_init()

    @classmethod
    def from_pretrained(cls, *given, **named):
        """As transformers has it, from safetensors alone."""
        return super().from_pretrained(*given, **named | {"use_safetensors": True})

    def _upload_modified_files(self, working_dir: str, *given, **named):
        """push_to_hub, with the card of the folder that the model was loaded from if the weights are still those.

        The tags that push_to_hub was given, or that the card on the hub has, are added to it.
        """
        folder, new = Path(self.name_or_path), Path(working_dir)
        if _same_weights(folder, new) and (folder / "README.md").is_file():
            card, made = ModelCard.load(folder / "README.md"), ModelCard.load(new / "README.md")
            card.data.tags = list(dict.fromkeys([*(card.data.tags or []), *(made.data.tags or [])]))
            card.save(new / "README.md")
        return super()._upload_modified_files(working_dir, *given, **named)

    def _init_weights(self, module: nn.Module) -> None:
        """transformers makes a model without memory, fills in the weights, and asks for the rest here."""
        super()._init_weights(module)
        if isinstance(module, Augmentation):
            for name, orders in module.orders().items():
                initialization.copy_(getattr(module, name), orders)

    def get_input_embeddings(self) -> None:
        """None: the tokens are patches of signal."""

    def forward(
        self,
        emg: torch.Tensor | None = None,
        reference: Reference | None = None,
        labels: torch.Tensor | None = None,
        draws: Draws | None = None,
        below: Below | None = None,
        **_,
    ):
        """emg (B, T, C) in the unit of the training data → logits (B, K); with labels (B,) also the loss.

        reference: one row per window, of the session it is from; None: the training part's. labels are class
        indices; draws: of `augmentation`, in training; below: in place of emg, what the method `below` made of it.
        """
        if below is None:
            hidden, linear = self._from_samples(emg, reference or self.reference, draws)
        else:
            hidden, linear = self._above(below.hidden), below.logits
        logits = linear + self.residual_weight * self.head(self.dropout(hidden.mean(1))).float()  # (B, K)
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)

    def _from_samples(self, emg: torch.Tensor, reference: Reference, draws: Draws | None) -> tuple[torch.Tensor, ...]:
        """Hidden states (B, P, D) and the logits of the linear path (B, K)."""
        with torch.autocast(emg.device.type, enabled=False):  # powers span 60 dB: more than bfloat16 resolves
            signal, covariance = self.normalise(emg, reference)
            if draws is not None:
                signal, covariance = self.augmentation(signal, covariance, draws)
            tokens = self.tokenise(signal, covariance)  # (B, P, D)
        hidden = self.backbone(inputs_embeds=tokens, use_cache=False).last_hidden_state  # (B, P, D)
        return hidden, self.linear_logits(covariance)

    @torch.no_grad()
    def below(self, emg: torch.Tensor, reference: Reference) -> Below:
        """What training does not change where all below the trained blocks is frozen; in evaluation mode."""
        with torch.autocast(emg.device.type, enabled=False):
            signal, covariance = self.normalise(emg, reference)
            hidden = self.tokenise(signal, covariance)
        hidden = hidden + self.backbone.wpe.weight[: hidden.shape[1]]
        hidden = run_blocks(self.backbone.h[: self.first_trained], hidden)
        return Below(hidden.float(), self.linear_logits(covariance))

    def _above(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.backbone.ln_f(run_blocks(self.backbone.h[self.first_trained :], hidden))

    @torch.no_grad()
    def normalise(self, emg: torch.Tensor, reference: Reference) -> tuple[torch.Tensor, torch.Tensor]:
        """emg (B, T, C) → signal (B, T, C) and log covariance (B, C(C+1)/2), as measured against the reference."""
        signal = (emg - emg.mean(1, keepdim=True)) / reference.scale[:, None]
        return signal, (log_covariance(signal) - reference.centre) / reference.spread

    def tokenise(self, signal: torch.Tensor, covariance: torch.Tensor) -> torch.Tensor:
        """(B, P, D): the tokens of each kind, one kind after the other."""
        whole = signal[:, signal.shape[1] % self.config.patch :]  # a whole number of patches
        kinds = self.tokenisers.items()
        return torch.cat([kind(covariance if name == "covariance" else whole) for name, kind in kinds], 1)

    def linear_logits(self, covariance: torch.Tensor) -> torch.Tensor:
        """(B, K); zeros without a linear path."""
        if self.linear is None:
            return covariance.new_zeros(covariance.shape[0], self.head.out_features)  # len would be fixed in an export
        with torch.autocast(covariance.device.type, enabled=False):
            return self.linear(covariance)

    @property
    def reference(self) -> Reference:
        return Reference(self.scale, self.centre, self.spread)

    def set_reference(self, reference: Reference) -> None:
        """What windows of no known session are measured against: one row, of the training part."""
        for name, tensor in reference._asdict().items():
            getattr(self, name).copy_(tensor)

    def train_last(self, blocks: int, freeze: bool = False) -> None:
        """Train the last `blocks` blocks; below them only layer norms, positions, tokenisers and head train.

        The recipe of GPT4TS (Zhou et al., NeurIPS 2023); with `freeze` nothing trains below them. The linear path never
        trains: it is fitted in closed form.
        """
        self.first_trained = max(0, len(self.backbone.h) - blocks)
        frozen = self.backbone.h[: self.first_trained]
        self.requires_grad_(True)
        if freeze:
            for part in (self.tokenisers, self.backbone.wpe, frozen):
                part.requires_grad_(False)
            frozen = []
        if self.linear is not None:
            self.linear.requires_grad_(False)
        for block in frozen:
            for name, parameter in block.named_parameters():
                parameter.requires_grad = name.startswith(("ln_1", "ln_2"))


AutoConfig.register(EMGConfig.model_type, EMGConfig, exist_ok=True)  # for those who load by AutoModel…
AutoModelForSequenceClassification.register(EMGConfig, EMGForSequenceClassification, exist_ok=True)


def _same_weights(one: Path, other: Path) -> bool:
    files = [folder / SAFE_WEIGHTS_NAME for folder in (one, other)]
    return all(file.is_file() for file in files) and filecmp.cmp(*files, shallow=False)


def run_blocks(blocks: nn.ModuleList, hidden: torch.Tensor) -> torch.Tensor:
    """hidden (B, P, D) through some of GPT-2's blocks, where each token sees itself and those before it."""
    tokens = hidden.shape[1]
    unseen = torch.full((tokens, tokens), torch.finfo(hidden.dtype).min, device=hidden.device).triu(1)
    for block in blocks:
        hidden = block(hidden, attention_mask=unseen[None, None])
    return hidden


@torch.no_grad()
def measure_reference(emg: torch.Tensor) -> Reference:
    """The reference of one session from its windows (n, T, C); labels are not used.

    A silent channel keeps its scale.
    """
    signal = emg - emg.mean(1, keepdim=True)
    scale = signal.square().mean((0, 1)).sqrt()
    scale = torch.where(scale > 0, scale, 1.0)
    covariance = torch.cat([log_covariance(part / scale) for part in signal.split(1024)])  # (n, C(C+1)/2)
    spread = covariance.std(0, correction=0).clamp(min=SPREAD_FLOOR)
    return Reference(scale[None], covariance.mean(0)[None], spread[None])


def _backbone_config(config: EMGConfig) -> GPT2Config:
    no_text = {"vocab_size": 1, "bos_token_id": None, "eos_token_id": None}
    kept = dict(config.backbone)
    if kept.get("activation_function") == "gelu_new":
        kept["activation_function"] = "gelu_pytorch_tanh"  # the same function, in one pass over memory
    return GPT2Config(**no_text, **kept)
