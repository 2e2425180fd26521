"""Judge the test part of a finished run again as if its sessions were lopsided: much rest, or few of the gestures.

    python -m emg_gpt2 lopsided RUN

RUN is a finished run of main.py. Windows of its test part are drawn per session, several times, in four mixes: as they
were recorded, as many of every gesture, 70 % rest, and three of the gestures alone. Each mix is judged by the model as
it is, measured against the training part (`none`); measured against all drawn windows of their session
(`transductive`); and by a model with context also from the windows before (`unlabelled`) and after a calibration with
the gestures that are there (`calibrated`). Figures are balanced accuracies over the gestures present, per session, mean
over sessions and people. What needs a session in which every gesture occurs is found out so. Nothing is chosen here.

RUN gets lopsided.json.
Exit status: 0 done, 1 something that the user can put right, 130 interrupted.
"""

from argparse import Namespace
from pathlib import Path

from emg_gpt2.base.command_line import Parser, program
from emg_gpt2.base.errors import exit_status
from emg_gpt2.base.interrupts import importing

GROUP = "study"


def main(argv: list[str] | None = None) -> int:
    """Judge the run that the command line names; returns the exit status."""
    return exit_status("lopsided", lambda: run(parse(argv)), memory="lower MEMORY_GB in the run's env.json")


def parse(argv: list[str] | None) -> Namespace:
    """Read the command line; raises EMGError for a wrong one."""
    about = "Judge the test part of a finished run again, as if its sessions were mostly rest or had few gestures."
    parser = Parser(prog=program("lopsided"), description=about)
    parser.add_argument("run", type=Path, metavar="RUN", help="a finished run of main.py, such as runs/NAME")
    moved = "windows file, if it has moved since the run"
    parser.add_argument("--data-location", type=Path, metavar="FILE", help=moved)
    return parser.parse_args(argv)


def run(args: Namespace) -> None:
    with importing():  # torch takes seconds
        from rich.console import Console

        from emg_gpt2.base.log import start_log
        from emg_gpt2.study.lopsided import judge_lopsided
    start_log(Console(stderr=True, highlight=False))
    judge_lopsided(args, Console(highlight=False))
