"""A small model hub on loopback: what huggingface_hub asks for, range requests, and faults on demand."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

REPO = "org/tiny"
LARGE = 1000
"""Bytes from which a file is listed with its sha256, as the hub does with weights."""


@dataclass
class FakeHub:
    """Commits of one repository, branch → commit, and what was asked for."""

    address: str = ""
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    """Path and Range header of each download."""
    tokens: set[str] = field(default_factory=set)
    gated: bool = False
    break_after: int | None = None
    """Bytes after which the next download breaks off, for good until this is None."""
    corrupt: int = 0
    """So many downloads have a wrong byte."""

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        name = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.commits[name] = files
        self.branches[branch] = name
        return name


@contextmanager
def serve() -> Iterator[FakeHub]:
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            hub.tokens.add(self.headers.get("Authorization", ""))
            parts = path.strip("/").split("/")
            if hub.gated:
                self.answer(403, b"{}", {"X-Error-Code": "GatedRepo"})
            elif parts[:2] == ["api", "models"]:
                self.api("/".join(parts[2:4]), parts[4:])
            elif len(parts) > 4 and parts[2] == "resolve":
                self.file("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
            else:
                self.answer(404, b"{}")

        def api(self, repo: str, rest: list[str]) -> None:
            if repo != REPO:
                return self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            commit = hub.branches.get(rest[1], rest[1])
            if commit not in hub.commits:
                return self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            if rest[0] == "revision":
                return self.answer(200, json.dumps({"id": repo, "sha": commit, "siblings": []}).encode())
            entries = []
            for path, data in hub.commits[commit].items():
                blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
                entry: dict = {"type": "file", "path": path, "size": len(data), "oid": blob}
                if len(data) >= LARGE:
                    oid = hashlib.sha256(data).hexdigest()
                    entry["lfs"] = {"oid": oid, "size": len(data), "pointerSize": 130}
                entries.append(entry)
            return self.answer(200, json.dumps(entries).encode())

        def file(self, repo: str, commit: str, path: str) -> None:
            data = hub.commits[commit][path]
            wanted = self.headers.get("Range", "")
            hub.asked.append((path, wanted))
            start = int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted else 0
            if hub.corrupt:
                hub.corrupt -= 1
                data = data[:-1] + bytes([data[-1] ^ 1])
            body = data[start:]
            headers = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if wanted else {}
            if hub.break_after is not None and len(data) >= LARGE:
                self.start(206 if wanted else 200, len(body), headers)
                self.wfile.write(body[: hub.break_after])
                self.wfile.flush()
                self.close_connection = True
                self.connection.shutdown(2)
                return
            self.answer(206 if wanted else 200, body, headers)

        def start(self, code: int, length: int, headers: dict[str, str]) -> None:
            self.send_response(code)
            for name, value in {"Content-Length": str(length), **headers}.items():
                self.send_header(name, value)
            self.end_headers()

        def answer(self, code: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.start(code, len(body), headers or {})
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
