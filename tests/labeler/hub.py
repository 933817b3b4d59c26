"""A local stand-in for the Hugging Face Hub.

It answers the requests of `huggingface_hub` about repositories of datasets, and those that download
models, and fails on demand. Large files travel by HTTP, or through Xet: then the real `hf_xet`
stores them in a local folder.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.server
import json
import re
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import hf_xet

TOKEN = "hf_a-token-that-nobody-may-print"

Fault = Literal["none", "half", "hang"]
Headers = dict[str, str]


@dataclass
class Repo:
    """A repository: a branch is a list of commits, a commit is a dict of files and their bytes."""

    private: bool
    branches: dict[str, list[dict[str, bytes]]]
    gated: bool = False

    def commits(self) -> dict[str, dict[str, bytes]]:
        """Return all commits by id, which is a hash of the files and of the previous id."""
        found = {}
        for commits in self.branches.values():
            sha = ""
            for files in commits:
                facts = [sha, *((name, _sha1(data)) for name, data in sorted(files.items()))]
                sha = _sha1(json.dumps(facts).encode())
                found[sha] = files
        return found

    def resolve(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Return (id, files) of a branch's newest commit, or of a commit."""
        known = self.commits()
        if revision in self.branches:
            shas = list(Repo(False, {"": self.branches[revision]}).commits())
            revision = shas[-1]
        return (revision, known[revision]) if revision in known else None

    def head(self, branch: str = "main") -> dict[str, bytes]:
        return self.branches[branch][-1]


@dataclass
class Hub:
    """The stand-in.

    Attributes:
        repos: repositories by OWNER/NAME.
        blobs: large files that were uploaded, by SHA-256.
        fault: returns the fault for each request (method, path): `half` breaks the connection
            after half of the body, `hang` never answers.
        alter: changes status, content and headers of all answers.
        log: `METHOD path` of all requests.
        ranges: `Range` headers of the downloads.
        hanging: set once a request hangs.
        xet: folder in place of Xet's servers; None sends large files by HTTP.
        xet_hashes: Xet's hash of a file, by its SHA-256 (see `know`).
    """

    url: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    fault: Callable[[str, str], Fault] = lambda _method, _path: "none"
    alter: Callable[[int, bytes, Headers], tuple[int, bytes, Headers]] = lambda *answer: answer
    log: list[str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    hanging: threading.Event = field(default_factory=threading.Event)
    closing: threading.Event = field(default_factory=threading.Event)
    xet: Path | None = None
    xet_hashes: dict[str, str] = field(default_factory=dict)

    def know(self, folder: Path) -> None:
        """Record Xet's hashes of the large files in `folder`; the Hub gets them from Xet."""
        files = [path for path in folder.rglob("*") if path.is_file() and _is_large(path.name)]
        for path, named in zip(files, hf_xet.hash_files(list(map(str, files))), strict=True):
            oid = hashlib.sha256(path.read_bytes()).hexdigest()
            self.xet_hashes[oid], self.blobs[oid] = named.hash, path.read_bytes()


class Answer(Exception):
    """Ends a request with a status and a JSON body."""

    def __init__(self, status: int, body: dict[str, Any], **headers: str) -> None:
        self.status, self.body, self.headers = status, body, headers


@contextlib.contextmanager
def hub() -> Iterator[Hub]:
    """Yield the stand-in, while the context lasts."""
    state = Hub()

    class Handler(_Handler):
        hub = state

    with _Server(("127.0.0.1", 0), Handler) as server:
        state.url = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield state
        finally:
            state.closing.set()
            server.shutdown()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that were killed."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(http.server.BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_GET

    def _serve(self) -> None:
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        self.hub.log.append(f"{self.command} {path}")
        self.broken = self.hub.fault(self.command, path)
        length = int(self.headers.get("Content-Length") or 0)
        if self.broken == "half" and self.command == "PUT":
            self.rfile.read(length // 2)
            self.close_connection = True
            return
        body = self.rfile.read(length)
        if len(body) < length:  # the client was killed during the upload
            self.close_connection = True
            return
        if self.broken == "hang":
            self.hub.hanging.set()
            self.hub.closing.wait()
            self.close_connection = True
            return
        try:
            self._route(path, body)
        except Answer as answer:
            content = json.dumps(answer.body).encode()
            said = {"X-Error-Message": str(answer.body["error"])} if "error" in answer.body else {}
            self._reply(answer.status, content, **said, **answer.headers)

    def _route(self, path: str, body: bytes) -> None:
        routes = {
            r"POST /api/repos/create": self._create,
            r"POST /api/validate-yaml": self._validate_yaml,
            r"GET /api/(?:datasets|models)/([^/]+/[^/]+)(?:/revision/(.+))?": self._info,
            r"GET /api/(?:datasets|models)/([^/]+/[^/]+)/tree/([^/]+)": self._tree,
            r"GET /api/datasets/([^/]+/[^/]+)/xet-(?:read|write)-token/(.+)": self._xet_token,
            r"POST /api/datasets/([^/]+/[^/]+)/branch/(.+)": self._branch,
            r"POST /api/datasets/([^/]+/[^/]+)/preupload/(.+)": self._preupload,
            r"POST /api/datasets/([^/]+/[^/]+)/commit/(.+)": self._commit,
            r"POST /datasets/([^/]+/[^/]+)\.git/info/lfs/objects/batch": self._lfs,
            r"PUT /upload/(\w+)": self._upload,
            r"(?:GET|HEAD) (?:/datasets)?/([^/]+/[^/]+)/resolve/([^/]+)/(.+)": self._download,
        }
        command = f"{self.command} {path}"
        for pattern, answer in routes.items():
            if match := re.fullmatch(pattern, command):
                if self.command == "POST" and not self._known():
                    raise Answer(401, {"error": "Invalid username or password."})
                answer(*match.groups(), *([body] if self.command in ("POST", "PUT") else []))
                return
        raise Answer(500, {"error": f"the stand-in has no {command}"})

    def _known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _repo(self, name: str) -> Repo:
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and not self._known()):
            code = {"X-Error-Code": "RepoNotFound"}
            raise Answer(404, {"error": "Repository not found"}, **code)
        return repo

    def _at(self, name: str, revision: str | None) -> tuple[str, dict[str, bytes]]:
        found = self._repo(name).resolve(revision or "main")
        if found is None:
            code = {"X-Error-Code": "RevisionNotFound"}
            raise Answer(404, {"error": f"Invalid rev id: {revision}"}, **code)
        return found

    def _create(self, body: bytes) -> None:
        asked = json.loads(body)
        assert asked["type"] == "dataset"
        name = f"{asked['organization']}/{asked['name']}"
        url = {"url": f"{self.hub.url}/datasets/{name}"}
        if name in self.hub.repos:
            raise Answer(409, url | {"error": "You already created this dataset repo"})
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.hub.repos[name] = Repo(private, {"main": [{".gitattributes": b""}]})
        raise Answer(200, url)

    def _validate_yaml(self, body: bytes) -> None:
        card = json.loads(body)["content"]
        if re.search(r"^license: (apache-2\.0|other|unknown)$", card, re.M):
            raise Answer(200, {"errors": [], "warnings": []})
        problem = {"message": '"license" must be one of [apache-2.0, ...]'}
        raise Answer(400, {"error": "invalid card", "errors": [problem], "warnings": []})

    def _info(self, name: str, revision: str | None) -> None:
        sha, files = self._at(name, revision)
        siblings = [{"rfilename": file, "size": len(data)} for file, data in files.items()]
        private = self._repo(name).private
        raise Answer(200, {"id": name, "sha": sha, "private": private, "siblings": siblings})

    def _tree(self, name: str, revision: str) -> None:
        _, files = self._at(name, revision)
        entries = [_entry(path, data) for path, data in files.items()]
        named = [entry | self._xet_name(entry["check"], "xetHash") for entry in entries]
        self._reply(200, json.dumps(named).encode())

    def _xet_token(self, _name: str, _revision: str) -> None:
        place, expires = f"local://{self.hub.xet}", int(time.time()) + 3600
        headers = {"X-Xet-Cas-Url": place, "X-Xet-Access-Token": "x"}
        headers["X-Xet-Token-Expiration"] = str(expires)
        body = {"casUrl": place, "exp": expires, "accessToken": "x"}
        raise Answer(200, body, **headers)

    def _branch(self, name: str, branch: str, _body: bytes) -> None:
        repo = self._repo(name)
        if branch in repo.branches:
            raise Answer(409, {"error": "Reference already exists"})
        repo.branches[branch] = list(repo.branches["main"])
        raise Answer(200, {})

    def _preupload(self, name: str, revision: str, body: bytes) -> None:
        _, files = self._at(name, revision)
        answers = []
        for file in json.loads(body)["files"]:
            path = file["path"]
            known = {"oid": _entry(path, files[path])["check"]} if path in files else {}
            mode = "lfs" if _is_large(path) else "regular"
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False} | known)
        raise Answer(200, {"files": answers})

    def _lfs(self, _name: str, body: bytes) -> None:
        objects = []
        for asked in json.loads(body)["objects"]:
            upload = {"upload": {"href": f"{self.hub.url}/upload/{asked['oid']}"}}
            new = asked["oid"] not in self.hub.blobs
            objects.append(asked | ({"actions": upload} if new else {}))
        raise Answer(200, {"transfer": "basic", "objects": objects})

    def _upload(self, oid: str, body: bytes) -> None:
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.blobs[oid] = body
        raise Answer(200, {})

    def _commit(self, name: str, branch: str, body: bytes) -> None:
        repo = self._repo(name)
        files = dict(repo.head(branch))
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
            elif item["key"] == "deletedFile":
                del files[value["path"]]
            else:
                assert item["key"] == "header", item
        repo.branches[branch].append(files)
        sha, _ = self._at(name, branch)
        url = f"{self.hub.url}/datasets/{name}/commit/{sha}"
        raise Answer(200, {"commitUrl": url, "commitOid": sha})

    def _download(self, name: str, revision: str, path: str) -> None:
        sha, files = self._at(name, revision)
        if self.hub.repos[name].gated and not self._known():
            code = {"X-Error-Code": "GatedRepo"}
            raise Answer(401, {"error": f"Access to model {name} is restricted"}, **code)
        if path not in files:
            code = {"X-Error-Code": "EntryNotFound"}
            raise Answer(404, {"error": "Entry not found"}, **code)
        data = files[path]
        headers = {"X-Repo-Commit": sha, "ETag": f'"{_entry(path, data)["check"]}"'}
        headers["X-Linked-Size"] = str(len(data))
        headers |= self._xet_name(_entry(path, data)["check"], "X-Xet-Hash")
        token = f"{self.hub.url}/api/datasets/{name}/xet-read-token/{sha}"
        headers["Link"] = f'<{token}>; rel="xet-auth"'
        first = 0
        if (asked := self.headers.get("Range")) and self.command == "GET":
            self.hub.ranges.append(asked)
            first = int(asked.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
        self._reply(206 if first else 200, data[first:], **headers)

    def _xet_name(self, oid: str, field: str) -> dict[str, str]:
        return {field: self.hub.xet_hashes[oid]} if oid in self.hub.xet_hashes else {}

    def _reply(self, status: int, content: bytes, **headers: str) -> None:
        status, content, headers = self.hub.alter(status, content, headers)
        self.send_response(status)
        for header, value in ({"Content-Type": "application/json"} | headers).items():
            self.send_header(header, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.broken == "half":
            content = content[: len(content) // 2]
            self.close_connection = True
        self.wfile.write(content)


def _is_large(path: str) -> bool:
    return path.endswith(".parquet")


def _sha1(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


def _entry(path: str, data: bytes) -> dict[str, Any]:
    """Return a file's entry in the tree; `check` identifies its content, as ETags do."""
    blob = _sha1(b"blob %d\0" % len(data) + data)
    entry = {"type": "file", "path": path, "size": len(data), "oid": blob, "check": blob}
    if _is_large(path):
        oid = hashlib.sha256(data).hexdigest()
        entry |= {"check": oid, "lfs": {"oid": oid, "size": len(data), "pointerSize": 130}}
    return entry
