"""Checkpoints, model folders and run folders from strangers: none of it is run, none of its claims is believed.

Every try is a call of the real scripts in a process of bounded memory (tools/stress/victim.py): it has to be refused in
one sentence, or end right, and no file may appear but where the script was told to write.
"""

import io
import json
import os
import pickle
import shutil
import signal
import struct
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from transformers import GPT2Config, GPT2Model

from emg_gpt2.model.config import EMGConfig
from emg_gpt2.model.model import EMGForSequenceClassification
from stress.fuzz import damage
from stress.intruder import Intruder
from stress.row import Row

PROGRAMME = "hostile_models"
MEGABYTES = 2000  # that a try may take beyond what Python and torch hold
SECONDS = 60  # that a try may take; the tries that train a little are given ten times as much
TRIES = {False: (40, 30, 8), True: (2500, 700, 200)}  # mutated configs, weights, files of a run; the latter: nightly
PICKLED = (  # what libraries take for pickles in a model folder
    *("pytorch_model.bin", "model.pt", "model.pth", "model.ckpt", "training_args.bin", "optimizer.bin", "scheduler.pt"),
    *(".metadata", "adapter_model.bin", "flax_model.msgpack", "tf_model.h5", "tokenizer.pkl", "state_dict.pkl"),
)
STATE_PICKLES = (  # earlier versions wrote the first into last/state/, by accelerate, which looks for the others
    *("custom_checkpoint_0.pkl", "random_states_0.pkl", "optimizer.bin", "scheduler.bin", "sampler.bin"),
    *("pytorch_model.bin", "model.safetensors", "scaler.pt", "dl_state_dict.bin"),
)
ODD = (  # values that no key expects
    *(0, -1, 10**9, 10**12, 10**400, 1e308, 5e-324, float("nan"), float("inf"), True, None, "", "x", "../../x", "/x"),
    *([], {}, [[]], [0] * 5000, {"a": {}}, "x" * 50_000, "\x1b[2J", "<script>planted()</script>", "\u202ex", ["a", 1]),
)

VICTIM = [sys.executable, "-m", "stress.victim"]

Change = Callable[[Path], None]
Say = Callable[[str], None]


def rows(nightly: bool, folder: Path, seed: int, say: Say) -> Iterator[Row]:
    """One line per kind of hostility; raises what the making of the victims' data raises."""
    rng = np.random.default_rng(seed)
    configs, weights, files = TRIES[nightly]
    with Sandbox(folder) as sandbox:
        say("making a model, a backbone, a run that was interrupted and one that is finished")
        make_models(folder)
        make_runs(sandbox)
        yield tried(sandbox, "pickles and code in a model folder", model_plants(sandbox))
        yield tried(sandbox, "model.safetensors that is something else", odd_weights(folder))
        yield tried(sandbox, "config.json with absurd values", odd_configs(folder, rng, nightly))
        yield tried(sandbox, "mutated config.json", mutated_files(folder, "config.json", configs, rng))
        yield tried(sandbox, "mutated model.safetensors", mutated_files(folder, "model.safetensors", weights, rng))
        say("resuming and reporting hostile runs, some seconds each")
        yield tried(sandbox, "pickles in last/ and refit/last/, resumed", state_plants(sandbox))
        yield tried(sandbox, "mutated files of a run", mutated_runs(folder, files, rng))
        yield scripts_in_a_report(sandbox)


def tried(sandbox: "Sandbox", what: str, tries: Iterator[tuple[str, str, Change]]) -> Row:
    """A row of tries: (call of the victim, folder to spoil a copy of, how)."""
    row = Row(PROGRAMME, what)
    for call, kind, change in tries:
        row.add(*sandbox.attempt(call, kind, change))
    return row


# ---- where it happens -----------------------------------------------------------------------------------------


class Sandbox:
    """A victim, started anew when it dies, and what no file may appear in: everything beside the spoilt copy."""

    def __init__(self, folder: Path):
        self.folder, self.copy, self.out = folder, folder / "victim" / "copy", folder / "victim" / "out"
        self.trace, self.process = folder / "executed", None

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *_) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()

    def attempt(self, call: str, kind: str, change: Change) -> tuple[str, float, float]:
        """How the call on a spoilt copy of the folder `kind` ended, its seconds, and the victim's megabytes."""
        shutil.rmtree(self.folder / "victim", ignore_errors=True)
        shutil.copytree(self.folder / kind, self.copy)
        change(self.copy)
        before = self.beside()
        given = {"export": [self.out], "predict": [self.folder / "raw", self.out]}.get(call, [])
        end, seconds, megabytes = self.ask(call, self.copy, *given, patience=SECONDS * (10 if call == "resume" else 1))
        if self.trace.exists():
            self.trace.unlink()
            end = "the pickle or code was run"
        elif stray := self.beside() ^ before:
            end = f"{sorted(stray)[0]} was made or removed"
        named = getattr(change, "__name__", "")
        return end if end in ("refused", "right") else f"{call} of {named}: {end}", seconds, megabytes

    def beside(self) -> set[str]:
        return {str(path) for path in self.folder.rglob("*") if self.folder / "victim" not in path.parents}

    def ask(self, *line, patience: float) -> tuple[str, float, float]:
        if self.process is None or self.process.poll() is not None:
            self.start()
        clock = threading.Timer(patience, self.process.kill)
        clock.start()
        with suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps([str(word) for word in line]) + "\n")
            self.process.stdin.flush()
        answer = self.process.stdout.readline()
        clock.cancel()
        if answer:
            return tuple(json.loads(answer))
        status = self.process.wait()
        return f"the process ended with {status}, or after {patience} s", patience, 0.0

    def start(self) -> None:
        command = [*VICTIM, str(MEGABYTES)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        self.process = subprocess.Popen(command, cwd=root(), env=environment(), **pipes)


def root() -> Path:
    return Path(__file__).parents[2]


def environment() -> dict[str, str]:
    """Without the user's settings, the hub, and more than one thread."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("EMG_")}
    return own | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def make_models(folder: Path) -> None:
    """model/: one of every kind of tokens; backbone/: a GPT-2."""
    torch.manual_seed(0)
    blocks = {"n_embd": 16, "n_head": 2, "n_layer": 2, "n_positions": 64}
    names = {"channels": ["a", "b"], "class_codes": [0, 1], "class_names": ["idle", "fist"]}
    shape = {"window": 100, "patch": 50, "tokens": ["covariance", "power", "bands", "raw"], "ring": 2, "rotation": 1}
    config = EMGConfig(backbone=blocks, preprocessing=PREPROCESSING, **names, **shape)
    EMGForSequenceClassification(config).save_pretrained(folder / "model")
    GPT2Model(GPT2Config(**blocks, vocab_size=5, bos_token_id=0, eos_token_id=0)).save_pretrained(folder / "backbone")


PREPROCESSING = {"FILTER": "causal", "BAND_HZ": [20.0, 700.0], "SAMPLE_RATE": 1000.0, "WINDOW_MS": 100.0} | {
    "STRIDE_MS": 50.0, "TRIM_START_MS": 0.0, "TRIM_END_MS": 0.0, "LEGAL_VALUES": []
}  # fmt: skip


def make_runs(sandbox: "Sandbox") -> None:
    """raw/, windows.parquet, finished/, which was trained twice, and interrupted/, whose last/ has a state."""
    raw, windows = sandbox.folder / "raw", sandbox.folder / "windows.parquet"
    small = ["--subjects", "3", "--sessions", "2", "--trajectories", "repeats_long", "--channels", "2"]
    flags = ["--data-location", windows, "--model-name", sandbox.folder / "backbone", "--precision", "fp32"]
    flags += ["--filters", "2", "--tracker", "none", "--split", "repetition", "--num-epochs", "2", "--run-dir"]
    made = [sandbox.ask("simulate", raw, *small, "--sampling-rate", "1000", "--repetitions", "2", patience=SECONDS)[0]]
    made += [sandbox.ask("preprocess", raw, "--data-location", windows, patience=SECONDS)[0]]
    made += [sandbox.ask("train", *flags, sandbox.folder / "finished", patience=SECONDS)[0]]
    if made != ["right"] * 3:
        raise RuntimeError(f"the runs cannot be made: {made}")
    interrupt(sandbox, [*flags, sandbox.folder / "interrupted", "--batch-size", "4", "--no-refit"])


def interrupt(sandbox: "Sandbox", flags: list) -> None:
    """Ctrl-C after the first checkpoint, which is followed by the last one."""
    history, ended = sandbox.folder / "interrupted" / "last" / "history.json", threading.Event()

    def press() -> None:
        while not ended.wait(0.02):
            if history.exists():
                sandbox.process.send_signal(signal.SIGINT)
                return

    threading.Thread(target=press).start()
    end = sandbox.ask("train", *flags, patience=SECONDS)[0]
    ended.set()
    if "130" not in end:
        raise RuntimeError(f"the run was not interrupted: {end}")


# ---- pickles and code -----------------------------------------------------------------------------------------


def pickles(trace: Path) -> tuple[bytes, bytes]:
    """A plain one, and a file of torch.save's with one in it."""
    file = io.BytesIO()
    torch.save({"step": Intruder(trace)}, file)
    return pickle.dumps(Intruder(trace)), file.getvalue()


def model_plants(sandbox: Sandbox) -> Iterator[tuple[str, str, Change]]:
    """Beside the weights what is planted does nothing, in their place the folder is refused."""
    for content in pickles(sandbox.trace):
        for alone in (False, True):
            change = plant(dict.fromkeys(PICKLED, content), alone)
            yield from [(call, kind, change) for call, kind in (("load", "model"), ("build", "backbone"))]
    for name, files in code(sandbox.trace).items():
        for call, kind in (("load", "model"), ("build", "backbone")):
            yield call, kind, plant(files, False, name)
    everything = plant(dict.fromkeys(PICKLED, pickles(sandbox.trace)[1]) | code(sandbox.trace)["auto_map"], True)
    yield from [("export", "model", everything), ("predict", "model", everything)]


def code(trace: Path) -> dict[str, dict[str, bytes | dict]]:
    """What would have something run or fetched: name → file → its content, or what is put into the JSON there."""
    python = f"open({str(trace)!r}, 'w')\n".encode()
    yaml = f"---\ntags: !!python/object/apply:builtins.open [{str(trace)!r}, w]\n---\n".encode()
    everywhere = {"AutoConfig": "modeling_emg.A", "AutoModel": "modeling_emg.A", "AutoTokenizer": ["modeling_emg.A"]}
    mapped = {"auto_map": everywhere | {"AutoModelForSequenceClassification": "modeling_emg.A"}, "custom_code": True}
    return {
        "auto_map": {"modeling_emg.py": python, "config.json": mapped | {"trust_remote_code": True}},
        "custom_generate": {"custom_generate/generate.py": python, "generation_config.json": b'{"custom_generate": 1}'},
        "adapter": {"adapter_config.json": json.dumps({"base_model_name_or_path": "/x", "auto_mapping": {}}).encode()},
        "quantization": {
            "config.json": {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
        },
        "kernel": {
            "config.json": {"attn_implementation": "strangers/kernel", "_attn_implementation": "strangers/kernel"}
        },
        "other weights": {"config.json": {"transformers_weights": "../executed", "fusion_config": {"a": "b"}}},
        "tokenizer": {
            "tokenizer_config.json": json.dumps(mapped).encode(),
            "processor_config.json": b'{"auto_map": 1}',
        },
        "card": {"README.md": yaml},
        "conftest": {"sitecustomize.py": python, "__init__.py": python, "EMG_model.py": python},
    }


def plant(files: dict[str, bytes | dict], alone: bool, name: str = "pickles") -> Change:
    def planted(folder: Path) -> None:
        for path, content in files.items():
            (folder / path).parent.mkdir(exist_ok=True)
            if isinstance(content, dict):
                content = json.dumps(json.loads((folder / path).read_bytes()) | content).encode()
            (folder / path).write_bytes(content)
        if alone:
            (folder / "model.safetensors").unlink()

    planted.__name__ = f"{name}{' in place of the weights' if alone else ''}"
    return planted


def state_plants(sandbox: Sandbox) -> Iterator[tuple[str, str, Change]]:
    """In a run that was interrupted, beside its state and in its place, and in one that is finished."""
    for number, content in enumerate(pickles(sandbox.trace)):
        for kind, alone in (("interrupted", True), ("interrupted", False), ("finished", False)):
            if number == 0 or alone:
                yield "resume", kind, state_plant(content, alone)


def state_plant(content: bytes, alone: bool) -> Change:
    def planted(run: Path) -> None:
        for last in (run / "last", run / "refit" / "last"):
            (last / "state").mkdir(parents=True, exist_ok=True)
            for name in STATE_PICKLES:
                (last / "state" / name).write_bytes(content)
        if alone:
            (run / "last" / "state.safetensors").write_bytes(content)

    return planted


# ---- weights and configs that claim what is not -----------------------------------------------------------------


def odd_weights(folder: Path) -> Iterator[tuple[str, str, Change]]:
    for name, content in strange_tensors().items():
        for call, kind in (("load", "model"), ("build", "backbone")):
            yield call, kind, plant({"model.safetensors": content}, False, name)
    for change in (outside_index, link_to_folder, folder_of_that_name, endless, pipe):
        yield "load", "model", change


def strange_tensors() -> dict[str, bytes]:
    """Files that are no safetensors, or claim sizes and places that they do not have."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("../../x", b"x")
    one = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    headers = {
        "places beyond the end": {"scale": one | {"data_offsets": [2**40, 2**40 + 16]}},
        "places that turn back": {"scale": one | {"data_offsets": [16, 0]}},
        "overlapping": {"scale": one, "centre": one},
        "2^60 numbers": {"scale": one | {"shape": [2**30, 2**30]}},
        "2^64 numbers": {"scale": one | {"shape": [2**32, 2**32]}},
        "2^60 numbers and places": {"scale": {"dtype": "F32", "shape": [2**60], "data_offsets": [0, 2**62]}},
        "negative": {"scale": one | {"shape": [-4]}},
        "no such type": {"scale": one | {"dtype": "PICKLE"}},
        "a name with control characters": {"\x1b[2J" * 100: one},
        "no tensors": {},
    }
    found = {name: tensors(json.dumps(header).encode()) for name, header in headers.items()}
    found |= {"a zip": archive.getvalue(), "nothing": b"", "a long header": struct.pack("<Q", 2**63) + b"{}"}
    return found | {"deep": tensors(b'{"a":' * 100_000), "no JSON": tensors(b"\xff" * 100)}


def tensors(header: bytes, content: bytes = bytes(16)) -> bytes:
    return struct.pack("<Q", len(header)) + header + content


def outside_index(folder: Path) -> None:
    """A list of shards that lie elsewhere."""
    os.replace(folder / "model.safetensors", folder.parent / "x.safetensors")
    shards = dict.fromkeys(("scale", "head.bias"), "../x.safetensors") | {"centre": "/x.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))


def link_to_folder(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("/")


def folder_of_that_name(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()


def endless(folder: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (folder / name).unlink()
        (folder / name).symlink_to("/dev/zero")


def pipe(folder: Path) -> None:
    """Nobody ever writes into it."""
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")


def odd_configs(folder: Path, rng: np.random.Generator, nightly: bool) -> Iterator[tuple[str, str, Change]]:
    """Every key with every odd value, or with some of them, and files of absurd size."""
    for call, kind in (("load", "model"), ("build", "backbone")):
        content = json.loads((folder / kind / "config.json").read_text())
        keys = [(key,) for key in content] + [("backbone", key) for key in content.get("backbone", {})]
        pairs = [(key, value) for key in keys for value in range(len(ODD))]
        chosen = range(len(pairs)) if nightly else rng.choice(len(pairs), 40, replace=False)
        for number in chosen:
            key, value = pairs[number]
            yield call, kind, odd_value(key, ODD[value])
        for name, text in absurd_texts(content).items():
            yield call, kind, plant({"config.json": text}, False, name)


def odd_value(key: tuple[str, ...], value) -> Change:
    def changed(folder: Path) -> None:
        content = json.loads((folder / "config.json").read_text())
        inner = content[key[0]] if len(key) == 2 else content
        inner[key[-1]] = value
        (folder / "config.json").write_text(json.dumps(content))

    changed.__name__ = f"{'.'.join(key)} = {str(value)[:30]!r}"
    return changed


def absurd_texts(content: dict) -> dict[str, bytes]:
    names = content | {"channels": [f"EMG_{n}" for n in range(10**6)]}
    huge = content | {"n_layer": 10**9, "n_positions": 10**12, "n_embd": 10**9, "window": 10**12}
    return {
        "a million channels": json.dumps(names).encode(),
        "billions of blocks": json.dumps(huge | {"backbone": huge}).encode(),
        "100 MB": b'{"model_type": "gpt2", "a": "' + b"x" * 10**8 + b'"}',
        "nested": b"[" * 100_000,
        "nested objects": b'{"backbone":' * 100_000,
        "no UTF-8": json.dumps(content).encode("utf-16"),
        "a list": b"[1, 2]",
    }


# ---- fuzzing --------------------------------------------------------------------------------------------------


def mutated_files(folder: Path, name: str, times: int, rng: np.random.Generator) -> Iterator[tuple[str, str, Change]]:
    for number in range(times):
        call, kind = (("load", "model"), ("build", "backbone"))[number % 4 == 3]
        yield call, kind, mutation(name, int(rng.integers(2**32)))


def mutated_runs(folder: Path, times: int, rng: np.random.Generator) -> Iterator[tuple[str, str, Change]]:
    """Resumed where the file belongs to the checkpoint, else reported."""
    resumed = ("env.json", "last/history.json", "last/epoch.json", "last/state.safetensors", "split.csv")
    shown = ("metrics.json", "env.json", "history.csv", "split.csv", "predictions.parquet", "best_model/config.json")
    for number in range(times):
        seed, names = int(rng.integers(2**32)), resumed if number % 4 == 0 else shown
        call, kind = ("resume", "interrupted") if number % 4 == 0 else ("report", "finished")
        yield call, kind, mutation(names[number // 4 % len(names)], seed)


def mutation(name: str, seed: int) -> Change:
    """A change of one file that is a function of the seed: an odd value, a lost key, or damaged bytes."""

    def mutated(folder: Path) -> None:
        rng, path = np.random.default_rng(seed), folder / name
        content, kind = path.read_bytes(), rng.integers(5)
        if name.endswith(".json") and kind < 3:
            path.write_text(json.dumps(odd_leaf(json.loads(content), rng)))
        else:
            checked = described_part(content) if name.endswith(".safetensors") else len(content)
            path.write_bytes(damage(content[:checked], rng)[0] + content[checked:])

    mutated.__name__ = f"{name} with seed {seed}"
    return mutated


def described_part(content: bytes) -> int:
    """Bytes of the header of safetensors: what follows has no checksum, and damaged numbers are numbers."""
    return 8 + int.from_bytes(content[:8], "little")


def odd_leaf(content, rng: np.random.Generator):
    """The same JSON with one of its values, at any depth, gone or replaced by an odd one."""
    if not isinstance(content, dict | list) or not content or rng.random() < 0.2:
        return ODD[rng.integers(len(ODD))]
    places = list(content) if isinstance(content, dict) else range(len(content))
    place = places[rng.integers(len(places))]
    if isinstance(content, dict) and rng.random() < 0.1:
        return {key: value for key, value in content.items() if key != place}
    content[place] = odd_leaf(content[place], rng)
    return content


# ---- the report -----------------------------------------------------------------------------------------------


def scripts_in_a_report(sandbox: Sandbox) -> Row:
    """Names and notes that would be a script, or end one, are text on the page."""
    row, marks = Row(PROGRAMME, "scripts in the names of a report"), []
    for planted in ("<script>planted()</script>", "</script><script>planted()//", "'\"><img src=x onerror=planted()>"):
        end, seconds, megabytes = sandbox.attempt("report", "finished", names_in_metrics(planted))
        page = sandbox.copy / "report.html"
        marks = [mark for mark in ("<script>planted", "<img src=x") if page.is_file() and mark in page.read_text()]
        row.add(f"the page holds {marks[0]}" if marks else end, seconds, megabytes)
    return row


def names_in_metrics(planted: str) -> Change:
    def changed(run: Path) -> None:
        metrics = json.loads((run / "metrics.json").read_text())
        text = json.dumps(metrics | {"data_note": planted, "device": planted, "split_description": planted})
        for name in metrics["classes"].values():
            text = text.replace(json.dumps(name), json.dumps(planted + name))
        (run / "metrics.json").write_text(text)
        for name in ("split.csv", "history.csv"):
            table = (
                (run / name).read_text().replace("emg_gestures", planted.replace('"', "")).replace("random", planted)
            )
            (run / name).write_text(table)

    return changed
