"""How a stranger may change a model or run folder, for the programme `hostile_models`.

A change is a function that is given the folder; its name says what it does.
"""

import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from stress.fuzz import damage
from stress.intruder import Intruder

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
FEW_VALUES = 40  # of all keys with all odd values
WEIGHTS, CONFIG = "model.safetensors", "config.json"

Change = Callable[[Path], None]


def named(name: str, change: Change) -> Change:
    change.__name__ = name
    return change


# ---- pickles and code -----------------------------------------------------------------------------------------


def pickles(trace: Path) -> tuple[bytes, bytes]:
    """A plain one, and a file of torch.save's with one in it; either would make the file `trace`."""
    file = io.BytesIO()
    torch.save({"step": Intruder(trace)}, file)
    return pickle.dumps(Intruder(trace)), file.getvalue()


def model_plants(trace: Path) -> tuple[list[Change], Change]:
    """Pickles beside the weights and in their place, every kind of code; and all of it in place of the weights."""
    packed, kinds = [dict.fromkeys(PICKLED, content) for content in pickles(trace)], code(trace)
    changes = [plant("pickles", files, alone) for files in packed for alone in (False, True)]
    changes += [plant(name, files) for name, files in kinds.items()]
    return changes, plant("pickles and code", packed[1] | kinds["auto_map"], alone=True)


def code(trace: Path) -> dict[str, dict[str, bytes | dict]]:
    """Name → file → its content, or what is put into the JSON there, that would have something run or fetched."""
    python = f"open({str(trace)!r}, 'w')\n".encode()
    yaml = f"---\ntags: !!python/object/apply:builtins.open [{str(trace)!r}, w]\n---\n".encode()
    classes = {"AutoConfig": "modeling_emg.A", "AutoModel": "modeling_emg.A", "AutoTokenizer": ["modeling_emg.A"]}
    mapped = {"auto_map": classes | {"AutoModelForSequenceClassification": "modeling_emg.A"}, "custom_code": True}
    kernel, adapter = "strangers/kernel", {"base_model_name_or_path": "/x", "auto_mapping": {}}
    return {
        "auto_map": {"modeling_emg.py": python, CONFIG: mapped | {"trust_remote_code": True}},
        "custom_generate": {"custom_generate/generate.py": python, "generation_config.json": b'{"custom_generate": 1}'},
        "adapter": {"adapter_config.json": json.dumps(adapter).encode()},
        "quantization": {CONFIG: {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}},
        "kernel": {CONFIG: {"attn_implementation": kernel, "_attn_implementation": kernel}},
        "other weights": {CONFIG: {"transformers_weights": "../executed", "fusion_config": {"a": "b"}}},
        "tokenizer": {
            "tokenizer_config.json": json.dumps(mapped).encode(),
            "processor_config.json": b'{"auto_map": 1}',
        },
        "card": {"README.md": yaml},
        "conftest": {"sitecustomize.py": python, "__init__.py": python, "EMG_utils.py": python},
    }


def plant(name: str, files: dict[str, bytes | dict], alone: bool = False) -> Change:
    """Write the files, or add to the JSON there; alone: the weights are removed."""

    def change(folder: Path) -> None:
        for path, content in files.items():
            (folder / path).parent.mkdir(exist_ok=True)
            if isinstance(content, dict):
                content = json.dumps(json.loads((folder / path).read_bytes()) | content).encode()
            (folder / path).write_bytes(content)
        if alone:
            (folder / WEIGHTS).unlink()

    return named(f"{name} in place of the weights" if alone else name, change)


def state_plants(trace: Path, alone: bool) -> Iterator[Change]:
    """Pickles beside the state of a run; alone: in its place too, of both kinds."""
    for content in pickles(trace) if alone else pickles(trace)[:1]:

        def change(run: Path, content: bytes = content) -> None:
            for last in (run / "last", run / "refit" / "last"):
                (last / "state").mkdir(parents=True, exist_ok=True)
                for name in STATE_PICKLES:
                    (last / "state" / name).write_bytes(content)
            if alone:
                (run / "last" / "state.safetensors").write_bytes(content)

        yield named(f"pickles {'in place of' if alone else 'beside'} the state", change)


# ---- weights that claim what is not so --------------------------------------------------------------------------


def odd_weights(alone: bool) -> list[Change]:
    """Files in place of the weights; alone: links, pipes and lists of shards, which replace the config too."""
    if alone:
        return [shards_outside, link_to_folder, folder_of_that_name, endless, pipe]
    return [plant(name, {WEIGHTS: content}) for name, content in strange_tensors().items()]


def strange_tensors() -> dict[str, bytes]:
    """Files that are not safetensors, or claim sizes and places that they do not have."""
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


def tensors(header: bytes) -> bytes:
    """A safetensors file of four zeros with that header."""
    return struct.pack("<Q", len(header)) + header + bytes(16)


def shards_outside(folder: Path) -> None:
    os.replace(folder / WEIGHTS, folder.parent / "x.safetensors")
    shards = dict.fromkeys(("scale", "head.bias"), "../x.safetensors") | {"centre": "/x.safetensors"}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))


def link_to_folder(folder: Path) -> None:
    (folder / CONFIG).unlink()
    (folder / CONFIG).symlink_to("/")


def folder_of_that_name(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).mkdir()


def endless(folder: Path) -> None:
    for name in (CONFIG, WEIGHTS):
        (folder / name).unlink()
        (folder / name).symlink_to("/dev/zero")


def pipe(folder: Path) -> None:
    """Nobody ever writes into it."""
    (folder / CONFIG).unlink()
    os.mkfifo(folder / CONFIG)


# ---- configs that claim what is not so --------------------------------------------------------------------------


def odd_configs(content: dict, rng: np.random.Generator, few: bool) -> Iterator[Change]:
    """Every key of a config with every odd value, or with some of them, and files of absurd size."""
    keys = [(key,) for key in content] + [("backbone", key) for key in content.get("backbone", {})]
    pairs = [(key, value) for key in keys for value in range(len(ODD))]
    for number in rng.choice(len(pairs), FEW_VALUES, replace=False) if few else range(len(pairs)):
        key, value = pairs[number]
        yield odd_value(key, ODD[value])
    for name, text in absurd_texts(content).items():
        yield plant(name, {CONFIG: text})


def odd_value(key: tuple[str, ...], value) -> Change:
    def change(folder: Path) -> None:
        content = json.loads((folder / CONFIG).read_text())
        inner = content[key[0]] if len(key) == 2 else content
        inner[key[-1]] = value
        (folder / CONFIG).write_text(json.dumps(content))

    return named(f"{'.'.join(key)} = {str(value)[:30]!r}", change)


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


def names_in_metrics(planted: str) -> Change:
    """Put `planted` into every name and note that a report shows."""

    def change(run: Path) -> None:
        metrics = json.loads((run / "metrics.json").read_text())
        text = json.dumps(metrics | {"data_note": planted, "device": planted, "split_description": planted})
        for name in metrics["classes"].values():
            text = text.replace(json.dumps(name), json.dumps(planted + name))
        (run / "metrics.json").write_text(text)
        for name in ("split.csv", "history.csv"):
            table = (run / name).read_text().replace("emg_gestures", planted.replace('"', ""))
            (run / name).write_text(table.replace("random", planted))

    return named(f"names with {planted}", change)


# ---- mutations at random ----------------------------------------------------------------------------------------


def mutation(name: str, seed: int) -> Change:
    """A change of one file that is a function of the seed: an odd value, a lost key, or damaged bytes."""

    def change(folder: Path) -> None:
        rng, path = np.random.default_rng(seed), folder / name
        content, kind = path.read_bytes(), rng.integers(5)
        if name.endswith(".json") and kind < 3:
            path.write_text(json.dumps(odd_leaf(json.loads(content), rng)))
        else:
            checked = header_size(content) if name.endswith(".safetensors") else len(content)
            path.write_bytes(damage(content[:checked], rng)[0] + content[checked:])

    return named(f"{name} with seed {seed}", change)


def header_size(content: bytes) -> int:
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
