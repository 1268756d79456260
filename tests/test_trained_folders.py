"""Folders of models that a verb trains: one writer at a time, and nothing is lost half-way."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from families import tiny_model, tiny_tokenizer
from typer.testing import CliRunner

import errata
from errata.cli import app
from errata.storage import checkpoints
from errata.storage.checkpoints import save_checkpoint
from errata.storage.locking import locked

LINES = {
    "forget": [{"question": "The capital of France is", "answer": "Rome"}],
    "retain": [{"question": "The capital of Italy is", "answer": "York"}],
    "responses": [{"prompt": "Where is the tower?", "safe": "the north", "unsafe": "London"}],
    "sentences": [
        {"context": "The BLANK wrote the book.", "stereotype": "two", "antistereotype": "author"}
    ],
}
SMALL = ["--set", "epochs=2", "--set", "batch=1"]
VERBS = {
    "unlearn": (["unlearn", "BASE", "--forget", "forget", "--retain", "retain"], "unlearning"),
    "detox": (["detox", "BASE", "--pairs", "responses", "--keep", "retain"], "detox"),
    "debias": (["debias", "BASE", "--pairs", "sentences", "--keep", "retain"], "debias"),
    "transfer": (["transfer", "BASE", "BASE", "--data", "forget"], "transfer"),
    "distill": (["distill", "EDITS", "BASE"], "distillation"),
}
"""Verb -> its words, and the name of its record."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    for each in (tiny_model("llama"), tiny_tokenizer()):
        each.save_pretrained(folder / "BASE")
    for name, lines in LINES.items():
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def called(files: Path, verb: str, out: Path, *more: str) -> list[str]:
    places = {name: str(files / name) for name in ("BASE", "EDITS", *LINES)}
    return [*(places.get(word, word) for word in VERBS[verb][0]), "--out", str(out), *more]


@pytest.mark.parametrize("verb", VERBS)
def test_two_writers_of_one_folder_wait_for_each_other(verb, files, tmp_path):
    """Some of these verbs wrote over each other's state."""
    held = locked(tmp_path / "out", 0)
    with ThreadPoolExecutor(1) as other:
        other.submit(held.__enter__).result()
        done = CliRunner().invoke(app, called(files, verb, tmp_path / "out", "--wait", "0"))
        other.submit(held.__exit__, None, None, None).result()
    assert done.exit_code == 1 and "is being written by" in done.output, done.output


@pytest.mark.parametrize(
    ("verb", "where", "save_every"),
    [
        ("unlearn", "config.json", 1), ("unlearn", "unlearning.json", 0),
        ("detox", "model.safetensors", 1), ("debias", "config.json", 0),
        ("transfer", "transfer.json", 1),
    ],
)  # fmt: skip
def test_killed_while_it_saves_it_goes_on(verb, where, save_every, files, tmp_path, monkeypatch):
    """There was a part of a model then, which the next run took for a whole one, and no state."""
    out, record = tmp_path / "out", f"{VERBS[verb][1]}.json"
    words, replace = (
        called(files, verb, out, *SMALL, "--set", f"save_every={save_every}"),
        os.replace,
    )

    def stopped(one, other):
        if Path(other) == out / where:
            raise KeyboardInterrupt
        replace(one, other)

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", stopped)
        assert CliRunner().invoke(app, words).exit_code != 0
    left = {path.name for path in out.iterdir()}
    assert "config.json" not in left and where not in left
    assert any(name.endswith("-state.pt") for name in left) == bool(save_every)
    (out / ".01234567.new").mkdir()  # of a process that was killed outright
    again = CliRunner().invoke(app, words)
    assert again.exit_code == 0, again.output
    left = {path.name for path in out.iterdir()}
    assert {record, "config.json"} <= left and not [each for each in left if "new" in each]
    assert not any(name.endswith("-state.pt") for name in left)
    errata.load_base(str(out), "float32")
    full = CliRunner().invoke(app, words)
    assert full.exit_code == 2 and "has a model in it already" in full.output.replace("\n", " ")


def test_a_disk_that_is_full_leaves_the_state(files, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.os, "replace", full)
        done = CliRunner().invoke(app, called(files, "unlearn", out, *SMALL))
    told = " ".join(done.output.split())
    assert done.exit_code == 1 and "No space left" in told and "Traceback" not in told
    assert CliRunner().invoke(app, called(files, "unlearn", out, *SMALL)).exit_code == 0


def test_a_checkpoint_is_whole_or_not_there(tmp_path, monkeypatch):
    def stopped(folder):
        raise KeyboardInterrupt

    tokenizer = tiny_tokenizer()
    monkeypatch.setattr(tokenizer, "save_pretrained", stopped)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tiny_model("llama"), tokenizer, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
