"""Model folders, checkpoints and run folders from strangers.

None of their code is run, and no size that they claim is believed. Every try is a call of the real loader or command
in a process of bounded memory: it has to be refused in one sentence, or end right, and no file may appear but where the
command was told to write.
"""

import json
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModel
from transformers.utils import logging

from emg_gpt2.base.errors import EMGError
from emg_gpt2.model.build import build_model, load_model
from emg_gpt2.model.config import EMGConfig
from emg_gpt2.model.model import EMGForSequenceClassification
from emg_gpt2.model.shapes import FAMILIES
from stress.hostile_changes import (
    Change,
    model_plants,
    mutation,
    names_in_metrics,
    odd_configs,
    odd_weights,
    state_plants,
)
from stress.process import Started
from stress.row import Row
from stress.scripts import make_recordings, make_windows, run_well, start

PATIENCE, LONG_PATIENCE = 60.0, 600.0  # s for a try, and for one that trains a little
TRIES, NIGHTLY_TRIES = (40, 30, 8), (2500, 700, 200)  # mutated configs, weights, files of a run
FEW = 10_000  # samples of a window that is computed
CALLS = (("load", "model"), *(("build", family) for family in FAMILIES))  # and the folders that they open
RAW = "--subjects 3 --sessions 2 --trajectories repeats_long --channels 2 --sampling-rate 1000 --repetitions 2"
TINY = {"vocab_size": 5, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
TINY |= {"max_position_embeddings": 64, "ffn_dim": 32, "word_embed_proj_dim": 16, "num_key_value_heads": 2}
TINY |= dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
PREPROCESSING = {"FILTER": "causal", "BAND_HZ": [20.0, 700.0], "SAMPLE_RATE": 1000.0, "WINDOW_MS": 100.0}
PREPROCESSING |= {"STRIDE_MS": 50.0, "TRIM_START_MS": 0.0, "TRIM_END_MS": 0.0, "LEGAL_VALUES": []}

Try = tuple[str, str, Change]  # a call, the folder that it opens a copy of, and how that copy is changed
Log = Callable[[str], None]


def rows(nightly: bool, folder: Path, seed: int, log: Log) -> Iterator[Row]:
    """One row per kind of hostility."""
    rng, sandbox = np.random.default_rng(seed), Sandbox(folder)
    configs, weights, files = NIGHTLY_TRIES if nightly else TRIES
    log("making a model, a backbone of every family, a run that was interrupted and one that is finished")
    make_models(folder)
    make_runs(folder)
    yield sandbox.row("pickles and code in a model folder", plants(sandbox))
    strange = [("load", "model", change) for change in odd_weights(alone=True)]
    strange += [(*one, change) for one in CALLS for change in odd_weights(alone=False)]
    yield sandbox.row("model.safetensors that is something else", strange)
    yield sandbox.row("config.json with absurd values", absurd_configs(folder, rng, nightly))
    yield sandbox.row("mutated config.json", mutated_models("config.json", configs, rng))
    yield sandbox.row("mutated model.safetensors", mutated_models("model.safetensors", weights, rng))
    log("resuming and reporting hostile runs, some seconds each")
    kinds = (("interrupted", True), ("interrupted", False), ("finished", False))
    states = [("resume", kind, change) for kind, alone in kinds for change in state_plants(sandbox.trace, alone)]
    yield sandbox.row("pickles in last/ and refit/last/, resumed", states)
    yield sandbox.row("mutated files of a run", mutated_runs(files, rng))
    yield scripts_in_a_report(sandbox)


# ---- where it happens -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sandbox:
    """A folder of models and runs. Each try gets a changed copy, and nothing may appear beside that.

    trace: the file that planted code would make.
    """

    folder: Path

    @property
    def copy(self) -> Path:
        return self.folder / "tried" / "copy"

    @property
    def trace(self) -> Path:
        return self.folder / "executed"

    def row(self, what: str, tries: list[Try]) -> Row:
        row = Row("hostile_models", what)
        for call, kind, change in tries:
            self.attempt(row, call, kind, change)
        return row

    def attempt(self, row: Row, call: str, kind: str, change: Change) -> None:
        """Add the outcome of a call on a changed copy of the folder `kind` to the row."""
        shutil.rmtree(self.copy.parent, ignore_errors=True)
        shutil.copytree(self.folder / kind, self.copy)
        change(self.copy)
        before, wrong = self.others(), ""
        ended = self.start(call).end()
        if self.trace.exists():
            self.trace.unlink()
            wrong = "the pickle or code was run"
        elif stray := self.others() ^ before:
            wrong = f"{sorted(stray)[0]} was made or removed"
        row.add_call(ended, f"{call} of {change.__name__}", wrong)

    def others(self) -> set[str]:
        """All paths but those of the try."""
        return {str(path) for path in self.folder.rglob("*") if self.copy.parent not in path.parents}

    def start(self, call: str) -> Started:
        """Call one of FUNCTIONS, or a command, with the copy."""
        limits = {"patience": LONG_PATIENCE if call == "resume" else PATIENCE}
        if call in FUNCTIONS:
            return Started(FUNCTIONS[call], (self.copy,), **limits)
        out = ["--out", self.copy.parent / "out"]
        arguments = {
            "resume": ["--resume", self.copy],
            "report": [self.copy],
            "export": [self.copy, *out],
            "predict": [self.folder / "raw", "--model", self.copy, *out],
        }
        return start("main" if call == "resume" else f"emg_gpt2 {call}", arguments[call], self.folder, **limits)


def load(folder: Path) -> str:
    """Load a model, and compute the logits of silence."""
    model = load_model(folder)
    shape = (1, model.config.window, len(model.config.channels))
    if shape[1] <= FEW and not model(emg=torch.zeros(shape)).logits.isfinite().all():
        return "the logits of a silent window are not finite"
    return "right"


def build(folder: Path) -> None:
    """Build a model on a backbone with its weights, and on one of its shape."""
    for pretrained in ("require", "never"):
        build_model(EMGConfig(window=100, patch=50), str(folder), pretrained, 2)


FUNCTIONS = {"load": load, "build": build}


# ---- models and runs ------------------------------------------------------------------------------------------


def make_models(folder: Path) -> None:
    """model/: one with every kind of tokens; and a language model of every family."""
    logging.disable_progress_bar()
    torch.manual_seed(0)
    for family in FAMILIES:
        AutoModel.from_config(AutoConfig.for_model(family, **TINY)).save_pretrained(folder / family)
    blocks = {"n_embd": 16, "n_head": 2, "n_layer": 2, "n_positions": 64}
    names = {"channels": ["a", "b"], "class_codes": [0, 1], "class_names": ["idle", "fist"]}
    shape = {"window": 100, "patch": 50, "tokens": ["covariance", "power", "bands", "raw"], "ring": 2, "rotation": 1}
    config = EMGConfig(backbone=blocks, preprocessing=PREPROCESSING, **names, **shape)
    EMGForSequenceClassification(config).save_pretrained(folder / "model")


def make_runs(folder: Path) -> None:
    """raw/, windows.parquet, finished/, which was trained twice, and interrupted/, whose last/ has a state."""
    windows = make_windows(make_recordings(folder, RAW), folder / "windows.parquet", "--filter", "putemg")
    flags = ["--data-location", windows, "--model-name", folder / "gpt2", "--precision", "fp32"]
    flags += ["--filters", "2", "--tracker", "none", "--split", "repetition", "--num-epochs", "2", "--run-dir"]
    run_well("main", [*flags, "finished"], folder)
    started = start("main", [*flags, "interrupted", "--batch-size", "4", "--no-refit"], folder)
    while not (started.has_ended() or (folder / "interrupted" / "last" / "history.json").exists()):
        started.process.join(0.02)
    ended = started.after(0, signal.SIGINT)  # the first checkpoint is followed by the last one
    if ended is None or ended.status != 130:
        raise EMGError(f"the run was not interrupted: {ended}")


# ---- tries ----------------------------------------------------------------------------------------------------


def plants(sandbox: Sandbox) -> list[Try]:
    """Beside the weights what is planted does nothing; in their place the folder is refused."""
    changes, everything = model_plants(sandbox.trace)
    return [(*one, change) for one in CALLS for change in changes] + [
        (call, "model", everything) for call in ("export", "predict")
    ]


def absurd_configs(folder: Path, rng: np.random.Generator, nightly: bool) -> Iterator[Try]:
    for call, kind in CALLS:
        content = json.loads((folder / kind / "config.json").read_text())
        for change in odd_configs(content, rng, few=not nightly):
            yield call, kind, change


def mutated_models(name: str, times: int, rng: np.random.Generator) -> Iterator[Try]:
    for number in range(times):
        built = number // 4 % len(FAMILIES) + 1 if number % 4 == 3 else 0
        yield *CALLS[built], mutation(name, int(rng.integers(2**32)))


def mutated_runs(times: int, rng: np.random.Generator) -> Iterator[Try]:
    """Resumed where the file belongs to the checkpoint, else reported."""
    resumed = ("env.json", "last/history.json", "last/epoch.json", "last/state.safetensors", "split.csv")
    shown = ("metrics.json", "env.json", "history.csv", "split.csv", "predictions.parquet", "best_model/config.json")
    for number in range(times):
        seed, names = int(rng.integers(2**32)), resumed if number % 4 == 0 else shown
        call, kind = ("resume", "interrupted") if number % 4 == 0 else ("report", "finished")
        yield call, kind, mutation(names[number // 4 % len(names)], seed)


def scripts_in_a_report(sandbox: Sandbox) -> Row:
    """Names and notes that would be a script, or end one, are text on the page."""
    row = Row("hostile_models", "scripts in the names of a report")
    for planted in ("<script>planted()</script>", "</script><script>planted()//", "'\"><img src=x onerror=planted()>"):
        sandbox.attempt(row, "report", "finished", names_in_metrics(planted))
        page = sandbox.copy / "report.html"
        marks = [mark for mark in ("<script>planted", "<img src=x") if page.is_file() and mark in page.read_text()]
        if marks:
            row.lost, row.right = [*row.lost, f"the page holds {marks[0]}"], row.right - 1
    return row
