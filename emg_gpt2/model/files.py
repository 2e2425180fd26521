"""The files of a model: found in a folder, the cache or the hub, checked, read and written.

Only config.json and safetensors are read. Untrusted files never execute code: there are no pickles and no remote code.
Sizes are compared with the config before memory is allocated for the weights.
"""

import errno
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from pathlib import Path

import torch
from huggingface_hub import ModelCard, constants, get_session, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError
from pydantic_core import from_json
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME
from transformers.utils import logging as transformers_logging

from emg_gpt2.base.errors import EMGError
from emg_gpt2.base.files import new_files, replace_file
from emg_gpt2.base.text import in_short

MAX_CONFIG_BYTES = 1 << 20
WEIGHTS_ERRORS = (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError)


# ---- finding ----------------------------------------------------------------------------------------------------


def find_files(source: Path | str, *names: str, **hub) -> list[Path]:
    """Paths of files in a folder, in the cache or on the hub.

    hub: arguments of hf_hub_download, such as revision. Raises OSError or ValueError where a file is missing.
    """
    if Path(source).is_dir():
        found = [Path(source) / (hub.get("subfolder") or "") / name for name in names]
    else:
        hub["local_files_only"] = hub.get("local_files_only") or not hub_answers()
        try:
            found = [Path(hf_hub_download(str(source), name, **hub)) for name in names]
        except EntryNotFoundError:
            raise FileNotFoundError(f"neither cache nor hub have its {' and '.join(names)}") from None
    if missing := [path.name for path in found if not path.is_file()]:
        raise FileNotFoundError(f"it has no {missing[0]}")
    return found


def hub_answers() -> bool:
    """Whether the hub can be reached, by one quick question; transformers would try for half a minute."""
    if constants.is_offline_mode():
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except Exception:  # each HTTP library has its own errors, and all of them mean no
        return False
    return True


# ---- reading ----------------------------------------------------------------------------------------------------


def read_json(path: Path) -> dict:
    """The content of a config.json; raises ValueError where it is too long or not a JSON object."""
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise ValueError(f"{path.name} has {path.stat().st_size:,} bytes, and a model's has a few thousand")
    content = from_json(path.read_bytes())
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} is not a JSON object")
    return content


def read_weights(
    paths: list[Path],
    expected: dict[str, torch.Tensor],
    prefix: str = "",
    strict: bool = False,
    optional: Sequence[str] = (),
) -> dict[str, torch.Tensor]:
    """The tensors of safetensors files that have the names in `expected`, in its types.

    expected: tensors without memory (on torch's meta device); prefix: may stand before a name in the files; strict:
    other tensors are refused, not left out; optional: names that the files may lack. Raises ValueError where a tensor
    is missing, superfluous, of another shape, or has values that are not finite.
    """
    with ExitStack() as stack:
        files = [stack.enter_context(safe_open(path, framework="pt")) for path in paths]
        owners = {key.removeprefix(prefix): (file, key) for file in files for key in file.keys()}  # noqa: SIM118
        if strict and (superfluous := sorted(owners.keys() - expected.keys())):
            raise ValueError(f"the weights {superfluous[0]} do not belong to the config")
        expected = {name: one for name, one in expected.items() if name in owners or name not in optional}
        for name, tensor in expected.items():
            _check_shape(name, tuple(tensor.shape), owners)
        return {name: _read_tensor(name, *owners[name]).to(tensor.dtype) for name, tensor in expected.items()}


def _check_shape(name: str, expected: tuple[int, ...], owners: dict) -> None:
    if name not in owners:
        raise ValueError(f"the weights {name} are missing")
    file, key = owners[name]
    found = tuple(file.get_slice(key).get_shape())
    if found != expected:
        raise ValueError(f"the config makes {name} {expected}, and in the weights it is {found}")


def _read_tensor(name: str, file, key: str) -> torch.Tensor:
    tensor = file.get_tensor(key)
    if not tensor.isfinite().all():
        raise ValueError(f"the weights {name} are not all finite")
    return tensor


def load_saved(
    kind: type[PreTrainedModel], source: Path | str, config: PreTrainedConfig | None = None, **hub
) -> PreTrainedModel:
    """A model of the class `kind` in evaluation mode, from its config.json and model.safetensors.

    config: used in place of config.json; hub: see `find_files`. Raises EMGError where a file is missing, the config is
    not valid, or weights are missing, superfluous, damaged or of other sizes than the config says.
    """
    try:
        config_file, weights_file = find_files(source, CONFIG_NAME, SAFE_WEIGHTS_NAME, **hub)
        config = deepcopy(config) if config else kind.config_class(**read_json(config_file))
        config.check_limits()
        with no_init_weights():
            with torch.device("meta"):  # takes no memory
                expected = kind(config).state_dict()
            weights = read_weights([weights_file], expected, strict=True, optional=kind.since_version_0_3)
            model = kind(config)
        model.load_state_dict(weights, strict=False)  # read_weights has compared the names
    except WEIGHTS_ERRORS as error:
        not_a_name = isinstance(error, HFValidationError)  # what is not a folder is taken for a name on the hub
        reason = "there is no such folder" if not_a_name else in_short(error)
        inside = Path(source) / "best_model"  # of a run
        advice = inside if inside.is_dir() else "a best_model folder, or a model on the hub"
        raise EMGError(f"{source}: no model can be loaded ({reason}); name {advice}") from None
    model.config.name_or_path = model.name_or_path = str(source)
    return model.eval()


# ---- writing ----------------------------------------------------------------------------------------------------


def save_model(model: PreTrainedModel, card: ModelCard, folder: Path) -> None:
    """Put a model's files and its card into `folder`, each one whole, and leave its other files alone."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with new_files(folder) as new:
            save_weights(model, new)
            save_card(card, new)
    except OSError as error:
        reason = error.strerror or error
        raise EMGError(f"{folder}: the model cannot be written ({reason}); name another folder") from None


def save_weights(model: PreTrainedModel, folder: Path, **named) -> None:
    """Write config.json and model.safetensors; raises OSError where they cannot be written."""
    transformers_logging.disable_progress_bar()  # one file is written at once
    with disk_errors(folder):
        model.save_pretrained(folder, **named)


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Raise OSError in place of the error that safetensors has for a place that cannot be written."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(errno.EIO, str(error), str(folder)) from None


def save_card(card: ModelCard, folder: Path) -> None:
    """Replace README.md in `folder`."""
    replace_file(folder / "README.md", card.save)
