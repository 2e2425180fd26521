"""GPT-2 as a backbone: its shape, its weights, and its parts. No other file knows the names of the parts."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import GPT2Config, GPT2Model
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME

from emg_gpt2.base.errors import EMGError
from emg_gpt2.base.text import in_short, printable
from emg_gpt2.model.config import BackboneShape
from emg_gpt2.model.files import find_files, read_json, read_weights

ARCHITECTURES = {  # GPT-2 on the hub; random weights need only the shape, and so no hub
    "distilgpt2": {"n_embd": 768, "n_layer": 6, "n_head": 12},
    "gpt2": {"n_embd": 768, "n_layer": 12, "n_head": 12},
    "gpt2-medium": {"n_embd": 1024, "n_layer": 24, "n_head": 16},
    "gpt2-large": {"n_embd": 1280, "n_layer": 36, "n_head": 20},
    "gpt2-xl": {"n_embd": 1600, "n_layer": 48, "n_head": 25},
}
BLOCK_WEIGHTS = "backbone.h."  # begins the names of the blocks' weights in a saved model
POSITIONS = "wpe.weight"  # ends the name of the position embedding


# ---- parts ------------------------------------------------------------------------------------------------------


def new_backbone(shape: dict) -> GPT2Model:
    """A GPT-2 without its token embedding, which is never used: tokens are patches of signal.

    shape: see BackboneShape.
    """
    kept = dict(shape)
    if kept.get("activation_function") == "gelu_new":
        kept["activation_function"] = "gelu_pytorch_tanh"  # the same function in one pass: 5 to 12 % of a step
    backbone = GPT2Model(GPT2Config(**kept, vocab_size=1, bos_token_id=None, eos_token_id=None))
    backbone.wte = None
    return backbone


def run_backbone(backbone: GPT2Model, tokens: torch.Tensor) -> torch.Tensor:
    """tokens (B, P, D) → hidden (B, P, D), where each token sees itself and those before it."""
    return backbone(inputs_embeds=tokens, use_cache=False).last_hidden_state


def run_lower(backbone: GPT2Model, tokens: torch.Tensor, blocks: int) -> torch.Tensor:
    """tokens (B, P, D) → hidden (B, P, D) after the first `blocks` blocks; without dropout of the tokens."""
    hidden = tokens + backbone.wpe.weight[: tokens.shape[1]]  # (B, P, D)
    return _run_blocks(backbone.h[:blocks], hidden)


def run_upper(backbone: GPT2Model, hidden: torch.Tensor, first: int) -> torch.Tensor:
    """hidden (B, P, D) → the same after the blocks from number `first` on, and the last norm."""
    return backbone.ln_f(_run_blocks(backbone.h[first:], hidden))


def _run_blocks(blocks: nn.ModuleList, hidden: torch.Tensor) -> torch.Tensor:
    tokens = hidden.shape[1]
    unseen = torch.full((tokens, tokens), torch.finfo(hidden.dtype).min, device=hidden.device).triu(1)
    for block in blocks:
        hidden = block(hidden, attention_mask=unseen[None, None])
    return hidden


def blocks_of(backbone: GPT2Model) -> nn.ModuleList:
    """The blocks, from the first."""
    return backbone.h


def freeze_lower(backbone: nn.Module, blocks: int, whole: bool) -> None:
    """Freeze the first `blocks` blocks: their matrices and biases, or `whole`, and then the positions too."""
    for block in blocks_of(backbone)[:blocks]:
        block.requires_grad_(False)
        for norm in [] if whole else norms_of(block):
            norm.requires_grad_(True)
    if whole:
        backbone.wpe.requires_grad_(False)


def norms_of(module: nn.Module) -> list[nn.Module]:
    """Layer norms and their kin, such as RMS norms."""
    return [one for one in module.modules() if type(one).__name__.endswith("Norm")]


# ---- shape and weights ------------------------------------------------------------------------------------------


def read_backbone(model_name: str, blocks: int) -> tuple[BackboneShape, dict[str, torch.Tensor]] | None:
    """Shape and language-model weights of the first `blocks` blocks, from a folder, the cache or the hub.

    None where config.json or weights are in none of them. Raises EMGError where they are damaged or not a GPT-2's.
    """
    shape = _read_shape(model_name)
    files = _weights_files(model_name) if shape else []
    if not files:
        return None
    shape.n_layer = min(blocks, shape.n_layer)
    with torch.device("meta"):  # takes no memory
        expected = new_backbone(shape.model_dump()).state_dict()
    try:
        return shape, read_weights(files, expected, prefix="transformer.")  # of GPT2LMHeadModel
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise EMGError(f"{model_name}: the weights cannot be loaded ({in_short(error)}); fetch them again") from None


def _weights_files(model_name: str) -> list[Path]:
    if Path(model_name).is_dir():
        return sorted(Path(model_name).glob("*.safetensors"))
    try:
        return find_files(model_name, SAFE_WEIGHTS_NAME)
    except (OSError, ValueError):
        return []


def architecture(model_name: str) -> BackboneShape:
    """The shape of a GPT-2 on the hub or in a folder; raises EMGError where it is neither."""
    known = ARCHITECTURES.get(model_name.removeprefix("openai-community/"))
    shape = BackboneShape(**known) if known and not Path(model_name).is_dir() else _read_shape(model_name)
    if shape is None:
        names = ", ".join(ARCHITECTURES)
        raise EMGError(f"MODEL_NAME = {model_name}: neither a folder with a GPT-2's config.json nor one of {names}")
    return shape


def _read_shape(model_name: str) -> BackboneShape | None:
    """From config.json in a folder, in the cache or on the hub; None where there is none.

    Raises EMGError where it is not a GPT-2's.
    """
    try:
        (path,) = find_files(model_name, CONFIG_NAME)
    except (OSError, ValueError):
        return None
    try:
        content = read_json(path)
        if content.get("model_type") != "gpt2":
            kind = printable(str(content.get("model_type"))[:40])
            raise EMGError(f"MODEL_NAME = {model_name}: a {kind} model; name a GPT-2")
        return BackboneShape(**{key: content[key] for key in BackboneShape.model_fields.keys() & content})
    except ValueError as error:
        if isinstance(error, EMGError):
            raise
        raise EMGError(f"MODEL_NAME = {model_name}: its config.json is not a GPT-2's ({in_short(error)})") from None
