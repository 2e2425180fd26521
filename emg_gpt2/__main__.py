"""`python -m emg_gpt2 COMMAND`, once installed `emg-gpt2 COMMAND`: each module of emg_gpt2/commands is a command.

--help shows the first line of its docstring under the title that its constant GROUP names.
"""

if __name__ == "__main__":  # before the imports
    from emg_gpt2.base.interrupts import start_script

    start_script()

import ast
import importlib
import sys
from pathlib import Path

from emg_gpt2 import __version__
from emg_gpt2.base.command_line import closest, program
from emg_gpt2.base.errors import EMGError, exit_status
from emg_gpt2.base.interrupts import importing, start_script

COMMANDS = Path(__file__).parent / "commands"
GROUPS = ("data", "study", "use", "share")  # in this order


def main() -> int:
    """Run the command that the command line names; returns its exit status."""
    start_script()  # also where the installed emg-gpt2 calls main()
    name, *argv = sys.argv[1:] or ["--help"]
    called = program("COMMAND").removesuffix(" COMMAND")
    if name in ("-h", "--help"):
        return exit_status(called, lambda: print(overview()))
    if name == "--version":
        return exit_status(called, lambda: print(f"emg-gpt2 {__version__}"))
    with importing():  # so that a signal afterwards still finds nothing begun
        status = exit_status(called, lambda: _require(name))
    return status or importlib.import_module(f"emg_gpt2.commands.{name}").main(argv)


def overview() -> str:
    """The text of --help: every command in its group, with the first line of its docstring."""
    lines = [f"usage: {program('COMMAND')} [options]      (COMMAND --help lists its options)"]
    found = {name: _group_and_summary(name) for name in commands()}
    for group in GROUPS:
        members = [f"  {name:<12} {summary}" for name, (own, summary) in found.items() if own == group]
        lines += ["", f"{group}:", *members]
    return "\n".join(lines)


def commands() -> list[str]:
    """Names of all commands."""
    return sorted(path.stem for path in COMMANDS.glob("[a-z]*.py"))


def _require(name: str) -> None:
    if name not in commands():
        raise EMGError(f"there is no command {name}{closest(name, commands())}; --help lists them")


def _group_and_summary(name: str) -> tuple[str, str]:
    """GROUP of a command and the first line of its docstring, read without importing it."""
    tree = ast.parse((COMMANDS / f"{name}.py").read_text(encoding="utf-8"))
    summary = ast.get_docstring(tree).partition("\n")[0].rstrip(".")
    group = next(node.value for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == "GROUP")
    return ast.literal_eval(group), summary


if __name__ == "__main__":
    sys.exit(main())
