"""docs/tour.ipynb: every cell runs, in a copy of the project, and the stored outputs are fit to be read."""

import json
import re
import shutil

import nbformat
import pandas as pd
import pytest
from conftest import ROOT
from nbclient import NotebookClient

TOUR = ROOT / "docs" / "tour.ipynb"
COPIED = ["*.py", "emg_gpt2/**/*.py*", "emg_gpt2/**/*.html", "models/*/*", "docs/tour.ipynb"]


@pytest.fixture(scope="module")
def toured(tmp_path_factory):
    """The project's copy in which the notebook was run, and the notebook with the outputs of that."""
    project = tmp_path_factory.mktemp("project")
    for file in (file for pattern in COPIED for file in ROOT.glob(pattern)):
        copy = project / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)
    notebook = nbformat.read(project / "docs" / "tour.ipynb", as_version=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("HF_HUB_OFFLINE", "1")
        where = {"metadata": {"path": str(project / "docs")}}
        NotebookClient(notebook, timeout=600, resources=where).execute()  # raises where a cell does
    return project / "runs" / "tour", notebook


@pytest.mark.nightly
def test_the_tour_leads_from_signals_to_predictions(toured):
    tour, _ = toured
    chance = 1 / 8
    metrics = json.loads((tour / "run" / "metrics.json").read_text())
    assert metrics["balanced_accuracy"] > 3 * chance
    evaluation = json.loads((tour / "evaluation" / "evaluation.json").read_text())
    assert len(evaluation["folds"]) == 3
    assert evaluation["failed"] == {}
    (table,) = (tour / "predictions").glob("*.csv")
    split = pd.read_csv(tour / "run" / "split.csv", dtype=str).set_index("recording")["part"]
    assert set(split.loc[table.stem]) == {"test"}
    decided = pd.read_csv(table)
    labelled = decided[decided["label"] >= 0]
    names = {int(code): name for code, name in metrics["classes"].items()}
    assert (labelled["gesture"] == labelled["label"].map(names)).mean() > 0.5
    for picture in ("run/confusion_matrix.png", "evaluation/evaluation.png", f"predictions/{table.stem}.png"):
        assert (tour / picture).stat().st_size > 10_000


@pytest.mark.nightly
def test_the_tour_shows_its_pictures_and_plain_text(toured):
    check_outputs(toured[1])


def test_the_stored_tour_shows_its_pictures_and_plain_text():
    check_outputs(nbformat.read(TOUR, as_version=4))


def check_outputs(notebook: nbformat.NotebookNode) -> None:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    said = "".join(output["text"] for output in outputs if output.output_type == "stream")
    assert "\x1b" not in said
    assert "\r" not in said
    assert said.count("$ python ") == 6


def test_the_stored_tour_is_small_and_names_no_place_of_the_machine_that_made_it():
    stored = TOUR.read_text(encoding="utf-8")
    assert len(stored) < 1_000_000
    assert str(ROOT) not in stored
    assert not re.search(r"/(tmp|home|root)/|C:\\\\", stored)
