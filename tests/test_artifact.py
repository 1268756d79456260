"""The folder on disk: small, plain, whole or absent; an undo touches its own WISE shards only."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from edited import EDITS, PROMPTS, logits_of, pinned_wise, same_state
from families import tiny_model, tiny_tokenizer

from errata import EditModel, read_edits, saving
from errata.errors import ArtifactError, StorageError
from errata.saving import transaction

FILES = {"edit_config.json", "edit_model.safetensors", "edits.jsonl"}


def loaded(path):
    return EditModel.from_pretrained(tiny_model("llama"), path, tiny_tokenizer())


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Folders `old` (two edits) and `new` (all six) of one model; tests copy them."""
    root = tmp_path_factory.mktemp("artifacts")
    model = pinned_wise(EDITS[:2])
    model.save_pretrained(root / "old")
    model.edit(EDITS[2:], check=False)
    model.save_pretrained(root / "new")
    return root


def contents(path):
    return {file.name: file.read_bytes() for file in path.iterdir()}


def test_three_plain_files(two):
    assert set(contents(two / "new")) == FILES
    about = json.loads((two / "new" / "edit_config.json").read_text(encoding="utf-8"))
    assert (
        about["errata_version"] == 1
        and about["method"] == "wise"
        and about["base_model_type"] == "llama"
    )
    assert read_edits(two / "new" / "edits.jsonl") == EDITS
    for content in contents(two / "new").values():
        assert b"torch" not in content[:2] and not content.startswith((b"PK", b"\x80"))


def test_only_what_changed_is_on_disk(two):
    model = loaded(two / "new")
    tensors, _ = model.method.state()
    entries = sum(int(shard.mask.sum()) for shard in model.method.shards)
    held = sum(t.numel() for t in tensors.values() if t.is_floating_point())
    assert held == entries
    assert sum(t.nbytes for t in tensors.values()) <= entries * 4 + 3 * (32 * 64 // 8 + 1)
    assert (two / "new" / "edit_model.safetensors").stat().st_size < entries * 4 + 3 * 256 + 2000
    for shard in model.method.shards:
        ratio = model.method.config.density
        assert abs(shard.mask.float().mean() - ratio) < 0.05 and not shard.delta[~shard.mask].any()


def test_other_files_are_left_alone(two, tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "README.md").write_text("mine")
    (folder / "edits.jsonl.bak").write_text("mine too")
    loaded(two / "new").save_pretrained(folder)
    loaded(two / "old").save_pretrained(folder, overwrite=True)
    seen = contents(folder)
    assert seen.pop("README.md") == b"mine" and seen.pop("edits.jsonl.bak") == b"mine too"
    assert seen == contents(two / "old")


@pytest.mark.parametrize("moved", [0, 1, 2, 3])
def test_cut_off_after_the_marker_the_new_one_is_read_and_a_writer_finishes_the_move(
    two, tmp_path, moved
):
    folder = tmp_path / "a"
    shutil.copytree(two / "old", folder)
    for i, name in enumerate(saving.FILES):
        shutil.copy(two / "new" / name, folder / (name if i < moved else name + ".new"))
    (folder / saving.COMPLETE).write_text(json.dumps({"placed": saving.FILES, "gone": []}))
    before, model = contents(folder), loaded(folder)
    assert model.edits == EDITS and contents(folder) == before
    model.save_pretrained(folder)
    assert contents(folder) == contents(two / "new")


@pytest.mark.parametrize("written", [0, 1, 2, 3])
def test_cut_off_before_the_marker_the_old_one_counts(two, tmp_path, written):
    folder = tmp_path / "a"
    shutil.copytree(two / "old", folder)
    for name in saving.FILES[:written]:
        (folder / (name + ".new")).write_bytes((two / "new" / name).read_bytes()[:100])
    before, model = contents(folder), loaded(folder)
    assert model.edits == EDITS[:2] and contents(folder) == before
    model.save_pretrained(folder)
    assert contents(folder) == contents(two / "old")


@pytest.mark.parametrize("at", range(4))
def test_a_disk_that_refuses_leaves_what_was_there(two, tmp_path, monkeypatch, at):
    folder = tmp_path / "a"
    shutil.copytree(two / "old", folder)
    model = loaded(two / "new")
    calls = []
    write = transaction.write_new

    def full(path, content):
        calls.append(path)
        if len(calls) > at:
            path.write_bytes(content[: len(content) // 2])
            raise OSError(28, "No space left on device")
        write(path, content)

    monkeypatch.setattr(transaction, "write_new", full)
    with pytest.raises(StorageError, match="No space left on device"):
        model.save_pretrained(folder)
    assert contents(folder) == contents(two / "old")
    with pytest.raises(StorageError):
        model.save_pretrained(tmp_path / "fresh")
    assert not saving.is_artifact(tmp_path / "fresh")
    monkeypatch.undo()
    model.save_pretrained(folder)
    assert contents(folder) == contents(two / "new")


@pytest.mark.parametrize("name", sorted(FILES))
@pytest.mark.parametrize("damage", ["cut", "flipped", "gone", "empty"])
def test_damage_is_told_and_named(two, tmp_path, name, damage):
    folder = tmp_path / "a"
    shutil.copytree(two / "new", folder)
    content = (folder / name).read_bytes()
    if damage == "gone":
        (folder / name).unlink()
    elif damage == "flipped" and name == "edit_config.json":
        (folder / name).write_bytes(
            content.replace(b'"errata_version": 1', b'"errata_version": 99')
        )
    else:
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        (folder / name).write_bytes({"cut": content[:-7], "flipped": flipped, "empty": b""}[damage])
    with pytest.raises(ArtifactError, match="a") as told:
        loaded(folder)
    assert str(folder) in str(told.value) and "\n" not in str(told.value)


def test_an_emptied_model_is_saved_and_loaded(two, tmp_path):
    model = loaded(two / "new")
    model.undo(*(edit.id for edit in EDITS))
    model.save_pretrained(tmp_path / "a")
    again = loaded(tmp_path / "a")
    with model.disable_edits():
        base = logits_of(model, model.lm)
    assert again.edits == [] and torch.equal(logits_of(again, again.lm), base)
    json.loads(
        (tmp_path / "a" / "edit_config.json").read_text(),
        parse_constant=lambda name: pytest.fail(name),
    )


@pytest.mark.parametrize("variant", ["merge", "retrieve"])
def test_an_undo_writes_its_own_shard_anew_and_no_other(variant):
    model = pinned_wise(EDITS, variant=variant)
    assert [len(shard.edits) for shard in model.method.shards] == [2, 2, 2]
    before = [shard.delta.clone() for shard in model.method.shards]
    masks = [shard.mask.clone() for shard in model.method.shards]
    model.undo(EDITS[3].id)
    after = [shard.delta for shard in model.method.shards]
    assert torch.equal(after[0], before[0]) and torch.equal(after[2], before[2])
    assert not torch.equal(after[1], before[1])
    assert all(
        torch.equal(s.mask, mask) for s, mask in zip(model.method.shards, masks, strict=True)
    )
    assert [edit.id for edit in model.edits] == [
        edit.id for edit in EDITS if edit.id != EDITS[3].id
    ]
    alone = pinned_wise(EDITS[:3], variant=variant)
    torch.testing.assert_close(after[1], alone.method.shards[1].delta, rtol=0, atol=1e-5)
    model.edit([EDITS[3]], check=False)
    assert torch.equal(model.method.shards[0].delta, before[0])


@pytest.mark.parametrize("variant", ["merge", "retrieve"])
def test_undone_in_the_last_shard_is_as_never_done(variant):
    model = pinned_wise(EDITS, variant=variant)
    model.undo(EDITS[5].id)
    same_state(model, never := pinned_wise(EDITS[:5], variant=variant), 1e-5)
    torch.testing.assert_close(
        logits_of(model, model.lm), logits_of(never, never.lm), rtol=0, atol=1e-4
    )
    assert model.ask(PROMPTS) == never.ask(PROMPTS)


@pytest.mark.parametrize("variant", ["merge", "retrieve"])
def test_an_edit_that_fails_leaves_the_ledger_whole(variant, monkeypatch):
    """Whatever breaks inside a write (a full memory, Ctrl-C): what was there before is still there,
    and more can come.
    """
    model = pinned_wise(EDITS[:3], variant=variant)
    before = logits_of(model, model.lm)
    encode = type(model.lm).ending_of

    def broken(self, prompt, target):
        if prompt == EDITS[4].prompt:
            raise KeyboardInterrupt
        return encode(self, prompt, target)

    monkeypatch.setattr(type(model.lm), "ending_of", broken)
    with pytest.raises(KeyboardInterrupt):
        model.edit(EDITS[3:], check=False)
    monkeypatch.undo()
    assert model.edits[:3] == EDITS[:3] and torch.equal(logits_of(model, model.lm), before)
    model.edit(EDITS[3:], check=False)
    same_state(model, pinned_wise(EDITS, variant=variant), 1e-5)
