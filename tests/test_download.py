"""The downloader against a local server that breaks connections, shortens bodies, lies and refuses."""

import gzip
import hashlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, STEM, call, run

from emg_gpt2.commands.download import main
from emg_gpt2.raw import download
from emg_gpt2.raw.putemg import read_recording

LONG = "emg_gestures-03-repeats_long-2018-05-11-11-05-00-695"
OTHER = "emg_gestures-04-repeats_short-2018-04-19-13-14-36-142"
FORCE = "emg_force-03-repeats_long-2018-05-11-11-40-00-100"
MAGIC = b"\x89HDF\r\n\x1a\n"
HTML = b"<!DOCTYPE html><html><body>Something else</body></html>"
LOCAL = {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
COMMAND = "emg_gpt2.commands.download"
KEPT = "run the same command again, which goes on from what came so far"

Fault = Callable[["Handler", bytes], None]


class Server(ThreadingHTTPServer):
    """Serves `files` in both styles; `faults` of a file answer its next requests, one each; `seen` logs all of them."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[Fault]] = defaultdict(list)
        self.seen: list[tuple[str, str | None]] = []
        self.closing = threading.Event()
        self.folder_url = f"http://127.0.0.1:{self.server_port}/dav/"
        self.query_url = f"http://127.0.0.1:{self.server_port}/s/token/download?path=%2F"

    def of(self, name: str) -> list[str | None]:
        """The Range header of every request for a file, in order."""
        return [wanted for path, wanted in self.seen if path.endswith(name)]

    def handle_error(self, request, client_address):
        """A client that went away is what some tests are about."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.seen.append((self.path, self.headers["Range"]))
        key = self.path.removeprefix("/dav/").removeprefix("/s/token/download?path=%2F").replace("&files=", "/")
        body, faults = self.server.files.get(key.strip("/")), self.server.faults[key.strip("/")]
        answer = faults.pop(0) if faults else whole
        answer(self, body) if body is not None or answer is not whole else status(404)(self, b"")

    def reply(self, code: int, body: bytes, length: int | None = None, **headers: str) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = length is not None

    def log_message(self, *_):
        """Quiet."""


def whole(handler: Handler, body: bytes) -> None:
    """What a good server does, Range included."""
    wanted = re.fullmatch(r"bytes=(\d+)-", handler.headers["Range"] or "")
    if not wanted:
        return handler.reply(200, body)
    first = int(wanted[1])
    if first >= len(body):
        return handler.reply(416, b"", Content_Range=f"bytes */{len(body)}")
    handler.reply(206, body[first:], Content_Range=f"bytes {first}-{len(body) - 1}/{len(body)}")


def broken(after: int) -> Fault:
    """The connection ends after so many bytes of a body that was announced in full."""
    return lambda handler, body: handler.reply(200, body[:after], length=len(body))


def status(code: int, body: bytes = b"", **headers: str) -> Fault:
    return lambda handler, _: handler.reply(code, body, **headers)


def no_range(handler: Handler, body: bytes) -> None:
    handler.reply(200, body)


def stuck(after: int) -> Fault:
    """Nothing comes after so many bytes, but the connection stays."""

    def answer(handler: Handler, body: bytes) -> None:
        handler.reply(200, body[:after], length=len(body))
        handler.wfile.flush()
        handler.server.closing.wait(30)

    return answer


@pytest.fixture
def server():
    """Two people, three recordings and one of another kind; no MD5SUMS."""
    with Server() as server:
        for number, stem in enumerate([LONG, STEM, OTHER]):
            server.files[f"Data-HDF5/{stem}.hdf5"] = MAGIC + bytes([number]) * 1000
            server.files[f"Data-CSV/{stem}.zip"] = b"PK\x03\x04" + bytes([number]) * 500
        server.files["records.txt"] = "\n".join([LONG, STEM, FORCE, OTHER, ""]).encode()
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.closing.set()
        server.shutdown()


@pytest.fixture
def file(server) -> str:
    """The server's only recording, by its place there."""
    server.files["records.txt"] = f"{STEM}\n".encode()
    return f"Data-HDF5/{STEM}.hdf5"


def sums(server: Server, folder: str = "Data-HDF5") -> None:
    """Put the right MD5SUMS beside the files."""
    files = {path: body for path, body in server.files.items() if path.startswith(folder)}
    lines = [f"{hashlib.md5(body).hexdigest()}  {path.rpartition('/')[2]}\n" for path, body in files.items()]
    server.files[f"{folder}/MD5SUMS"] = "".join(lines).encode()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def fetch(server: Server, folder: Path, *options: str) -> subprocess.CompletedProcess:
    return call(COMMAND, folder, "--download-url", server.folder_url, *options)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ---- what is fetched ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", ["query", "folder"])
def test_both_styles_fetch_the_recordings_of_the_people_asked_for(server, tmp_path, style, monkeypatch):
    sums(server)
    url = {"query": server.query_url, "folder": server.folder_url}[style]
    folder = tmp_path / "new" / "[b]raw"  # square brackets mean something to rich
    monkeypatch.setenv("EMG_DOWNLOAD_URL", url)
    done = call(COMMAND, "--ids", "03", "--format", "hdf5", folder)
    assert done.returncode == 0, done.stderr
    files = {f"{stem}.hdf5": server.files[f"Data-HDF5/{stem}.hdf5"] for stem in [LONG, STEM]}
    assert contents(folder) == files
    top, inside = {"query": ("&files=", "Data-HDF5&files="), "folder": ("", "Data-HDF5/")}[style]
    start = {"query": "/s/token/download?path=%2F", "folder": "/dav/"}[style]
    paths = [f"{top}records.txt", *(inside + name for name in ["MD5SUMS", f"{LONG}.hdf5", f"{STEM}.hdf5"])]
    assert server.seen == [(start + path, None) for path in paths]
    assert done.stdout.splitlines() == [
        f"1/2 {LONG}.hdf5: fetched, 1.0 kB",
        f"2/2 {STEM}.hdf5: fetched, 1.0 kB",
        f"{folder}: 2 fetched, 0 there already, 0 failed",
        "putEMG is licensed CC BY-NC 4.0: name its authors, no commercial use.",
    ]
    assert done.stderr == ""


def test_all_people_as_zipped_csv_and_the_flag_beats_the_variable(server, tmp_path, monkeypatch):
    sums(server, "Data-CSV")
    monkeypatch.setenv("EMG_DOWNLOAD_URL", "http://127.0.0.1:9/")
    done = fetch(server, tmp_path, "--format", "csv")
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path) == {f"{s}.zip": server.files[f"Data-CSV/{s}.zip"] for s in [LONG, STEM, OTHER]}
    assert not any("Data-HDF5" in path for path, _ in server.seen)


def test_a_real_recording_can_be_read(server, file, tiny_raw, tmp_path):
    """300 KB, broken off once after six whole pieces of 16384 bytes."""
    source = tiny_raw / f"{STEM}.hdf5"
    server.files[file] = source.read_bytes()
    server.faults[file] = [broken(100_000)]
    sums(server)
    assert fetch(server, tmp_path).returncode == 0
    [path] = tmp_path.iterdir()
    recording = read_recording(path)
    assert (recording.name, recording.subject, recording.emg.shape[1]) == (STEM, "03", 3)
    np.testing.assert_array_equal(recording.emg, read_recording(source).emg)
    assert server.of(".hdf5") == [None, "bytes=98304-"]


def test_only_what_is_missing_or_wrong_is_fetched(server, tmp_path):
    """One file is right, one is damaged, one is not there, and one has nothing to do with it."""
    sums(server)
    right = server.files[f"Data-HDF5/{LONG}.hdf5"]
    (tmp_path / f"{LONG}.hdf5").write_bytes(right)
    (tmp_path / f"{STEM}.hdf5").write_bytes(MAGIC + b"damaged")
    (tmp_path / "notes.txt").write_bytes(b"mine")
    done = fetch(server, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 fetched, 1 there already, 0 failed" in done.stdout
    assert f"{LONG}.hdf5: there already, 1.0 kB" in done.stdout
    assert len(server.of(f"{LONG}.hdf5")) == 0
    expected = {f"{s}.hdf5": server.files[f"Data-HDF5/{s}.hdf5"] for s in [LONG, STEM, OTHER]}
    assert contents(tmp_path) == expected | {"notes.txt": b"mine"}


def test_a_damaged_file_stays_until_a_right_one_is_there(server, file, tmp_path):
    sums(server)
    server.faults[file] = [status(404)]
    (tmp_path / f"{STEM}.hdf5").write_bytes(MAGIC + b"damaged")
    assert fetch(server, tmp_path).returncode == 3
    assert contents(tmp_path) == {f"{STEM}.hdf5": MAGIC + b"damaged"}


# ---- the list -------------------------------------------------------------------------------------------------


def test_unknown_people_are_named_with_those_there_are(server, tmp_path):
    done = fetch(server, tmp_path / "raw", "--ids", "03", "01", "99")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "download: no recording of 01, 99; the list has 03, 04\n"
    assert not (tmp_path / "raw").exists()


def test_lines_that_are_no_recording_cannot_leave_the_folder(server, tmp_path):
    """A path upwards, an absolute one, another suffix; CRLF, a repetition and blank lines are no harm."""
    evil = ["../" + STEM, "/tmp/" + STEM, STEM + "/../../x", f"{STEM}.hdf5", "\x1b[31mred", "emg_gestures-3-x"]
    server.files["records.txt"] = "\r\n".join(["\ufeff" + evil[0], *evil[1:], "", STEM, STEM, FORCE, ""]).encode()
    done = fetch(server, tmp_path / "inside" / "raw")
    assert done.returncode == 0, done.stderr
    assert f"records.txt: 6 lines are no recording's name, the first '../{STEM[:57]}'; left out" in done.stdout
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [f"{STEM}.hdf5"]
    assert server.of(".hdf5") == [None]


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (status(404), "the server answers 404 Not Found"),
        (
            status(200, HTML),
            f"the list names no gesture recording (1 lines are no recording's name, the first {HTML.decode()!r})",
        ),
        (status(200, b""), "the list names no gesture recording (nor anything else)"),
        (status(200, b"x" * 1_100_000), "it is larger than 1.0 MB, and so no list"),
    ],
)
def test_without_a_list_nothing_is_done(server, tmp_path, answer, sentence):
    server.faults["records.txt"] = [answer]
    done = fetch(server, tmp_path / "raw")
    address = f"{server.folder_url}records.txt"
    assert done.stderr == f"download: {address}: {sentence}; check the connection and --download-url\n"
    assert (done.returncode, done.stdout, len(server.seen)) == (1, "", 1)


def test_a_list_that_breaks_off_is_asked_for_again(server, tmp_path):
    server.faults["records.txt"] = [broken(len(LONG) + 1)]
    done = fetch(server, tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.iterdir())) == 3
    assert server.of("records.txt") == [None, None]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--download-url", "http://127.0.0.1:1/"], "no connection, or it broke (Connection refused)"),
        (["--download-url", "somewhere"], "somewhere/records.txt: this is no web address"),
        (["--download-url", "ftp://127.0.0.1"], "this is no web address"),
        (["--format", "mat"], "argument --format: invalid choice: 'mat'"),
        (["--retries", "many"], "argument --retries: invalid number value: 'many'"),
        (["--people", "03"], "--people 03: there is no such flag; --help lists the flags"),
    ],
)
def test_bad_arguments_and_addresses_are_one_sentence(tmp_path, options, sentence):
    done = call(COMMAND, tmp_path / "raw", "--retries", "0", *options)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("download: ")
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "raw").exists()


def test_a_wrong_setting_and_a_missing_folder_are_one_sentence(tmp_path, monkeypatch):
    done = call(COMMAND)
    assert done.returncode == 1
    assert re.fullmatch(r"download: nothing was given for DIR: write .* download DIR; --help.*\n", done.stderr)
    monkeypatch.setenv("EMG_DOWNLOAD_ADDRESS", "http://127.0.0.1:9/")
    done = call(COMMAND, tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "did you mean EMG_DOWNLOAD_URL?" in done.stderr


# ---- checksums ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (status(404), "the server answers 404 Not Found"),
        (status(200, HTML), "it holds no checksums"),
        (status(200, b"d41d8cd98f00b204e9800998ecf8427e  other.hdf5\n"), "it does not list them"),
    ],
)
def test_without_checksums_the_files_come_and_the_lack_is_said(server, tmp_path, answer, why):
    server.faults["Data-HDF5/MD5SUMS"] = [answer]
    (tmp_path / f"{LONG}.hdf5").write_bytes(MAGIC + b"any")  # nothing says that it is wrong
    (tmp_path / f"{STEM}.hdf5").write_bytes(HTML)
    done = fetch(server, tmp_path, "--ids", "03")
    assert done.returncode == 0, done.stderr
    first = done.stdout.splitlines()[0]
    assert first == f"MD5SUMS: {why}; 2 of 2 files can be checked by length and first bytes alone"
    assert contents(tmp_path) == {
        f"{LONG}.hdf5": MAGIC + b"any",
        f"{STEM}.hdf5": server.files[f"Data-HDF5/{STEM}.hdf5"],
    }


def test_md5sum_s_forms(server, tmp_path):
    """Binary mark, capitals, a folder before the name, CRLF; a file that is not in the list is counted."""
    md5 = {stem: hashlib.md5(server.files[f"Data-HDF5/{stem}.hdf5"]).hexdigest() for stem in [LONG, STEM]}
    lines = f"{md5[LONG].upper()} *{LONG}.hdf5\r\n{'0' * 32}  ./Data-HDF5/{STEM}.hdf5\r\n"
    server.files["Data-HDF5/MD5SUMS"] = lines.encode()
    done = fetch(server, tmp_path, "--retries", "0")
    assert done.returncode == 3
    assert "MD5SUMS: it does not list them; 1 of 3 files can be checked by length" in done.stdout
    assert f"failed: {STEM}.hdf5: its MD5 is {md5[STEM]}, and MD5SUMS says {'0' * 32}" in done.stdout
    assert sorted(contents(tmp_path)) == [f"{LONG}.hdf5", f"{OTHER}.hdf5"]


def test_a_wrong_checksum_is_fetched_anew_and_in_the_end_named(server, tmp_path):
    """LONG comes wrong once; STEM always, in another way than by its first bytes or its length."""
    sums(server)
    wrong = status(200, MAGIC + b"x" * 1000)
    server.faults[f"Data-HDF5/{LONG}.hdf5"] = [wrong]
    server.faults[f"Data-HDF5/{STEM}.hdf5"] = [wrong] * 9
    done = fetch(server, tmp_path, "--retries", "1")
    assert done.returncode == 3
    assert server.of(f"{LONG}.hdf5") == server.of(f"{STEM}.hdf5") == [None, None]
    assert contents(tmp_path) == {f"{s}.hdf5": server.files[f"Data-HDF5/{s}.hdf5"] for s in [LONG, OTHER]}
    found = hashlib.md5(MAGIC + b"x" * 1000).hexdigest()
    right = hashlib.md5(server.files[f"Data-HDF5/{STEM}.hdf5"]).hexdigest()
    reason = f"its MD5 is {found}, and MD5SUMS says {right}"
    assert f"{STEM}.hdf5: failed, {reason}\n" in done.stdout
    assert done.stdout.splitlines()[-3:-1] == [
        f"{tmp_path}: 2 fetched, 0 there already, 1 failed",
        f"failed: {STEM}.hdf5: {reason}",
    ]


@pytest.mark.parametrize("body", [HTML, b"", MAGIC[:7], b"PK\x03\x04" + b"x" * 1000])
def test_what_is_no_recording_never_gets_its_name(server, file, tmp_path, body):
    """No MD5SUMS, status 200, and the length is as announced."""
    server.files[file] = body
    done = fetch(server, tmp_path, "--retries", "1")
    assert done.returncode == 3
    assert contents(tmp_path) == {}
    assert f"failed: {STEM}.hdf5: what came is no .hdf5 file, it begins with {body[:8]!r}\n" in done.stdout
    assert server.of(".hdf5") == [None, None]


# ---- transfers that break -------------------------------------------------------------------------------------


def test_a_broken_transfer_goes_on_where_it_broke(server, file, tmp_path):
    """Twice short, once as the answer to a Range; whole pieces of 16384 bytes count."""
    body = server.files[file] = MAGIC + np.random.default_rng(0).bytes(99_992)

    def short_piece(handler: Handler, body: bytes) -> None:
        handler.reply(206, body[32_768:52_768], length=67_232, Content_Range="bytes 32768-99999/100000")

    server.faults[file] = [broken(40_000), short_piece]
    done = fetch(server, tmp_path)
    assert done.returncode == 0, done.stdout
    assert server.of(".hdf5") == [None, "bytes=32768-", "bytes=49152-"]
    assert contents(tmp_path) == {f"{STEM}.hdf5": body}


def test_the_next_run_goes_on_where_the_last_one_gave_up(server, file, tmp_path):
    body = server.files[file] = MAGIC + np.random.default_rng(0).bytes(99_992)
    server.faults[file] = [broken(40_000)]
    done = fetch(server, tmp_path, "--retries", "0")
    assert done.returncode == 3
    assert f"failed: {STEM}.hdf5: no connection, or it broke (IncompleteRead)" in done.stdout
    assert contents(tmp_path) == {f"{STEM}.hdf5.part": body[:32_768]}
    done = fetch(server, tmp_path, "--retries", "0")
    assert done.returncode == 0, done.stdout
    assert server.of(".hdf5") == [None, "bytes=32768-"]
    assert contents(tmp_path) == {f"{STEM}.hdf5": body}


def piece(first: int, last: int, total: int, body: bytes) -> Fault:
    return status(206, body, Content_Range=f"bytes {first}-{last}/{total}")


@pytest.mark.parametrize(
    ("answer", "ranges"),
    [
        (no_range, ["bytes=100-"]),
        (status(416, HTML), ["bytes=100-", None]),
        (piece(0, 9, 1008, b"x" * 10), ["bytes=100-", None]),
        (piece(101, 1007, 1008, b"x" * 907), ["bytes=100-", None]),
        (status(206, b"x" * 908), ["bytes=100-", None]),
        (status(206, b"x" * 908, Content_Range="bytes 100-1007/*"), ["bytes=100-", None]),
    ],
    ids=["Range ignored", "416", "another start", "one byte off", "no Content-Range", "no total"],
)
def test_a_server_that_does_not_go_on_from_there_is_asked_anew(server, file, tmp_path, answer, ranges):
    """Without a checksum, and in one try: what comes is right although nothing but the Range answer tells."""
    server.faults[file] = [answer]
    (tmp_path / f"{STEM}.hdf5.part").write_bytes(server.files[file][:100])
    done = fetch(server, tmp_path, "--retries", "0")
    assert done.returncode == 0, done.stdout
    assert server.of(".hdf5") == ranges
    assert contents(tmp_path) == {f"{STEM}.hdf5": server.files[file]}


def test_a_piece_that_ends_too_early_is_followed_by_the_next(server, file, tmp_path):
    """Its Content-Length is right and its Content-Range says that more is to come."""
    server.faults[file] = [piece(100, 199, 1008, server.files[file][100:200])]
    (tmp_path / f"{STEM}.hdf5.part").write_bytes(server.files[file][:100])
    done = fetch(server, tmp_path, "--retries", "1")
    assert done.returncode == 0, done.stdout
    assert server.of(".hdf5") == ["bytes=100-", "bytes=200-"]
    assert contents(tmp_path) == {f"{STEM}.hdf5": server.files[file]}


@pytest.mark.parametrize("rest", [b"", b"x" * 100, b"x" * 2000], ids=["complete", "of another file", "too long"])
def test_a_part_that_does_not_fit_is_fetched_anew(server, file, tmp_path, rest):
    """The end of a run between the last byte and the new name; a file that has changed since; one that has shrunk."""
    sums(server)
    part = MAGIC + rest if rest else server.files[file]
    (tmp_path / f"{STEM}.hdf5.part").write_bytes(part)
    done = fetch(server, tmp_path, "--retries", "1")
    assert done.returncode == 0, done.stdout
    assert server.of(".hdf5") == [f"bytes={len(part)}-", None]
    assert contents(tmp_path) == {f"{STEM}.hdf5": server.files[file]}


def test_a_kill_in_the_middle_leaves_a_part_that_is_completed(server, file, tmp_path):
    """Ten pieces of 16384 bytes and a half have been sent when SIGKILL comes."""
    server.files[file] = MAGIC + np.random.default_rng(0).bytes(400_000)
    server.faults[file] = [stuck(21 * 8192)]
    sums(server)
    part = tmp_path / f"{STEM}.hdf5.part"
    command = [sys.executable, "-m", "emg_gpt2", "download", str(tmp_path), "--download-url", server.folder_url]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, env=os.environ | LOCAL) as process:
        wait_for(lambda: part.exists() and part.stat().st_size >= 10 * 16_384)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert list(contents(tmp_path)) == [part.name]
    assert part.read_bytes() == server.files[file][: 10 * 16_384]
    server.closing.set()
    assert fetch(server, tmp_path).returncode == 0
    assert server.of(".hdf5") == [None, f"bytes={10 * 16_384}-"]
    assert contents(tmp_path) == {f"{STEM}.hdf5": server.files[file]}


@pytest.mark.nightly
def test_ctrl_c_says_what_is_kept(server, file, tmp_path):
    server.files[file] = MAGIC + bytes(400_000)
    server.faults[file] = [stuck(100_000)]
    command = [sys.executable, "-m", "emg_gpt2", "download", str(tmp_path), "--download-url", server.folder_url]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=os.environ | LOCAL, **pipes) as process:
        wait_for(lambda: any(path.stat().st_size == 6 * 16_384 for path in tmp_path.iterdir()))
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said == f"download: interrupted; {KEPT}\n"
    assert contents(tmp_path) == {f"{STEM}.hdf5.part": server.files[file][: 6 * 16_384]}


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_nothing_is_compressed_on_the_way(server, file, tmp_path):
    """A compressed body has other lengths and ranges than the file."""

    def zipped(handler: Handler, body: bytes) -> None:
        if "gzip" in (handler.headers["Accept-Encoding"] or ""):
            return handler.reply(200, gzip.compress(body), Content_Encoding="gzip")
        handler.reply(200, body)

    server.faults[file] = [zipped]
    assert fetch(server, tmp_path, "--retries", "0").returncode == 0
    assert contents(tmp_path) == {f"{STEM}.hdf5": server.files[file]}


# ---- refusals and patience ------------------------------------------------------------------------------------


def test_only_what_may_pass_is_tried_again(server, tmp_path):
    """503 and 429 pass; 403 and 404 do not, and are asked for once."""
    server.faults[f"Data-HDF5/{LONG}.hdf5"] = [status(503), status(429)]
    server.faults[f"Data-HDF5/{STEM}.hdf5"] = [status(403)]
    del server.files[f"Data-HDF5/{OTHER}.hdf5"]
    began = time.monotonic()
    done = fetch(server, tmp_path)
    assert time.monotonic() - began > 0.5 + 1
    assert done.returncode == 3
    assert len(server.of(f"{LONG}.hdf5")) == 3
    assert len(server.of(f"{STEM}.hdf5")) == len(server.of(f"{OTHER}.hdf5")) == 1
    assert list(contents(tmp_path)) == [f"{LONG}.hdf5"]
    assert done.stdout.splitlines()[-4:-1] == [
        f"{tmp_path}: 1 fetched, 0 there already, 2 failed",
        f"failed: {STEM}.hdf5: the server answers 403 Forbidden",
        f"failed: {OTHER}.hdf5: the server answers 404 Not Found",
    ]


def test_retries_are_counted(server, file, tmp_path):
    server.faults[file] = [status(500)] * 9
    done = fetch(server, tmp_path, "--retries", "1")
    assert done.returncode == 3
    assert f"failed: {STEM}.hdf5: the server answers 500 Internal Server Error" in done.stdout
    assert len(server.of(".hdf5")) == 2


@pytest.fixture
def in_process(server, file, tmp_path, monkeypatch):
    """main() in this process, with waiting that is only written down; what the second run of a clock would take."""
    waits = []
    monkeypatch.setattr(download.time, "sleep", waits.append)
    return lambda *options: (main([str(tmp_path), "--download-url", server.folder_url, *options]), waits)


def test_delays_double_up_to_a_bound(server, file, in_process):
    server.faults[file] = [status(500)] * 9
    assert in_process("--retries", "9") == (0, [0.5, 1, 2, 4, 8, 16, 32, 60, 60])


@pytest.mark.parametrize(
    ("value", "wait"),
    [
        ("7", 7),
        ("86400", 60),
        ("0", 0.5),
        ("soon", 0.5),
        ("9" * 5000, 0.5),
        ("Wed, 21 Oct 99999999999999999999 07:28:00 GMT", 0.5),
        ("Wed, 21 Oct 2065 07:28:00 GMT", 60),
    ],
)
def test_retry_after_is_honoured_within_the_bound(server, file, in_process, value, wait):
    server.faults[file] = [status(503, Retry_After=value)]
    assert in_process() == (0, [wait])


def test_a_silent_server_counts_as_broken(server, file, in_process, tmp_path, monkeypatch, capsys):
    """It falls silent in the middle of the body, and before the answer."""
    server.files[file] = MAGIC + bytes(400_000)
    server.faults[file] = [stuck(100_000), lambda handler, body: handler.server.closing.wait(30)]
    monkeypatch.setattr(download, "TIMEOUT", (5, 0.3))
    for expected in [None, "bytes=98304-"]:
        assert in_process("--retries", "0") == (3, [])
        assert f"failed: {STEM}.hdf5: the server does not answer in time\n" in capsys.readouterr().out
        assert server.of(".hdf5")[-1] == expected
    assert in_process() == (0, [])
    assert contents(tmp_path) == {f"{STEM}.hdf5": server.files[file]}


# ---- the folder and the terminal ------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_is_one_sentence(server, tmp_path):
    (tmp_path / "raw").write_text("a file")
    done = fetch(server, tmp_path / "raw")
    assert (done.returncode, done.stderr) == (
        1,
        f"download: {tmp_path / 'raw'}: File exists; free or mend the place, then {KEPT}\n",
    )


@pytest.mark.nightly
def test_a_full_disk_ends_the_run_in_one_sentence(server, tmp_path):
    """A limit on the size of files stands in for it: the first file fits, the second does not."""
    limited = (
        "import resource, runpy; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); "
        "runpy.run_module('emg_gpt2', run_name='__main__')"
    )
    server.files[f"Data-HDF5/{STEM}.hdf5"] = MAGIC + bytes(200_000)
    done = run("-c", limited, "download", tmp_path, "--download-url", server.folder_url, **LOCAL)
    part = tmp_path / f"{STEM}.hdf5.part"
    said = f"download: {part}: File too large; free or mend the place, then {KEPT}\n"
    assert (done.returncode, done.stderr) == (1, said)
    assert sorted(contents(tmp_path)) == [f"{LONG}.hdf5", f"{STEM}.hdf5.part"]
    assert len(server.of(f"{OTHER}.hdf5")) == 0
    assert fetch(server, tmp_path).returncode == 0
    assert contents(tmp_path)[f"{STEM}.hdf5"] == server.files[f"Data-HDF5/{STEM}.hdf5"]


@pytest.mark.nightly
def test_a_terminal_shows_the_transfer(server, file, tmp_path):
    """Bytes, size and name while the server takes its time, and the plain line afterwards."""

    def slow(handler: Handler, body: bytes) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        for start in range(0, len(body), 100_000):
            handler.wfile.write(body[start : start + 100_000])
            time.sleep(0.2)

    server.files[file] = MAGIC + bytes(400_000)
    server.faults[file] = [slow]
    ours, theirs = pytest.importorskip("pty").openpty()
    command = [sys.executable, "-m", "emg_gpt2", "download", str(tmp_path), "--download-url", server.folder_url]
    environment = os.environ | LOCAL | {"TERM": "xterm", "COLUMNS": "120"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=theirs, stdin=theirs) as process:
        os.close(theirs)
        shown = b""
        while piece := read(ours):
            shown += piece
    os.close(ours)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert process.returncode == 0
    assert re.search(rf"{STEM}.hdf5 .* \d+(\.\d)?/400.0 kB .*[kM]B/s", text)
    assert f"{STEM}.hdf5: fetched, 400.0 kB" in text


def read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # Linux says so when the other end is closed
        return b""
