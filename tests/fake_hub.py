"""A model hub on loopback: the few routes that a push needs, and the refusals of the real one."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit


@dataclass
class Repository:
    """What the hub holds of one."""

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: int = 0


@dataclass
class FakeHub:
    """State and address of a hub.

    Attributes:
        token: the one that may write.
        repositories: by type and id, as `datasets/me/x`.
        refuse: status to answer with, by the last word of a route: create, commit, batch.
        sent: names of the routes that were asked, in order.
    """

    address: str = ""
    token: str = "hf_secret"
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    refuse: dict[str, int] = field(default_factory=dict)
    sent: list[str] = field(default_factory=list)


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """Serve until the end."""
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the test asks the hub."""

    def _answer(self, status: int, content: Any = None) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _refused(self, route: str) -> bool:
        """Answer for a route that is refused; the token is needed everywhere."""
        self.hub.sent.append(route)
        status = self.hub.refuse.get(route)
        if self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            status = 401
        if status is not None:
            # As the worst of servers: it repeats what it was sent.
            self._answer(status, {"error": f"no, not with {self.headers.get('Authorization')}"})
        return status is not None

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if self._refused("info"):
            return
        repo, _, tree = path.removeprefix("/api/").partition("/tree/")
        found = self.hub.repositories.get(repo)
        if found is None:
            self._answer(404, {"error": "Repository not found"})
        elif tree:
            files = [
                {"type": "file", "path": name, "size": len(data), "oid": "0" * 40}
                for name, data in found.files.items()
            ]
            self._answer(200, files)
        else:
            sha = f"{found.commits:040d}"
            id_ = repo.partition("/")[2]
            self._answer(200, {"id": id_, "private": found.private, "sha": sha, "tags": []})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        path = urlsplit(self.path).path
        if path == "/api/validate-yaml":
            self._answer(200, {"warnings": [], "errors": []})
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif match := re.fullmatch(r"/api/(\w+/[^/]+/[^/]+)/(preupload|commit)/main", path):
            repo, route = match.groups()
            if not self._refused(route):
                (self._preupload if route == "preupload" else self._commit)(repo, body)
        elif path.endswith(".git/info/lfs/objects/batch") and not self._refused("batch"):
            self._batch(json.loads(body))

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        assert hashlib.sha256(data).hexdigest() == self.path.removeprefix("/lfs/")
        self.hub.objects[self.path.removeprefix("/lfs/")] = data
        self._answer(200)

    def _create(self, asked: dict[str, Any]) -> None:
        if self._refused("create"):
            return
        kind = asked.get("type", "model")
        repo = f"{kind}s/{asked['organization']}/{asked['name']}"
        if repo in self.hub.repositories:
            self._answer(409, {"url": f"{self.hub.address}/{repo}", "error": "it exists"})
            return
        self.hub.repositories[repo] = Repository(asked["visibility"] == "private")
        self._answer(200, {"url": f"{self.hub.address}/{repo.removeprefix('models/')}"})

    def _preupload(self, repo: str, body: bytes) -> None:
        files = [
            {
                "path": file["path"],
                "uploadMode": "regular" if file["path"].endswith(".md") else "lfs",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        self._answer(200, {"files": files})

    def _batch(self, asked: dict[str, Any]) -> None:
        def action(each: dict[str, Any]) -> dict[str, Any]:
            if each["oid"] in self.hub.objects:
                return each  # it is there: nothing to do
            href = f"{self.hub.address}/lfs/{each['oid']}"
            return {**each, "actions": {"upload": {"href": href}}}

        objects = [action(each) for each in asked["objects"]]
        self._answer(200, {"transfer": "basic", "objects": objects})

    def _commit(self, repo: str, body: bytes) -> None:
        found = self.hub.repositories[repo]
        for line in body.splitlines():
            entry = json.loads(line)
            kind, value = entry["key"], entry["value"]
            if kind == "file":
                found.files[value["path"]] = base64.b64decode(value["content"])
            elif kind == "lfsFile":
                found.files[value["path"]] = self.hub.objects[value["oid"]]
            elif kind == "deletedFile":
                del found.files[value["path"]]
        found.commits += 1
        oid = f"{found.commits:040d}"
        self._answer(
            200, {"commitUrl": f"{self.hub.address}/{repo}/commit/{oid}", "commitOid": oid}
        )
