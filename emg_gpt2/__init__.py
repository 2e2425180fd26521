"""Surface-EMG gesture classification on a language-model backbone."""

__version__ = "0.1.0"
