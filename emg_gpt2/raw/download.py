"""Fetch the raw recordings of putEMG from their server, with patience for a server that fails.

A recording gets its name when it is complete and checked; until then it is NAME.part, which the next run goes on from.
MD5SUMS checks it where the server has that file; otherwise only its length and its first bytes are checked.
"""

import hashlib
import logging
import os
import re
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import responses
from pathlib import Path
from typing import Any, NamedTuple

import requests
from rich.filesize import decimal
from rich.progress import Progress
from urllib3.exceptions import InvalidHeader
from urllib3.util import Retry

from emg_gpt2.base.errors import EMGError
from emg_gpt2.base.files import errors_name
from emg_gpt2.base.log import progress
from emg_gpt2.raw.putemg import RECORDING_NAME

logger = logging.getLogger(__name__)

LICENCE = "putEMG is licensed CC BY-NC 4.0: name its authors, no commercial use."
FIRST_DELAY, LONGEST_DELAY = 0.5, 60  # s before the next try: twice as long every time, and at most
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
    """An error that may pass: worth another try after `wait` seconds at the earliest."""

    def __init__(self, reason: str, wait: float = 0.0):
        super().__init__(reason)
        self.wait = wait


def download(args: Namespace) -> int:
    """Fetch every recording asked for into `args.folder`, and log what became of it; returns how many failed.

    Raises EMGError where there is no list of recordings, or it lacks an id; OSError where the folder cannot be written.
    """
    kind, results = KINDS[args.format], {"fetched": [], "there already": [], "failed": []}
    with progress(in_bytes=True) as bar, requests.Session() as session:
        session.headers["Accept-Encoding"] = "identity"  # so that lengths and ranges are those of the file
        server = Server(args.download_url, args.retries, session, bar)
        names = [stem + kind.suffix for stem in choose(read_records(server), args.ids)]
        args.folder.mkdir(parents=True, exist_ok=True)
        checksums = read_checksums(server, kind, names)
        for number, name in enumerate(names, 1):
            outcome, detail = fetch(server, kind, args.folder / name, checksums.get(name))
            results[outcome].append(f"{name}: {detail}")
            logger.info(f"{number}/{len(names)} {name}: {outcome}, {detail}")
    logger.info(f"{args.folder}: {', '.join(f'{len(files)} {outcome}' for outcome, files in results.items())}")
    for line in results["failed"]:
        logger.info(f"failed: {line}")
    logger.info(LICENCE)
    return len(results["failed"])


# ---- which recordings -------------------------------------------------------------------------------------------


def read_records(server: "Server") -> list[str]:
    """Stems of the gesture recordings in the server's records.txt; raises EMGError where there are none."""
    try:
        lines = [line.strip() for line in server.read("", "records.txt").splitlines() if line.strip()]
        # The names become paths below DIR: only whole names of recordings are taken, so that none leads out of it.
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
        logger.info(f"records.txt: {words}; left out")
    return stems


def choose(stems: list[str], ids: list[str] | None) -> list[str]:
    """The recordings of the people `ids`, or all; raises EMGError that names the ids there are."""
    subjects = {stem: RECORDING_NAME.fullmatch(stem)["subject"] for stem in stems}
    known = sorted(set(subjects.values()))
    unknown = [subject for subject in ids or [] if subject not in known]
    if unknown:
        raise EMGError(f"no recording of {', '.join(unknown)}; the list has {', '.join(known)}")
    return [stem for stem, subject in subjects.items() if ids is None or subject in ids]


def read_checksums(server: "Server", kind: Kind, names: list[str]) -> dict[str, str]:
    """File name → MD5 from the server's MD5SUMS; logs how many of `names` have none, and why."""
    try:
        found = re.findall(r"^([0-9a-fA-F]{32}) [ *](\S+)\s*$", server.read(kind.folder, "MD5SUMS"), re.MULTILINE)
        why = "it does not list them" if found else "it holds no checksums"
    except EMGError as error:
        found, why = [], str(error)
    checksums = {path.rpartition("/")[2]: md5.lower() for md5, path in found}
    missing = sum(name not in checksums for name in names)
    if missing:
        logger.info(f"MD5SUMS: {why}; {missing} of {len(names)} files can be checked by length and first bytes alone")
    return checksums


# ---- one recording ----------------------------------------------------------------------------------------------


def fetch(server: "Server", kind: Kind, target: Path, md5: str | None) -> tuple[str, str]:
    """Fetch `target` unless it is there and right; returns what became of it, and its size or why it failed."""
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
            server.retry(target.name, complete)
    except EMGError as error:
        return "failed", str(error)
    return "there already" if there else "fetched", decimal(target.stat().st_size)


def flaw(path: Path, kind: Kind, md5: str | None) -> str:
    """What is wrong with a file that should be complete, or an empty text."""
    with path.open("rb") as file:
        start = file.read(len(kind.magic))
        if start != kind.magic:
            return f"what came is no {kind.suffix} file, it begins with {start!r}"
        file.seek(0)
        found = hashlib.file_digest(file, "md5").hexdigest() if md5 else None
    return f"its MD5 is {found}, and MD5SUMS says {md5}" if found != md5 else ""


# ---- the server -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Server:
    """The server of the data set, asked up to `retries` times more; a failure raises EMGError with the reason."""

    base: str
    retries: int
    session: requests.Session
    bar: Progress

    def address(self, folder: str, name: str) -> str:
        """The address of a file: as the data set's own downloader forms it, or as a path."""
        if "?" in self.base:
            return f"{self.base}{folder}&files={name}"
        return "/".join([self.base.rstrip("/"), *filter(None, [folder]), name])

    def retry(self, name: str, action: Callable[[int], Any]) -> Any:
        """Call `action` with its task of the progress bar, and again after a TemporaryError; returns its result."""
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

        return self.retry(name, text)

    def transfer(self, url: str, part: Path, task: int) -> None:
        """Complete `part` from where it ends, or start anew where the server does not go on from there."""
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
        with errors_name(part), part.open("ab" if size else "wb") as file:
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
    """The reason of an error of requests, which wraps the exception that knows it in several others."""
    if isinstance(error, ValueError):  # those about the address, before anything is sent
        return EMGError("this is no web address")
    cause: BaseException = error
    while cause.__context__:
        cause = cause.__context__
    if isinstance(cause, TimeoutError):
        return TemporaryError("the server does not answer in time")
    return TemporaryError(f"no connection, or it broke ({getattr(cause, 'strerror', None) or type(cause).__name__})")
