"""`Edit`: its fields, its time and source, and what old ledgers may hold."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from edited import EDITS, edit_model
from families import tiny_model

from errata import Edit, EditModel
from errata.edit import with_timestamp
from errata.errors import ConfigError, EditError


def test_source_and_time_are_no_part_of_an_edit() -> None:
    plain = Edit("Where is the tower?", "north", "the tower")
    told = Edit(
        "Where is the tower?",
        "north",
        "the tower",
        source="the survey of 1907",
        time="2026-11-25T22:00:00Z",
    )
    assert plain == told and plain.id == told.id and hash(plain) == hash(told)
    assert "source" not in plain.to_dict() and "time" not in plain.to_dict()
    assert (
        Edit.from_dict(told.to_dict()).source == "the survey of 1907"
        and Edit.from_dict(told.to_dict()).time == told.time
    )
    with pytest.raises(EditError, match="'time' is '2026-13-01T00:00:00Z'"):
        Edit("Where?", "north", time="2026-13-01T00:00:00Z")


def test_an_edit_is_stamped_when_it_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    model = edit_model(
        "llama", "ft", [Edit("Where?", "north", source="a map", time="1999-01-01T00:00:00Z")]
    )
    assert [(edit.source, edit.time) for edit in model.edits] == [("a map", "1970-01-02T00:00:00Z")]
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86401")
    model.edit([EDITS[0]], check=False)
    model.undo(model.edits[0].id)
    assert [edit.time for edit in model.edits] == [
        "1970-01-02T00:00:01Z"
    ]  # an undo writes nothing new
    monkeypatch.delenv("SOURCE_DATE_EPOCH")
    before = datetime.now(UTC).replace(microsecond=0)
    assert before <= datetime.fromisoformat(str(with_timestamp(EDITS[0]).time)) <= datetime.now(UTC)
    for wrong in ("", "soon", "9" * 30):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", wrong)
        with pytest.raises(ConfigError, match=r"SOURCE_DATE_EPOCH is .* seconds since 1970"):
            with_timestamp(EDITS[0])


def test_the_ledger_keeps_source_and_time(tmp_path: Path) -> None:
    model = edit_model("llama", "ft", [Edit("Where?", "north", source="a map")])
    model.save_pretrained(tmp_path)
    (kept,) = EditModel.from_pretrained(tiny_model("llama"), tmp_path, model.tokenizer).edits
    assert (kept.source, kept.time) == ("a map", model.edits[0].time) != (None, None)


OLD = [
    {"id": "a", "prompt": "Who?", "target": "I", "operation": "erase"},
    {"id": "b", "prompt": "Who is Romeo?", "target": "I", "subject": "Rome", "operation": "modify"},
    {"id": "c", "prompt": "Who are !!!?", "target": "I", "subject": "!!!", "operation": "modify"},
]


def test_a_ledger_from_before_opens(tmp_path: Path) -> None:
    """Without time and source; with what a new edit may no longer ask for."""
    edits = [Edit.from_ledger(row) for row in OLD]
    assert [edit.to_dict() for edit in edits] == OLD and edits[0] == Edit(**OLD[0])
    model = edit_model("llama", "ft", EDITS[:1])
    model.method._edits = edits
    model.save_pretrained(tmp_path)
    loaded = EditModel.from_pretrained(tiny_model("llama"), tmp_path, model.tokenizer)
    assert [edit.to_dict() for edit in loaded.edits] == OLD
    with pytest.raises(EditError, match="as words of their own"):
        Edit.from_dict(OLD[1])
    for wrong in (
        {**OLD[1], "target": None},
        {**OLD[1], "x": 1},
        {**OLD[0], "operation": "forget"},
        {"prompt": "Who?"},
    ):
        with pytest.raises(EditError):
            Edit.from_ledger(wrong)
