"""Key-value prefixes: an edit's sentence as keys and values, in front of what is about it."""

from __future__ import annotations

from datetime import datetime
from types import SimpleNamespace

import pytest
import torch
from edited import EDITS, PROMPTS, edit_model, edited_model, same_state
from families import TWELVE, tiny_model, tiny_tokenizer

import errata
from errata import Edit
from errata.errors import ConfigError
from errata.lm.encoding import Row
from errata.methods.association.kv_prefix.patch import KeyValuePrefix
from errata.methods.association.kv_prefix.prefix import Opening, Prefix, opening_of, read_prefix
from errata.methods.fact_method import fact_text

SENTENCE = "New Fact: {fact}.\n"


FEW = ("llama", "gpt2", "bloom", "mpt", "gemma2")
"""One for each way in which tokens are placed, with sliding windows, too."""


@pytest.mark.parametrize(
    "family",
    [*FEW, *(pytest.param(name, marks=pytest.mark.long) for name in TWELVE if name not in FEW)],
)
def test_one_fact_is_read_exactly_as_the_same_text_is(family: str) -> None:
    """In batches of prompts with facts and without, of several lengths, too."""
    words = {"passage": SENTENCE, "question": "", "passages": 1}
    read = edited_model(family, "rag", EDITS, **words)
    prefixed = edited_model(family, "kv-prefix", EDITS, passage=SENTENCE)
    lm = prefixed.lm
    asked = [PROMPTS[0], PROMPTS[7], PROMPTS[2], "x"]
    with torch.no_grad():
        batch = lm.prompt_batch(asked)
        one, other = (
            model.lm.run(batch, use_cache=False).logits[batch.attention_mask.bool()]
            for model in (read, prefixed)
        )
    found = prefixed.method.patch.chosen(lm, [tuple(lm.encode_prompt(text)) for text in asked])
    assert any(found) and not all(found)
    torch.testing.assert_close(one, other, rtol=2e-4, atol=2e-4)
    assert prefixed.ask(asked, max_new_tokens=6) == read.ask(asked, max_new_tokens=6)


def test_a_first_token_that_every_text_has_is_there_once() -> None:
    """With a tokenizer that begins texts with a token of its own."""
    base, tokenizer = tiny_model("llama"), tiny_tokenizer("bos")
    words = {"layer": 2, "background": 32, "passage": SENTENCE}
    lm = errata.LM(base, tokenizer)
    assert opening_of(lm, lm.encode_prompt("The king")).ids == (tokenizer.bos_token_id,)
    answers = []
    for config in (
        errata.RagConfig(question="", passages=1, **words), errata.KvPrefixConfig(**words),
    ):  # fmt: skip
        model = errata.get_edit_model(base, config, tokenizer)
        model.edit(EDITS, check=False)
        with torch.no_grad():
            batch = model.lm.prompt_batch([PROMPTS[0], PROMPTS[2], "x"])
            answers.append(model.lm.run(batch).logits)
        mask = batch.attention_mask.bool()
        mask[:, 1:] &= mask[:, :-1]  # what stands in the place of the first token is not read
        mask[:, 0] = False
        model.unload()
    torch.testing.assert_close(answers[0][mask], answers[1][mask], rtol=2e-4, atol=2e-4)


LINES = (
    "{{ bos_token }}{% for message in messages %}<{{ message['role'] }}>\n{{ message['content'] }}"
    "\n{% endfor %}{% if add_generation_prompt %}<assistant>\n{% endif %}"
)
"""A chat template after which a question begins with a token of its own."""


@pytest.mark.parametrize(("family", "beginning"), [("llama", True), ("gpt2", False)])
def test_in_a_chat_template_a_fact_stands_inside_the_users_turn(family, beginning) -> None:
    """It stood in front of the template, where SmolLM2 reads less than inside.

    Behind a system message of the conversation's own, too, in one batch with others.
    """
    tokenizer = tiny_tokenizer("bos" if beginning else "bytelevel")
    tokenizer.chat_template = LINES if beginning else LINES.replace("{{ bos_token }}", "")
    words = {"layer": 2, "background": 32, "passage": SENTENCE, "min_score": -2.0}
    system = {"role": "system", "content": "Be brief."}
    asked = [
        tokenizer.apply_chat_template(
            [*begun, {"role": "user", "content": text}], add_generation_prompt=True, tokenize=False
        )
        for text in PROMPTS[:2]
        for begun in ([system], [])
    ]
    logits, answers = [], []
    for config in (
        errata.RagConfig(question="", passages=1, **words), errata.KvPrefixConfig(**words),
    ):  # fmt: skip
        model = errata.get_edit_model(tiny_model(family), config, tokenizer)
        model.edit(EDITS, check=False)
        rows = [Row(tuple(ids), len(ids)) for ids in map(model.lm.encode_text, asked)]
        with torch.no_grad():
            logits.append(model.lm.run(model.lm.batch(rows)).logits[:, -1])
        answers.append(model.ask(PROMPTS[:3], max_new_tokens=6))
    torch.testing.assert_close(logits[0], logits[1], rtol=2e-4, atol=2e-4)
    assert answers[0] == answers[1] != model.ask_base(PROMPTS[:3], max_new_tokens=6)
    openings = [opening_of(model.lm, row.ids) for row in rows]
    assert len({*openings}) == 2 and model.method.patch.opening == openings[1]
    texts = [SENTENCE.replace("{fact}", fact_text(edit)) for edit in EDITS]
    kept = sum(each.length for each in model.method.patch.prefixes.values())
    assert kept == sum(map(len, model.lm.encode_pieces(texts)))


def test_a_template_may_begin_otherwise_later(tmp_path, monkeypatch) -> None:
    """One that writes the date does; what was read behind another stays what it was."""

    def today(day: int) -> None:
        clock = SimpleNamespace(now=lambda: datetime(2026, 1, day))
        monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", clock)

    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = LINES.replace("{{ bos_token }}", "{{ strftime_now('Day %d.') }}\n")
    config = errata.KvPrefixConfig(layer=2, background=32, passage=SENTENCE, min_score=-2.0)
    today(1)
    model = errata.get_edit_model(tiny_model("llama"), config, tokenizer)
    model.edit(EDITS[:2], check=False)
    model.save_pretrained(tmp_path / "mine")
    today(2)
    opened = errata.EditModel.from_pretrained(tiny_model("llama"), tmp_path / "mine", tokenizer)
    fresh = errata.get_edit_model(tiny_model("llama"), config, tokenizer)
    fresh.edit(EDITS[:2], check=False)
    with torch.no_grad():
        one, other = (
            each.lm.run(each.lm.prompt_batch(PROMPTS[:2])).logits[:, -1] for each in (opened, fresh)
        )
    torch.testing.assert_close(one, other, rtol=2e-4, atol=2e-4)
    opened.edit(EDITS[2:3], check=False)
    assert opened.method.patch.opening == model.method.patch.opening
    assert opened.method.patch.opening != fresh.method.patch.opening


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_order_of_several_facts_does_not_matter(family: str) -> None:
    """Each of them is read by itself, and all begin at one position."""
    model = edit_model(family, "kv-prefix", passages=2, min_score=-2.0)
    lm = model.lm
    texts = ["The king of Spain is Arthur.\n", "The flag of Peru is blue and white.\n"]
    found = []
    for order in (texts, texts[::-1]):
        patch = KeyValuePrefix(lambda text, opening: read_prefix(lm, text, opening))
        patch.prefixes = {text: read_prefix(lm, text, Opening()) for text in order}
        patch.context_for = lambda prompts, order=order: [tuple(order) for _ in prompts]
        with patch.on(lm), torch.no_grad():
            found.append(lm.run(lm.prompt_batch(PROMPTS[:2])).logits)
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)


def test_an_edit_keeps_its_own_keys_and_values_whatever_the_others_are() -> None:
    one, other = (edit_model("llama", "kv-prefix") for _ in range(2))
    one.edit(EDITS, check=False)
    for edit in reversed(EDITS):
        other.edit([edit], check=False)
    for edit in EDITS:
        mine, theirs = (model.method.patch.prefixes[edit.id] for model in (one, other))
        assert all(map(torch.equal, mine.keys + mine.values, theirs.keys + theirs.values))
    other.undo([edit.id for edit in EDITS[1:]])
    assert [*other.method.patch.prefixes] == [EDITS[0].id]
    same_state(other, edit_model("llama", "kv-prefix", EDITS[:1]))


def test_a_later_edit_of_one_prompt_counts_and_its_undo_brings_the_earlier_back() -> None:
    model = edit_model("llama", "kv-prefix", EDITS[:1])
    ids = tuple(model.lm.encode_prompt(EDITS[0].prompt))
    before = model.method.patch.chosen(model.lm, [ids])
    later = Edit(EDITS[0].prompt, "Oslo", EDITS[0].subject, id="later")
    model.edit([later], check=False)
    assert model.method.patch.chosen(model.lm, [ids])[0] is not before[0]
    assert model.method.patch.chosen(model.lm, [ids]) == [[model.method.patch.prefixes["later"]]]
    model.undo("later")
    assert model.method.patch.chosen(model.lm, [ids]) == before


def test_facts_that_do_not_fit_are_left_out_the_best_last() -> None:
    model = edit_model("gpt2", "kv-prefix", EDITS, passages=2, min_score=-2.0, passage=SENTENCE)
    limit = model.lm.context_length
    ids = tuple(model.lm.encode_prompt("The capital of France is"))
    lengths = [len(each) for each in model.method.patch.chosen(model.lm, [ids])]
    assert lengths == [2]
    room = limit - len(ids) - model.method.patch.chosen(model.lm, [ids])[0][-1].length
    tight = edit_model(
        "gpt2", "kv-prefix", EDITS, passages=2, min_score=-2.0, passage=SENTENCE, room=room
    )
    (kept,) = tight.method.patch.chosen(tight.lm, [ids])
    assert len(kept) == 1 and kept[0].length == limit - len(ids) - room
    full = edit_model(
        "gpt2", "kv-prefix", EDITS, passages=2, min_score=-2.0, passage=SENTENCE, room=room + 1
    )
    assert full.method.patch.chosen(full.lm, [ids]) == [[]]
    assert full.ask(["The capital of France is"]) == full.ask_base(["The capital of France is"])


def test_bad_settings_and_files_are_refused_in_a_line() -> None:
    with pytest.raises(ConfigError, match=r"it must say where the \{fact\} stands"):
        errata.KvPrefixConfig(passage="New Fact.")
    model = edit_model("llama", "kv-prefix", EDITS[:2])
    tensors, values = model.method.state()
    wrong = {**tensors, "tokens": tensors["tokens"] + 1}
    with pytest.raises(ValueError, match=r"'keys\.0' is of shape"):
        model.method.load_state(EDITS[:2], wrong, values)
    with pytest.raises(KeyError):
        model.method.load_state(EDITS[:2], {}, values)
    for wrong, says in (([10**6], "'opening' reaches"), ([1] * 10**4, "more than the model reads")):
        with pytest.raises(ValueError, match=says):
            model.method.load_state(EDITS[:2], {**tensors, "opening": torch.tensor(wrong)}, values)
    cut = {**tensors, "values.1": tensors["values.1"][:, :-1]}
    with pytest.raises(ValueError, match=r"'values\.1' is of shape"):
        model.method.load_state(EDITS[:2], cut, values)
    assert model.edits == EDITS[:2]
    assert isinstance(model.method.patch.prefixes[EDITS[0].id], Prefix)
