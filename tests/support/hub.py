"""A stand-in of the Hugging Face hub on this machine: the requests that its library makes to create, fill and read."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

TOKEN = "hf_of_the_lab"
OWNER = "lab"


@dataclass
class Hub:
    """Its repositories' files, and what was asked of it.

    Attributes:
        address: where it answers.
        repositories: by `USER/NAME`, contents by path.
        private: the names of those that want the token.
        created: what was asked for with each one.
        stored: large files by SHA-256.
        requests: `METHOD /path`, in order.
        refuses_commits: answer 500 to them.
    """

    address: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    created: dict[str, dict[str, Any]] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    refuses_commits: bool = False


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub that answers on a free port of this machine until the end of the block."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        body, path = self._body(), self.path.split("?")[0]
        if path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._json({"error": "Invalid username or password."}, 401)
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif self._between(path, "/api/models/", "/preupload/main") in self.hub.repositories:
            files = json.loads(body)["files"]
            modes = ["lfs" if file["path"].endswith(".safetensors") else "regular" for file in files]
            listed = zip(files, modes, strict=True)
            self._json({"files": [{**f, "uploadMode": mode, "shouldIgnore": False} for f, mode in listed]})
        elif self._between(path, "/", ".git/info/lfs/objects/batch") in self.hub.repositories:
            wanted = json.loads(body)["objects"]
            upload = [{**each, "actions": {"upload": {"href": self._store(each["oid"])}}} for each in wanted]
            self._json({"transfer": "basic", "objects": upload})
        elif (name := self._between(path, "/api/models/", "/commit/main")) in self.hub.repositories:
            self._commit(name, [json.loads(line) for line in body.splitlines()])
        else:
            self._not_found()

    def do_PUT(self) -> None:
        body, oid = self._body(), self.path.rpartition("/")[2]
        right = _hash(body) == oid
        if right:
            self.hub.stored[oid] = body
        self._json({}, 200 if right else 400)

    def do_HEAD(self) -> None:
        self._get()

    def do_GET(self) -> None:
        self._get()

    def _get(self) -> None:
        self._body()
        path = self.path.split("?")[0]
        about = path.removeprefix("/api/models/").removesuffix("/revision/main")
        if path.startswith("/api/models/") and self._may_read(name := about):
            siblings = [{"rfilename": file} for file in self.hub.repositories[name]]
            self._json({"id": name, "sha": self._sha(name), "siblings": siblings, "private": name in self.hub.private})
        elif "/tree/" in path and self._may_read(name := path.removeprefix("/api/models/").partition("/tree/")[0]):
            files = self.hub.repositories[name].items()
            self._json([{"type": "file", "path": f, "size": len(c), "oid": _hash(c)} for f, c in files])
        elif "/resolve/" in path and self._may_read(name := path.partition("/resolve/")[0][1:]):
            file = path.partition("/resolve/")[2].partition("/")[2]
            content = self.hub.repositories[name].get(file)
            if content is None:
                self._json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
            else:
                self._answer(200, content, {"ETag": f'"{_hash(content)}"', "X-Repo-Commit": self._sha(name)})
        else:
            self._not_found()

    def _create(self, wanted: dict[str, Any]) -> None:
        name = f"{wanted['organization']}/{wanted['name']}"
        address = {"url": f"{self.hub.address}/{name}"}
        if wanted["organization"] != OWNER:
            self._json({"error": "You don't have the rights to create a model under this namespace"}, 403)
        elif name in self.hub.repositories:
            self._json({"error": "You already created this model repo"} | address, 409)
        else:
            self.hub.repositories[name], self.hub.created[name] = {}, wanted
            self.hub.private |= {name} if wanted.get("visibility") == "private" else set()
            self._json(address)

    def _commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        if self.hub.refuses_commits:
            self._json({"error": "Internal error"}, 500)
            return
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.hub.repositories[name][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.hub.repositories[name][value["path"]] = self.hub.stored[value["oid"]]
        sha = self._sha(name)
        address = f"{self.hub.address}/{name}/commit/{sha}"
        self._json({"success": True, "commitOid": sha, "commitUrl": address, "hookOutput": ""})

    def _may_read(self, name: str) -> bool:
        token = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        return name in self.hub.repositories and (name not in self.hub.private or token)

    def _not_found(self) -> None:
        self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})

    def _sha(self, name: str) -> str:
        return _hash(repr(sorted(self.hub.repositories[name].items())).encode())[:40]

    def _store(self, oid: str) -> str:
        return f"{self.hub.address}/store/{oid}"

    @staticmethod
    def _between(path: str, start: str, end: str) -> str | None:
        inside = path.startswith(start) and path.endswith(end)
        return path.removeprefix(start).removesuffix(end) if inside else None

    def _body(self) -> bytes:
        self.hub.requests.append(f"{self.command} {self.path}")
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _json(self, content: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._answer(status, json.dumps(content).encode(), {"Content-Type": "application/json"} | (headers or {}))

    def _answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
