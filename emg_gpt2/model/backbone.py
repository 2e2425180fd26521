"""GPT-2 as a backbone: its shape and weights from a folder, the cache or the hub, and how its parts are called."""

from collections.abc import Collection
from pathlib import Path

import torch
from huggingface_hub import constants, get_session, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from pydantic_core import from_json
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import (
    GPT2Config,
    GPT2Model,
)
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME

from emg_gpt2.base.errors import EMGError
from emg_gpt2.base.text import in_short, printable
from emg_gpt2.model.config import Backbone, EMGConfig


def run_blocks(blocks: nn.ModuleList, hidden: torch.Tensor) -> torch.Tensor:
    """hidden (B, P, D) through some of GPT-2's blocks, where each token sees itself and those before it."""
    tokens = hidden.shape[1]
    unseen = torch.full((tokens, tokens), torch.finfo(hidden.dtype).min, device=hidden.device).triu(1)
    for block in blocks:
        hidden = block(hidden, attention_mask=unseen[None, None])
    return hidden


def add_positions(backbone: GPT2Model, tokens: torch.Tensor) -> torch.Tensor:
    """tokens (B, P, D) with their positions, as the first block reads them."""
    return tokens + backbone.wpe.weight[: tokens.shape[1]]


def run_upper(backbone: GPT2Model, hidden: torch.Tensor, first: int = 0) -> torch.Tensor:
    """hidden (B, P, D) through the blocks from number `first` on, and the last norm."""
    return backbone.ln_f(run_blocks(backbone.h[first:], hidden))


def backbone_config(config: EMGConfig) -> GPT2Config:
    no_text = {"vocab_size": 1, "bos_token_id": None, "eos_token_id": None}
    kept = dict(config.backbone)
    if kept.get("activation_function") == "gelu_new":
        kept["activation_function"] = "gelu_pytorch_tanh"  # the same function, in one pass over memory
    return GPT2Config(**no_text, **kept)


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


def files_of(source: Path | str, *names: str) -> list[Path]:
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


def read_json(path: Path) -> dict:
    """Raises ValueError where it is none, or no model's."""
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise ValueError(f"{path.name} has {path.stat().st_size:,} bytes, and a model's a few thousand")
    content = from_json(path.read_bytes())
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} holds no settings")
    return content


def load_backbone(model_name: str, blocks: int) -> GPT2Model | None:
    """The first `blocks` blocks with their language-model weights; None where there are none to be had."""
    config = _read_config(model_name)
    if config is None:
        return None
    config.n_layer = min(blocks, config.n_layer)
    try:
        folder = Path(model_name)
        files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else files_of(model_name, SAFE_WEIGHTS_NAME)
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
        raise EMGError(f"{model_name}: the weights cannot be loaded ({in_short(error)}); fetch them again") from None
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


def architecture(model_name: str) -> GPT2Config:
    """The shape of a GPT-2 without its weights."""
    known = ARCHITECTURES.get(model_name.removeprefix("openai-community/"))
    config = GPT2Config(**known) if known and not Path(model_name).is_dir() else _read_config(model_name)
    if config is None:
        names = ", ".join(ARCHITECTURES)
        raise EMGError(f"MODEL_NAME = {model_name}: neither a folder with a GPT-2's config.json nor one of {names}")
    return config


def _read_config(model_name: str) -> GPT2Config | None:
    """Of the config.json in a folder, in the cache or on the hub what shapes the blocks; None where there is none.

    Raises EMGError where it is no GPT-2's.
    """
    try:
        (path,) = files_of(model_name, CONFIG_NAME)
    except (OSError, ValueError):
        return None
    try:
        content = read_json(path)
        if content.get("model_type") != "gpt2":
            kind = printable(str(content.get("model_type"))[:40])
            raise EMGError(f"MODEL_NAME = {model_name}: a {kind} model; name a GPT-2")
        shape = Backbone.model_validate({key: content[key] for key in Backbone.model_fields.keys() & content})
    except ValueError as error:
        if isinstance(error, EMGError):
            raise
        raise EMGError(f"MODEL_NAME = {model_name}: its config.json is no GPT-2's ({in_short(error)})") from None
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
