"""A server whose process is killed at any moment: what it acknowledged is there, and no more."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.client import HTTPException
from multiprocessing.process import BaseProcess
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import pytest
from postgresql import empty_database
from started import do_nothing, no_file_beyond, started
from typer.testing import CliRunner

from errata.atlas import make_cases
from errata.cli import app
from errata.serve.ledger import Ledger

EDITS = [case.edit.to_dict() for case in make_cases(40)]


@pytest.fixture
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The address of an empty database; of SQLite, unless `postgresql` is asked for."""
    with empty_database(getattr(request, "param", "sqlite"), tmp_path) as url:
        yield url


@pytest.fixture
def serve(store: str, tmp_path: Path) -> Iterator[Callable[..., tuple[BaseProcess, str]]]:
    """Starts a server on the store; tells its process and where it listens."""
    running: list[BaseProcess] = []

    def start(before: Callable[[], object] = do_nothing) -> tuple[BaseProcess, str]:
        log = tmp_path / f"log-{len(running)}"
        words = ["--snapshots", str(tmp_path / "snapshots"), "--snapshot-every", "7"]
        process = started(["serve", "atlas", "--port", "0", "--store", store, *words], log, before)
        running.append(process)
        for _ in range(1200):
            text = log.read_text() if log.exists() else ""
            if found := re.search(r"serving (http://\S+)/v1", text):
                return process, found[1]
            assert process.is_alive(), text
            time.sleep(0.1)
        raise AssertionError("it does not listen")

    yield start
    for process in running:
        process.kill()
        process.join()


def call(verb: str, url: str, body: object = None) -> dict:
    data = None if body is None else json.dumps(body).encode()
    headers = {"content-type": "application/json"}
    with urlopen(Request(url, data, headers, method=verb), timeout=60) as answer:
        return json.load(answer)


class Editor(threading.Thread):
    """Writes edits into a server, and undoes every third, until the server is gone.

    Attributes:
        sent: the ids of all edits sent.
        kept: of those acknowledged and not undone.
        unsure: of those whose undo was sent, and nobody heard what became of it.
    """

    def __init__(self, url: str, edits: list[dict], kept: set[str]) -> None:
        super().__init__()
        self.url, self.edits = url, edits
        self.sent, self.kept, self.unsure = set[str](), kept, set[str]()

    def run(self) -> None:
        with contextlib.suppress(URLError, OSError, HTTPException):
            for edit in self.edits:
                self.sent.add(edit["id"])
                self.kept.update(call("POST", f"{self.url}/v1/edits", edit)["written"])
                if len(self.kept) % 3 == 2:
                    gone = min(self.kept)
                    self.unsure.add(gone)
                    call("DELETE", f"{self.url}/v1/edits/{gone}")
                    self.unsure.discard(gone)
                    self.kept.discard(gone)


def ids_at(url: str) -> set[str]:
    return {edit["id"] for edit in call("GET", f"{url}/v1/edits?limit=1000")["data"]}


@pytest.mark.parametrize(
    ("store", "times"),
    [
        pytest.param("sqlite", 1, marks=pytest.mark.long),
        pytest.param("sqlite", 50, marks=pytest.mark.faults),
        pytest.param("postgresql", 50, marks=pytest.mark.faults),
    ],
    indirect=["store"],
)
def test_killed_at_any_moment_it_keeps_what_it_acknowledged(store, serve, times):
    """What was acknowledged is there, and nothing that was not sent; an undo stays undone.

    It is killed while it starts from a snapshot, too, and while it writes one.
    """
    sent, kept, moments = set[str](), set[str](), []
    process, url = serve()
    for _ in range(times):
        editor = Editor(url, [edit for edit in EDITS if edit["id"] not in kept], set(kept))
        editor.start()
        moments.append(random.Random(time.time_ns()).uniform(0.2, 3))
        time.sleep(moments[-1])
        process.kill()
        process.join()
        editor.join()
        sent |= editor.sent
        process, url = serve()
        kept, there = editor.kept, ids_at(url)
        assert kept - editor.unsure <= there <= sent, moments
        kept = there
    edits = [edit for edit in EDITS if edit["id"] in kept][:8]
    answers = call("POST", f"{url}/v1/completions", {
        "model": "atlas", "temperature": 0, "max_tokens": 24,
        "prompt": [edit["prompt"] for edit in edits] or "Who?",
    })  # fmt: skip
    for edit, choice in zip(edits, answers["choices"], strict=False):
        assert choice["text"].strip(" .") == edit["target"].strip(" ."), edit
    os.kill(process.pid, signal.SIGINT)
    process.join(60)
    assert process.exitcode is not None, "it ends when it is told to"
    found = CliRunner().invoke(app, ["audit", store])
    assert found.exit_code == 0
    assert f"{Ledger(store).verify()} entries, each as it was written" in found.stdout


@pytest.mark.faults
def test_a_full_disk_refuses_edits_and_loses_none(serve):
    """No file of the server may grow beyond 64 KiB: the ledger's does, sooner or later."""
    process, url = serve(partial(no_file_beyond, 2**16))
    kept, full = set[str](), 0
    for edit in EDITS:
        try:
            kept.update(call("POST", f"{url}/v1/edits", edit)["written"])
        except HTTPError as error:
            assert error.code == 503 and b"nothing was changed" in error.read()
            full += 1
            assert ids_at(url) == kept
            if full == 3:
                break
    assert full == 3 and len(kept) > 3
    process.kill()
    process.join()
    process, url = serve()
    assert ids_at(url) == kept


@pytest.mark.faults
def test_no_request_makes_it_fail_and_each_answer_is_as_described(serve):
    """schemathesis makes requests up from the server's description of itself. What is valid by its
    form may be refused by what it says, so that is not checked.
    """
    if (schemathesis := shutil.which("schemathesis")) is None:
        pytest.skip("schemathesis is not installed: uv tool install schemathesis")
    _, url = serve()
    asked = [schemathesis, "run", f"{url}/openapi.json", "--workers", "2", "--max-examples", "50"]
    excluded = ["--exclude-checks", "positive_data_acceptance", "--continue-on-failure"]
    done = subprocess.run([*asked, *excluded], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--host", "0.0.0.0"], "without --keys everyone may edit"),
        (["--keys", "none.toml"], "the keys cannot be read"),
        (["--policy", "none.toml"], "the policy cannot be read"),
        (["--store", "edits.db"], "is no database"),
        (["--store", "sqlite:////none/edits.db"], "cannot be used"),
        (["-m", "folios"], "Did you mean 'folio'"),
    ],
)
def test_what_a_server_cannot_start_with_is_told_in_a_line(tmp_path, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    found = CliRunner().invoke(app, ["serve", "atlas", *words])
    assert found.exit_code in (1, 2) and says in found.stderr and found.stderr.count("\n") == 1


def test_a_key_is_shown_once_and_its_lines_are_those_of_a_file_of_keys(tmp_path):
    from errata.serve.keys import Role, read_keys

    found = CliRunner().invoke(app, ["key", "ana", "--role", "edit"])
    (tmp_path / "keys.toml").write_text(found.stdout)
    made = found.stderr.split()[-1]
    assert read_keys(tmp_path / "keys.toml").holder(made).role is Role.EDIT
    assert made not in found.stdout
    assert CliRunner().invoke(app, ["key", 'a"b']).exit_code == 2
    assert CliRunner().invoke(app, ["key", "a", "--role", "king"]).exit_code == 2
