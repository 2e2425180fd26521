"""A small Hugging Face hub on this machine: the part of its API that from_pretrained and push_to_hub call.

It answers as huggingface_hub's own source expects: repositories are made, files are announced (preupload), large ones
are sent by the LFS protocol and checked against their SHA-256, a commit puts all in place, and files are resolved.
Not shown by it: the xet protocol, pull requests, branches, and the hub's rules for the metadata of a card.
"""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import yaml

TOKEN = "hf_of_the_test"


class LocalHub(ThreadingHTTPServer):
    """repositories: name → path → content; stored: SHA-256 → content of large files."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.stored: dict[str, bytes] = {}
        self.commits: list[dict] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: LocalHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", unquote(self.path.partition("?")[0]))
        if not found:
            return self.answer(200 if self.path == "/" else 404, {})
        name, path = found.groups()
        if name not in self.server.repositories:
            return self.answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        if path not in self.server.repositories[name]:
            return self.answer(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
        content = self.server.repositories[name][path]
        checksum = hashlib.sha256(content).hexdigest()
        return self.answer(200, content, {"ETag": f'"{checksum}"', "X-Repo-Commit": "0" * 40})

    def do_PUT(self) -> None:
        content, wanted = self.body(), self.path.removeprefix("/lfs/")
        if hashlib.sha256(content).hexdigest() != wanted:
            return self.answer(400, {"error": "the content is not that of its checksum"})
        self.server.stored[wanted] = content
        return self.answer(200, {})

    def do_POST(self) -> None:
        body = self.body()
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer(401, {"error": "Invalid username or password."})
        if self.path == "/api/repos/create":
            return self.create(json.loads(body))
        if self.path == "/api/validate-yaml":
            return self.validate(json.loads(body)["content"])
        if re.fullmatch(r"/api/models/.+/.+/preupload/main", self.path):
            return self.announce(json.loads(body))
        if re.fullmatch(r"/.+/.+\.git/info/lfs/objects/batch", self.path):
            return self.batch(json.loads(body))
        if found := re.fullmatch(r"/api/models/(.+/.+)/commit/main", self.path):
            return self.commit(found[1], [json.loads(line) for line in body.splitlines()])
        return self.answer(404, {"error": self.path})

    def create(self, wanted: dict) -> None:
        name = f"{wanted['organization']}/{wanted['name']}"
        self.server.repositories.setdefault(name, {})
        self.answer(200, {"url": f"{self.server.endpoint}/{name}"})

    def validate(self, card: str) -> None:
        """Whether the card begins with YAML; the hub has rules beyond that."""
        metadata = yaml.safe_load(re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)[1])
        self.answer(200 if isinstance(metadata, dict) else 400, {"errors": [], "warnings": []})

    def announce(self, wanted: dict) -> None:
        """Safetensors are large files, as the hub has it."""
        modes = {True: "lfs", False: "regular"}
        files = [
            {"path": file["path"], "uploadMode": modes[file["path"].endswith(".safetensors")], "shouldIgnore": False}
            for file in wanted["files"]
        ]
        self.answer(200, {"files": files})

    def batch(self, wanted: dict) -> None:
        objects = [
            one | {"actions": {"upload": {"href": f"{self.server.endpoint}/lfs/{one['oid']}"}}}
            for one in wanted["objects"]
        ]
        self.answer(200, {"transfer": "basic", "objects": objects})

    def commit(self, name: str, lines: list[dict]) -> None:
        files = {}
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.stored[value["oid"]]
        self.server.repositories[name].update(files)
        self.server.commits.append({"name": name, "files": sorted(files)})
        self.answer(200, {"commitUrl": f"{self.server.endpoint}/{name}/commit/{'0' * 40}", "commitOid": "0" * 40})

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def answer(self, status: int, content: dict | bytes, headers: dict[str, str] | None = None) -> None:
        sent = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(sent)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(sent)


@contextmanager
def local_hub():
    """Yields a hub that listens until the end."""
    hub = LocalHub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
