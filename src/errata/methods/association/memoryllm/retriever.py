"""The retriever of M+: finds, at each block, the dropped vectors that a prompt is about.

Wang et al., arXiv 2502.00592, section 3.2: queries are projected from the prompt's hidden states at
a block's input, keys from the dropped ones; a key's score is the mean of sigmoid(q k) over the
prompt.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Retriever(nn.Module):
    """Two linear maps at each block, of queries and of keys.

    Args:
        layers: blocks of the model.
        hidden: width of the hidden states.
        width: of queries and keys.
        seed: of the initial weights.
    """

    def __init__(self, layers: int, hidden: int, width: int, seed: int) -> None:
        super().__init__()
        generator, shape = torch.Generator().manual_seed(seed), (layers, width, hidden)
        self.query_maps, self.key_maps = (
            nn.Parameter(torch.randn(shape, generator=generator) / math.sqrt(hidden))
            for _ in range(2)
        )

    def keys(self, vectors: Tensor) -> Tensor:
        """Return the keys (layers, n, width) of vectors (layers, n, hidden), on their device."""
        return torch.einsum("lnh,lwh->lnw", normal(vectors), self.key_maps.to(vectors.device))

    def scores(self, layer: int, hidden: Tensor, prompt: Tensor, keys: Tensor) -> Tensor:
        """Return the score of each key for each row, (batch, n), from 0 to 1.

        Args:
            layer: the block.
            hidden: (batch, width, hidden), hidden states at its input.
            prompt: (batch, width) bool, which of them count.
            keys: (n, width) of the vectors.
        """
        queries = F.linear(normal(hidden), self.query_maps[layer].to(hidden.device))
        width = queries.shape[-1]
        found = (queries @ keys.to(queries).T / math.sqrt(width)).sigmoid()
        mask = prompt.to(found)[..., None]
        return (found * mask).sum(1) / mask.sum(1).clamp(min=1)

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
