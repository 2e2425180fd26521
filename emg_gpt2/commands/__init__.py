"""One thin module per command of `python -m emg_gpt2`."""

from argparse import ArgumentParser, Namespace

from emg_gpt2.base.command_line import flag
from emg_gpt2.settings import Settings, read_settings


def add_flags(parser: ArgumentParser, *names: str) -> None:
    """Let a command that has flags of its own also take these settings."""
    for name in names:
        words = Settings.model_fields[name].description.replace("`", "").rstrip(".").replace("%", "%%")
        parser.add_argument(flag(name), metavar="X", help=f"{words[0].lower()}{words[1:]} ({name} of ENV.py)")


def read_flags(args: Namespace, *names: str) -> Settings:
    """These settings, from the flags of a command where they are given, and the defaults of all others."""
    given = {name: getattr(args, name.lower()) for name in names}
    flags = [f"{flag(name)}={value}" for name, value in given.items() if value is not None]
    return read_settings(Settings, flags, only=names)
