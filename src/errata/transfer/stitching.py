"""`Stitched`: the lower blocks of one model, then the upper blocks of another, without training.

Dar et al., arXiv 2209.02535, section 4.2. The states that the one has behind a block are carried to
the other's space (see `Bridge`), and the other goes on from there. Both must cut a text into the
same tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from errata.errors import ConfigError
from errata.lm import LM
from errata.lm.encoding import Batch
from errata.lm.hooks import capture_output, replace_output
from errata.transfer.spaces import Bridge

SHORTEST = 1e-12
"""The least length that is divided by."""


class Stitched:
    """Two models as one.

    Args:
        lower: runs up to its block `below`.
        upper: goes on behind its block `above`.
        below, above: numbers of blocks.
        bridge: from `lower` to `upper`.
        share: how much of the carried states is taken; the rest is the upper model's own.

    Raises:
        ConfigError: the models have different tokenizers, or no such block.
    """

    def __init__(
        self, lower: LM, upper: LM, below: int, above: int, bridge: Bridge, share: float = 1.0
    ) -> None:
        if lower.tokenizer.get_vocab() != upper.tokenizer.get_vocab():
            raise ConfigError(
                "models are stitched token by token, and these two cut text into other tokens; "
                "take two with one tokenizer."
            )
        self.lower, self.upper, self.share = lower, upper, share
        self._from = lower.architecture.block(lower.model, below)
        self._to = upper.architecture.block(upper.model, above)
        self._kernel = bridge.kernel.float()

    @torch.no_grad()
    def logits(self, batch: Batch) -> Tensor:
        """Return the logits of all tokens of a batch, (rows, width, vocabulary)."""
        with capture_output(self._from) as states:
            self.lower.run_body(batch)
        carried = states[0].float() @ self._kernel.to(states[0].device)

        def mixed(own: Tensor) -> Tensor:
            # as long as the upper model's own are: its blocks are used to that
            lengths = [each.norm(dim=-1, keepdim=True) for each in (own, carried)]
            length = lengths[0] / lengths[1].clamp(min=SHORTEST)
            return torch.lerp(own, (carried * length).to(own), self.share)

        with replace_output(self._to, mixed):
            found: Tensor = self.upper.run(batch, use_cache=False).logits
        return found
