"""Versions of what computes."""

import platform

import numpy as np
import pandas as pd
import torch
import transformers

from emg_gpt2 import __version__


def versions() -> dict[str, str]:
    """Versions of this project, Python and the libraries that compute."""
    libraries = {"torch": torch, "transformers": transformers, "numpy": np, "pandas": pd}
    own = {"emg_gpt2": __version__, "python": platform.python_version()}
    return own | {name: library.__version__ for name, library in libraries.items()}
