"""Show what a trained model looks at: electrodes, frequency bands, moments, learned filters.

    python -m emg_gpt2 explain RUN [--part test] [--out DIR] [--quick]

RUN is a finished run of main.py: its model, settings, windows and split. A part of a window is replaced by that of
another window, of any gesture or of the same; the difference that makes to the true gesture's probability is the
importance of the part. emg_gpt2/study/occlusion.py has the definition, its source and its limits.

The folder (RUN/explain, or --out) gets explain.json, with every figure and its 95 % interval, explain.png and, where
the model has learned filters, filters.png. Nothing is chosen here, so the test part may be looked at; if you change
the model because of what you see, the test part is no longer unseen.
Exit status: 0 done, 1 something that the user can put right, 130 interrupted.
"""

from argparse import Namespace
from pathlib import Path

from emg_gpt2.base.command_line import Parser, program
from emg_gpt2.base.errors import exit_status
from emg_gpt2.base.interrupts import importing

GROUP = "study"


def main(argv: list[str] | None = None) -> int:
    """Explain the run that the command line names; returns the exit status."""
    return exit_status("explain", lambda: run(parse(argv)), memory="lower MEMORY_GB in the run's env.json")


def parse(argv: list[str] | None) -> Namespace:
    """Read the command line; raises EMGError for a wrong one."""
    about = "Show which electrodes, frequency bands and moments a trained model looks at, for each gesture."
    parser = Parser(prog=program("explain"), description=about, epilog="Defaults are in brackets.")
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="a finished run of main.py, such as runs/NAME")
    part = "windows to explain: those of the test or of the validation part (%(default)s)"
    add("--part", choices=("test", "validation"), default="test", help=part)
    add("--out", type=Path, metavar="DIR", help="folder of the results (RUN/explain)")
    quick = "a tenth of the work: about 96 windows with one donor of each kind, not 480 with two; all parts and "
    add("--quick", action="store_true", help=f"{quick}intervals remain, the intervals are wider")
    add("--data-location", type=Path, metavar="FILE", help="windows file, if it has moved since the run")
    args = parser.parse_args(argv)
    args.out = args.out or args.run / "explain"
    return args


def run(args: Namespace) -> None:
    with importing():  # torch takes seconds
        from rich.console import Console

        from emg_gpt2.base.log import start_log
        from emg_gpt2.study.explaining import explain_run
    start_log(Console(stderr=True, highlight=False))
    explain_run(args)
