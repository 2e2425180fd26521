"""Saved models and language-model weights: what a folder must hold to be loaded, and what it can never do."""

import json
import logging
import pickle
import resource
import shutil
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_model import config, model, noise
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
)

from emg_gpt2 import __version__
from emg_gpt2.base.errors import EMGError
from emg_gpt2.base.registry import TOKENISERS
from emg_gpt2.model.build import build_model, load_model
from emg_gpt2.model.config import EMGConfig
from emg_gpt2.model.model import EMGForSequenceClassification
from emg_gpt2.model.normalise import measure_reference
from stress.intruder import Intruder

LOADERS = {
    "load_model": load_model,
    "from_pretrained": EMGForSequenceClassification.from_pretrained,
    "AutoModel": AutoModelForSequenceClassification.from_pretrained,
}
REFUSALS = {"load_model": EMGError, "from_pretrained": EMGError, "AutoModel": (ValueError, OSError)}


@pytest.fixture(params=LOADERS)
def loader(request) -> str:
    return request.param


@pytest.fixture(scope="module", params=[*TOKENISERS.built_in, [*TOKENISERS.built_in]], ids=str)
def changed(request, tmp_path_factory) -> tuple[EMGForSequenceClassification, Path]:
    """A model whose every buffer and parameter was changed, as by training, and its folder."""
    made = model(*([request.param] if isinstance(request.param, str) else request.param))
    made.set_reference(measure_reference(noise(3.0)))
    with torch.no_grad():
        for tensor in made.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.05 * torch.rand_like(tensor))
    folder = tmp_path_factory.mktemp("changed") / "model"
    made.save_pretrained(folder)
    return made, folder


@pytest.fixture
def folder(tmp_path_factory) -> Path:
    """Of a plain model, to be damaged."""
    place = tmp_path_factory.mktemp("saved") / "model"
    model().save_pretrained(place)
    return place


def change_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_weights(folder: Path, remove: str = "", **changes: torch.Tensor) -> None:
    tensors = load_file(folder / "model.safetensors") | {name.replace("__", "."): one for name, one in changes.items()}
    kept = {name: tensor for name, tensor in tensors.items() if name != remove}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})


def test_a_saved_model_rebuilds_itself(changed, loader):
    made, folder = changed
    again = LOADERS[loader](folder)
    assert type(again) is EMGForSequenceClassification
    assert not again.training
    assert torch.equal(again(emg=noise()).logits, made(emg=noise()).logits)
    assert all(torch.equal(tensor, made.state_dict()[name]) for name, tensor in again.state_dict().items())
    assert not [name for name in load_file(folder / "model.safetensors") if "wte" in name]


def test_a_config_says_all_that_is_needed_to_use_the_model(folder, loader):
    described = LOADERS[loader](folder).config
    assert described.class_codes == [0, 1, 6, 9]
    assert described.class_names == ["idle", "fist", "pinch index", "pinch small"]
    assert described.id2label == dict(enumerate(described.class_names))
    assert (described.sampling_rate, described.window, described.patch) == (1000.0, 250, 25)
    assert (described.channels, described.unit) == (["a", "b", "c"], "count")
    assert described.preprocessing == {"FILTER": "putemg", "BAND_HZ": [20.0, 700.0]}


def test_a_saved_model_says_which_version_wrote_it_and_others_load(folder, loader):
    written = json.loads((folder / "config.json").read_text())
    assert written["emg_gpt2_version"] == __version__
    for changes in ({"emg_gpt2_version": "99.0", "key_of_the_future": [1]}, {"emg_gpt2_version": None}):
        change_config(folder, **changes)
        assert LOADERS[loader](folder).config.to_dict()["emg_gpt2_version"] == __version__


def empty(folder):
    for path in folder.iterdir():
        path.unlink()


def truncated(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


DAMAGES = {  # to a folder, and a part of the reason that is given
    "nothing in it": (empty, "config.json"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "safetensors"),
    "half of the weights' file": (truncated, ""),
    "weights missing": (lambda folder: change_weights(folder, "head.bias"), "head.bias are missing"),
    "reference missing": (lambda folder: change_weights(folder, "spread"), "spread are missing"),
    "weights too many": (
        lambda folder: change_weights(folder, backbone__h__2__ln_1__weight=torch.ones(32)),
        "backbone.h.2.ln_1.weight do not belong",
    ),
    "weights of another shape": (
        lambda folder: change_weights(folder, head__bias=torch.ones(5)),
        "head.bias (4,), and in the weights it is (5,)",
    ),
    "not a number": (
        lambda folder: change_weights(folder, head__bias=torch.tensor([0, 1, float("nan"), 2])),
        "head.bias are not all finite",
    ),
    "half a config": (lambda folder: (folder / "config.json").write_text("{"), ""),
    "unknown tokens": (lambda folder: change_config(folder, tokens=["wavelets"]), "tokens.0"),
    "a config larger than the weights": (
        lambda folder: change_config(folder, filters=256, filter_taps=9999),
        "tokenisers.power.filters (256, 9999), and in the weights it is (16, 25)",
    ),
    "settings that are not": (lambda folder: change_config(folder, preprocessing={"FILTER": "x"}), "FILTER"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_refused_with_the_reason(folder, loader, damage):
    spoil, reason = DAMAGES[damage]
    spoil(folder)
    with pytest.raises(REFUSALS[loader]) as caught:
        LOADERS[loader](folder)
    if loader != "AutoModel":  # reads config.json before it knows our class, and has its own words
        assert reason in str(caught.value)
        assert str(caught.value).startswith(f"{folder}: no model can be loaded (")


def test_who_names_a_run_hears_where_its_model_is(tmp_path):
    (tmp_path / "best_model").mkdir()
    with pytest.raises(EMGError) as caught:
        load_model(tmp_path)
    assert str(caught.value).endswith(f"; name {tmp_path / 'best_model'}")


def test_a_language_model_is_not_a_gesture_model(tiny_gpt2):
    for name in ("load_model", "from_pretrained"):
        with pytest.raises(EMGError, match=str(tiny_gpt2)):
            LOADERS[name](tiny_gpt2)


def test_a_config_of_huge_claims_takes_no_memory(folder):
    """200 blocks of width 4096 are 161 GB."""
    shape = {"n_embd": 4096, "n_head": 2, "n_layer": 200, "n_positions": 16384}
    change_config(folder, backbone=shape)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(EMGError, match=r"the config makes .* \(4096, 48\), and in the weights it is \(32, 48\)"):
        load_model(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 500_000  # kB


def test_from_pretrained_refuses_what_it_does_not_do(folder):
    refused = {"dtype": torch.bfloat16, "quantization_config": {}, "use_safetensors": False, "device_map": "auto"}
    for name, value in refused.items():
        with pytest.raises(EMGError, match=f"from_pretrained: .*{name}"):
            EMGForSequenceClassification.from_pretrained(folder, **{name: value})
    usual = {"dtype": "auto", "use_safetensors": True, "device_map": "cpu", "local_files_only": True}
    assert EMGForSequenceClassification.from_pretrained(folder, **usual).head.weight.dtype == torch.float32
    with pytest.raises(EMGError, match="trust_remote_code = True is not supported"):
        AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)


def test_a_config_can_be_given(folder):
    """Its dropout takes the place of the saved one, and it is checked like that."""
    given = EMGConfig.from_pretrained(folder)
    given.dropout = 0.5
    assert EMGForSequenceClassification.from_pretrained(folder, config=given).head.dropout.p == 0.5
    given.window = 10**12
    with pytest.raises(EMGError, match="window"):
        EMGForSequenceClassification.from_pretrained(folder, config=given)


@pytest.mark.parametrize("how", [*LOADERS, "auto", "require"])
def test_a_pickle_is_never_executed(folder, tmp_path, tiny_gpt2, how):
    trace = tmp_path / "executed"
    pickle.loads(pickle.dumps(Intruder(trace))).close()
    assert trace.exists()  # it would work
    trace.unlink()
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Intruder(trace)))
    if how in LOADERS:
        with pytest.raises(REFUSALS[how]):
            LOADERS[how](folder)
    else:
        (folder / "config.json").write_bytes((tiny_gpt2 / "config.json").read_bytes())
        refusal = pytest.raises(EMGError) if how == "require" else nullcontext()
        with refusal:
            assert build_model(config(), str(folder), how, 2).config.weights == "random"
    assert not trace.exists()


# ---- language-model weights -----------------------------------------------------------------------------------


@pytest.fixture(params=[GPT2Model, GPT2LMHeadModel], ids=["GPT2Model", "GPT2LMHeadModel"])
def gpt2_folder(request, tiny_gpt2, tmp_path) -> Path:
    """The same weights as transformers saves them without and with the language-model head."""
    if request.param is GPT2Model:
        return tiny_gpt2
    whole = GPT2LMHeadModel(GPT2Config.from_pretrained(tiny_gpt2))
    whole.transformer.load_state_dict(GPT2Model.from_pretrained(tiny_gpt2).state_dict())
    whole.save_pretrained(tmp_path)
    assert "transformer.h.0.attn.c_attn.weight" in load_file(tmp_path / "model.safetensors")
    return tmp_path


@pytest.mark.parametrize(("blocks", "pretrained"), [(1, "auto"), (2, "require"), (8, "auto")])
def test_the_first_blocks_hold_the_language_models_weights(gpt2_folder, tiny_gpt2, pretrained, blocks):
    weights = load_file(tiny_gpt2 / "model.safetensors")
    kept = {n: t for n, t in weights.items() if n != "wte.weight" and not (n[0] == "h" and int(n[2]) >= blocks)}
    made = build_model(config(), str(gpt2_folder), pretrained, blocks)
    held = made.backbone.state_dict()
    assert held.keys() == kept.keys()
    assert all(torch.equal(held[name], tensor) for name, tensor in kept.items())
    assert made.config.weights == "pretrained"
    assert len(made.backbone.h) == made.config.backbone["n_layer"] == min(blocks, 3)


def test_never_leaves_the_weights_out_and_keeps_the_shape(tiny_gpt2):
    weights = load_file(tiny_gpt2 / "model.safetensors")
    made = build_model(config(), str(tiny_gpt2), "never", 2)
    assert made.config.weights == "random"
    assert made.backbone.wpe.weight.shape == weights["wpe.weight"].shape
    same = [name for name, tensor in made.backbone.state_dict().items() if torch.equal(tensor, weights[name])]
    assert same == []


@pytest.fixture
def shape_only(tiny_gpt2, tmp_path) -> Path:
    (tmp_path / "config.json").write_bytes((tiny_gpt2 / "config.json").read_bytes())
    return tmp_path


def test_without_weights_auto_says_in_one_line_that_they_are_random(shape_only, caplog):
    with caplog.at_level(logging.WARNING, "emg_gpt2"):
        made = build_model(config(), str(shape_only), "auto", 2)
    assert made.config.weights == "random"
    assert made.config.backbone["n_embd"] == 32
    (message,) = [record.getMessage() for record in caplog.records if record.name.startswith("emg_gpt2")]
    assert "random weights" in message
    assert str(shape_only) in message
    assert "\n" not in message


def test_without_weights_require_stops(shape_only):
    with pytest.raises(EMGError, match=f"{shape_only}: no weights"):
        build_model(config(), str(shape_only), "require", 2)


BACKBONE_DAMAGES = {
    "half of the file": truncated,
    "weights missing": lambda folder: change_weights(folder, "h.1.mlp.c_fc.weight"),
    "weights of another shape": lambda folder: change_weights(folder, h__1__mlp__c_fc__weight=torch.ones(32, 127)),
    "not a number": lambda folder: change_weights(folder, h__0__ln_1__bias=torch.full((32,), float("nan"))),
}


@pytest.mark.parametrize("damage", BACKBONE_DAMAGES)
def test_damaged_weights_are_never_replaced_by_random_ones(tiny_gpt2, tmp_path, damage):
    folder = shutil.copytree(tiny_gpt2, tmp_path / "gpt2")
    BACKBONE_DAMAGES[damage](folder)
    for pretrained in ("auto", "require"):
        with pytest.raises(EMGError, match=str(folder)):
            build_model(config(), str(folder), pretrained, 2)


@pytest.mark.parametrize("pretrained", ["auto", "never"])
def test_a_folder_of_another_architecture_is_refused(tmp_path, pretrained):
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=11, **shape)).save_pretrained(tmp_path)
    with pytest.raises(EMGError, match=str(tmp_path)):
        build_model(config(), str(tmp_path), pretrained, 2)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(EMGError, match=f"MODEL_NAME = {tmp_path}"):
        build_model(config(), str(tmp_path), "auto", 2)


def test_more_patches_than_positions_are_refused(tiny_gpt2, tmp_path):
    shape = json.loads((tiny_gpt2 / "config.json").read_text()) | {"n_positions": 9}
    (tmp_path / "config.json").write_text(json.dumps(shape))
    with pytest.raises(EMGError, match=r"11 tokens .* 9; raise PATCH_MS"):
        build_model(config(), str(tmp_path), "never", 2)


def test_the_seed_decides_the_weights(tiny_gpt2):
    def head(seed):
        torch.manual_seed(seed)
        return build_model(config(), str(tiny_gpt2), "auto", 2).head.weight.detach().numpy()

    assert np.array_equal(head(1), head(1))
    assert not np.array_equal(head(1), head(2))
