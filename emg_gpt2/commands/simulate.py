"""Write simulated raw recordings in putEMG's own file layout.

    python -m emg_gpt2 simulate OUT --subjects 03 04 --format hdf5

Exit status: 0 all are written, 1 something that the user can put right, 130 interrupted.
"""

import argparse
from pathlib import Path

from rich.console import Console

from emg_gpt2.base.command_line import Parser, between, program
from emg_gpt2.base.errors import exit_status
from emg_gpt2.base.interrupts import importing
from emg_gpt2.study.protocols import START

GROUP = "data"


def main(argv: list[str] | None = None) -> int:
    """Write every recording that the command line asks for; returns the exit status."""
    return exit_status("simulate", lambda: run(parse(argv)), again="the recordings named so far are complete")


def run(args: argparse.Namespace) -> None:
    """Simulate and write."""
    with importing():
        from emg_gpt2.study.simulator import write_all
    write_all(args, Console(highlight=False))


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line; raises EMGError for what is wrong with it."""
    parser = Parser(
        prog=program("simulate"),
        description="Write simulated raw recordings in putEMG's own file layout; existing ones are replaced.",
        epilog="Defaults are in brackets.",
    )
    add, count, names = parser.add_argument, between(int, 1, 99), list(START)
    add("out", type=Path, metavar="OUT", help="folder to write to; it is made if it is not there")
    add("--subjects", nargs="+", type=count, default=[3, 4], metavar="ID", help="01 to 99 (03 04)")
    add("--sessions", type=count, default=2, metavar="N", help="days per subject (%(default)s)")
    programmes = f"programmes of prompts, of {', '.join(names)} (all)"
    add("--trajectories", nargs="+", choices=names, default=names, metavar="NAME", help=programmes)
    files = "STEM.hdf5, STEM.zip or both (%(default)s)"
    add("--format", choices=("hdf5", "csv", "both"), default="hdf5", help=files)
    add("--repetitions", type=count, metavar="N", help="first N per gesture; sequential: N blocks (all)")
    spread = "spread between days and between repetitions, 0 to 5; above 1 gestures share their muscles (%(default)s)"
    add("--difficulty", type=between(float, 0, 5), default=1.0, metavar="X", help=spread)
    rings = "number of electrodes, in rings of eight (%(default)s)"
    add("--channels", type=between(int, 1, 256), default=24, metavar="C", help=rings)
    rate = "nominal, in Hz; as in putEMG the true rate is 0.08 %% higher (%(default)s)"
    add("--sampling-rate", type=between(float, 500, 20000), default=5120.0, metavar="HZ", help=rate)
    seed = "the same seed gives the same signals (%(default)s)"
    add("--seed", type=between(int, 0, 2**31), default=0, metavar="N", help=seed)
    return parser.parse_args(argv)
