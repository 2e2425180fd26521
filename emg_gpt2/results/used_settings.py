"""The settings of a finished run, and the command that repeats it."""

import shlex
from pathlib import Path

from emg_gpt2.base.command_line import as_written, flag
from emg_gpt2.results.reading import FinishedRun
from emg_gpt2.settings import Role, Settings


def changed_settings(run: FinishedRun) -> list[dict]:
    """`name`, `value`, `default` and `meaning` of the used settings that are not the defaults.

    Without PRECISION: env.json holds what this machine took, also where nobody asked for it. The report has it among
    the facts about speed.
    """
    defaults, fields = Settings.model_construct().model_dump(mode="json"), Settings.model_fields
    return [
        {
            "name": name,
            "value": shown(value),
            "default": shown(defaults[name]) if name in fields else "no such setting now",
            "meaning": fields[name].description.replace("`", "") if name in fields else "",
        }
        for name, value in used_settings(run).items()
        if name != "PRECISION" and (name not in fields or value != defaults[name])
    ]


def used_settings(run: FinishedRun) -> dict:
    """The settings that have an effect on the result; those of the windows as the windows were made."""
    left_out = Settings.with_role(Role.PLACE, Role.MACHINE, Role.WINDOWS, Role.LABELS) - {"DATA_LOCATION"}
    return {name: value for name, value in run.settings.items() if name not in left_out} | run.preprocessing


def shown(value) -> str:
    """The value as on a command line, `none` for nothing."""
    return as_written(value) or "none"


def repeat_command(run: FinishedRun) -> str:
    """The command that repeats the run; empty where main.py did not make it, or its settings are not known."""
    if not run.settings or belongs_to_study(run.folder):
        return ""
    repeated = Settings.with_role(Role.DATA, Role.SPLIT, Role.MODEL, Role.TRAINING, Role.SEARCH) | {"DATA_LOCATION"}
    defaults = Settings.model_construct().model_dump(mode="json")
    changed = {name: value for name, value in run.settings.items() if name in repeated and value != defaults[name]}
    processes = run.metrics.get("processes", 1)
    start = ["python"] if processes == 1 else ["torchrun", "--nproc-per-node", str(processes)]
    return shlex.join([*start, "main.py", *(argument for item in changed.items() for argument in arguments(*item))])


def arguments(name: str, value) -> list[str]:
    """The arguments of main.py's command line for one setting."""
    if isinstance(value, bool):
        return [flag(name) if value else flag(name).replace("--", "--no-", 1)]
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return [f"{flag(name)}={text}"] if text.startswith("-") else [flag(name), text]


def belongs_to_study(folder: Path) -> bool:
    """Whether the commands evaluate or ablate made the run: they change windows and settings in ways of their own."""
    above = folder.resolve().parent
    return above.name == "runs" and (above.parent / "settings.json").is_file()
