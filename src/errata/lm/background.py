"""Self-generated background text of a base model, its names, and norms of keys and values.

The texts are sampled from the model itself with a fixed seed, so they need no corpus and fit any
language, tokenizer and size. They are the same for all methods and every run, so they are kept on
disk (see `storage/cache.py`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from errata.lm.hooks import capture_input, capture_output, stop_after
from errata.lm.lm import LM
from errata.progress import report
from errata.storage.cache import cached_json, fingerprint
from errata.storage.identity import tokenizer_digest
from errata.words.names import names_in

TEXT_LENGTH, SHORTEST = 16, 4
"""Tokens of a text, at most and at least."""
PART = 48
"""Texts that are sampled, and kept on disk, together."""
SCALE_TEXTS = 32
"""Texts on which the norms of keys and values are measured."""
WRITING = "the model writes background text"


@dataclass(frozen=True)
class ValueScale:
    """Median Euclidean norms of keys k and values v = W k + b over background tokens."""

    key_norm: float
    value_norm: float


def key_of(lm: LM) -> str:
    """Return the key under which anything computed from a base model without edits is cached."""
    config = {
        name: value for name, value in lm.model.config.to_dict().items() if name not in _ORIGIN
    }
    model = fingerprint(lm.model), str(lm.model.dtype), lm.device.type, config
    return json.dumps([*model, tokenizer_digest(lm.tokenizer), lm.end_ids, lm.chat], default=str)


_ORIGIN = ("_name_or_path", "transformers_version")
"""Entries of a model's config that say where it came from."""


def background_texts(
    lm: LM, count: int, length: int = TEXT_LENGTH, seed: int = 0, shortest: int = SHORTEST
) -> list[str]:
    """Return `count` self-generated texts of the model, sampled once and then kept on disk.

    They are sampled and kept in parts of `PART` texts, which a larger count begins with, too.

    Args:
        lm: the base model, without patches.
        count: how many texts.
        length: new tokens of a text, at most.
        seed: of the random generator; the caller's generator stays as it is.
        shortest: new tokens of a text, at least.
    """
    if lm.context_length:
        length = max(1, min(length, lm.context_length - 2))
    base, texts = key_of(lm), list[str]()
    while len(texts) < count:
        settings = min(PART, count - len(texts)), length, min(shortest, length), seed + len(texts)
        report(WRITING, len(texts), count)
        make = partial(_sample, lm, *settings)
        texts += cached_json("background", json.dumps([base, settings]), make, lm.name)
    return texts


@torch.no_grad()
def _sample(lm: LM, count: int, length: int, shortest: int, seed: int) -> list[str]:
    start = lm.tokenizer.bos_token_id
    start = start if start is not None else next(iter(lm.end_ids), lm.pad_id)
    ids = torch.full((count, 1), start, device=lm.device)
    out = lm.greedy_model().generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        logits_processor=LogitsProcessorList([_Draw(seed)]),
        max_new_tokens=length,
        min_new_tokens=shortest,
    )
    return [lm.decode(row[1:].tolist()) for row in out]


class _Draw(LogitsProcessor):  # type: ignore[misc]
    """Leaves one token, drawn by the model's probabilities.

    In a large vocabulary this takes a fraction of the time of `do_sample`, which draws noise for
    each token of it.

    Args:
        seed: of the draws.
    """

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return `scores`, (batch, vocabulary), with all but the drawn tokens ruled out."""
        reached = scores.softmax(-1).cumsum(-1)
        draws = torch.rand(len(scores), 1, generator=self.generator).to(scores.device)
        tokens = torch.searchsorted(reached, draws * reached[:, -1:])
        tokens = tokens.clamp(max=scores.shape[-1] - 1)
        return scores.fill_(-torch.inf).scatter_(1, tokens, 0.0)


def replace_name(text: str, name: str, other: str) -> str:
    """Replace a name in a text: where it is a whole word, or anywhere if it nowhere is."""
    replaced, count = re.subn(rf"(?<!\w){re.escape(name)}(?!\w)", lambda _: other, text)
    return replaced if count else text.replace(name, other)


def open_prompt(text: str) -> str:
    """Return the text up to its last name, to be completed; all of it with fewer than two names."""
    names = names_in(text)
    cut = text.rfind(names[-1]) if len(names) > 1 else -1
    return text[:cut].rstrip() if cut > 0 and text[:cut].strip() else text


def prompt_about(text: str, subject: str) -> str | None:
    """Return a text's open prompt with `subject` as its first name; None if it has no name."""
    names = names_in(text)
    prompt = open_prompt(text)
    if len(names) < 2 or names[0] not in prompt:
        return None
    return replace_name(prompt, names[0], subject)


def value_scale(lm: LM, layer: int, texts: Sequence[str]) -> ValueScale:
    """Measure the norms of the keys and values of `layer` over the first `SCALE_TEXTS` texts.

    They are kept on disk.
    """
    texts = list(texts[:SCALE_TEXTS])
    key = json.dumps([key_of(lm), layer, texts])
    return ValueScale(*cached_json("scale", key, lambda: _median_norms(lm, layer, texts), lm.name))


@torch.no_grad()
def _median_norms(lm: LM, layer: int, texts: Sequence[str]) -> list[float]:
    module = lm.architecture.value_module(lm.model, layer)
    batch = lm.prompt_batch(texts)
    with capture_input(module) as keys, capture_output(module) as values, stop_after(module):
        lm.run_body(batch)
    size = (*batch.input_ids.shape, -1)
    mask = batch.prompt_mask
    return [
        states[0].reshape(size).float().norm(dim=-1)[mask.to(states[0].device)].median().item()
        for states in (keys, values)
    ]
