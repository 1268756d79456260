"""Measures side effects of edits: drift on neutral text, and fluency of generated text."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from errata.lm.encoding import Row
from errata.model import EditModel

ROWS = 8
"""The batch size."""
LONG, SHORT = 100, 20
"""Tokens of an answer for fluency, and the fewest: with less room, fluency is not measured."""


@torch.no_grad()
def drift(model: EditModel, texts: Sequence[str]) -> dict[str, float | None]:
    """Measure the edited model's distance from its base on texts unrelated to the edits.

    Returns:
        "perplexity" of the edited model, "base_perplexity", and "divergence": KL(base || edited),
        the mean over tokens in nats. None each where no text has two tokens.
    """
    lm = model.lm
    longest = lm.context_length or 1 << 30
    rows = [ids[:longest] for ids in map(lm.encode_prompt, texts)]
    rows = [ids for ids in rows if len(ids) > 1]
    sums, tokens = torch.zeros(3, dtype=torch.float64), 0
    for start in range(0, len(rows), ROWS):
        part = [Row(tuple(ids), len(ids)) for ids in rows[start : start + ROWS]]
        edited, labels = _expected(model, part)
        with model.disable_edits():
            base, _ = _expected(model, part)
        sums[0] -= edited.gather(1, labels[:, None]).sum().double().cpu()
        sums[1] -= base.gather(1, labels[:, None]).sum().double().cpu()
        sums[2] += (base.exp() * (base - edited)).sum().double().cpu()
        tokens += len(labels)
    if not tokens:
        return {"perplexity": None, "base_perplexity": None, "divergence": None}
    edited_loss, base_loss, divergence = (sums / tokens).tolist()
    return {
        "perplexity": math.exp(min(edited_loss, 700.0)),
        "base_perplexity": math.exp(min(base_loss, 700.0)),
        "divergence": divergence,
    }


def _expected(model: EditModel, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """Return (log-probabilities (n, vocabulary), labels (n,)) of rows without first tokens."""
    batch = model.lm.batch(rows)
    logits = model.lm.run(batch).logits
    real = batch.attention_mask.bool()
    both = real[:, 1:] & real[:, :-1]
    return logits[:, :-1][both].float().log_softmax(-1), batch.input_ids[:, 1:][both]


def fluency(model: EditModel, prompts: Sequence[str]) -> float | None:
    """Measure the n-gram entropy of answers of 100 tokens: low where the model repeats itself.

    The mean over answers of 2/3 of the bigrams' and 4/3 of the trigrams' entropy, in bits, over 2
    (ROME, arXiv 2202.05262, GE). None where the context is too short.
    """
    room = (model.lm.context_length or 1 << 30) - max(
        len(model.lm.encode_prompt(prompt)) for prompt in prompts
    )
    length = min(LONG, room)
    if length < SHORT:
        return None
    answers = model.ask(prompts, max_new_tokens=length, min_new_tokens=length)
    return sum(map(_entropy, answers)) / len(answers)


def _entropy(text: str) -> float:
    words = text.split()
    return sum(weight * _of_ngrams(words, n) for n, weight in ((2, 2 / 3), (3, 4 / 3))) / 2


def _of_ngrams(words: Sequence[str], n: int) -> float:
    counts = Counter(zip(*(words[i:] for i in range(n)), strict=False))
    total = counts.total()
    return -sum(count / total * math.log2(count / total) for count in counts.values())
