"""A hub of models in this process: as much of its HTTP interface as pushing and loading use."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub.constants as settings
import pytest

TOKEN = "hf_of_the_fake_hub"


class Hub(ThreadingHTTPServer):
    """The server. `me` may write; `others` exists and may only be read.

    Attributes:
        commits: repository -> its files by name, commit by commit.
        private: the repositories that are private.
        asked: (method, path) of every request.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.commits: dict[str, list[dict[str, bytes]]] = {}
        self.messages: list[str] = []
        self.private: set[str] = set()
        self.asked: list[tuple[str, str]] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def commit(self, repo: str, number: int = -1) -> str:
        """The name of a commit, counted from the one that made the repository."""
        return _sha(f"{repo} {number % len(self.commits[repo])}")

    def files(self, repo: str) -> dict[str, bytes]:
        return self.commits[repo][-1]


def _sha(text: str | bytes) -> str:
    return hashlib.sha1(text if isinstance(text, bytes) else text.encode()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def _answer(self, value: Any, status: int = 200, code: str = "", **headers: str) -> None:
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        for name, text in headers.items():
            self.send_header(name.replace("_", "-"), text)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _path(self) -> str:
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append((self.command, path))
        return path

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self._path()
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/.+)?", path):
            self._info(found[1])
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/.+", path):
            files = self.server.files(found[1])
            self._answer([
                {"type": "file", "path": name, "size": len(content), "oid": _sha(content)}
                for name, content in files.items()
            ])  # fmt: skip
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(*found.groups())
        else:
            self._answer({"error": path}, 404)

    def _info(self, repo: str) -> None:
        if repo not in self.server.commits:
            self._answer({"error": "none"}, 404, "RepoNotFound")
            return
        self._answer({
            "id": repo, "sha": self.server.commit(repo), "private": repo in self.server.private,
            "siblings": [{"rfilename": name} for name in self.server.files(repo)],
        })  # fmt: skip

    def _file(self, repo: str, revision: str, name: str) -> None:
        commits = self.server.commits.get(repo)
        if commits is None:
            self._answer({}, 404, "RepoNotFound")
            return
        known = {self.server.commit(repo, number): files for number, files in enumerate(commits)}
        commit = self.server.commit(repo) if revision == "main" else revision
        if name not in known.get(commit, {}):
            self._answer({}, 404, "EntryNotFound", X_Repo_Commit=commit)
            return
        content = known[commit][name]
        self._answer(content, ETag=f'"{_sha(content)}"', X_Repo_Commit=commit)

    def do_POST(self) -> None:
        path = self._path()
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._answer({"error": "Invalid username or password."}, 401)
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/.+", path):
            files = [
                {"path": each["path"], "uploadMode": "regular", "shouldIgnore": False}
                for each in json.loads(body)["files"]
            ]
            self._answer({"files": files})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/.+", path):
            self._write(found[1], [json.loads(line) for line in body.splitlines()])
        else:
            self._answer({"error": path}, 404)

    def _create(self, wanted: dict[str, Any]) -> None:
        repo = f"{wanted['organization'] or 'me'}/{wanted['name']}"
        url = {"url": f"{self.server.address}/{repo}"}
        if not repo.startswith("me/"):
            self._answer({"error": "no rights"}, 403)
        elif repo in self.server.commits:
            self._answer(url, 409)
        else:
            self.server.commits[repo] = [{".gitattributes": b""}]
            if wanted.get("private") or wanted.get("visibility") == "private":
                self.server.private.add(repo)
            self._answer(url)

    def _write(self, repo: str, lines: list[dict[str, Any]]) -> None:
        if not repo.startswith("me/"):
            self._answer({"error": "no rights"}, 403)
            return
        files = dict(self.server.files(repo))
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.server.messages.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                del files[value["path"]]
        self.server.commits[repo].append(files)
        commit = self.server.commit(repo)
        url = f"{self.server.address}/{repo}/commit/{commit}"
        self._answer({"success": True, "commitOid": commit, "commitUrl": url})


@contextmanager
def fake_hub(folder: Path, patch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Run a hub that `huggingface_hub` takes for the real one, with an empty cache in a folder."""
    hub = Hub()
    template = f"{hub.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    for name, value in {
        "ENDPOINT": hub.address,
        "HUGGINGFACE_CO_URL_TEMPLATE": template,
        "HF_HUB_OFFLINE": False,
        "HF_HUB_CACHE": str(folder / "hub"),
        "HF_HUB_DISABLE_XET": True,
    }.items():
        patch.setattr(settings, name, value)
    for name, value in {"HF_ENDPOINT": hub.address, "HF_TOKEN": TOKEN}.items():
        patch.setenv(name, value)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        patch.delenv(name, raising=False)
        patch.delenv(name.upper(), raising=False)
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
