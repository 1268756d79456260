"""One prompt, one route: alone, batched, padded, teacher-forced, generated; on every family.

The oracle knows no router: it is a plain model with the routed memory's change in its weights,
asked one prompt at a time.
"""

from __future__ import annotations

from functools import cache
from itertools import chain

import pytest
import torch
from families import TWELVE
from grid import grid, token_places
from routed import PROMPTS, Routed, routed

from errata.patches.routed import MAIN

SETTINGS = grid(
    "family count",
    [(family, count) for family in TWELVE for count in (1, 3)],
    lambda family, count: {(token_places(family), count)},
)
"""Each way in which tokens are placed meets one memory, and three."""
NEW = 3


@cache
def setting(family: str, count: int) -> Routed:
    return routed(family, count)


@cache
def greedy(family: str, count: int, prompt: str) -> tuple[int, ...]:
    """What the oracle says, one prompt at a time."""
    lm = setting(family, count).oracle(prompt)
    return tuple(generated(lm.model, lm, [prompt])[0])


def generated(model, lm, prompts, new=NEW, **options):
    """New ids of each sequence; all run to `new` tokens, so that their lengths agree."""
    batch = lm.prompt_batch(prompts)
    options = {
        "do_sample": False,
        "max_new_tokens": new,
        "min_new_tokens": new,
        "pad_token_id": 0,
    } | options
    out = model.generate(input_ids=batch.input_ids, attention_mask=batch.attention_mask, **options)
    return out[:, batch.input_ids.shape[1] :].tolist()


def forward(model, lm, batch, **options):
    if lm.takes_position_ids:
        options["position_ids"] = batch.position_ids
    with torch.no_grad():
        return model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, **options
        ).logits


def last_prompt_logits(logits, batch):
    columns = [int(row.nonzero()[-1]) for row in batch.prompt_mask]
    return torch.stack([logits[i, column] for i, column in enumerate(columns)])


@SETTINGS
def test_forward_alone_in_a_batch_and_padded_on_either_side(family, count):
    at = setting(family, count)
    lm = at.model.lm
    alone = [forward(at.oracle(p).model, lm, lm.prompt_batch([p]))[0, -1] for p in PROMPTS]
    with at.watched() as seen:
        for prompt, expected in zip(PROMPTS, alone, strict=True):
            torch.testing.assert_close(
                forward(at.model, lm, lm.prompt_batch([prompt]))[0, -1], expected, rtol=0, atol=1e-4
            )
    assert [route for (route,) in seen] == at.routes
    for side in ("left", "right"):
        batch = lm.prompt_batch(PROMPTS, side)
        with at.watched() as seen:
            logits = last_prompt_logits(forward(at.model, lm, batch), batch)
        assert seen == [at.routes]
        torch.testing.assert_close(logits, torch.stack(alone), rtol=0, atol=1e-4)
    base = last_prompt_logits(
        forward(at.plain.model, lm, lm.prompt_batch(PROMPTS)), lm.prompt_batch(PROMPTS)
    )
    moved = (base - torch.stack(alone)).abs().amax(-1) > 1e-2
    assert moved.tolist() == [route != MAIN for route in at.routes], "the memories must show"


@SETTINGS
def test_teacher_forced_with_the_target_appended(family, count):
    at = setting(family, count)
    lm = at.model.lm
    targets = [
        "Paris",
        "two brothers from the north of New York",
        "zzz",
        "7",
        "x",
        "the city",
        "12.",
        "London",
    ]
    pairs = list(zip(PROMPTS, targets, strict=True))
    expected = [at.oracle(p).score([(p, t)])[0] for p, t in pairs]
    for side in ("left", "right"):
        with at.watched() as seen:
            got = lm.score(pairs, batch_size=3, side=side)
        order = sorted(range(len(pairs)), key=lambda i: len(lm.encode(*pairs[i]).ids))
        assert list(chain(*seen)) == [at.routes[i] for i in order]
        for mine, theirs in zip(got, expected, strict=True):
            assert mine.predicted == theirs.predicted and abs(mine.loss - theirs.loss) < 1e-4
    batch = lm.batch([lm.encode(p, t, ".") for p, t in pairs])
    labels = batch.input_ids.masked_fill(
        ~batch.target_mask, -100
    )  # behind the target it says -100 again
    with at.watched() as seen:
        forward(at.model, lm, batch, labels=labels)
        forward(at.model, lm, batch, labels=batch.input_ids.masked_fill(batch.prompt_mask, -100))
    assert seen == [at.routes, at.routes]


@SETTINGS
def test_generated_token_by_token(family, count):
    at = setting(family, count)
    lm = at.model.lm
    expected = [list(greedy(family, count, p)) for p in PROMPTS]
    for options in ({}, {"use_cache": False}):
        with at.watched() as seen:
            assert generated(at.model, lm, PROMPTS, **options) == expected
        assert seen == [at.routes] * NEW
    for i in (1, len(PROMPTS) - 1):
        assert generated(at.model, lm, [PROMPTS[i]]) == [expected[i]]
    assert lm.generate(PROMPTS[:4], batch_size=3, max_new_tokens=NEW) == [
        at.oracle(p).generate([p], max_new_tokens=NEW)[0] for p in PROMPTS[:4]
    ]


@SETTINGS
def test_beams_samples_and_several_return_sequences(family, count):
    at = setting(family, count)
    lm = at.model.lm
    chosen = [
        at.routes.index(MAIN),
        next(i for i, route in enumerate(at.routes) if route != MAIN),
        5,
    ]
    prompts, routes = [PROMPTS[i] for i in chosen], [at.routes[i] for i in chosen]
    kinds = {"num_beams": 3, "num_return_sequences": 2}, {"num_beams": 2, "use_cache": False}
    for beams in kinds:
        with at.watched() as seen:
            got = generated(at.model, lm, prompts, **beams)
        wide = [route for route in routes for _ in range(beams["num_beams"])]
        assert seen == [wide] * NEW
        assert got == list(
            chain(*(generated(at.oracle(p).model, lm, [p], **beams) for p in prompts))
        )
    sampling = {"do_sample": True, "num_return_sequences": 3, "top_k": 0, "temperature": 1.0}
    with at.watched() as seen:
        generated(at.model, lm, prompts, **sampling)
    assert seen == [[route for route in routes for _ in range(3)]] * NEW
    for prompt, route in zip(prompts, routes, strict=True):
        said = []
        for model in (at.model, at.oracle(prompt).model):
            torch.manual_seed(7)
            with at.watched() as seen:
                said.append(generated(model, lm, [prompt], **sampling))
            assert seen in ([], [[route] * 3] * NEW)
        assert said[0] == said[1]


@pytest.mark.parametrize("kind", ["sentencepiece", "noprefix", "bos"])
def test_the_tokenizer_does_not_matter(kind):
    at = routed("llama", 2, kind=kind)
    lm = at.model.lm
    with at.watched() as seen:
        assert generated(at.model, lm, PROMPTS) == [
            generated(at.oracle(p).model, lm, [p])[0] for p in PROMPTS
        ]
        lm.score([(p, "the end") for p in PROMPTS], batch_size=len(PROMPTS), side="right")
    order = sorted(range(len(PROMPTS)), key=lambda i: len(lm.encode(PROMPTS[i], "the end").ids))
    assert seen == [at.routes] * NEW + [[at.routes[i] for i in order]]
