"""Packages, sources, downloads.

Installed versions and their known vulnerabilities, calls in the sources that run data, and a server that lies.
"""

import ast
import hashlib
import io
import json
import os
import pickle
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from emg_gpt2.raw.hdf5 import PlainUnpickler
from stress.intruder import Intruder
from stress.row import Row
from stress.scripts import start

ROOT = Path(__file__).parents[1]
PROGRAMME = "supply"
PIN = re.compile(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.!-]+)")  # no local version such as +cpu, no address, no marker
FORBIDDEN = {  # what runs whatever a file or a string holds, or unpacks wherever an archive says
    *("eval", "exec", "os.system", "os.popen", "pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.loads"),
    *("torch.load", "torch.hub.load", "joblib.load", "numpy.lib.format.read_array", "pandas.read_pickle"),
    *("pandas.read_hdf", "pandas.HDFStore", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "shelve.open"),
}
FORBIDDEN_METHODS = {"extractall", "load_state", "read_hdf", "read_pickle", "from_pickle"}
SAFE = {"shell": False, "trust_remote_code": False, "allow_pickle": False, "weights_only": True}  # keyword → its value
SAFE_CLASSES = r"\w*Tokenizer\w*\.|EMGForSequenceClassification\."  # no weights; insists on safetensors itself
GUARDED = {  # a class that is tried below, and programmes of this folder that read what they have just made
    ("emg_gpt2/raw/hdf5.py", "pickle.Unpickler"),
    *((f"stress/{name}.py", "pandas.read_hdf") for name in ("fuzz", "limits", "numbers")),
}
FOLDERS = ("", "emg_gpt2/**/", "benchmarks/", "stress/")  # with sources
STEM = "emg_gestures-03-sequential-2018-05-11-11-10-52-120"
MAGIC = b"\x89HDF\r\n\x1a\n"
RIGHT = MAGIC + b"right" * 1000

Answer = Callable[[BaseHTTPRequestHandler], None]


def rows(nightly: bool, folder: Path, seed: int, log: Callable[[str], None]) -> Iterator[Row]:
    """Packages, advisories, sources, the unpickler, downloads; nothing is drawn at random."""
    yield pinned(ROOT)
    log("known vulnerabilities")
    yield audited(ROOT / "constraints.txt")
    yield sources(ROOT)
    yield unpickler(folder)
    log("downloads from a server that lies")
    yield downloads(folder, nightly)


# ---- packages -------------------------------------------------------------------------------------------------


def read_pins(path: Path) -> dict[str, str]:
    """Package → version, of the lines of a requirements or constraints file that pin one."""
    found = [PIN.fullmatch(line) for line in lines_of(path)]
    return {normalised(match[1]): match[2] for match in found if match}


def lines_of(path: Path) -> list[str]:
    """Without comments and other files that it names."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith(("#", "-r "))]


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned(root: Path) -> Row:
    """Every line pins one version, constraints.txt has all of them, and what is installed has that version."""
    row, locked = Row(PROGRAMME, "packages at exactly the pinned version"), read_pins(root / "constraints.txt")
    for path in [*sorted(root.glob("requirements*.txt")), root / "constraints.txt"]:
        for line in lines_of(path):
            match = PIN.fullmatch(line)
            row.add(pin_outcome(match, locked) if match else f"{path.name}: {line} is no exact pin")
    return row


def pin_outcome(match: re.Match, locked: dict[str, str]) -> str:
    name, wanted = match.groups()
    if locked.get(normalised(name)) != wanted:
        return f"{name} is {wanted} in one file and {locked.get(normalised(name))} in constraints.txt"
    try:
        found = version(name).partition("+")[0]
    except PackageNotFoundError:
        return "right"  # what a single command or a test needs may be left out
    return "right" if found == wanted else f"{name} {found} is installed, {wanted} is pinned"


def audited(constraints: Path) -> Row:
    """Known vulnerabilities of every pinned version, from pip-audit, which asks osv.dev."""
    if find_spec("pip_audit") is None:
        return audit_row("", "pip-audit is not installed; pip install -r requirements-test.txt")
    command = [sys.executable, "-m", "pip_audit", "-r", constraints, "--no-deps", "--disable-pip"]
    command += ["--vulnerability-service", "osv", "--format", "json", "--progress-spinner", "off"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    reason = done.stderr.rstrip().rpartition("\n")[2].partition(":")[0]
    return audit_row(done.stdout, f"the database is not reachable ({reason})")


def audit_row(output: str, reason: str) -> Row:
    """output: pip-audit's JSON; reason: why there is none, where there is none or it says nothing of any package."""
    row = Row(PROGRAMME, "known vulnerabilities of the pinned packages")
    packages = json.loads(output)["dependencies"] if output else []
    for package in packages:
        known = ", ".join(one["id"] for one in package.get("vulns", []))
        if "skip_reason" not in package:
            row.add(f"{package['name']} {package['version']} has {known}" if known else "right")
    if not row.times:
        row.note = f"not audited: {reason}"
    elif row.times < len(packages):
        row.note = f"{len(packages) - row.times} packages are not in the database"
    return row


# ---- sources --------------------------------------------------------------------------------------------------


def sources(root: Path) -> Row:
    """A try is a file of the project, its tests apart."""
    row = Row(PROGRAMME, "sources that call nothing that runs data")
    for path in sorted(path for folder in FOLDERS for path in root.glob(f"{folder}*.py")):
        name = path.relative_to(root).as_posix()
        found = offences(path.read_text(encoding="utf-8"), name)
        row.add(f"{name}: {'; '.join(found)}" if found else "right")
    return row


def offences(source: str, name: str) -> list[str]:
    """Calls in a source that run data, with their lines."""
    tree = ast.parse(source)
    full = full_names(tree)
    found = [(node.lineno, told) for node in ast.walk(tree) if (told := offence(node, full, name))]
    return [f"line {line} has {told}" for line, told in sorted(found)]


def full_names(tree: ast.AST) -> dict[str, str]:
    """What the names that a source imports stand for: np → numpy, load → torch.load."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {one.asname: one.name for one in node.names if one.asname}
        elif isinstance(node, ast.ImportFrom):
            found |= {one.asname or one.name: f"{node.module}.{one.name}" for one in node.names}
    return found


def offence(node: ast.AST, full: dict[str, str], name: str) -> str:
    if isinstance(node, ast.Name | ast.Attribute):
        first, dot, rest = ast.unparse(node).partition(".")
        path = full.get(first, first) + dot + rest
        method = node.attr in FORBIDDEN_METHODS if isinstance(node, ast.Attribute) else False
        return path if (path in FORBIDDEN or method) and (name, path) not in GUARDED else ""
    if isinstance(node, ast.keyword) and node.arg in SAFE:
        safe = isinstance(node.value, ast.Constant) and node.value.value is SAFE[node.arg]
        return "" if safe else f"{node.arg}={ast.unparse(node.value)}"
    if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "from_pretrained":
        text = ast.unparse(node)
        safe = re.match(SAFE_CLASSES, text) or re.search(r"use_safetensors'?(=|: )True", text)
        return "" if safe else text[:60]
    return ""


def unpickler(folder: Path) -> Row:
    """The class that reads the column names of pandas's HDF5 files, with pickles of every protocol."""
    row, trace = Row(PROGRAMME, "pickles given to the guarded unpickler"), folder / "executed"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        for content in (Intruder(trace), [["EMG_1"], Intruder(trace)], os.remove, subprocess.Popen):
            try:
                PlainUnpickler(io.BytesIO(pickle.dumps(content, protocol))).load()
                row.add("the pickle was read")
            except pickle.UnpicklingError:
                row.add("the pickle was run" if trace.exists() else "refused")
    return row


# ---- downloads ------------------------------------------------------------------------------------------------


def downloads(folder: Path, nightly: bool) -> Row:
    """Each from a server of its own; nothing may get a recording's name that is not the right file."""
    row = Row(PROGRAMME, "downloads from a server that lies")
    cases = lies() if nightly else {name: lie for name, lie in lies().items() if name != "an endless body"}
    for name, (answers, status) in cases.items():
        row.add(download(folder / name.replace(" ", "-"), answers, status), case=name)
    row.note = "" if nightly else "the endless body, 2 GB of it, with --nightly"
    return row


def download(folder: Path, answers: dict[str, Answer], status: int) -> str:
    """The outcome of a download that should end with that status."""
    place = folder / "inside" / "raw"
    place.parent.mkdir(parents=True)
    with serving(answers) as address:
        ended = start("emg_gpt2 download", [place, "--retries", "0", "--download-url", address], place.parent).end()
    files = [path for path in folder.rglob("*") if path.is_file()]
    wrong = [path for path in files if path.suffix == ".hdf5" and path.read_bytes() != RIGHT]
    outside = [path for path in files if path.parent != place]
    if wrong or outside:
        return f"{(wrong + outside)[0]} is there"
    if ended.status != status or not ended.tidy:
        return f"the exit status is {ended.status}: {ended.output[-500:]!r}"
    return "refused" if status else "right"


def lies() -> dict[str, tuple[dict[str, Answer], int]]:
    """Name → what the server answers, by file, and the exit status that follows."""
    file, md5 = f"Data-HDF5/{STEM}.hdf5", hashlib.md5(RIGHT).hexdigest()
    good = {"records.txt": body(STEM), "Data-HDF5/MD5SUMS": body(f"{md5}  {STEM}.hdf5\n"), file: body(RIGHT)}
    names = "\n".join([f"../{STEM}", f"../../../{STEM}", f"/{STEM}", f"{STEM}/../../x", STEM])
    return {
        "the truth": (good, 0),
        "another file of the kind": (good | {file: body(MAGIC + b"wrong")}, 3),
        "a page in its place": (good | {file: body("<html></html>")}, 3),
        "half of it": (good | {file: body(RIGHT[:100], announced=len(RIGHT))}, 3),
        "half of it as the whole": (good | {file: body(RIGHT[:100])}, 3),
        "a checksum of something else": (good | {"Data-HDF5/MD5SUMS": body(f"{'0' * 32}  {STEM}.hdf5\n")}, 3),
        "names that lead out": (good | {"records.txt": body(names)}, 0),
        "only names that lead out": (good | {"records.txt": body(f"../{STEM}\n")}, 1),
        "an endless list": (good | {"records.txt": endless}, 1),
        "a petabyte announced": (good | {file: body(RIGHT, announced=10**15)}, 3),
        "an endless body": (good | {file: endless}, 3),
    }


def body(content: str | bytes, announced: int | None = None) -> Answer:
    sent = content.encode() if isinstance(content, str) else content

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_header("Content-Length", str(announced or len(sent)))
        handler.end_headers()
        handler.wfile.write(sent)

    return answer


def endless(handler: BaseHTTPRequestHandler) -> None:
    """Without a length, until the other end has enough."""
    handler.end_headers()
    handler.wfile.write(MAGIC)
    while True:
        handler.wfile.write(b"x" * (1 << 20))


@contextmanager
def serving(answers: dict[str, Answer]) -> Iterator[str]:
    """Yields the address of a server on this machine."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            answer = answers.get(self.path.lstrip("/"))
            self.send_response(200 if answer else 404)
            with suppress(OSError):  # the other end has gone
                (answer or body(b""))(self)

        def log_message(self, *_):
            """Quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
