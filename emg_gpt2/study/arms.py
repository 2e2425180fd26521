"""The arms of an ablation: what each model consists of, and which can be made here."""

import bisect
import copy
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import GPT2Config

from emg_gpt2.base.command_line import closest
from emg_gpt2.base.errors import EMGError
from emg_gpt2.base.files import replace_folder
from emg_gpt2.model.build import build_model
from emg_gpt2.model.config import EMGConfig
from emg_gpt2.model.model import EMGForSequenceClassification
from emg_gpt2.model.shapes import GPT2Shape
from emg_gpt2.settings import Settings
from emg_gpt2.training.adapt import choose_trained
from emg_gpt2.training.new_model import new_config
from emg_gpt2.windows.reading import WindowSet

ALL = -999  # NUM_LAYERS: more blocks than any model has
WEIGHTS = {"pretrained": "require", "random": "never", "shuffled": "shuffled"}  # arms' names → PRETRAINED
ADAPTED = {"frozen": "frozen", "norms": "norms trained", "lora": "LoRA", "full": "fully trained"}  # ADAPT → in words


@dataclass(frozen=True)
class Arm:
    """One kind of model, and the settings that make it from those of the command line."""

    name: str
    title: str
    changes: dict

    @property
    def is_trained(self) -> bool:
        return self.name != "linear"


def _simpler(name: str, title: str, **changes) -> Arm:
    return Arm(name, title, {"PRETRAINED": "never", "NUM_LAYERS": ALL, "ADAPT": "full"} | changes)


# One block, attention and MLP, is LLM2Trsf of Tan et al. (NeurIPS 2024), who found it as good as whole language models
# on forecasting; `no-backbone` is their "w/o LLM".
ARMS = (
    *(
        Arm(f"{weights}-{adapt}", f"{weights}, {words}", {"PRETRAINED": pretrained, "NUM_LAYERS": ALL, "ADAPT": adapt})
        for weights, pretrained in WEIGHTS.items()
        for adapt, words in ADAPTED.items()
    ),
    _simpler("small", "small transformer"),
    _simpler("one-block", "one block", BLOCKS=1),
    _simpler("no-backbone", "no backbone", BLOCKS=0),
    _simpler("linear", "LDA on log covariances", BLOCKS=0, LINEAR_PATH=True),
)


def arms_named(names: list[str]) -> list[Arm]:
    """The arms of these names, all where there are none; raises EMGError for an unknown name."""
    known = [arm.name for arm in ARMS]
    for name in names:
        if name not in known:
            raise EMGError(f"ARMS: there is no arm {name}{closest(name, known)}; here are {', '.join(known)}")
    return [arm for arm in ARMS if not names or arm.name in names]


def arms_of(
    windows: WindowSet, settings: Settings, names: list[str], out: Path
) -> tuple[list[Arm], dict[str, str], int]:
    """The arms of these names that can be run, arm → why another cannot, and the length of a patch (samples).

    The small transformer, whose config.json goes into out/small, has as many trained parameters as the arms that train
    norms alone. Raises EMGError.
    """
    wanted = arms_named(names)
    model = build_model(new_config(windows, settings), settings.MODEL_NAME, "never", settings.BLOCKS)
    choose_trained(model, Settings(ADAPT="norms"))
    missing = {}
    try:
        build_model(new_config(windows, settings), settings.MODEL_NAME, "require", settings.BLOCKS)
    except EMGError as error:
        needing = [arm.name for arm in wanted if arm.changes["PRETRAINED"] in ("require", "shuffled")]
        missing = dict.fromkeys(needing, f"weights not available here ({error})")
    small = write_small_backbone(model.config, model.num_parameters(only_trainable=True), out / "small")
    named = {"small": {"MODEL_NAME": str(small)}}
    arms = [replace(arm, changes=arm.changes | named.get(arm.name, {})) for arm in wanted if arm.name not in missing]
    return arms, missing, model.config.patch


def write_small_backbone(like: EMGConfig, target: int, folder: Path) -> Path:
    """config.json of a GPT-2 so narrow that a model on it, fully trained, trains about `target` parameters.

    Blocks and heads are as many as in `like`; the width is the nearest whole number of heads.
    """
    heads = like.shape.num_attention_heads
    widths = range(heads, like.width + heads, heads)
    above = bisect.bisect_left(widths, target, key=lambda width: count_parameters(narrowed(like, width)))
    near = widths[max(0, above - 1) : above + 1]
    width = min(near, key=lambda width: abs(count_parameters(narrowed(like, width)) - target))
    shape = GPT2Config(**narrowed(like, width).backbone)
    replace_folder(folder, shape.save_pretrained)
    return folder


def narrowed(config: EMGConfig, width: int) -> EMGConfig:
    """The config with as many blocks of a GPT-2 of another width, and as many heads."""
    config = copy.deepcopy(config)
    blocks, heads = config.shape.num_hidden_layers, config.shape.num_attention_heads
    config.backbone = GPT2Shape(n_embd=width, n_layer=blocks, n_head=heads).first(blocks, config.dropout).content()
    return config


def count_parameters(config: EMGConfig) -> int:
    """Parameters of a model that train when every block does."""
    with torch.device("meta"):  # shapes without memory
        model = EMGForSequenceClassification(config)
    return model.num_parameters(only_trainable=True)
