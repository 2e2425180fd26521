"""Measure what the project costs: a table for people on the error output, JSON on the standard output.

    python -m benchmarks preprocess [RECORDING] > preprocess.json
    python -m benchmarks storage [RECORDING] > storage.json
    python -m benchmarks train [any setting of main.py] > train.json
    python -m benchmarks predict [any setting of main.py] > predict.json

--quick gives rough figures in less time, and says what it leaves out.

`preprocess`: one recording and eight copies of it, by stage and as a whole command, beside a process that only reads
the same files with h5py and writes the same windows with pyarrow. `storage`: size, speed and error of the ways in
which windows can be stored. Without RECORDING a full-size one is simulated. `train` and `predict`: the model on the
windows of DATA_LOCATION, beside transformers.Trainer and the original project's way. Medians; the machine should be
idle. Exit status: 0 done, 1 something that the user can put right, 130 interrupted.
"""

if __name__ == "__main__":  # before the imports
    from emg_gpt2.base.interrupts import start_script

    start_script()

import argparse
import importlib
import json
import os
import platform
import sys
from pathlib import Path

from rich.console import Console

from benchmarks.settings import LEFT_OUT, PredictSettings, TrainSettings, quick
from emg_gpt2.base.command_line import Parser, between
from emg_gpt2.base.errors import exit_status
from emg_gpt2.base.interrupts import importing
from emg_gpt2.base.log import start_log
from emg_gpt2.settings import Settings, read_settings

COSTS = {  # of a recording
    "preprocess": "Preprocessing.py by stage and as a whole command, beside reading and writing alone",
    "storage": "size, speed and error of the ways in which windows can be stored",
}
SPEEDS = {"train": TrainSettings, "predict": PredictSettings}  # these take every setting of ENV.py


def main(argv: list[str] | None = None) -> int:
    """Measure what the command line names, and print JSON; returns the exit status."""
    return exit_status("benchmarks", lambda: run(*parse(sys.argv[1:] if argv is None else argv)))


def run(what: str, given: argparse.Namespace | Settings) -> None:
    """Print the figures of a module of this folder."""
    with importing():  # torch takes seconds
        module = importlib.import_module(f"benchmarks.{what}")
    console = Console(stderr=True, highlight=False)
    start_log(console)
    measured = module.measure(given, console)
    if given.QUICK if what in SPEEDS else given.quick:
        console.print(f"rough figures (--quick): {LEFT_OUT[what]}", markup=False, soft_wrap=True)
        measured |= {"quick": LEFT_OUT[what]}
    print(json.dumps(machine() | measured, indent=1))


def parse(argv: list[str]) -> tuple[str, argparse.Namespace | Settings]:
    """What to measure, and its options or settings; raises EMGError for what is wrong with the command line."""
    if argv and argv[0] in SPEEDS:
        given = read_settings(SPEEDS[argv[0]], argv[1:], argv[0])
        return argv[0], quick(argv[0], given) if given.QUICK else given
    parser = Parser(prog="python -m benchmarks", description="Measure what the project costs.")
    commands = parser.add_subparsers(required=True, metavar="WHAT", dest="what")
    for name, about in COSTS.items():
        command = commands.add_parser(name, help=about)
        described = "one raw HDF5 file (a simulated one)"
        command.add_argument("recording", nargs="?", type=Path, metavar="RECORDING", help=described)
        runs = between(int, 1, 99)
        command.add_argument("--runs", type=runs, metavar="N", help="runs that are counted (3; with --quick 1)")
        command.add_argument("--quick", action="store_true", help=f"rough figures in less time: {LEFT_OUT[name]}")
    for name, settings in SPEEDS.items():
        commands.add_parser(name, help=settings.__doc__.partition(":")[0].removeprefix("Measure "))
    given = parser.parse_args(argv)
    given.runs = given.runs or (1 if given.quick else 3)
    return given.what, given


def machine() -> dict:
    """What the figures depend on."""
    import torch

    return {
        "machine": platform.machine(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def processor() -> str:
    """Its name, as far as the system tells it."""
    described = Path("/proc/cpuinfo")
    lines = described.read_text().splitlines() if described.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    sys.exit(main())
