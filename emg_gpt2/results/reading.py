"""Read the folder of a finished run."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from emg_gpt2.base.errors import EMGError
from emg_gpt2.base.text import in_short

NEEDED = ("accuracy", "balanced_accuracy", "macro_f1", "per_class", "per_subject", "confusion_matrix", "classes")
TRANSDUCTIVE = "each window was measured against the signal of its whole session, later windows included"
IDENTITY = ["subject", "session", "recording", "TRAJ_GT", "start"]  # columns that tell windows apart
HELD_OUT = {
    "trajectory": "Whole recordings were held out: the model saw other recordings of the same people and days.",
    "repetition": "Repetitions were held out: the model saw other repetitions of the same gestures and recordings.",
    "session": "The last days of each person were held out: the model saw the same people on earlier days.",
    "subject": "People were held out: the model saw nothing of them in training.",
    "random": "Random windows were held out: the model saw their neighbours, cut from the same contractions.",
    "named": "The parts were named outright (TRAIN_ON and TEST_ON).",
}


@dataclass(frozen=True)
class FinishedRun:
    """The files of a run folder; None, or an empty dict, for a file that is not there."""

    folder: Path
    metrics: dict
    settings: dict  # of main.py, from env.json
    preprocessing: dict  # settings that the windows were made with, from the model's config.json
    history: pd.DataFrame | None = None
    second_history: pd.DataFrame | None = None  # of the second training (REFIT)
    split: pd.DataFrame | None = None  # every window's identity and part
    predictions: pd.DataFrame | None = None
    validation: pd.DataFrame | None = None  # labels predicted for the validation part, by the model and others
    sweep: pd.DataFrame | None = None
    baselines: dict | None = None

    @property
    def names(self) -> list[str]:
        """Names of the classes, in the order of the confusion matrix."""
        return list(self.metrics["classes"].values())

    @property
    def chance(self) -> float:
        """Balanced accuracy of guessing."""
        return 1 / len(self.names)

    @property
    def probabilities(self) -> np.ndarray:
        """(n, K) of the test windows, in the order of `predictions`."""
        return self.predictions[[f"p_{code}" for code in self.metrics["classes"]]].to_numpy()

    @property
    def milliseconds(self) -> float | None:
        """Time of a single window's prediction."""
        seconds = self.metrics.get("seconds_per_window")
        return seconds and 1000 * seconds

    @property
    def held_out(self) -> str:
        """The split in a sentence; empty where it is not known."""
        return HELD_OUT.get(self.metrics.get("split"), "")

    @property
    def is_leaky(self) -> bool:
        """Whether neighbours of the test windows were trained on."""
        return self.metrics.get("split") == "random"

    @property
    def is_transductive(self) -> bool:
        """Whether the test part's signal as a whole was looked at; of an older run by its settings."""
        of_settings = self.settings.get("SCALE") == "session" and not self.settings.get("CONTEXT")
        return self.metrics.get("transductive", of_settings)


def caveats(metrics: dict) -> str:
    """The warnings beside every figure of a leaky split or of a transductive test, in brackets; else nothing."""
    leaky, transductive = metrics["split"] == "random", metrics.get("transductive", False)
    found = ["LEAKY split: random windows"] * leaky + ["transductive"] * transductive
    return f" ({'; '.join(found)})" if found else ""


def read_run(folder: Path) -> FinishedRun:
    """Read a run folder, also one of an older version that lacks some files and figures.

    Raises EMGError where there is no finished run, or a file of it cannot be read.
    """
    metrics = _read(folder / "metrics.json", _read_json)
    if metrics is None:
        advice = (
            f"finish it with main.py --resume {folder}" if (folder / "last").exists() else "name a folder under runs"
        )
        raise EMGError(f"{folder}: there are no results of a finished run; {advice}")
    missing = [name for name in NEEDED if name not in metrics]
    if missing:
        raise EMGError(f"{folder / 'metrics.json'}: {', '.join(missing)} is missing; run main.py anew")
    text = {"subject": str, "session": str}
    return FinishedRun(
        folder,
        metrics,
        settings=_read(folder / "env.json", _read_json) or {},
        preprocessing=(_read(folder / "best_model" / "config.json", _read_json) or {}).get("preprocessing", {}),
        history=_read(folder / "history.csv", pd.read_csv),
        second_history=_read(folder / "refit" / "history.csv", pd.read_csv),
        split=_read(folder / "split.csv", lambda path: pd.read_csv(path, dtype=text, keep_default_na=False)),
        predictions=_read(folder / "predictions.parquet", pd.read_parquet),
        validation=_read(folder / "validation.parquet", pd.read_parquet),
        sweep=_read(folder / "sweep.csv", pd.read_csv),
        baselines=_read(folder / "baselines.json", _read_json),
    )


def _read(path: Path, read: Callable):
    """What `read` returns for the file; None where there is no such file. Raises EMGError."""
    if not path.is_file():
        return None
    try:
        return read(path)
    except (OSError, ValueError) as error:
        raise EMGError(f"{path}: the file cannot be read ({in_short(error)}); remove it or run main.py anew") from None


def _read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))
