"""Decisions of a trained model on raw recordings: a table, a picture and, where there are labels, figures.

    python -m emg_gpt2 predict RECORDING… --model RUN/best_model [--out predictions] [--smooth mean]

Every recording is filtered, resampled and scaled as the model's training data were. Every HOP_MS a window is
classified, whether it lies at rest, in a gesture or between two. `--reference` says what windows are measured against:

  model      what is stored in the model: the training part, or the session that `personalise` adapted it to.
  running    the session so far, as in a stream. The recordings of a day follow each other in the order of time. It is
             the default for a model that was trained with SCALE = "session"; `model` is that for others.
  FILE       another recording or a folder of them, usually of the same person and day and with every gesture.
  session    all recordings given of that person and day, without labels. It uses samples that come after the window,
             so its figures are called transductive; so are those of a recording that is its own FILE.

With `--filter causal --reference running` the decisions are those of `stream` on the same samples.

For every recording the folder gets a picture and a table: start and end of the window (s, in the recording's clock),
gesture, confidence, p_LABEL for every class, and `label`, the recording's own where all samples of the window share
one. metrics.json has the figures of windows that lie inside one repetition less its trimmed edges, like the training
windows, with smoothing and rejection and without:

  accuracy         share of correct decisions; a rejected one is not correct
  active error     share of wrong decisions among those for a gesture (neither rest, which is label 0, nor rejected)
  instability      share of pairs of successive decisions in a repetition that differ
  delay            median time from the start of a gesture's label to the end of the first window with the correct
                   decision; repetitions without one are `missed`
Exit status: 0 done, 1 nothing was predicted, 3 some recordings were skipped (named), 130 interrupted.
"""

import argparse
from pathlib import Path

from rich.console import Console

from emg_gpt2.base.command_line import Parser, program
from emg_gpt2.base.errors import exit_status
from emg_gpt2.base.interrupts import importing
from emg_gpt2.base.log import start_log
from emg_gpt2.commands import add_flags, read_flags
from emg_gpt2.live.options import add_decision_flags

GROUP = "use"


def main(argv: list[str] | None = None) -> int:
    """Predict as the command line says; returns the exit status."""
    again = "run the same command again (the tables named so far are complete)"
    return exit_status("predict", lambda: run(parse(argv)), again, "name fewer recordings of a day at once")


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line; raises EMGError for what is wrong with it."""
    about = "Decisions of a trained model on raw recordings: tables, pictures and, with labels, figures."
    parser = Parser(prog=program("predict"), description=about, epilog="Defaults are in brackets.")
    add = parser.add_argument
    add("recordings", nargs="+", type=Path, metavar="RECORDING", help="raw .hdf5, .csv or .zip, or folders of them")
    add("--out", type=Path, default=Path("predictions"), metavar="DIR", help="folder of the results (%(default)s)")
    add("--format", choices=("csv", "parquet"), default="csv", help="of the tables (%(default)s)")
    words = "the filter that the model was trained with, or the causal one, as in a stream (%(default)s)"
    add("--filter", choices=("model", "causal"), default="model", help=words)
    add_flags(parser, "FIGURE_FORMAT")
    add_decision_flags(parser)
    args = parser.parse_args(argv)
    args.settings = read_flags(args, "FIGURE_FORMAT")
    return args


def run(args: argparse.Namespace) -> int:
    """Start the log and predict."""
    start_log(Console(stderr=True, highlight=False))
    with importing():  # torch takes seconds
        from emg_gpt2.live.predicting import predict
    return predict(args, Console(highlight=False, width=160))  # a narrow terminal breaks the lines, not the names
