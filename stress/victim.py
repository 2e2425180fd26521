"""A process that does what it is asked to hostile files, in bounded memory, and says how each ended.

    python -m stress.victim MEGABYTES

Reads a line [what, path, more paths …] at a time and answers with a line [end, seconds, megabytes], where `end` is
"refused", "right", or a sentence.
"""

import io
import json
import os
import sys
import time

import torch

import main as main_script
import Preprocessing
from emg_gpt2.base.errors import EMGError
from emg_gpt2.commands import export, predict, report, simulate
from emg_gpt2.model.build import build_model, load_model
from emg_gpt2.model.config import EMGConfig
from stress.memory import forget_peak, limit_memory, peak_megabytes

STATUSES = {0: "right", 1: "refused"}
LONGEST_SENTENCE = 2000  # characters, of which a path may be many
FEW = 10_000  # samples of a window that is computed


def load(folder: str) -> str:
    """A model, and its logits of silence."""
    model = load_model(folder)
    shape = (1, model.config.window, len(model.config.channels))
    if shape[1] <= FEW and not model(emg=torch.zeros(shape)).logits.isfinite().all():
        return "the logits of a silent window are not finite"
    return "right"


def build(folder: str) -> str:
    """A new model on a backbone with its weights, and on one of its shape."""
    for pretrained in ("require", "never"):
        build_model(EMGConfig(window=100, patch=50), folder, pretrained, 2)
    return "right"


def command(script, *argv: str) -> str:
    """A script's main function; "refused" asks for one sentence and nothing else on the error output."""
    sys.argv = [script.__name__, *argv]
    given = [] if script in (main_script, Preprocessing) else [list(argv)]
    status = script.main(*given)
    return STATUSES.get(status, f"the exit status is {status}: {last_line()}")


CALLS = {
    "load": load,
    "build": build,
    "simulate": lambda *argv: command(simulate, *argv),
    "preprocess": lambda *argv: command(Preprocessing, *argv),
    "train": lambda *argv: command(main_script, *argv),
    "resume": lambda run: command(main_script, "--resume", run),
    "report": lambda run: command(report, run),
    "export": lambda run, out: command(export, run, "--out", out),
    "predict": lambda model, recordings, out: command(predict, recordings, "--model", model, "--out", out),
}


def ended(what: str, paths: list[str]) -> str:
    """How the call ended; whatever escapes from it would have been a traceback."""
    sys.stdout, sys.stderr = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    try:
        end = CALLS[what](*paths)
        return judged(last_line()) if end == "refused" else end
    except EMGError as error:
        return judged(str(error))
    except MemoryError:
        return "it wanted more memory than it has"
    except BaseException as error:
        return f"a traceback, {type(error).__name__}: {str(error)[:200]!r}"


def last_line() -> str:
    text = sys.stderr.buffer.getvalue().decode(errors="replace").rstrip("\n")
    return text.rpartition("\n")[2]


def judged(sentence: str) -> str:
    """Whether that is one sentence in which nothing is hidden."""
    fits = 0 < len(sentence) <= LONGEST_SENTENCE and sentence.isprintable()
    return "refused" if fits else f"no sentence but {sentence[:200]!r}"


def serve(megabytes: int) -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    torch.set_num_threads(1)
    limit_memory(megabytes * 1e6)
    for line in sys.stdin:
        what, *paths = json.loads(line)
        began = time.perf_counter()
        forget_peak()
        end = ended(what, paths)
        answers.write(json.dumps([end, time.perf_counter() - began, peak_megabytes()]) + "\n")


if __name__ == "__main__":
    serve(int(sys.argv[1]))
