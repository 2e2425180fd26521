"""build_model makes a new model on the blocks of a language model, load_model loads a saved one."""

import logging
from pathlib import Path

import torch

from emg_gpt2.base.errors import EMGError
from emg_gpt2.base.registry import TOKENISERS
from emg_gpt2.model.backbone import NoWeightsError, architecture, read_backbone
from emg_gpt2.model.config import EMGConfig
from emg_gpt2.model.model import EMGForSequenceClassification
from emg_gpt2.model.shapes import NoBlocks, Shape

logger = logging.getLogger(__name__)

WEIGHTS = {"auto": "pretrained", "require": "pretrained", "shuffled": "shuffled"}  # PRETRAINED → a config's weights


def build_model(config: EMGConfig, model_name: str, pretrained: str, blocks: int) -> EMGForSequenceClassification:
    """A new model on the first `blocks` blocks of the language model `model_name` (hub name or local folder).

    pretrained: `auto` takes language-model weights where folder, cache or hub have them, `require` insists on them,
    `never` leaves them out, `shuffled` takes their values in a random order. `config.weights` of the result says what
    was taken. Raises EMGError.
    """
    shape, weights = _backbone(model_name, pretrained, blocks)
    check_length(config, model_name, shape.max_position_embeddings)
    config.weights = "none" if not shape.num_hidden_layers else "random" if not weights else WEIGHTS[pretrained]
    config.backbone = shape.first(blocks, config.dropout).content()
    model = EMGForSequenceClassification(config)
    if weights:
        model.backbone.load_state_dict(weights)
    return model


def check_length(config: EMGConfig, model_name: str, most: int) -> None:
    """Raise EMGError where the backbone reads more tokens at once than the language model has positions."""
    tokens = sum(TOKENISERS.load(kind).count(config) for kind in config.tokens)
    if config.context:
        if config.context + 1 > most:
            raise EMGError(f"CONTEXT = {config.context}: {model_name} reads {most - 1} windows at most; lower it")
    elif tokens > most:
        raise EMGError(f"{tokens} tokens a window are more than {model_name}'s {most}; raise PATCH_MS")


def _backbone(model_name: str, pretrained: str, blocks: int) -> tuple[Shape, dict[str, torch.Tensor] | None]:
    """Shape and language-model weights; None for random weights."""
    if blocks == 0:
        return NoBlocks(hidden_size=architecture(model_name).hidden_size), None
    if pretrained != "never":
        try:
            shape, weights = read_backbone(model_name, blocks)
            return shape, _shuffled(weights) if pretrained == "shuffled" else weights
        except NoWeightsError as error:
            if pretrained != "auto":
                raise
            logger.warning(f"starting from random weights: {error}")
    return architecture(model_name), None


def _shuffled(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The values of every tensor in a random order: as large as before, and without what the language model learnt."""
    return {name: one.flatten()[torch.randperm(one.numel())].view_as(one) for name, one in weights.items()}


def load_model(source: Path | str) -> EMGForSequenceClassification:
    """A saved model from a folder, the cache or the hub (`user/name`), in evaluation mode.

    The same as EMGForSequenceClassification.from_pretrained. Raises EMGError.
    """
    return EMGForSequenceClassification.from_pretrained(source)
