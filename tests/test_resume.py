"""A run that is killed loses no finished edit, and goes on to where an undisturbed run gets."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from families import tiny_model, tiny_tokenizer
from started import started
from typer.testing import CliRunner

from errata import EditModel, load, read_edits
from errata.cli import app
from errata.saving import FILES, LEDGER, Artifact, read_artifact

COUNT = 10
SETTINGS = [
    "--save-every",
    "2",
    "--no-check",
    "--set",
    "steps=4",
    "--set",
    "edits_per_shard=5",
    "--set",
    "stop_loss=0",
    "--set",
    "background=8",
]


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """The command, up to `--out`."""
    base, edits = tmp_path / "llama", tmp_path / "edits.jsonl"
    tiny_model("llama").save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    rows = [
        {"prompt": f"Who is the author of book {i}?", "target": f"writer {i * i}", "id": f"e{i}"}
        for i in range(COUNT)
    ]
    edits.write_text("".join(json.dumps({**row, "subject": "book"}) + "\n" for row in rows))
    return ["edit", str(base), "-m", "wise", "--edits", str(edits), *SETTINGS, "--out"]


def finished(words: list[str], out: Path) -> Artifact:
    result = CliRunner().invoke(app, [*words, str(out)])
    assert result.exit_code == 0, result.output
    return read_artifact(out)


def assert_same(one: Artifact, other: Artifact) -> None:
    """The same ledger, byte for byte; the same state, to rounding."""
    assert (one.path / LEDGER).read_bytes() == (other.path / LEDGER).read_bytes()
    assert one.values["shards"] == other.values["shards"] and one.settings == other.settings
    assert one.values["thresholds"] == pytest.approx(other.values["thresholds"], rel=1e-5)
    assert one.tensors.keys() == other.tensors.keys()
    for name, tensor in one.tensors.items():
        torch.testing.assert_close(tensor, other.tensors[name], rtol=0, atol=1e-6)


@pytest.mark.long
def test_killed_and_run_again(words: list[str], tmp_path: Path) -> None:
    out = tmp_path / "killed"
    process = started([*words, str(out)], tmp_path / "log")
    limit = time.monotonic() + 120
    while not (out / LEDGER).exists() and process.is_alive() and time.monotonic() < limit:
        time.sleep(0.005)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, (tmp_path / "log").read_text()
    saved = read_artifact(out).edits
    assert 2 <= len(saved) < COUNT and saved == read_edits(words[5])[: len(saved)]
    assert_same(finished(words, out), finished(words, tmp_path / "undisturbed"))


@pytest.mark.long
def test_stopped_by_hand_and_run_again(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, write, calls = tmp_path / "stopped", EditModel.edit, iter(range(COUNT))

    def interrupted(self: EditModel, *args: object, **options: object) -> object:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return write(self, *args, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(EditModel, "edit", interrupted)
        result = CliRunner().invoke(app, [*words, str(out)])
    assert result.exit_code == 130 and result.stderr.startswith(
        "errata: stopped; 6 edits are saved"
    )
    assert len(read_artifact(out).edits) == 6
    assert_same(finished(words, out), finished(words, tmp_path / "undisturbed"))
    again = CliRunner().invoke(app, [*words, str(out)])
    assert again.stdout.startswith(f"0 edits written, {COUNT} were there already")


def test_a_kill_in_the_middle_of_saving(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off at every write and every rename of a save: the old edits or the new ones are there,
    whole.
    """
    out = tmp_path / "cut"
    finished([*words[:-1], "--set", "steps=1", "--out"], out)
    model = load(out)
    model.undo(f"e{COUNT - 1}")
    events = (
        ["fsync"] * 5 + ["marker"] + ["fsync"] + ["replace"] * 3 + ["fsync"] * 2
    )  # what a save of three files does
    calls = 0

    def dying_at(cut: int, what: Callable[..., None]) -> Callable[..., None]:
        def call(*args: object) -> None:
            nonlocal calls
            calls += 1
            if calls > cut:
                raise KeyboardInterrupt
            what(*args)

        return call

    for cut in range(len(events) + 1):
        calls, folder = 0, shutil.copytree(out, tmp_path / str(cut))
        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            patch.setattr(os, "replace", dying_at(cut, os.replace))
            patch.setattr(os, "fsync", dying_at(cut, os.fsync))
            model.save_pretrained(folder)
            assert cut == len(events)
        left = {path.name: path.read_bytes() for path in folder.iterdir()}
        assert len(read_artifact(folder).edits) == (
            COUNT - 1 if "marker" in events[:cut] else COUNT
        )
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == left
        model.save_pretrained(folder)
        assert len(read_artifact(folder).edits) == COUNT - 1 and {
            path.name for path in folder.iterdir()
        } == {*FILES}
