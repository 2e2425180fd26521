"""Windows, splits and decisions on random recordings.

They are those of tests/test_properties.py, nightly ones too. Without --nightly the examples are those of the tests, the
same every time. With it they are 25 times as many, and the seed decides which. An example is one recording, windows
file or signal, with settings to use on it.
"""

import base64
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.etree import ElementTree

from stress.row import Row

ROOT = Path(__file__).parents[1]
TESTS = "tests/test_properties.py"  # or one of them: tests/test_properties.py::test_…
PACKAGES = ("pytest", "hypothesis")
LONGEST = 1000  # characters of an example in a sentence


def rows(nightly: bool, folder: Path, seed: int, log: Callable[[str], None]) -> Iterator[Row]:
    """One row per property, after all have been tried; a single one with the reason where they cannot be."""
    if problem := missing():
        yield Row("properties", "random recordings", note=f"not tried: {problem}")
        return
    choice = (
        ["--hypothesis-profile=nightly", f"--hypothesis-seed={seed}"] if nightly else ["--hypothesis-profile=stress"]
    )
    status = run_tests([TESTS, *choice, f"--junitxml={folder / 'report.xml'}"], log)
    if status not in (0, 1) or not (folder / "report.xml").exists():
        row = Row("properties", "random recordings")
        row.add(f"the tests did not run, status {status}; see python -m pytest {TESTS}")
        yield row
        return
    report = ElementTree.parse(folder / "report.xml").getroot()
    statistics = statistics_in(report)
    for case in report.iter("testcase"):
        yield row_of(case, statistics.get(case.get("name"), ""), choice)


def missing() -> str:
    if absent := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        return f"{', '.join(absent)} missing; pip install -r requirements-test.txt"
    path = ROOT / TESTS.partition("::")[0]
    return "" if path.exists() else f"{path} is not there; run it in a checkout of the repository"


def run_tests(arguments: list[str], log: Callable[[str], None]) -> int:
    """Run pytest, and log of every property whether it held; returns the exit status."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("EMG_", "PYTEST_"))}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "pytest", "-v", "-m", "", "--tb=short", "-p", "no:cacheprovider", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, **pipes) as process:
        for line in process.stdout:
            if found := re.search(r"::(test_\w+) (PASSED|FAILED|ERROR)", line):
                log(f"{words(found[1])}: {'held' if found[2] == 'PASSED' else 'failed'}")
    return process.returncode


def words(test: str) -> str:
    return test.removeprefix("test_").replace("_", " ")


def statistics_in(report: ElementTree.Element) -> dict[str, str]:
    """What hypothesis says of each test: how many examples of it passed, failed, were refused."""
    kept = {one.get("name"): one.get("value") for one in report.iter("property")}
    named = {name.rpartition("::")[2]: value for name, value in kept.items() if name.startswith("hypothesis-stat")}
    return {name: base64.b64decode(value).decode() for name, value in named.items()}


def row_of(case: ElementTree.Element, statistics: str, choice: list[str]) -> Row:
    """`seconds` is the time of all examples of the property together."""
    row = Row("properties", words(case.get("name")), seconds=float(case.get("time")))
    phases = re.findall(r"(\d+) passing, (\d+) failing,? and (\d+) invalid", statistics)
    passing = sum(int(passed) for passed, _, _ in phases)
    share = re.search(r"([\d.]+)%, refused", statistics)
    if share:  # of those of the first phase, the others look for a smaller example
        row.refused = min(passing, round(float(share[1]) / 100 * sum(map(int, phases[0]))))
    row.right = passing - row.refused
    for failure in (*case.findall("failure"), *case.findall("error")):
        row.add(sentence(failure, case.get("name"), choice))
    return row


def sentence(failure: ElementTree.Element, test: str, choice: list[str]) -> str:
    """What went wrong, with which example, and how to see it."""
    text = re.sub(r"^E ?", "", failure.text or "", flags=re.MULTILINE)
    reason = (failure.get("message") or "").partition("\n")[0]
    example = re.search(r"Failing (?:test case|explicit example): \w+\((.*?)^ *\)$", text, re.MULTILINE | re.DOTALL)
    drawn = " ".join(example[1].split())[:LONGEST] if example else "see below"
    again = " ".join(["python -m pytest", f"{TESTS.partition('::')[0]}::{test}", *choice])
    return f"{reason}, with {drawn} ({again})"
