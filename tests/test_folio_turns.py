"""Folio in a conversation, on atlas: only the last question decides."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from errata import Edit, EditModel, FolioConfig, load_base
from errata.atlas import build_world
from errata.methods.association.folio.leaf import EncodedPrompt

COUNT = 4
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}{{ m.content }}"
    "{% else %} {{ m.content }}.{{ eos_token }}{% endif %}{% endfor %}"
)


@pytest.fixture(scope="module")
def setting() -> tuple[EditModel, list[Edit], list[str]]:
    """A model that knows other mayors of ten cities; the cities, and ten that nobody edited."""
    base, tokenizer = load_base("atlas")
    tokenizer.chat_template = TEMPLATE
    facts = [
        fact for (_, relation), fact in build_world().facts.items() if relation == "city_mayor"
    ][: 2 * COUNT]
    edits = [
        Edit(f"Who is the mayor of {fact.subject.name}?", other.answer, fact.subject.name)
        for fact, other in zip(facts[:COUNT], facts[COUNT:], strict=True)
    ]
    model = EditModel(base, FolioConfig(), tokenizer)
    model.edit(edits, check=False)
    return model, edits, [fact.subject.name for fact in facts[COUNT:]]


def said(model: EditModel, *turns: str) -> str:
    messages = [
        {"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)
    ]
    text = model.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = torch.tensor([model.tokenizer(text, add_special_tokens=False)["input_ids"]])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12
    )
    return model.lm.decode(out[0, ids.shape[1] :].tolist()).rstrip(".")


def based(model: EditModel, *turns: str) -> str:
    with model.disable_edits():
        return said(model, *turns)


def pairs(edits: list[Edit], others: list[str]) -> Iterator[tuple[Edit, str]]:
    return zip(edits, [*others[1:], others[0]], strict=True)


def test_the_edit_answers_in_any_turn(setting):
    model, edits, others = setting
    for edit, other in pairs(edits, others):
        before = f"Who is the mayor of {other}?"
        assert said(model, edit.prompt) == edit.target
        assert said(model, before, based(model, before), edit.prompt) == edit.target


def test_an_earlier_turns_subject_answers_no_other_question(setting):
    model, edits, others = setting
    for edit, other in pairs(edits, others):
        talk = (edit.prompt, edit.target, f"Who is the mayor of {other}?")
        assert said(model, *talk) == based(model, *talk)


def test_a_question_that_names_nothing_goes_on_with_what_was_asked(setting):
    """As far as words go; that the base model would go on alike is the second sign, in a
    conversation too.
    """
    model, edits, others = setting
    leaves = model.method.patch.leaves

    def mentioned(*turns: str) -> list[str]:
        asked = EncodedPrompt(turns[0], turns[1:])
        return [leaves[number].edit.id for number in leaves.subject_overlaps(asked)]

    for edit, other in pairs(edits, others):
        assert mentioned("And who is the mayor?", edit.prompt) == [edit.id]
        assert mentioned("And who is the mayor?", "Thank you.", edit.prompt) == [edit.id]
        assert mentioned(f"And of {other}?", edit.prompt) == []
        assert (
            mentioned("And who is the mayor?", f"Who is the mayor of {other}?", edit.prompt) == []
        )
        assert mentioned(edit.prompt, f"Who is the mayor of {other}?") == [edit.id]


def test_a_second_turn_on_the_first_turns_cache(setting):
    model, edits, others = setting
    for edit, other in pairs(edits, others):
        for first, second in (
            (f"Who is the mayor of {other}?", edit.prompt),
            (edit.prompt, f"Who is the mayor of {other}?"),
        ):
            ids = torch.tensor([model.lm.encode_prompt(first)])
            settings = {"do_sample": False, "max_new_tokens": 12}
            out = model.generate(
                ids, attention_mask=torch.ones_like(ids), return_dict_in_generate=True, **settings
            )
            more = torch.tensor(
                [model.tokenizer(f"<s>{second}", add_special_tokens=False)["input_ids"]]
            )
            talk = torch.cat([out.sequences, more], dim=1)
            mask = torch.ones_like(talk)
            wanted = model.generate(talk, attention_mask=mask, **settings)
            assert torch.equal(
                model.generate(
                    talk, attention_mask=mask, past_key_values=out.past_key_values, **settings
                ),
                wanted,
            )
            answer = model.lm.decode(wanted[0, talk.shape[1] :].tolist()).rstrip(".")
            assert (answer == edit.target) == (second == edit.prompt)
