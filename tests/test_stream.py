"""`edit_stream`: what it skips, when it saves, what a stop prints, and conflicts."""

from __future__ import annotations

from pathlib import Path

import pytest
from edited import EDITS, EXAMPLES, edit_model, same_state
from families import tiny_model, tiny_tokenizer

import errata
from errata import Edit, EditModel, edit_stream
from errata.errors import ConfigError, EditError
from errata.stream import prepare_and_save

RIVAL = Edit(EDITS[0].prompt, "York", id="rival")


def reopened(folder: Path) -> EditModel:
    return EditModel.from_pretrained(tiny_model("llama"), folder, tiny_tokenizer())


def calls_of(model: EditModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many edits each call of `edit` gets."""
    calls, edit = [], model.edit

    def counted(edits, **options):
        calls.append(len(edits))
        return edit(edits, **options)

    monkeypatch.setattr(model, "edit", counted)
    return calls


def test_it_writes_saves_and_reports(tmp_path, monkeypatch):
    model = edit_model("llama", "wise")
    calls, saves, seen = calls_of(model, monkeypatch), [], []
    report = edit_stream(
        model,
        EDITS[:5],
        tmp_path / "out",
        save_every=2,
        progress=lambda *step: seen.append(step),
        on_save=lambda report: saves.append(
            (len(report.written), len(reopened(tmp_path / "out").edits))
        ),
    )
    assert calls == [2, 2, 1] and saves[0] == (2, 2) and saves[-1] == (5, 5)
    assert seen == [*(("editing", n, 5) for n in range(1, 6)), ("asking the final model", 0, 5)]
    assert [result.edit for result in report.results] == report.written == EDITS[:5]
    assert [result.answer for result in report.results] == model.ask(
        [edit.prompt for edit in EDITS[:5]]
    )
    assert report.total == 5 and report.seconds > 0 and not report.skipped and not report.conflicts
    assert report.to_dict()["results"][0].keys() == {"id", "answer", "success"}


def test_without_a_folder_all_are_written_in_one_call(monkeypatch):
    model = edit_model("llama", "grace")
    calls = calls_of(model, monkeypatch)
    report = edit_stream(model, iter(EDITS[:3]), check=False)
    assert calls == [3] and model.edits == EDITS[:3] and report.results == []
    assert report.to_dict()["results"] == [{"id": edit.id} for edit in EDITS[:3]]
    assert edit_stream(model, EDITS[3], check=False).total == 4


def test_edits_that_are_there_are_skipped(tmp_path):
    model = edit_model("llama", "grace", EDITS[:2])
    report = edit_stream(model, [*EDITS[:3], EDITS[2]], tmp_path, save_every=1, check=False)
    assert report.skipped == [EDITS[0].id, EDITS[1].id, EDITS[2].id] and report.already_present == 3
    assert report.written == EDITS[2:3] and reopened(tmp_path).edits == EDITS[:3]
    with pytest.raises(EditError, match="already belongs to another edit"):
        edit_stream(model, [EDITS[3], Edit("Who?", "x", id=EDITS[0].id)], tmp_path, save_every=1)
    assert reopened(tmp_path).edits == EDITS[:3], "found before anything is written"


@pytest.mark.parametrize("method", ["wise", "grace"])
def test_stopped_half_way_and_called_again_it_gets_where_an_undisturbed_one_gets(method, tmp_path):
    folder = tmp_path / "stopped"

    def stop(what: str, done: int, total: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(
        KeyboardInterrupt, match=r"^stopped; [123] edits are saved in .*stopped\. The same command"
    ):
        edit_stream(edit_model("llama", method), EDITS[:5], folder, 1, check=False, progress=stop)
    saved = reopened(folder)
    assert 1 <= len(saved.edits) < 4
    report = edit_stream(saved, EDITS[:5], folder, 1, check=False)
    assert report.already_present + len(report.written) == 5
    edit_stream(edit_model("llama", method), EDITS[:5], tmp_path / "whole", 1, check=False)
    same_state(reopened(folder), reopened(tmp_path / "whole"), atol=1e-6)
    assert reopened(folder).edits == EDITS[:5]


def test_stopped_before_the_first_save_nothing_is_saved(tmp_path):
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="0 edits are saved"):
        edit_stream(
            edit_model("llama", "grace"), EDITS[:2], tmp_path / "out", 1, check=False, progress=stop
        )
    assert not (tmp_path / "out").exists()
    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        edit_stream(edit_model("llama", "grace"), EDITS[:2], check=False, progress=stop)


def test_where_a_save_takes_longer_than_writing_it_waits(tmp_path, monkeypatch):
    """Writing a part takes one second, saving two and a half: every third part is saved, and the
    last.
    """
    now = [0.0]
    monkeypatch.setattr("errata.stream.time.perf_counter", lambda: now[0])
    model, saved = edit_model("llama", "grace"), []

    def passing(seconds, call):
        def slow(*args, **options):
            now[0] += seconds
            return call(*args, **options)

        return slow

    monkeypatch.setattr(model, "edit", passing(1.0, model.edit))
    monkeypatch.setattr(model, "save_pretrained", passing(2.5, model.save_pretrained))
    edits = [Edit(f"Book {n} is by", f"writer {n}") for n in range(8)]
    report = edit_stream(
        model, edits, tmp_path, 1, check=False, on_save=lambda report: saved.append(report.total)
    )
    assert saved == [1, 4, 7, 8] and report.seconds == 8.0 and len(reopened(tmp_path).edits) == 8


def test_a_method_that_relearns_all_gets_them_in_one_call(monkeypatch):
    model = edit_model("llama", "ft", steps=1)
    monkeypatch.setattr(type(model.method), "relearns_all", property(lambda self: True))
    calls = calls_of(model, monkeypatch)
    edit_stream(model, EDITS[:4], save_every=1, check=False)
    assert calls == [4]


def test_conflicts_are_refused_before_anything_is_written(tmp_path, monkeypatch):
    model = edit_model("llama", "grace")
    with pytest.raises(EditError, match=r"rival .*wants another answer; nothing was written"):
        edit_stream(model, [*EDITS[:3], RIVAL], tmp_path / "out", 1, on_conflict="error")
    assert model.edits == [] and not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="on_conflict"):
        edit_stream(model, EDITS[:1], on_conflict="fight")


def test_of_conflicting_edits_the_older_may_be_kept(monkeypatch):
    """As if each had come in a call of its own: what gave way is no older edit for the next."""
    third, same = (
        Edit(EDITS[0].prompt, "Ghent", id="third"),
        Edit(EDITS[0].prompt, EDITS[0].target + ".", id="same"),
    )
    stream = [EDITS[0], RIVAL, third, same, EDITS[1]]
    report = edit_stream(
        model := edit_model("llama", "grace"), stream, save_every=2, check=False, on_conflict="keep"
    )
    assert report.left_out == ["rival", "third"] == report.skipped and report.already_present == 0
    assert [old for _, old in report.conflicts] == [EDITS[0].id] * 2
    assert model.edits == report.written == [EDITS[0], same, EDITS[1]]
    one_by_one = edit_model("llama", "grace")
    for edit in stream:
        one_by_one.edit(edit, check=False, on_conflict="keep")
    assert one_by_one.edits == model.edits


def test_conflicts_are_found_once(monkeypatch):
    model, asked = edit_model("llama", "grace"), []
    find = model.method.conflicts
    monkeypatch.setattr(
        model.method, "conflicts", lambda edits: asked.append(len(edits)) or find(edits)
    )
    report = edit_stream(model, [*EDITS[:3], RIVAL], save_every=1, check=False)
    assert asked == [4] and report.conflicts == [("rival", EDITS[0].id)] and len(model.edits) == 4
    model.edit(EDITS[3], check=False)
    assert asked == [4, 1]


def test_a_training_is_saved_when_it_is_due_and_goes_on(tmp_path):
    config = errata.method_class("mend").config_class.from_dict(
        {"training_steps": 4, "batch": 1, "layer": 2}
    )
    model = errata.get_edit_model(tiny_model("llama"), config, tiny_tokenizer())

    def stop(what: str, done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="stopped; 2 of 4 steps are saved in"):
        prepare_and_save(model, EXAMPLES, tmp_path, lambda steps, _: steps >= 2, stop)
    model, seconds = reopened(tmp_path), []
    assert model.method.steps_left == 2
    assert (
        prepare_and_save(model, EXAMPLES, tmp_path, lambda steps, _: False, on_save=seconds.append)
        == 2
    )
    assert model.method.prepared and len(seconds) == 1 and reopened(tmp_path).method.prepared
