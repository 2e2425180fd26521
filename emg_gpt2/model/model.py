"""Windows (B, T, C) → tokens (B, P, D) → GPT-2 → logits (B, K), as a Hugging Face model.

model = EMGForSequenceClassification.from_pretrained("best_model")
logits = model(emg=emg).logits  # emg (B, T, C) in the unit of the training data
"""

import filecmp
from pathlib import Path

import torch
from huggingface_hub import ModelCard
from torch import nn
from torch.nn import functional as F  # noqa: N812
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    GPT2Model,
    PreTrainedModel,
)
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils import SAFE_WEIGHTS_NAME

from emg_gpt2.model.backbone import backbone_config
from emg_gpt2.model.config import EMGConfig
from emg_gpt2.model.layers import Dropout, use_quick_dropout
from emg_gpt2.model.normalise import Reference, log_covariance
from emg_gpt2.model.tokens import TOKENISERS

RESIDUAL_WEIGHT = 0.1  # of the backbone beside the linear path, before training


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
        self.tokenisers = nn.ModuleDict({name: TOKENISERS[name](config) for name in config.tokens})
        self.backbone = GPT2Model(backbone_config(config))
        self.backbone.wte = None
        use_quick_dropout(self.backbone)
        self.dropout = Dropout(config.dropout)
        self.head = nn.Linear(width, classes)
        self.linear = nn.Linear(pairs, classes).requires_grad_(False) if config.linear_path else None
        self.residual_weight = nn.Parameter(torch.tensor(RESIDUAL_WEIGHT if config.linear_path else 1.0))
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

    def get_input_embeddings(self) -> None:
        """None: the tokens are patches of signal."""

    def forward(
        self,
        emg: torch.Tensor,
        reference: Reference | None = None,
        labels: torch.Tensor | None = None,
        **_,
    ) -> SequenceClassifierOutput:
        """emg (B, T, C) in the unit of the training data → logits (B, K); with labels (B,) also the loss.

        reference: one row per window, or one for all, of the session it is from; None: the training part's. labels
        are class indices.
        """
        with torch.autocast(emg.device.type, enabled=False):
            signal, covariance = self.normalise(emg, reference or self.reference)
        logits = self.classify(signal, covariance)
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)

    def classify(self, signal: torch.Tensor, covariance: torch.Tensor) -> torch.Tensor:
        """Normalised signal (B, T, C) and log covariance (B, C(C+1)/2) → logits (B, K)."""
        with torch.autocast(signal.device.type, enabled=False):  # powers span 60 dB: more than bfloat16 resolves
            tokens = self.tokenise(signal, covariance)  # (B, P, D)
        hidden = self.backbone(inputs_embeds=tokens, use_cache=False).last_hidden_state  # (B, P, D)
        return self.judge(hidden, self.linear_logits(covariance))

    def judge(self, hidden: torch.Tensor, linear_logits: torch.Tensor) -> torch.Tensor:
        """Hidden states (B, P, D) and the linear path's logits (B, K) → logits (B, K)."""
        return linear_logits + self.residual_weight * self.head(self.dropout(hidden.mean(1))).float()

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


AutoConfig.register(EMGConfig.model_type, EMGConfig, exist_ok=True)  # for those who load by AutoModel…
AutoModelForSequenceClassification.register(EMGConfig, EMGForSequenceClassification, exist_ok=True)


def _same_weights(one: Path, other: Path) -> bool:
    files = [folder / SAFE_WEIGHTS_NAME for folder in (one, other)]
    return all(file.is_file() for file in files) and filecmp.cmp(*files, shallow=False)
