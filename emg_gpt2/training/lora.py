"""Low-rank updates of the backbone's linear maps (LoRA; Hu et al., ICLR 2022), made and saved by peft.

peft is imported where it is needed: most trainings do without.
"""

import copy
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from emg_gpt2.model.backbone import blocks_of, norms_of
from emg_gpt2.model.files import disk_errors
from emg_gpt2.model.model import EMGForSequenceClassification

RANK = 8  # of an update, which is multiplied by 2: peft's alpha is twice the rank
NAME = "default"  # of the adapter inside the model
WEIGHTS = "adapter_model.safetensors"  # the name that peft looks for


def add_updates(backbone: nn.Module, below: int) -> None:
    """Add updates that train to every linear map of the blocks from number `below` on; none where there is no block.

    The maps themselves should be frozen; what else trains goes on training.
    """
    from peft import LoraConfig, inject_adapter_in_model

    linear = [one for block in blocks_of(backbone)[below:] for one in block.modules() if is_linear(one)]
    if not linear:
        return
    names = [name for name, module in backbone.named_modules() if module in linear]
    trained = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    transposed = any(isinstance(module, Conv1D) for module in linear)  # GPT-2's
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=names, fan_in_fan_out=transposed)
    inject_adapter_in_model(config, backbone, NAME)
    for parameter in trained:  # peft freezes all but the updates
        parameter.requires_grad_(True)


def is_linear(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, Conv1D))


def has_updates(backbone: nn.Module) -> bool:
    return hasattr(backbone, "peft_config")


@torch.no_grad()
def merged_weights(model: EMGForSequenceClassification) -> dict[str, torch.Tensor]:
    """The weights of a model without updates that gives the same logits: they are added to the linear maps."""
    state = model.state_dict()
    merged = {name.replace(".base_layer.", "."): state[name] for name in state if ".lora_" not in name}
    for name, module in model.named_modules():
        if hasattr(module, "get_delta_weight"):
            merged[f"{name}.weight"] = merged[f"{name}.weight"] + module.get_delta_weight(NAME)
    return merged


def adapter_weights(backbone: nn.Module) -> dict[str, torch.Tensor]:
    """All that training has changed in the backbone, as peft names it: the updates, norms and positions."""
    from peft import get_peft_model_state_dict

    kept = get_peft_model_state_dict(backbone, adapter_name=NAME, save_embedding_layers=False)
    for name in modules_beside(backbone):
        for key, tensor in backbone.get_submodule(name).named_parameters(name, recurse=False):
            kept[key] = tensor
    return {f"base_model.model.{name}": tensor for name, tensor in kept.items()}


def modules_beside(backbone: nn.Module) -> list[str]:
    """Names of the modules that are saved whole: norms, and what else trains beside the updates."""
    norms = norms_of(backbone)
    return [
        name
        for name, module in backbone.named_modules()
        if module in norms
        or (".lora_" not in name and any(one.requires_grad for one in module.parameters(recurse=False)))
    ]


def save_adapter(backbone: nn.Module, weights: dict[str, torch.Tensor], folder: Path) -> None:
    """Write the adapter as peft reads it, for the backbone that the training began with; raises OSError."""
    config = copy.copy(backbone.peft_config[NAME])
    config.inference_mode, config.modules_to_save = True, modules_beside(backbone)
    config.target_modules = sorted(config.target_modules)  # a set has another order in every process
    with disk_errors(folder):
        config.save_pretrained(folder)
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / WEIGHTS)
