"""A model hub on localhost: the HTTP API that huggingface_hub, transformers and datasets speak, kept in memory.

    python tests/hub_server.py --port 8000  # prints its URL
    export HF_ENDPOINT=<URL> HF_TOKEN=hf_test HF_HUB_DISABLE_XET=1  # for the processes that are to use it

Any test can use the fixture `hub`. Large files use the LFS protocol, because Xet has servers of its own.
"""

import argparse
import base64
import hashlib
import json
import re
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import yaml
from huggingface_hub import ModelCardData

TOKEN, USER, ORGANISATION = "hf_test", "user", "org"
DATE = "2026-01-01T00:00:00.000Z"
REPO = r"(?:(?P<type>model|dataset)s/)?(?P<id>[\w.-]+/[\w.-]+)"


@dataclass
class Repo:
    """A repository: commits by hash, which hold all of their files, and the branches that point to them."""

    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, branch: str, message: str, files: dict[str, bytes]) -> str:
        oid = hashlib.sha1(f"{branch} {message} {len(self.commits)} {sorted(files)}".encode()).hexdigest()
        self.commits[oid], self.branches[branch] = files, oid
        self.messages.append(message)
        return oid

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.branches.get(revision, revision)]


@dataclass
class Fault:
    """The next `times` requests like this get the answer `status`, or lose the connection "inside" or "after" them."""

    method: str
    path: str
    status: int | str
    times: float


class Answer(Exception):
    """Raised by a page whose answer is not a plain JSON result."""

    def __init__(self, status: int, message: str = "", code: str | None = None, body: dict | None = None):
        super().__init__(message)
        self.status, self.body = status, body or {"error": message}
        self.headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})


class Hub(ThreadingHTTPServer):
    """The server. Tests read its `repos` and `requests`, and tell it to `fail` or to `cut` a connection."""

    daemon_threads = True

    def __init__(self, port: int = 0):
        super().__init__(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repos: dict[tuple[str, str], Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.faults: list[Fault] = []
        self.lock = threading.RLock()

    def model(self, name: str) -> Repo:
        return self.repos["model", name]

    def add(self, kind: str, name: str, files: dict[str, bytes], private: bool = False) -> str:
        """A repository with these files, as if somebody had pushed them."""
        repo = self.repos[kind, name] = Repo(private)
        return repo.commit("main", "initial commit", files)

    def fail(self, method: str, path: str, status: int = 500, times: float = 1) -> None:
        self.faults.append(Fault(method, path, status, times))

    def cut(self, method: str, path: str, when: str = "inside", times: float = 1) -> None:
        """Close the connection "inside" the request, or "after" it was done and before its answer."""
        self.faults.append(Fault(method, path, when, times))

    def count(self, method: str, path: str) -> int:
        """How many requests there were like this."""
        return sum(m == method and re.search(path, p) is not None for m, p in self.requests)


def is_lfs(data: bytes) -> bool:
    return b"\0" in data[:512]


def oid(data: bytes) -> str:
    git = hashlib.sha1(b"blob %d\0" % len(data) + data)
    return (hashlib.sha256(data) if is_lfs(data) else git).hexdigest()


def entry(path: str, data: bytes) -> dict:
    lfs = {"lfs": {"oid": oid(data), "size": len(data), "pointerSize": 130}} if is_lfs(data) else {}
    return {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest(), **lfs}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def handle_request(self):
        url = urlsplit(self.path)
        path, self.query = unquote(url.path), parse_qs(url.query)
        with self.server.lock:
            self.server.requests.append((self.command, path))
            faults = (f for f in self.server.faults if f.times > 0 and f.method == self.command)
            fault = next((f for f in faults if re.search(f.path, path)), None)
            if fault:
                fault.times -= 1
        if fault and fault.status == "inside":
            self.rfile.read(int(self.headers.get("Content-Length", 2)) // 2)
            return self._hang_up()
        self.body = self._read_body()
        if fault and fault.status != "after":
            return self._answer(fault.status, (b"<html>Something broke</html>", {"Content-Type": "text/html"}))
        try:
            endpoint, parts = self._route(path)
            with self.server.lock:
                answer = 200, endpoint(self, **self._find(parts))
        except Answer as refused:
            answer = refused.status, refused.body, refused.headers
        if fault:
            return self._hang_up()
        self._answer(*answer)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_request

    def _hang_up(self) -> None:
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

    def _route(self, path: str) -> tuple:
        for methods, pattern, endpoint in ROUTES:
            if self.command in methods.split() and (match := re.fullmatch(pattern, path)):
                return endpoint, match.groupdict()
        raise Answer(404, f"No such page: {self.command} {path}")

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _answer(self, status: int, body, headers: dict | None = None):
        if isinstance(body, tuple):  # a file: (its bytes, its headers)
            data, headers = body
            if ranged := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
                first, last = int(ranged[1]), min(int(ranged[2] or len(data) - 1), len(data) - 1)
                headers = headers | {"Content-Range": f"bytes {first}-{last}/{len(data)}"}
                status, data = 206, data[first : last + 1]
        else:
            data, headers = json.dumps(body).encode(), {"Content-Type": "application/json"} | (headers or {})
        self.send_response(status)
        for name, value in {**headers, "Content-Length": len(data)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _find(self, parts: dict) -> dict:
        """The parts of a path, with the repository that they name if this user may see or change it."""
        user = self.user
        if "id" in parts:
            kind, name = parts.pop("type") or "model", parts.pop("id")
            parts["repo"] = self.server.repos.get((kind, name))
            parts["name"] = (kind, name)
            if parts["repo"] is None or (parts["repo"].private and not user):
                raise Answer(404 if user else 401, "Repository not parts", "RepoNotFound")
            if self.command == "POST" and "/paths-info/" not in self.path:
                self.need(name.split("/")[0])
        if parts.get("revision") and not {parts["revision"]} & {*parts["repo"].branches, *parts["repo"].commits}:
            raise Answer(404, f"Invalid rev id: {parts['revision']}", "RevisionNotFound")
        return parts

    @property
    def user(self) -> str | None:
        """Who asks; nobody without a token. A wrong token is refused everywhere, as on the real one."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token != TOKEN:
            raise Answer(401, "Invalid credentials in Authorization header")
        return USER if token else None

    def need(self, owner: str = USER) -> None:
        if not self.user:
            raise Answer(401, "Invalid username or password.")
        if owner not in (USER, ORGANISATION):
            raise Answer(403, f"You don't have the rights to create a model under the namespace {owner}")

    def json(self) -> dict:
        return json.loads(self.body)

    def log_message(self, *args):
        pass

    # ---- The pages ----

    def whoami(self):
        self.need()
        return {"type": "user", "name": USER, "orgs": [{"type": "org", "name": ORGANISATION}]}

    def create(self):
        asked = self.json()
        owner, kind = asked.get("organization") or USER, asked.get("type") or "model"
        self.need(owner)
        name, private = f"{owner}/{asked['name']}", asked.get("visibility") == "private"
        url = f"{self.server.url}/{'datasets/' if kind == 'dataset' else ''}{name}"
        if (kind, name) in self.server.repos:
            raise Answer(409, "You already created this repo", body={"url": url, "name": name})
        self.server.add(kind, name, {".gitattributes": b"*.safetensors filter=lfs\n"}, private)
        return {"url": url, "name": name}

    def validate_yaml(self):
        """Metadata is a mapping that huggingface_hub's own card data reads, with tags in a list."""
        front = re.match(r"---\n(.*?)\n---", self.json()["content"], re.DOTALL)
        if front is None:
            return {"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]}
        try:
            data = yaml.safe_load(front[1])
            ModelCardData(**data)
            wrong = "base_model_relation" in data and data["base_model_relation"] not in RELATIONS
            if wrong or not isinstance(data.get("tags", []), list):
                raise ValueError("tags must be a list, base_model_relation one of " + ", ".join(RELATIONS))
        except (yaml.YAMLError, TypeError, ValueError) as error:
            raise Answer(400, "Bad metadata", body={"errors": [{"message": str(error)}], "warnings": []}) from None
        return {"errors": [], "warnings": []}

    def preupload(self, repo, name, revision):
        files = []
        for file in self.json()["files"]:
            known = repo.files(revision).get(file["path"])
            mode = "lfs" if is_lfs(base64.b64decode(file["sample"])) else "regular"
            facts = {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
            files.append(facts | ({"oid": oid(known)} if known is not None else {}))
        return {"files": files}

    def lfs_batch(self, repo, name):
        objects = []
        for asked in self.json()["objects"]:
            actions = {"upload": {"href": f"{self.server.url}/lfs/{asked['oid']}"}}
            objects.append(asked if asked["oid"] in self.server.blobs else {**asked, "actions": actions})
        return {"transfer": "basic", "objects": objects}

    def put_blob(self, blob):
        if hashlib.sha256(self.body).hexdigest() != blob:
            raise Answer(400, "The content does not have the hash it is named by")
        self.server.blobs[blob] = self.body
        return {}

    def commit(self, repo, name, revision):
        header, *operations = [json.loads(line) for line in self.body.splitlines()]
        files = dict(repo.files(revision))
        for operation in operations:
            kind, value = operation["key"], operation["value"]
            path = value["path"]
            if kind == "file":
                files[path] = base64.b64decode(value["content"])
            elif kind == "lfsFile":
                files[path] = self.server.blobs[value["oid"]]
            else:
                files = {at: data for at, data in files.items() if at != path and not at.startswith(f"{path}/")}
        made = repo.commit(revision, header["value"]["summary"], files)
        return {"commitUrl": f"{self.server.url}/{name[1]}/commit/{made}", "commitOid": made, "pullRequestUrl": None}

    def branch(self, repo, name, branch):
        repo.branches[branch] = repo.branches["main"]
        return {}

    def info(self, repo, name, revision=None):
        revision = revision or "main"
        facts = {"id": name[1], "sha": repo.branches.get(revision, revision), "private": repo.private, "tags": []}
        facts |= {"modelId": name[1], "createdAt": DATE, "lastModified": DATE, "gated": False, "disabled": False}
        return facts | {"siblings": [{"rfilename": path} for path in repo.files(revision)], "downloads": 0}

    def tree(self, repo, name, revision, folder=None):
        prefix = f"{folder}/" if folder else ""
        inside = {path: data for path, data in repo.files(revision).items() if path.startswith(prefix)}
        folders = {prefix + path.removeprefix(prefix).split("/")[0] for path in inside if "/" in path[len(prefix) :]}
        if prefix and not inside:
            raise Answer(404, f"{folder} does not exist", "EntryNotFound")
        recursive = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        listed = [entry(p, d) for p, d in inside.items() if recursive or "/" not in p[len(prefix) :]]
        return [{"type": "directory", "path": p, "size": 0, "oid": "0" * 40} for p in sorted(folders)] + listed

    def paths_info(self, repo, name, revision):
        files, entries = repo.files(revision), []
        asked = self.json() if self.body[:1] == b"{" else parse_qs(self.body.decode())
        for path in asked["paths"]:
            if path in files:
                entries.append(entry(path, files[path]))
            elif any(other.startswith(f"{path}/") for other in files):
                entries.append({"type": "directory", "path": path, "size": 0, "oid": "0" * 40})
        return entries

    def resolve(self, repo, name, revision, file):
        headers = {"X-Repo-Commit": repo.branches.get(revision, revision), "Accept-Ranges": "bytes"}
        if file not in repo.files(revision):
            answer = Answer(404, "Entry not found", "EntryNotFound")
            answer.headers |= headers
            raise answer
        data = repo.files(revision)[file]
        return data, headers | {"ETag": f'"{oid(data)}"', "Content-Type": "application/octet-stream"}


RELATIONS = ("adapter", "merge", "quantized", "finetune")
REVISION = r"/(?P<revision>[^/]+)"
ROUTES = [
    ("GET", "/api/whoami-v2", Handler.whoami),
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.validate_yaml),
    ("POST", f"/api/{REPO}/preupload{REVISION}", Handler.preupload),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", Handler.lfs_batch),
    ("PUT", r"/lfs/(?P<blob>\w+)", Handler.put_blob),
    ("POST", f"/api/{REPO}/commit{REVISION}", Handler.commit),
    ("POST", f"/api/{REPO}/branch/(?P<branch>.+)", Handler.branch),
    ("GET", f"/api/{REPO}(?:/revision{REVISION})?", Handler.info),
    ("GET", f"/api/{REPO}/tree{REVISION}(?:/(?P<folder>.+))?", Handler.tree),
    ("POST", f"/api/{REPO}/paths-info{REVISION}", Handler.paths_info),
    ("GET HEAD", f"/{REPO}/resolve{REVISION}/(?P<file>.+)", Handler.resolve),
]


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A running `Hub` that this process's clients use, logged in, with an empty cache of downloads."""
    import datasets
    import huggingface_hub
    import transformers

    server = Hub()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub_cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", server.url)
    monkeypatch.setattr(transformers.utils.hub, "_hf_api", None)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_ENDPOINT", server.url)  # for processes that a test starts
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf_home"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.shutdown()
    server.server_close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=0, help="0 takes any free one")
    server = Hub(parser.parse_args().port)
    print(server.url, flush=True)
    server.serve_forever()
