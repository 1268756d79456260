"""A decision belongs to its prompt: behind a prefix, as a second turn, from any cache.

The oracle is the same model asked the whole text at once, without any cache.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
from edited import EDITS, KINDS, PROMPTS, edited_model
from grid import grid, patch_kind

from errata import EditModel
from errata.errors import ConfigError
from errata.lm import prompt_tokens
from errata.lm.cache import cache_in

NEW = 2
METHODS = grid(
    "method settings",
    KINDS,
    lambda method, settings: {patch_kind(method)},
    [name for name, _ in KINDS],
)
VIRTUAL = ("prefix-tuning", "prompt-tuning", "memoryllm")
"""Methods whose caches hold virtual tokens, and that decide nothing."""
WEIGHTS = (
    "ft",
    "ewc",
    "replay",
    "rome",
    "memit",
    "alphaedit",
    "ultraedit",
    "mend",
    "lora",
    "adapter",
    "bitfit",
    "neuraldb",
    "t-patcher",
)
"""Methods that decide nothing of a prompt: what a cache holds is what they said when it was filled.
"""


@cache
def edited(method: str, settings: tuple[tuple[str, Any], ...]) -> EditModel:
    return edited_model("llama", method, EDITS[:4], **dict(settings))


def model_of(method: str, settings: dict[str, Any]) -> EditModel:
    return edited(method, tuple(settings.items()))


def answer(model: EditModel, ids: list[int], **options: Any) -> list[int]:
    given = torch.tensor([ids])
    settings: dict[str, Any] = {
        "do_sample": False,
        "max_new_tokens": NEW,
        "min_new_tokens": NEW,
        "pad_token_id": 0,
    }
    out = model.generate(given, attention_mask=torch.ones_like(given), **settings, **options)
    return out[0, len(ids) :].tolist()


@torch.no_grad()
def read(model: EditModel, ids: list[int], **options: Any) -> Any:
    return model(input_ids=torch.tensor([ids]), use_cache=True, **options)


@METHODS
def test_a_prefix_read_once_and_gone_on_from(method, settings):
    model = model_of(method, settings)
    moved = 0
    for prompt in PROMPTS[:2]:
        ids = model.lm.encode_prompt(prompt)
        wanted, with_cache = answer(model, ids), read(model, ids).logits[0, -1]
        with model.disable_edits():
            moved += answer(model, ids) != wanted
        for place in (len(ids) // 2, len(ids) - 1):
            held = read(model, ids[:place]).past_key_values
            assert answer(model, ids, past_key_values=copy.deepcopy(held)) == wanted
            if place < len(ids) - 1:  # a single token is the answer's next, unless it is announced
                got = read(model, ids[place:], past_key_values=copy.deepcopy(held))
                assert got.logits.shape[1] == len(ids) - place
                torch.testing.assert_close(got.logits[0, -1], with_cache, rtol=0, atol=1e-4)
            with prompt_tokens(torch.ones(1, len(ids), dtype=torch.bool)):
                got = read(model, ids[place:], past_key_values=copy.deepcopy(held))
            torch.testing.assert_close(got.logits[0, -1], with_cache, rtol=0, atol=1e-4)
    assert moved or method in (*VIRTUAL, *WEIGHTS), "the edits must show"


@torch.no_grad()
def test_a_cache_is_seen_by_either_name():
    """`generate` gives it by the model's own name, which transformers 5.24 changed: a token behind
    it is the answer's next, and no prompt.
    """
    model = model_of("folio", {})
    ids = model.lm.encode_prompt(PROMPTS[0])
    wanted = answer(model, ids)
    for name in {"past_key_values", model.lm.cache_name}:
        said: list[int] = []
        new, held = ids, None
        while len(said) < NEW:
            out = read(model, new, **{name: held})
            new, held = [int(out.logits[0, -1].argmax())], cache_in(out)
            said += new
        assert said == wanted


@METHODS
def test_a_second_turn_on_the_first_turns_cache(method, settings):
    model = model_of(method, settings)
    for first, second in ((PROMPTS[6], PROMPTS[0]), (PROMPTS[0], PROMPTS[1])):
        ids = model.lm.encode_prompt(first)
        given = torch.tensor([ids])
        settings_: dict[str, Any] = {
            "do_sample": False,
            "max_new_tokens": NEW,
            "min_new_tokens": NEW,
            "pad_token_id": 0,
        }
        out = model.generate(
            given, attention_mask=torch.ones_like(given), return_dict_in_generate=True, **settings_
        )
        talk = [*out.sequences[0].tolist(), *model.lm.encode_prompt("\n" + second)]
        wanted = answer(model, talk)
        assert answer(model, talk, past_key_values=out.past_key_values) == wanted


@METHODS
def test_a_cache_filled_before_an_edit(method, settings):
    """An edit in between decides anew; where weights hold the edits, the cache is what they said
    when it was filled.
    """
    if method in (*VIRTUAL, *WEIGHTS):
        pytest.skip("nothing is decided")
    model = edited_model("llama", method, EDITS[:4], **settings)
    prompt = EDITS[4].prompt
    ids = model.lm.encode_prompt(prompt)
    held = read(model, ids[:-2]).past_key_values
    model.edit(EDITS[4], check=False)
    assert answer(model, ids, past_key_values=held) == answer(model, ids)


@METHODS
def test_a_cache_that_the_base_model_filled(method, settings):
    if method in (*VIRTUAL, *WEIGHTS):
        pytest.skip("nothing is decided")
    model = model_of(method, settings)
    ids = model.lm.encode_prompt(PROMPTS[0])
    with model.disable_edits():
        held = read(model, ids[:-2]).past_key_values
    with pytest.raises(ConfigError, match="filled without these edits"):
        read(model, ids[-2:], past_key_values=copy.deepcopy(held))
    assert answer(model, ids, past_key_values=held) == answer(model, ids), (
        "generate knows the whole text"
    )


@pytest.mark.parametrize("method", ["wise", "folio", "rag", "knn-lm"])
def test_several_go_on_from_one_prefix_at_once(method):
    """A batch of questions behind one prefix, its cache repeated for them."""
    model = model_of(method, {})
    prefix = model.lm.encode_prompt("In the city of the north. ")
    rests = [model.lm.encode_prompt(prompt) for prompt in PROMPTS[:3]]
    held = read(model, prefix).past_key_values
    held.batch_repeat_interleave(3)
    width = max(map(len, rests))
    ids = torch.tensor([[0] * (width - len(rest)) + rest for rest in rests])
    whole = torch.cat([torch.tensor([prefix] * 3), ids], dim=1)
    mask = torch.cat([torch.ones(3, len(prefix), dtype=torch.long), (ids != 0).long()], dim=1)
    settings: dict[str, Any] = {
        "do_sample": False,
        "max_new_tokens": NEW,
        "min_new_tokens": NEW,
        "pad_token_id": 0,
    }
    wanted = model.generate(whole, attention_mask=mask, **settings)
    assert torch.equal(
        model.generate(whole, attention_mask=mask, past_key_values=held, **settings), wanted
    )
    for row, rest in enumerate(rests):
        assert wanted[row, -NEW:].tolist() == answer(model, [*prefix, *rest])


@pytest.mark.parametrize("method", ["wise", "grace", "rag"])
def test_what_cannot_be_read_anew_is_refused(method):
    model = model_of(method, {})
    ids = model.lm.encode_prompt(PROMPTS[0])
    with torch.no_grad():
        embedded = model.base.get_input_embeddings()(torch.tensor([ids]))
        if method == "rag":
            with pytest.raises(ConfigError, match="give input_ids"):
                model(inputs_embeds=embedded)
            return
        held = model(inputs_embeds=embedded[:, :-3], use_cache=True).past_key_values
        with pytest.raises(ConfigError, match="filled from embeddings"):
            model(inputs_embeds=embedded[:, -3:], past_key_values=held)


@pytest.mark.parametrize("method", ["folio", "wise", "knn-lm", "rag"])
def test_hidden_states_and_loss_behind_a_prefix(method):
    model = model_of(method, {})
    ids = model.lm.encode_prompt(PROMPTS[0])
    target = model.lm.encode_prompt(" Rome")
    whole = torch.tensor([[*ids, *target]])
    labels = torch.tensor([[-100] * len(ids) + target])
    with torch.no_grad():
        wanted = model(input_ids=whole, labels=labels, output_hidden_states=True)
        held = read(model, ids[:3]).past_key_values
        got = model(
            input_ids=whole[:, 3:],
            labels=labels[:, 3:],
            past_key_values=held,
            output_hidden_states=True,
        )
    torch.testing.assert_close(got.loss, wanted.loss, rtol=0, atol=1e-4)
    torch.testing.assert_close(got.logits, wanted.logits[:, 3:], rtol=0, atol=1e-4)
    for mine, theirs in zip(got.hidden_states, wanted.hidden_states, strict=True):
        torch.testing.assert_close(mine[:, -1], theirs[:, -1], rtol=0, atol=1e-4)
