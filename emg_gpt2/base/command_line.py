"""Command lines: flags of a command, flags of the settings, and one sentence for a wrong one."""

import argparse
import difflib
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from emg_gpt2.base.errors import EMGError

WORDS = {int: "N", float: "X", str: "TEXT", Path: "PATH"}  # stand for a value, by its type
PLACE = "FOLDER"  # stands for the files and folders that a command reads
GPU_FLAGS = ("--device", "--gpu", "--gpus", "--cuda")  # that people try
GPU = "there is no such flag, and none is needed: main.py takes a GPU by itself where torch finds one"
NO_BREAK = "\xa0"  # keeps `x ≥ 0` on one line


class Parser(argparse.ArgumentParser):
    """Raises EMGError for a wrong command line, and names the nearest flag where one is unknown."""

    def __init__(self, **options):
        super().__init__(**options, allow_abbrev=False)

    def parse_known_args(self, args=None, namespace=None):
        self.given = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str):
        known = list(self._option_string_actions)
        flags = (argument.partition("=")[0] for argument in self.given)
        unknown = [flag for flag in flags if flag.startswith("--") and flag not in ["--", *known]]
        if unknown and "arguments are required" in message:  # the slip comes first: it may be why one is missing
            message = f"unrecognized arguments: {unknown[0]}"
        raise EMGError(_explain(message, known, self._written()))

    def _written(self) -> str:
        """What has to be typed at the least."""
        needed = [one for one in self._actions if one.required]
        words = (" ".join([*one.option_strings[:1], one.metavar or one.dest]) for one in needed)
        return " ".join([self.prog, *words])


def between(kind: type, low: float, high: float) -> Callable[[str], float]:
    """Return an argparse type: a number of `kind` from `low` to `high`."""

    def number(text: str) -> float:
        value = kind(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not a number from {low} to {high}")
        return value

    return number


def _explain(message: str, known: list[str], written: str) -> str:
    missing = message.partition("the following arguments are required: ")[2]
    if missing:
        message = f"nothing was given for {missing}: write {written}"
    unknown = message.partition("unrecognized arguments: ")[2]
    if unknown:
        name = unknown.split()[0].partition("=")[0]
        what = f"there is no such flag{closest(name, known)}" if name[0] == "-" else "not expected here"
        if name.endswith(".parquet") and "--data-location" in known:
            what += f" (did you mean --data-location {name}?)"
        message = f"{unknown}: {GPU if name in GPU_FLAGS else what}"
    return f"{message}; --help lists the flags"


def closest(word: str, known: list[str]) -> str:
    """Return ` (did you mean …?)` where one of the `known` words is like `word`, else nothing."""
    matches = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {matches[0]}?)" if matches else ""


# ---- flags of a settings class ----------------------------------------------------------------------------------


class SettingsParser(Parser):
    """One flag per field of a pydantic model, in groups; the values stay texts, which the model checks.

    groups: field → title of its group; a field without one is among the command's own options. A required field, of
    which there may be one, is a positional argument: files and folders.
    """

    def __init__(self, model: type[BaseModel], groups: dict[str, str], command: str, epilog: str):
        needed = any(field.is_required() for field in model.model_fields.values())
        usage = f"{command} [options]" + f" {PLACE} [{PLACE} ...]" * needed
        super().__init__(prog=command, usage=usage, description=inspect.cleandoc(model.__doc__), epilog=epilog)
        self.titled = {title: self.add_argument_group(title) for title in dict.fromkeys(groups.values())}
        for name, field in model.model_fields.items():
            self._add_field(name, field, self.titled.get(groups.get(name), self))

    def _add_field(self, name: str, field: FieldInfo, group) -> None:
        options = {"help": _help_of(field), "default": argparse.SUPPRESS}
        if field.is_required():
            group.add_argument(name, nargs="+", metavar=PLACE, **options)
        elif field.annotation is bool:
            group.add_argument(flag(name), action=argparse.BooleanOptionalAction, dest=name, **options)
        else:
            group.add_argument(flag(name), metavar=_placeholder(field.annotation), dest=name, **options)

    def parse(self, argv: list[str]) -> dict[str, Any]:
        """Return the fields that the command line names, as texts, booleans and lists of texts."""
        return vars(self.parse_args(_join_negative_values(argv)))

    def format_help(self) -> str:
        return super().format_help().replace(NO_BREAK, " ")


def program(command: str = "") -> str:
    """What a user types to start it: python main.py, python -m emg_gpt2 COMMAND, or emg-gpt2 COMMAND."""
    script = Path(sys.argv[0])
    if not command:
        return f"python {script.name}"
    package = script.parent.name if script.name == "__main__.py" else "emg_gpt2"
    return f"emg-gpt2 {command}" if script.stem == "emg-gpt2" else f"python -m {package} {command}"


def flag(name: str) -> str:
    """NUM_EPOCHS → --num-epochs"""
    return "--" + name.lower().replace("_", "-")


def _join_negative_values(argv: list[str]) -> list[str]:
    """--flag -1,-3 → --flag=-1,-3: argparse takes a value that begins with − for a flag."""
    joined = []
    for argument in argv:
        if joined and re.match(r"-\d", argument) and re.fullmatch(r"--[a-z-]+", joined[-1]):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def _placeholder(kind: Any) -> str:
    """The word for a value in --help: float → X, list[int] → N,…, Path | None → PATH; a choice lists its values."""
    parts = get_args(kind)
    if get_origin(kind) is Literal:
        return f"{{{','.join(parts)}}}"
    if get_origin(kind) is Annotated:
        return _placeholder(parts[0])
    words = [_placeholder(part) for part in parts if part is not type(None)]
    if get_origin(kind) is list:
        return f"{words[0]},…"
    return {dict: "{0}={1},…", tuple: "{0},{1}"}.get(get_origin(kind), "{0}").format(*words or [WORDS.get(kind)])


def _help_of(field: FieldInfo) -> str:
    """The field's description, and its default as it would be written."""
    default = "" if field.is_required() else as_written(field.default)
    text = field.description + (f" (default:{NO_BREAK}{default})" if default else "")
    return re.sub(r" ([<≤≥×…]) ", rf"{NO_BREAK}\1{NO_BREAK}", text).replace("%", "%%")


def as_written(value: Any) -> str:
    """A value as a command line has it; an empty text for None and for an empty value."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ",".join(f"{label}={name}" for label, name in value.items())
    if isinstance(value, list | tuple):
        return ",".join(map(as_written, value))
    return f"{value:g}" if isinstance(value, float) else str("" if value is None else value)
