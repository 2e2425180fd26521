"""Text from untrusted files: made safe to print; errors in one line."""

import re
from typing import Annotated

from pydantic import AfterValidator, ValidationError

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")  # characters that a terminal obeys
KINDS = {  # pydantic's errors of type → what was expected
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "yes or no"),
}
LONGEST = 300  # characters of a reason


def in_short(error: Exception) -> str:
    """The error's first line without control characters: it may quote an untrusted file."""
    if isinstance(error, ValidationError):
        detail = error.errors()[0]
        where = ".".join(map(str, detail["loc"]))
        text = f"{where}: {what_is_wrong(detail)}" if where else what_is_wrong(detail)
    else:
        text = re.sub(r"^\[(Errno|WinError) \d+\] ", "", (str(error) or type(error).__name__).partition("\n")[0])
    return printable(text[:LONGEST])


def what_is_wrong(detail: dict) -> str:
    """What an error of pydantic says of a value, in plain words: `should be a whole number`."""
    kind, message = detail["type"], re.sub("^(Value error, |Input )", "", detail["msg"])
    message = f"should be {KINDS[kind]}" if kind in KINDS else message
    return message[0].lower() + message[1:] if detail["loc"] else message


def one_line(text: str) -> str:
    """Return the text; raises ValueError where it holds a control character or a line break."""
    if found := CONTROL.search(text):
        raise ValueError(f"has the control character {found[0]!r}")
    return text


def some_lines(text: str) -> str:
    """Return the text; raises ValueError where it holds a control character other than a line break or a tab."""
    one_line(re.sub(r"[\n\t]", " ", text))
    return text


OneLine = Annotated[str, AfterValidator(one_line)]
SomeLines = Annotated[str, AfterValidator(some_lines)]


def printable(text: str) -> str:
    """The text with `?` in place of every character that cannot be printed."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
