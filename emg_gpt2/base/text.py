"""Text from untrusted files: made safe to print; errors in one line."""

import re
from typing import Annotated

from pydantic import AfterValidator, ValidationError

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")  # characters that a terminal obeys
LONGEST = 300  # characters of a reason


def in_short(error: Exception) -> str:
    """The error's first line without control characters: it may quote an untrusted file."""
    if isinstance(error, ValidationError):
        detail = error.errors()[0]
        where, what = ".".join(map(str, detail["loc"])), detail["msg"].removeprefix("Value error, ")
        text = f"{where}: {what[0].lower()}{what[1:]}" if where else what
    else:
        text = (str(error) or type(error).__name__).partition("\n")[0]
    return printable(text[:LONGEST])


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
