"""Long work says what is being done from its first second, also without a terminal."""

from __future__ import annotations

import time

import pytest
from edited import EDITS, edit_model
from families import tiny_model, tiny_tokenizer

import errata
from errata.cli import screen
from errata.lm.background import WRITING
from errata.methods.association.folio.calibrator import CALIBRATING
from errata.methods.association.folio.config import FolioConfig
from errata.progress import report, reported_to


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setenv("ERRATA_PROGRESS", "on")
    monkeypatch.setattr(screen, "FIRST_LINE", 0.05)
    monkeypatch.setattr(screen, "NEXT_LINE", 0.1)


def test_without_a_terminal_a_line_now_and_then(quick, capsys):
    with screen.steps() as step:
        step("editing", 3, 10)
        time.sleep(0.08)
        report("calibrating", 1, 2)
        time.sleep(0.15)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("errata: editing: 3 of 10 (0")
    assert lines[1].startswith("errata: calibrating: 1 of 2 (0") and 2 <= len(lines) <= 4
    time.sleep(0.15)
    assert capsys.readouterr().err == "", "it goes on talking when the work is done"


def test_quick_work_and_who_wants_quiet_get_no_line(quick, capsys, monkeypatch):
    with screen.busy("loading"):
        pass
    monkeypatch.setenv("ERRATA_PROGRESS", "off")
    with screen.busy("loading"):
        time.sleep(0.1)
    assert capsys.readouterr().err == ""


def test_what_comes_before_the_first_edit_is_reported(monkeypatch, tmp_path):
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path))
    seen = []
    config = FolioConfig(background=70)
    model = errata.get_edit_model(tiny_model("llama"), config, tiny_tokenizer())
    with reported_to(lambda *step: seen.append(step)):
        model.edit(EDITS[:1], check=False)
    assert seen[:2] == [(WRITING, 0, 70), (WRITING, 48, 70)]
    assert next(step for step in seen if step[0] == CALIBRATING) == (CALIBRATING, 0, 2)
    before = len(seen)
    report("nobody listens", 0, 1)
    assert len(seen) == before


def test_one_value_of_one_edit_does_not_hide_the_count_of_edits():
    seen = []
    model = edit_model("llama", "memit", EDITS[:1])
    with reported_to(lambda *step: seen.append(step)):
        model.edit(EDITS[1:2], check=False)
    assert not [step for step in seen if step[0] == "solving for what to write"]
    model = edit_model("llama", "memit", EDITS[:1], turn=None)
    with reported_to(lambda *step: seen.append(step)):
        model.edit(EDITS[1:4], check=False)
    solved = [step for step in seen if step[0] == "solving for what to write"]
    assert solved == [("solving for what to write", done, 4) for done in (1, 2, 3)]
