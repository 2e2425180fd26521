"""The backbone: blocks of a decoder of transformers. No other file knows how a family of models names its parts."""

import re
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import CONFIG_MAPPING, MODEL_MAPPING, DynamicCache
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from emg_gpt2.base.errors import EMGError
from emg_gpt2.base.text import in_short
from emg_gpt2.model.convert import SMOLLM2, NoPackageError, converted_smollm2
from emg_gpt2.model.files import find_files, read_json, read_weights
from emg_gpt2.model.shapes import GPT2Shape, LlamaShape, NoBlocks, Shape, shape_of_language_model

ARCHITECTURES = {  # known by name: random weights need only the shape, and so no hub
    "distilgpt2": GPT2Shape(n_embd=768, n_layer=6, n_head=12),
    "gpt2": GPT2Shape(n_embd=768, n_layer=12, n_head=12),
    "gpt2-medium": GPT2Shape(n_embd=1024, n_layer=24, n_head=16),
    "gpt2-large": GPT2Shape(n_embd=1280, n_layer=36, n_head=20),
    "gpt2-xl": GPT2Shape(n_embd=1600, n_layer=48, n_head=25),
    SMOLLM2: LlamaShape(
        model_type="llama",
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_theta=100000.0,
        initializer_range=1 / 24,
    ),
}
NO_WEIGHTS = "MODEL_NAME = {}: no weights in folder, cache or hub; download them or set PRETRAINED"
POSITIONS = ("wpe.weight", "embed_positions.weight")  # end the names of the position embeddings


class NoWeightsError(EMGError):
    """A language model whose weights are not here and cannot be fetched."""


class NoBackbone(nn.Module):
    """Stands where there are no blocks: tokens go through as they are."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.config = shape
        self.layers, self.norm = nn.ModuleList(), nn.Identity()

    def forward(self, inputs_embeds: torch.Tensor, **_) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=inputs_embeds)


class Parts(NamedTuple):
    """Names of a family's parts. positions: a learned embedding, of whose rows the first `unused` are no positions."""

    blocks: str
    norm: str
    positions: str | None = None
    unused: int = 0


BLOCK_WEIGHTS = re.compile(r"\bbackbone\.(decoder\.)?(h|layers)\.\d+\.")  # begins their names in a saved model
LLAMA = Parts("layers", "norm")
PARTS = {
    "gpt2": Parts("h", "ln_f", "wpe"),
    "gpt_neox": Parts("layers", "final_layer_norm"),
    "opt": Parts("decoder.layers", "decoder.final_layer_norm", "decoder.embed_positions", unused=2),
}


# ---- parts ------------------------------------------------------------------------------------------------------


def new_backbone(shape: Shape) -> nn.Module:
    """A decoder with random weights and without its token embedding, which is never used: tokens are patches of signal.

    Without blocks there are no positions and no norm either.
    """
    if isinstance(shape, NoBlocks):
        return NoBackbone(shape)
    content = shape.content()
    if content.get("activation_function") == "gelu_new":
        content["activation_function"] = "gelu_pytorch_tanh"  # the same function in one pass: 5 to 12 % of a step
    no_text = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    config = CONFIG_MAPPING[content.pop("model_type")](**content, **no_text, vocab_size=1)
    backbone = MODEL_MAPPING[type(config)](config)
    backbone.set_input_embeddings(None)
    return backbone


def run_backbone(
    backbone: nn.Module, tokens: torch.Tensor, seen: torch.Tensor | None = None, positions: torch.Tensor | None = None
) -> torch.Tensor:
    """tokens (B, P, D) → hidden (B, P, D).

    seen: (P, P) bool, which tokens each one sees; None: itself and those before it; positions: (P,); None: 0, 1, …
    """
    order = {}
    if seen is not None:
        unseen = torch.zeros_like(seen, dtype=tokens.dtype).masked_fill(~seen, torch.finfo(tokens.dtype).min)
        order = {"attention_mask": unseen[None, None].expand(len(tokens), 1, -1, -1), "position_ids": positions[None]}
    return backbone(inputs_embeds=tokens, use_cache=False, **order).last_hidden_state


def read_on(backbone: nn.Module, tokens: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
    """tokens (B, P, D) → hidden (B, P, D), after those whose keys and values `cache` holds; theirs are added to it."""
    return backbone(inputs_embeds=tokens, past_key_values=cache, use_cache=True).last_hidden_state


def run_lower(backbone: nn.Module, tokens: torch.Tensor, blocks: int) -> torch.Tensor:
    """tokens (B, P, D) → hidden (B, P, D) after the first `blocks` blocks; without dropout of the tokens."""
    parts, hidden = _parts(backbone), tokens
    if parts.positions:
        rows = slice(parts.unused, parts.unused + tokens.shape[1])
        hidden = tokens + backbone.get_submodule(parts.positions).weight[rows]  # (B, P, D)
    return _run_blocks(backbone, slice(0, blocks), hidden)


def run_upper(backbone: nn.Module, hidden: torch.Tensor, first: int) -> torch.Tensor:
    """hidden (B, P, D) → the same after the blocks from number `first` on, and the last norm."""
    return backbone.get_submodule(_parts(backbone).norm)(_run_blocks(backbone, slice(first, None), hidden))


def _run_blocks(backbone: nn.Module, which: slice, hidden: torch.Tensor) -> torch.Tensor:
    tokens = hidden.shape[1]
    unseen = torch.full((tokens, tokens), torch.finfo(hidden.dtype).min, device=hidden.device).triu(1)
    turned = {}
    if hasattr(backbone, "rotary_emb"):
        positions = torch.arange(tokens, device=hidden.device)[None]
        turned = {"position_embeddings": backbone.rotary_emb(hidden, positions)}
    for block in blocks_of(backbone)[which]:
        hidden = block(hidden, attention_mask=unseen[None, None], **turned)
    return hidden


def blocks_of(backbone: nn.Module) -> nn.ModuleList:
    """The blocks, from the first."""
    return backbone.get_submodule(_parts(backbone).blocks)


def freeze_lower(backbone: nn.Module, blocks: int, whole: bool) -> None:
    """Freeze the first `blocks` blocks: their matrices and biases, or `whole`, and then the positions too."""
    for block in blocks_of(backbone)[:blocks]:
        block.requires_grad_(False)
        for norm in [] if whole else norms_of(block):
            norm.requires_grad_(True)
    if whole and (positions := _parts(backbone).positions):
        backbone.get_submodule(positions).requires_grad_(False)


def norms_of(module: nn.Module) -> list[nn.Module]:
    """Layer norms and their kin, such as RMS norms."""
    return [one for one in module.modules() if type(one).__name__.endswith("Norm")]


def _parts(backbone: nn.Module) -> Parts:
    return PARTS.get(backbone.config.model_type, LLAMA)


# ---- shape and weights ------------------------------------------------------------------------------------------


def read_backbone(model_name: str, blocks: int) -> tuple[Shape, dict[str, torch.Tensor]]:
    """Shape and language-model weights of the first `blocks` blocks, from a folder, the cache or the hub.

    Raises NoWeightsError where config.json or weights are in none of them, and EMGError where they are damaged or not
    those of a known family.
    """
    place = _place(model_name)
    shape = _read_shape(place)
    if shape is None:
        raise NoWeightsError(NO_WEIGHTS.format(model_name))
    shape = shape.first(blocks, 0.0)
    with torch.device("meta"):  # takes no memory
        backbone = new_backbone(shape)
    prefix = f"{backbone.base_model_prefix}."  # where the file is of the whole language model
    expected = backbone.state_dict()
    try:
        return shape, read_weights(_weights_files(place, expected, prefix), expected, prefix)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        if isinstance(error, EMGError):
            raise
        raise EMGError(f"{model_name}: the weights cannot be loaded ({in_short(error)}); fetch them again") from None


def _place(model_name: str) -> str:
    """Folder or name on the hub. Raises NoWeightsError where the package with SmolLM2 is not installed."""
    if model_name != SMOLLM2 or Path(model_name).is_dir():
        return model_name
    try:
        return str(converted_smollm2())
    except NoPackageError as error:
        raise NoWeightsError(f"MODEL_NAME = {error}") from None


def _weights_files(model_name: str, expected: dict, prefix: str) -> list[Path]:
    """The safetensors files of a folder; of a model on the hub those that hold the expected weights."""
    if Path(model_name).is_dir():
        found = sorted(Path(model_name).glob("*.safetensors"))
    else:
        found = _hub_files(model_name, expected, prefix)
    if not found:
        raise NoWeightsError(NO_WEIGHTS.format(model_name))
    return found


def _hub_files(model_name: str, expected: dict, prefix: str) -> list[Path]:
    try:
        return find_files(model_name, SAFE_WEIGHTS_NAME)
    except (OSError, ValueError):
        pass
    try:  # large models are in several files, which an index lists
        places = read_json(find_files(model_name, SAFE_WEIGHTS_INDEX_NAME)[0])["weight_map"]
        return find_files(model_name, *{places[name] for name in places if name.removeprefix(prefix) in expected})
    except (OSError, ValueError, KeyError, TypeError):
        return []


def architecture(model_name: str) -> Shape:
    """The shape of a language model that is known by name, on the hub or in a folder; raises EMGError for others."""
    known = ARCHITECTURES.get(model_name.removeprefix("openai-community/"))
    shape = known if known and not Path(model_name).is_dir() else _read_shape(model_name)
    if shape is None:
        names = ", ".join(ARCHITECTURES)
        raise EMGError(f"MODEL_NAME = {model_name}: neither a model's folder, nor on the hub, nor one of {names}")
    return shape


def _read_shape(model_name: str) -> Shape | None:
    """From config.json in a folder, in the cache or on the hub; None where there is none.

    Raises EMGError where it is not that of a known family.
    """
    try:
        (path,) = find_files(model_name, CONFIG_NAME)
    except (OSError, ValueError):
        return None
    try:
        return shape_of_language_model(read_json(path))
    except ValueError as error:
        raise EMGError(f"MODEL_NAME = {model_name}: its config.json is not valid ({in_short(error)})") from None
