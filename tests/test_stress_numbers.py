"""The stress programme `numbers`: nothing is lost, and what would be lost is told."""

from functools import partial
from pathlib import Path

import pytest

from emg_gpt2.training.trainer import Trainer
from stress.__main__ import main
from stress.numbers import FAMILIES, row_of, rows, spoil_training, write_backbone, write_recordings
from stress.trial import Case


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> tuple[Path, Path]:
    """Simulated recordings and the shape of a backbone."""
    folder = tmp_path_factory.mktemp("numbers")
    return write_recordings(folder, 0), write_backbone(folder)


def test_no_odd_number_shape_or_class_is_lost(tmp_path):
    quick = {family: [case for case in cases if case.quick] for family, cases in FAMILIES.items()}
    found = list(rows(False, tmp_path, 0, lambda words: None))
    assert [row.tried for row in found] == list(FAMILIES)
    assert [row.lost for row in found] == [[]] * len(FAMILIES)
    assert [row.refused for row in found] == [sum(bool(case.refusal) for case in cases) for cases in quick.values()]
    assert [row.right for row in found] == [sum(not case.refusal for case in cases) for cases in quick.values()]


def without_guards(epoch: int, step: int, what: str) -> None:
    """The training goes on with what is no number."""
    Trainer._check_steps = Trainer._check_weights = lambda self, run: None
    Trainer._check_validation = lambda self, probabilities, run: None
    spoil_training(epoch, step, what)


def warn() -> None:
    import warnings

    really = Trainer.fit
    Trainer.fit = lambda self, *given, **named: (
        warnings.warn("odd", RuntimeWarning, stacklevel=2),
        really(self, *given, **named),
    )[1]


def fail() -> None:
    Trainer.fit = lambda self, *given, **named: 1 / 0


def keep_nothing() -> None:
    """The best model stays in memory."""
    Trainer._write_best = lambda self, run: None
    spoil_training(2, 1, "sample")


KEPT = {"refusal": "the loss is nan in epoch 2, step 1", "kept": ("best_model/model.safetensors",)}
SUBJECT = ("--split", "subject")
FLAWED = {
    "a loss that nobody looks at": (
        {"before": partial(without_guards, 2, 2, "sample")},
        "has a loss that is no number",
    ),
    "a warning": ({"before": warn}, "main.py said"),
    "a traceback": ({"before": fail}, "main.py said ZeroDivisionError"),
    "a model that is not kept": ({"before": keep_nothing} | KEPT, "best_model/model.safetensors was not kept"),
    "a refusal that is not wanted": ({"flags": SUBJECT}, "should be refused not at all, and main.py: the file has a"),
    "another reason": ({"flags": SUBJECT, "refusal": "moon"}, "should be refused with the words “moon”, and main.py"),
    "no refusal": ({"refusal": "moon"}, "it should be refused (moon) and was not"),
}


def test_what_is_lost_is_told(inputs, tmp_path):
    cases = [Case(name, **flawed) for name, (flawed, _) in FLAWED.items()]
    row = row_of("flawed", cases, *inputs, tmp_path, tools=False)
    assert (row.refused, row.right) == (0, 0)
    for (name, (_, words)), told in zip(FLAWED.items(), row.lost, strict=True):
        assert told.startswith(f"{name}: ")
        assert words in told


def test_the_command_prints_the_table(tmp_path, monkeypatch, capsys):
    kept = {family: cases[:1] for family, cases in FAMILIES.items() if family == "short windows"}
    monkeypatch.setattr("stress.numbers.FAMILIES", kept)
    assert main(["numbers", "--out", str(tmp_path)]) == 0
    assert "| numbers | short windows | 1 | 1 | 0 | 0 |" in (tmp_path / "stress.md").read_text()
