"""Attribution: how much of an answer's probability each feed-forward neuron carries.

Integrated gradients (Sundararajan et al., arXiv 1703.01365), as Dai et al. have them for neurons
(arXiv 2104.08696): a neuron's activation w at the tokens that predict the answer grows from nothing
to what it is, together with the whole block's, and

    Attr = w / m * sum_s dP/dw at (s / m) w, for s = 1 ... m.

A block's attributions therefore add up to P(w) - P(0), but for the error of the sum. P is the
probability of the answer to the power of one over its tokens, which is that of a single token where
the answer is one, as in the paper; of an answer of more tokens the mean log-probability counts.

Since v = W w + b, the gradient is taken at the value v, and W brings it to the neurons: only what
lies above a block and behind the prompt is run.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from errata.lm import LM
from errata.lm.encoding import Row
from errata.lm.suffix_tail import SuffixTail, cache_of
from errata.lm.weights import read_bias, read_weight

Tokens = tuple[int, ...]
"""The tokens of an answer, or of its beginning."""


@torch.no_grad()
def told(lm: LM, prompt: str, tokens: int) -> Tokens:
    """Return the tokens that the model answers, at most so many, up to its end token.

    Raises:
        PromptTooLongError: the prompt leaves no room for an answer.
    """
    ids = lm.encode_prompt(prompt)
    room = lm.context_length - len(ids) if lm.context_length else tokens
    given = lm.batch([Row(tuple(ids), len(ids))])
    out = lm.greedy_model().generate(
        input_ids=given.input_ids,
        attention_mask=given.attention_mask,
        max_new_tokens=max(1, min(tokens, room)),
    )
    answer = out[0, len(ids) :].tolist()
    stop = next((place for place, token in enumerate(answer) if token in lm.end_ids), len(answer))
    return tuple(answer[: stop + 1])


def attributions(lm: LM, row: Row, layers: Sequence[int], steps: int) -> Tensor:
    """Return each neuron's share of the probability of a row's target, (blocks, d_in) in fp32.

    Args:
        lm: the model with the changes of weights that it carries.
        row: a prompt and its answer.
        layers: the blocks.
        steps: m; all steps of a block run in one batch.
    """
    batch = lm.batch([row] * steps)
    first = row.prompt_length - 1
    cache = cache_of(lm, batch, first)
    tails = (SuffixTail(lm, layer, batch, first, cache) for layer in layers)
    blocks = zip(layers, tails, strict=True)
    return torch.stack([_of_block(lm, layer, tail) for layer, tail in blocks])


def _of_block(lm: LM, layer: int, tail: SuffixTail) -> Tensor:
    """Return the attributions of one block's neurons, (d_in,); each row of the batch is a step."""
    rows, columns, labels = tail.batch.label_positions(tail.batch.target_mask)
    steps = len(tail.batch.input_ids)
    predicting = columns[rows == 0]
    module = lm.architecture.value_module(lm.model, layer)
    bias, values = read_bias(module), tail.values.float()
    start = torch.zeros_like(values) if bias is None else bias.float().expand_as(values)
    shares = torch.ones(values.shape[:2], device=values.device)
    shares[:, predicting] = torch.arange(1, steps + 1, device=values.device)[:, None] / steps
    scaled = torch.lerp(start, values, shares[..., None]).requires_grad_()
    logits = tail.logits(scaled, rows, columns)
    losses = F.cross_entropy(logits, labels.to(logits.device), reduction="none")
    probabilities = (-losses.view(steps, -1).mean(1)).exp()
    (gradients,) = torch.autograd.grad(probabilities.sum(), scaled)
    at_values = gradients[:, predicting].mean(0)  # (tokens, d_out)
    at_neurons = at_values @ read_weight(module).float()
    return (tail.keys[0, predicting].float() * at_neurons).sum(0)
