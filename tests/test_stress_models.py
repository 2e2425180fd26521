"""Checkpoints, model folders and run folders of strangers, and the programme that would notice if they got through."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save, save_file

import main
from emg_gpt2.base.errors import EMGError
from emg_gpt2.model.build import build_model, load_model
from emg_gpt2.model.config import EMGConfig
from emg_gpt2.model.model import EMGForSequenceClassification
from stress import hostile_models
from stress.row import Row

CARELESS = """
import sys, torch
from pathlib import Path
import EMG_build
from emg_gpt2.base.errors import EMGError
from tools.stress import victim

def load(folder):
    for path in Path(folder).glob("*.bin"):
        torch.load(path, weights_only=False)
    (Path(folder).parents[1] / "stray").write_text("")
    raise EMGError("\\x1b[2Jno model")

def build(folder):
    return {"{}"}["config"]

victim.CALLS |= {"load": load, "build": build}
victim.serve(int(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> tuple[Path, list[Row]]:
    """Where the programme ran, and its rows."""
    folder = tmp_path_factory.mktemp("stress")
    return folder, list(hostile_models.rows(False, folder, 0, print))


@pytest.fixture
def made(ran) -> Path:
    """Its models and runs."""
    return ran[0]


def test_nothing_is_lost(ran):
    """Per folder and call: 2 pickles with and without the weights, 9 kinds of code, 2 tools; 15 strange tensors; 40
    values and 7 texts."""
    rows = ran[1]
    assert [row.lost for row in rows] == [[]] * 8
    plants, tensors, configs, mutated_configs, mutated_weights, states, files, pages = rows
    assert plants.times == 2 * (2 * 2 + 9) + 2
    assert plants.refused == 2 * 2 + 2  # those in place of the weights
    assert (tensors.times, tensors.right) == (2 * 15 + 5, 0)
    assert configs.times == 2 * (40 + 7)
    assert (mutated_configs.times, mutated_weights.times, files.times) == hostile_models.TRIES[False]
    assert (states.refused, states.right) == (2, 2)  # in place of the state; beside it, and in a finished run
    assert (pages.times, pages.right) == (3, 3)
    assert max(row.megabytes for row in rows) < hostile_models.MEGABYTES


def test_the_programme_notices_a_loader_that_is_careless(made, monkeypatch):
    """One that unpickles, writes elsewhere, lets a terminal be cleared, and ends in a traceback."""
    monkeypatch.setattr(hostile_models, "VICTIM", [sys.executable, "-c", CARELESS])
    with hostile_models.Sandbox(made) as sandbox:
        tries = list(hostile_models.model_plants(sandbox))[:2]
        row = hostile_models.tried(sandbox, "", iter(tries))
        assert row.lost[0] == "load of pickles: the pickle or code was run"
        assert row.lost[1].startswith("build of pickles: a traceback, TypeError")
        no_pickle = [("load", "model", hostile_models.odd_value(("noise",), 0.5))] * 2
        row = hostile_models.tried(sandbox, "", iter(no_pickle))
        assert row.lost[0].endswith("stray was made or removed")
        assert row.lost[1] == "load of noise = '0.5': no sentence but '\\x1b[2Jno model'"


def test_the_programme_notices_a_process_that_dies(made, monkeypatch):
    monkeypatch.setattr(hostile_models, "VICTIM", [sys.executable, "-c", "input(); import os; os.abort()"])
    with hostile_models.Sandbox(made) as sandbox:
        row = hostile_models.tried(sandbox, "", hostile_models.mutated_files(made, "config.json", 2, seeded()))
    assert [sentence.partition(": ")[2] for sentence in row.lost] == ["the process ended with -6, or after 60 s"] * 2


def seeded():
    return np.random.default_rng(0)


# ---- one by one -----------------------------------------------------------------------------------------------


def spoilt(made: Path, to: Path, **changes) -> Path:
    shutil.copytree(made / "model", to)
    content = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps(content | changes))
    return to


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"window": 10**12}, "window: input should be less than or equal to 10000000"),
        ({"patch": 51}, "a window of 100 samples holds no two patches of 51"),
        ({"rotation": 10_000, "channels": ["a"] * 100}, "rotation = 10000 is too much for 100 channels"),
        ({"class_names": ["idle", "\x1b[2J"]}, r"class_names.1: has the control character '\x1b'"),
        ({"class_names": ["idle"]}, "1 class_names for 2 class_codes"),
        ({"class_codes": [1, 1]}, "class_codes has the same one twice"),
        ({"filters": 256, "filter_taps": 9999}, "its config makes tokenisers.power.filters (256, 9999), and in its"),
        ({"backbone": {"n_embd": 16, "n_head": 2, "n_layer": 200, "n_positions": 64}}, "200 blocks, its weights 2"),
        ({"backbone": {"n_embd": 16, "n_head": 3, "n_layer": 2}}, "backbone: n_embd = 16 is no multiple of n_head = 3"),
        ({"backbone": {"n_embd": 16, "n_head": 2, "n_layer": 10**9}}, "backbone.n_layer: input should be less than"),
        ({"preprocessing": {"FILTER": "other"}}, "FILTER: input should be 'putemg', 'causal' or 'none'"),
        ({"preprocessing": {"SOMETHING": 1}}, "SOMETHING: extra inputs are not permitted"),
    ],
)
def test_a_claim_is_refused_by_its_name(made, tmp_path, changes, reason):
    with pytest.raises(EMGError) as caught:
        load_model(spoilt(made, tmp_path / "model", **changes))
    assert reason in str(caught.value)
    assert str(caught.value).isprintable()


def test_what_would_fetch_or_run_code_is_left_out_of_a_config(made, tmp_path):
    keys = {"auto_map": {"AutoModel": "x.X"}, "quantization_config": {"quant_method": "gptq"}, "dtype": "load"}
    keys |= {"attn_implementation": "strangers/kernel", "transformers_weights": "x", "id2label": {"0": "<script>"}}
    folder = spoilt(made, tmp_path / "model", **keys)
    for config in (EMGConfig.from_pretrained(folder), load_model(folder).config):
        left = config.to_dict()
        assert not {"auto_map", "quantization_config", "transformers_weights"} & left.keys()
        assert left["id2label"] == {0: "idle", 1: "fist"}
        assert "strangers" not in json.dumps(left, default=str)


def test_a_loaded_model_turns_its_rings_as_one_that_was_made(made):
    """They are not among its weights; a model that transformers loads had whatever lay in memory."""
    for model in (load_model(made / "model"), EMGForSequenceClassification.from_pretrained(made / "model")):
        assert model.augmentation.channels.tolist() == [[1, 0], [0, 1], [1, 0]]
        assert model.augmentation.pairs.tolist() == [[2, 1, 0], [0, 1, 2], [2, 1, 0]]


def test_a_backbone_in_parts_and_of_half_the_digits_is_taken(made, tmp_path):
    """Two files, as transformers cuts large ones, without the list of them; the weights become single precision."""
    weights = load_file(made / "backbone" / "model.safetensors")
    (tmp_path / "config.json").write_bytes((made / "backbone" / "config.json").read_bytes())
    for number, part in enumerate((sorted(weights)[::2], sorted(weights)[1::2])):
        save_file({name: weights[name].half() for name in part}, tmp_path / f"model-{number}.safetensors")
    model = build_model(EMGConfig(), str(tmp_path), "require", 1)
    found = model.backbone.h[0].mlp.c_fc.weight
    assert found.dtype == torch.float32
    assert torch.equal(found, weights["h.0.mlp.c_fc.weight"].half().float())


# ---- the state of a run -----------------------------------------------------------------------------------------


@pytest.fixture
def resumed(made, tmp_path, monkeypatch, capsys) -> Callable[[str, bytes | None], str]:
    """What main.py --resume says to a file of last/ that has other content, or is not there."""

    def refusal(name: str, content: bytes | None) -> str:
        shutil.copytree(made / "interrupted", tmp_path / "run")
        path = tmp_path / "run" / "last" / name
        path.unlink() if content is None else path.write_bytes(content)
        monkeypatch.setattr(sys, "argv", ["main.py", "--resume", str(tmp_path / "run")])
        assert main.main() == 1
        said = capsys.readouterr().err
        assert said.startswith(f"main.py: {tmp_path / 'run' / 'last'}: the state cannot be read (")
        assert said.endswith("; start a new run\n")
        assert said.count("\n") == 1
        return said

    return refusal


def test_a_checkpoint_holds_no_pickle(made):
    assert sorted(path.name for path in (made / "interrupted" / "last").iterdir()) == [
        "epoch.json",
        "history.json",
        "state.safetensors",
    ]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("state.safetensors", None, "there is no state.safetensors"),
        ("state.safetensors", b"\x80\x04.", "header too small"),
        ("history.json", b"[" * 10_000, "recursion limit exceeded"),
        ("history.json", b'[{"epoch": "x"}]', "0.epoch: input should be a valid integer"),
        ("epoch.json", b'{"step": 1}', "seconds: field required"),
        ("epoch.json", b'{"step": 99999, "seconds": 0, "lr_sum": 0, "loss_sum": 0, "right": 0}', "step 99999 of"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(resumed, name, content, reason):
    assert reason in resumed(name, content)


def test_moments_of_another_shape_are_refused(made, resumed):
    state = load_file(made / "interrupted" / "last" / "state.safetensors")
    assert "the optimiser's state of parameter 0 does not fit it" in resumed(
        "state.safetensors", save(state | {"optimizer.0.exp_avg": torch.zeros(3)})
    )


def test_weights_that_are_no_numbers_are_refused(made, tmp_path):
    folder = shutil.copytree(made / "model", tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["head.weight"][0, 0] = float("nan")
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(EMGError, match="some of its weights are no numbers"):
        load_model(folder)
