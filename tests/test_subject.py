"""The last token of a subject, whatever the tokenizer, and what flows through the model there."""

from __future__ import annotations

import pytest
import torch
from families import chat_tokenizer, tiny_model, tiny_tokenizer

from errata.errors import EditError
from errata.lm import LM
from errata.lm.hooks import capture_input, capture_output
from errata.lm.subject import columns_of, keys_at, mention, states_at, subject_token

KINDS = ("bytelevel", "sentencepiece", "noprefix", "bos", "chat")
PROMPTS = [
    ("The capital of France is", "France", "The capital of France"),
    ("France", "France", "France"),
    ("France has as its capital", "France", "France"),
    (
        "The president of the United States lives in",
        "United States",
        "The president of the United States",
    ),
    (
        "Is Annapolis where Ann lives, or Anna?",
        "Ann",
        "Is Annapolis where Ann",
    ),  # a word of its own goes first
    ("France is France's own", "France", "France is France"),  # the last one
    ("zqzqs, a zqzqx", "zqzq", "zqzq"),  # an ending is not the subject's
    ("Is STRASSE a word?", "Straße", "Is STRASSE"),
    ("Who is Zoé?", "Zoé", "Who is Zoé"),
    ("東京の市長は", "東京", "東京"),
    ("  The book  ", "book", "  The book"),
]


def lm_of(kind: str, family: str = "llama") -> LM:
    return LM(tiny_model(family), chat_tokenizer() if kind == "chat" else tiny_tokenizer(kind))


def squeezed(text: str) -> str:
    return "".join(text.split())


@pytest.mark.parametrize("decoding", [False, True], ids=["offsets", "decoding"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("prompt", "subject", "front"), PROMPTS)
def test_up_to_that_token_the_subject_is_said_and_before_it_not(
    kind, decoding, prompt, subject, front, monkeypatch
):
    if kind == "sentencepiece" and not front.isascii():
        pytest.skip("this tokenizer knows no such letters")
    lm = lm_of(kind)
    if decoding:
        monkeypatch.setattr(type(lm.tokenizer), "is_fast", property(lambda self: False))
    ids, token = lm.encode_prompt(prompt), subject_token(lm, prompt, subject)
    said = [
        squeezed(lm.tokenizer.decode(ids[:count], skip_special_tokens=True))
        for count in (token, token + 1)
    ]
    wanted = squeezed(("user: " if kind == "chat" else "") + front)
    assert said[1].startswith(wanted) and not said[0].startswith(wanted)


def test_a_template_may_trim_its_prompt():
    lm = lm_of("chat")
    lm.tokenizer.chat_template = lm.tokenizer.chat_template.replace(
        "message['content']", "message['content'] | trim"
    )
    ids, token = lm.encode_prompt("  The book  "), subject_token(lm, "  The book  ", "book")
    assert lm.decode(ids[: token + 1]).endswith("The book")


def test_a_subject_that_is_not_there():
    with pytest.raises(EditError, match="does not stand in the prompt"):
        subject_token(lm_of("bytelevel"), "The capital of France is", "Spain")


@pytest.mark.parametrize("kind", KINDS)
def test_the_prompts_last_token(kind):
    lm = lm_of(kind)
    each = mention(lm, "The capital of France is", "France", "Rome", ".", at="last")
    assert (
        each.token == len(lm.encode_prompt("The capital of France is")) - 1 < len(each.row.ids) - 1
    )


@pytest.mark.parametrize("side", ["left", "right"])
def test_columns_hold_the_subjects_last_token_on_either_side(side):
    lm = lm_of("bytelevel")
    mentions = [mention(lm, prompt, subject, "Rome", ".") for prompt, subject, _ in PROMPTS[:4]]
    batch = lm.batch([each.row for each in mentions], side)
    for i, column in enumerate(columns_of(batch, mentions).tolist()):
        assert batch.input_ids[i, column] == mentions[i].row.ids[mentions[i].token]


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "bloom", "falcon", "gemma2"])
def test_what_flows_at_the_subject_is_what_flows_in_the_whole_prompt_alone(family):
    lm = lm_of("bytelevel", family)
    mentions = [mention(lm, prompt, subject) for prompt, subject, _ in PROMPTS]
    keys, states = keys_at(lm, 2, mentions), states_at(lm, 1, mentions)
    assert keys.shape == (len(mentions), lm.architecture.d_in) and states.shape == (
        len(mentions),
        lm.architecture.d_out,
    )
    for i, each in enumerate(mentions):
        with (
            torch.no_grad(),
            capture_input(lm.architecture.value_module(lm.model, 2)) as inputs,
            capture_output(lm.architecture.block(lm.model, 1)) as outputs,
        ):
            lm.model(input_ids=torch.tensor([each.row.ids]))
        torch.testing.assert_close(
            keys[i], inputs[0].flatten(0, -2)[each.token], rtol=1e-3, atol=1e-4
        )
        torch.testing.assert_close(
            states[i], outputs[0].flatten(0, -2)[each.token], rtol=1e-3, atol=1e-4
        )
