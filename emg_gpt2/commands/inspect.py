"""Draw one picture per recording or windows file, and name its flat, clipped, noisy and unsteady channels.

    python -m emg_gpt2 inspect Data-HDF5 windows.parquet

The picture of a recording shows all channels, the labels, the spectrum before and after the filter, and the RMS of
every electrode and gesture. The picture of a windows file shows the spectrum, and the RMS of every electrode by day and
by gesture.
Exit status: 0 all files are drawn, 1 none could be, 3 some could not be, 130 interrupted.
"""

import argparse
from pathlib import Path

from rich.console import Console

from emg_gpt2.base.command_line import Parser, between, program
from emg_gpt2.base.errors import exit_status
from emg_gpt2.base.interrupts import importing
from emg_gpt2.base.log import start_log
from emg_gpt2.commands import add_flags, read_flags

GROUP = "data"
SETTINGS = ("FILTER", "BAND_HZ", "CLASS_NAMES", "FIGURE_FORMAT")


def main(argv: list[str] | None = None) -> int:
    """Draw what the command line names; returns the exit status."""
    again = "run the same command again (the pictures named so far are complete)"
    return exit_status("inspect", lambda: run(parse(argv)), again)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line; raises EMGError for what is wrong with it, or with the settings."""
    about = "Draw one picture per recording or windows file, and name its flat, clipped, noisy and unsteady channels."
    parser = Parser(prog=program("inspect"), description=about, epilog="Defaults are in brackets.")
    add = parser.add_argument
    files = "raw recordings (.hdf5, .csv, .zip), folders of them, and windows files (.parquet)"
    add("files", nargs="+", type=Path, metavar="FILE", help=files)
    add("--out", type=Path, default=Path("pictures"), metavar="DIR", help="folder of the pictures (%(default)s)")
    add("--ring", type=between(int, 1, 256), default=8, metavar="N", help="electrodes of one ring (%(default)s)")
    add_flags(parser, *SETTINGS)
    args = parser.parse_args(argv)
    args.settings = read_flags(args, *SETTINGS)
    return args


def run(args: argparse.Namespace) -> int:
    """Start the log and draw."""
    console = Console(highlight=False)
    start_log(console)
    with importing():  # scipy and matplotlib take a second
        from emg_gpt2.study.inspecting import inspect_files
    return inspect_files(args, console)
