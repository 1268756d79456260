"""Other names of an edit's subject: checked, kept, and what Folio's router goes by."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_folio_turns import TEMPLATE, said

from errata import Edit, EditModel, FolioConfig, load_base
from errata.atlas import build_world
from errata.errors import EditError
from errata.methods.association.folio.leaf import EncodedPrompt
from errata.words.names import NameIndex, WordWeights
from errata.words.questions import with_subject

NAMES = ("the Twin Harbours", "TH-2")


@pytest.fixture(scope="module")
def facts() -> list:
    world = build_world()
    return [fact for (_, relation), fact in world.facts.items() if relation == "city_mayor"][:4]


@pytest.fixture(scope="module")
def model(facts: list) -> EditModel:
    """A model that knows another mayor of a city with two further names, and of one without."""
    base, tokenizer = load_base("atlas")
    tokenizer.chat_template = TEMPLATE
    named = [facts[0].subject.name, facts[1].subject.name]
    edits = [
        Edit(f"Who is the mayor of {name}?", fact.answer, name, aliases=aliases)
        for name, fact, aliases in zip(named, facts[2:], (NAMES, ()), strict=True)
    ]
    model = EditModel(base, FolioConfig(), tokenizer)
    model.edit(edits, check=False)
    return model


def answers(model: EditModel, name: str) -> list[str]:
    return asked(model, f"Who is the mayor of {name}?", f"Who was elected mayor in {name}?")


def asked(model: EditModel, *prompts: str) -> list[str]:
    return [each.rstrip(".") for each in model.lm.generate(prompts, max_new_tokens=12)]


@pytest.mark.parametrize("name", [*NAMES, "the twin harbours"])
def test_an_alias_is_answered_like_the_subject(model: EditModel, name: str) -> None:
    edit = model.edits[0]
    wanted = [edit.target] * 2
    assert answers(model, edit.subject) == wanted
    assert answers(model, name) == wanted


@pytest.mark.parametrize("name", ["the Harbours", "TH-3", "the Twin Towers"])
def test_another_name_is_no_alias(model: EditModel, name: str) -> None:
    with model.disable_edits():
        before = answers(model, name)
    assert answers(model, name) == before


def test_what_else_is_asked_of_an_alias_stays_the_base_models(model: EditModel) -> None:
    prompt = f"In which country is {NAMES[0]}?"
    with model.disable_edits():
        before = asked(model, prompt)
    assert asked(model, prompt) == before


def test_an_alias_in_an_earlier_turn(model: EditModel) -> None:
    leaves = model.method.patch.leaves
    mentioned = [
        leaves.subject_overlaps(EncodedPrompt("And who is the mayor?", (f"What is {name}?",)))
        for name in (*NAMES, "the Twin Towers")
    ]
    assert [list(each) for each in mentioned] == [[0], [0], []]
    turns = (
        f"In which country is {NAMES[0]}?",
        "I do not know",
        f"Who is the mayor of {NAMES[1]}?",
    )
    assert said(model, *turns) == model.edits[0].target


def test_aliases_are_saved_and_undone(model: EditModel, facts: list, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    base, tokenizer = load_base("atlas")
    tokenizer.chat_template = TEMPLATE
    opened = EditModel.from_pretrained(base, tmp_path, tokenizer)
    assert opened.edits == model.edits
    assert opened.edits[0].aliases == NAMES
    assert answers(opened, NAMES[1]) == [model.edits[0].target] * 2
    opened.undo(opened.edits[0].id)
    with opened.disable_edits():
        before = answers(opened, NAMES[1])
    assert answers(opened, NAMES[1]) == before
    assert answers(opened, facts[1].subject.name) == [facts[3].answer] * 2


def test_the_longest_alias_gives_way_to_the_subject() -> None:
    names = ("Ronaldo", "Ronaldo dos Santos", "CR7")
    told = {
        "Where does CR7 live?": "Where does Cristiano Ronaldo live?",
        "Where does Ronaldo dos Santos live?": "Where does Cristiano Ronaldo live?",
        "Ronaldo's home, where Ronaldo is": "Cristiano Ronaldo's home, where Cristiano Ronaldo is",
        "Where does Cristiano Ronaldo live?": "Where does Cristiano Ronaldo live?",
        "Where does Rivaldo live?": "Where does Rivaldo live?",
    }
    assert {text: with_subject(text, "Cristiano Ronaldo", names) for text in told} == told


def test_a_number_is_found_by_any_of_its_names() -> None:
    index = NameIndex(WordWeights.from_texts(["one text"]), 0.7)
    for name in ("Kelor", "Old Kelor", "Quaystown"):
        index.add(1, name)
    index.add(2, "Old Tamis")
    assert index.find("from Quaystown to Kelor") == {1: 1.0}
    assert set(index.find("Old Tamis and Old Kelor")) == {1, 2}
    index.remove(1)
    assert index.find("from Quaystown to Old Kelor") == {}
    assert index.find("Old Tamis") == {2: 1.0}


def test_aliases_are_part_of_an_edit() -> None:
    plain = Edit("Who leads Kelor?", "Ana", "Kelor")
    named = Edit.from_dict({**plain.to_dict(), "id": None, "aliases": ["Quaystown"]})
    assert (plain.id, "aliases" in plain.to_dict()) == ("d5ba90fb4c31", False)
    assert named.aliases == ("Quaystown",)
    assert named.to_dict()["aliases"] == ["Quaystown"]
    assert named.id != plain.id
    assert Edit.from_dict(named.to_dict()) == Edit.from_ledger(named.to_dict()) == named


@pytest.mark.parametrize(
    ("aliases", "subject", "message"),
    [
        ("Quaystown", "Kelor", "must be a list of names"),
        ([1], "Kelor", "one of 'aliases' must be text"),
        ([" "], "Kelor", "one of 'aliases' is empty"),
        (["!!"], "Kelor", "has no letter"),
        (["x" * 1001], "Kelor", "1001 characters"),
        (["Quaystown"], None, "'subject', which is missing"),
    ],
)
def test_bad_aliases(aliases: object, subject: str | None, message: str) -> None:
    with pytest.raises(EditError, match=message):
        Edit("Who leads Kelor?", "Ana", subject, aliases=aliases)
