"""The scripts of the project as processes that can be killed, and the small data and model that they run on.

A script takes seconds to import its libraries, in which a kill proves nothing. So one process, multiprocessing's fork
server, has the imports behind it, with a single thread, and every start is a fork of it which calls the script's real
main() with the command line that a user would give. Its output goes into a file.
"""

import importlib
import multiprocessing
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from emg_gpt2.base.errors import EMGError

PATIENCE = 120  # s; a script that takes longer hangs
SIMULATED = "--subjects 03 --sessions 1 --repetitions 2 --channels 4 --sampling-rate 500"
CUT = ["--stride-ms", "500", "--trim-start-ms", "300", "--trim-end-ms", "0"]


@dataclass
class Ended:
    """How a script ended: `status` is its exit status, or minus the signal that killed it."""

    status: int
    said: str
    seconds: float
    megabytes: float = 0.0

    @property
    def tidy(self) -> bool:
        return not any(words in self.said for words in ("Traceback", "Exception ignored", "Logging error"))

    @property
    def last_line(self) -> str:
        return self.said.rstrip().rpartition("\n")[2]

    @property
    def refused(self) -> bool:
        """With a sentence, and exit status 1, or 3 where a part could be done."""
        return self.status in (1, 3) and self.tidy and ": " in self.said


@dataclass
class Started:
    """A script that runs."""

    process: multiprocessing.Process
    log: Path
    began: float = field(default_factory=time.monotonic)

    def end(self, patience: float = PATIENCE) -> Ended:
        """Wait for it; one that hangs is killed, with status −9."""
        self.process.join(patience)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
        memory = self.log.with_suffix(".memory")
        megabytes = float(memory.read_text()) if memory.exists() else 0.0
        said = self.log.read_text(errors="replace")
        return Ended(self.process.exitcode, said, time.monotonic() - self.began, megabytes)

    def after(self, seconds: float, number: signal.Signals) -> Ended | None:
        """Send it a signal, and see how it ends; None where it has ended before."""
        self.process.join(seconds)
        if self.process.exitcode is not None:
            return None
        os.kill(self.process.pid, number)
        return self.end()


def server() -> multiprocessing.context.BaseContext:
    """The fork server; what was forked from it forks by itself. Raises EMGError where the system has none."""
    if multiprocessing.parent_process():
        return multiprocessing.get_context("fork")
    if "forkserver" not in multiprocessing.get_all_start_methods():
        raise EMGError("this system cannot fork a process; try it on Linux or macOS")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["stress.imported"])
    return context


def start(script: str, arguments: list, folder: Path, log: Path) -> Started:
    """`script` (a module's name) with a command line, as from `folder`; returns when it is about to begin."""
    log.unlink(missing_ok=True)
    log.with_suffix(".memory").unlink(missing_ok=True)
    process = server().Process(target=run_script, args=(script, [*map(str, arguments)], folder, log))
    process.start()
    while not log.exists() and process.exitcode is None:
        process.join(0.001)
    return Started(process, log)


def run(script: str, arguments: list, folder: Path, log: Path) -> Ended:
    return start(script, arguments, folder, log).end()


def run_script(script: str, arguments: list[str], folder: Path, log: Path) -> None:
    """What the forked process does; leaves with the script's exit status."""
    import torch  # both are there already

    from emg_gpt2.base.interrupts import start_script
    from stress.memory import forget_peak, peak_megabytes

    forget_peak()
    os.chdir(folder)
    torch.set_num_threads(1)
    sys.argv = [script, *arguments]
    sys.modules["__main__"] = module = importlib.import_module(script)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    start_script()
    into = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
    os.dup2(into, 1)
    os.dup2(into, 2)
    status = module.main()
    log.with_suffix(".memory").write_text(f"{peak_megabytes()}")
    sys.exit(status)


# ---- what they run on -----------------------------------------------------------------------------------------


def make_recordings(folder: Path, log: Path) -> Path:
    """Three small recordings of one person."""
    ended = run("tools.simulate", [folder / "raw", *SIMULATED.split()], folder, log)
    if ended.status:
        raise EMGError(f"no recordings could be simulated: {ended.last_line}")
    return folder / "raw"


def make_windows(raw: Path, output: Path, log: Path, *flags: str) -> Path:
    ended = run("Preprocessing", [raw, "--data-location", output, *CUT, *flags], output.parent, log)
    if ended.status:
        raise EMGError(f"no windows could be cut: {ended.last_line}")
    return output


def make_gpt2(folder: Path) -> Path:
    """A GPT-2 of width 32 and two blocks as transformers saves it."""
    import torch
    from transformers import GPT2Config, GPT2Model

    torch.manual_seed(7)
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 11, "bos_token_id": 0, "eos_token_id": 0}
    GPT2Model(GPT2Config(**shape)).save_pretrained(folder)
    return folder


def tiny(windows: Path, gpt2: Path) -> list:
    """The flags of a training that takes a second."""
    data = ["--data-location", windows, "--split", "repetition", "--test-share", "0.5", "--batch-size", "32"]
    backbone = ["--model-name", gpt2, "--pretrained", "never", "--precision", "fp32", "--blocks", "1"]
    return [*data, *backbone, "--num-epochs", "2", "--tracker", "none"]
