"""Adapt a trained model to a new person or day with the first repetitions of every gesture.

    python -m emg_gpt2 personalise RUN/best_model DATA --subject S [--repetitions 1] [--session DATE] [--out FOLDER]

The model is adapted to one session: a day of the person, the last one without --session. The session's first
repetitions of every gesture, in the order of time, are the calibration part, and all its other windows the test part.
Nothing is measured on the test part, not even its scale. Model and session must have the same gestures; else the
command refuses, so that a gesture that is missing cannot vanish from the figures.

The adaptation is a closed form and takes seconds. The model's reference becomes that of the calibration windows. Its
logits are multiplied by the factor from 0 to 1 that fits these windows best. LDA on their log covariances is added to
the linear path. So a model that knows the person keeps its weight, and one that does not loses it. On average over
development sessions this was better than moving the linear path by gradient, or training the head or all layers
(EXPERIMENTS.md).

The new folder holds the adapted model, its card, and personalise.json and a picture with the figures before, after and
of LDA fitted to the same calibration windows alone. The adaptation adds LDA on log covariances to the model, so the
lead over it is what the trained model is worth to this person. Where RUN/split.csv says that the model was trained on
the session, the results say so too.
Exit status: 0 done, 1 something that the user can put right, 130 interrupted.
"""

import argparse
from pathlib import Path

from rich.console import Console

from emg_gpt2.base.command_line import Parser, between, program
from emg_gpt2.base.errors import exit_status
from emg_gpt2.base.interrupts import importing
from emg_gpt2.base.log import start_log
from emg_gpt2.commands import add_flags, read_flags

GROUP = "use"


def main(argv: list[str] | None = None) -> int:
    """Adapt the model that the command line names; returns the exit status."""
    return exit_status("personalise", lambda: run(parse(argv)), memory="lower --memory-gb")


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line; raises EMGError for what is wrong with it, or with the settings."""
    about = "Adapt a trained model to a new person or day with the first repetitions of every gesture."
    parser = Parser(prog=program("personalise"), description=about, epilog="Defaults are in brackets.")
    add = parser.add_argument
    add("model", type=Path, metavar="MODEL", help="folder of a trained model, such as RUN/best_model")
    add("data", type=Path, metavar="DATA", help="windows file (.parquet) of Preprocessing.py")
    add("--subject", required=True, metavar="S", help="the person, as in the file: 03")
    add("--session", metavar="DATE", help="the day, as in the file: 2018-05-11 (the person's last)")
    repetitions = "first repetitions of every gesture to adapt with (%(default)s)"
    add("--repetitions", type=between(int, 1, 1000), default=1, metavar="N", help=repetitions)
    add("--out", type=Path, metavar="FOLDER", help="new folder of the results (runs/personalised-S-DATE)")
    add_flags(parser, "MEMORY_GB", "FIGURE_FORMAT")
    args = parser.parse_args(argv)
    args.data_location = args.data
    args.settings = read_flags(args, "DATA_LOCATION", "MEMORY_GB", "FIGURE_FORMAT")
    return args


def run(args: argparse.Namespace) -> None:
    """Start the log and adapt."""
    start_log(Console(stderr=True, highlight=False))
    with importing():  # torch takes seconds
        from emg_gpt2.study.personalising import personalise
    personalise(args, Console(highlight=False, width=110))  # a narrow terminal breaks the lines, not the names
