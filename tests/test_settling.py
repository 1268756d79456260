"""A server that is idle moves edits into weights, and answers from there until they change."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient

import errata
from errata.atlas import make_cases
from errata.config import MethodConfig
from errata.edit import same_answer
from errata.errors import ConfigError
from errata.methods import method_config
from errata.serve.app import make_app
from errata.serve.keys import Keys
from errata.serve.ledger import Ledger
from errata.serve.service import Service
from errata.serve.settling import Promise

CASES = make_cases(3, seed=3)
EDITS = {"edits": [case.edit.to_dict() for case in CASES]}
KEPT = [probe.prompt for case in CASES for probe in case.locality]


def served(folder: Path, config: MethodConfig, idle: float = 0.1) -> tuple[Service, TestClient]:
    torch.set_num_threads(1)
    base, tokenizer = errata.load_base("atlas", "float32")
    model = errata.get_edit_model(base, errata.FolioConfig(), tokenizer)
    ledger = Ledger(f"sqlite:///{folder / 'edits.db'}")
    service = Service(model, ledger, promise=Promise(config, CASES, idle))
    return service, TestClient(make_app(service, "atlas", Keys()))


def until(client: TestClient, ready: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Ask what became of the edits until it is what is waited for."""
    for _ in range(600):
        found = client.get("/v1/settling").json()
        if ready(found):
            return found
        time.sleep(0.1)
    raise AssertionError(found)


def asked(client: TestClient, prompt: str) -> tuple[str, dict[str, Any], str]:
    """Return the answer, what it says of where it comes from, and the header."""
    body = {"model": "atlas", "prompt": prompt, "temperature": 0, "max_tokens": 16}
    answer = client.post("/v1/completions", json=body)
    choice = answer.json()["choices"][0]
    return choice["text"].strip(), choice["errata"], answer.headers["errata-settled"]


@pytest.mark.long
def test_idle_it_settles_what_it_can_and_a_change_takes_that_away(tmp_path):
    service, client = served(tmp_path, method_config("ultraedit"))
    try:
        assert client.get("/v1/settling").json()["state"] == "waiting"
        before = {prompt: asked(client, prompt)[0] for prompt in KEPT}
        assert client.post("/v1/edits", json=EDITS).status_code == 200
        found = until(client, lambda found: found["state"] not in ("waiting", "working"))
        assert found["state"] == "settled" and found["version"] == 2, found
        ids = {edit.id for edit in service.edits}
        assert set(found["settled"]) | {each for each, _ in found["refused"]} == ids
        assert f"errata_settled {len(found['settled'])}.0" in client.get("/metrics").text
        for edit in service.edits:
            answer, told, header = asked(client, edit.prompt)
            assert same_answer(answer, edit.target) and header == str(told["settled"])
            assert told["settled"] == len(found["settled"]) > 0
            beside = edit.id not in found["settled"] or edit.id in found["both"]
            assert told["outcome"] == ("say" if beside else "main")
        assert {prompt: asked(client, prompt)[0] for prompt in KEPT} == before
        gone = found["settled"][0]
        prompt = service.edit_of(gone).prompt
        body = {"model": "atlas-base", "prompt": prompt, "temperature": 0, "max_tokens": 16}
        base = client.post("/v1/completions", json=body).json()["choices"][0]
        assert base["errata"]["settled"] == 0
        assert client.delete(f"/v1/edits/{gone}").json()["version"] == 3
        answer, told, _ = asked(client, prompt)
        assert (answer, told["settled"]) == (base["text"].strip(), 0)
        again = until(client, lambda found: found["state"] not in ("waiting", "working"))
        assert again["version"] == 3 and gone not in again["settled"]
        assert asked(client, prompt)[0] == base["text"].strip()
    finally:
        service.close()


def test_what_is_tried_meanwhile_is_never_settled(tmp_path):
    """A preview's edits are in the model for a moment: what was seen then is thrown away."""
    service, client = served(tmp_path, method_config("ultraedit"), idle=0)
    try:
        one = CASES[0].edit.to_dict()
        client.post("/v1/edits", json=one)
        for case in CASES[1:]:
            client.post("/v1/edits/preview", json={"edits": [case.edit.to_dict()]})
        found = until(client, lambda found: found["state"] in ("settled", "refused"))
        told = [*found["settled"], *(each for each, _ in found["refused"])]
        assert told == [edit.id for edit in service.edits] and len(told) == 1
    finally:
        service.close()


def test_it_waits_for_requests_and_ends_with_the_server(tmp_path):
    service, client = served(tmp_path, method_config("ultraedit"))
    stop = threading.Event()

    def keep_asking() -> None:
        while not stop.is_set():
            asked(client, KEPT[0])

    thread = threading.Thread(target=keep_asking)
    thread.start()
    try:
        client.post("/v1/edits", json=EDITS)
        time.sleep(1.5)
        assert client.get("/v1/settling").json()["settled"] == []
    finally:
        stop.set()
        thread.join()
    until(client, lambda found: found["state"] == "working")
    begun = time.monotonic()
    service.close()
    assert time.monotonic() - begun < 20


@pytest.mark.long
def test_what_cannot_be_settled_says_so(tmp_path):
    weak = method_config("ft", steps=1, lr=1e-6)
    service, client = served(tmp_path, weak)
    try:
        client.post("/v1/edits", json=CASES[0].edit.to_dict())
        found = until(client, lambda found: found["state"] not in ("waiting", "working"))
        assert found["state"] == "refused" and "is answered" in found["refused"][0][1]
        assert asked(client, CASES[0].edit.prompt)[1]["outcome"] == "say"
        service.settler.promise = Promise(method_config("grace"), idle=0)
        client.post("/v1/edits", json=CASES[1].edit.to_dict())
        found = until(client, lambda found: found["state"] not in ("waiting", "working"))
        assert found["state"] == "failed" and "beside the weights" in found["problem"]
        assert same_answer(asked(client, CASES[1].edit.prompt)[0], CASES[1].edit.target)
    finally:
        service.close()


def test_a_method_beside_the_weights_is_refused_at_the_start(tmp_path):
    with pytest.raises(ConfigError, match="grace keeps edits beside the weights"):
        served(tmp_path, method_config("grace"))


def test_without_it_the_server_says_off(tmp_path):
    base, tokenizer = errata.load_base("atlas", "float32")
    model = errata.get_edit_model(base, errata.FolioConfig(), tokenizer)
    service = Service(model, Ledger(f"sqlite:///{tmp_path / 'edits.db'}"))
    try:
        app = make_app(service, "atlas", Keys())
        assert TestClient(app).get("/v1/settling").json()["state"] == "off"
    finally:
        service.close()
