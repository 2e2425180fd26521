"""Surface-EMG gesture classification on a language-model backbone.

The public names are listed in __init__.pyi. Each is imported when it is first used, so `import emg_gpt2` is quick.
"""

import ast
import importlib
from pathlib import Path
from typing import Any

__version__ = "0.2.0"  # the only place: the package, models, cards, reports and --version take it from here

_STUB = ast.parse(__loader__.get_data(str(Path(__file__).with_suffix(".pyi"))))  # a cluster has the package in a zip
_MODULES = {name.name: node.module for node in _STUB.body if isinstance(node, ast.ImportFrom) for name in node.names}

__all__ = sorted([*_MODULES, "__version__"])


def __getattr__(name: str) -> Any:
    """Import a public name from its module (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
