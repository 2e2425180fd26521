"""Write a model as ONNX files that run without torch, in float32 and with an int8 backbone, and measure them.

    python -m emg_gpt2 export RUN [--format onnx] [--out FOLDER]

RUN is a run's folder or a model's. The files are compared with the model on windows of the run's test part; where its
data are missing, on noise. A file whose logits differ from torch's by more than 1e-4 is removed.
Exit status: 0 done, 1 something that the user can put right (one sentence says what), 130 interrupted.
"""

import argparse
import importlib.util
from pathlib import Path

from rich.console import Console

from emg_gpt2.base.command_line import Parser, program
from emg_gpt2.base.errors import EMGError, exit_status
from emg_gpt2.base.interrupts import importing
from emg_gpt2.base.log import start_log

GROUP = "share"

NEEDED = ("onnx", "onnxruntime", "onnxscript")


def main(argv: list[str] | None = None) -> int:
    """Export the model that the command line names; returns the exit status."""
    return exit_status("export", lambda: run(parse(argv)))


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line; raises EMGError for what is wrong with it."""
    parser = Parser(prog=program("export"), description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder, or a model's")
    parser.add_argument("--format", choices=["onnx"], default="onnx", help="of the files (%(default)s)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="folder of the files (RUN/onnx)")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Start the log and export."""
    if not all(importlib.util.find_spec(name) for name in NEEDED):
        raise EMGError(f"packages are missing; pip install {' '.join(NEEDED)}")
    start_log(Console(stderr=True, highlight=False))
    with importing():  # torch takes seconds
        from emg_gpt2.study.exporting import export
    export(args.run, args.out or args.run / "onnx")
