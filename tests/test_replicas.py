"""Replicas on Ray Serve: one ledger, one address, and each answer by one version."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from started import started
from typer.testing import CliRunner

from errata.atlas import make_cases
from errata.cli import app
from errata.edit import same_answer
from errata.serve.ledger import Ledger

CASES = make_cases(6, seed=5)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def replica_processes() -> list[int]:
    listed = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True)
    return [
        int(line.split()[0]) for line in listed.stdout.splitlines() if "ray::ServeReplica" in line
    ]


@pytest.mark.long  # a minute, most of it Ray's own
def test_two_replicas_are_as_one_server_and_one_of_them_may_die(tmp_path, monkeypatch):
    pytest.importorskip("ray.serve")
    monkeypatch.setenv("RAY_worker_niceness", "0")
    port, log, store = free_port(), tmp_path / "log", f"sqlite:///{tmp_path / 'e.db'}"
    log.touch()
    words = ["serve", "atlas", "--executor", "ray", "--port", str(port), "--store", store]
    process = started(words, log)
    try:
        end = time.monotonic() + 240
        while "serving" not in log.read_text():
            assert process.is_alive() and time.monotonic() < end, log.read_text()
            time.sleep(0.5)
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            used(client, store)
            pids = replica_processes()
            assert len(pids) == 2
            os.kill(pids[0], signal.SIGKILL)
            deadline = time.monotonic() + 120
            while len(set(replica_processes()) - set(pids)) < 1:
                assert time.monotonic() < deadline, "no replica takes its place"
                time.sleep(0.5)
            last = client.post("/v1/edits", json=CASES[5].edit.to_dict()).json()["version"]
            for _ in range(8):
                said = asked(client, CASES[5].edit.prompt, {"errata-after": str(last)})
                assert same_answer(said["text"], CASES[5].edit.target)
    finally:
        os.kill(process.pid, signal.SIGTERM)
        process.join(60)
    assert process.exitcode == 0, log.read_text()
    ledger = Ledger(store)
    assert ledger.verify() == last and not replica_processes()
    ledger.close()


def used(client: httpx2.Client, store: str) -> None:
    """Edit, as jobs too, while others ask; each answer is that of its version."""
    prompts = [case.edit.prompt for case in CASES]
    base = {prompt: asked(client, prompt, model="atlas-base")["text"] for prompt in prompts}
    with ThreadPoolExecutor(4) as pool:
        given = [
            pool.submit(asked, client, random.Random(number).choice(prompts))
            for number in range(60)
        ]
        jobs = []
        for case in CASES[:4]:
            answer = client.post("/v1/edits?wait=false", json=case.edit.to_dict())
            assert answer.status_code == 202
            jobs.append(answer.json()["id"])
            time.sleep(0.3)
        answers = [each.result() for each in given]
    for job in jobs:  # whichever replica is asked
        end = time.monotonic() + 60
        while (found := client.get(f"/v1/jobs/{job}").json())["status"] == "running":
            assert time.monotonic() < end, found
            time.sleep(0.1)
        assert found["status"] == "done", found
    client.delete(f"/v1/edits/{CASES[0].edit.id}").raise_for_status()
    ledger = Ledger(store)
    there = {v: {e["id"] for e in ledger.edits_at(v)} for v in range(1, ledger.version + 1)}
    ledger.close()
    answers += [asked(client, prompt, {"errata-after": "6"}) for prompt in prompts]
    for answer in answers:
        (case,) = [case for case in CASES if case.edit.prompt == answer["prompt"]]
        if case.edit.id in there[answer["version"]]:
            assert same_answer(answer["text"], case.edit.target), answer
        else:
            assert answer["text"] == base[case.edit.prompt], answer


def asked(
    client: httpx2.Client, prompt: str, headers: dict[str, str] | None = None, model: str = "atlas"
) -> dict[str, Any]:
    body = {"model": model, "prompt": prompt, "temperature": 0, "max_tokens": 16}
    answer = client.post("/v1/completions", json=body, headers=headers or {})
    answer.raise_for_status()
    text = answer.json()["choices"][0]["text"].strip()
    return {"prompt": prompt, "text": text, "version": int(answer.headers["errata-version"])}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--console"], "--console keeps a connection to one server"),
        (["--store", "sqlite://"], "replicas need one ledger"),
        (["--port", "0"], "give a port"),
        (["--executor", "threads"], "threads"),
        (["--executor", "process", "--replicas", "2"], "--replicas are servers on Ray Serve"),
    ],
)
def test_what_replicas_cannot_do_is_told_before_any_is_made(tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    done = CliRunner().invoke(app, ["serve", "atlas", "--executor", "ray", *words])
    assert done.exit_code == 2 and said in " ".join(done.output.split())


def test_a_port_that_is_taken_is_told_in_a_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        words = ["serve", "atlas", "--executor", "ray", "--port", str(taken.getsockname()[1])]
        done = CliRunner().invoke(app, words)
    assert done.exit_code == 2 and "cannot be listened on" in done.output


def test_on_several_machines_the_ledger_must_be_reached_by_all(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["serve", "atlas", "--executor", "ray"])
    assert done.exit_code == 2 and "one ledger that all can reach" in " ".join(done.output.split())
    assert not list(Path().iterdir())
