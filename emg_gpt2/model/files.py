"""Writing a model's files."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import ModelCard
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from emg_gpt2.base.errors import EMGError
from emg_gpt2.base.files import new_files, replace_file
from emg_gpt2.model.model import EMGForSequenceClassification


def save_model(model: EMGForSequenceClassification, card: ModelCard, folder: Path) -> None:
    """Put a model's files and its card into `folder`, each one whole, and leave its other files alone."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with new_files(folder) as new:
            save_weights(model, new)
            save_card(card, new)
    except OSError as error:
        reason = error.strerror or error
        raise EMGError(f"{folder}: the model cannot be written ({reason}); name another folder") from None


def save_weights(model: EMGForSequenceClassification, folder: Path, **named) -> None:
    """As transformers saves a model; raises OSError where it cannot be written."""
    transformers_logging.disable_progress_bar()  # one file is written at once
    with disk_errors(folder):
        model.save_pretrained(folder, **named)


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Raise OSError where safetensors, whose errors are its own, cannot write to `folder`."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(errno.EIO, str(error), str(folder)) from None


def save_card(card: ModelCard, folder: Path) -> None:
    """README.md in `folder`, whole."""
    replace_file(folder / "README.md", card.save)
