"""A hub on 127.0.0.1: as much of the Hugging Face hub's HTTP API as its client uses to list, read and download a model.

It can be told to misbehave (break connections, ignore ranges, refuse), and records every request with the bytes sent.
Large files are redirected to a second address, as the hub redirects to its content network.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

PIECE = 64 * 1024


@dataclass
class Request:
    """One request as the server saw it; `sent` counts the bytes of the body that were handed to the socket."""

    method: str
    path: str
    range: str | None
    token: str | None
    status: int = 0
    sent: int = 0


@dataclass
class Hub:
    """A running hub with one repository, ``org/model``, whose files are those of `directory`.

    Attributes:
        url: the endpoint.
        content: the second address, which serves large files to whoever was sent there.
        commit: the only commit; ``main`` and the tag ``v1`` point to it.
        cuts: for a file name, after how many bytes of the file each of the next downloads breaks off.
        stalls: for a file name, after how many bytes of the file downloads stop without ending, until `stop` is set.
        stop: set when the server ends.
        ignore_ranges: answers every range request with the whole file.
        token: what is asked for, if anything, before files are given out (the listing is public, as of gated models).
        failure: status and ``X-Error-Code`` with which everything is answered.
        requests: all requests so far.
    """

    directory: Path
    url: str = ""
    content: str = ""
    commit: str = "c0ffee" * 6 + "c0de"
    cuts: dict[str, list[int]] = field(default_factory=dict)
    stalls: dict[str, int] = field(default_factory=dict)
    stop: threading.Event = field(default_factory=threading.Event)
    ignore_ranges: bool = False
    token: str | None = None
    failure: tuple[int, str] | None = None
    requests: list[Request] = field(default_factory=list)

    def sent(self) -> int:
        return sum(request.sent for request in self.requests)

    def fetched(self, since: int = 0) -> list[str]:
        """Names of the files of which bytes were sent, sorted, from request number `since` on."""
        sent = [
            r for r in self.requests[since:] if r.method == "GET" and r.status in (200, 206) and "/api/" not in r.path
        ]
        return sorted(r.path.rpartition("/")[2] for r in sent)


@contextmanager
def serve(directory: Path) -> Iterator[Hub]:
    """Runs a hub for the files of `directory` until the block ends."""
    hub = Hub(directory)

    class Handler(_Handler):
        pass

    Handler.hub = hub
    with _running(Handler) as hub.url, _running(Handler) as hub.content:
        try:
            yield hub
        finally:
            hub.stop.set()


@contextmanager
def _running(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"
    timeout = 10

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.request_seen = Request(
            self.command, self.path, self.headers.get("Range"), self.headers.get("Authorization")
        )
        self.hub.requests.append(self.request_seen)
        path = unquote(urlsplit(self.path).path)
        if self.hub.failure is not None:
            return self._refuse(*self.hub.failure)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+?))?(/tree/.+)?", path):
            return self._api(match[1], match[2], match[3])
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._resolve(match[1], match[2], match[3])
        if match := re.fullmatch(r"/cdn/(.+)", path):
            return self._file(match[1])
        return self._refuse(404, "")

    def _refuse(self, status: int, code: str) -> None:
        messages = {"RepoNotFound": "Repository not found", "GatedRepo": "Access to model org/model is restricted."}
        headers = {"X-Error-Code": code, "X-Error-Message": messages.get(code, "something went wrong")}
        self._send(status, json.dumps({"error": headers["X-Error-Message"]}).encode(), headers)

    def _api(self, repo: str, revision: str | None, tree: str | None) -> None:
        files = [path for path in sorted(self.hub.directory.rglob("*")) if path.is_file()]
        entries = []
        for path in files:
            oid, lfs = self._oid(path)
            entry = {
                "type": "file",
                "path": path.relative_to(self.hub.directory).as_posix(),
                "size": path.stat().st_size,
            }
            entries.append(
                {
                    **entry,
                    "oid": "0" * 40,
                    **({"lfs": {"oid": oid, "size": entry["size"], "pointerSize": 1}} if lfs else {}),
                }
            )
        if repo != "org/model":
            return self._refuse(404, "RepoNotFound")
        if tree is not None:
            return self._send(200, json.dumps(entries).encode())
        if revision not in (None, "main", "v1", self.hub.commit):
            return self._refuse(404, "RevisionNotFound")
        siblings = [{"rfilename": entry["path"], "size": entry["size"], "blobId": entry["oid"]} for entry in entries]
        info = {
            "id": repo,
            "sha": self.hub.commit,
            "siblings": siblings,
            "private": False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
        }
        return self._send(200, json.dumps(info).encode())

    def _resolve(self, repo: str, revision: str, name: str) -> None:
        path = self.hub.directory / name
        if repo != "org/model":
            return self._refuse(404, "RepoNotFound")
        if revision not in ("main", "v1", self.hub.commit):
            return self._refuse(404, "RevisionNotFound")
        if self.hub.token is not None and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            return self._refuse(403, "GatedRepo")
        if not path.is_file():
            return self._refuse(404, "EntryNotFound")
        oid, lfs = self._oid(path)
        if not lfs:
            return self._file(name, {"X-Repo-Commit": self.hub.commit, "ETag": f'"{oid}"'})
        headers = {
            "X-Repo-Commit": self.hub.commit,
            "X-Linked-ETag": f'"{oid}"',
            "X-Linked-Size": str(path.stat().st_size),
        }
        return self._send(302, b"", {**headers, "Location": f"{self.hub.content}/cdn/{name}"})

    def _oid(self, path: Path) -> tuple[str, bool]:
        """A file's identity, and whether it is stored apart (as large files are); a name and size will do."""
        size = path.stat().st_size
        return hashlib.sha256(f"{path.name} {size}".encode()).hexdigest(), path.suffix in (".safetensors", ".bin")

    def _file(self, name: str, headers: dict[str, str] | None = None) -> None:
        """A file or a range of it, in pieces; breaks the connection where it was told to."""
        path = self.hub.directory / name
        size = path.stat().st_size
        start, stop, status = 0, size, 200
        headers = {"Accept-Ranges": "bytes", **(headers or {})}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked and not self.hub.ignore_ranges:
            start, stop, status = int(asked[1]), min(size, int(asked[2]) + 1 if asked[2] else size), 206
            if start >= size:
                return self._send(416, b"", {"Content-Range": f"bytes */{size}"})
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        cuts = self.hub.cuts.get(name, []) if self.command == "GET" else []
        cut = cuts.pop(0) if cuts else None
        self._head(status, stop - start, headers)
        if self.command == "HEAD":
            return None
        with path.open("rb") as file:
            file.seek(start)
            end = stop if cut is None else min(stop, cut)
            while start < end:
                piece = file.read(min(PIECE, end - start))
                if not self._write(piece):
                    return None
                start += len(piece)
                if name in self.hub.stalls and start >= self.hub.stalls[name]:
                    self.hub.stop.wait()
        if cut is not None:
            self.close_connection = True
        return None

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self._head(status, len(body), headers or {})
        if self.command != "HEAD":
            self._write(body)

    def _head(self, status: int, length: int, headers: dict[str, str]) -> None:
        self.request_seen.status = status
        self.send_response(status)
        for name, value in {"Content-Length": str(length), **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def _write(self, data: bytes) -> bool:
        try:
            self.wfile.write(data)
        except OSError:  # the client has read enough
            self.close_connection = True
            return False
        self.request_seen.sent += len(data)
        return True
