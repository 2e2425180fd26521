"""Adapt a trained model to a new person or day with the first repetitions of every gesture.

    python -m emg_gpt2 personalise RUN/best_model DATA --subject S [--repetitions 1] [--session DATE] [--out FOLDER]

The model is adapted to one session: a day of the person, the last one without --session. The session's first
repetitions of every gesture, in the order of time, are the calibration part, and all its other windows the test part.
Nothing is measured on the test part, not even its scale. Model and session must have the same gestures; else the
command refuses, so that a gesture that is missing cannot vanish from the figures.

The adaptation takes seconds. The model's reference becomes that of the calibration windows, in which every gesture
counts with its share of the training part. The model's logits get the factor from 0 to 1 that fits best, and are mixed
with those of LDA on log covariances. With two or more repetitions the mix is chosen, and the result judged, on the
repetitions that LDA was not fitted to. With one, LDA cannot be judged, because windows of one repetition are too alike:
it gets the more weight, the less the model fits. Its confidence is too high then; take two repetitions where you can.

The new folder holds the better model: the adapted one where its loss on the calibration windows is lower (with one
repetition, without LDA), else the model as it came. --keep personalised keeps the adapted one in any case. The verdict
is read on the test part once, after that: is the adapted model better than the one that came, beyond chance (sign-flip
test over repetitions)? It changes nothing; where it contradicts what was kept, a sentence says so.

A model with context is compared in three ways on the same calibration, each test window alone: prompted (told the
calibration, no gradient step), fine-tuned (100 steps on single windows) and LDA. With two repetitions or more the
fine-tuned model is kept where it does better than the prompt on repetitions that were held out.

A day that the model was trained on is refused. The model's config knows these days, or split.csv beside its folder;
where neither does, the results say that it cannot be checked. The folder also holds the card, and personalise.json and
a picture with the figures before, after, and of LDA fitted to the same calibration windows alone: the lead over it is
what the trained model is worth to this person.
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
    kept = (
        "the model in the new folder: the one that fits the calibration part better, or the adapted one (%(default)s)"
    )
    add("--keep", choices=("better", "personalised"), default="better", help=kept)
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
