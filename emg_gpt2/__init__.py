"""Surface-EMG gesture classification on a language-model backbone."""

__version__ = "0.2.0"
