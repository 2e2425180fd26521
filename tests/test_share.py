"""Sharing a model: the card beside it, and push_to_hub and from_pretrained over HTTP, with a hub on this machine."""

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, cut, run
from huggingface_hub import ModelCard
from local_hub import TOKEN, LocalHub, local_hub

from EMG_DATA_LOADER import read_emg, split_windows
from emg_gpt2 import __version__
from emg_gpt2.base.errors import EMGError
from emg_gpt2.model.build import load_model
from emg_gpt2.model.card import MAYBE_PUTEMG, MYO, PUTEMG, SIMULATED, UNKNOWN, data_licence, facts_of_run, model_card
from emg_gpt2.model.files import save_model
from emg_gpt2.settings import Settings
from emg_gpt2.windows.reading import load_windows, open_windows

pytestmark = pytest.mark.usefixtures("one_thread")

RECORDINGS = [
    "emg_gestures-03-repeats_long-2018-05-11-11-05-00-695",
    "emg_gestures-11-sequential-2018-06-14-12-00-01-001",
]

FILES = ["README.md", "config.json", "model.safetensors"]


@pytest.fixture(scope="module")
def card(trained) -> ModelCard:
    return ModelCard.load(trained / "best_model" / "README.md")


# ---- the card -------------------------------------------------------------------------------------------------


def test_card_holds_the_figures_of_the_run(card, trained):
    metrics = json.loads((trained / "metrics.json").read_text(encoding="utf-8"))
    found = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert found == {
        "accuracy": pytest.approx(metrics["accuracy"], abs=1e-4),
        "balanced_accuracy": pytest.approx(metrics["balanced_accuracy"], abs=1e-4),
        "f1": pytest.approx(metrics["macro_f1"], abs=1e-4),
    }
    for name, one in metrics["per_class"].items():
        row = f"| {name} | {one['precision']:.3f} | {one['recall']:.3f} | {one['f1']:.3f} | {one['support']} |"
        assert row in card.text
    assert f"* chance, balanced: {1 / len(metrics['classes']):.3f}" in card.text
    assert f"| test | 1 | 1 | 2 | {metrics['n_test']} |" in card.text  # the second day's two recordings
    assert f"Split: {metrics['split_description']}." in card.text
    assert "The validation part was not trained on." in card.text
    assert "**Random weights:**" in card.text
    assert f"emg_gpt2 {__version__}, " in card.text
    assert f"torch {torch.__version__}" in card.text


def test_card_is_whole_markdown_with_metadata_for_the_hub(card, trained):
    text = (trained / "best_model" / "README.md").read_text(encoding="utf-8")
    metadata = yaml.safe_load(text.split("---\n")[1])
    assert metadata["library_name"] == "transformers"
    assert {"emg", "gesture-recognition", "emg-gpt2"} <= set(metadata["tags"])
    assert (metadata["license"], metadata["license_name"]) == ("other", "unknown")  # the fixture has no DATA_NOTE
    for table in re.findall(
        r"(?:^\|.*\n)+", text, re.MULTILINE
    ):  # rows that follow each other, all as wide as the head
        assert len({line.count("|") for line in table.splitlines()}) == 1
        assert len(table.splitlines()) > 2
    assert "{{" not in text
    assert "{%" not in text
    assert str(ROOT) not in text
    assert str(trained) not in text
    assert sorted(file.name for file in (trained / "best_model").iterdir()) == FILES


def test_a_model_is_saved_with_its_card_beside_other_files(trained, card, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    save_model(load_model(trained / "best_model"), card, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [*FILES, "notes.txt"]
    for name in ("README.md", "model.safetensors"):
        assert (tmp_path / name).read_bytes() == (trained / "best_model" / name).read_bytes()
    with pytest.raises(EMGError, match=r"notes\.txt: the model cannot be written"):
        save_model(load_model(trained / "best_model"), card, tmp_path / "notes.txt")


def code_of(folder: Path) -> str:
    """The Python of a card."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    return code


@pytest.fixture
def run_card(tmp_path, monkeypatch, capsys):
    """What the card's code prints in a folder with the model and the windows."""

    def printed(folder: Path, data: Path) -> list[str]:
        shutil.copytree(folder, tmp_path / "place" / "best_model")
        shutil.copy(data, tmp_path / "place" / "windows.parquet")
        monkeypatch.chdir(tmp_path / "place")
        exec(code_of(folder), {})
        return json.loads(capsys.readouterr().out.replace("'", '"'))

    return printed


def test_the_code_of_the_card_runs(trained, small_file, run_card):
    printed = run_card(trained / "best_model", small_file)
    windows, model = load_windows(Settings(DATA_LOCATION=small_file)), load_model(trained / "best_model")
    day = np.flatnonzero(windows.table["session"] == windows.table["session"][0])  # one person
    emg = read_emg(windows, day)
    with torch.no_grad():
        expected = model(emg=emg).logits.argmax(1)[:5]
    assert printed == [windows.class_names[index] for index in expected]


def test_the_preprocessing_of_the_card_makes_such_windows(card, raw_folder, small_file, tmp_path):
    (command,) = re.findall(r"```sh\npython (.*?)\n```", card.text, re.DOTALL)
    assert command.startswith("Preprocessing.py RECORDINGS --data-location windows.parquet ")
    one = next(raw_folder.glob("emg_gestures-03-repeats_short*.hdf5"))
    cut(one, "--data-location", tmp_path / "new.parquet", *shlex.split(command)[4:])
    made, known = (
        load_windows(Settings(DATA_LOCATION=path)).metadata for path in (tmp_path / "new.parquet", small_file)
    )
    assert (made["settings"], made["window"], made["unit"]) == (known["settings"], known["window"], known["unit"])


@pytest.mark.parametrize(
    ("notes", "recordings", "licence"),
    [
        (["SIMULATED by tools/simulate.py: no person was recorded."], RECORDINGS, SIMULATED),
        (["putEMG, 44 people"], RECORDINGS, PUTEMG),
        ([""], RECORDINGS, MAYBE_PUTEMG),
        ([""], [*RECORDINGS, "mine-1"], UNKNOWN),
        (["armband, real recordings"], ["mine-1"], UNKNOWN),
        (["SIMULATED", "putEMG"], RECORDINGS, PUTEMG),  # a model on simulated data, adapted to real ones
        (["SIMULATED", ""], ["mine-1"], UNKNOWN),
        (["ten people of aljazfrancic/myo-readings-dataset"], RECORDINGS, MYO),
    ],
)
def test_licence_is_the_strictest_that_the_data_may_have(notes, recordings, licence):
    assert data_licence(notes, recordings) == licence


def test_the_real_sample_names_its_people_and_its_licence():
    """The file says where it comes from, the notice is beside it, and a card of a model on it says so too."""
    path = ROOT / "MYO_10_people.parquet"
    windows = open_windows(path)
    assert path.stat().st_size < 15e6
    assert sorted(windows.table["subject"].unique()) == [f"{person:02d}" for person in range(1, 11)]
    assert (windows.table.groupby("subject")["session"].nunique() == 3).all()
    note = windows.metadata["note"]
    assert "aljazfrancic/myo-readings-dataset" in note
    assert "Copyright (c) 2021 Aljaž, MIT License" in note
    assert data_licence([note], windows.table["recording"].unique()) is MYO
    assert "Copyright (c) 2021 Aljaž" in (ROOT / "docs" / "licences" / "myo-readings-dataset.txt").read_text()


def test_licences_say_what_follows():
    assert (SIMULATED.key, PUTEMG.key, UNKNOWN.key) == ("mit", "cc-by-nc-4.0", "other")
    assert "no commercial use" in PUTEMG.words
    assert "not known" in UNKNOWN.words
    assert "CC BY-NC 4.0" in MAYBE_PUTEMG.words
    assert "simulated" in SIMULATED.words


def test_card_of_pretrained_weights_on_putemg_and_a_leaky_split(small_file, trained):
    settings = Settings(DATA_LOCATION=small_file, SPLIT="random")
    windows = load_windows(settings)
    split = split_windows(windows, settings)
    metrics = json.loads((trained / "metrics.json").read_text(encoding="utf-8"))
    facts = facts_of_run(windows, split, metrics | {"weights": "pretrained", "refit": True}, settings)
    config = load_model(trained / "best_model").config
    config.weights = "pretrained"
    made = model_card(config, facts._replace(notes=["putEMG"], licence=PUTEMG))
    assert made.data.base_model == "gpt2"
    assert (made.data.license, "putEMG" in made.data.tags) == ("cc-by-nc-4.0", True)
    assert "**Pretrained weights:**" in made.text
    assert "Random weights" not in made.text
    assert made.text.index("**leaky**") < made.text.index("## Figures")
    assert "no commercial use" in made.text
    assert "a new model was trained on training and validation part together" in made.text
    assert "ransductive" not in made.text


def test_the_card_of_a_transductive_test_says_so(small_file, trained):
    """Also where the hub shows nothing but the metric's name; its code measures the day."""
    settings = Settings(DATA_LOCATION=small_file)
    windows, metrics = load_windows(settings), json.loads((trained / "metrics.json").read_text(encoding="utf-8"))
    metrics |= {"transductive": True, "filter_crosses_split": True}
    facts = facts_of_run(windows, split_windows(windows, settings), metrics, settings)
    config = load_model(trained / "best_model").config
    config.scale = "session"
    made = model_card(config, facts)
    assert made.text.index("**transductive**") < made.text.index("## Figures")
    assert {one.metric_name for one in made.data.eval_results} == {
        "accuracy, transductive", "balanced accuracy, transductive", "macro F1, transductive"
    }  # fmt: skip
    assert "model(emg=emg, reference=measure_reference(emg))" in made.text
    assert "filtering crosses the split" in made.text


# ---- loading and pushing --------------------------------------------------------------------------------------


SHARE = """
import sys, torch
from emg_gpt2 import EMGConfig, EMGError, EMGForSequenceClassification, load_model
from transformers import AutoConfig, AutoModelForSequenceClassification

model = EMGForSequenceClassification.from_pretrained(sys.argv[1])
model.push_to_hub("somebody/emg", tags=["of-the-test"])
emg = 100 * torch.randn(3, 250, 8, generator=torch.Generator().manual_seed(0))
logits = model(emg=emg).logits
classes = (EMGForSequenceClassification, AutoModelForSequenceClassification)
for load in (load_model, *(one.from_pretrained for one in classes)):
    assert torch.equal(load("somebody/emg")(emg=emg).logits, logits)
assert type(AutoConfig.from_pretrained("somebody/emg")) is EMGConfig
cached = EMGForSequenceClassification.from_pretrained("somebody/emg", local_files_only=True)
assert torch.equal(cached(emg=emg).logits, logits)
EMGForSequenceClassification(model.config).push_to_hub("somebody/new")
for load in classes[0].from_pretrained, load_model:
    for name in ("somebody/pickled", "somebody/nothing", "somebody/damaged"):
        try:
            load(name)
        except EMGError as error:
            print(error)
"""


@pytest.fixture(scope="module")
def hub():
    with local_hub() as one:
        one.repositories["somebody/pickled"] = {"pytorch_model.bin": b"\\x80\\x04."}
        yield one


@pytest.fixture(scope="module")
def online(hub, tmp_path_factory) -> dict[str, str]:
    """The environment of a user of that hub; large files go by LFS, for xet has a protocol of its own."""
    home = {"HF_HOME": str(tmp_path_factory.mktemp("home")), "HF_TOKEN": TOKEN, "NO_PROXY": "127.0.0.1"}
    protocol = {"HF_HUB_DISABLE_XET": "1", "DISABLE_SAFETENSORS_CONVERSION": "1"}  # the converter is another server
    return home | protocol | {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0"}


@pytest.fixture(scope="module")
def shared(hub, online, trained) -> list[str]:
    """The lines of the script that pushes the model, loads it, and tries three that cannot be loaded."""
    folder = trained / "best_model"
    config, weights = ((folder / name).read_bytes() for name in ("config.json", "model.safetensors"))
    hub.repositories["somebody/pickled"]["config.json"] = config
    hub.repositories["somebody/damaged"] = {"config.json": config, "model.safetensors": weights[:-100]}
    done = run("-c", SHARE, folder, **online)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_push_to_hub_takes_config_weights_and_card(shared, hub: LocalHub, trained, card):
    files, folder = hub.repositories["somebody/emg"], trained / "best_model"
    assert hub.commits[0] == {"name": "somebody/emg", "files": FILES}
    assert files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    pushed = ModelCard(files["README.md"].decode())
    assert pushed.text == card.text
    assert pushed.data.tags == [*card.data.tags, "of-the-test"]
    assert pushed.data.eval_results == card.data.eval_results


def test_a_model_without_a_card_gets_the_one_of_transformers(shared, hub: LocalHub):
    assert sorted(hub.repositories["somebody/new"]) == FILES
    assert b"automatically generated" in hub.repositories["somebody/new"]["README.md"]


def test_pickles_missing_and_damaged_models_are_refused_in_a_sentence(shared):
    assert len(shared) == 6
    assert shared[:3] == shared[3:]  # from_pretrained and load_model
    for name, sentence in zip(("pickled", "nothing", "damaged"), shared[:3], strict=True):
        assert sentence.startswith(f"somebody/{name}: no model can be loaded (")
        assert sentence.endswith("name a best_model folder, or a model on the hub")
    assert "safetensors" in shared[0]


@pytest.mark.nightly
def test_personalise_takes_a_model_from_the_hub_and_its_card_says_so(shared, online, small_file, tmp_path, run_card):
    out = tmp_path / "out"
    flags = ["--subject", "03", "--session", "2018-06-14", "--repetitions", "2", "--keep", "personalised", "--out", out]
    done = run("-m", "emg_gpt2", "personalise", "somebody/emg", small_file, *flags, **online)
    assert done.returncode == 0, done.stderr
    found = json.loads((out / "personalise.json").read_text(encoding="utf-8"))
    (after,) = [one for one in found["figures"] if one["kind"] == "after"]
    own = ModelCard.load(out / "README.md")
    assert own.data.eval_results[1].metric_value == pytest.approx(after["balanced_accuracy"], abs=1e-4)
    assert "**Personalised** for subject 03, session 2018-06-14" in own.text
    assert f"| calibration | 1 | 1 | 1 | {found['n_calibration']} |" in own.text  # the day's first recording has two
    printed = run_card(out, small_file)
    windows, model = load_windows(Settings(DATA_LOCATION=small_file)), load_model(out)
    emg = read_emg(windows, np.flatnonzero(windows.table["session"] == "2018-06-14"))
    with torch.no_grad():
        assert printed == [windows.class_names[index] for index in model(emg=emg).logits.argmax(1)[:5]]
