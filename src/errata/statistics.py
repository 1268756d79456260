"""What flows through a base model when it is left alone: background text of its own making, and the scale of its values.

The text is sampled from the model itself, seeded, so it needs no corpus and fits any language, tokenizer and size.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from errata.hooks import capture_input, capture_output
from errata.lm import LM


@dataclass(frozen=True)
class ValueScale:
    """Median Euclidean norms over background tokens: of the keys k and of the values v = W k + b."""

    key_norm: float
    value_norm: float


@torch.no_grad()
def background_texts(lm: LM, count: int, length: int, seed: int, shortest: int = 1) -> list[str]:
    """Sample `count` texts of up to `length` new tokens from the model, starting from nothing.

    Args:
        shortest: new tokens before the model may end a text.
    """
    start = lm.tokenizer.bos_token_id
    start = start if start is not None else next(iter(lm.end_ids), lm.pad_id)
    if lm.context_length:
        length = max(1, min(length, lm.context_length - 2))
    devices = [lm.device] if lm.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        ids = torch.full((count, 1), start, device=lm.device)
        out = lm.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=length,
            min_new_tokens=min(shortest, length),
            pad_token_id=lm.pad_id,
        )
    return [lm.decode(row[1:].tolist()) for row in out]


def names_in(text: str) -> list[str]:
    """Names in a text, as far as a capital letter tells them: runs of capitalised words, a sentence's first word aside."""
    found = []
    for match in _NAME.finditer(text):
        starts_sentence = not text[: match.start()].strip() or text[: match.start()].rstrip()[-1] in ".?!:"
        words = match[0].split()
        if starts_sentence and len(words) == 1:
            continue
        if starts_sentence and words[0].lower() in _OPENERS:
            words = words[1:]
        found.append(" ".join(words))
    return list(dict.fromkeys(name for name in found if len(name) > 2))


def open_prompt(text: str) -> str:
    """The text cut before its last name, so that something is left to be said; the whole text if it has not two names."""
    names = names_in(text)
    cut = text.rfind(names[-1]) if len(names) > 1 else -1
    return text[:cut].rstrip() if cut > 0 and text[:cut].strip() else text


def about(text: str, subject: str) -> str | None:
    """The open prompt of a text, about another subject: its first name replaced. None when there is nothing to replace."""
    names = names_in(text)
    prompt = open_prompt(text)
    if len(names) < 2 or names[0] not in prompt:
        return None
    return prompt.replace(names[0], subject)


_NAME = re.compile(r"[A-Z][\w'’-]*(?: [A-Z][\w'’-]*)*")
_OPENERS = frozenset("who what when where which whose how in on at by of the a an is was are were did does name".split())


@torch.no_grad()
def value_scale(lm: LM, layer: int, texts: Sequence[str]) -> ValueScale:
    """Median norms of keys and values of `layer` over the tokens of the texts."""
    module = lm.architecture.value_module(lm.model, layer)
    batch = lm.prompt_batch(texts)
    with capture_input(module) as keys, capture_output(module) as values:
        lm.run(batch)
    size = (*batch.input_ids.shape, -1)
    mask = batch.prompt_mask
    key_norms, value_norms = (seen[0].reshape(size).float().norm(dim=-1)[mask.to(seen[0].device)] for seen in (keys, values))
    return ValueScale(key_norms.median().item(), value_norms.median().item())
