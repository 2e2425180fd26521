"""Model folders and checkpoints from strangers: what is refused, and by which name."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from emg_gpt2.base.errors import EMGError
from emg_gpt2.model.build import build_model, load_model
from emg_gpt2.model.config import EMGConfig
from emg_gpt2.settings import Settings
from emg_gpt2.training.new_model import new_model
from emg_gpt2.training.task import load_task
from emg_gpt2.training.trainer import Trainer
from EMG_utils import fit
from stress import hostile_models


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """model/, gpt2/ and the other families of the programme hostile_models."""
    folder = tmp_path_factory.mktemp("models")
    hostile_models.make_models(folder)
    return folder


def changed(made: Path, to: Path, **changes) -> Path:
    shutil.copytree(made / "model", to)
    content = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps(content | changes))
    return to


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"window": 10**12}, "window"),
        ({"patch": 51}, "51"),
        ({"class_names": ["idle", "\x1b[2J"]}, r"class_names.1: has the control character '\x1b'"),
        ({"class_names": ["idle"]}, "class_names"),
        ({"class_codes": [1, 1]}, "class_codes"),
        ({"backbone": {"n_embd": 16, "n_head": 2, "n_layer": 200, "n_positions": 64}}, "backbone.h.2."),
        ({"backbone": {"n_embd": 16, "n_head": 3, "n_layer": 2}}, "n_head = 3"),
        ({"backbone": {"n_embd": 16, "n_head": 2, "n_layer": 10**9}}, "n_layer"),
        ({"preprocessing": {"SOMETHING": 1}}, "SOMETHING"),
    ],
)
def test_a_config_that_cannot_be_is_refused_by_the_name_of_the_value(made, tmp_path, changes, named):
    with pytest.raises(EMGError) as caught:
        load_model(changed(made, tmp_path / "model", **changes))
    assert named in str(caught.value)
    assert str(caught.value).isprintable()


def test_what_would_fetch_or_run_code_is_left_out_of_a_config(made, tmp_path):
    keys = {"auto_map": {"AutoModel": "x.X"}, "quantization_config": {"quant_method": "gptq"}, "dtype": "load"}
    keys |= {"attn_implementation": "strangers/kernel", "transformers_weights": "x", "id2label": {"0": "<script>"}}
    folder = changed(made, tmp_path / "model", **keys)
    for config in (EMGConfig.from_pretrained(folder), load_model(folder).config):
        left = config.to_dict()
        assert not {"auto_map", "quantization_config", "transformers_weights"} & left.keys()
        assert left["id2label"] == {0: "idle", 1: "fist"}
        assert "strangers" not in json.dumps(left, default=str)


def test_a_backbone_in_parts_and_of_half_the_digits_is_taken(made, tmp_path):
    """Two files, as transformers cuts large ones, without the list of them; the weights become single precision."""
    weights = load_file(made / "gpt2" / "model.safetensors")
    (tmp_path / "config.json").write_bytes((made / "gpt2" / "config.json").read_bytes())
    for number, part in enumerate((sorted(weights)[::2], sorted(weights)[1::2])):
        save_file({name: weights[name].half() for name in part}, tmp_path / f"model-{number}.safetensors")
    model = build_model(EMGConfig(), str(tmp_path), "require", 1)
    found = model.backbone.h[0].mlp.c_fc.weight
    assert found.dtype == torch.float32
    assert torch.equal(found, weights["h.0.mlp.c_fc.weight"].half().float())


# ---- the state of a run -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def interrupted(small_file, made, tmp_path_factory):
    """A task, settings, and a run with a checkpoint before its first step."""
    settings = Settings(DATA_LOCATION=small_file, MODEL_NAME=str(made / "gpt2"), BLOCKS=1, PRECISION="fp32", FILTERS=2)
    run, task = tmp_path_factory.mktemp("interrupted") / "run", load_task(settings)
    run.mkdir()
    trainer = Trainer(new_model(task, settings), task, settings, settings.NUM_EPOCHS, run)
    trainer.checkpoints.write(trainer.history, trainer.sums, ended=False)
    return task, settings, run


@pytest.fixture
def refusal(interrupted, tmp_path):
    """refusal(name, change): what `fit` says of a file of last/ after change(path)."""
    task, settings, run = interrupted

    def resume(name: str, change) -> str:
        copy = shutil.copytree(run, tmp_path / "run")
        change(copy / "last" / name)
        with pytest.raises(EMGError, match="the state cannot be read") as caught:
            fit(new_model(task, settings), task, settings, copy)
        assert str(caught.value).startswith(f"{copy / 'last'}: ")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return resume


def test_a_checkpoint_holds_no_pickle(interrupted):
    names = [path.name for path in (interrupted[2] / "last").iterdir()]
    assert sorted(names) == ["epoch.json", "history.json", "state.safetensors"]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("state.safetensors", b"\x80\x04.", "header too small"),
        ("history.json", b"[" * 10_000, "recursion limit exceeded"),
        ("history.json", b'[{"epoch": "x"}]', "0.epoch"),
        ("epoch.json", b'{"step": 1}', "seconds"),
        ("epoch.json", b'{"step": 99999, "seconds": 0, "lr_sum": 0, "loss_sum": 0, "right": 0}', "step 99999 of"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(refusal, name, content, reason):
    assert reason in refusal(name, lambda path: path.write_bytes(content))


def test_a_missing_state_is_refused(refusal):
    assert "there is no state.safetensors" in refusal("state.safetensors", Path.unlink)


def test_moments_of_another_shape_are_refused(refusal):
    def add(path: Path) -> None:
        save_file(load_file(path) | {"optimizer.0.exp_avg": torch.zeros(3)}, path)

    assert "the optimiser's state of parameter 0 does not fit it" in refusal("state.safetensors", add)
