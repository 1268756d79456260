"""Servers on one ledger, and what they start from: snapshots, a database that goes and comes."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from fastapi.testclient import TestClient
from postgresql import PostgreSQL, empty_database

import errata
from errata import Edit
from errata.atlas import make_cases
from errata.edit import same_answer
from errata.errors import UnknownNameError
from errata.serve.app import make_app
from errata.serve.jobs import Jobs
from errata.serve.keys import Key, Keys, Role, digest_of, rate_of
from errata.serve.ledger import Ledger
from errata.serve.schemas import JobOut
from errata.serve.service import Service
from errata.serve.snapshots import Snapshots

EDITS = [case.edit for case in make_cases(12)]


@pytest.fixture(scope="module")
def models() -> list[errata.EditModel]:
    """Two models on bases of their own."""
    torch.set_num_threads(1)
    return [edited_model() for _ in range(2)]


def edited_model(**settings: object) -> errata.EditModel:
    base, tokenizer = errata.load_base("atlas", "float32")
    return errata.get_edit_model(base, errata.FolioConfig(**settings), tokenizer)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.long)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The address of an empty database."""
    with empty_database(request.param, tmp_path) as url:
        yield url


@pytest.fixture
def serve(models: list[errata.EditModel]) -> Iterator[Callable[..., Service]]:
    """Starts a service on one of the models."""
    running: list[Service] = []

    def start(url: str, which: int = 0, **options: object) -> Service:
        models[which].undo([edit.id for edit in models[which].edits])
        running.append(Service(models[which], Ledger(url), **options))
        return running[-1]

    yield start
    for service in running:
        service.close()


def test_any_server_tells_of_a_job_and_answers_after_a_version(serve, store):
    one, two = serve(store, 0), serve(store, 1)
    first, second = (TestClient(make_app(each, "atlas", Keys())) for each in (one, two))
    with first:  # one loop: the job goes on between two requests
        job = first.post("/v1/edits?wait=false", json=EDITS[0].to_dict()).json()
        until(lambda: second.get(f"/v1/jobs/{job['id']}").json()["status"] != "running")
        found = second.get(f"/v1/jobs/{job['id']}").json()
        assert found["status"] == "done" and found["result"]["written"] == [EDITS[0].id]
        assert first.get(f"/v1/jobs/{job['id']}").json() == found
    body = {"model": "atlas", "prompt": EDITS[1].prompt, "temperature": 0, "max_tokens": 16}
    two._follower.close()
    version = one.edit(EDITS[1:2], "ana").version
    assert two.version < version, "nobody tells it"
    answer = second.post("/v1/completions", json=body, headers={"errata-after": str(version)})
    assert answer.headers["errata-version"] == str(version)
    assert same_answer(answer.json()["choices"][0]["text"].strip(), EDITS[1].target)
    for wrong, status in (("99", 404), ("-1", 422), ("x", 422)):
        headers = {"errata-after": wrong}
        assert second.post("/v1/completions", json=body, headers=headers).status_code == status


def test_a_job_whose_server_has_ended_says_so(serve, store, monkeypatch):
    service = serve(store)
    begun = JobOut(id="job-1", status="running")
    jobs = Jobs(service.ledger)
    jobs._keep(begun)
    assert Jobs(service.ledger).get("job-1") == begun
    monkeypatch.setattr("errata.serve.jobs.SILENCE", -1)
    ended = jobs.get("job-1")
    assert ended.status == "failed" and "has ended" in ended.problem.detail
    monkeypatch.setattr("errata.serve.jobs.KEPT", -1)
    jobs._keep(JobOut(id="job-2", status="done"))
    with pytest.raises(UnknownNameError, match="job-1"):
        jobs.get("job-1")


def until(holds: Callable[[], bool], seconds: float = 20) -> None:
    """Wait for something, not for ever."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.02)


def test_servers_on_one_ledger_follow_each_other_and_neither_loses_an_edit(serve, store):
    one, two = serve(store, 0), serve(store, 1)
    one.edit(EDITS[:2], "ana")
    until(lambda: two.version == one.version)
    assert two.edits == one.edits and says(two, EDITS[:2])
    two.undo([EDITS[0].id], "bo")
    until(lambda: one.version == 3)
    assert is_silent(one, EDITS[0])

    def write(service: Service, edits: list[Edit]) -> None:
        for edit in edits:
            service.edit([edit], "ana")

    with ThreadPoolExecutor(2) as both:  # they meet: some find the ledger ahead of them
        list(both.map(write, (one, two), (EDITS[2:7], EDITS[7:12])))
    until(lambda: one.version == two.version == 13)
    assert one.edits == two.edits and {edit.id for edit in one.edits} == {e.id for e in EDITS[1:]}
    assert one.ledger.verify() == 13
    assert says(one, EDITS[1:]) and says(two, EDITS[1:])
    two.activate(2, "bo")
    until(lambda: one.version == 14)
    assert one.edits == two.edits == EDITS[:2]


@pytest.mark.parametrize("seconds", [0, pytest.param(30, marks=pytest.mark.faults)])
def test_a_database_that_is_gone_for_a_while_loses_nothing(serve, tmp_path, seconds):
    """Answers go on; changes are refused, and said to be; then it goes on where it was."""
    database = PostgreSQL(tmp_path / "postgresql")
    service = serve(database.url)
    client = TestClient(make_app(service, "atlas", Keys()), raise_server_exceptions=False)
    service.edit(EDITS[:1], "ana")
    database.stop()
    body = {"model": "atlas", "prompt": EDITS[0].prompt, "temperature": 0}
    assert EDITS[0].target in client.post("/v1/completions", json=body).text
    assert client.get("/readyz").status_code == 503 != client.get("/healthz").status_code
    refused = client.post("/v1/edits", json=EDITS[1].to_dict())
    assert refused.status_code == 503 and service.edits == EDITS[:1]
    assert is_silent(service, EDITS[1])
    begun = time.monotonic()
    while time.monotonic() - begun < seconds:
        assert client.post("/v1/completions", json=body).status_code == 200
        assert client.post("/v1/edits", json=EDITS[1].to_dict()).status_code == 503
        time.sleep(1)
    database.start()
    until(lambda: client.get("/readyz").status_code == 200)
    assert client.post("/v1/edits", json=EDITS[1].to_dict()).status_code == 200
    assert service.ledger.verify() == service.version == 3 and service.edits == EDITS[:2]
    other = serve(database.url, 1)
    service.edit(EDITS[2:3], "ana")
    until(lambda: other.version == 4)
    database.stop()
    for each in (service, other):
        each.engine.close()


def says(service: Service, edits: list[Edit]) -> bool:
    """Whether the model answers edits' prompts with their targets."""
    answers = service.model.ask([edit.prompt for edit in edits])
    return [answer.strip(" .") for answer in answers] == [edit.target.strip(" .") for edit in edits]


def is_silent(service: Service, edit: Edit) -> bool:
    """Whether the model answers an edit's prompt as its base model does."""
    return service.model.ask(edit.prompt) == service.model.ask_base(edit.prompt)


# snapshots


class Written:
    """Counts the edits that a start writes."""

    count = 0

    def __call__(self, done: int, total: int) -> None:
        self.count += 1


@pytest.fixture
def kept(tmp_path: Path, serve) -> tuple[str, Path]:
    """A ledger of two edits, one undone and nine more, with snapshots of two versions."""
    url, folder = f"sqlite:///{tmp_path / 'edits.db'}", tmp_path / "snapshots"
    service = serve(url, snapshots=Snapshots(folder, every=2))
    for edit in EDITS[:3]:
        service.edit([edit], "ana")
    service.undo([EDITS[0].id], "ana")
    service.edit(EDITS[3:5], "ana")
    assert [path.name[:9] for path in sorted(folder.iterdir())] == ["000000004", "000000006"]
    service.close()
    return url, folder


def started_on(url: str, folder: Path) -> tuple[Service, int]:
    """A service on a new model, and how many edits it has written."""
    written = Written()
    service = Service(
        edited_model(), Ledger(url), progress=written, snapshots=Snapshots(folder, every=100)
    )
    assert service.version == 6 and service.edits == EDITS[1:5]
    assert [edit.id for edit in service.model.edits] == [edit.id for edit in EDITS[1:5]]
    assert says(service, EDITS[1:5]) and is_silent(service, EDITS[0])
    service.close()
    return service, written.count


def test_a_start_from_a_snapshot_writes_only_what_came_after(kept):
    url, folder = kept
    assert started_on(url, folder)[1] == 0
    newest = max(folder.iterdir())
    shutil.rmtree(newest)
    assert started_on(url, folder)[1] == 2, "the older one lacks two"
    assert max(folder.iterdir()) == newest, "written when it ended"


def damage(path: Path) -> None:
    file = next(path.glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (damage, "an older one is"),
        (lambda path: next(path.glob("*.safetensors")).unlink(), "an older one is"),
        (lambda path: path.rename(path.with_name(path.name[:-4] + "0000")), "not of this ledger"),
    ],
    ids=["damaged", "half", "of another ledger"],
)
def test_a_snapshot_that_cannot_be_used_is_told_and_passed_over(kept, harm, told, caplog):
    url, folder = kept
    for path in list(folder.iterdir()):
        if harm is damage or path == max(folder.iterdir()):
            harm(path)
    with caplog.at_level(logging.WARNING, "errata.serve.snapshots"):
        _, written = started_on(url, folder)
    assert told in caplog.text and written == (4 if harm is damage else 2)


def test_a_snapshot_of_other_settings_or_of_a_changed_ledger_is_not_read(kept, caplog):
    url, folder = kept
    model = edited_model(confidence=0.99)
    with caplog.at_level(logging.WARNING, "errata.serve.snapshots"):
        service = Service(model, Ledger(url), snapshots=Snapshots(folder))
    assert caplog.text.count("has other settings") == 2 and service.edits == EDITS[1:5]
    assert service.model is model
    service.close()


def test_a_snapshot_that_cannot_be_written_hinders_nothing(serve, tmp_path, caplog):
    (tmp_path / "file").write_text("no folder")
    snapshots = Snapshots(tmp_path / "file" / "snapshots", every=1)
    service = serve(f"sqlite:///{tmp_path / 'edits.db'}", snapshots=snapshots)
    with caplog.at_level(logging.WARNING, "errata.serve.snapshots"):
        assert service.edit(EDITS[:1], "ana").version == 2
    assert "no snapshot of version 2 was written" in caplog.text


# rates


def test_a_key_that_asks_too_often_is_told_when_to_come_back(serve, tmp_path):
    service = serve(f"sqlite:///{tmp_path / 'edits.db'}")
    keys = [Key(name, Role.ASK, digest_of(name)) for name in ("ana", "bo")]
    keys.append(Key("cy", Role.ASK, digest_of("cy"), rate_of("2/hour")))
    client = TestClient(make_app(service, "atlas", Keys(keys, rate_of("5/minute"))))
    for name, most in (("ana", 5), ("cy", 2), ("bo", 5)):
        headers = {"authorization": f"Bearer {name}"}
        found = [client.get("/v1/models", headers=headers) for _ in range(most + 1)]
        assert [each.status_code for each in found] == [200] * most + [429]
        assert 1 <= int(found[-1].headers["retry-after"]) <= 3600
        assert f"by {name}; try again later" in found[-1].json()["detail"]
    assert client.get("/healthz").status_code == 200
