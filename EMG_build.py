"""A new model on the blocks of a GPT-2, with its language-model weights or without, and saved models."""

import logging
from pathlib import Path

from huggingface_hub import constants, get_session
from safetensors import SafetensorError
from transformers import GPT2Config, GPT2Model

from EMG_model import EMGConfig, EMGForSequenceClassification, ModelError

ARCHITECTURES = {  # GPT-2 on the hub; its shape is enough to start from random weights without the hub
    "distilgpt2": {"n_embd": 768, "n_layer": 6, "n_head": 12},
    "gpt2": {"n_embd": 768, "n_layer": 12, "n_head": 12},
    "gpt2-medium": {"n_embd": 1024, "n_layer": 24, "n_head": 16},
    "gpt2-large": {"n_embd": 1280, "n_layer": 36, "n_head": 20},
    "gpt2-xl": {"n_embd": 1600, "n_layer": 48, "n_head": 25},
}
BACKBONE_KEPT = (  # of GPT2Config: all that shapes the blocks
    *("n_embd", "n_head", "n_inner", "n_positions", "activation_function", "layer_norm_epsilon"),
    *("scale_attn_weights", "scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn"),
)

logger = logging.getLogger(__name__)


def build_model(config: EMGConfig, model_name: str, pretrained: str, blocks: int) -> EMGForSequenceClassification:
    """A ready model on the first `blocks` blocks of the GPT-2 called `model_name` (hub name or local folder).

    `pretrained`: `auto` takes language-model weights when cache, folder or hub have them, `require` insists,
    `never` leaves them out. `config.weights` of the result says which it was. Raises ModelError.
    """
    source = _load_backbone(model_name, blocks) if pretrained != "never" else None
    if source is None and pretrained == "require":
        raise ModelError(
            f"MODEL_NAME = {model_name}: no weights in folder, cache or hub; download them or set PRETRAINED"
        )
    if source is None and pretrained == "auto":
        logger.warning(f"{model_name}: no pretrained weights in folder, cache or hub; starting from random weights")
    shape = source.config if source else _architecture(model_name)
    patches = config.window // config.patch
    tokens = sum(1 if kind == "covariance" else patches for kind in config.tokens)
    if tokens > shape.n_positions:
        raise ModelError(f"{tokens} tokens a window are more than {model_name}'s {shape.n_positions}; raise PATCH_MS")
    config.weights = "pretrained" if source else "random"
    config.backbone = {key: getattr(shape, key) for key in BACKBONE_KEPT}
    config.backbone |= {"n_layer": min(blocks, shape.n_layer)}
    config.backbone |= dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), config.dropout)
    model = EMGForSequenceClassification(config)
    if source:
        source.wte = None
        model.backbone.load_state_dict(source.state_dict(), strict=True)
    return model


def load_model(source: Path | str) -> EMGForSequenceClassification:
    """A saved model from a folder, the cache or the hub (`user/name`), strictly.

    Raises ModelError where there is none, or its weights are missing, superfluous or damaged.
    """
    options = {"use_safetensors": True, "local_files_only": Path(source).is_dir() or not hub_answers()}
    try:
        model, info = EMGForSequenceClassification.from_pretrained(source, output_loading_info=True, **options)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        no_name = "Repo id must be" in str(error)  # transformers takes what is no folder for a name on the hub
        reason = "there is no such folder" if no_name else _first_line(error)
        raise ModelError(
            f"{source}: no model can be loaded ({reason}); name a best_model folder, or a model on the hub"
        ) from None
    wrong = [*info["missing_keys"], *info["unexpected_keys"]]
    if wrong:
        raise ModelError(f"{source}: weights do not fit the model, {sorted(wrong)[0]} first; train it anew")
    return model.eval()


def _load_backbone(model_name: str, blocks: int) -> GPT2Model | None:
    """The first `blocks` blocks with their language-model weights; None where there are none to be had."""
    folder = Path(model_name)
    if folder.is_dir() and not any(folder.glob("*.safetensors")):
        return None
    config = _read_config(model_name)
    if config is None:
        return None
    config.n_layer = min(blocks, config.n_layer)
    options = {"config": config, "local_files_only": folder.is_dir() or not hub_answers(), "use_safetensors": True}
    try:
        backbone, info = GPT2Model.from_pretrained(model_name, output_loading_info=True, **options)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        if isinstance(error, OSError) and not folder.is_dir():
            return None  # neither in the cache nor on the hub
        reason = _first_line(error)
        raise ModelError(f"{model_name}: the weights cannot be loaded ({reason}); fetch them again") from None
    if info["missing_keys"]:
        raise ModelError(f"{model_name}: these are no GPT-2 weights, {sorted(info['missing_keys'])[0]} is missing")
    return backbone


def _architecture(model_name: str) -> GPT2Config:
    """The shape of a GPT-2 without its weights."""
    known = ARCHITECTURES.get(model_name.removeprefix("openai-community/"))
    config = GPT2Config(**known) if known and not Path(model_name).is_dir() else _read_config(model_name)
    if config is None:
        names = ", ".join(ARCHITECTURES)
        raise ModelError(f"MODEL_NAME = {model_name}: neither a folder with a GPT-2's config.json nor one of {names}")
    return config


def _read_config(model_name: str) -> GPT2Config | None:
    """The config.json in a folder, in the cache or on the hub; None where there is none, ModelError if no GPT-2's."""
    local = Path(model_name).is_dir() or not hub_answers()
    try:
        content, _ = GPT2Config.get_config_dict(model_name, local_files_only=local)
    except (OSError, ValueError):
        return None
    if not content:
        return None
    if content.get("model_type") != "gpt2":
        raise ModelError(f"MODEL_NAME = {model_name}: a {content.get('model_type')} model; name a GPT-2")
    return GPT2Config.from_dict(content)


def hub_answers() -> bool:
    """One quick question: transformers itself would ask five times, for half a minute, before it gives up."""
    if constants.is_offline_mode():
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except Exception:  # every HTTP library has its own; any of them means no
        return False
    return True


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
