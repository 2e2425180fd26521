"""Read a Python file of plain constants without running it."""

import ast
from pathlib import Path

from emg_gpt2.base.errors import EMGError


def read_constants(path: Path) -> dict[str, object]:
    """Return name → value of every line `NAME = value`; values are numbers, texts, booleans, None, lists and dicts.

    Raises EMGError with the number of the line for a syntax error and for anything but a plain constant.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # a Windows editor may begin the file with a mark
    except (OSError, UnicodeError) as error:
        raise EMGError(f"{path}: the file cannot be read ({error}); save it as UTF-8 text") from None
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError) as error:  # ValueError: null characters, in Python 3.11
        where, what = getattr(error, "lineno", None) or 1, getattr(error, "msg", error)
        raise EMGError(f"{path.name}, line {where}: {what}; write NAME = value") from None
    return dict(_constant(statement, path.name) for statement in tree.body if not _is_text(statement))


def _constant(statement: ast.stmt, file: str) -> tuple[str, object]:
    where = f"{file}, line {statement.lineno}"
    match statement:
        case ast.Assign(targets=[ast.Name(id=name)], value=value):
            pass
        case _:
            raise EMGError(f"{where}: only lines NAME = value are read there; remove the others")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, TypeError):
        raise EMGError(
            f"{where}: {name} should be a plain value (a number, a text, True, False, None, a list or a dict); "
            "expressions are not computed"
        ) from None


def _is_text(statement: ast.stmt) -> bool:
    """Whether it is a docstring."""
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
