"""A Hub on the loopback interface: repositories in memory, and the routes that pushing and pulling take.

Pushing and pulling processes get it by `environment`: HF_ENDPOINT is read once, at import.
"""

import base64
import json
import os
import re
import socket
import struct
import threading
from collections import defaultdict
from collections.abc import Mapping
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import yaml

# What goes by Git LFS, of the files that we push (the Hub's own .gitattributes).
LARGE = (".bin", ".onnx", ".parquet", ".png", ".pt", ".pth", ".safetensors")


class Fault(NamedTuple):
    """What one request to a repository gets in the place of its answer; the next is answered as usual."""

    route: str  # create, preupload, commit and, of Git LFS, batch and upload
    status: int | None  # None: the connection is cut in the middle of the upload
    headers: Mapping[str, str] = MappingProxyType({})


class FakeHub:
    """`with FakeHub() as hub`: serves until the block ends.

    Attributes:
        repos: files by repository, `repos["someone/tiny"]["config.json"]`; data sets as `"datasets/someone/tiny"`,
            Spaces as `"spaces/someone/tiny"`.
        objects: large files by repository and SHA-256: they come before the commit that names them.
        commits: messages by repository, the last one last.
        faults: `Fault`s to come, by repository.
        tokens: every token that a request brought.
        requests: method and path of every request.
    """

    user = "someone"

    def __init__(self):
        self.repos: dict[str, dict[str, bytes]] = {}
        self.objects: dict[str, dict[str, bytes]] = defaultdict(dict)
        self.commits: dict[str, list[str]] = defaultdict(list)
        self.faults: dict[str, list[Fault]] = defaultdict(list)
        self.tokens: set[str] = set()
        self.requests: list[str] = []

    def __enter__(self) -> "FakeHub":
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self.storage = f"http://localhost:{self._server.server_port}/storage"  # of large files: another host
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception) -> None:
        self._server.shutdown()
        self._server.server_close()

    def environment(self, home: Path, token: str | None = None, **variables: str) -> dict[str, str]:
        """For a process that talks to this Hub and to no other, with its cache in `home`."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        environment |= {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}
        environment["HF_HUB_DISABLE_XET"] = "1"  # large files by Git LFS
        return environment | ({"HF_TOKEN": token} if token else {}) | variables


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args) -> None:
        pass

    def answer(self, status: int, body: object = b"", head_only: bool = False, **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if not head_only:
            self.wfile.write(content)

    def note(self) -> str:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token:
            self.hub.tokens.add(token)
        return path

    def fails(self, repo: str, route: str) -> bool:
        """Whether a fault was due, and this request has got it."""
        fault = next((fault for fault in self.hub.faults[repo] if fault.route == route), None)
        if fault is None:
            return False
        self.hub.faults[repo].remove(fault)
        if fault.status is None:
            self.rfile.read(int(self.headers["Content-Length"]) // 2)
            self.close_connection = True
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
            self.connection.close()
        else:
            if route != "create":  # whose body says which repository it is about
                self.body()
            self.answer(fault.status, {"error": f"made to fail with {fault.status}"}, **fault.headers)
        return True

    def do_POST(self) -> None:
        path = self.note()
        if path == "/api/repos/create":
            self.create()
        elif path == "/api/validate-yaml":
            self.validate(json.loads(self.body()))
        elif match := re.fullmatch(r"/api/(models|datasets|spaces)/([^/]+/[^/]+)/(preupload|commit)/([^/]+)", path):
            repo = match[2] if match[1] == "models" else f"{match[1]}/{match[2]}"
            if not self.fails(repo, match[3]):
                self.preupload() if match[3] == "preupload" else self.commit(repo)
        elif match := re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", path):
            if not self.fails(match[1], "batch"):
                self.batch(match[1])
        else:
            self.answer(404, {"error": path}, X_Error_Code="EntryNotFound")

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers["Content-Length"]))

    def create(self) -> None:
        asked = json.loads(self.body())
        name = f"{asked.get('organization') or self.hub.user}/{asked['name']}"
        kind = asked.get("type", "model")
        repo = name if kind == "model" else f"{kind}s/{name}"
        if self.fails(repo, "create"):
            return
        if kind == "space" and asked.get("sdk") not in ("gradio", "docker", "static"):
            self.answer(400, {"error": "a Space needs an SDK"})
            return
        exists = repo in self.hub.repos
        self.hub.repos.setdefault(repo, {})
        self.answer(409 if exists else 200, {"url": f"{self.hub.endpoint}/{repo}", "name": name, "id": name})

    def validate(self, asked: dict) -> None:
        """As the Hub: metadata that are a mapping, and a model-index whose parts are all there."""
        try:
            metadata = yaml.safe_load(asked["content"].split("---")[1])
            for model in metadata.get("model-index", []):
                assert model["name"]
                for result in model["results"]:
                    assert result["task"]["type"] and result["dataset"]["type"] and result["dataset"]["name"]
                    assert all(metric["type"] and metric["value"] is not None for metric in result["metrics"])
        except (AssertionError, AttributeError, IndexError, KeyError, TypeError, yaml.YAMLError) as error:
            self.answer(400, {"errors": [{"message": repr(error)}], "warnings": []})
        else:
            self.answer(200, {"errors": [], "warnings": []})

    def preupload(self) -> None:
        files = json.loads(self.body())["files"]
        for file in files:
            file |= {"uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular", "shouldIgnore": False}
        self.answer(200, {"files": files})

    def batch(self, repo: str) -> None:
        """Where the large files are to be brought that the repository does not have."""
        objects = json.loads(self.body())["objects"]
        for wanted in objects:
            if wanted["oid"] not in self.hub.objects[repo]:
                wanted["actions"] = {"upload": {"href": f"{self.hub.storage}/{repo}/{wanted['oid']}"}}
        self.answer(200, {"transfer": "basic", "objects": objects})

    def do_PUT(self) -> None:
        repo, oid = re.fullmatch(r"/storage/(.+)/(\w+)", self.note()).groups()
        if self.fails(repo, "upload"):
            return
        content = self.body()
        if sha256(content).hexdigest() == oid:
            self.hub.objects[repo][oid] = content
            self.answer(200)
        else:
            self.answer(400, {"error": "other bytes than announced"})

    def commit(self, repo: str) -> None:
        lines = [json.loads(line) for line in self.body().splitlines()]
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.hub.commits[repo].append(value["summary"])
            elif line["key"] == "file":
                self.hub.repos[repo][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.hub.repos[repo][value["path"]] = self.hub.objects[repo][value["oid"]]
            else:
                raise NotImplementedError(line["key"])
        sha = self.sha(repo)
        self.answer(200, {"commitUrl": f"{self.hub.endpoint}/{repo}/commit/{sha}", "commitOid": sha})

    def sha(self, repo: str) -> str:
        return sha1(f"{repo} {len(self.hub.commits[repo])}".encode()).hexdigest()

    def do_HEAD(self) -> None:
        self.serve(head_only=True)

    def do_GET(self) -> None:
        self.serve(head_only=False)

    def serve(self, head_only: bool) -> None:
        path = self.note()
        if match := re.fullmatch(r"/((?:datasets/|spaces/)?[^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            self.file(match[1], match[2], head_only)
        elif match := re.fullmatch(r"/storage/(.+)/(\w+)", path):
            self.answer(200, self.hub.objects[match[1]][match[2]], head_only)
        elif match := re.fullmatch(r"/api/(models|datasets|spaces)/([^/]+/[^/]+)(/revision/.+|/tree/.+)?", path):
            repo = match[2] if match[1] == "models" else f"{match[1]}/{match[2]}"
            files = self.hub.repos.get(repo)
            if files is None:
                self.answer(404, {"error": "Repository not found"}, head_only, X_Error_Code="RepoNotFound")
            elif (match[3] or "").startswith("/tree"):
                tree = [
                    {"type": "file", "path": name, "size": len(content), "oid": sha1(content).hexdigest()}
                    for name, content in files.items()
                ]
                self.answer(200, tree, head_only)
            else:
                siblings = [{"rfilename": name} for name in files]
                self.answer(200, {"id": match[2], "sha": self.sha(repo), "siblings": siblings}, head_only)
        else:
            self.answer(404, {"error": path}, head_only, X_Error_Code="EntryNotFound")

    def file(self, repo: str, name: str, head_only: bool) -> None:
        files = self.hub.repos.get(repo)
        commit = {"X_Repo_Commit": self.sha(repo)}
        if files is None:
            self.answer(404, {"error": "Repository not found"}, head_only, X_Error_Code="RepoNotFound")
        elif name not in files:
            self.answer(404, {"error": "Entry not found"}, head_only, X_Error_Code="EntryNotFound", **commit)
        elif name.endswith(LARGE):
            oid = sha256(files[name]).hexdigest()
            linked = {"X_Linked_Etag": f'"{oid}"', "X_Linked_Size": str(len(files[name]))}
            self.answer(302, b"", head_only, Location=f"{self.hub.storage}/{repo}/{oid}", **linked, **commit)
        else:
            self.answer(200, files[name], head_only, ETag=f'"{sha1(files[name]).hexdigest()}"', **commit)
