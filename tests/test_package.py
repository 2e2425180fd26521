"""What `import emg_gpt2` gives: the public names, each when it is first used."""

import sys
from importlib import import_module

import pytest
from conftest import run

import emg_gpt2

QUICK = """
import sys, emg_gpt2
assert "EMGConfig" in dir(emg_gpt2) and emg_gpt2.__version__
assert not {"torch", "transformers", "pandas", "pydantic"} & sys.modules.keys()
"""


@pytest.mark.parametrize("name", emg_gpt2.__all__)
def test_public_names_are_those_of_their_modules(name):
    """As `from emg_gpt2 import NAME` has them."""
    value = getattr(emg_gpt2, name)
    module = getattr(value, "__module__", None)
    assert module is None or getattr(sys.modules[module], name) is value


def test_a_user_can_train_load_and_decide():
    wanted = {"EMGForSequenceClassification", "EMGConfig", "Settings", "load_windows", "load_model", "read_emg"}
    assert wanted | {"measure_reference", "read_recording", "Classifier", "__version__"} <= set(emg_gpt2.__all__)


def test_other_names_are_not_there():
    with pytest.raises(ImportError, match="cannot import name 'EMGModel'"):
        from emg_gpt2 import EMGModel  # noqa: F401
    assert import_module("emg_gpt2.settings").Settings is emg_gpt2.Settings


def test_importing_the_package_imports_no_library():
    done = run("-c", QUICK)
    assert done.returncode == 0, done.stderr
