"""A model hub on loopback: what `huggingface_hub` asks of the real one, kept in memory.

It speaks the hub's HTTP API for model and data set repositories as far as creating, uploading
(preupload, Git LFS' batch API, commits), looking and downloading go, without Xet.
"""

import base64
import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

DROP = "drop"
"""In the place of a status: read half of what is sent and hang up."""


@dataclass
class Repository:
    """Branches point to commits; a commit has all files by their path.

    A gated one shows its files' names to everyone, and gives files to accepted tokens alone.
    """

    private: bool = False
    gated: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    large: set[str] = field(default_factory=set)
    messages: list[str] = field(default_factory=list)

    def commit(
        self, branch: str, files: dict[str, bytes], message: str = "", name: str = ""
    ) -> str:
        """A commit, with the hash that is given or with one of its content."""
        listing = json.dumps([(name, git_name(data)) for name, data in sorted(files.items())])
        made = hashlib.sha1(f"{message}{len(self.commits)}{listing}".encode()).hexdigest()
        name = name or made
        self.commits[name] = files
        self.branches[branch] = name
        self.messages.append(message)
        return name

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        name = self.branches.get(revision, revision)
        return (name, self.commits[name]) if name in self.commits else None


def git_name(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class StubHub:
    """The hub. What can be set, for one that is out of order or elsewhere:

    Attributes:
        fail: Of a method and a path: a status with a message, or `DROP`, to fail with.
        cut: Of a path: after how many bytes of an answer the connection ends; None for all of it.
        delay: Of a path: how many seconds an answer takes.
        moved: By the old name ("org/name", or "datasets/org/name"), what it is called now.
        writers: Tokens that may write.
        accepted: Tokens whose owners have accepted the terms of gated repositories.
    """

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.seen: list[tuple[str, str]] = []
        self.writers = {"hf_writer"}
        self.accepted = {"hf_accepted"}
        self.moved: dict[str, str] = {}
        self.fail = lambda method, path: None
        self.cut = lambda path: None
        self.delay = lambda path: 0
        hub = self

        class Handler(_Handler):
            @property
            def hub(self):
                return hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()

    def put(self, name: str, files: dict[str, bytes], **about) -> str:
        """Have a repository ("org/name", or "datasets/org/name") with these files on main."""
        repository = self.repositories.setdefault(name, Repository(**about))
        return repository.commit("main", files)

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        return self.repositories[name].at(revision)[1]

    def asked(self, method: str, part: str) -> list[str]:
        return [path for one, path in self.seen if one == method and part in path]


class _Refused(Exception):
    def __init__(self, status: int, message: str, code: str = ""):
        self.status, self.message, self.code = status, message, code


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one packet an answer; else loopback waits 40 ms for the second

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._answer()

    def do_GET(self):
        self._answer()

    def do_POST(self):
        self._answer()

    def do_PUT(self):
        self._answer()

    def _answer(self):
        url = urlsplit(self.path)
        path, query = unquote(url.path).strip("/"), parse_qs(url.query)
        self._path = path
        self.hub.seen.append((self.command, path))
        failure = self.hub.fail(self.command, path)
        threading.Event().wait(self.hub.delay(path))  # time.sleep is left out by tests
        length = int(self.headers.get("Content-Length") or 0)
        if failure == DROP:
            self.rfile.read(length // 2)
            self.close_connection = True
            return
        body = self._chunks() if "Transfer-Encoding" in self.headers else self.rfile.read(length)
        try:
            if failure:
                raise _Refused(*failure)
            if (elsewhere := self._moved(path)) is not None:
                self._give(307, b"", {"Location": f"/{elsewhere}"})
                return
            self._give(*self._route(path, query, body))
        except _Refused as refused:
            headers = {"X-Error-Code": refused.code} if refused.code else {}
            self._give(refused.status, {"error": refused.message}, headers)

    def _chunks(self):
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _moved(self, path):
        for old, new in self.hub.moved.items():
            kind = "" if old.startswith("datasets/") else "models/"
            for begin in (f"api/{kind}{old}", f"{old}/resolve"):
                if path == begin or path.startswith(f"{begin}/"):
                    return path.replace(old, new, 1)
        return None

    def _give(self, status, value=b"", headers=None):
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        if status == 200 and (start := self._start()):
            headers = {**(headers or {}), "Content-Range": f"bytes {start}-/{len(data)}"}
            status, data = 206, data[start:]
        self.send_response(status)
        for name, content in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, content)
        self.end_headers()
        if self.command != "HEAD":
            end = self.hub.cut(self._path)
            self.wfile.write(data[:end])
            if end is not None and end < len(data):
                self.wfile.flush()
                self.close_connection = True

    def _start(self):
        """From which byte on a file is asked for, as whoever goes on with a download does."""
        wanted = self.headers.get("Range", "").removeprefix("bytes=").partition("-")[0]
        return int(wanted) if wanted and self.command == "GET" else 0

    def _route(self, path, query, body):
        parts = path.split("/")
        if path == "":
            return (200,)
        if path == "api/repos/create":
            return self._create(json.loads(body))
        if path == "api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if parts[0] == "lfs":
            return self._store(parts[1], body)
        if path.endswith(".git/info/lfs/objects/batch"):
            self._repository(path.partition(".git/")[0], writing=True)
            return self._batch(json.loads(body))
        if parts[0] == "api":
            return self._api(parts[1:], query, body)
        return self._resolve(path)

    def _token(self):
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def _may_write(self):
        if not self._token():
            raise _Refused(401, "Invalid username or password.")
        if self._token() not in self.hub.writers:
            raise _Refused(403, "You don't have the rights to create a model under this namespace")

    def _repository(self, name, *, writing=False):
        found = self.hub.repositories.get(name)
        if found is None or (found.private and not self._token()):
            status = 404 if self._token() else 401
            raise _Refused(status, "Repository Not Found", "RepoNotFound")
        if writing:
            self._may_write()
        return found

    def _at(self, repository, revision):
        found = repository.at(revision)
        if found is None:
            raise _Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found

    def _create(self, asked):
        self._may_write()
        name = f"{asked.get('organization') or 'writer'}/{asked['name']}"
        url = {"url": f"{self.hub.address}/{name}", "name": name}
        if name in self.hub.repositories:
            return 409, {"error": "You already created this model repo", **url}
        private = asked.get("private") or asked.get("visibility") == "private"
        self.hub.put(name, {".gitattributes": b"*.safetensors filter=lfs\n"}, private=bool(private))
        return 200, url

    def _api(self, parts, query, body):
        kind, owner, name, *rest = parts
        full = f"{owner}/{name}" if kind == "models" else f"{kind}/{owner}/{name}"
        verb = rest[0] if rest else "info"
        writing = verb in ("preupload", "commit", "branch")
        repository = self._repository(full, writing=writing)
        if verb == "branch":
            branch = "/".join(rest[1:])
            if branch in repository.branches:
                return 409, {"error": "Reference already exists"}
            repository.branches[branch] = repository.branches["main"]
            return 200, {}
        revision = rest[1] if len(rest) > 1 else "main"
        commit, files = self._at(repository, revision)
        if verb in ("info", "revision"):
            return 200, self._info(full, repository, commit, files)
        if verb == "tree":
            return 200, [self._about(repository, path, data) for path, data in files.items()]
        if verb == "paths-info":
            wanted = parse_qs(body.decode())["paths"]
            return 200, [self._about(repository, p, files[p]) for p in wanted if p in files]
        if verb == "preupload":
            return 200, {"files": [self._mode(f, files) for f in json.loads(body)["files"]]}
        assert verb == "commit", parts
        return self._commit(full, repository, revision, files, body)

    def _info(self, name, repository, commit, files):
        card = files.get("README.md", b"").decode()
        front = card.split("---\n")[1] if card.startswith("---\n") else ""
        return {
            "id": name.removeprefix("datasets/"),
            "sha": commit,
            "private": repository.private,
            "gated": "manual" if repository.gated else False,
            "siblings": [{"rfilename": path} for path in files],
            "tags": [],
            "cardData": yaml.safe_load(front) or {},
        }

    def _about(self, repository, path, data):
        about = {"type": "file", "path": path, "size": len(data), "oid": git_name(data)}
        if path in repository.large:
            sha256 = hashlib.sha256(data).hexdigest()
            about["lfs"] = {"oid": sha256, "size": len(data), "pointerSize": 130}
        return about

    def _mode(self, asked, files):
        large = asked["path"].endswith((".safetensors", ".gguf")) or asked["size"] > 10_000_000
        here = files.get(asked["path"])
        return {
            "path": asked["path"],
            "uploadMode": "lfs" if large else "regular",
            "shouldIgnore": False,
            "oid": None if here is None or large else git_name(here),
        }

    def _batch(self, asked):
        objects = []
        for one in asked["objects"]:
            if one["oid"] not in self.hub.objects:
                upload = {"href": f"{self.hub.address}/lfs/{one['oid']}", "header": {}}
                one = {**one, "actions": {"upload": upload}}
            objects.append(one)
        return 200, {"transfer": "basic", "objects": objects}

    def _store(self, oid, body):
        if hashlib.sha256(body).hexdigest() != oid:
            raise _Refused(400, "The content has another checksum")
        self.hub.objects[oid] = body
        return (200,)

    def _commit(self, name, repository, branch, files, body):
        lines = [json.loads(line) for line in body.splitlines()]
        files = dict(files)
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
                repository.large.discard(value["path"])
            else:
                assert line["key"] == "lfsFile", line
                if value["oid"] not in self.hub.objects:
                    raise _Refused(400, f"LFS pointer without a file: {value}")
                files[value["path"]] = self.hub.objects[value["oid"]]
                repository.large.add(value["path"])
        commit = repository.commit(branch, files, lines[0]["value"]["summary"])
        url = f"{self.hub.address}/{name}/commit/{commit}"
        return 200, {"commitUrl": url, "commitOid": commit, "success": True}

    def _resolve(self, path):
        name, _, rest = path.partition("/resolve/")
        revision, _, file = rest.partition("/")
        repository = self._repository(name)
        if repository.gated and self._token() not in self.hub.accepted:
            status = 403 if self._token() else 401
            raise _Refused(status, "Access to model is restricted", "GatedRepo")
        commit, files = self._at(repository, revision)
        if file not in files:
            raise _Refused(404, "Entry not found", "EntryNotFound")
        data = files[file]
        headers = {"ETag": f'"{git_name(data)}"', "X-Repo-Commit": commit}
        return 200, data, headers
