"""ADAPT: which weights train; low-rank updates, saved merged and as an adapter that peft reads."""

import signal
from pathlib import Path

import pytest
import torch
from conftest import call
from peft import PeftModel
from safetensors.torch import load_file
from test_backbone import MODELS, tokens
from test_backbone import config as config_of
from test_main import flags, read
from test_model import MATRICES, model, trained
from test_training import before_step, fit_here, settings  # noqa: F401

from emg_gpt2.model.backbone import run_backbone
from emg_gpt2.model.build import build_model
from emg_gpt2.settings import Settings
from emg_gpt2.training.adapt import choose_trained, count_parameters
from emg_gpt2.training.lora import adapter_weights, merged_weights, save_adapter
from emg_gpt2.training.sweep import space

pytestmark = pytest.mark.usefixtures("one_thread")

THREE = {"n_embd": 32, "n_head": 2, "n_layer": 3}
LAYERS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")


def names_of(blocks: list[int], parts: set[str]) -> set[str]:
    return {f"backbone.h.{block}.{part}" for block in blocks for part in parts}


UPDATES = {f"{layer}.lora_{one}.default.weight" for layer in LAYERS for one in "AB"}
NORMS = {f"ln_{number}.{kind}" for number in "12" for kind in ("weight", "bias")}


# ---- what trains ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("adapt", "layers", "matrices", "updated"),
    [
        ("full", -2, [1, 2], []),
        ("norms", -2, [], []),
        ("lora", -2, [], [1, 2]),
        ("lora", -9, [], [0, 1, 2]),
        ("lora", 0, [], []),
    ],
)
@pytest.mark.parametrize("freeze", [False, True])
def test_what_trains(adapt, layers, matrices, updated, freeze):
    """Without FREEZE norms, positions and tokenisers train everywhere, with it only above the first adapted block."""
    made = model(backbone=THREE)
    own = {name for name, _ in made.named_parameters() if not name.startswith(("backbone.h.", "linear."))}
    choose_trained(made, Settings(ADAPT=adapt, NUM_LAYERS=layers, FREEZE=freeze))
    norms = [0, 1, 2][max(0, 3 + layers) if freeze else 0 :]
    if freeze:
        own -= {name for name in own if name.startswith(("tokenisers.", "backbone.wpe."))}
    blocks = names_of(matrices, MATRICES) | names_of(updated, UPDATES) | names_of(norms, NORMS)
    assert trained(made) == own | blocks


@pytest.mark.parametrize("freeze", [False, True])
def test_frozen_trains_nothing_of_the_backbone(freeze):
    made = model(backbone=THREE)
    choose_trained(made, Settings(ADAPT="frozen", FREEZE=freeze))
    assert {name.partition(".")[0] for name in trained(made)} == {"head", "residual_weight"} | (
        set() if freeze else {"tokenisers"}
    )


def test_parameters_are_counted_as_they_are_saved_and_as_they_train():
    """An update of a map from n to m numbers has 8 · (n + m); the other numbers are those of `norms`."""
    made = model(backbone=THREE)
    parameters, norms = count_parameters(made.config, Settings(ADAPT="norms"))
    updates = 8 * ((32 + 96) + (32 + 32) + (32 + 128) + (128 + 32))
    assert parameters == made.num_parameters()
    assert count_parameters(made.config, Settings(ADAPT="lora", NUM_LAYERS=-1)) == (parameters, norms + updates)


def test_a_sweep_does_not_repeat_a_trial_where_the_number_of_blocks_has_no_effect():
    layers = {adapt: space(Settings(ADAPT=adapt))["NUM_LAYERS"].choices for adapt in ("full", "norms", "lora")}
    assert layers == {"full": (0, -1, -9), "norms": (-9,), "lora": (0, -1, -9)}
    assert space(Settings(ADAPT="norms", FREEZE=True))["NUM_LAYERS"].choices == (0, -1, -9)


# ---- saved ------------------------------------------------------------------------------------------------------


def with_adapter(backbone: torch.nn.Module, folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a backbone after peft has applied the adapter in the folder to it."""
    return PeftModel.from_pretrained(backbone, folder).merge_and_unload().state_dict()


@pytest.mark.parametrize("family", MODELS)
@torch.no_grad()
def test_in_every_family_the_merged_model_and_the_adapter_are_the_trained_one(family, tmp_path):
    MODELS[family][1].save_pretrained(tmp_path)
    begun, made = (build_model(config_of(), str(tmp_path), "never", 2).eval() for _ in range(2))
    made.load_state_dict(begun.state_dict())
    choose_trained(made, Settings(ADAPT="lora", NUM_LAYERS=-1))
    for parameter in made.backbone.parameters():
        parameter.add_(parameter.requires_grad * 0.1 * torch.randn_like(parameter))
    merged, plain = merged_weights(made), build_model(config_of(), str(tmp_path), "never", 2).eval()
    plain.load_state_dict(merged)
    found, expected = (run_backbone(one.backbone, tokens()) for one in (plain, made))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert (found - run_backbone(begun.backbone, tokens())).abs().max() > 0.1
    save_adapter(made.backbone, adapter_weights(made.backbone), tmp_path / "adapter")
    applied = with_adapter(begun.backbone, tmp_path / "adapter")
    expected = {name.removeprefix("backbone."): one for name, one in merged.items() if name.startswith("backbone.")}
    torch.testing.assert_close(applied, expected, atol=1e-6, rtol=0)


def test_a_run_saves_a_plain_model_and_the_adapter_that_makes_it(small_file, tiny_gpt2, tmp_path):
    """With REFIT, which begins with the same backbone. Only matrices below the adapted blocks and biases stay."""
    chosen = {"DATA_LOCATION": small_file, "MODEL_NAME": tiny_gpt2, "PRECISION": "fp32", "SAMPLING_RATIO": 0.2}
    chosen |= {"ADAPT": "lora", "BLOCKS": 3, "NUM_LAYERS": -2, "NUM_EPOCHS": 1, "LR": 3e-3, "TRACKER": "none"}
    done = call("main.py", *flags(**chosen, RUN_DIR=tmp_path / "run", MODEL_SAVING_DIR=tmp_path / "kept"))
    assert (done.returncode, done.stderr) == (0, "")
    places = [tmp_path / "run" / "best_model" / "adapter", tmp_path / "kept" / "adapter"]
    first, second = ({file.name: file.read_bytes() for file in place.iterdir()} for place in places)
    assert first == second
    figures = read(tmp_path / "run", "metrics.json")
    counts = f"{figures['parameters']:,} parameters, {figures['trainable_parameters']:,} trained"
    assert f"{tiny_gpt2}, pretrained weights, ADAPT = lora: {counts}" in done.stdout.replace("\n", " ")
    saved = load_file(tmp_path / "run" / "best_model" / "model.safetensors")
    begun = build_model(config_of(), str(tiny_gpt2), "require", 3).backbone
    before = {name: tensor.clone() for name, tensor in begun.state_dict().items()}
    applied = with_adapter(begun, tmp_path / "run" / "best_model" / "adapter")
    expected = {name.removeprefix("backbone."): one for name, one in saved.items() if name.startswith("backbone.")}
    torch.testing.assert_close(applied, expected, atol=1e-6, rtol=0)
    still = {name for name, tensor in before.items() if torch.equal(tensor, expected[name])}
    fixed = {f"h.0.{layer}.weight" for layer in LAYERS} | {f"h.{n}.{layer}.bias" for n in range(3) for layer in LAYERS}
    assert still == fixed


def test_stopped_and_resumed_the_updates_end_as_if_left_alone(small_file, tiny_gpt2, before_step, tmp_path):  # noqa: F811
    """Stopped in the second epoch; the adapter of the first is the best so far."""
    chosen, stop_at = settings(small_file, tiny_gpt2, ADAPT="lora", NUM_EPOCHS=2), None
    before_step(lambda _, steps: signal.raise_signal(signal.SIGINT) if steps == stop_at else None)
    alone = fit_here(chosen, tmp_path / "alone")
    stop_at = alone.steps + 2
    with pytest.raises(KeyboardInterrupt):
        fit_here(chosen, tmp_path / "run")
    assert (tmp_path / "run" / "best_model" / "adapter").is_dir()
    stop_at = None
    fit_here(chosen, tmp_path / "run")
    files = {path.relative_to(tmp_path / "alone") for path in (tmp_path / "alone" / "best_model").rglob("*.*")}
    assert len(files) == 4
    for file in files:
        assert (tmp_path / "run" / file).read_bytes() == (tmp_path / "alone" / file).read_bytes()
