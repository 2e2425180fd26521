"""A new model on the blocks of a GPT-2, with its language-model weights or without, and saved models."""

import logging
from pathlib import Path

import torch
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers.initialization import no_init_weights
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME

from emg_gpt2.base.errors import EMGError
from emg_gpt2.base.text import in_short
from emg_gpt2.model.backbone import BACKBONE_KEPT, architecture, files_of, load_backbone, read_json
from emg_gpt2.model.config import EMGConfig
from emg_gpt2.model.model import EMGForSequenceClassification
from emg_gpt2.settings import Settings

logger = logging.getLogger(__name__)


def build_model(config: EMGConfig, model_name: str, pretrained: str, blocks: int) -> EMGForSequenceClassification:
    """A ready model on the first `blocks` blocks of the GPT-2 called `model_name` (hub name or local folder).

    `pretrained`: `auto` takes language-model weights when cache, folder or hub have them, `require` insists,
    `never` leaves them out. `config.weights` of the result says which it was. Raises EMGError.
    """
    source = load_backbone(model_name, blocks) if pretrained != "never" else None
    if source is None and pretrained == "require":
        raise EMGError(
            f"MODEL_NAME = {model_name}: no weights in folder, cache or hub; download them or set PRETRAINED"
        )
    if source is None and pretrained == "auto":
        logger.warning(f"{model_name}: no pretrained weights in folder, cache or hub; starting from random weights")
    shape = source.config if source else architecture(model_name)
    patches = config.window // config.patch
    tokens = sum(1 if kind == "covariance" else patches for kind in config.tokens)
    if tokens > shape.n_positions:
        raise EMGError(f"{tokens} tokens a window are more than {model_name}'s {shape.n_positions}; raise PATCH_MS")
    config.weights = "pretrained" if source else "random"
    config.backbone = {key: getattr(shape, key) for key in BACKBONE_KEPT}
    config.backbone |= {"n_layer": min(blocks, shape.n_layer)}
    config.backbone |= dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), config.dropout)
    model = EMGForSequenceClassification(config)
    if source:
        model.backbone.load_state_dict(source.state_dict(), strict=True)
    return model


def load_model(source: Path | str) -> EMGForSequenceClassification:
    """A saved model from a folder, the cache or the hub (`user/name`), strictly; of its files config.json and
    model.safetensors are read, and nothing else.

    Raises EMGError where there is none, its config is not one, or its weights are missing, superfluous or damaged.
    """
    try:
        described, tensors = files_of(source, CONFIG_NAME, SAFE_WEIGHTS_NAME)
        config, weights = EMGConfig(**read_json(described)), load_file(tensors)
        Settings.model_validate(config.preprocessing)
        _check_sizes(config, weights)
        with no_init_weights():
            model = EMGForSequenceClassification(config)
        if wrong := model.state_dict().keys() ^ weights.keys():
            raise ValueError(f"its weights do not fit its config, {min(wrong)} first")
        if not all(tensor.isfinite().all() for tensor in weights.values()):
            raise ValueError("some of its weights are no numbers")
        model.load_state_dict(weights)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        no_name = isinstance(error, HFValidationError)  # the hub's library takes what is no folder for a name there
        reason = "there is no such folder" if no_name else in_short(error)
        raise EMGError(
            f"{source}: no model can be loaded ({reason}); name a best_model folder, or a model on the hub"
        ) from None
    model.config.name_or_path = model.name_or_path = str(source)
    return model.eval()


def _check_sizes(config: EMGConfig, weights: dict[str, torch.Tensor]) -> None:
    """Raise ValueError where the config claims other sizes than the weights have, before they take memory."""
    backbone, claimed = config.backbone, {}
    claimed["scale"] = (1, len(config.channels))
    claimed["head.bias"] = (len(config.class_codes),)
    claimed["backbone.wpe.weight"] = (backbone.get("n_positions", 1024), backbone["n_embd"])
    if "power" in config.tokens:
        claimed["tokenisers.power.filters"] = (config.filters, config.filter_taps)
    blocks = sum(name.startswith("backbone.h.") and name.endswith(".ln_1.weight") for name in weights)
    if blocks != backbone["n_layer"]:
        raise ValueError(f"its config has {backbone['n_layer']} blocks, its weights {blocks}")
    for name, shape in claimed.items():
        if name not in weights or tuple(weights[name].shape) != shape:
            found = tuple(weights[name].shape) if name in weights else "missing"
            raise ValueError(f"its config makes {name} {shape}, and in its weights it is {found}")
