"""The project's scripts and commands as functions for stress.process, and the small data and model that they run on."""

import importlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from emg_gpt2.base.errors import EMGError
from emg_gpt2.base.interrupts import start_script
from stress.process import Ended, Started

SIMULATED = "--subjects 03 --sessions 1 --repetitions 2 --channels 4 --sampling-rate 500"
CUT = ["--stride-ms", "500", "--trim-start-ms", "300", "--trim-end-ms", "0"]


def run_script(script: str, arguments: list[str], folder: Path, before: Callable[[], None] | None = None) -> int:
    """Run a script's main() with a command line, as from `folder`; returns the exit status.

    script: a module, or a command as in "emg_gpt2 predict"; before: what is done first.
    """
    import torch  # it is there already

    os.chdir(folder)
    torch.set_num_threads(1)
    name, *command = script.split()
    module = importlib.import_module(f"{name}.__main__" if command else name)
    sys.modules["__main__"] = module  # which worker processes import
    sys.argv = ["__main__.py" if command else f"{name}.py", *command, *arguments]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    start_script()
    if before:
        before()
    return module.main()


def start(
    script: str, arguments: list, folder: Path, before: Callable[[], None] | None = None, **limits: float
) -> Started:
    """`run_script` in a process of its own."""
    return Started(run_script, (script, [*map(str, arguments)], folder, before), **limits)


def run_well(script: str, arguments: list, folder: Path, **limits: float) -> Ended:
    """Run a script that nothing disturbs; raises EMGError where it fails."""
    ended = start(script, arguments, folder, **limits).end()
    if ended.status or not ended.tidy:
        raise EMGError(f"{script} by itself ends with {ended.status}: {ended.output[-500:]}")
    return ended


# ---- what they run on -----------------------------------------------------------------------------------------


def make_recordings(folder: Path, flags: str = SIMULATED) -> Path:
    """raw/: by default three small recordings of one person."""
    run_well("emg_gpt2 simulate", ["raw", *flags.split()], folder)
    return folder / "raw"


def make_windows(raw: Path, output: Path, *flags: str) -> Path:
    run_well("Preprocessing", [raw, "--data-location", output, *(flags or CUT)], output.parent)
    return output


def make_gpt2(folder: Path) -> Path:
    """A GPT-2 of width 16 and two blocks as transformers saves it."""
    import torch
    from transformers import GPT2Config, GPT2Model
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(7)
    shape = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
    GPT2Model(GPT2Config(**shape, vocab_size=5, bos_token_id=0, eos_token_id=0)).save_pretrained(folder)
    return folder


def small_training(windows: Path, gpt2: Path) -> list:
    """The flags of a training that takes a second."""
    data = ["--data-location", windows, "--split", "repetition", "--test-share", "0.5", "--batch-size", "32"]
    backbone = ["--model-name", gpt2, "--pretrained", "never", "--precision", "fp32", "--blocks", "1"]
    return [*data, *backbone, "--num-epochs", "2", "--tracker", "none"]
