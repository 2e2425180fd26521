"""Decisions of a trained model as samples arrive.

    python -m emg_gpt2 stream SOURCE --model RUN/best_model [--rate 5124] [--reference DAY.hdf5] [--reject-below 0.6]

SOURCE is

  FILE               a raw recording, replayed at its own speed (`--speed`)
  -                  standard input: a line per sample, numbers with commas or blanks between them; binary samples
                     with `--encoding`
  udp://HOST:PORT    packets, see below
  lsl://NAME         a stream of the Lab Streaming Layer (pip install pylsl)

A UDP packet is little-endian and has, in this order:
* 8 bytes: the number of its first sample, an unsigned integer. It counts samples (not packets) since any start, so the
  next packet's number is higher by the samples of this one.
* n ≥ 1 samples, the same number in every packet, of C values each, in the model's order of channels: float32, or
  int16 with `--encoding int16`. So its size is 8 + n · C · 4 (or 2) bytes, at most 65,507.
docs/use.md has a sender.

Samples must be in the unit that the model was trained in. They go through the causal filter, whichever filter the model
was trained with. Every HOP_MS a window is classified and a line written, with the decisions that `predict` makes with
`--filter causal`. Windows are measured against the training part (`model`); those of a model that was trained with
SCALE = "session" against the session so far (`running`), which starts from the training part.

Faults do not end the stream. They are counted in the summary and logged, at most once a second for each kind:
* Lost samples are filled with the last one that came. A packet that comes after its place was filled is dropped.
* After a gap of more than a second, or where samples are numbered from another start, a new signal begins.
* Values that are not numbers are replaced by the last value of their channel.
* When this machine falls behind by more than a second, decisions are skipped (not from standard input, which waits).

At the end (of the source, after `--seconds`, or by Ctrl-C) a summary is printed; `--summary FILE` keeps it as JSON.
Latency is the time from the arrival of a window's last sample to the written decision. It includes the resampler, which
looks ten of its samples ahead.
Exit status: 0 the source or the time ended, 1 something that the user can put right, 130 interrupted.
"""

import argparse
from pathlib import Path

from rich.console import Console

from emg_gpt2.base.command_line import Parser, between, program
from emg_gpt2.base.errors import EMGError, exit_status
from emg_gpt2.base.interrupts import importing
from emg_gpt2.base.log import start_log
from emg_gpt2.live.options import ENCODINGS, add_decision_flags

GROUP = "use"


def main(argv: list[str] | None = None) -> int:
    """Decide as the command line says; returns the exit status."""
    return exit_status("stream", lambda: run(parse(argv)))


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line; raises EMGError for what is wrong with it."""
    about = "Decisions of a trained model as samples arrive."
    packet = "A UDP packet, little-endian: 8 bytes with the number of its first sample (unsigned), then that sample "
    packet += "and those after it, each with the values of all channels (float32, or int16 with --encoding int16). "
    parser = Parser(prog=program("stream"), description=about, epilog=f"{packet}Defaults are in brackets.")
    add = parser.add_argument
    add("source", metavar="SOURCE", help="a recording, - (standard input), udp://HOST:PORT, or lsl://NAME")
    add("--rate", type=between(float, 10, 1e6), metavar="HZ", help="sampling rate of standard input or UDP (Hz)")
    add("--encoding", choices=("csv", *ENCODINGS), help="of standard input (csv) or UDP (float32)")
    speed = "of a file, times its own; 0: without waiting (%(default)s)"
    add("--speed", type=between(float, 0, 1000), default=1.0, metavar="X", help=speed)
    add("--seconds", type=between(float, 0.1, 1e9), metavar="X", help="stop after so much signal (s; never)")
    add("--out", type=Path, metavar="FILE", help="write the lines (CSV) to this file, not to standard output")
    add("--summary", type=Path, metavar="FILE", help="also keep the summary, as JSON")
    add_decision_flags(parser)
    parser.set_defaults(filter="causal")
    args = parser.parse_args(argv)
    if args.reference == "session":
        raise EMGError("--reference session: a stream does not know its session beforehand; choose running or a file")
    return args


def run(args: argparse.Namespace) -> int:
    """Start the log and decide."""
    start_log(Console(stderr=True, highlight=False))
    with importing():  # torch takes seconds
        from emg_gpt2.live.streaming import stream
    return stream(args)
