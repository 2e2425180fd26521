"""What the command lines of predict and stream share. Nothing heavy is imported, so that --help answers at once."""

import argparse

from emg_gpt2.base.command_line import between

HOP_MS = 50  # default step from one decision to the next
ENCODINGS = {"float32": "<f4", "int16": "<i2"}  # of binary samples in a stream, as NumPy names them


def add_decision_flags(parser: argparse.ArgumentParser) -> None:
    """Add the model, the hop, the reference, smoothing and rejection."""
    add = parser.add_argument_group("decisions").add_argument
    add("--model", required=True, metavar="MODEL", help="folder of a trained model, such as RUN/best_model")
    hop = f"step from one window to the next, at most one window (ms; {HOP_MS}, or the window where it is shorter)"
    add("--hop-ms", type=between(float, 1, 10_000), metavar="X", help=hop)
    reference = "what windows are measured against: session, running, model, or a recording of the same day"
    add("--reference", metavar="REF", help=f"{reference} (model; running, where SCALE = session in training)")
    calibrate = "a labelled recording of the person and day, whose gestures a model with context is told"
    add("--calibrate", metavar="RECORDING", help=calibrate)
    smooth = "average the probabilities of the last windows, count their votes, or take each alone (%(default)s)"
    add("--smooth", choices=("none", "mean", "vote"), default="mean", help=smooth)
    span = "how far back smoothing looks (ms; %(default)s)"
    add("--span-ms", type=between(float, 1, 60_000), default=250, metavar="X", help=span)
    reject = "reject decisions with a lower confidence, 0 … 1 (%(default)s: none)"
    add("--reject-below", type=between(float, 0, 1), default=0.0, metavar="X", help=reject)
