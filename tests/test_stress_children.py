"""Calls in processes of their own: what a crash, a hang or a hunger for memory comes to."""

import os

from stress import children
from stress.children import Job, try_all


def crash(how: str) -> str:
    if how == "crash":
        os.abort()
    if how == "memory":
        try:
            return f"{len(bytearray(3 * 10**9))} bytes"
        except MemoryError:
            return "refused"
    while how == "hang":
        pass
    return "right"


def test_crashes_and_hangs_are_ends_too(monkeypatch):
    monkeypatch.setattr(children, "PATIENCE", 1.0)
    ends = sorted(end.end for end in try_all([Job(crash, (how,)) for how in ("", "crash", "", "hang", "memory", "")]))
    assert ends == [
        "it hung for more than 1 s in crash('hang',)",
        "refused",
        *["right"] * 3,
        "the interpreter ended with status -6 in crash('crash',)",
    ]
