"""A stand-in of the model hub: what huggingface_hub 2.x asks of it over HTTP to publish and to fetch a model.

It is a real server on loopback that keeps git-like commits in memory. Large files go through git-lfs' batch API; hf-xet
has a protocol of its own that is not imitated, so the client must run with HF_HUB_DISABLE_XET=1. Faults are planted by
setting attributes of `Hub`, and every request is written down in `Hub.seen`.

| request                                   | for                                              |
|-------------------------------------------|--------------------------------------------------|
| POST /api/repos/create                    | create_repo                                      |
| POST /api/models/R/branch/B               | create_branch                                    |
| GET  /api/models/R[/revision/V]           | model_info: the commit, private or not           |
| GET  /api/models/R/tree/V                 | list_repo_tree: names, sizes, hashes             |
| POST /api/validate-yaml                   | the front matter of a card                       |
| POST /api/models/R/preupload/V            | which files are large                            |
| POST /R.git/info/lfs/objects/batch        | which large files are missing, and where they go |
| PUT  /lfs/OID, POST /lfs/verify           | the large files themselves                       |
| POST /api/models/R/commit/V               | the commit                                       |
| HEAD, GET /R/resolve/V/PATH, GET /lfs/OID | ETag, size and content, with ranges              |
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Generator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_stand_in_owner"  # may write to "org"; READER may read only
READER = "hf_stand_in_reader"
LARGE = 64 * 1024


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


@dataclass
class Repo:
    private: bool = False
    gated: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def files(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        commit = self.branches.get(revision, revision)
        return (commit, self.commits[commit]) if commit in self.commits else None

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        seed = json.dumps([branch, len(self.commits), sorted((n, git_hash(c)) for n, c in files.items())])
        commit = hashlib.sha1(seed.encode(), usedforsecurity=False).hexdigest()
        self.commits[commit] = files
        self.branches[branch] = commit
        return commit


@dataclass
class Hub:
    """What is on the hub, what was asked of it, and what is to go wrong."""

    repos: dict[str, Repo] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)  # large files by SHA-256, in a commit or not
    seen: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    url: str = ""
    refuse_uploads: int = 0
    """Answer so many uploads of large files with an error that is not retried."""
    cut_downloads: int = 0
    """Break the connection in the middle of so many large downloads."""
    refuse_downloads: int = 0
    """Answer so many downloads of large files with an error that is not retried."""
    corrupt_downloads: int = 0
    """Send so many large files with one byte changed."""

    def add(self, name: str, files: dict[str, bytes], **more: Any) -> str:
        """A model, put there without the client; its commit."""
        repo = self.repos.setdefault(name, Repo(**more))
        for content in files.values():
            if len(content) >= LARGE:
                self.stored[hashlib.sha256(content).hexdigest()] = content
        return repo.commit("main", files)

    def asked(self, method: str, pattern: str) -> list[dict[str, str]]:
        """Headers of the requests that were made of a path."""
        return [h for m, path, h in self.seen if m == method and re.search(pattern, path)]


class Refusal(Exception):
    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def answer(self) -> None:
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        self.hub.seen.append((self.command, path, {k.lower(): v for k, v in self.headers.items()}))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b"".join(self.chunks())
        try:
            for method, pattern, act in ROUTES:
                if (found := re.fullmatch(pattern, path)) and self.command in method.split():
                    act(self, *found.groups(), body=body, query=parse_qs(parts.query))
                    return
            raise Refusal(404)
        except Refusal as e:
            headers = {"X-Error-Code": e.code} if e.code else {}
            if e.message:
                headers["X-Error-Message"] = e.message
            self.reply(json.dumps({"error": e.message}).encode(), e.status, headers)

    def chunks(self) -> Generator[bytes]:
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def reply(self, body: bytes | Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        if "Content-Length" not in (headers or {}):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            with contextlib.suppress(ConnectionError):
                self.wfile.write(body)

    # ---- who may do what ----

    def token(self) -> str | None:
        said = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if said and said not in (TOKEN, READER):
            raise Refusal(401, message="Invalid credentials in Authorization header")
        return said or None

    def writer(self, name: str) -> None:
        if self.token() is None:
            raise Refusal(401, message="Invalid username or password.")
        if self.token() != TOKEN or not name.startswith("org/"):
            raise Refusal(403, message=f"You don't have the rights to write to {name}")

    def repo(self, name: str, *, content: bool = False) -> Repo:
        token, repo = self.token(), self.hub.repos.get(name)
        if repo is None or (repo.private and token != TOKEN):
            raise Refusal(404 if token else 401, "RepoNotFound", "Repository not found")
        if content and repo.gated and token != TOKEN:
            raise Refusal(403, "GatedRepo", "Access to this model is restricted")
        return repo

    def files(self, name: str, revision: str, *, content: bool = False) -> tuple[str, dict[str, bytes]]:
        found = self.repo(name, content=content).files(revision)
        if found is None:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return found

    # ---- repositories ----

    def create(self, *, body: bytes, **_: Any) -> None:
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        self.writer(name)
        taken = name in self.hub.repos
        if not taken:
            repo = self.hub.repos[name] = Repo(private=asked.get("visibility") == "private")
            repo.commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"})
        self.reply(
            {"url": f"{self.hub.url}/{name}", "error": "You already created this model repo"}, 409 if taken else 200
        )

    def branch(self, name: str, branch: str, **_: Any) -> None:
        self.writer(name)
        repo = self.repo(name)
        if branch in repo.branches:
            raise Refusal(409, message="Reference already exists")
        repo.branches[branch] = repo.branches["main"]
        self.reply({})

    def info(self, name: str, revision: str | None = None, **_: Any) -> None:
        commit, files = self.files(name, revision or "main")
        repo = self.hub.repos[name]
        siblings = [{"rfilename": n} for n in files]
        told = {"_id": "1", "id": name, "modelId": name, "sha": commit, "private": repo.private, "gated": repo.gated}
        self.reply({**told, "siblings": siblings, "tags": [], "downloads": 0, "likes": 0})

    def tree(self, name: str, revision: str, **_: Any) -> None:
        entries = []
        for path, content in sorted(self.files(name, revision)[1].items()):
            entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": git_hash(content)}
            if len(content) >= LARGE:
                oid = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"oid": oid, "size": len(content), "pointerSize": 130}
                entry["oid"] = git_hash(oid.encode())  # of the pointer
            entries.append(entry)
        self.reply(entries)

    # ---- publishing ----

    def validate(self, *, body: bytes, **_: Any) -> None:
        front = re.match(r"---\n(.*?)\n---", json.loads(body)["content"], re.DOTALL)
        errors = [] if front else [{"message": "no YAML front matter"}]
        self.reply({"errors": errors, "warnings": []}, 400 if errors else 200)

    def preupload(self, name: str, revision: str, *, body: bytes, **_: Any) -> None:
        self.writer(name)
        _, there = self.files(name, revision)
        told = []
        for file in json.loads(body)["files"]:
            old = there.get(file["path"])
            large = file["size"] >= LARGE
            entry = {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
            if old is not None:
                entry["oid"] = hashlib.sha256(old).hexdigest() if len(old) >= LARGE else git_hash(old)
            told.append(entry)
        self.reply({"files": told})

    def batch(self, name: str, *, body: bytes, **_: Any) -> None:
        self.writer(name)
        objects = []
        for entry in json.loads(body)["objects"]:
            if entry["oid"] not in self.hub.stored:
                upload = {"href": f"{self.hub.url}/lfs/{entry['oid']}"}
                entry["actions"] = {"upload": upload, "verify": {"href": f"{self.hub.url}/lfs/verify"}}
            objects.append(entry)
        self.reply({"transfer": "basic", "objects": objects})

    def put(self, oid: str, *, body: bytes, **_: Any) -> None:
        if self.hub.refuse_uploads:
            self.hub.refuse_uploads -= 1
            raise Refusal(410, message="the address has expired")
        if hashlib.sha256(body).hexdigest() != oid:
            raise Refusal(422, message="another content than was announced")
        self.hub.stored[oid] = body
        self.reply({})

    def verify(self, *, body: bytes, **_: Any) -> None:
        asked = json.loads(body)
        there = len(self.hub.stored.get(asked["oid"], b"")) == asked["size"]
        self.reply({}, 200 if there else 404)

    def commit(self, name: str, branch: str, *, body: bytes, **_: Any) -> None:
        self.writer(name)
        files = dict(self.files(name, branch)[1])
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.hub.stored[value["oid"]]
            elif item["key"] == "deletedFile":
                del files[value["path"]]
        commit = self.hub.repos[name].commit(branch, files)
        self.reply({"commitUrl": f"{self.hub.url}/{name}/commit/{commit}", "commitOid": commit, "pullRequestUrl": None})

    # ---- fetching ----

    def resolve(self, name: str, revision: str, path: str, **_: Any) -> None:
        commit, files = self.files(name, revision, content=True)
        headers = {"X-Repo-Commit": commit}
        if path not in files:
            raise Refusal(404, "EntryNotFound", "Entry not found")
        content = files[path]
        if len(content) < LARGE:
            self.reply(content, 200, headers | {"ETag": f'"{git_hash(content)}"'})
            return
        oid = hashlib.sha256(content).hexdigest()
        headers |= {"X-Linked-ETag": f'"{oid}"', "X-Linked-Size": str(len(content)), "ETag": '"pointer"'}
        # From another host, as the real hub's large files are: the client must not send its token there.
        self.reply(b"", 302, headers | {"Location": f"{self.hub.url.replace('127.0.0.1', 'localhost')}/lfs/{oid}"})

    def large(self, oid: str, **_: Any) -> None:
        content = self.hub.stored.get(oid)
        if content is None:
            raise Refusal(404)
        if self.hub.refuse_downloads:
            self.hub.refuse_downloads -= 1
            raise Refusal(410, message="the address has expired")
        if self.hub.corrupt_downloads:
            self.hub.corrupt_downloads -= 1
            content = content[:-1] + bytes([content[-1] ^ 1])
        start, status, headers = 0, 200, {"ETag": f'"{oid}"', "Accept-Ranges": "bytes"}
        if asked := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or ""):
            start, status = int(asked[1]), 206
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if self.hub.cut_downloads:
            self.hub.cut_downloads -= 1
            headers["Content-Length"] = str(len(content) - start)
            self.reply(content[start : start + (len(content) - start) // 2], status, headers)
            self.close_connection = True
            return
        self.reply(content[start:], status, headers)


MODEL = r"([\w.-]+/[\w.-]+)"
ROUTES = [
    ("POST", r"/api/repos/create", Handler.create),
    ("POST", r"/api/validate-yaml", Handler.validate),
    ("POST", rf"/api/models/{MODEL}/branch/(.+)", Handler.branch),
    ("POST", rf"/api/models/{MODEL}/preupload/(.+)", Handler.preupload),
    ("POST", rf"/api/models/{MODEL}/commit/(.+)", Handler.commit),
    ("GET", rf"/api/models/{MODEL}/tree/([^/]+)", Handler.tree),
    ("GET", rf"/api/models/{MODEL}/revision/(.+)", Handler.info),
    ("GET", rf"/api/models/{MODEL}", Handler.info),
    ("POST", rf"/{MODEL}\.git/info/lfs/objects/batch", Handler.batch),
    ("POST", r"/lfs/verify", Handler.verify),
    ("PUT", r"/lfs/(\w+)", Handler.put),
    ("GET", r"/lfs/(\w+)", Handler.large),
    ("HEAD GET", rf"/{MODEL}/resolve/([^/]+)/(.+)", Handler.resolve),
]


@contextlib.contextmanager
def running() -> Generator[Hub]:
    """A hub that answers, until the block ends."""
    hub = Hub()
    handler = type("HandlerOfOneHub", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
