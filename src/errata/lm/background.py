"""What flows through a base model when it is left alone: background text of its own making, and the
scale of its values.

The text is sampled from the model itself, seeded, so it needs no corpus and fits any language,
tokenizer and size. It is the same for all methods and for every run, so it is kept on disk (see
`cache.py`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

import regex
import torch

from errata.lm.endings import plainly
from errata.lm.hooks import capture_input, capture_output
from errata.lm.lm import LM
from errata.saving.identity import tokenizer_digest
from errata.storage.cache import cached_json, fingerprint

BATCH = 128


@dataclass(frozen=True)
class ValueScale:
    """Median Euclidean norms over background tokens: of the keys k and of the values v = W k + b."""

    key_norm: float
    value_norm: float


def key_of(lm: LM) -> str:
    """What all depends on that is derived from a base model without edits: the key under which it
    is kept on disk.
    """
    config = {
        name: value
        for name, value in lm.model.config.to_dict().items()
        if name not in _SAYS_NOTHING
    }
    model = fingerprint(lm.model), str(lm.model.dtype), lm.device.type, config
    return json.dumps([*model, tokenizer_digest(lm.tokenizer), lm.end_ids, lm.chat], default=str)


_SAYS_NOTHING = ("_name_or_path", "transformers_version")
"""Of a model's config: where it came from."""


def background_texts(lm: LM, count: int, length: int, seed: int, shortest: int = 1) -> list[str]:
    """Sample `count` texts of up to `length` new tokens from the model, starting from nothing; or
    those sampled before.

    Args:
        shortest: new tokens before the model may end a text.
    """
    key = f"{key_of(lm)} {count} {length} {seed} {shortest}"
    texts: list[str] = cached_json(
        "background", key, lambda: _sampled(lm, count, length, seed, shortest)
    )
    return texts


@torch.no_grad()
def _sampled(lm: LM, count: int, length: int, seed: int, shortest: int) -> list[str]:
    start = lm.tokenizer.bos_token_id
    start = start if start is not None else next(iter(lm.end_ids), lm.pad_id)
    if lm.context_length:
        length = max(1, min(length, lm.context_length - 2))
    devices = [lm.device] if lm.device.type == "cuda" else []
    texts: list[str] = []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        while len(texts) < count:
            ids = torch.full((min(BATCH, count - len(texts)), 1), start, device=lm.device)
            out = plainly(lm).generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                max_new_tokens=length,
                min_new_tokens=min(shortest, length),
            )
            texts += [lm.decode(row[1:].tolist()) for row in out]
    return texts


def names_in(text: str) -> list[str]:
    """Names in a text, as far as a capital letter tells them: runs of capitalised words, a
    sentence's opener aside.
    """
    found: list[str] = []
    end = -1
    for word in _WORD.finditer(text):
        if not word[0][0].isupper():
            continue
        before, following = text[: word.start()].rstrip(), text[word.end() :].lstrip()[:1]
        opens = not before or before[-1] in ".?!:"
        if found and word.start() == end + 1 and text[end] == " ":
            found[-1] += f" {word[0]}"
        elif opens and (word[0].lower() in _OPENERS or not following.isupper()):
            continue
        else:
            found.append(word[0])
        end = word.end()
    return list(dict.fromkeys(name for name in found if len(name) > 2))


def swapped(text: str, name: str, other: str) -> str:
    """The text with a name replaced, as a word of its own where it stands as one."""
    whole, count = re.subn(rf"(?<!\w){re.escape(name)}(?!\w)", lambda _: other, text)
    return whole if count else text.replace(name, other)


def open_prompt(text: str) -> str:
    """The text cut before its last name, so that something is left to be said; the whole text if it
    has not two names.
    """
    names = names_in(text)
    cut = text.rfind(names[-1]) if len(names) > 1 else -1
    return text[:cut].rstrip() if cut > 0 and text[:cut].strip() else text


def about(text: str, subject: str) -> str | None:
    """The open prompt of a text, about another subject: its first name replaced. None when there is
    nothing to replace.
    """
    names = names_in(text)
    prompt = open_prompt(text)
    if len(names) < 2 or names[0] not in prompt:
        return None
    return swapped(prompt, names[0], subject)


_WORD = regex.compile(r"\p{M}*[\p{L}\p{N}_][\p{L}\p{M}\p{N}_'’-]*")
_OPENERS = frozenset(
    "who what when where which whose how in on at by of the a an is was are were did does name".split()
)


@torch.no_grad()
def value_scale(lm: LM, layer: int, texts: Sequence[str]) -> ValueScale:
    """Median norms of keys and values of `layer` over the tokens of (the first 128 of) the texts."""
    module = lm.architecture.value_module(lm.model, layer)
    batch = lm.prompt_batch(texts[:BATCH])
    with capture_input(module) as keys, capture_output(module) as values:
        lm.run(batch)
    size = (*batch.input_ids.shape, -1)
    mask = batch.prompt_mask
    key_norms, value_norms = (
        seen[0].reshape(size).float().norm(dim=-1)[mask.to(seen[0].device)]
        for seen in (keys, values)
    )
    return ValueScale(key_norms.median().item(), value_norms.median().item())
