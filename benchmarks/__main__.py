"""Measure what the project costs: a table for people on the error output, JSON on the standard output.

    python -m tools.benchmark preprocess [RECORDING] > preprocess.json
    python -m tools.benchmark storage [RECORDING] > storage.json
    python -m tools.benchmark train [any setting of main.py] > train.json
    python -m tools.benchmark predict [any setting of main.py] > predict.json

`preprocess`: one recording and eight copies of it, by stage and as a whole command, beside a process that only reads
the same files with h5py and writes the same windows with pyarrow. `storage`: size, speed and error of the ways in
which windows can be stored. Without RECORDING a full-size one is simulated. `train` and `predict`: the model on the
windows of DATA_LOCATION, beside transformers.Trainer and the original project's way. Medians; the machine should be
idle. Exit status: 0 done, 1 something that the user can put right, 130 interrupted.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.cost import preprocess, simulate, storage
from benchmarks.speed import PredictSettings, TrainSettings, predict, train
from emg_gpt2.base.command_line import Parser, between, with_status
from emg_gpt2.settings import read_settings

SPEED = {"train": (train, TrainSettings), "predict": (predict, PredictSettings)}  # these take every setting of ENV.py


def main(argv: list[str] | None = None) -> int:
    """Measure what the command line names; returns the exit status."""
    work = lambda: benchmark(sys.argv[1:] if argv is None else argv, Console(stderr=True, highlight=False))  # noqa: E731
    return with_status(
        "benchmark",
        work,
        full_disk="name another, or free the place",
    )


def benchmark(argv: list[str], console: Console) -> None:
    """Prints JSON."""
    measured = measure_speed(argv, console) if argv[:1] and argv[0] in SPEED else measure_cost(argv, console)
    print(json.dumps(machine() | measured, indent=1))


def measure_speed(argv: list[str], console: Console) -> dict:
    """`train` or `predict`; raises EMGError."""
    measure, settings_class = SPEED[argv[0]]
    settings = read_settings(settings_class, argv[1:], f"python -m tools.benchmark {argv[0]}")
    return {argv[0]: measure(settings, console)}


def measure_cost(argv: list[str], console: Console) -> dict:
    """`preprocess` or `storage`; raises EMGError."""
    args = parse(argv)
    with tempfile.TemporaryDirectory() as folder:
        recording = args.recording or simulate(Path(folder), console)
        return args.measure(recording, Path(folder), args.runs, console)


def parse(argv: list[str]) -> argparse.Namespace:
    """Read the command line; raises EMGError for what is wrong with it."""
    parser = Parser(prog="python -m tools.benchmark", description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(required=True, metavar="WHAT")
    for measure in (preprocess, storage):
        command = commands.add_parser(measure.__name__, help=measure.__doc__.partition("\n")[0])
        command.add_argument(
            "recording", nargs="?", type=Path, metavar="RECORDING", help="one raw HDF5 file (simulated)"
        )
        command.add_argument(
            "--runs", type=between(int, 1, 99), default=3, metavar="N", help="runs that are counted (%(default)s)"
        )
        command.set_defaults(measure=measure)
    for measure, _ in SPEED.values():
        commands.add_parser(measure.__name__, help=measure.__doc__.partition("\n")[0])
    return parser.parse_args(argv)


def machine() -> dict:
    """What the figures depend on."""
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
