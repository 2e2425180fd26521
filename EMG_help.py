"""The command line of a settings class: `--help` in the sections of ENV.py, a tool's own options before them."""

import argparse
import inspect
import re
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import AfterValidator, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, SettingsError

OBEYED = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")  # by a terminal
LONGEST = 300  # characters of a reason
WORDS = {int: "N", float: "X", str: "TEXT", Path: "PATH"}  # what stands for a value, by its type
NO_BREAK = "\xa0"  # keeps `x ≥ 0` on one line
ABOUT_SETTINGS = """Every setting in these groups is also a constant of ENV.py and a variable of the
environment: --num-epochs, NUM_EPOCHS, EMG_NUM_EPOCHS. A flag goes before the variable,
and that before ENV.py."""


class SettingsParser(argparse.ArgumentParser):
    """Takes the settings from pydantic's CliSettingsSource by `add_setting`; raises SettingsError."""

    def __init__(self, settings_class: type[BaseSettings], sections: dict[str, str], command: str):
        about = inspect.cleandoc(settings_class.__doc__)
        super().__init__(usage=f"{command} [options]", description=about, epilog=ABOUT_SETTINGS, allow_abbrev=False)
        self.settings, self.sections = settings_class.model_fields, sections
        self.groups = {title: self.add_argument_group(title) for title in dict.fromkeys(sections.values())}

    def add_setting(self, *flags: str, **options: Any) -> None:
        name = options.get("dest", flags[0])
        options["help"] = describe(self.settings[name])
        if name == flags[0]:  # a word of its own
            self.usage += f" {name} [{name} ...]" if options.get("nargs") == "+" else f" {name}"
        else:
            flags = [flag.lower() for flag in flags]
            options |= {"metavar": stand_in(self.settings[name].annotation)} if "metavar" in options else {}
        self.groups.get(self.sections.get(name), self).add_argument(*flags, **options)

    def format_help(self) -> str:
        return super().format_help().replace(NO_BREAK, " ")

    def error(self, message: str):
        raise SettingsError(message)


def sections_of(settings_class: type[BaseSettings]) -> dict[str, str]:
    """Setting → title of its section: the line `# ---- title ----` above it in the class."""
    sections, title = {}, ""
    for line in inspect.getsource(settings_class).splitlines():
        if heading := re.fullmatch(r" +# -+ (.+?) -+", line):
            title = heading[1]
        elif (setting := re.match(r" +([A-Z_]+):", line)) and setting[1] in settings_class.model_fields:
            sections[setting[1]] = title
    return sections


def command_name() -> str:
    """python main.py, or python -m tools.evaluate"""
    module = sys.modules["__main__"].__spec__
    return f"python -m {module.name}" if module else f"python {Path(sys.argv[0]).name}"


def stand_in(kind: Any) -> str:
    """What stands for a value: float → X, list[int] → N,…, Path | None → PATH; the values of a choice as they are."""
    parts = get_args(kind)
    if get_origin(kind) is Literal:
        return f"{{{','.join(parts)}}}"
    words = [stand_in(part) for part in parts if part is not type(None)]
    if get_origin(kind) is list:
        return f"{words[0]},…"
    return {dict: "{0}={1},…", tuple: "{0},{1}"}.get(get_origin(kind), "{0}").format(*words or [WORDS.get(kind)])


def describe(setting: FieldInfo) -> str:
    """Its docstring, and its default as it would be written."""
    default = "" if setting.is_required() else written(setting.default)
    text = setting.description + (f" (default:{NO_BREAK}{default})" if default else "")
    return re.sub(r" ([<≤≥×…]) ", rf"{NO_BREAK}\1{NO_BREAK}", text).replace("%", "%%")


def written(value: Any) -> str:
    """As on the command line; nothing for None and for what is empty, which the docstrings explain."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ",".join(f"{label}={name}" for label, name in value.items())
    if isinstance(value, list | tuple):
        return ",".join(map(written, value))
    return f"{value:g}" if isinstance(value, float) else str("" if value is None else value)


def in_short(error: Exception) -> str:
    """The reason in one line, without what a terminal would obey: it may quote a stranger's file."""
    if isinstance(error, ValidationError):
        detail = error.errors()[0]
        where, what = ".".join(map(str, detail["loc"])), detail["msg"].removeprefix("Value error, ")
        text = f"{where}: {what[0].lower()}{what[1:]}" if where else what
    else:
        text = (str(error) or type(error).__name__).partition("\n")[0]
    return printable(text[:LONGEST])


def one_line(text: str) -> str:
    """The same text; raises ValueError where it would steer a terminal or begin a line."""
    if found := OBEYED.search(text):
        raise ValueError(f"has the control character {found[0]!r}")
    return text


def some_lines(text: str) -> str:
    """The same text; raises ValueError where it would steer a terminal."""
    one_line(re.sub(r"[\n\t]", " ", text))
    return text


OneLine = Annotated[str, AfterValidator(one_line)]  # of a stranger
SomeLines = Annotated[str, AfterValidator(some_lines)]


def printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)
