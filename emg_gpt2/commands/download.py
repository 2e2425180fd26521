"""Fetch the raw gesture recordings of putEMG that are not there yet.

    python -m emg_gpt2 download DIR --ids 03 04 --format hdf5

A recording gets its name when it is complete and checked; until then it is NAME.part, which the same command goes on
from.
Exit status: 0 all are there, 1 nothing could be done or written, 3 some failed, 130 interrupted.
"""

from argparse import Namespace
from pathlib import Path

from emg_gpt2.base.command_line import Parser, between, program
from emg_gpt2.base.errors import exit_status
from emg_gpt2.base.interrupts import importing
from emg_gpt2.settings import read_settings

GROUP = "data"

AGAIN = "run the same command again, which goes on from what came so far"


def main(argv: list[str] | None = None) -> int:
    """Fetch what the command line asks for; returns the exit status."""
    return exit_status("download", lambda: run(parse(argv)), AGAIN)


def parse(argv: list[str] | None) -> Namespace:
    """Read the command line; raises EMGError for a wrong one, and for wrong settings."""
    about = "Fetch the raw gesture recordings of putEMG that are not there yet, and go on where a transfer broke off."
    about += " putEMG is licensed CC BY-NC 4.0: name its authors, no commercial use."
    parser = Parser(prog=program("download"), description=about, epilog="Defaults are in brackets.")
    add, address = parser.add_argument, read_settings(argv=[]).DOWNLOAD_URL
    add("folder", type=Path, metavar="DIR", help="folder of the recordings; it is made if it is not there")
    add("--ids", nargs="+", metavar="ID", help="people, as two digits: DIR --ids 03 04 (all)")
    kinds = "STEM.hdf5, or STEM.zip with a CSV in it (%(default)s)"
    add("--format", choices=("hdf5", "csv"), default="hdf5", help=kinds)
    tries = "tries after the first, each after twice the delay (%(default)s)"
    add("--retries", type=between(int, 0, 99), default=5, metavar="N", help=tries)
    where = "where the data set lies (DOWNLOAD_URL of ENV.py)"
    add("--download-url", default=address, metavar="URL", help=where)
    return parser.parse_args(argv)


def run(args: Namespace) -> int:
    with importing():
        from rich.console import Console

        from emg_gpt2.base.log import start_log
        from emg_gpt2.raw.download import download
    start_log(Console(highlight=False))
    return 3 if download(args) else 0
