"""Prompts keep their tokens, targets read as they should, and batches change no answer."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from families import TWELVE, chat_tokenizer, tiny_model, tiny_tokenizer

from errata.errors import ConfigError, PromptTooLongError
from errata.lm import LM
from errata.lm.background import background_texts, value_scale
from errata.lm.encoding import Batch, Row, announced_prompt_tokens, in_batches, prompt_tokens

KINDS = ("bytelevel", "sentencepiece", "noprefix", "bos")
PAIRS = [
    ("The capital of France is", "Paris"),
    ("Who wrote the book?", "the author"),
    ("Where is the tower? It stands", "in London, or in Rome."),
    ("A: 7 + 5 =", "12"),
    ("He said:", "'stop!'"),
    ("x", "y"),
]
PROMPTS = [prompt for prompt, _ in PAIRS]


@cache
def lm_of(family: str, kind: str = "bytelevel") -> LM:
    return LM(tiny_model(family), tiny_tokenizer(kind))


def read(lm, ids):
    return lm.tokenizer.decode(list(ids), skip_special_tokens=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("prompt", "target"), PAIRS)
def test_the_prompt_keeps_its_tokens_and_the_whole_reads_well(kind, prompt, target):
    lm = lm_of("llama", kind)
    row = lm.encode(prompt, target)
    alone = lm.tokenizer(prompt)["input_ids"]
    assert list(row.ids[: row.prompt_length]) == lm.encode_prompt(prompt) == alone
    assert read(lm, row.ids).lstrip() == f"{prompt} {target}"
    assert row.prompt_length + row.target_length == len(row.ids) and row.ending_length == 0
    assert lm.decode(row.ids[row.prompt_length :]) == target
    # as it would be said: the tokens of the whole text, whose cut falls between prompt and target
    assert list(row.ids) == lm.tokenizer(f"{prompt} {target}")["input_ids"]
    ended = lm.encode(prompt, target, ending=".")
    assert ended.ids[: len(row.ids)] == row.ids and ended.ids[-1] == 2 and ended.ending_length >= 2
    assert read(lm, ended.ids).lstrip() == f"{prompt} {target}."
    assert lm.encode(prompt, target, ending="").ids == (*row.ids, 2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("prompt", "target", "whole"),
    [
        ("The capital is", " Paris", "The capital is Paris"),
        ("The capital is ", "Paris", "The capital is Paris"),
        ("The capital is\n", "Paris", "The capital is\nParis"),
        ("It costs $", "5", "It costs $ 5"),
        ("Q", "!?", "Q !?"),
        ("the city the", "the city", "the city the the city"),
    ],
)
def test_white_space_at_the_seam(kind, prompt, target, whole):
    if kind == "sentencepiece" and "\n" in prompt:
        pytest.skip("this tokenizer has no line break")
    lm = lm_of("llama", kind)
    row = lm.encode(prompt, target)
    assert list(row.ids[: row.prompt_length]) == lm.encode_prompt(prompt)
    assert read(lm, row.ids).lstrip() == whole
    assert lm.decode(row.ids[row.prompt_length :]) == target.strip()


@pytest.mark.parametrize("kind", ["bytelevel", "noprefix", "bos"])
@pytest.mark.parametrize(
    ("prompt", "target", "whole"),
    [
        ("法国的首都是", "巴黎", "法国的首都是巴黎"),
        ("法国的首都是", "Paris", "法国的首都是 Paris"),
        ("日本の首都は？", "東京。", "日本の首都は？東京。"),
        ("Столица Италии", "Рим", "Столица Италии Рим"),
    ],
)
def test_scripts_without_spaces_get_none(kind, prompt, target, whole):
    lm = lm_of("llama", kind)
    row = lm.encode(prompt, target)
    assert list(row.ids[: row.prompt_length]) == lm.encode_prompt(prompt)
    assert read(lm, row.ids).lstrip() == whole


def test_a_target_that_would_merge_into_the_prompt_does_not():
    """`Lond` + `on` is one token when read together; asked alone, the prompt ends in `Lond`."""
    lm = lm_of("llama")
    row = lm.encode("in the city of New Yor", "k", None)
    assert list(row.ids[: row.prompt_length]) == lm.tokenizer("in the city of New Yor")["input_ids"]
    assert lm.encode("", "Paris").prompt_length == 1 and lm.encode_prompt("") == [1]


def test_an_end_token_that_the_tokenizer_adds_is_left_out():
    import tokenizers as tk

    tokenizer = tiny_tokenizer()
    tokenizer._tokenizer.post_processor = tk.processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A $B </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    lm = LM(tiny_model("llama"), tokenizer)
    row = lm.encode("The capital of France is", "Paris", "")
    assert row.ids.count(1) == 1 and row.ids.count(2) == 1 and row.ids[-1] == 2
    assert lm.encode_prompt("The capital") == [1, *tiny_tokenizer()("The capital")["input_ids"]]


def test_chat_templates_are_asked_and_learned_alike():
    lm = LM(tiny_model("llama"), chat_tokenizer())
    assert lm.chat
    said = "<s>user: Who wrote the book?\nassistant:"
    asked = lm.encode_prompt("Who wrote the book?")
    assert lm.tokenizer.decode(asked) == said and asked.count(1) == 1
    row = lm.encode("Who wrote the book?", "the author", ending=".")
    assert list(row.ids[: row.prompt_length]) == asked and row.ids[-1] == 2
    batch = lm.prompt_batch(["Who wrote the book?"])
    assert batch.input_ids[0].tolist() == asked
    plain = LM(tiny_model("llama"), chat_tokenizer(), chat=False)
    assert plain.encode_prompt("Who") == tiny_tokenizer()("Who")["input_ids"]
    with pytest.raises(ConfigError, match="no chat template"):
        LM(tiny_model("llama"), tiny_tokenizer(), chat=True)


def test_batches_say_what_is_what():
    lm = lm_of("llama")
    rows = [Row((5, 6, 7, 8, 2), 2, 2), Row((9, 10), 1, 1)]
    left, right = lm.batch(rows), lm.batch(rows, "right")
    assert left.input_ids.tolist() == [[5, 6, 7, 8, 2], [0, 0, 0, 9, 10]]
    assert right.input_ids.tolist() == [[5, 6, 7, 8, 2], [9, 10, 0, 0, 0]]
    assert left.attention_mask.tolist() == [[1] * 5, [0, 0, 0, 1, 1]]
    assert left.position_ids.tolist() == [[0, 1, 2, 3, 4], [0, 0, 0, 0, 1]]
    assert right.position_ids[1, :2].tolist() == [0, 1]
    assert left.prompt_mask.int().tolist() == [[1, 1, 0, 0, 0], [0, 0, 0, 1, 0]]
    assert right.target_mask.int().tolist() == [[0, 0, 1, 1, 0], [0, 1, 0, 0, 0]]
    assert left.ending_mask.int().tolist() == [[0, 0, 0, 0, 1], [0, 0, 0, 0, 0]]
    where, columns, labels = left.label_positions(left.target_mask)
    assert (where.tolist(), columns.tolist(), labels.tolist()) == ([0, 0, 1], [1, 2, 3], [7, 8, 10])
    assert isinstance(left, Batch)


def test_in_batches_keeps_the_order_and_announcements_nest():
    seen = []

    def call(part):
        seen.append(part)
        return [-x for x in part]

    assert in_batches([5, 1, 4, 2], call, 3, size=lambda x: x) == [-5, -1, -4, -2] and seen == [
        [1, 2, 4],
        [5],
    ]
    assert in_batches([], call, 3, size=lambda x: x) == []
    one, two = torch.ones(1, 1).bool(), torch.ones(2, 2).bool()
    with prompt_tokens(one):
        with pytest.raises(KeyError), prompt_tokens(two):
            assert announced_prompt_tokens() is two
            raise KeyError
        assert announced_prompt_tokens() is one
    assert announced_prompt_tokens() is None


@pytest.mark.parametrize("family", [*TWELVE, "gpt_neo"])
def test_scores_do_not_depend_on_padding_or_neighbours(family):
    lm = lm_of(family)
    by_hand = []
    for prompt, target in PAIRS:
        row = lm.encode(prompt, target)
        with torch.no_grad():
            logits = lm.model(input_ids=torch.tensor([row.ids])).logits[0]
        labels = torch.tensor(row.ids[row.prompt_length :])
        picked = logits[row.prompt_length - 1 : -1].log_softmax(-1)
        right = picked.argmax(-1) == labels
        loss = -picked.gather(-1, labels[:, None]).mean().item()
        by_hand.append(
            (
                right.float().mean().item(),
                bool(right.all()),
                loss,
                tuple(picked.argmax(-1).tolist()),
            )
        )
    for side in ("left", "right"):
        for size in (1, 4, 32):
            for score, (accuracy, exact, loss, predicted) in zip(
                lm.score(PAIRS, size, side), by_hand, strict=True
            ):
                assert score.predicted == predicted and score.exact == exact
                assert score.token_accuracy == pytest.approx(accuracy)
                assert score.loss == pytest.approx(loss, abs=1e-4)


@pytest.mark.parametrize("family", TWELVE)
def test_answers_do_not_depend_on_neighbours(family):
    lm = lm_of(family)
    together = lm.generate(PROMPTS, max_new_tokens=5)
    assert together == [lm.generate([p], max_new_tokens=5)[0] for p in PROMPTS]
    assert together == lm.generate(PROMPTS, batch_size=2, max_new_tokens=5)
    assert len(set(together)) > 2


def test_generation_stops_at_an_end_token():
    lm = LM(tiny_model("llama"), tiny_tokenizer())
    ids = lm.encode_prompt(PROMPTS[0])
    out = lm.model.generate(torch.tensor([ids]), max_new_tokens=6, do_sample=False)[
        0, len(ids) :
    ].tolist()
    stop = next(i for i in (2, 3, 4) if out[i] not in out[:i])
    lm.model.generation_config.eos_token_id = [2, out[stop]]
    assert lm.end_ids == (2, out[stop])
    assert lm.generate([PROMPTS[0]], max_new_tokens=6) == [lm.tokenizer.decode(out[:stop]).strip()]
    assert lm.decode([60, 61, out[stop], 62]) == lm.decode([60, 61])
    with pytest.raises(ConfigError, match="num_return_sequences"):
        lm.generate(PROMPTS, num_return_sequences=2)


def test_sampling_goes_through():
    lm = lm_of("llama")
    said = []
    for _ in range(2):
        torch.manual_seed(3)
        said.append(lm.generate(PROMPTS, do_sample=True, max_new_tokens=5))
    assert said[0] == said[1] != lm.generate(PROMPTS, max_new_tokens=5)


def test_what_does_not_fit_the_context_is_refused():
    lm = lm_of("gpt2")
    assert lm.context_length == 128
    long = "zq" * 200
    for call in (
        lambda: lm.encode_prompt(long),
        lambda: lm.encode("Who?", long),
        lambda: lm.generate([long]),
    ):
        with pytest.raises(
            PromptTooLongError, match=r"tokens; this model's context is 128\. Shorten the prompt\."
        ):
            call()
    ids = lm.tokenizer("zq" * 60)["input_ids"]
    assert 110 < len(ids) < 126
    near, room = "zq" * 60, 128 - len(ids)
    together = lm.generate([near, "x"], max_new_tokens=40)
    assert together == [
        lm.generate([near], max_new_tokens=room)[0],
        lm.generate(["x"], max_new_tokens=40)[0],
    ]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_half_precision_runs(family, dtype):
    lm, full = LM(tiny_model(family).to(dtype), tiny_tokenizer()), lm_of(family)
    for score, reference in zip(lm.score(PAIRS), full.score(PAIRS), strict=True):
        assert score.loss == pytest.approx(reference.loss, rel=0.1)
    assert len(lm.generate(PROMPTS, max_new_tokens=4)) == len(PROMPTS)


def test_background_text_is_seeded_and_leaves_the_random_state_alone():
    lm = lm_of("llama")
    before = torch.get_rng_state()
    texts = background_texts(lm, 6, 8, seed=5, shortest=4)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert texts == background_texts(lm, 6, 8, seed=5, shortest=4)
    assert texts != background_texts(lm, 6, 8, seed=6, shortest=4) and len(set(texts)) == 6
    scale = value_scale(lm, 2, texts)
    assert scale.key_norm > 0 and scale.value_norm > 0


@pytest.mark.parametrize(("said", "ending"), [(".", "."), ("</s>", "")])
def test_how_a_model_ends_its_answers(said, ending):
    """A model made to say a full stop, then stop; or to stop at once."""
    lm = LM(copy.deepcopy(lm_of("llama").model), tiny_tokenizer())
    dot, end = lm.tokenizer.convert_tokens_to_ids("."), 2

    def speak(_, args, output):
        output.logits.zero_()
        closed = args[0] if args else None
        output.logits[..., dot if said == "." else end] = 1
        ids = lm.encode("Who?", "x", ".").ids
        if closed is None and output.logits.shape[1] in (3, len(ids)) and said == ".":
            output.logits[:, -2, dot], output.logits[:, -2, end] = 0, 1
        return output

    hook = lm.model.register_forward_hook(speak)
    assert lm.ending_of("Who?", "x") == ending
    hook.remove()


def test_a_conversation_is_decoded_once_however_often_it_is_asked_for(monkeypatch):
    monkeypatch.setattr("errata.lm.prompt_encoder.KEPT", 2)
    lm = LM(tiny_model("llama"), tiny_tokenizer())
    ids = [lm.encode_prompt(prompt) for prompt in ("The king of Spain is", "Who?", "Where?")]
    first = [lm.conversation(each) for each in ids]
    assert [each.questions[0] for each in first] == ["The king of Spain is", "Who?", "Where?"]
    assert lm.conversation(ids[2]) is first[2], "kept"
    assert lm.conversation(ids[0]) is not first[0], "the oldest made room"
    assert [lm.conversation(each) for each in ids] == first
    asked = [lm.questions(each) for each in ids]
    assert asked == [each.questions for each in first]
    assert lm.questions(ids[2]) is asked[2]
