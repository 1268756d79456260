"""Erase: a refusal is said in the fact's place, and what the base model told is withheld."""

from __future__ import annotations

import json
from pathlib import Path
from threading import Thread

import pytest
import torch
from edited import KINDS, edit_model
from families import tiny_model, tiny_tokenizer
from grid import grid, patch_kind
from typer.testing import CliRunner

import errata
from errata import Edit
from errata.atlas import make_cases
from errata.cli import app
from errata.edit import REFUSAL, same_answer
from errata.errors import EditError
from errata.patches.outcome import Outcome, outcomes_told_to
from errata.words.names import WordWeights
from errata.words.telling import telling_parts

CASES = make_cases(5, seed=11)
ERASED = [
    Edit(case.edit.prompt, subject=case.edit.subject, operation="erase") for case in CASES[:3]
]
REPHRASES = [text for case in CASES[:3] for text in case.rephrases]
OTHERS = [probe.prompt for case in CASES for probe in case.locality]


@pytest.fixture(scope="module")
def atlas() -> errata.EditModel:
    torch.set_num_threads(1)
    base, tokenizer = errata.load_base("atlas", "float32")
    return errata.get_edit_model(base, errata.FolioConfig(), tokenizer)


@pytest.fixture
def model(atlas: errata.EditModel) -> errata.EditModel:
    atlas.undo([edit.id for edit in atlas.edits])
    atlas.edit(ERASED, check=False)
    return atlas


def told(model: errata.EditModel, edit: Edit) -> str:
    """The first word of what the base model tells."""
    return model.ask_base(edit.prompt).split()[0].strip(".")


def test_a_refusal_is_said_and_undone_everything_is_as_before(model):
    base = model.ask_base([*REPHRASES, *OTHERS])
    assert [edit.target for edit in model.edits] == [REFUSAL] * 3
    for edit in ERASED:
        assert same_answer(model.ask(edit.prompt), REFUSAL)
    answers = model.ask(REPHRASES)
    for case, edit in zip(CASES[:3], ERASED, strict=True):
        for text in case.rephrases:
            assert told(model, edit) not in answers[REPHRASES.index(text)]
    mine = {edit.subject for edit in ERASED}
    free = [text for text in OTHERS if not any(name in text for name in mine)]
    assert len(free) >= 5 and model.ask(free) == model.ask_base(free)
    model.undo(ERASED[1].id)
    assert model.ask(ERASED[1].prompt) == model.ask_base(ERASED[1].prompt)
    assert same_answer(model.ask(ERASED[0].prompt), REFUSAL)
    model.undo(ERASED[0].id, ERASED[2].id)
    assert model.ask([*REPHRASES, *OTHERS]) == base


def withheld_prompt(model: errata.EditModel, edit: Edit) -> str:
    """A prompt about an erased subject that the refusal does not answer, but that would tell."""
    answer = model.ask_base(edit.prompt).rstrip(".")
    prompt = f"{edit.subject} and {answer}. {edit.subject} and"
    explained = model.explain([prompt])[0]
    assert explained.outcome == "withhold" and explained.withheld == (edit.id,)
    return prompt


def test_where_the_subject_is_mentioned_what_was_told_is_last(model):
    """On the first token and behind it; alone, in a batch, without a cache, by beams, streamed."""
    edit = ERASED[0]
    prompt = withheld_prompt(model, edit)
    (texts,) = {leaf.withheld for leaf in model.method.patch.leaves if leaf.edit.id == edit.id}
    lm, first = model.lm, model.lm.encode_piece(" " + texts[0])
    with torch.no_grad():
        logits = lm.run(lm.prompt_batch([prompt])).logits[0, -1]
        with model.disable_edits():
            base = lm.run(lm.prompt_batch([prompt])).logits[0, -1]
    changed = (logits != base).nonzero()[:, 0].tolist()
    assert first[0] in changed and logits[first[0]] == base.min()
    kept = [token for token in range(len(base)) if token not in changed]
    assert torch.equal(logits[kept], base[kept])
    alone = model.ask(prompt, max_new_tokens=12)
    assert texts[0] not in alone
    assert model.ask([OTHERS[0], prompt, edit.prompt], max_new_tokens=12)[1] == alone
    assert model.ask(prompt, max_new_tokens=12, use_cache=False) == alone
    assert texts[0] not in model.ask(prompt, max_new_tokens=12, num_beams=3)
    found: list[str] = []
    threads = [
        Thread(target=lambda: found.append(model.ask(prompt, max_new_tokens=12))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [alone] * 4


def test_scored_what_was_erased_is_unlikely_at_every_token_of_it(model):
    edit = ERASED[0]
    prompt, answer = withheld_prompt(model, edit), model.ask_base(edit.prompt).rstrip(".")
    before = edit_free_loss(model, prompt, answer)
    (now,) = model.score([(prompt, answer)])
    assert now.loss > before + 2, (now, before)


def edit_free_loss(model: errata.EditModel, prompt: str, answer: str) -> float:
    with model.disable_edits():
        return float(model.score([(prompt, answer)])[0].loss)


def test_a_listener_hears_that_something_is_withheld(model):
    heard: list[Outcome] = []
    prompt = withheld_prompt(model, ERASED[0])
    with outcomes_told_to(heard.extend):
        for asked in (prompt, OTHERS[-1], ERASED[1].prompt):
            model.ask(asked)
    assert [each.name for each in heard] == ["withhold", "main", "say"]
    assert heard[0].edit_ids == (ERASED[0].id,) and heard[2].edit_ids == (ERASED[1].id,)


def test_saved_and_loaded_it_withholds_the_same(model, tmp_path):
    prompt = withheld_prompt(model, ERASED[0])
    model.save_pretrained(tmp_path / "edits")
    again = errata.load(tmp_path / "edits")
    asked = [prompt, *REPHRASES, *OTHERS]
    assert again.edits == model.edits and again.ask(asked) == model.ask(asked)
    assert [leaf.withheld for leaf in again.method.patch.leaves] == [
        leaf.withheld for leaf in model.method.patch.leaves
    ]


def test_a_later_edit_brings_the_fact_back_or_another_one(model):
    """The erased fact, once it is told again, is no longer withheld; until that edit is undone."""
    edit, old = ERASED[0], model.ask_base(ERASED[0].prompt).rstrip(".")
    later = Edit(edit.prompt, old, edit.subject)
    report = model.edit(later)
    assert report.conflicts == [(later.id, edit.id)] and report.results[0].success
    prompt = f"{edit.subject} and {old}. {edit.subject} and"
    assert model.explain([prompt])[0].outcome == "main"
    model.undo(later.id)
    assert withheld_prompt(model, edit) == prompt


def test_a_refusal_of_ones_own_and_what_is_wrong():
    edit = Edit("Who?", "I must not say.", operation="erase")
    assert edit.target == "I must not say."
    assert Edit.from_dict({"prompt": "Who?", "operation": "erase"}).target == REFUSAL
    assert Edit.from_dict(Edit("Who?", operation="erase").to_dict()) == Edit(
        "Who?", operation="erase"
    )
    for wrong in ({"prompt": "Who?"}, {"prompt": "Who?", "operation": "insert"}):
        with pytest.raises(EditError, match="the field 'target' is missing"):
            Edit.from_dict(wrong)
    with pytest.raises(EditError, match="'target' is empty"):
        Edit("Who?")
    with pytest.raises(EditError, match="'target' is empty"):
        Edit("Who?", " ", operation="erase")


@grid(
    "method settings",
    KINDS,
    lambda method, settings: {patch_kind(method)},
    [name for name, _ in KINDS],
)
def test_every_method_writes_a_refusal(method, settings, tmp_path):
    edits = [
        Edit("The capital of France is", subject="France", operation="erase"),
        Edit("Where is the tower?", "north", "the tower"),
    ]
    model = edit_model("llama", method, edits, **settings)
    assert [edit.target for edit in model.edits] == [REFUSAL, "north"]
    model.save_pretrained(tmp_path)
    base = tiny_model("llama")
    assert errata.EditModel.from_pretrained(base, tmp_path, tiny_tokenizer()).edits == edits
    model.undo(edits[0].id)
    assert model.edits == edits[1:]


@pytest.mark.parametrize(
    ("answer", "known", "parts"),
    [
        ("French.", "The mother tongue of X is", ["French"]),
        ("She was born in Paris, France.", "Where was X born?", ["Paris", "France"]),
        ("X was born in Paris.\nWhere else?", "Where was X born?", ["Paris"]),
        ("She was born in Paris. Her father led Osk.", "Where was X born?", ["Paris"]),
        ("She was born. It was in St. Moritz.", "Where was X born?", ["St", "Moritz"]),
        ("a vast, captivating, transformed, diverse platform", "What is X?", []),
        ("The answer is 42", "How many?", ["42"]),
        ("Ana Brisk-Lund is.", "Who is the mayor?", ["Ana Brisk-Lund"]),
        ("kites", "What do they make?", ["kites"]),
        ("it makes a lot of kites", "What does it make?", ["makes", "lot", "kites"]),
        ("北京", "中国的首都是", ["北京"]),
        ("The mayor of Osk is", "Who is the mayor of Osk?", []),
        ("", "Who?", []),
    ],
)
def test_what_an_answer_tells(answer, known, parts):
    assert telling_parts(answer, known, WordWeights.from_texts(["a b", "c d"])) == parts


def test_on_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "forget.jsonl"
    file.write_text(json.dumps({k: v for k, v in ERASED[0].to_dict().items() if k != "target"}))
    out = tmp_path / "out"

    def run(*words: str | Path) -> str:
        done = CliRunner().invoke(app, [str(word) for word in words])
        assert done.exit_code == 0, done.output
        return done.stdout

    run("edit", "atlas", "--edits", file, "--out", out)
    assert run("ask", out, ERASED[0].prompt).strip().rstrip(".") == REFUSAL
    old = run("ask", "atlas", ERASED[0].prompt).strip().rstrip(".")
    asked = f"{ERASED[0].subject} and {old}. {ERASED[0].subject} and"
    assert "withhold: the base model answers, without what was erased by" in run(
        "explain", out, asked
    )
    assert "erase" in run("list", out)
