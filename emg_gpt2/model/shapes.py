"""The shape of a backbone: what is read of a language model's config.json, and the limits that it must keep.

A shape has the names of transformers' own configurations. All limits are checked before any memory is taken. What is
not named here is dropped or refused, so a config from a stranger cannot load more files or run code.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, Discriminator, Field, Tag, TypeAdapter, model_validator
from transformers.activations import ACT2FN

from emg_gpt2.base.text import printable

Width = Annotated[int, Field(ge=1, le=8192)]
Inner = Annotated[int, Field(ge=1, le=32768)]
Blocks = Annotated[int, Field(ge=0, le=200)]
Heads = Annotated[int, Field(ge=1, le=4096)]
Positions = Annotated[int, Field(ge=1, le=16384)]  # learned, and so each takes memory
Length = Annotated[int, Field(ge=1, le=100_000_000)]  # of a sentence, where positions take none
Share = Annotated[float, Field(ge=0, lt=1)]
Small = Annotated[float, Field(gt=0, lt=1)]
Frequency = Annotated[float, Field(gt=0, le=1e12)]
Factor = Annotated[float, Field(gt=0, le=1e4)]


STRETCH = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")  # of Llama 3


def _known(activation: str) -> str:
    if activation not in ACT2FN:
        raise ValueError(f"there is no activation function {printable(activation[:40])}")
    return activation


Activation = Annotated[str, AfterValidator(_known)]


class Shape(BaseModel, strict=True, allow_inf_nan=False, extra="forbid"):
    """What all shapes have; GPT-2 has other names for it. DROPOUTS: names of what a model's dropout replaces."""

    DROPOUTS: ClassVar[tuple[str, ...]] = ("attention_dropout",)

    hidden_size: Width  # D, of tokens and hidden states
    num_hidden_layers: Blocks
    num_attention_heads: Heads
    max_position_embeddings: Length  # tokens that a sentence may have

    @classmethod
    def names(cls) -> set[str]:
        """Of its entries in a config.json."""
        return {field.alias or name for name, field in cls.model_fields.items()}

    def first(self, blocks: int, dropout: float) -> "Shape":
        """Of the first `blocks` blocks, with this dropout."""
        kept = {"num_hidden_layers": min(blocks, self.num_hidden_layers)}
        return self.model_copy(update=kept | dict.fromkeys(self.DROPOUTS, dropout))

    def content(self) -> dict:
        """As a config.json holds it."""
        return self.model_dump(exclude_none=True, by_alias=True)

    @model_validator(mode="after")
    def _check_heads(self):
        if self.hidden_size % self.num_attention_heads:
            width, heads = (
                type(self).model_fields[name].alias or name for name in ("hidden_size", "num_attention_heads")
            )
            raise ValueError(f"{width} = {self.hidden_size} is not a multiple of {heads} = {self.num_attention_heads}")
        return self


class NoBlocks(Shape):
    """No backbone: tokens go to the head as they are. Its width is that of the model which it stands in for."""

    DROPOUTS = ()
    model_type: Literal["none"] = "none"
    num_hidden_layers: Literal[0] = 0
    num_attention_heads: Literal[1] = 1
    max_position_embeddings: Length = 100_000_000


class GPT2Shape(Shape):
    DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop")
    model_type: Literal["gpt2"] = "gpt2"
    hidden_size: Width = Field(alias="n_embd")
    num_hidden_layers: Blocks = Field(alias="n_layer")
    num_attention_heads: Heads = Field(alias="n_head")
    max_position_embeddings: Positions = Field(1024, alias="n_positions")
    n_inner: Inner | None = None
    activation_function: Activation = "gelu_new"
    layer_norm_epsilon: Small = 1e-5
    resid_pdrop: Share = 0.1
    embd_pdrop: Share = 0.1
    attn_pdrop: Share = 0.1
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    reorder_and_upcast_attn: bool = False


class Rotation(BaseModel, strict=True, allow_inf_nan=False, extra="forbid"):
    """Rotary positions. Of the ways to stretch them for long texts, those that need the length of the text lack."""

    rope_type: Literal["default", "linear", "llama3"] = "default"
    rope_theta: Frequency | None = None
    partial_rotary_factor: Annotated[float, Field(gt=0, le=1)] | None = None
    factor: Factor | None = None
    low_freq_factor: Factor | None = None
    high_freq_factor: Factor | None = None
    original_max_position_embeddings: Length | None = None

    @model_validator(mode="before")
    @classmethod
    def _rename_type(cls, given):
        """Older files call rope_type `type`, and some have both."""
        if isinstance(given, dict) and "type" in given:
            given = {"rope_type": given["type"]} | {name: value for name, value in given.items() if name != "type"}
        return given

    @model_validator(mode="after")
    def _check_stretch(self):
        needed = {"default": [], "linear": ["factor"]}.get(self.rope_type, STRETCH)
        if lacking := [name for name in needed if getattr(self, name) is None]:
            raise ValueError(f"rope_type {self.rope_type} needs {', '.join(lacking)}")
        if self.rope_type == "llama3" and self.low_freq_factor >= self.high_freq_factor:
            raise ValueError("low_freq_factor is not below high_freq_factor")
        return self


class RotaryShape(Shape):
    """What models with rotary positions share."""

    intermediate_size: Inner
    max_position_embeddings: Length = 2048
    hidden_act: Activation = "silu"
    initializer_range: Annotated[float, Field(ge=0, le=1)] = 0.02
    rope_parameters: Rotation | None = None
    rope_scaling: Rotation | None = None  # its name in older files
    rope_theta: Frequency | None = None
    attention_bias: bool | None = None
    attention_dropout: Share = 0.0


class LlamaShape(RotaryShape):
    """Llama and its kin, among them SmolLM. Sliding windows are dropped: they are longer than our sentences."""

    model_type: Literal["llama", "mistral", "qwen2", "qwen3"]
    num_key_value_heads: Heads | None = None
    head_dim: Annotated[int, Field(ge=2, le=1024)] | None = None
    rms_norm_eps: Small = 1e-6
    mlp_bias: bool | None = None

    @model_validator(mode="after")
    def _check_groups(self):
        if self.num_attention_heads % (self.num_key_value_heads or 1):
            raise ValueError(
                f"num_attention_heads = {self.num_attention_heads} is not a multiple of num_key_value_heads = "
                f"{self.num_key_value_heads}"
            )
        return self


class NeoXShape(RotaryShape):
    """GPT-NeoX, among them Pythia."""

    DROPOUTS = ("attention_dropout", "hidden_dropout")
    model_type: Literal["gpt_neox"]
    hidden_act: Activation = "gelu"
    layer_norm_eps: Small = 1e-5
    hidden_dropout: Share = 0.0
    use_parallel_residual: bool = True
    rotary_pct: Annotated[float, Field(gt=0, le=1)] | None = None
    rotary_emb_base: Frequency | None = None


class OPTShape(Shape):
    """OPT, but for opt-350m, whose embedding is narrower than its blocks."""

    DROPOUTS = ("dropout", "attention_dropout")
    model_type: Literal["opt"]
    ffn_dim: Inner
    max_position_embeddings: Positions = 2048
    word_embed_proj_dim: Width | None = None
    do_layer_norm_before: Literal[True] = True
    activation_function: Activation = "relu"
    init_std: Annotated[float, Field(ge=0, le=1)] = 0.02
    enable_bias: bool = True
    layer_norm_elementwise_affine: bool = True
    dropout: Share = 0.1
    attention_dropout: Share = 0.0

    @model_validator(mode="after")
    def _check_embedding(self):
        if self.word_embed_proj_dim not in (None, self.hidden_size):
            raise ValueError(f"word_embed_proj_dim = {self.word_embed_proj_dim} is not hidden_size")
        return self


SHAPES = {
    "gpt2": GPT2Shape,
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), LlamaShape),
    "gpt_neox": NeoXShape,
    "opt": OPTShape,
}
FAMILIES = {  # in words
    "gpt2": "GPT-2",
    "llama": "Llama",
    "mistral": "Mistral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "gpt_neox": "GPT-NeoX",
    "opt": "OPT",
}


def _kind(content: dict | Shape) -> str | None:
    """The class of its model_type; models of version 0.2.0 name none and are GPT-2s. None where it is not a shape."""
    if isinstance(content, Shape):
        return type(content).__name__
    found = content.get("model_type", "gpt2") if isinstance(content, dict) else None
    return SHAPES.get(found, NoBlocks).__name__ if isinstance(found, str) else None


AnyShape = Annotated[
    Annotated[NoBlocks, Tag("NoBlocks")]
    | Annotated[GPT2Shape, Tag("GPT2Shape")]
    | Annotated[LlamaShape, Tag("LlamaShape")]
    | Annotated[NeoXShape, Tag("NeoXShape")]
    | Annotated[OPTShape, Tag("OPTShape")],
    Discriminator(_kind),
]
_any_shape = TypeAdapter(AnyShape)


def check_shape(content: dict) -> Shape:
    """The shape in a saved model's config; raises ValueError."""
    return _any_shape.validate_python(content)


def shape_of_language_model(content: dict) -> Shape:
    """The shape in the config.json of a language model, whose other keys are left out; raises ValueError."""
    kind = str(content.get("model_type"))
    if kind not in SHAPES:
        raise ValueError(f"a {printable(kind[:40])} model; name one of the types {', '.join(SHAPES)}")
    for key, reason in (("auto_map", "it asks for code of its own"), ("quantization_config", "it is quantised")):
        if content.get(key):
            raise ValueError(f"{reason} ({key}); name a model of plain safetensors")
    return SHAPES[kind](**{name: content[name] for name in SHAPES[kind].names() & content.keys()})
