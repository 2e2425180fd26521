"""Small language models as GGUF files, written by the package gguf, and what `convert` and that package read there."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, PreTrainedModel

from emg_gpt2.base.errors import EMGError
from emg_gpt2.model.convert import SIZES, TRANSPOSED, UNUSED, convert

LLAMA = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA |= {"num_key_value_heads": 2, "max_position_embeddings": 128, "rope_parameters": {"rope_theta": 5000.0}}
LLAMA["rope_parameters"]["rope_type"] = "default"
MODELS = {
    "llama": LLAMA,
    "qwen2": LLAMA | {"num_key_value_heads": 4},
    "qwen3": LLAMA | {"head_dim": 128},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_inner": 64, "n_positions": 1024},
}
TOKENS = 11
MIXED = {"ffn_up": Kind.Q4_1, "ffn_down": Kind.Q8_0, "attn_q": Kind.F16, "attn_v": Kind.BF16, "token_embd": Kind.Q4_0}

Found = tuple[dict, list[bytes]]  # sizes by name, and of each tensor its values in order


# ---- written ----------------------------------------------------------------------------------------------------


def small_model(kind: str) -> PreTrainedModel:
    """A base model of transformers with random weights, no tensor of which keeps its initial ones or zeros."""
    torch.manual_seed(3)
    no_text = dict.fromkeys(("bos_token_id", "eos_token_id"))
    model = AutoModel.from_config(AutoConfig.for_model(kind, **MODELS[kind], **no_text, vocab_size=TOKENS)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if name.endswith("norm.weight") or ".ln_" in name or "layernorm" in name else 0.0
            parameter.copy_(centre + 0.2 * torch.randn_like(parameter))
    return model


def write_gguf(model: PreTrainedModel, path: Path, types: dict[str, Kind] | None = None) -> Path:
    """Write it as llama.cpp's convert_hf_to_gguf.py does. types: part of a stored name → its type; others are F32."""
    config, kind = model.config, model.config.model_type
    writer = gguf.GGUFWriter(path, kind)
    writer.add_name("small")
    writer.add_license("apache-2.0")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    if kind == "gpt2":
        writer.add_feed_forward_length(config.n_inner)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    else:
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        if config.num_key_value_heads != config.num_attention_heads:
            writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
        if "head_dim" in MODELS[kind]:
            writer.add_key_length(config.head_dim)
    writer.add_token_list([f"token {number}" for number in range(TOKENS)])
    _add_weights(writer, model, types or {})
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_weights(writer: gguf.GGUFWriter, model: PreTrainedModel, types: dict[str, Kind]) -> None:
    kind, prefix = model.config.model_type, "transformer." if model.config.model_type == "gpt2" else "model."
    known = gguf.get_tensor_name_map(gguf.MODEL_ARCH[kind.upper()], model.config.num_hidden_layers)
    for name, weights in model.state_dict().items():
        stored = known.get_name(prefix + name, (".weight", ".bias"))
        values = _arranged(weights.numpy(), stored, model)
        chosen = next((types[part] for part in types if part in stored), Kind.F32)
        writer.add_tensor(stored, gguf.quantize(np.ascontiguousarray(values), chosen), raw_dtype=chosen)


def _arranged(values: np.ndarray, stored: str, model: PreTrainedModel) -> np.ndarray:
    """As LlamaModel.permute and GPT2Model of convert_hf_to_gguf.py."""
    kind, config = model.config.model_type, model.config
    if kind == "gpt2" and stored.endswith(TRANSPOSED):
        return values.T
    if kind == "llama" and stored.endswith(("attn_q.weight", "attn_k.weight")):
        heads = config.num_attention_heads if "attn_q" in stored else config.num_key_value_heads
        rows, columns = values.shape
        return values.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(values.shape)
    return values


# ---- read -------------------------------------------------------------------------------------------------------


def read_gguf(path: Path) -> Found:
    """What `convert` makes of a Llama; raises EMGError where it is refused, and RuntimeError for half a folder."""
    with TemporaryDirectory() as place:
        folder = Path(place, "model")
        try:
            convert(str(path), folder)
        except EMGError:
            if left := list(Path(place).iterdir()):
                raise RuntimeError(f"{left} was left") from None
            raise
        config = json.loads((folder / "config.json").read_text())
        weights = load_file(folder / "model.safetensors")
    config |= config["rope_parameters"]
    return {name: config[name] for name in SIZES.values()}, in_order([one.float().numpy() for one in weights.values()])


def is_converted(found: Found, whole: Path, damaged: Path) -> bool:
    """Whether it is what is in the whole file, or what the package gguf finds in the damaged one."""
    return found in (read_gguf(whole), by_gguf(damaged))


def by_gguf(path: Path) -> Found:
    """The same, by the package's own reader; only for files whose sizes are not lies."""
    reader = gguf.GGUFReader(path)
    fields = {name: reader.get_field(f"llama.{key}") for key, name in SIZES.items()}
    sizes = {name: field.contents() for name, field in fields.items() if field}
    sizes = {"head_dim": sizes["hidden_size"] // sizes["num_attention_heads"]} | sizes
    kept = [tensor for tensor in reader.tensors if tensor.name not in UNUSED]
    return sizes, in_order([gguf.dequantize(tensor.data, tensor.tensor_type) for tensor in kept])


def in_order(tensors: list[np.ndarray]) -> list[bytes]:
    """Whichever way rows are ordered, and without −0."""
    return sorted(np.sort(values.ravel() + np.float32(0)).tobytes() for values in tensors)
