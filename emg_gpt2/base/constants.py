"""Read a Python file of plain constants without running it."""

import ast
from pathlib import Path

from emg_gpt2.base.errors import EMGError


def read_constants(path: Path) -> dict[str, object]:
    """Return name → value of every line `NAME = value`; values are numbers, texts, booleans, None, lists and dicts.

    Raises EMGError with the line's number for a slip of syntax, and for anything else than a plain constant.
    """
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except SyntaxError as error:
        raise EMGError(f"{path.name}, line {error.lineno}: {error.msg}; write NAME = value") from None
    except (OSError, ValueError) as error:
        raise EMGError(f"{path.name}: the file cannot be read ({error}); save it as UTF-8 text") from None
    return dict(_constant(statement, path.name) for statement in tree.body if not _is_text(statement))


def _constant(statement: ast.stmt, file: str) -> tuple[str, object]:
    if not (isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)):
        raise EMGError(f"{file}, line {statement.lineno}: only lines NAME = value are read there; remove the others")
    name = statement.targets[0].id
    try:
        return name, ast.literal_eval(statement.value)
    except (ValueError, TypeError):
        raise EMGError(
            f"{file}, line {statement.lineno}: {name} should be a plain value (a number, a text, True, False, None, "
            "a list or a dict); expressions are not computed"
        ) from None


def _is_text(statement: ast.stmt) -> bool:
    """Whether it is a docstring."""
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
