"""build_model makes a new model on the blocks of a GPT-2, load_model loads a saved one."""

import logging
from pathlib import Path

from emg_gpt2.base.errors import EMGError
from emg_gpt2.base.registry import TOKENISERS
from emg_gpt2.model.backbone import architecture, read_backbone
from emg_gpt2.model.config import EMGConfig
from emg_gpt2.model.model import EMGForSequenceClassification

logger = logging.getLogger(__name__)


def build_model(config: EMGConfig, model_name: str, pretrained: str, blocks: int) -> EMGForSequenceClassification:
    """A new model on the first `blocks` blocks of the GPT-2 called `model_name` (hub name or local folder).

    pretrained: `auto` takes language-model weights where folder, cache or hub have them, `require` insists on them,
    `never` leaves them out. `config.weights` of the result says what was taken. Raises EMGError.
    """
    source = read_backbone(model_name, blocks) if pretrained != "never" else None
    if source is None and pretrained == "require":
        raise EMGError(
            f"MODEL_NAME = {model_name}: no weights in folder, cache or hub; download them or set PRETRAINED"
        )
    if source is None and pretrained == "auto":
        logger.warning(f"{model_name}: no pretrained weights in folder, cache or hub; starting from random weights")
    shape, weights = source or (architecture(model_name), None)
    tokens = sum(TOKENISERS.load(kind).count(config) for kind in config.tokens)
    if tokens > shape.n_positions:
        raise EMGError(f"{tokens} tokens a window are more than {model_name}'s {shape.n_positions}; raise PATCH_MS")
    config.weights = "pretrained" if weights else "random"
    config.backbone = shape.model_dump() | {"n_layer": min(blocks, shape.n_layer)}
    config.backbone |= dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), config.dropout)
    model = EMGForSequenceClassification(config)
    if weights:
        model.backbone.load_state_dict(weights)
    return model


def load_model(source: Path | str) -> EMGForSequenceClassification:
    """A saved model from a folder, the cache or the hub (`user/name`), in evaluation mode.

    The same as EMGForSequenceClassification.from_pretrained. Raises EMGError.
    """
    return EMGForSequenceClassification.from_pretrained(source)
