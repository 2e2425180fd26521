"""A calibration for a model with context, from a labelled recording of the person and day."""

import argparse
import logging
from pathlib import Path

import numpy as np

from emg_gpt2.base.errors import EMGError
from emg_gpt2.live.judging import truth_of
from emg_gpt2.live.memory import Calibration
from emg_gpt2.live.signals import Signal, every_window, read_signal
from emg_gpt2.model.model import EMGForSequenceClassification
from emg_gpt2.raw.putemg import find_recordings
from emg_gpt2.raw.recording import UNLABELLED
from emg_gpt2.windows.sentences import first_repetitions

logger = logging.getLogger(__name__)

CHOOSE = "look at it with python -m emg_gpt2 inspect, or choose another recording"


def read_calibration(args: argparse.Namespace, model: EMGForSequenceClassification) -> Calibration | None:
    """The calibration of --calibrate: windows of the first repetition of each gesture in a labelled recording.

    Raises EMGError where the model has no context, or the recording no window of a gesture that it knows.
    """
    if args.calibrate is None:
        return None
    if not model.config.context:
        raise EMGError(
            f"--calibrate: {args.model} judges every window by itself; choose a model that was trained with CONTEXT, "
            "or adapt this one with python -m emg_gpt2 personalise"
        )
    (path, *others) = find_recordings([Path(args.calibrate)])
    if others:
        raise EMGError(f"--calibrate {args.calibrate}: {len(others) + 1} recordings; name one")
    return calibration_of(read_signal(path, model, args.filter), model)


def calibration_of(signal: Signal, model: EMGForSequenceClassification) -> Calibration:
    """Windows of the first repetition of each gesture, as far apart as in training. Raises EMGError, warns."""
    config = model.config
    made, codes = config.preprocessing, config.class_codes
    stride = round(made["STRIDE_MS"] * signal.rate / 1000)
    windows = every_window(signal.samples, config.window, stride)
    trims = made["TRIM_START_MS"], made["TRIM_END_MS"]
    first = stride * np.arange(len(windows))
    truth = truth_of(signal.labels, first, config.window, signal.rate, trims, codes).windows
    session = {}
    for (label, _), part in truth[truth["label"] != UNLABELLED].groupby(["label", "repetition"]):
        session.setdefault(codes.index(label), []).append(part.index.to_numpy())
    if not session:
        raise EMGError(f"{signal.name}: no window lies in a gesture that the model knows; {CHOOSE}")
    rows, _ = first_repetitions(session, config.context, fewest=1)
    if not np.ptp(windows[rows], axis=1).any():
        raise EMGError(f"{signal.name}: no channel changes in the calibration; {CHOOSE}")
    gestures = np.array([codes.index(label) for label in truth["label"].iloc[rows]])
    if lacking := [name for place, name in enumerate(config.class_names) if place not in gestures]:
        logger.warning(f"{signal.name}: the calibration lacks {', '.join(lacking)}; the model knows them from training")
    return Calibration(windows[rows].astype(np.float32), gestures)
