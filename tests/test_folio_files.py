"""Folios on disk: one file each, mapped when read, rewritten only when changed, all or none."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from edited import EDITS, edit_model, edited_model, logits_of
from families import tiny_model, tiny_tokenizer
from typer.testing import CliRunner

from errata import EditModel, FolioConfig, saving
from errata.cli import app
from errata.errors import ArtifactError, ConfigError, StorageError
from errata.saving import transaction

NAMES = [f"folio-0000{number}.safetensors" for number in range(3)]


class Killed(BaseException):
    """Nobody catches it."""


def loaded(path):
    return EditModel.from_pretrained(tiny_model("llama"), path, tiny_tokenizer())


def contents(path):
    return {file.name: file.read_bytes() for file in path.iterdir()}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Six edits, two a folio."""
    folder = tmp_path_factory.mktemp("folios") / "saved"
    edited_model("llama", "folio", EDITS, edits_per_file=2).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "a")


def test_a_file_for_each_folio_and_the_same_model_again(saved):
    assert set(contents(saved)) == {*saving.FILES, *NAMES} == set(saving.files_of(saved))
    one, other = edited_model("llama", "folio", EDITS, edits_per_file=2), loaded(saved)
    assert torch.equal(logits_of(one, one.lm), logits_of(other, other.lm))
    assert (
        one.method.patch.leaves.folios
        == other.method.patch.leaves.folios
        == {0: [0, 1], 1: [2, 3], 2: [4, 5]}
    )
    whole = edited_model("llama", "folio", EDITS)
    assert torch.equal(logits_of(whole, whole.lm), logits_of(other, other.lm))


def test_leaves_are_mapped_from_the_file_and_not_read(folder):
    """Half of a leaf changed on disk behind the model's back is changed in the model: it holds no
    copy.
    """
    model = loaded(folder)
    leaf = next(iter(model.method.patch.leaves))
    assert leaf.key.any()
    with (folder / NAMES[0]).open("r+b") as file:
        size = (folder / NAMES[0]).stat().st_size
        header = 8 + int.from_bytes(file.read(8), "little")
        file.seek(header)
        file.write(bytes(size - header))
    assert not leaf.key.any() and not leaf.question.any()


def test_only_what_changed_is_written_again(folder):
    before = {name: (folder / name).stat().st_ino for name in NAMES}
    model = loaded(folder)
    model.undo(EDITS[5].id)
    model.save_pretrained(folder)
    after = {name: (folder / name).stat().st_ino for name in NAMES}
    assert [before[name] == after[name] for name in NAMES] == [True, True, False]
    again = loaded(folder)
    assert (
        torch.equal(logits_of(again, again.lm), logits_of(model, model.lm))
        and again.edits == EDITS[:5]
    )


def test_a_folio_whose_edits_are_all_undone_is_gone_and_the_last_one_is_filled_first(folder):
    model = loaded(folder)
    model.undo(EDITS[2].id, EDITS[3].id, EDITS[4].id)
    model.save_pretrained(folder)
    assert set(contents(folder)) == {*saving.FILES, NAMES[0], NAMES[2]}
    model = loaded(folder)
    model.edit([EDITS[2], EDITS[3]], check=False)
    assert [len(each) for each in model.method.patch.leaves.folios.values()] == [2, 2, 1]
    model.save_pretrained(folder)
    again = loaded(folder)
    assert again.method.patch.leaves.folios == {0: [0, 1], 2: [2, 3], 3: [4]}
    assert [told.edit_id for told in again.explain([edit.prompt for edit in again.edits])] == [
        e.id for e in again.edits
    ]
    fresh = edit_model("llama", "folio", again.edits)
    assert torch.equal(logits_of(again, again.lm), logits_of(fresh, fresh.lm))
    again.undo(*(edit.id for edit in again.edits))
    again.save_pretrained(folder)
    assert set(contents(folder)) == set(saving.FILES) and loaded(folder).edits == []


def test_another_method_in_the_same_folder_leaves_no_folio_behind(folder):
    edited_model("llama", "ft", EDITS[:1]).save_pretrained(folder, overwrite=True)
    assert set(contents(folder)) == set(saving.FILES)


@pytest.mark.parametrize("step", range(6))
def test_killed_at_any_step_of_the_move_the_new_one_counts(folder, tmp_path, monkeypatch, step):
    """The marker is put in its place, then three files, one goes, then the marker; the others are
    as they were.
    """
    model = loaded(folder)
    model.undo(EDITS[1].id, EDITS[2].id, EDITS[3].id)
    model.save_pretrained(shutil.copytree(folder, tmp_path / "wanted"))
    old, wanted = contents(folder), contents(tmp_path / "wanted")
    steps = iter(range(100))

    def stepping(do, counts):
        def stepped(*args, **options):
            if counts(str(args[0])) and next(steps) == step:
                raise Killed
            return do(*args, **options)

        return stepped

    monkeypatch.setattr(os, "replace", stepping(os.replace, lambda name: True))
    monkeypatch.setattr(
        Path, "unlink", stepping(Path.unlink, lambda name: not name.endswith(".new"))
    )
    with pytest.raises(Killed):
        model.save_pretrained(folder)
    monkeypatch.undo()
    left, again = contents(folder), loaded(folder)
    assert contents(folder) == left
    again.save_pretrained(folder)
    assert contents(folder) == (old if step == 0 else wanted)
    assert len(again.edits) == (6 if step == 0 else 3)


@pytest.mark.parametrize("at", range(5))
def test_a_disk_that_refuses_leaves_what_was_there(folder, monkeypatch, at):
    model = loaded(folder)
    model.undo(EDITS[1].id, EDITS[2].id)
    before, calls = contents(folder), iter(range(100))

    def full(path, content):
        path.write_bytes(content[: len(content) // 2])
        if next(calls) == at:
            raise OSError(28, "No space left on device")
        path.write_bytes(content)

    monkeypatch.setattr(transaction, "write_new", full)
    with pytest.raises(StorageError, match="No space left on device"):
        model.save_pretrained(folder)
    assert contents(folder) == before and loaded(folder).edits == EDITS


@pytest.mark.parametrize("damage", ["gone", "cut", "flipped", "swapped"])
def test_damage_to_a_folio_is_told_and_named(folder, damage):
    content = (folder / NAMES[1]).read_bytes()
    changed = {
        "cut": content[:-5],
        "flipped": content[:-5] + bytes([content[-5] ^ 1]) + content[-4:],
        "swapped": (folder / NAMES[2]).read_bytes(),
    }
    if damage == "gone":
        (folder / NAMES[1]).unlink()
    else:
        (folder / NAMES[1]).write_bytes(changed[damage])
    with pytest.raises(ArtifactError, match=NAMES[1]):
        loaded(folder)


def test_what_the_config_names_outside_the_folder_is_not_touched(folder, tmp_path):
    (tmp_path / "mine.safetensors").write_bytes(b"mine")
    about = json.loads((folder / saving.CONFIG).read_text())
    about["sha256"] |= {"../mine.safetensors": "0", "notes.txt": "0"}
    (folder / saving.CONFIG).write_text(json.dumps(about))
    (folder / "notes.txt").write_bytes(b"mine too")
    edited_model("llama", "ft", EDITS[:1]).save_pretrained(folder, overwrite=True)
    assert (tmp_path / "mine.safetensors").read_bytes() == b"mine" and (
        folder / "notes.txt"
    ).read_bytes() == b"mine too"


def test_explain_says_in_which_folio_an_edit_is(folder):
    model = loaded(folder)
    told = model.explain([edit.prompt for edit in EDITS])
    assert [each.reasons[0].place for each in told] == [
        "folio 0",
        "folio 0",
        "folio 1",
        "folio 1",
        "folio 2",
        "folio 2",
    ]


def test_explain_on_the_command_line_says_it_too(tmp_path):
    edits = tmp_path / "edits.jsonl"
    rows = [
        ("Who is the mayor of Kelor?", "Traren", "a"),
        ("Who is the mayor of Tilun?", "Kelor", "b"),
    ]
    edits.write_text(
        "".join(json.dumps({"prompt": p, "target": t, "id": i}) + "\n" for p, t, i in rows)
    )
    call, out = CliRunner().invoke, str(tmp_path / "out")
    options = [
        "-m",
        "folio",
        "--set",
        "edits_per_file=1",
        "--out",
        out,
        "--edits",
        str(edits),
    ]
    assert call(app, ["edit", "atlas", *options]).exit_code == 0
    told = call(app, ["explain", out, rows[1][0]])
    assert told.exit_code == 0 and "b answers: Kelor" in told.output and "; folio 1)" in told.output
    (row,) = json.loads(call(app, ["explain", out, rows[1][0], "--json"]).stdout)
    assert row["edit_id"] == "b" and row["reasons"][0]["place"] == "folio 1"


def test_settings_are_read_by_their_names_of_version_0_1():
    earlier = {"mentioned": 0.5, "least": 0.2, "leaves": 7}
    assert FolioConfig.from_dict(earlier) == FolioConfig(min_subject_overlap=0.5, edits_per_file=7)


def test_a_folio_has_a_leaf_at_least():
    with pytest.raises(ConfigError, match="edits_per_file"):
        edit_model("llama", "folio", [], edits_per_file=0)
