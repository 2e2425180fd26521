"""The stress programme's properties: the true number of examples, and a planted flaw that they find."""

import shutil

import pytest
from conftest import ROOT

from stress import properties

ONE = "tests/test_properties.py::test_every_eligible_window_is_there_once_with_its_own_samples"


def run_programme(folder, nightly=False):
    said = []
    return list(properties.rows(nightly, folder, 0, said.append)), said


def test_a_row_counts_the_examples_of_its_property(monkeypatch, tmp_path):
    monkeypatch.setattr(
        properties, "TESTS", f"{ONE.partition('::')[0]}::test_class_weights_give_every_class_the_same_say"
    )
    (row,), said = run_programme(tmp_path, nightly=True)
    assert (row.tried, row.times, row.lost) == ("class weights give every class the same say", 1000, [])
    assert said == ["class weights give every class the same say: held"]


def test_a_planted_flaw_is_lost_with_its_smallest_example(monkeypatch, tmp_path):
    """Repetitions keep the end that should be trimmed."""
    copy = tmp_path / "copy"
    shutil.copytree(ROOT / "tests", copy / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "tools", copy / "tools", ignore=shutil.ignore_patterns("__pycache__"))
    for path in [*ROOT.glob("*.py"), ROOT / "pyproject.toml"]:
        shutil.copy(path, copy)
    right = (copy / "EMG_windows.py").read_text(encoding="utf-8")
    assert right.count("end - trim_end - layout.window") == 1
    flawed = right.replace("end - trim_end - layout.window", "end - layout.window")
    (copy / "EMG_windows.py").write_text(flawed, encoding="utf-8")
    monkeypatch.setattr(properties, "ROOT", copy)
    monkeypatch.setattr(properties, "TESTS", ONE)
    (row,), said = run_programme(tmp_path)
    (sentence,) = row.lost
    assert "trims=(0, 1)" in sentence  # the smallest that shows it
    assert f"python -m pytest {ONE}" in sentence
    assert "\n" not in sentence
    assert said[-1].endswith(": failed")


@pytest.mark.parametrize(
    ("name", "value", "reason"), [("PACKAGES", ("nonesuch",), "pip install"), ("TESTS", "gone.py", "checkout")]
)
def test_what_is_missing_is_said(monkeypatch, tmp_path, name, value, reason):
    monkeypatch.setattr(properties, name, value)
    (row,), _ = run_programme(tmp_path)
    assert row.times == 0
    assert reason in row.note


def test_tests_that_do_not_run_are_lost(monkeypatch, tmp_path):
    monkeypatch.setattr(properties, "run_tests", lambda arguments, say: 4)  # as where a test's name is wrong
    (row,), _ = run_programme(tmp_path)
    assert "did not run" in row.lost[0]
