"""export: ONNX Runtime gives torch's logits for any model; what the files hold; and what goes wrong.

An export costs ten seconds of torch.export, so one model is exported by default and the others nightly.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
import scipy.linalg
import torch
from conftest import run

from EMG_DATA_LOADER import read_emg
from emg_gpt2 import __version__
from emg_gpt2.base.errors import EMGError
from emg_gpt2.commands import export
from emg_gpt2.model.build import load_model
from emg_gpt2.model.config import EMGConfig
from emg_gpt2.model.model import EMGForSequenceClassification
from emg_gpt2.model.normalise import (
    Reference,
    log_covariance,
    matrix_logarithm,
    measure_reference,
    shrunk_covariance,
    upper_triangle,
)
from emg_gpt2.settings import Settings
from emg_gpt2.study import exporting
from emg_gpt2.study.onnx_model import logarithm_by_products
from emg_gpt2.windows.reading import load_windows

pytestmark = pytest.mark.usefixtures("one_thread")


def session_of(folder: Path, name: str = "model.onnx") -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(folder / name, providers=["CPUExecutionProvider"])


def run_onnx(
    session: onnxruntime.InferenceSession, emg: torch.Tensor, reference: Reference | None = None
) -> np.ndarray:
    """Logits; without a reference, against the file's own."""
    given = reference._asdict() if reference else {}
    return session.run(["logits"], {"emg": emg.numpy()} | {name: tensor.numpy() for name, tensor in given.items()})[0]


@torch.no_grad()
def run_torch(model: EMGForSequenceClassification, emg: torch.Tensor, reference: Reference | None = None) -> np.ndarray:
    return model(emg=emg, reference=reference).logits.numpy()


# ---- the matrix logarithm ---------------------------------------------------------------------------------------


def hard_windows(channels: int) -> torch.Tensor:
    """(7, 250, C): plain, all zero, silent electrode, one source for all, few samples, loud and faint."""
    signal = torch.randn(7, 250, channels, generator=torch.Generator().manual_seed(channels))
    signal[1], signal[2, :, 0] = 0, 0
    signal[3] = signal[3, :, :1]
    signal[4, 3:] = 0  # rank 3 at the most
    signal[5] *= 1e4 * torch.linspace(0.01, 1, channels)
    signal[6] *= 1e-5
    return signal


@pytest.mark.filterwarnings("ignore:logm result may be inaccurate")
@pytest.mark.parametrize("channels", [1, 2, 8, 24])
def test_products_give_the_matrix_logarithm(channels):
    matrices = shrunk_covariance(hard_windows(channels))
    expected = np.stack([scipy.linalg.logm(one) for one in matrices.numpy()])
    assert np.allclose(logarithm_by_products(matrices), expected, rtol=0, atol=1e-8)
    assert np.allclose(matrix_logarithm(matrices), expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("channels", [1, 24])
def test_log_covariances_are_those_of_products(channels):
    signal = hard_windows(channels)
    products = upper_triangle(logarithm_by_products(shrunk_covariance(signal)))
    assert log_covariance(signal).dtype == torch.float32
    assert torch.allclose(log_covariance(signal).double(), products, rtol=0, atol=1e-6)  # logarithms down to −15


# ---- any model --------------------------------------------------------------------------------------------------

MODELS = {  # tokens, blocks, linear path, channels, window: 260 samples are no whole number of patches
    "all tokens": (["covariance", "power", "bands", "raw"], 1, False, 3, 260),
    "default": (["covariance", "power"], 2, True, 24, 250),
    "no backbone": (["raw"], 0, True, 1, 250),
    "llama": (["covariance", "raw"], 2, False, 2, 250),
}
LLAMA = {"model_type": "llama", "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
LLAMA |= {"num_hidden_layers": 2, "intermediate_size": 48}
NIGHTLY = [pytest.param(name, marks=pytest.mark.nightly) for name in list(MODELS)[1:]]


def random_model(name: str) -> EMGForSequenceClassification:
    """Every weight and buffer drawn, so that none may be left out; measured on windows of four strengths."""
    tokens, blocks, linear_path, channels, window = MODELS[name]
    gpt2 = {"n_embd": 32, "n_layer": blocks, "n_head": 2, "activation_function": "gelu_new"}
    torch.manual_seed(3)
    model = EMGForSequenceClassification(
        EMGConfig(
            backbone=LLAMA if name == "llama" else gpt2,
            tokens=tokens,
            channels=[f"E{number}" for number in range(channels)],
            class_codes=[0, 3, 9],
            class_names=["rest", "Zeigefinger öffnen", "fist"],
            filters=4,
            linear_path=linear_path,
            window=window,
            unit="µV",
            preprocessing={"FILTER": "causal", "BAND_HZ": [20, 400]},
            data_note="Drawn.",
        )
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.add_(torch.rand_like(buffer))
    model.set_reference(measure_reference(some_windows(model, 200)))
    return model


def some_windows(model: EMGForSequenceClassification, count: int) -> torch.Tensor:
    """(count, T, C) of neighbouring electrodes that hear each other, of 5 to 40 µV."""
    channels = len(model.config.channels)
    mixing = torch.eye(channels) + 0.5 * torch.eye(channels).roll(1, 0)
    strength = torch.tensor([5.0, 10, 20, 40])[torch.arange(count) % 4]
    return torch.randn(count, model.config.window, channels) @ mixing * strength[:, None, None]


@pytest.fixture(scope="module", params=["all tokens", *NIGHTLY])
def exported(request, tmp_path_factory) -> tuple[EMGForSequenceClassification, Path, str]:
    """A model, the folder of its files, and its key in MODELS."""
    model, folder = random_model(request.param), tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    assert export.main([str(folder)]) == 0
    return load_model(folder), folder / "onnx", request.param


@pytest.mark.parametrize("count", [1, 100])
def test_onnx_runtime_gives_the_logits_of_torch(exported, count):
    """Against the file's own reference, that of one session, and one for every window."""
    model, folder, _ = exported
    session, emg = session_of(folder), some_windows(model, count)
    one = measure_reference(some_windows(model, 50))
    each = Reference(*(tensor * (1 + 0.2 * torch.rand(count, 1)) for tensor in one))
    for reference in (None, one, each):
        found = run_onnx(session, emg, reference)
        assert found.shape == (count, 3)
        assert np.abs(found - run_torch(model, emg, reference)).max() < 1e-4


def test_silent_electrodes_do_not_matter(exported):
    """Far from what was trained on, logits are large, and their last digits with them."""
    model, folder, _ = exported
    emg = some_windows(model, 3)
    emg[0], emg[1, :, 0] = 0, 0
    assert np.allclose(run_onnx(session_of(folder), emg), run_torch(model, emg), rtol=1e-5, atol=1e-4)


def test_a_session_can_be_measured_with_the_file_alone(exported):
    """In numpy, as the README says, for a session without a silent electrode."""
    model, folder, _ = exported
    emg, session = some_windows(model, 80), session_of(folder)
    samples = emg.numpy() - emg.numpy().mean(1, keepdims=True)
    scale = samples.std(axis=(0, 1))[None]
    (found,) = session.run(["log_covariance"], {"emg": emg.numpy(), "scale": scale})
    expected = measure_reference(emg)
    assert np.allclose(scale, expected.scale, rtol=1e-5)
    assert np.allclose(found.mean(0), expected.centre[0], atol=1e-5)
    assert np.allclose(np.maximum(found.std(0), 0.05), expected.spread[0], atol=1e-5)


def test_probabilities_are_those_of_the_logits(exported):
    model, folder, _ = exported
    emg = some_windows(model, 5)
    logits, probabilities = session_of(folder).run(["logits", "probabilities"], {"emg": emg.numpy()})
    assert np.allclose(probabilities, torch.from_numpy(logits).softmax(1), atol=1e-6)


def test_the_file_describes_itself(exported):
    _, folder, name = exported
    tokens, blocks, linear_path, channels, window = MODELS[name]
    found = session_of(folder).get_modelmeta().custom_metadata_map
    layers = "num_hidden_layers" if name == "llama" else "n_layer"
    texts = {key: found[key] for key in ("unit", "weights", "data_note")}
    assert texts == {"unit": "µV", "weights": "random", "data_note": "Drawn."}
    others = {key: json.loads(value) for key, value in found.items() if key not in texts}
    assert (others["class_codes"], others["class_names"]) == ([0, 3, 9], ["rest", "Zeigefinger öffnen", "fist"])
    assert (others["sampling_rate"], others["window"], len(others["channels"])) == (1000, window, channels)
    assert others["preprocessing"] == {"FILTER": "causal", "BAND_HZ": [20, 400]}
    assert (others["tokens"], others["linear_path"], others["backbone"][layers]) == (tokens, linear_path, blocks)
    assert others["versions"]["torch"] == torch.__version__
    assert others["versions"]["emg_gpt2"] == __version__
    assert set(others["inputs"]) == {"emg", "scale", "centre", "spread"}


def test_every_way_to_run_the_model_is_measured(exported):
    """No accuracy on noise, which has no labels."""
    _, folder, name = exported
    measured = read(folder, "export.json")
    assert measured["windows"] == "256 windows of noise"
    files = {"onnx float32": "model.onnx"} | ({"onnx int8": "model.int8.onnx"} if MODELS[name][1] else {})
    assert list(measured["variants"]) == ["torch float32", *files]
    for way, row in measured["variants"].items():
        assert 0 < row["median_ms"] <= row["p99_ms"]
        assert row["windows_per_second"] > 0
        assert "accuracy" not in row
        if way in files:
            assert row["megabytes"] == (folder / files[way]).stat().st_size / 1e6


def test_the_matrices_of_the_blocks_are_of_eight_bits_and_no_others(exported):
    """Four in each block of GPT-2, seven in each of Llama; the rest is as in the float32 file. No blocks, no file."""
    model, folder, name = exported
    blocks = MODELS[name][1]
    names = {path.name for path in folder.iterdir()}
    assert names == {"model.onnx", "export.json"} | ({"model.int8.onnx"} if blocks else set())
    if not blocks:
        return
    small = onnx.load(folder / "model.int8.onnx")
    matrices = [one for one in small.graph.initializer if one.data_type == onnx.TensorProto.INT8 and len(one.dims) == 2]
    expected = (7 if name == "llama" else 4) * blocks
    assert len(matrices) == expected
    assert name == "llama" or all("backbone.h." in one.name for one in matrices)
    products = [node for node in small.graph.node if node.op_type == "MatMulInteger"]
    assert len(products) == expected
    emg = some_windows(model, 100)
    exact, found = run_torch(model, emg), run_onnx(session_of(folder, "model.int8.onnx"), emg)
    assert 0 < np.abs(found - exact).max() < 0.05 * np.abs(exact).max()


# ---- a run ------------------------------------------------------------------------------------------------------


def read(folder: Path, name: str) -> dict:
    return json.loads((folder / name).read_text(encoding="utf-8"))


def test_a_run_is_compared_on_its_test_part(trained):
    """The model's accuracy there is that which main.py wrote down."""
    model, metrics = load_model(exporting.find_model(trained)), read(trained, "metrics.json")
    sample = exporting.sample_of_run(trained, model)
    assert sample.description == f"{metrics['n_test']} of the {metrics['n_test']} test windows of small.parquet"
    logits = exporting.run_all(lambda emg, reference: run_torch(model, emg, reference), sample)
    found = exporting.accuracies(logits, sample.targets)
    assert found == {name: pytest.approx(metrics[name]) for name in ("accuracy", "balanced_accuracy")}


def test_without_its_data_a_run_is_compared_on_noise(trained, tmp_path, caplog):
    for name in ("split.csv", "env.json"):
        shutil.copy(trained / name, tmp_path)
    (tmp_path / "env.json").write_text(json.dumps(read(trained, "env.json") | {"DATA_LOCATION": "/gone.parquet"}))
    sample = exporting.sample_of_run(tmp_path, load_model(trained / "best_model"))
    assert (sample.description, sample.targets) == ("256 windows of noise", None)
    assert "noise in place of the test part: /gone.parquet" in caplog.text
    assert exporting.accuracies(np.zeros((256, 3)), sample.targets) == {}


@pytest.fixture(scope="module")
def finished(trained, tmp_path_factory):
    """What the command said about a run, and the folder of the files."""
    folder = tmp_path_factory.mktemp("files")
    done = run("-m", "emg_gpt2", "export", trained, "--format", "onnx", "--out", folder)
    assert done.returncode == 0, done.stderr
    return done, folder


@pytest.mark.nightly
def test_a_run_is_exported_and_measured_on_its_test_part(trained, finished):
    """The figures of torch are those that main.py wrote down; those of the files follow from running them."""
    measured, metrics = read(finished[1], "export.json"), read(trained, "metrics.json")
    first, exact, small = measured["variants"].values()
    assert first["accuracy"] == exact["accuracy"] == pytest.approx(metrics["accuracy"])
    assert first["balanced_accuracy"] == exact["balanced_accuracy"] == pytest.approx(metrics["balanced_accuracy"])
    assert exact["max_logit_difference"] < 1e-4
    assert (first["agreement"], exact["agreement"]) == (1, 1)
    assert small["agreement"] > 0.9


@pytest.mark.nightly
def test_the_file_gives_the_probabilities_of_the_run(trained, finished, small_file):
    """Its own reference and the test part's: predictions.parquet was made with that of each day's test windows."""
    windows, split = load_windows(Settings(DATA_LOCATION=small_file)), pd.read_csv(trained / "split.csv")
    predictions = pd.read_parquet(trained / "predictions.parquet")
    session, rows = session_of(finished[1]), np.flatnonzero(split["part"] == "test")
    days = split["session"].to_numpy()[rows]
    for day in sorted(set(days)):
        emg = read_emg(windows, rows[days == day])
        found = torch.from_numpy(run_onnx(session, emg, measure_reference(emg))).softmax(1)
        assert np.allclose(found, predictions.filter(like="p_")[days == day], atol=1e-4)


@pytest.mark.nightly
def test_the_terminal_shows_the_table_and_nothing_else(finished):
    done, folder = finished
    assert done.stderr.splitlines() == [
        "writing model.onnx",
        "writing model.int8.onnx",
        f"comparing and timing them on {read(folder, 'export.json')['windows']}",
        f"{folder}: model.onnx, model.int8.onnx, export.json",
    ]
    for words in ("torch float32", "onnx int8", "balanced accuracy", "one window, p99 (ms)", "size (MB)"):
        assert words in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


# ---- what goes wrong --------------------------------------------------------------------------------------------


def failure(capsys, *arguments: str | Path) -> str:
    """The one sentence on standard error, after what the tool was doing."""
    assert export.main([*map(str, arguments)]) == 1
    return capsys.readouterr().err.splitlines()[-1]


def test_a_folder_without_a_model_is_named(tmp_path, capsys):
    assert failure(capsys, tmp_path) == (
        f"export: {tmp_path}: there is no model; name a folder under runs, or a best_model folder"
    )


def test_missing_packages_are_named(tmp_path, capsys, monkeypatch):
    """None in sys.modules is how Python is told that there is no such module."""
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert failure(capsys, tmp_path) == "export: packages are missing; pip install onnx onnxruntime onnxscript"


def test_logits_that_differ_are_an_error():
    exporting.check_logits({"max_logit_difference": 1e-4})
    for difference in (2e-4, float("nan")):
        with pytest.raises(EMGError, match=r"more than 0\.0001"):
            exporting.check_logits({"max_logit_difference": difference})


@pytest.mark.nightly
def test_a_file_that_is_not_the_model_is_not_left_behind(tmp_path_factory, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(exporting, "TOLERANCE", 0.0)
    random_model("no backbone").save_pretrained(folder := tmp_path_factory.mktemp("model"))
    message = failure(capsys, folder, "--out", tmp_path)
    assert message.startswith("export: the exported model's logits differ from torch's by up to ")
    assert not list(tmp_path.iterdir())


def test_a_wrong_format_is_named(tmp_path, capsys):
    assert "argument --format: invalid choice: 'tflite'" in failure(capsys, tmp_path, "--format", "tflite")
