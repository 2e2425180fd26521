"""Fetch the raw gesture recordings of putEMG that are not there yet.

    python -m tools.download DIR --ids 03 04 --format hdf5

A recording gets its name only when it is whole and checked; until then it is NAME.part, from which the same command
goes on. MD5SUMS checks it where the server has that file, otherwise only its length and its first bytes can be.
Exit status: 0 all are there, 1 nothing could be done or written, 3 some failed, 130 interrupted.
"""

import argparse
import hashlib
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.client import responses
from pathlib import Path
from typing import Any, NamedTuple

import requests
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Column
from urllib3.exceptions import InvalidHeader
from urllib3.util import Retry

from emg_gpt2.base.command_line import Parser, between, with_status
from emg_gpt2.base.errors import EMGError
from emg_gpt2.raw.putemg import RECORDING_NAME
from emg_gpt2.settings import Settings, read_settings

GROUP = "data"

LICENCE = "putEMG is licensed CC BY-NC 4.0: name its authors, no commercial use."
FIRST_DELAY, LONGEST_DELAY = 0.5, 60  # s before the next try, twice as long every time; the bound of all waiting
TIMEOUT = (10, 30)  # s, to connect, and between two pieces
PIECE = 1 << 14  # bytes; a connection that breaks, or a kill, costs less than one piece
MAX_LIST_BYTES = 1 << 20  # records.txt has about 30 KB
MAX_FILE_BYTES = 2 << 30  # a recording has some 100 MB


class Kind(NamedTuple):
    """Where the files of a format lie on the server, how their names end, and how they begin."""

    folder: str
    suffix: str
    magic: bytes


KINDS = {"hdf5": Kind("Data-HDF5", ".hdf5", b"\x89HDF\r\n\x1a\n"), "csv": Kind("Data-CSV", ".zip", b"PK")}


class TemporaryError(EMGError):
    """What another try may mend, after `wait` seconds at the earliest."""

    def __init__(self, reason: str, wait: float = 0.0):
        super().__init__(reason)
        self.wait = wait


def main(argv: list[str] | None = None) -> int:
    """Fetch what the command line asks for; returns the exit status."""
    kept = "what came so far is kept, and the same command goes on from it"
    return with_status("download", lambda: download(parse(argv), Console(highlight=False)), kept, full_disk=kept)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line; raises EMGError for what is wrong with it, or with the settings."""
    about = "Fetch the raw gesture recordings of putEMG that are not there yet, and go on where a transfer broke off."
    parser = Parser(prog="python -m tools.download", description=about, epilog=f"Defaults are in brackets. {LICENCE}")
    add, address = parser.add_argument, read_settings(Settings, []).DOWNLOAD_URL
    add("folder", type=Path, metavar="DIR", help="folder of the recordings; it is made if it is not there")
    add("--ids", nargs="+", metavar="ID", help="people, as two digits: DIR --ids 03 04 (all)")
    add("--format", choices=KINDS, default="hdf5", help="STEM.hdf5, or STEM.zip with a CSV in it (%(default)s)")
    tries = "tries after the first, each after twice the delay (%(default)s)"
    add("--retries", type=between(int, 0, 99), default=5, metavar="N", help=tries)
    add("--download-url", default=address, metavar="URL", help="where the data set lies (DOWNLOAD_URL of ENV.py)")
    return parser.parse_args(argv)


def download(args: argparse.Namespace, console: Console) -> int:
    """Bring every recording asked for into `args.folder` and say what became of it; returns 0, or 3 if any failed.

    Raises EMGError where the list cannot be had or lacks an id, and OSError where the folder cannot be written to.
    """
    kind, say = KINDS[args.format], partial(console.print, soft_wrap=True, markup=False)
    results = {"fetched": [], "there already": [], "failed": []}
    with _progress(console) as bar, requests.Session() as session:
        session.headers["Accept-Encoding"] = "identity"  # lengths and ranges are to be those of the file
        server = Server(args.download_url, args.retries, session, bar)
        names = [stem + kind.suffix for stem in choose(read_records(server, say), args.ids)]
        args.folder.mkdir(parents=True, exist_ok=True)
        checksums = read_checksums(server, kind, names, say)
        for number, name in enumerate(names, 1):
            outcome, detail = fetch(server, kind, args.folder / name, checksums.get(name))
            results[outcome].append(f"{name}: {detail}")
            say(f"{number}/{len(names)} {name}: {outcome}, {detail}")
    say(f"{args.folder}: {', '.join(f'{len(files)} {outcome}' for outcome, files in results.items())}")
    for line in results["failed"]:
        say(f"failed: {line}")
    say(LICENCE)
    return 3 if results["failed"] else 0


def _progress(console: Console) -> Progress:
    name = TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, ratio=1))
    numbers = [DownloadColumn, TransferSpeedColumn, TimeRemainingColumn]  # in a narrow terminal the name gives way
    columns = [name, BarColumn(10), *(column(table_column=Column(no_wrap=True)) for column in numbers)]
    return Progress(*columns, console=console, disable=not console.is_terminal, expand=True)


# ---- which recordings -----------------------------------------------------------------------------------------


def read_records(server: "Server", say: Callable[[str], None]) -> list[str]:
    """Stems of the gesture recordings in the server's records.txt; raises EMGError where there are none."""
    try:
        lines = [line.strip() for line in server.read("", "records.txt").splitlines() if line.strip()]
        # The names become paths below DIR: what is not wholly a recording's name, and might leave it, ends here.
        types = {line: match["type"] for line in lines if (match := RECORDING_NAME.fullmatch(line))}
        strange = [line for line in lines if line not in types]
        words = f"{len(strange)} lines are no recording's name, the first {strange[0][:60]!r}" if strange else ""
        stems = [stem for stem, kind in types.items() if kind == "emg_gestures"]
        if not stems:
            raise EMGError(f"the list names no gesture recording ({words or 'nor anything else'})")
    except EMGError as error:
        raise EMGError(
            f"{server.address('', 'records.txt')}: {error}; check the connection and --download-url"
        ) from None
    if strange:
        say(f"records.txt: {words}; left out")
    return stems


def choose(stems: list[str], ids: list[str] | None) -> list[str]:
    """The recordings of the people `ids`, or all; raises EMGError that names the ids there are."""
    subjects = {stem: RECORDING_NAME.fullmatch(stem)["subject"] for stem in stems}
    known = sorted(set(subjects.values()))
    unknown = [subject for subject in ids or [] if subject not in known]
    if unknown:
        raise EMGError(f"no recording of {', '.join(unknown)}; the list has {', '.join(known)}")
    return [stem for stem, subject in subjects.items() if ids is None or subject in ids]


def read_checksums(server: "Server", kind: Kind, names: list[str], say: Callable[[str], None]) -> dict[str, str]:
    """File name → MD5 from the server's MD5SUMS; says how many of `names` it cannot verify, and why."""
    try:
        found = re.findall(r"^([0-9a-fA-F]{32}) [ *](\S+)\s*$", server.read(kind.folder, "MD5SUMS"), re.MULTILINE)
        why = "it does not list them" if found else "it holds no checksums"
    except EMGError as error:
        found, why = [], str(error)
    checksums = {path.rpartition("/")[2]: md5.lower() for md5, path in found}
    missing = sum(name not in checksums for name in names)
    if missing:
        say(f"MD5SUMS: {why}; {missing} of {len(names)} files can be checked by length and first bytes alone")
    return checksums


# ---- one recording --------------------------------------------------------------------------------------------


def fetch(server: "Server", kind: Kind, target: Path, md5: str | None) -> tuple[str, str]:
    """Bring a right `target` there, where it is not; returns what became of it, and its size or the reason why not."""
    part = target.with_name(f"{target.name}.part")

    def complete(task: int) -> None:
        server.transfer(server.address(kind.folder, target.name), part, task)
        if reason := flaw(part, kind, md5):
            part.unlink()
            raise TemporaryError(reason)
        os.replace(part, target)

    try:
        there = target.exists() and not flaw(target, kind, md5)
        if not there:
            server.patiently(target.name, complete)
    except EMGError as error:
        return "failed", str(error)
    return "there already" if there else "fetched", decimal(target.stat().st_size)


def flaw(path: Path, kind: Kind, md5: str | None) -> str:
    """What is wrong with a file that should be whole, or an empty text."""
    with path.open("rb") as file:
        start = file.read(len(kind.magic))
        if start != kind.magic:
            return f"what came is no {kind.suffix} file, it begins with {start!r}"
        file.seek(0)
        found = hashlib.file_digest(file, "md5").hexdigest() if md5 else None
    return f"its MD5 is {found}, and MD5SUMS says {md5}" if found != md5 else ""


# ---- the server -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Server:
    """Where the data set lies, and patience with it; all that goes wrong there raises EMGError with the reason."""

    base: str
    retries: int
    session: requests.Session
    bar: Progress

    def address(self, folder: str, name: str) -> str:
        """As the data set's own downloader forms it, or a path below a folder."""
        if "?" in self.base:
            return f"{self.base}{folder}&files={name}"
        return "/".join([self.base.rstrip("/"), *filter(None, [folder]), name])

    def patiently(self, name: str, action: Callable[[int], Any]) -> Any:
        """Do `action`, which gets its line of the progress display, and again after a TemporaryError."""
        task = self.bar.add_task(name, total=None)
        try:
            for n in range(self.retries):
                try:
                    return action(task)
                except TemporaryError as error:
                    seconds = min(LONGEST_DELAY, max(FIRST_DELAY * 2 ** min(n, 9), error.wait))
                    self.bar.update(task, description=f"waiting {seconds:.1f} s: {error}")
                    time.sleep(seconds)
                    self.bar.update(task, description=name)
            return action(task)
        finally:
            self.bar.remove_task(task)

    def read(self, folder: str, name: str) -> str:
        """The text of a small file."""

        def text(_: int) -> str:
            content = b""
            with self._answer(self.address(folder, name)) as response:
                for piece in response.iter_content(PIECE):
                    content += piece
                    if len(content) > MAX_LIST_BYTES:
                        raise EMGError(f"it is larger than {decimal(MAX_LIST_BYTES)}, and so no list")
            return content.decode("utf-8-sig", errors="replace")

        return self.patiently(name, text)

    def transfer(self, url: str, part: Path, task: int) -> None:
        """Complete `part` from where it ends, or anew where the server does not go on from there."""
        have = part.stat().st_size if part.exists() else 0
        with self._answer(url, have) as response:
            follows = re.fullmatch(rf"bytes {have}-\d+/(\d+)", response.headers.get("Content-Range", ""))
            if response.status_code != 200 and not follows:  # 416, or not the piece that was asked for
                part.unlink()
                return self.transfer(url, part, task)
            first = have if response.status_code == 206 else 0
            length = follows[1] if first else response.headers.get("Content-Length", "")
            total = int(length) if length.isdecimal() else None
            self.bar.reset(task, total=total, completed=first)
            self._receive(response, part, first, total or 0, task)
        if total not in (None, part.stat().st_size):
            raise TemporaryError(f"{part.stat().st_size} bytes came of {total}")

    def _receive(self, response: requests.Response, part: Path, size: int, total: int, task: int) -> None:
        """Write the body to `part` from byte `size` on; raises EMGError where it is larger than any recording."""
        with part.open("ab" if size else "wb") as file:
            for piece in response.iter_content(PIECE):
                size += len(piece)
                if max(size, total) > MAX_FILE_BYTES:
                    break
                file.write(piece)
                file.flush()
                self.bar.advance(task, len(piece))
            else:
                return
        part.unlink()
        raise EMGError(f"it is larger than {decimal(MAX_FILE_BYTES)}, and so no recording")

    @contextmanager
    def _answer(self, url: str, have: int = 0) -> Iterator[requests.Response]:
        headers, expected = ({"Range": f"bytes={have}-"}, (200, 206, 416)) if have else ({}, (200,))
        try:
            with self.session.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
                if response.status_code not in expected:
                    raise _refusal(response)
                yield response
        except requests.RequestException as error:
            raise _explained(error) from None


def _refusal(response: requests.Response) -> EMGError:
    status = response.status_code
    reason = f"the server answers {status} {responses.get(status, '')}"
    if status != 429 and status < 500:
        return EMGError(reason)
    try:
        wait = Retry().get_retry_after(response.raw)
    except (InvalidHeader, ValueError, OverflowError):
        wait = None
    return TemporaryError(reason, wait or 0.0)


def _explained(error: requests.RequestException) -> EMGError:
    """What requests wraps in several exceptions, of which the innermost knows the reason."""
    if isinstance(error, ValueError):  # those about the address, before anything is sent
        return EMGError("this is no web address")
    cause: BaseException = error
    while cause.__context__:
        cause = cause.__context__
    if isinstance(cause, TimeoutError):
        return TemporaryError("the server does not answer in time")
    return TemporaryError(f"no connection, or it broke ({getattr(cause, 'strerror', None) or type(cause).__name__})")


if __name__ == "__main__":
    sys.exit(main())
