"""A stand-in for the hub's HTTP interface: repositories in memory, as huggingface_hub talks to them."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

TOKEN = "hf_ada"
CUT = -1  # status: no answer, the connection is closed
Files = dict[str, bytes]


class Hub(ThreadingHTTPServer):
    """Repositories: private or not, and the files of every revision, the newest one last."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.private: dict[str, bool] = {}
        self.revisions: dict[str, dict[str, Files]] = {}
        self.lfs: Files = {}  # by SHA-256
        self.refused: dict[str, int] = {}  # part of a path -> status of every answer there

    def files(self, repo_id: str, revision: str = "main") -> Files | None:
        """The files of a revision."""
        revisions = self.revisions.get(repo_id, {})
        return revisions.get([*revisions][-1] if revision == "main" and revisions else revision)


@contextmanager
def running() -> Iterator[Hub]:
    """A hub that answers until the block ends."""
    hub = Hub()
    thread = Thread(target=hub.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    """The few calls that an upload in one commit and the download of a file are made of."""

    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/":
            return self.answer({})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(?:revision|tree)/(.+))?", path):
            repo_id, revision = match[1], match[2] or "main"
            files = self.readable(repo_id, revision)
            if files is None:
                return None
            names = [
                {"type": "file", "path": name, "size": len(data), "oid": "0"} for name, data in files.items()
            ]
            if "/tree/" in path:
                return self.answer(names)
            return self.answer({"id": repo_id, "sha": self.sha(repo_id, revision), "siblings": []})
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            repo_id, revision, name = match.groups()
            files = self.readable(repo_id, revision)
            if files is None:
                return None
            if name not in files:
                return self.answer({}, 404, {"X-Error-Code": "EntryNotFound"})
            digest = hashlib.sha256(files[name]).hexdigest()
            commit = self.sha(repo_id, revision)
            return self.answer(files[name], 200, {"ETag": f'"{digest}"', "X-Repo-Commit": commit})
        return self.answer({}, 404)

    def do_PUT(self) -> None:
        data = self.body()
        status = next((code for part, code in self.server.refused.items() if part in self.path), 200)
        self.server.lfs[hashlib.sha256(data).hexdigest()] = data
        self.answer({}, status)

    def do_POST(self) -> None:
        body = self.body().decode()
        status = next((code for part, code in self.server.refused.items() if part in self.path), 0)
        if status == CUT:
            self.close_connection = True
            return None
        if status or self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer({"error": "refused"}, status or 401)
        if self.path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if self.path == "/api/repos/create":
            return self.create(json.loads(body))
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", self.path):
            return self.commit(match[1], body) if match[2] == "commit" else self.preupload(json.loads(body))
        if match := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", self.path):
            objects = json.loads(body)["objects"]
            for each in objects:
                each["actions"] = {"upload": {"href": f"{self.server.url}/lfs/{each['oid']}"}}
            return self.answer({"transfer": "basic", "objects": objects})
        return self.answer({}, 404)

    def body(self) -> bytes:
        """The content of a request, whole or in chunks."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers["Content-Length"]))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def create(self, body: dict[str, Any]) -> None:
        repo_id = f"{body['organization']}/{body['name']}" if body.get("organization") else body["name"]
        if repo_id in self.server.revisions:
            return self.answer({"error": "exists", "url": f"{self.server.url}/{repo_id}"}, 409)
        self.server.private[repo_id] = "private" in (
            body.get("visibility"),
            body.get("private") and "private",
        )
        self.server.revisions[repo_id] = {"0" * 40: {}}
        return self.answer({"url": f"{self.server.url}/{repo_id}", "id": repo_id})

    def preupload(self, body: dict[str, Any]) -> None:
        modes = {True: "lfs", False: "regular"}
        files = [
            {"path": path, "uploadMode": modes[path.endswith(".safetensors")], "shouldIgnore": False}
            for path in (each["path"] for each in body["files"])
        ]
        self.answer({"files": files})

    def commit(self, repo_id: str, body: str) -> None:
        files = dict(self.server.files(repo_id) or {})
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.lfs[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        oid = hashlib.sha1(f"{len(self.server.revisions[repo_id])}{sorted(files)}".encode()).hexdigest()
        self.server.revisions[repo_id][oid] = files
        url = f"{self.server.url}/{repo_id}/commit/{oid}"
        self.answer({"success": True, "commitOid": oid, "commitUrl": url})

    def readable(self, repo_id: str, revision: str) -> Files | None:
        """The files that this request may read; None, after the hub's answer, if there are none."""
        files, has_token = self.server.files(repo_id, revision), "Authorization" in self.headers
        if repo_id not in self.server.revisions or (self.server.private[repo_id] and not has_token):
            self.answer({}, 404 if has_token else 401, {"X-Error-Code": "RepoNotFound"})
            return None
        if files is None:
            self.answer({}, 404, {"X-Error-Code": "RevisionNotFound"})
        return files

    def sha(self, repo_id: str, revision: str) -> str:
        return [*self.server.revisions[repo_id]][-1] if revision == "main" else revision

    def answer(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
        for name, value in (
            {"Content-Type": kind, "Content-Length": str(len(data))} | (headers or {})
        ).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
