"""Where settings come from besides flags: variables EMG_NAME, ENV.py, and the file that --settings names."""

import json
import os
import sys
import tomllib
from pathlib import Path
from typing import Any

from emg_gpt2.base.command_line import closest
from emg_gpt2.base.constants import read_constants
from emg_gpt2.base.errors import EMGError
from emg_gpt2.base.text import in_short, printable


def variables(known: list[str]) -> dict[str, str]:
    """Setting → text of every EMG_* variable of the environment. Raises EMGError for a setting that is not known."""
    found = {name.upper(): value for name, value in sorted(os.environ.items()) if name.upper().startswith("EMG_")}
    for name in found:
        if name not in (legal := [f"EMG_{one}" for one in known]):
            raise EMGError(f"{name}: the environment sets a setting that does not exist{closest(name, legal)}")
    return {name.removeprefix("EMG_"): value for name, value in found.items()}


def env_file(known: list[str]) -> dict[str, Any]:
    """The constants of ENV.py: beside the script that runs, else in the current folder, else none. Raises EMGError."""
    places = [Path(sys.argv[0]).resolve().parent, Path.cwd()]
    path = next((place / "ENV.py" for place in places if (place / "ENV.py").is_file()), None)
    return _known(read_constants(path), known, "ENV.py") if path else {}


def settings_file(path: Path, known: list[str], own: set[str]) -> dict[str, Any]:
    """Setting → value of a TOML file, or of a run's env.json without the places in `own`. Raises EMGError."""
    is_json = path.suffix == ".json"
    try:
        text = path.read_text(encoding="utf-8-sig")  # a Windows editor may begin the file with a mark
        found = json.loads(text) if is_json else tomllib.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        advice = "name a run's env.json" if is_json else "write NAME = value, as TOML has it"
        raise EMGError(f"{path}: the settings cannot be read ({in_short(error)}); {advice}") from None
    if not isinstance(found, dict):
        raise EMGError(f"{path}: these are no settings; name a run's env.json")
    found = _known(found, known, path)
    return {name: value for name, value in found.items() if not (is_json and name in own)}


def pairs(parts: list[str]) -> dict[str, str]:
    """0=idle and 1=fist as a dict; raises ValueError for a part without =."""
    found = [part.partition("=") for part in parts]
    if not all(equals for _, equals, _ in found):
        raise ValueError("should be written 0=idle,1=fist")
    return {label.strip(): name.strip() for label, _, name in found}


def _known(found: dict[str, Any], known: list[str], path: Path | str) -> dict[str, Any]:
    for name in found:
        if name not in known:
            raise EMGError(f"{path}: there is no setting {printable(name)}{closest(name.upper(), known)}")
    return found
