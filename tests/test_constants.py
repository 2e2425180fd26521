"""ENV.py is read as plain constants: no line of it is run."""

import pytest

from emg_gpt2.base.constants import read_constants
from emg_gpt2.base.errors import EMGError


def test_values_are_those_of_python(tmp_path):
    text = '"""Words."""\n# a comment\nA = -9  # less\nB = [1e-3, "x"]\nC = {\n    0: "idle",\n}\n'
    (tmp_path / "ENV.py").write_text(text + "D = (20.0, None)\nE = True\n")
    assert read_constants(tmp_path / "ENV.py") == {
        "A": -9,
        "B": [1e-3, "x"],
        "C": {0: "idle"},
        "D": (20.0, None),
        "E": True,
    }


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("A = 1\nB = [1,\n", "line 2: '[' was never closed; write NAME = value"),
        ("A = 1\nB == 2", "line 2: only lines NAME = value are read there"),
        ("A = B = 2", "line 1: only lines NAME = value are read there"),
        ("A, B = 1, 2", "line 1: only lines NAME = value are read there"),
        ("import os", "line 1: only lines NAME = value are read there"),
        ("A = 2 * 3", "line 1: A should be a plain value"),
        ("A = open('/etc/passwd')", "line 1: A should be a plain value"),
        ("A = {[]: 1}", "line 1: A should be a plain value"),
        ("A = 'x\0'", "line 1: "),
    ],
)
def test_anything_else_is_one_sentence_with_its_line(tmp_path, text, sentence):
    (tmp_path / "ENV.py").write_text(text)
    with pytest.raises(EMGError) as found:
        read_constants(tmp_path / "ENV.py")
    assert str(found.value).startswith(f"ENV.py, {sentence}")
    assert "\n" not in str(found.value)


def test_encodings(tmp_path):
    """UTF-8 with a byte-order mark, as a Windows editor writes it, is read; UTF-16 is refused."""
    path = tmp_path / "ENV.py"
    path.write_text('A = "−1 … ≤"\n', encoding="utf-8-sig")
    assert read_constants(path) == {"A": "−1 … ≤"}
    path.write_text("A = 1\n", encoding="utf-16")
    with pytest.raises(EMGError, match=r"ENV\.py: the file cannot be read"):
        read_constants(path)
