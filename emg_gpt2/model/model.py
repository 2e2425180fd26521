"""Windows (B, T, C) → tokens (B, P, D) → backbone → logits (B, K), as a Hugging Face model.

model = EMGForSequenceClassification.from_pretrained("best_model")
logits = model(emg=emg).logits  # emg (B, T, C) in the unit of the training data
"""

import filecmp
from pathlib import Path

import torch
from huggingface_hub import ModelCard
from torch import nn
from torch.nn import functional as F  # noqa: N812
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils import SAFE_WEIGHTS_NAME

from emg_gpt2.base.errors import EMGError
from emg_gpt2.base.registry import HEADS, TOKENISERS
from emg_gpt2.model.backbone import new_backbone, run_backbone
from emg_gpt2.model.class_means import ClassMeans
from emg_gpt2.model.config import EMGConfig
from emg_gpt2.model.files import load_saved
from emg_gpt2.model.layers import use_quick_dropout
from emg_gpt2.model.normalise import Reference, normalise
from emg_gpt2.model.session_path import SessionPath, State
from emg_gpt2.windows.sentences import UNTOLD

GESTURE_SCALE = 0.4  # of gestures in a sentence, about three times a window's token: else they are learnt late
RESIDUAL_WEIGHT = 0.1  # of the backbone beside the linear path, before training
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
ONLY_VALUES = {  # arguments of from_pretrained that have one meaning here, and the values that mean it
    "dtype": (None, "auto", "float32", torch.float32),
    "torch_dtype": (None, "auto", "float32", torch.float32),
    "use_safetensors": (None, True),
    "weights_only": (True,),
    "trust_remote_code": (None, False),
    "ignore_mismatched_sizes": (False,),
}


class EMGForSequenceClassification(PreTrainedModel):
    """Normalisation → tokenisers → blocks of a language model → head, beside a linear path.

    The linear path maps the window's log covariance to logits; the backbone learns what it misses.
    """

    config_class = EMGConfig
    base_model_prefix = "backbone"
    main_input_name = "emg"
    since_version_0_3 = ("class_share", "class_level", "class_centre", "class_square")  # earlier files lack them

    def __init__(self, config: EMGConfig):
        super().__init__(config)
        channels, classes = len(config.channels), len(config.class_codes)
        pairs = channels * (channels + 1) // 2
        self.register_buffer("scale", torch.ones(1, channels))
        self.register_buffer("centre", torch.zeros(1, pairs))
        self.register_buffer("spread", torch.ones(1, pairs))
        self.register_buffer("class_share", torch.full((classes,), 1 / classes))
        self.register_buffer("class_level", torch.zeros(classes, channels))
        self.register_buffer("class_centre", torch.zeros(classes, pairs))
        self.register_buffer("class_square", torch.ones(classes, pairs))
        self.tokenisers = nn.ModuleDict({name: TOKENISERS.load(name)(config) for name in config.tokens})
        self.gestures = nn.Embedding(classes + 2, config.width) if config.context else None  # see `asked` and `kept`
        self.backbone = new_backbone(config.shape)
        use_quick_dropout(self.backbone)
        self.head = HEADS.load(config.head)(config)
        linear = SessionPath(config) if config.context else nn.Linear(pairs, classes)
        self.linear = linear.requires_grad_(False) if config.linear_path else None
        self.residual_weight = nn.Parameter(torch.tensor(RESIDUAL_WEIGHT if config.linear_path else 1.0))
        self.post_init()
        if self.gestures is not None:
            nn.init.normal_(self.gestures.weight, std=GESTURE_SCALE)

    def get_input_embeddings(self) -> None:
        """None: the tokens are patches of signal."""

    # ---- logits

    def forward(
        self,
        emg: torch.Tensor,
        reference: Reference | None = None,
        labels: torch.Tensor | None = None,
        told: torch.Tensor | None = None,
        remembered: int | None = None,
    ) -> SequenceClassifierOutput:
        """emg (B, T, C) in the unit of the training data → logits (B, K); with labels (B,) also the loss.

        reference: of the windows' sessions, one row per window or one for all; None: the training part's
        labels: class indices
        told, remembered: where the windows make up sentences, see `classify`; else each stands by itself
        """
        with torch.autocast(emg.device.type, enabled=False):
            signal, covariance = self.normalise(emg, reference or self.reference)
        logits = self.classify(signal, covariance, told, remembered)
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)

    def normalise(self, emg: torch.Tensor, reference: Reference) -> tuple[torch.Tensor, torch.Tensor]:
        """emg (B, T, C) → signal (B, T, C) and log covariance (B, C(C+1)/2), measured against the reference."""
        return normalise(emg, reference)

    def classify(
        self,
        signal: torch.Tensor,
        covariance: torch.Tensor,
        told: torch.Tensor | None = None,
        remembered: int | None = None,
        path: SessionPath | None = None,
    ) -> torch.Tensor:
        """Normalised signal (B, T, C) and log covariance (B, C(C+1)/2) → logits (B, K).

        told, remembered: (E, N) with E · N = B, where the windows make up E sentences; see `read`
        path: takes the place of the model's own closed-form path
        """
        with torch.autocast(signal.device.type, enabled=False):  # powers span 60 dB: more than bfloat16 resolves
            tokens = self.tokenise(signal, covariance)  # (B, P, D)
        if self.gestures is None:
            hidden = run_backbone(self.backbone, tokens)  # (B, P, D)
        else:
            told = self.untold(tokens) if told is None else told
            hidden = self.read(tokens.mean(1).unflatten(0, told.shape), told, remembered)
            hidden = hidden.flatten(0, 1)[:, None]  # (B, 1, D)
        return self.classify_hidden(hidden, self.linear_logits(covariance, told, remembered, path))

    def read(self, windows: torch.Tensor, told: torch.Tensor, remembered: int | None = None) -> torch.Tensor:
        """Sentences of windows (E, N, D) → hidden (E, N, D), from which each window is judged.

        The backbone reads each window twice: asked for its gesture, and then with what it is told of it, which those
        after it see.

        told: (E, N) class indices, or UNTOLD
        remembered: so many windows, from the first, are seen by those after them; None: all
        """
        sentence = torch.stack([self.asked(windows), self.kept(windows, told)], 2)  # (E, N, 2, D)
        seen, positions = reading_order(windows.shape[1], remembered, windows.device)
        return run_backbone(self.backbone, sentence.flatten(1, 2), seen, positions)[:, ::2]

    def window_tokens(self, emg: torch.Tensor, reference: Reference) -> tuple[torch.Tensor, torch.Tensor]:
        """emg (B, T, C) → one token per window (B, D), to be asked or kept, and its log covariance (B, C(C+1)/2)."""
        with torch.autocast(emg.device.type, enabled=False):
            signal, covariance = self.normalise(emg, reference)
            return self.tokenise(signal, covariance).mean(1), covariance

    def untold(self, windows: torch.Tensor) -> torch.Tensor:
        """What is told (B, 1) of windows (B, …) that stand by themselves: nothing."""
        return windows.new_full((len(windows), 1), UNTOLD, dtype=torch.long)

    def asked(self, windows: torch.Tensor) -> torch.Tensor:
        """Tokens (…, D) of windows that are to be judged."""
        return windows + self.gestures.weight[-1]

    def kept(self, windows: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
        """Tokens (…, D) of windows that were judged, with the gestures that are told (…), or UNTOLD."""
        return windows + self.gestures(torch.where(told == UNTOLD, len(self.config.class_codes), told))

    def tokenise(self, signal: torch.Tensor, covariance: torch.Tensor) -> torch.Tensor:
        """(B, P, D): the tokens of each kind, one kind after the other."""
        whole = signal[:, signal.shape[1] % self.config.patch :]  # a whole number of patches
        return torch.cat([tokeniser(whole, covariance) for tokeniser in self.tokenisers.values()], 1)

    def classify_hidden(self, hidden: torch.Tensor, linear_logits: torch.Tensor) -> torch.Tensor:
        """hidden (B, P, D) from the backbone, and the linear path's logits (B, K) → logits (B, K)."""
        return linear_logits + self.residual_weight * self.head(hidden).float()

    def linear_logits(
        self,
        covariance: torch.Tensor,
        told: torch.Tensor | None = None,
        remembered: int | None = None,
        path: SessionPath | None = None,
    ) -> torch.Tensor:
        """Log covariance (B, C(C+1)/2) → the linear path's logits (B, K); zeros without one; others: see `classify`."""
        if self.linear is None:
            return covariance.new_zeros(covariance.shape[0], len(self.config.class_codes))
        with torch.autocast(covariance.device.type, enabled=False):
            if not self.config.context:
                return self.linear(covariance)
            told = self.untold(covariance) if told is None else told
            sentences = self._whole(covariance).unflatten(0, told.shape)  # (E, N, C(C+1)/2)
            return (path or self.linear)(sentences, told, remembered).flatten(0, 1)

    def session_state(self, covariance: torch.Tensor, told: torch.Tensor) -> State | None:
        """What the closed-form path knows after log covariances (N, C(C+1)/2) and the gestures told of them (N,)."""
        if self.linear is None:
            return None
        reads = torch.tensor([[len(told)]], device=told.device)
        return self.linear.read(self._whole(covariance)[None], told[None], reads)

    def state_logits(self, covariance: torch.Tensor, state: State | None) -> torch.Tensor:
        """Log covariances (N, C(C+1)/2) of a session with that state → the linear path's logits (N, K)."""
        if state is None:
            return self.linear_logits(covariance)
        return self.linear.judge(self._whole(covariance)[None], state)[0]

    def _whole(self, covariance: torch.Tensor) -> torch.Tensor:
        """Normalised log covariances → as they were before: where rings are turned, entries change places."""
        return covariance * self.spread + self.centre

    # ---- reference

    @property
    def reference(self) -> Reference:
        """Of the training part, one row: what windows of no known session are measured against."""
        return Reference(self.scale, self.centre, self.spread)

    def set_reference(self, reference: Reference) -> None:
        """Replace the model's own reference."""
        for name, tensor in reference._asdict().items():
            getattr(self, name).copy_(tensor)

    @property
    def class_means(self) -> ClassMeans:
        """What each class looks like beside its session; zeros and ones in a model of an earlier version."""
        return ClassMeans(self.class_share, self.class_level, self.class_centre, self.class_square)

    def set_class_means(self, means: ClassMeans) -> None:
        """Replace what the model knows of its classes."""
        for name, tensor in means._asdict().items():
            getattr(self, f"class_{name}").copy_(tensor)

    # ---- hub

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Path | str,
        *,
        config: EMGConfig | None = None,
        device_map: torch.device | str | int = "cpu",
        **named,
    ) -> "EMGForSequenceClassification":
        """A saved model from a folder, the cache or the hub (`user/name`), in evaluation mode and float32.

        Only config.json and model.safetensors are read, and both are checked (see `load_saved`).

        config: used in place of config.json
        device_map: one device
        named: cache_dir, force_download, local_files_only, revision, subfolder and token, as transformers has them

        All other arguments are refused, unless they ask for what happens anyway (`use_safetensors=True`). For
        bfloat16 use torch.autocast: the signal path needs float32. Raises EMGError.
        """
        hub = {name: named.pop(name) for name in HUB_ARGUMENTS if name in named}
        _check_arguments(named)
        try:
            device = torch.device(device_map)
        except (RuntimeError, TypeError):
            raise EMGError(f"from_pretrained: device_map = {device_map} is not one device; use cpu or cuda") from None
        return load_saved(cls, pretrained_model_name_or_path, config, **hub).to(device)

    def _upload_modified_files(self, working_dir: str, *given, **named):
        """Part of push_to_hub: take along the card of the folder that the model was loaded from.

        Only where the weights are still the same. The tags of both cards are joined.
        """
        folder, new = Path(self.name_or_path), Path(working_dir)
        if _same_weights(folder, new) and (folder / "README.md").is_file():
            card, made = ModelCard.load(folder / "README.md"), ModelCard.load(new / "README.md")
            card.data.tags = list(dict.fromkeys([*(card.data.tags or []), *(made.data.tags or [])]))
            card.save(new / "README.md")
        return super()._upload_modified_files(working_dir, *given, **named)


def reading_order(windows: int, remembered: int | None, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """What each token of a sentence sees, (2N, 2N) bool: itself, and the kept ones of earlier windows; the positions
    (2N,), which a window's two tokens share, and all windows that are not remembered."""
    places, kept = torch.arange(windows, device=device).repeat_interleave(2), torch.tensor([False, True], device=device)
    positions = places if remembered is None else places.clamp(max=remembered)
    earlier = (positions[:, None] > positions) & kept.repeat(windows)
    return earlier | torch.eye(2 * windows, dtype=torch.bool, device=device), positions


def _check_arguments(named: dict) -> None:
    """Raise EMGError for what from_pretrained does not do."""
    if (named.pop("adapter_kwargs", None) or {}).get("_adapter_model_path"):  # found by AutoModel
        raise EMGError("the folder holds an adapter, and adapters are not loaded; name a best_model folder")
    for name, value in named.items():
        if name in ONLY_VALUES and value not in ONLY_VALUES[name]:
            raise EMGError(f"from_pretrained: {name} = {value} is not supported; use {ONLY_VALUES[name][-1]}")
        if name not in ONLY_VALUES and not name.startswith("_"):  # AutoModel adds names of its own with a _
            raise EMGError(f"from_pretrained: the argument {name} is not supported; leave it out")


def _same_weights(one: Path, other: Path) -> bool:
    files = [folder / SAFE_WEIGHTS_NAME for folder in (one, other)]
    return all(file.is_file() for file in files) and filecmp.cmp(*files, shallow=False)


AutoConfig.register(EMGConfig.model_type, EMGConfig, exist_ok=True)  # AutoModel finds the class from here on
AutoModelForSequenceClassification.register(EMGConfig, EMGForSequenceClassification, exist_ok=True)
