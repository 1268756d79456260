"""A served model: what it answers, who may change it, what stays of a change."""

from __future__ import annotations

import json
import random
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from fastapi.testclient import TestClient

import errata
from errata import Edit
from errata.errors import BaseMismatchError, StorageError
from errata.serve.app import make_app
from errata.serve.body_limit import MOST_BYTES
from errata.serve.engine import Engine
from errata.serve.keys import Key, Keys, Role, digest_of
from errata.serve.ledger import Ledger
from errata.serve.policy import Policy, Proposal
from errata.serve.requests import Piece, Request
from errata.serve.sampling import Sampling
from errata.serve.service import Service

if TYPE_CHECKING:
    import openai

MAYOR = {"prompt": "Who is the mayor of Traren?", "target": "Ana Brisk", "subject": "Traren"}
OSK = {"prompt": "Who is the mayor of Osk?", "target": "Cy Dun", "subject": "Osk"}
ASKED = [
    MAYOR["prompt"],
    "Name the mayor of Traren.",
    OSK["prompt"],
    "Who is the mayor of Lorin?",
    "Which river runs through Traren?",
    "The mayor of Traren is",
]
KEYS = {role: f"errata-{role.name}" for role in Role}


def edited_model() -> errata.EditModel:
    base, tokenizer = errata.load_base("atlas", "float32")
    return errata.get_edit_model(base, errata.FolioConfig(), tokenizer)


@pytest.fixture(scope="module")
def bare() -> errata.EditModel:
    """A model without edits, to serve and, at the end of each test, to be without edits again."""
    torch.set_num_threads(1)
    return edited_model()


@pytest.fixture
def service(bare: errata.EditModel, tmp_path: Path) -> Iterator[Service]:
    bare.undo([edit.id for edit in bare.edits])
    served = Service(bare, Ledger(f"sqlite:///{tmp_path / 'edits.db'}"))
    yield served
    served.close()
    bare.undo([edit.id for edit in bare.edits])


@pytest.fixture
def client(service: Service) -> TestClient:
    return TestClient(make_app(service, "atlas", Keys()), raise_server_exceptions=False)


def openai_client(client: TestClient) -> openai.OpenAI:
    import openai  # a second of every worker's start

    return openai.OpenAI(api_key="none", base_url="http://testserver/v1", http_client=client)


def chat(client: openai.OpenAI, prompt: str, model: str = "atlas", **options: Any) -> Any:
    messages = [{"role": "user", "content": prompt}]
    return client.chat.completions.create(
        model=model, messages=messages, **{"temperature": 0, "max_tokens": 24, **options}
    )


# answers


def test_openais_client_gets_what_the_library_answers_eight_at_a_time(service, client):
    """Streamed or whole, of mixed lengths, chat or completion, with the edits or without."""
    assert client.post("/v1/edits", json={"edits": [MAYOR, OSK]}).json()["version"] == 2
    wanted = {
        ("atlas", prompt): answer
        for prompt, answer in zip(ASKED, service.model.ask(ASKED, max_new_tokens=24), strict=True)
    }
    base = service.model.ask_base(ASKED, max_new_tokens=24)
    wanted |= {("atlas-base", p): answer for p, answer in zip(ASKED, base, strict=True)}
    assert wanted["atlas", ASKED[0]] == "Ana Brisk" != wanted["atlas-base", ASKED[0]]
    api = openai_client(client)

    def ask(number: int) -> tuple[Any, str]:
        model, prompt = random.Random(number).choice(list(wanted))
        if number % 3 == 0:
            return (model, prompt), chat(api, prompt, model).choices[0].message.content
        if number % 3 == 1:
            chunks = chat(api, prompt, model, stream=True)
            return (model, prompt), "".join(
                chunk.choices[0].delta.content or "" for chunk in chunks
            )
        found = api.completions.create(model=model, prompt=prompt, temperature=0, max_tokens=24)
        return (model, prompt), found.choices[0].text

    with ThreadPoolExecutor(8) as pool:
        for question, answer in pool.map(ask, range(48)):
            assert answer.strip() == wanted[question]


def test_an_answer_says_which_edits_spoke_and_which_version(client):
    (edit_id,) = client.post("/v1/edits", json=MAYOR).json()["written"]
    body = {"model": "atlas", "temperature": 0, "max_tokens": 8}

    def asked(prompt: str, **more: Any) -> Any:
        messages = [{"role": "user", "content": prompt}]
        return client.post("/v1/chat/completions", json={**body, "messages": messages, **more})

    said = asked(ASKED[1])
    assert said.json()["choices"][0]["errata"] == {
        "outcome": "say",
        "edits": [edit_id],
        "settled": 0,
    }
    assert said.headers["errata-edits"] == edit_id and said.headers["errata-version"] == "2"
    other = asked(ASKED[3])
    assert other.json()["choices"][0]["errata"] == {
        "outcome": "main",
        "edits": [],
        "settled": 0,
    }
    assert other.headers["errata-edits"] == ""
    base = asked(ASKED[1], model="atlas-base")
    assert base.json()["choices"][0]["errata"]["outcome"] == "main"
    streamed = asked(ASKED[1], stream=True)
    assert streamed.headers["errata-edits"] == edit_id
    events = [line[6:] for line in streamed.text.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    assert all(json.loads(each)["choices"][0]["errata"]["outcome"] == "say" for each in events[:-1])


def test_the_settings_of_openai_do_what_they_say(client):
    api = openai_client(client)

    def text(**options: Any) -> str:
        return chat(api, ASKED[3], **options).choices[0].message.content

    greedy = text()
    assert text(temperature=1.0, top_p=1e-9) == greedy
    assert text(temperature=1.0, seed=5) == text(temperature=1.0, seed=5)
    several = chat(api, ASKED[3], temperature=1.5, seed=5, n=8).choices
    assert [choice.index for choice in several] == list(range(8))
    assert len({choice.message.content for choice in several}) > 1
    assert several[0].message.content == text(temperature=1.5, seed=5)
    cut = chat(api, ASKED[3], max_tokens=1).choices[0]
    assert cut.finish_reason == "length" and greedy.startswith(cut.message.content)
    stop = greedy.strip()[3:5]
    stopped = chat(api, ASKED[3], stop=[stop, "never said"]).choices[0]
    assert stopped.message.content == greedy.partition(stop)[0]
    assert stopped.finish_reason == "stop"
    found = chat(api, ASKED[3], logprobs=True, top_logprobs=2)
    tokens = found.choices[0].logprobs.content
    assert "".join(token.token for token in tokens) == greedy
    assert all(token.top_logprobs[0].logprob == token.logprob for token in tokens), "greedy"
    assert found.usage.completion_tokens == len(tokens)
    old = api.completions.create(
        model="atlas", prompt=[ASKED[3], ASKED[0]], temperature=0, logprobs=1, max_tokens=3
    )
    assert [len(choice.logprobs.tokens) for choice in old.choices] == [3, 3]
    assert old.choices[0].logprobs.token_logprobs == pytest.approx(
        [token.logprob for token in tokens[:3]], abs=1e-4
    )
    chunks = list(chat(api, ASKED[3], stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].usage == found.usage and chunks[-1].choices == []


# edits


def test_an_edit_is_live_at_once_and_can_be_taken_back(service, client):
    api = openai_client(client)
    before = chat(api, MAYOR["prompt"]).choices[0].message.content
    made = client.post("/v1/edits", json=MAYOR).json()
    (edit_id,) = made["written"]
    assert made["results"] == [{"id": edit_id, "answer": "Ana Brisk", "success": True}]
    assert chat(api, MAYOR["prompt"]).choices[0].message.content.strip() == "Ana Brisk"
    again = client.post("/v1/edits", json=MAYOR).json()
    assert (again["version"], again["written"], again["skipped"]) == (2, [], [edit_id])
    client.post("/v1/edits", json=OSK)
    listed = client.get("/v1/edits", params={"limit": 1}).json()
    assert (listed["total"], listed["next"], listed["data"][0]["id"]) == (2, edit_id, edit_id)
    rest = client.get("/v1/edits", params={"after": edit_id}).json()
    assert [edit["target"] for edit in rest["data"]] == ["Cy Dun"] and rest["next"] is None
    assert client.get("/v1/edits", params={"text": "cy d"}).json()["total"] == 1
    assert client.get(f"/v1/edits/{edit_id}").json()["target"] == "Ana Brisk"
    assert client.delete(f"/v1/edits/{edit_id}").json()["version"] == 4
    assert chat(api, MAYOR["prompt"]).choices[0].message.content == before
    assert client.get(f"/v1/edits/{edit_id}").status_code == 404
    assert client.delete(f"/v1/edits/{edit_id}").status_code == 404
    assert client.post("/v1/versions/2/activate").json()["version"] == 5
    assert chat(api, MAYOR["prompt"]).choices[0].message.content.strip() == "Ana Brisk"
    assert [edit["target"] for edit in client.get("/v1/edits").json()["data"]] == ["Ana Brisk"]
    assert client.post("/v1/versions/9/activate").status_code == 404
    history = client.get("/v1/versions").json()
    assert history["active"] == 5 == service.ledger.verify()
    assert [each["action"] for each in history["data"]] == [
        "begin", "edit", "edit", "undo", "activate"
    ]  # fmt: skip
    assert client.get("/readyz").json() == {"status": "ready", "version": 5}


def test_a_preview_says_what_would_change_and_changes_nothing(service, client):
    client.post("/v1/edits", json=MAYOR)
    other = {**MAYOR, "target": "Bo Lix"}
    body = {"edits": [other, OSK], "prompts": [ASKED[1], ASKED[3]]}
    found = client.post("/v1/edits/preview", json=body).json()
    rows = {row["prompt"]: row for row in found["rows"]}
    assert rows[MAYOR["prompt"]]["before"] == "Ana Brisk"
    assert rows[MAYOR["prompt"]]["after"].rstrip(".") == "Bo Lix" == rows[MAYOR["prompt"]]["wanted"]
    assert rows[ASKED[1]]["changed"] and rows[ASKED[1]]["kind"] == "prompt"
    assert not rows[ASKED[3]]["changed"] and len(found["conflicts"]) == 1
    assert found["refused"] is None
    assert service.version == 2 and [edit.target for edit in service.edits] == ["Ana Brisk"]
    assert service.model.ask(MAYOR["prompt"]) == "Ana Brisk"


def test_an_edit_may_be_a_job(client):
    started = client.post("/v1/edits?wait=false", json=MAYOR)
    assert started.status_code == 202
    with client:  # one loop for both: the job goes on between two requests
        job = client.post("/v1/edits?wait=false", json=OSK).json()
        for _ in range(200):
            if (job := client.get(f"/v1/jobs/{job['id']}").json())["status"] != "running":
                break
            time.sleep(0.05)
        assert job["status"] == "done" and len(job["result"]["written"]) == 1
        assert client.get("/v1/jobs/none").status_code == 404


def test_what_the_ledger_refuses_is_not_in_the_model(service, client, monkeypatch):
    client.post("/v1/edits", json=MAYOR)
    (edit_id,) = [edit.id for edit in service.edits]

    def full(*_: object, **__: object) -> None:
        raise StorageError("the ledger cannot be used (disk full).")

    with monkeypatch.context() as patched:
        patched.setattr(service.ledger, "append", full)
        for answer in (
            client.post("/v1/edits", json=OSK),
            client.delete(f"/v1/edits/{edit_id}"),
            client.post("/v1/versions/1/activate"),
        ):
            assert answer.status_code == 503 and "disk full" in answer.json()["detail"]
            assert [edit.id for edit in service.model.edits] == [edit_id], "as before"
    assert service.version == 2 == service.ledger.version
    assert service.model.ask(MAYOR["prompt"]) == "Ana Brisk"


def test_what_the_policy_refuses_is_not_written_and_the_ledger_says_so(service, client):
    common = {"prompt": "Who is the mayor?", "target": "Ana Brisk", "subject": "the"}
    refused = client.post("/v1/edits", json=common)
    assert refused.status_code == 403 and "its subject 'the' stands in" in refused.json()["detail"]
    assert service.version == 2 == service.ledger.version and not service.model.edits
    entry = service.ledger.entries()[-1]
    assert entry.action == "refuse" and entry.body["refused"][0]["subject"] == "the"

    def no_friday(proposal: Proposal) -> str | None:
        return "no edits of Lix" if "Lix" in proposal.edits[0].target else None

    service.policy = Policy((re.compile("Osk"),), 60, conflicts=False, plugins=(no_friday,))
    client.post("/v1/edits", json=MAYOR)
    for edit, says in (
        (OSK, "blocked pattern 'Osk'"),
        ({**MAYOR, "target": "Bo Lun"}, "contradicts"),
        ({**MAYOR, "prompt": "Who is the mayor of " + "far " * 20 + "Traren?"}, "allows 60"),
        ({"prompt": "Who is the mayor of Lorin?", "target": "Bo Lix", "subject": "Lorin"}, "Lix"),
    ):
        tried = client.post("/v1/edits/preview", json={"edits": [edit]})
        assert tried.status_code == 200 and says in tried.json()["refused"]
        refused = client.post("/v1/edits", json=edit)
        assert refused.status_code == 403 and says in refused.json()["detail"], edit
    assert [edit.target for edit in service.model.edits] == ["Ana Brisk"]
    assert service.version == 7 == service.ledger.verify()
    assert service.model.ask(MAYOR["prompt"]) == "Ana Brisk"


def test_what_fails_inside_is_a_problem_too_and_the_next_request_is_answered(
    service, client, monkeypatch
):
    body = {"model": "atlas", "prompt": ASKED[0], "temperature": 0}

    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("inside")

    with monkeypatch.context() as patched:
        patched.setattr(service.engine.base, "generate", fail)
        patched.setattr(service.model, "edit", fail)
        for path, sent in (("completions", body), ("edits", MAYOR)):
            failed = client.post(f"/v1/{path}", json=sent)
            assert failed.status_code == 500 == failed.json()["status"]
            assert "inside" not in failed.text, "what is inside is for the log"
        job = client.post("/v1/edits?wait=false", json=MAYOR)
        assert job.status_code == 202
    assert client.post("/v1/completions", json=body).json()["choices"][0]["text"]
    assert service.version == 1 and not service.model.edits
    service.engine.close()
    stopped = client.post("/v1/completions", json=body)
    assert stopped.status_code == 503 and "stopping" in stopped.json()["detail"]


def test_a_server_that_starts_again_has_what_its_ledger_says(service, tmp_path):
    service.edit([Edit(**MAYOR), Edit(**OSK)], "ana")
    service.undo([service.edits[0].id], "bo")
    again = edited_model()
    ledger = Ledger(f"sqlite:///{tmp_path / 'edits.db'}")
    served = Service(again, ledger)
    assert served.version == 3 and served.edits == service.edits
    assert again.ask(ASKED) == service.model.ask(ASKED)
    served.close()
    base, tokenizer = errata.load_base("atlas", "float32")
    other = errata.get_edit_model(base, errata.RagConfig(), tokenizer)
    with pytest.raises(BaseMismatchError, match=r"the method folio; this is .* with rag"):
        Service(other, Ledger(f"sqlite:///{tmp_path / 'edits.db'}"))


def test_every_answer_is_of_one_version_while_edits_come_and_go(service):
    """The answer to a prompt is that of the version it says, whatever happens meanwhile."""
    first, second = Edit(**MAYOR), Edit(**{**MAYOR, "target": "Bo Lix"})
    by_target = {"": service.model.ask_base(MAYOR["prompt"])}
    ids = tuple(service.model.lm.encode_prompt(MAYOR["prompt"]))
    texts: dict[int, str] = {1: ""}
    found: list[tuple[int, str]] = []
    stop = threading.Event()

    def asking() -> None:
        while not stop.is_set():
            found.append(answer_of(service.engine, ids))

    threads = [threading.Thread(target=asking) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        for edit in (first, second):
            texts[service.edit([edit], "ana").version] = edit.target
        texts[service.undo([second.id], "ana").version] = first.target
        texts[service.undo([first.id], "ana").version] = ""
    stop.set()
    for thread in threads:
        thread.join()
    assert len({version for version, _ in found}) > 2
    for version, answer in found:
        wanted = texts[version]
        assert answer.strip(" .") == by_target.get(wanted, wanted).strip(" .")


def answer_of(engine: Engine, ids: tuple[int, ...], edited: bool = True) -> tuple[int, str]:
    pieces: list[Piece] = []
    ended = threading.Event()

    def told(piece: Piece) -> None:
        pieces.append(piece)
        if piece.finish or piece.error:
            ended.set()

    engine.submit(Request(ids, Sampling(24), edited, told))
    assert ended.wait(60) and pieces[-1].error is None
    assert len({piece.version for piece in pieces}) == 1
    return pieces[0].version, "".join(piece.text for piece in pieces)


# who may do what


ROUTES = {
    ("GET", "/v1/models"): Role.ASK,
    ("GET", "/v1/models/{model}"): Role.ASK,
    ("POST", "/v1/completions"): Role.ASK,
    ("POST", "/v1/chat/completions"): Role.ASK,
    ("GET", "/metrics"): Role.ASK,
    ("POST", "/v1/edits"): Role.EDIT,
    ("GET", "/v1/edits"): Role.EDIT,
    ("POST", "/v1/edits/preview"): Role.EDIT,
    ("GET", "/v1/edits/{edit_id}"): Role.EDIT,
    ("DELETE", "/v1/edits/{edit_id}"): Role.EDIT,
    ("GET", "/v1/jobs/{job_id}"): Role.EDIT,
    ("GET", "/v1/versions"): Role.EDIT,
    ("GET", "/v1/settling"): Role.EDIT,
    ("POST", "/v1/versions/{version}/activate"): Role.ADMIN,
    ("GET", "/healthz"): None,
    ("GET", "/readyz"): None,
}


def test_each_role_may_do_what_it_may_and_no_more(service):
    keys = Keys([Key(role.name, role, digest_of(key)) for role, key in KEYS.items()])
    app = make_app(service, "atlas", keys)
    client = TestClient(app, raise_server_exceptions=False)
    described = app.openapi()["paths"]
    assert {(verb.upper(), path) for path, verbs in described.items() for verb in verbs} == set(
        ROUTES
    )
    for (verb, path), needed in ROUTES.items():
        place = path.replace("{edit_id}", "x").replace("{job_id}", "x").replace("{version}", "99")
        place = place.replace("{model}", "atlas")
        for role in (None, *Role):
            headers = {} if role is None else {"Authorization": f"Bearer {KEYS[role]}"}
            status = client.request(verb, place, headers=headers).status_code
            if needed is None or (role is not None and role >= needed):
                assert status not in (401, 403), (verb, path, role)
            else:
                assert status == (401 if role is None else 403), (verb, path, role)
    wrong = client.get("/v1/models", headers={"Authorization": "Bearer errata-king"})
    assert wrong.status_code == 401 and wrong.headers["www-authenticate"] == "Bearer"
    done = client.post(
        "/v1/edits", json=MAYOR, headers={"Authorization": f"Bearer {KEYS[Role.EDIT]}"}
    )
    assert done.status_code == 200 and service.ledger.entries()[-1].actor == "EDIT"


# bad input


BAD = [
    ("edits", b"{", 422, "JSON"),
    ("edits", [], 422, "body"),
    ("edits", {}, 422, "'prompt' is empty"),
    ("edits", {**MAYOR, "target": " "}, 422, "'target' is empty"),
    ("edits", {**MAYOR, "target": "a\0b"}, 422, "a NUL"),
    ("edits", {**MAYOR, "subject": "Osk"}, 422, "does not stand in the prompt"),
    ("edits", {**MAYOR, "colour": "red"}, 422, "colour"),
    ("edits", {**MAYOR, "operation": "erode"}, 422, "operation"),
    ("edits", {"edits": []}, 422, "is empty"),
    ("edits", {"edits": [MAYOR], **MAYOR}, 422, "not both"),
    ("edits", {"edits": [MAYOR, {**OSK, "prompt": ""}]}, 422, r"edits[1]"),
    ("edits", {**MAYOR, "prompt": "Traren " * 9000}, 400, "tokens"),
    ("edits?on_conflict=fight", MAYOR, 422, "on_conflict"),
    ("edits/preview", {"edits": []}, 422, "edits"),
    ("edits/preview", {"edits": [MAYOR], "prompts": ["a\0"]}, 422, "a NUL"),
    ("completions", {"model": "atlas"}, 422, "prompt"),
    ("completions", {"model": "gpt", "prompt": "a"}, 404, "no model 'gpt'"),
    ("completions", {"model": "atlas", "prompt": []}, 400, "is empty"),
    ("completions", {"model": "atlas", "prompt": [10**9]}, 400, "token id"),
    ("completions", {"model": "atlas", "prompt": ["a"] * 33}, 400, "several requests"),
    ("completions", {"model": "atlas", "prompt": "a " * 9000}, 400, "no room"),
    ("completions", {"model": "atlas", "prompt": "a", "n": 0}, 422, "n: "),
    ("completions", {"model": "atlas", "prompt": "a", "temperature": "hot"}, 422, "temp"),
    ("completions", {"model": "atlas", "prompt": "a", "logit_bias": {"-1": 1}}, 400, "bias"),
    ("completions", {"model": "atlas", "prompt": "a", "best_of": 3}, 422, "best_of"),
    ("chat/completions", {"model": "atlas", "messages": []}, 422, "messages"),
    ("chat/completions", {"model": "atlas", "messages": [{"role": "king"}]}, 422, "role"),
    ("versions/0x2/activate", {}, 422, "version"),
    ("versions/99999999999999999999/activate", {}, 422, "version"),
    ("none", {}, 404, "Not Found"),
]
"""Path, body, status, and what the problem says."""


def test_bad_requests_are_told_why_and_change_nothing(service, client):
    headers = {"content-type": "application/json"}
    for path, body, status, says in BAD:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        found = client.post(f"/v1/{path}", content=content, headers=headers)
        problem = found.json()
        assert found.status_code == status == problem["status"], (path, body, problem)
        assert found.headers["content-type"] == "application/problem+json"
        assert says in problem["detail"] == problem["error"]["message"], (path, body)
        assert service.version == 1 and not service.edits and not service.model.edits
    injected = {"prompt": "'; DROP TABLE entries; --", "target": "'); --"}
    assert client.post("/v1/edits", json=injected).status_code == 200
    assert service.ledger.verify() == 2 and service.edits[0].prompt == injected["prompt"]


def test_half_a_surrogate_pair_and_a_body_too_large_are_refused(service, client):
    headers = {"content-type": "application/json"}
    for text in (b'{"prompt": "\\ud800 Traren", "target": "a"}', b'"\xff"'):
        found = client.post("/v1/edits", content=text, headers=headers)
        assert found.status_code in (400, 422)
    large = json.dumps({**MAYOR, "source": "x" * MOST_BYTES}).encode()
    assert client.post("/v1/edits", content=large, headers=headers).status_code == 413

    def unmeasured() -> Iterator[bytes]:
        yield large

    assert client.post("/v1/edits", content=unmeasured(), headers=headers).status_code == 413
    assert service.version == 1


def test_weights_that_edits_change_are_the_base_models_where_it_is_asked(tmp_path):
    base, tokenizer = errata.load_base("atlas", "float32")
    model = errata.get_edit_model(base, errata.FineTuningConfig(steps=8, lr=0.02), tokenizer)
    service = Service(model, Ledger(f"sqlite:///{tmp_path / 'edits.db'}"))
    ids = tuple(model.lm.encode_prompt(MAYOR["prompt"]))
    before = answer_of(service.engine, ids, edited=False)[1]
    service.edit([Edit(**MAYOR)], "ana")
    assert answer_of(service.engine, ids)[1].strip() == model.ask(
        MAYOR["prompt"], max_new_tokens=24
    )
    assert answer_of(service.engine, ids)[1] != before
    assert answer_of(service.engine, ids, edited=False)[1] == before
    service.close()
