"""Text put before the prompt inside the forward: as if the prompt had been asked with it.

The oracle knows no patch: a plain model is given the context and the prompt as one text, one row at
a time.
"""

from __future__ import annotations

from functools import cache
from itertools import chain

import pytest
import torch
from families import TWELVE, chat_tokenizer, tiny_model, tiny_tokenizer
from grid import grid, token_places

from errata.errors import ConfigError, PromptTooLongError
from errata.lm import LM, prompt_tokens
from errata.patches.context import ContextPatch, leaving_room

FAMILIES = grid("family", [(each,) for each in TWELVE], lambda family: {token_places(family)})
NEW = 4
PROMPTS = [
    "The capital",
    "Who wrote the book?",
    "The president of the United States lives in",
    "x",
    "Where is the tower?",
]
CONTEXTS = {
    "The capital": ("The city is York. ",),
    "The president of the United States lives in": ("New Fact: he lives in London.\n", "Prompt: "),
    "x": ("The tower: ",),
}
READ = [("".join(CONTEXTS.get(prompt, ())) + prompt) for prompt in PROMPTS]


def contexts_for(prompts):
    return [CONTEXTS.get(prompt, ()) for prompt in prompts]


def lm_of(family, tokenizer="bytelevel"):
    return LM(
        tiny_model(family), chat_tokenizer() if tokenizer == "chat" else tiny_tokenizer(tokenizer)
    )


@cache
def plain(family, tokenizer="bytelevel"):
    return lm_of(family, tokenizer)


@cache
def patched(family, tokenizer="bytelevel"):
    lm = lm_of(family, tokenizer)
    ContextPatch(contexts_for, room=16).install(lm)
    return lm


def generated(lm, prompts, new=NEW, announced=True, **options):
    batch = lm.prompt_batch(prompts)
    options = {
        "do_sample": False,
        "max_new_tokens": new,
        "min_new_tokens": new,
        "pad_token_id": 0,
    } | options
    with prompt_tokens(batch.prompt_mask):
        out = lm.model.generate(batch.input_ids, attention_mask=batch.attention_mask, **options)
    assert (
        out[:, : batch.input_ids.shape[1]].tolist()
        == batch.input_ids.repeat_interleave(len(out) // len(prompts), dim=0).tolist()
    )
    return out[:, batch.input_ids.shape[1] :].tolist()


@cache
def expected(family, prompt, tokenizer="bytelevel"):
    return generated(plain(family, tokenizer), [READ[PROMPTS.index(prompt)]])[0]


@torch.no_grad()
def last_logits(lm, prompts, side="left", **options):
    batch = lm.prompt_batch(prompts, side)
    logits = lm.run(batch, **options).logits
    assert logits.shape[:2] == batch.input_ids.shape
    return torch.stack(
        [logits[i, int(row.nonzero()[-1])] for i, row in enumerate(batch.prompt_mask)]
    )


@FAMILIES
def test_forward_alone_in_a_batch_and_padded_on_either_side(family):
    lm, base = patched(family), plain(family)
    oracle = torch.cat([last_logits(base, [read]) for read in READ])
    for prompts in ([prompt] for prompt in PROMPTS):
        one = last_logits(lm, prompts)
        torch.testing.assert_close(one[0], oracle[PROMPTS.index(prompts[0])], rtol=0, atol=1e-4)
    for side in ("left", "right"):
        torch.testing.assert_close(last_logits(lm, PROMPTS, side), oracle, rtol=0, atol=1e-4)
    moved = (torch.cat([last_logits(base, [prompt]) for prompt in PROMPTS]) - oracle).abs().amax(
        -1
    ) > 1e-2
    assert moved.tolist() == [prompt in CONTEXTS for prompt in PROMPTS], "the contexts must show"


@FAMILIES
def test_scores_and_loss_with_the_target_appended(family):
    lm, base = patched(family), plain(family)
    targets = ["Paris", "two brothers from the north", "zzz", "7", "the city"]
    oracle = [base.score([pair])[0] for pair in zip(READ, targets, strict=True)]
    for side in ("left", "right"):
        got = lm.score(list(zip(PROMPTS, targets, strict=True)), batch_size=3, side=side)
        assert [score.predicted for score in got] == [score.predicted for score in oracle]
        assert [score.loss for score in got] == pytest.approx(
            [score.loss for score in oracle], abs=1e-4
        )
    for side in ("left", "right"):
        batch = lm.batch([lm.encode(*pair) for pair in zip(PROMPTS, targets, strict=True)], side)
        with torch.no_grad():
            loss = lm.run(batch, labels=batch.input_ids.masked_fill(~batch.target_mask, -100)).loss
        counts = batch.target_mask.sum(-1).tolist()
        wanted = sum(s.loss * n for s, n in zip(oracle, counts, strict=True)) / sum(counts)
        assert loss.item() == pytest.approx(wanted, abs=1e-4)


@FAMILIES
def test_generated_token_by_token(family):
    lm = patched(family)
    wanted = [expected(family, prompt) for prompt in PROMPTS]
    assert generated(lm, PROMPTS) == wanted
    assert generated(lm, PROMPTS, use_cache=False) == wanted
    for i in (0, 1, 2):
        assert generated(lm, [PROMPTS[i]]) == [wanted[i]]
    said = [plain(family).generate([read], max_new_tokens=NEW)[0] for read in READ]
    assert lm.generate(PROMPTS, batch_size=3, max_new_tokens=NEW) == said


@FAMILIES
def test_beams_samples_and_several_return_sequences(family):
    lm, base = patched(family), plain(family)
    for beams in (
        {"num_beams": 3, "num_return_sequences": 2},
        {"num_beams": 2, "use_cache": False},
    ):
        got = generated(lm, PROMPTS[:4], **beams)
        assert got == list(chain(*(generated(base, [read], **beams) for read in READ[:4])))
    sampling = {"do_sample": True, "num_return_sequences": 3, "top_k": 0, "temperature": 1.0}
    for prompt, read in zip(PROMPTS[:3], READ, strict=False):
        said = []
        for model, text in ((lm, prompt), (base, read)):
            torch.manual_seed(7)
            said.append(generated(model, [text], **sampling))
        assert said[0] == said[1]


@pytest.mark.parametrize("tokenizer", ["sentencepiece", "noprefix", "bos", "chat"])
def test_the_tokenizer_does_not_matter(tokenizer):
    lm = patched("gpt2", tokenizer)
    assert generated(lm, PROMPTS) == [expected("gpt2", prompt, tokenizer) for prompt in PROMPTS]
    for prompt, read in zip(PROMPTS, READ, strict=True):
        assert lm.conversation(lm.encode_prompt(prompt)).prompt == prompt
        with torch.no_grad():
            front = torch.tensor([lm.encode_prompt(read)])
            assert (
                plain("gpt2", tokenizer).model(front).logits[0, -1].argmax()
                == last_logits(lm, [prompt]).argmax()
            )


def test_a_conversation_gets_its_context_before_what_the_user_says_last():
    lm, base = lm_of("llama", "chat"), plain("llama", "chat")
    turns = [("user", "The city"), ("assistant", "York"), ("user", "x")]
    ids = lm.tokenizer.apply_chat_template(
        [{"role": role, "content": content} for role, content in turns],
        add_generation_prompt=True,
        return_dict=False,
    )
    assert lm.conversation(ids).prompt is None
    asked = []

    def contexts(prompts):
        asked.extend(prompts)
        return [("Be brief.\n",)]

    ContextPatch(contexts).install(lm)
    text = "<s>user: The city\nassistant: York</s>\nuser: Be brief.\nx\nassistant:"
    longer = lm.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert lm.tokenizer.decode(ids) == text.replace("Be brief.\n", "")
    with torch.no_grad():
        got, wanted = (
            each.model(torch.tensor([row])).logits[0, -1]
            for each, row in ((lm, ids), (base, longer))
        )
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-4)
    assert asked == ["x"]


def test_where_nothing_is_found_it_is_the_base_model_bit_for_bit():
    lm, base = patched("gpt2"), plain("gpt2")
    assert torch.equal(
        last_logits(lm, ["Who wrote the book?", "In the city"]),
        last_logits(base, ["Who wrote the book?", "In the city"]),
    )
    batch = base.prompt_batch(PROMPTS)
    embedded = base.model.get_input_embeddings()(batch.input_ids)
    options = {
        "inputs_embeds": embedded,
        "attention_mask": batch.attention_mask,
        "do_sample": False,
        "max_new_tokens": NEW,
        "pad_token_id": 0,
    }
    assert base.model.generate(**options).shape[0] == len(PROMPTS)
    with pytest.raises(ConfigError, match="with inputs_embeds it is not known what is asked"):
        lm.model.generate(**options)


def test_taken_off_it_leaves_nothing():
    lm, base = lm_of("gpt2"), plain("gpt2")
    patch = ContextPatch(contexts_for)
    with patch.on(lm):
        assert not torch.equal(last_logits(lm, PROMPTS), last_logits(base, PROMPTS))
    assert torch.equal(last_logits(lm, PROMPTS), last_logits(base, PROMPTS))
    assert not lm.model._forward_pre_hooks and not lm.model._forward_hooks
    with ContextPatch().on(lm):
        assert torch.equal(last_logits(lm, PROMPTS), last_logits(base, PROMPTS))


def test_a_prompt_is_looked_up_once_and_the_model_may_be_asked_for_it():
    lm, base = lm_of("llama"), plain("llama")
    asked = []

    def contexts(prompts):
        asked.extend(prompts)
        torch.testing.assert_close(last_logits(lm, prompts), last_logits(base, prompts))
        return contexts_for(prompts)

    patch = ContextPatch(contexts)
    patch.install(lm)
    for _ in range(2):
        assert generated(lm, PROMPTS, use_cache=False) == [
            expected("llama", prompt) for prompt in PROMPTS
        ]
    assert sorted(asked) == sorted(PROMPTS)
    patch.remove()
    CONTEXTS["Where is the tower?"] = ("It is in the north. ",)
    try:
        patch.install(lm)
        assert generated(lm, PROMPTS[4:]) == generated(
            base, ["It is in the north. Where is the tower?"]
        )
    finally:
        del CONTEXTS["Where is the tower?"]


def test_what_does_not_fit_is_left_out_the_first_piece_first():
    lm, base = lm_of("llama"), plain("llama")
    prompt = "Where is the tower?"
    patch = ContextPatch(lambda prompts: [("far " * 20, "near ", "next: ")] * len(prompts), room=32)
    (ids,), short = (
        patch.with_contexts(lm, [tuple(lm.encode_prompt(prompt))]),
        lm.encode_prompt("near next: " + prompt),
    )
    assert list(ids) == short
    patch.install(lm)
    for tokens, wanted in (
        (0, "near next: "),
        (129 - len(short), "next: "),
        (0, "near next: "),
    ):  # decided anew each time
        with leaving_room(tokens):
            assert patch.with_contexts(lm, [tuple(lm.encode_prompt(prompt))]) == [
                tuple(lm.encode_prompt(wanted + prompt))
            ]
    patch.remove()
    patch.room = 129 - len(short)
    assert patch.with_contexts(lm, [tuple(lm.encode_prompt(prompt))]) == [
        tuple(lm.encode_prompt("next: " + prompt))
    ]
    long = tuple(lm.encode_prompt("zq" * 60))
    assert patch.with_contexts(lm, [long]) == [long]
    patch.room = 0
    patch.install(lm)
    with pytest.raises(PromptTooLongError, match="leave more room"):
        generated(lm, [prompt], 127)
    patch.remove()
    assert generated(lm, [prompt]) == generated(base, [prompt])


def test_caches_gone_on_with():
    lm, base = patched("llama"), plain("llama")
    for prompt, read in zip(PROMPTS, READ, strict=True):
        more = torch.tensor([[50, 60, 70]])
        with torch.no_grad():
            front = lm.model(
                torch.tensor([lm.encode_prompt(prompt)]), use_cache=True, return_dict=False
            )
            with prompt_tokens(torch.ones(1, len(lm.encode_prompt(prompt)), dtype=torch.bool)):
                got = lm.model(more, past_key_values=front[1]).logits
            wanted = base.model(torch.tensor([[*base.encode_prompt(read), 50, 60, 70]])).logits
        torch.testing.assert_close(front[0][0, -1], wanted[0, -4], rtol=0, atol=1e-4)
        torch.testing.assert_close(got[0], wanted[0, -3:], rtol=0, atol=1e-4)
    ids = torch.tensor([lm.encode_prompt("x")])
    cache = lm.model(ids, use_cache=True).past_key_values
    longer = torch.cat([ids, torch.tensor([[50, 60]])], dim=1)
    with pytest.raises(ConfigError, match="give the new tokens only"):
        lm.model(
            longer[:, -1:], past_key_values=cache, attention_mask=torch.ones(1, longer.shape[1] + 9)
        )
    with pytest.raises(ConfigError, match="cache of fixed size"):
        generated(lm, PROMPTS, cache_implementation="static")


@pytest.mark.parametrize(
    "ahead", ["prompt_lookup", pytest.param("assistant", marks=pytest.mark.long)]
)
def test_tokens_guessed_ahead(ahead):
    lm = patched("llama")
    options = (
        {"prompt_lookup_num_tokens": 4}
        if ahead == "prompt_lookup"
        else {"assistant_model": tiny_model("llama")}
    )
    for prompt in PROMPTS:
        assert generated(lm, [prompt], 12, **options)[0][:NEW] == expected("llama", prompt)


@pytest.mark.parametrize("keep", [0, 1, 3, torch.tensor([-1]), torch.tensor([2, 3])], ids=str)
def test_the_columns_that_were_asked_for(keep):
    lm = patched("llama")
    batch = lm.prompt_batch(PROMPTS)
    with torch.no_grad():
        whole = lm.run(batch, output_hidden_states=True)
        some = lm.run(batch, logits_to_keep=keep).logits
    wanted = whole.logits[:, keep] if isinstance(keep, torch.Tensor) else whole.logits[:, -keep:]
    assert torch.equal(some, wanted) or torch.allclose(some, wanted, atol=1e-5)
    assert {tuple(h.shape[:2]) for h in whole.hidden_states} == {tuple(batch.input_ids.shape)}


def test_positions_that_the_caller_chose():
    lm, base = patched("gpt2"), plain("gpt2")
    ids, read = (
        torch.tensor([each.encode_prompt(t)]) for each, t in ((lm, PROMPTS[0]), (base, READ[0]))
    )
    with torch.no_grad():
        got = lm.model(ids, position_ids=torch.arange(ids.shape[1])[None] + 5).logits[0, -1]
        wanted = base.model(read, position_ids=torch.arange(read.shape[1])[None] + 5).logits[0, -1]
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-4)
