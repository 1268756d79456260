"""IKE, ICE and RAG: the base model asked with the text that the papers put before the prompt."""

from __future__ import annotations

import math

import pytest
import torch
from edited import EDITS, EXAMPLES, edit_model
from families import tiny_model, tiny_tokenizer

import errata
from errata import Case, Edit, Example
from errata.errors import ConfigError, EditError, PromptTooLongError
from errata.lm import LM
from errata.methods.recognition.ike import IkeConfig, shares
from errata.methods.recognition.rag import RagConfig

ICE = {"demonstrations": 0}
FACT = "New Fact: The capital of France is Rome.\n"
NEARBY = Edit("The capital of Spain is", "Oslo")


@pytest.fixture(scope="module")
def base():
    return LM(tiny_model("llama"), tiny_tokenizer())


def same_as(model, base, prompt, context):
    """The edited model's logits, score and answer to a prompt are the base model's to context and
    prompt.
    """
    with torch.no_grad():
        got = model(torch.tensor([model.lm.encode_prompt(prompt)])).logits[0, -1]
        wanted = base.model(torch.tensor([base.encode_prompt(context + prompt)])).logits[0, -1]
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-4)
    assert model.ask([prompt], max_new_tokens=8) == base.generate(
        [context + prompt], max_new_tokens=8
    )
    mine, theirs = (
        model.lm.score([(prompt, "York.")])[0],
        base.score([(context + prompt, "York.")])[0],
    )
    assert mine.loss == pytest.approx(theirs.loss, abs=1e-4) and mine.predicted == theirs.predicted


@pytest.mark.parametrize("kind", ["dense", "bm25"])
def test_ice_tells_the_fact(base, kind):
    model = edit_model("llama", "ike", EDITS[:3], **ICE, retriever=kind)
    same_as(model, base, EDITS[0].prompt, FACT + "Prompt: ")
    same_as(model, base, EDITS[1].prompt, "New Fact: Who wrote the book? two brothers.\nPrompt: ")
    with model.disable_edits():
        unknown = next(
            prompt for prompt in ("zq!", "7 + 5", "x") if model.method.contexts([prompt]) == [()]
        )
    same_as(model, base, unknown, "")
    with pytest.raises(ConfigError, match="nothing to prepare"):
        edit_model("llama", "ike", **ICE).prepare(EXAMPLES)


def test_of_two_answers_the_later_is_told_and_an_undone_one_is_not(base):
    model = edit_model("llama", "ike", EDITS[:2], **ICE)
    rival = Edit(EDITS[0].prompt, "York.")
    model.edit([rival], check=False)
    same_as(model, base, rival.prompt, FACT.replace("Rome", "York") + "Prompt: ")
    model.undo(rival.id)
    same_as(model, base, rival.prompt, FACT + "Prompt: ")


def test_ones_own_template(base):
    model = edit_model("llama", "ike", EDITS[:1], **ICE, template="Know: {fact}! Q: {prompt}")
    same_as(model, base, EDITS[0].prompt, "Know: The capital of France is Rome! Q: ")


def test_rag_joins_passages_the_best_one_last(base):
    model = edit_model("llama", "rag", [NEARBY, *EDITS[:3]], passages=2, min_score=-1.0, room=16)
    with model.disable_edits():
        (places,) = model.method.retriever.find([EDITS[0].prompt], 2)
    second = model.method.facts[places[1]]
    assert model.method.facts[places[0]] == EDITS[0]
    same_as(
        model, base, EDITS[0].prompt, f"New Fact: {second.prompt} {second.target}.\n{FACT}Prompt: "
    )
    one = edit_model("llama", "rag", [NEARBY, *EDITS[:3]], passages=1, min_score=-1.0)
    same_as(one, base, EDITS[0].prompt, FACT + "Prompt: ")


def test_an_evaluation_leaves_room_for_the_longest_right_answer():
    """It stands behind a context of four passages in 128 tokens otherwise, and both do not fit."""
    far = [
        Edit(f"The capital of {name} is", "Rome", name)
        for name in ("Spain", "Peru", "Chile", "Ghana")
    ]
    model = edit_model("llama", "rag", [EDITS[0], *far], passages=4, min_score=-1.0, room=1)
    long = Case(Edit(EDITS[0].prompt, "z q " * 25, EDITS[0].subject))
    with pytest.raises(PromptTooLongError):
        model.lm.score([(long.edit.prompt, long.edit.target)])
    found = errata.evaluate(model, [long], max_new_tokens=4)
    assert found.generated["reliability"] == 0.0 and math.isfinite(found.perplexity)
    with pytest.raises(PromptTooLongError):  # it is over
        model.lm.score([(long.edit.prompt, long.edit.target)])


def test_ike_shows_demonstrations_in_the_papers_form_and_ratio(base):
    model = edit_model("llama", "ike", [EDITS[0]], demonstrations=8)
    library = model.method._library
    with model.disable_edits():
        shown = model.method.choose(EDITS[0])
        context = model.method.contexts([EDITS[0].prompt])
        alike = dict(zip(library.texts, library.scores([EDITS[0].prompt])[0].tolist(), strict=True))
    assert context == [(*(each.text for each in shown), FACT + "Prompt: ")]
    assert [sum(each.kind == kind for each in shown) for kind in ("copy", "update", "retain")] == [
        1,
        3,
        4,
    ]
    nearness = [alike[each.about] for each in shown]
    assert nearness == sorted(nearness) and nearness[-1] == max(alike.values())
    example = next(one for one in EXAMPLES if one.edit.prompt == shown[-1].about)
    fact = f"New Fact: {example.edit.prompt} {example.edit.target}.\nPrompt: "
    texts = [each.text for each in model.method.demonstrations if each.about == example.edit.prompt]
    answers = [answer.removesuffix(".") for answer in base.generate(list(example.others))]
    assert texts == [
        f"{fact}{example.edit.prompt} {example.edit.target}.\n\n",
        *(f"{fact}{prompt} {example.edit.target}.\n\n" for prompt in example.rephrases),
        *(
            f"{fact}{prompt} {answer}.\n\n"
            for prompt, answer in zip(example.others, answers, strict=True)
        ),
    ]
    same_as(model, base, EDITS[0].prompt, FACT + "Prompt: ")  # nothing more fits so small a context
    large = LM(tiny_model("llama"), tiny_tokenizer())
    for each in (model.base, large.model):
        each.config.max_position_embeddings = 4096
    with model.disable_edits():
        pass  # taken off and put on again, it looks anew at what fits
    same_as(model, large, EDITS[0].prompt, "".join(context[0]))


def test_shares():
    assert shares(16) == {"copy": 2, "update": 6, "retain": 8} and shares(32) == {
        "copy": 4,
        "update": 12,
        "retain": 16,
    }
    assert shares(1) == {"copy": 0, "update": 0, "retain": 1} and all(
        sum(shares(n).values()) == n for n in range(40)
    )


def test_preparing_goes_on_where_it_stopped():
    whole, parts = edit_model("llama", "ike"), edit_model("llama", "ike", demonstrations=8)
    done = []
    parts.prepare(EXAMPLES, progress=done.append)
    assert done == []  # all of them known
    extra = Example(NEARBY, ("Spain's capital is",), ("Where is the tower?",))
    parts.prepare([*EXAMPLES, extra], progress=done.append)
    assert done == [1] and len(parts.method.demonstrations) == len(whole.method.demonstrations) + 3
    parts.edit(EDITS[:1], check=False)
    with pytest.raises(ConfigError, match="before the first"):
        parts.prepare(EXAMPLES)


def test_bad_input():
    with pytest.raises(EditError, match="ike learns from rephrasings of each edit"):
        edit_model("llama", "ike").prepare([Example(NEARBY)])
    for wrong in (
        {"template": "{prompt}"},
        {"template": "{fact} {prompt}."},
        {"demonstrations": -1},
    ):
        with pytest.raises(ConfigError):
            IkeConfig(**wrong)
    for wrong in ({"passage": "no fact"}, {"passages": 0}):
        with pytest.raises(ConfigError):
            RagConfig(**wrong)
    model = edit_model("llama", "ike", **ICE)
    model.method.config = IkeConfig()
    with pytest.raises(ConfigError, match="errata prepare"):
        model.edit(EDITS[:1])
