"""The retriever of M+: finds, at each block, the dropped vectors that a prompt is about.

Wang et al., arXiv 2502.00592, section 3.2: queries are projected from the prompt's hidden states at
a block's input, keys from the dropped ones; a key's score is the mean of sigmoid(q k) over the
prompt. What departs: hidden states are normalised without the block's own weights; nothing in the
store is forgotten; the oldest is what was dropped first.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Retriever(nn.Module):
    """At each block, a network for queries and one for keys: two linear maps with SiLU between.

    Args:
        layers: blocks of the model.
        hidden: width of the hidden states.
        width: of queries and keys; the networks are twice as wide inside.
        seed: of the initial weights.
    """

    def __init__(self, layers: int, hidden: int, width: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def drawn(d_out: int, d_in: int) -> nn.Parameter:
            weights = torch.randn(layers, d_out, d_in, generator=generator)
            return nn.Parameter(weights / math.sqrt(d_in))

        self.query_in, self.query_out = drawn(2 * width, hidden), drawn(width, 2 * width)
        self.key_in, self.key_out = drawn(2 * width, hidden), drawn(width, 2 * width)

    def keys(self, vectors: Tensor) -> Tensor:
        """Return the keys (layers, n, width) of vectors (layers, n, hidden), on their device."""
        inner, outer = self.key_in.to(vectors.device), self.key_out.to(vectors.device)
        return F.silu(normal(vectors) @ inner.mT) @ outer.mT

    def scores(self, layer: int, hidden: Tensor, prompt: Tensor, keys: Tensor) -> Tensor:
        """Return the score of each key for each row, (batch, n), from 0 to 1.

        Args:
            layer: the block.
            hidden: (batch, width, hidden), hidden states at its input.
            prompt: (batch, width) bool, which of them count.
            keys: (n, width) of the vectors.
        """
        inner, outer = (x[layer].to(hidden.device) for x in (self.query_in, self.query_out))
        queries = F.silu(normal(hidden) @ inner.T) @ outer.T
        found = (queries @ keys.to(queries).T).sigmoid()
        mask = prompt.to(found)[..., None]
        return (found * mask).sum(1) / mask.sum(1).clamp(min=1)

    def loss(
        self, layer: int, hidden: Tensor, prompt: Tensor, keys: Tensor, relevant: Tensor
    ) -> Tensor:
        """Return the mean -log(score) of relevant vectors and -log(1 - score) of the others.

        Args:
            layer, hidden, prompt, keys: see `scores`.
            relevant: (batch, n) bool, some True and some False.
        """
        scores = self.scores(layer, hidden, prompt, keys).clamp(1e-6, 1 - 1e-6)
        return -(scores[relevant].log().mean() + (1 - scores[~relevant]).log().mean())

    @torch.no_grad()
    def recalled(
        self,
        dropped: Tensor,
        keys: Tensor,
        count: int,
        layer: int,
        hidden: Tensor,
        prompt: Tensor,
    ) -> Tensor:
        """Return the best vectors for each row, (batch, count, hidden), the oldest first.

        Args:
            dropped: (layers, n, hidden), n of `count` or more.
            keys: (layers, n, width), theirs.
            count: how many.
            layer, hidden, prompt: see `scores`.
        """
        scores = self.scores(layer, hidden, prompt, keys[layer])
        places = scores.topk(count, dim=-1).indices.sort(-1).values
        return dropped[layer][places.to(dropped.device)].to(hidden.device)


def normal(hidden: Tensor) -> Tensor:
    """Return hidden states with a root mean square of 1, fp32."""
    return F.rms_norm(hidden.float(), hidden.shape[-1:], eps=1e-6)
