"""Many processes at one folder: readers see one generation, writers wait and lose nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from edited import EDITS, edit_model, edited_model, logits_of
from families import tiny_model, tiny_tokenizer
from started import started
from typer.testing import CliRunner

from errata import EditModel, saving
from errata.cli import app
from errata.errors import FolderBusyError, StorageError, UsageError
from errata.saving import snapshot, transaction
from errata.storage import cache
from errata.storage.files import folder_named
from errata.storage.locking import LOCK, locked

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

HOLDER = "import sys, time; from pathlib import Path; from errata.storage.locking import locked\nwith locked(Path(sys.argv[1])):\n print(1, flush=True); time.sleep(100)"  # noqa: E501


def loaded(path):
    return EditModel.from_pretrained(tiny_model("llama"), path, tiny_tokenizer())


def contents(path):
    return {
        file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in sorted(path.iterdir())
    }


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes") / "saved"
    edited_model("llama", "folio", EDITS[:4], edits_per_file=2).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "a")


@pytest.fixture
def holder(folder):
    """Another process that writes into the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True
    )
    process.stdout.readline()
    yield process
    process.kill()
    process.wait()


# readers


def test_a_reader_of_what_is_being_written_touches_nothing(folder, monkeypatch):
    """It met the writer's files half-written and 'finished' them, or removed them, while the writer
    was at it.
    """
    model = loaded(folder)
    model.undo(EDITS[0].id)
    seen = []

    def reading(path, content, write=transaction.write_new):
        write(path, content)
        before = contents(folder)
        seen.append(len(saving.read_artifact(folder).edits))
        assert contents(folder) == before

    def moving(one, other, move=os.replace):
        move(one, other)
        before = contents(folder)
        seen.append(len(saving.read_artifact(folder).edits))
        assert contents(folder) == before

    monkeypatch.setattr(transaction, "write_new", reading)
    monkeypatch.setattr(os, "replace", moving)
    model.save_pretrained(folder)
    assert set(seen[:4]) == {4} and set(seen[5:]) == {3} and len(seen) > 8


def test_a_folder_that_cannot_be_written_can_be_read(folder, monkeypatch):
    """Also one in which a write was cut off when it was complete."""
    model = loaded(folder)
    model.undo(EDITS[0].id)
    monkeypatch.setattr(transaction, "finish", lambda folder: None)
    model.save_pretrained(folder)
    monkeypatch.undo()
    assert (folder / saving.COMPLETE).exists()

    def refuse(*args, **options):
        raise OSError(30, "Read-only file system")

    for name in ("replace", "unlink", "rename", "mkdir", "rmdir"):
        monkeypatch.setattr(os, name, refuse)
    openers = os.open
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT
    monkeypatch.setattr(
        os,
        "open",
        lambda path, flags, *more: refuse() if flags & writing else openers(path, flags, *more),
    )
    again = loaded(folder)
    assert (
        torch.equal(logits_of(again, again.lm), logits_of(model, model.lm))
        and again.edits == EDITS[1:4]
    )
    with pytest.raises(StorageError, match="Read-only file system"):
        again.save_pretrained(folder)


def test_a_part_that_is_replaced_between_checksum_and_mapping_is_not_mixed_in(folder, monkeypatch):
    writer, calls = loaded(folder), iter(range(100))

    def replaced(path, read=snapshot.map_safetensors):
        if next(calls) == 0:
            writer.undo(EDITS[0].id)
            writer.save_pretrained(folder)
        return read(path)

    monkeypatch.setattr(snapshot, "map_safetensors", replaced)
    model = loaded(folder)
    assert model.edits == EDITS[1:4] and torch.equal(
        logits_of(model, model.lm), logits_of(writer, writer.lm)
    )


def test_a_reader_gives_up_in_one_line_when_the_folder_never_stands_still(folder, monkeypatch):
    def replaced(path, read=snapshot.map_safetensors):
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)
        return read(path)

    monkeypatch.setattr(snapshot, "map_safetensors", replaced)
    monkeypatch.setattr(snapshot, "PAUSE", 0)
    with pytest.raises(FolderBusyError, match="was written anew 40 times while it was read"):
        loaded(folder)


# writers


def test_two_models_of_one_folder_the_second_is_refused_and_nothing_is_lost(folder):
    one, other = loaded(folder), loaded(folder)
    one.edit(EDITS[4:5], check=False)
    one.save_pretrained(folder)
    other.edit(EDITS[5:], check=False)
    with pytest.raises(
        FolderBusyError,
        match=r"others have written there since .* \(5 edits are there now\); load it again",
    ):
        other.save_pretrained(folder)
    assert loaded(folder).edits == EDITS[:5]
    again = loaded(folder)
    again.edit(EDITS[5:], check=False)
    again.save_pretrained(folder)
    assert loaded(folder).edits == EDITS
    other.save_pretrained(folder, overwrite=True)
    assert loaded(folder).edits == [*EDITS[:4], EDITS[5]]


def test_what_another_took_back_does_not_return(folder):
    """The ledger that is there is the beginning of the model's own, and still it is not what the
    model came from.
    """
    one, other = loaded(folder), loaded(folder)
    one.undo(EDITS[3].id)
    one.save_pretrained(folder)
    other.edit(EDITS[4:], check=False)
    with pytest.raises(FolderBusyError, match="others have written there"):
        other.save_pretrained(folder)
    assert loaded(folder).edits == EDITS[:3]


def test_other_edits_are_not_overwritten_unasked(folder, tmp_path):
    before = contents(folder)
    for other in (
        edited_model("llama", "ft", EDITS[:1]),
        edited_model("llama", "folio", EDITS[:4], edits_per_file=3),
    ):
        with pytest.raises(
            UsageError, match=r"holds 4 edits \(folio\) that this model did not come from"
        ):
            other.save_pretrained(folder)
    assert contents(folder) == before
    same = edit_model(
        "llama", "folio", EDITS, edits_per_file=2
    )  # made anew, by the same program, and more of it
    same.save_pretrained(folder)
    assert loaded(folder).edits == EDITS
    same.undo(EDITS[0].id)
    same.save_pretrained(folder)
    same.save_pretrained(tmp_path / "elsewhere")
    same.edit(EDITS[:1], check=False)
    same.save_pretrained(folder)
    assert len(loaded(folder).edits) == 6 and len(loaded(tmp_path / "elsewhere").edits) == 5


def test_files_that_are_somebody_elses_stay(folder, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "edits.jsonl").write_text("what the person wrote")
    with pytest.raises(
        StorageError, match=r"mine/edits.jsonl: is no part of what is saved here, and in the way"
    ):
        edited_model("llama", "ft", EDITS[:1]).save_pretrained(mine)
    (folder / "folio-00002.safetensors").write_bytes(b"mine")
    (folder / "model.safetensors.new").write_bytes(b"mine too")
    model = loaded(folder)
    before = contents(folder)
    model.edit(EDITS[4:5], check=False)
    with pytest.raises(StorageError, match=r"folio-00002.safetensors: is no part"):
        model.save_pretrained(folder)
    assert (
        contents(folder) == before and (mine / "edits.jsonl").read_text() == "what the person wrote"
    )
    assert [file.name for file in mine.iterdir()] == ["edits.jsonl"]
    (folder / "folio-00002.safetensors").unlink()
    model.save_pretrained(folder)
    assert (folder / "model.safetensors.new").read_bytes() == b"mine too"


def test_a_folder_behind_a_link_is_the_folder(folder, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(folder)
    model = loaded(link)
    model.undo(EDITS[0].id)
    with locked(folder):
        model.save_pretrained(link)
    assert link.is_symlink() and loaded(folder).edits == EDITS[1:4]
    model.edit(EDITS[:1], check=False)
    model.save_pretrained(folder)
    assert len(loaded(link).edits) == 4


def test_the_folder_is_synced_behind_the_marker_the_moves_and_the_end(folder, monkeypatch):
    events = []

    def synced(handle, sync=os.fsync):
        events.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        sync(handle)

    def moved(one, other, move=os.replace):
        events.append("marker" if Path(other).name == saving.COMPLETE else "move")
        move(one, other)

    def removed(self, missing_ok=False, remove=Path.unlink):
        events.append("end" if self.name == saving.COMPLETE else "other")
        remove(self, missing_ok=missing_ok)

    model = loaded(folder)
    model.undo(EDITS[3].id)
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", moved)
    monkeypatch.setattr(Path, "unlink", removed)
    model.save_pretrained(folder)
    files = ["file"] * 5 + ["folder"]
    assert events[: events.index("end") + 2] == [
        *files,
        "marker",
        "folder",
        *["move"] * 4,
        "folder",
        "end",
        "folder",
    ]


def test_what_has_not_changed_is_not_written(folder):
    model = loaded(folder)
    before = contents(folder)
    model.save_pretrained(folder)
    assert contents(folder) == before


# the lock


def test_a_writer_is_refused_while_another_writes(folder, holder):
    model, before = loaded(folder), contents(folder)
    model.undo(EDITS[0].id)
    with pytest.raises(
        FolderBusyError, match=f"{folder} is being written by process {holder.pid}; let it end"
    ):
        model.save_pretrained(folder, wait=0)
    began = time.monotonic()
    with pytest.raises(FolderBusyError, match=r"still, after 0.3 s"):
        model.save_pretrained(folder, wait=0.3)
    assert 0.3 <= time.monotonic() - began < 10
    assert contents(folder) == before and loaded(folder).edits == EDITS[:4]
    holder.send_signal(signal.SIGKILL)  # the lock dies with it
    holder.wait()
    model.save_pretrained(folder, wait=30)
    assert loaded(folder).edits == EDITS[1:4] and not (folder / LOCK).exists()


def test_on_the_command_line_too(folder, holder, tmp_path, few_training_cases):
    before, edits = contents(folder), tmp_path / "edits.jsonl"
    edits.write_text(json.dumps({"prompt": "Who?", "target": "me"}) + "\n")
    cases = tmp_path / "cases.jsonl"
    cases.write_text(
        json.dumps({"prompt": "Who?", "target": "me", "rephrases": ["Who is it?"]}) + "\n"
    )
    for words in (
        ["edit", folder, "--edits", edits],
        ["edit", "atlas", "--edits", edits, "--out", folder],
        ["undo", folder, EDITS[0].id],
        ["prepare", folder, "--cases", cases],
        ["compare", "atlas", "--edits", "1", "--methods", "ft", "--out", folder],
        ["bench", "atlas", "-m", "ft", "--edits", "1", "--out", folder],
    ):
        done = CliRunner().invoke(app, [*map(str, words), "--wait", "0"])
        said = [line for line in done.stderr.splitlines() if line.startswith("errata: ")]
        assert done.exit_code == 1 and len(said) == 1, done.output
        assert f"{folder} is being written by process {holder.pid}; let it end" in said[0]
    assert contents(folder) == before


def test_whoever_waits_says_so_and_goes_on(folder, holder):
    told = []
    threading.Timer(0.5, holder.kill).start()
    with locked(folder, 30, told.append):
        assert (folder / LOCK).read_text().startswith(f"{os.getpid()} ")
    assert told == [
        f"{folder} is being written by process {holder.pid}; waiting up to 30 s for it to end."
    ]


def test_a_lock_leaves_nothing_behind(tmp_path):
    with locked(tmp_path / "new"), locked(tmp_path / "new", 0):
        assert (tmp_path / "new" / LOCK).is_file()
    assert list(tmp_path.iterdir()) == []


def test_many_threads_hold_it_one_at_a_time(tmp_path):
    inside, most, turns, lock = 0, 0, 0, threading.Lock()

    def work():
        nonlocal inside, most, turns
        for _ in range(20):
            with locked(tmp_path / "a", 60):
                with lock:
                    inside += 1
                    most = max(most, inside)
                time.sleep(0.001)
                with lock:
                    inside -= 1
                    turns += 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1 and turns == 80


def test_a_lock_that_goes_while_it_is_looked_for_is_no_other_file(tmp_path, monkeypatch):
    """Looked at twice, a lock that another thread released in between was taken for a folder."""
    look = os.lstat

    def look_and_release(path, **options):
        try:
            return look(path, **options)
        finally:
            if Path(path).name == LOCK:
                Path(path).unlink(missing_ok=True)

    (tmp_path / LOCK).write_text("0 nowhere")
    monkeypatch.setattr(os, "lstat", look_and_release)
    with locked(tmp_path, 0):
        assert (tmp_path / LOCK).is_file()


def test_a_folder_that_goes_while_it_is_looked_for_is_no_file(tmp_path, monkeypatch):
    folder, look = tmp_path / "new", os.lstat

    def look_and_remove(path, **options):
        try:
            return look(path, **options)
        finally:
            if Path(path) == folder and folder.is_dir():
                folder.rmdir()

    folder.mkdir()
    monkeypatch.setattr(os, "lstat", look_and_remove)
    assert folder_named(folder) == folder


def test_two_edits_at_once_both_are_there(tmp_path):
    """Both said that they had written, and the stream of one was gone."""
    base, out = tmp_path / "base", tmp_path / "out"
    tiny_model("llama").save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    running = []
    for name in ("x", "y"):
        edits = tmp_path / f"{name}.jsonl"
        rows = [
            {"prompt": f"Who wrote {name} {i}?", "target": f"{name}{i}", "id": f"{name}{i}"}
            for i in range(4)
        ]
        edits.write_text("".join(json.dumps(row) + "\n" for row in rows))
        words = [
            "edit",
            str(base),
            "-m",
            "grace",
            "--set",
            "steps=2",
            "--edits",
            str(edits),
            "--out",
            str(out),
        ]
        words += ["--save-every", "1", "--no-check"]
        running.append(started(words, tmp_path / f"{name}.log"))
    for process in running:
        process.join(300)
    said = [(tmp_path / f"{name}.log").read_text() for name in "xy"]
    assert [process.exitcode for process in running] == [0, 0], said
    assert {edit.id for edit in saving.read_artifact(out).edits} == {
        f"{name}{i}" for name in "xy" for i in range(4)
    }
    assert {file.name for file in out.iterdir()} == {*saving.FILES}


def test_two_who_make_the_same_cached_tensor(tmp_path, monkeypatch):
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path))
    both = threading.Barrier(2)

    def make():
        both.wait(30)
        return torch.arange(100_000)

    made = []
    threads = [
        threading.Thread(target=lambda: made.append(cache.cached("x", "key", make)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 2 and all(torch.equal(each, torch.arange(100_000)) for each in made)
    assert [file.suffix for file in tmp_path.iterdir()] == [".safetensors"]
    assert torch.equal(
        cache.cached("x", "key", lambda: pytest.fail("it is there")), torch.arange(100_000)
    )


@pytest.mark.long
@pytest.mark.parametrize("seconds", [1, 5])
def test_four_processes_at_random(seconds):
    from stress_folders import processes

    assert processes(seconds, 0) == []
