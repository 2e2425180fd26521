"""A new model on the blocks of a GPT-2, with its language-model weights or without, and saved models."""

import logging
from collections.abc import Collection
from pathlib import Path

import torch
from huggingface_hub import constants, get_session, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError
from pydantic_core import from_json
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2Model
from transformers.initialization import no_init_weights
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME

from EMG_help import in_short, printable
from EMG_model import Backbone, EMGConfig, EMGForSequenceClassification, ModelError
from ENV import Settings

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

MAX_CONFIG_BYTES = 1 << 20

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
        model.backbone.load_state_dict(source.state_dict(), strict=True)
    return model


def load_model(source: Path | str) -> EMGForSequenceClassification:
    """A saved model from a folder, the cache or the hub (`user/name`), strictly; of its files config.json and
    model.safetensors are read, and nothing else.

    Raises ModelError where there is none, its config is not one, or its weights are missing, superfluous or damaged.
    """
    try:
        described, tensors = _files_of(source, CONFIG_NAME, SAFE_WEIGHTS_NAME)
        config, weights = EMGConfig(**_read_json(described)), load_file(tensors)
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
        raise ModelError(
            f"{source}: no model can be loaded ({reason}); name a best_model folder, or a model on the hub"
        ) from None
    model.config.name_or_path = model.name_or_path = str(source)
    return model.eval()


def _files_of(source: Path | str, *names: str) -> list[Path]:
    """Files in a folder, in the cache or on the hub; raises OSError or ValueError where one of them is not there."""
    if Path(source).is_dir():
        found = [Path(source) / name for name in names]
    else:
        local = not hub_answers()
        try:
            found = [Path(hf_hub_download(str(source), name, local_files_only=local)) for name in names]
        except EntryNotFoundError:
            raise FileNotFoundError(f"neither cache nor hub have its {' and '.join(names)}") from None
    if missing := [path.name for path in found if not path.is_file()]:
        raise FileNotFoundError(f"it has no {missing[0]}")
    return found


def _read_json(path: Path) -> dict:
    """Raises ValueError where it is none, or no model's."""
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise ValueError(f"{path.name} has {path.stat().st_size:,} bytes, and a model's a few thousand")
    content = from_json(path.read_bytes())
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} holds no settings")
    return content


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


def _load_backbone(model_name: str, blocks: int) -> GPT2Model | None:
    """The first `blocks` blocks with their language-model weights; None where there are none to be had."""
    config = _read_config(model_name)
    if config is None:
        return None
    config.n_layer = min(blocks, config.n_layer)
    try:
        folder = Path(model_name)
        files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else _files_of(model_name, SAFE_WEIGHTS_NAME)
    except (OSError, ValueError):
        return None  # neither in the cache nor on the hub
    if not files:
        return None
    with torch.device("meta"):  # no memory before the weights are known to fit
        backbone = GPT2Model(config)
    backbone.wte = None
    try:
        backbone.load_state_dict(_named_tensors(files, backbone.state_dict().keys()), assign=True)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise ModelError(f"{model_name}: the weights cannot be loaded ({in_short(error)}); fetch them again") from None
    return backbone


def _named_tensors(files: list[Path], names: Collection[str]) -> dict[str, torch.Tensor]:
    """Of a GPT-2's weights, saved with the language-model head or without it, those that are named.

    Raises ValueError where one is missing.
    """
    found = {}
    for path in files:
        with safe_open(path, framework="pt") as file:
            own = {key.removeprefix("transformer."): key for key in file.keys()}  # noqa: SIM118, it is no dict
            found |= {name: file.get_tensor(own[name]).float() for name in own.keys() & names}
    if missing := sorted(set(names) - set(found)):
        raise ValueError(f"these are no GPT-2 weights, {missing[0]} is missing")
    return found


def _architecture(model_name: str) -> GPT2Config:
    """The shape of a GPT-2 without its weights."""
    known = ARCHITECTURES.get(model_name.removeprefix("openai-community/"))
    config = GPT2Config(**known) if known and not Path(model_name).is_dir() else _read_config(model_name)
    if config is None:
        names = ", ".join(ARCHITECTURES)
        raise ModelError(f"MODEL_NAME = {model_name}: neither a folder with a GPT-2's config.json nor one of {names}")
    return config


def _read_config(model_name: str) -> GPT2Config | None:
    """Of the config.json in a folder, in the cache or on the hub what shapes the blocks; None where there is none.

    Raises ModelError where it is no GPT-2's.
    """
    try:
        (path,) = _files_of(model_name, CONFIG_NAME)
    except (OSError, ValueError):
        return None
    try:
        content = _read_json(path)
        if content.get("model_type") != "gpt2":
            kind = printable(str(content.get("model_type"))[:40])
            raise ModelError(f"MODEL_NAME = {model_name}: a {kind} model; name a GPT-2")
        shape = Backbone.model_validate({key: content[key] for key in Backbone.model_fields.keys() & content})
    except ValueError as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"MODEL_NAME = {model_name}: its config.json is no GPT-2's ({in_short(error)})") from None
    return GPT2Config(**shape.model_dump(), vocab_size=1, bos_token_id=None, eos_token_id=None)


def hub_answers() -> bool:
    """One quick question: transformers itself would ask five times, for half a minute, before it gives up."""
    if constants.is_offline_mode():
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except Exception:  # every HTTP library has its own; any of them means no
        return False
    return True
