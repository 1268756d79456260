"""Settled edits move into weights, are judged, and stay beside them where anything gets worse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import errata
from errata import Edit
from errata.atlas import make_cases
from errata.cli import app
from errata.consolidation import EDITS, MODEL, SETTLED, Expected, consolidate, settle
from errata.edit import same_answer
from errata.errors import ConfigError
from errata.methods import method_config
from errata.progress import OnProgress

CASES = make_cases(5, seed=3)
OLD = Edit(CASES[1].edit.prompt, CASES[0].edit.target, CASES[1].edit.subject)
"""What the second case's edit contradicts."""


def quiet(what: str, done: int, total: int) -> None:
    pass


def fast_model() -> errata.EditModel:
    """Atlas with edits beside its weights."""
    torch.set_num_threads(1)
    base, tokenizer = errata.load_base("atlas", "float32")
    model = errata.get_edit_model(base, errata.FolioConfig(), tokenizer)
    model.edit([OLD, *(case.edit for case in CASES)], check=False)
    return model


def rewordings(model: errata.EditModel) -> dict[str, list[str]]:
    found = {case.edit.prompt: case.rephrases for case in CASES}
    return {e.id: found[e.prompt] for e in model.edits if e.target != OLD.target}


@pytest.fixture(scope="module")
def kept() -> list[str]:
    return [probe.prompt for case in CASES for probe in case.locality]


@pytest.fixture(scope="module")
def expected(kept) -> Expected:
    model = fast_model()
    found = Expected.of(model, rewordings(model), kept, quiet)
    assert all(same_answer(found.answers[case.edit.prompt], case.edit.target) for case in CASES)
    return found


@pytest.mark.long
def test_what_is_settled_answers_as_before_and_the_rest_stays_beside_it(tmp_path, kept, expected):
    model = fast_model()
    edits = model.edits
    heard: list[tuple[int, int]] = []
    tell: OnProgress = lambda _, done, total: heard.append((done, total))  # noqa: E731
    config = method_config("ultraedit")
    found = consolidate(model, config, tmp_path, rewordings(model), kept, tell)
    refused, why = found.refused[0]
    assert refused.target == OLD.target and "is answered" in why
    assert {e.id for e in found.settled} | {e.id for e, _ in found.refused} == {e.id for e in edits}
    assert len(found.settled) >= 2 and heard[0][0] == 0 and (1, 6) in heard
    settled, after = errata.load(tmp_path / SETTLED), errata.load(tmp_path / EDITS)
    assert {e.id for e in settled.edits} == {e.id for e in found.settled}
    assert {e.id for e in after.edits} >= {e.id for e, _ in found.refused}
    for edit in edits:
        if edit.target != OLD.target:
            wanted = expected.says(edit)
            answers = after.ask(wanted)
            assert all(same_answer(answer, edit.target) for answer in answers), edit
    assert after.ask_base(kept) == settled.ask(kept)
    assert after.ask(kept) == [expected.answers[prompt] for prompt in kept]
    plain, tokenizer = errata.load_base(str(tmp_path / MODEL), "float32")
    lm = errata.LM(plain, tokenizer)
    for edit in found.settled:
        assert same_answer(lm.generate(edit.prompt, max_new_tokens=16), edit.target)
    assert [edit.prompt for edit in found.both] == [OLD.prompt], "the older one would speak"


@pytest.mark.long
def test_what_makes_anything_worse_is_refused_alone(expected):
    """One that cannot be written, among others that can, and one prompt that must not move."""
    model = fast_model()
    edits = [case.edit for case in CASES[1:4]]
    base, tokenizer = model.unload(), model.tokenizer
    weights = errata.get_edit_model(base, method_config("ultraedit"), tokenizer)
    hard = Expected(
        {**expected.answers, edits[1].prompt: edits[1].target, "Where?": edits[1].target},
        {edit.id: [edit.prompt] for edit in edits} | {edits[1].id: [edits[1].prompt, "Where?"]},
        [],
    )
    found = settle(weights, edits, hard, quiet)
    assert [edit.id for edit, _ in found.refused] == [edits[1].id]
    assert "'Where?' is answered" in found.refused[0][1]
    assert found.settled == [edits[0], edits[2]] == weights.edits
    alone = errata.get_edit_model(weights.unload(), method_config("ultraedit"), tokenizer)
    asked = [edit.prompt for edit in edits]
    unedited = alone.ask(asked)
    still = Expected(
        {**expected.answers, **dict(zip(asked, unedited, strict=True))}, expected.wordings, asked
    )
    assert settle(alone, edits, still, quiet).settled == [] == alone.edits
    assert alone.ask(asked) == unedited


def test_a_method_beside_the_weights_is_refused(expected):
    model = fast_model()
    with pytest.raises(ConfigError, match="folio keeps edits beside the weights"):
        settle(model, model.edits, expected, quiet)


@pytest.mark.long
def test_on_the_command_line(tmp_path):
    model = fast_model()
    model.save_pretrained(tmp_path / "fast")
    cases = tmp_path / "cases.jsonl"
    cases.write_text("".join(json.dumps(case.to_dict()) + "\n" for case in CASES))

    def run(*words: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["consolidate", str(tmp_path / "fast"), *words])
        return done.exit_code, done.output

    out = str(tmp_path / "out")
    weak = ("--set", "steps=1", "--set", "lr=0.000001")
    code, told = run("--out", out, "-m", "ft", *weak, "--cases", str(cases))
    assert code == 0 and "0 of 6 edits could be settled; nothing was written" in told
    assert told.count("stays beside the weights") == 6 and not Path(out).exists()
    (tmp_path / "keep.txt").write_text("Who?\n\n")
    code, told = run(
        "--out", out, "-m", "ultraedit", "--keep", str(tmp_path / "keep.txt"), "--json"
    )
    found = json.loads(told[told.index("{") :])
    assert code == 0 and len(found["settled"]) + len(found["refused"]) == 6
    if found["settled"]:
        assert errata.load(Path(out) / EDITS).edits
        code, told = run("--out", out, "-m", "ultraedit")
        assert code == 2 and "give a new folder" in told
    assert run("--out", str(tmp_path / "x"), "-m", "grace")[0] == 2
    assert run("--out", str(tmp_path / "x"), "-m", "ft", "--keep", "none")[0] == 2
