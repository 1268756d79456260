"""SERAC's scope classifier: a frozen encoder, and a trained projection. It knows no edits.

Distances in the projection tell which prompts are in an edit's scope.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel

from errata.lm import LM
from errata.lm.encoding import in_batches
from errata.lm.hooks import capture_output, stop_after
from errata.methods.recognition.serac.small_model import load_small_model
from errata.patches.routed import last_token

BATCH = 32
"""Prompts that are encoded together."""


class HostEncoder:
    """Encodes prompts by a host block: its last token's output and the mean, each of length 1.

    Args:
        lm: the base model; it must carry no patch whenever it encodes.
        layer: the block.

    Attributes:
        width: numbers per prompt.
    """

    def __init__(self, lm: LM, layer: int) -> None:
        self.lm = lm
        self.block = lm.architecture.block(lm.model, layer)
        self.width = 2 * lm.architecture.hidden_size

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Return the features of prompts, (prompts, width) in fp32."""

        def features(part: list[str]) -> list[Tensor]:
            batch = self.lm.prompt_batch(part)
            with capture_output(self.block) as states, stop_after(self.block):
                self.lm.run(batch, use_cache=False)
            mask = batch.prompt_mask.to(states[0].device)
            return list(_pooled(states[0].reshape(*mask.shape, -1), mask).to(self.lm.device))

        return torch.stack(in_batches(prompts, features, BATCH, size=len))


class SmallEncoder:
    """Encodes prompts by a small model: its last token's state and the mean, each of length 1.

    Args:
        name: of the model, a folder or a hub name.
        device: the device to run it on.

    Attributes:
        width: numbers per prompt.

    Raises:
        ConfigError: there is no such model.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self.model, self.tokenizer = load_small_model(AutoModel, "classifier", name, device)
        self.model.requires_grad_(False)
        self.device = device
        self.width = 2 * int(self.model.config.hidden_size)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Return the features of prompts, (prompts, width) in fp32."""

        def features(part: list[str]) -> list[Tensor]:
            rows = [self.tokenizer(prompt, truncation=True)["input_ids"] or [0] for prompt in part]
            width = max(map(len, rows))
            ids = [row + [0] * (width - len(row)) for row in rows]
            seen = [[1] * len(row) + [0] * (width - len(row)) for row in rows]
            mask = torch.tensor(seen, device=self.device)
            output = self.model(
                input_ids=torch.tensor(ids, device=self.device), attention_mask=mask
            )
            return list(_pooled(output.last_hidden_state, mask.bool()))

        return torch.stack(in_batches(prompts, features, BATCH, size=len))


class ScopeClassifier(nn.Module):
    """The trained part: a projection e of a prompt's features, and a scope's sharpness s.

    The similarity of two prompts is exp(-s |e - e'|^2).

    Args:
        features: numbers that an encoder gives per prompt.
        width: of the embedding.
        seed: draws the initial weights (width, features).
    """

    def __init__(self, features: int, width: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(width, features, generator=generator) / math.sqrt(width)
        self.weight = nn.Parameter(weight)
        self.log_sharpness = nn.Parameter(torch.zeros(()))

    def forward(self, features: Tensor) -> Tensor:
        """(n, features) -> (n, width)."""
        return F.linear(features, self.weight)

    def log_similarity(self, distances: Tensor) -> Tensor:
        """Return the log-similarity at distances d, -s d^2."""
        return -self.log_sharpness.exp() * distances.square()

    def loss(self, edit: Tensor, inside: Tensor, outside: Tensor) -> Tensor:
        """Return the binary cross-entropy of prompts' similarities with an edit (features,).

        Prompts, (n, features), are in its scope or outside.
        """
        near, far = (
            self.log_similarity((self(rows) - self(edit)).norm(dim=-1))
            for rows in (inside, outside)
        )
        return -near.mean() - torch.log(-torch.expm1(far.clamp(max=-1e-6))).mean()


def _pooled(states: Tensor, mask: Tensor) -> Tensor:
    """Pool states (batch, width, d) under mask (batch, width) into (batch, 2 d).

    The last state and the mean state of each row, each of length 1.
    """
    states = states.float()
    last = states[torch.arange(len(states), device=states.device), last_token(mask)]
    mean = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
    return torch.cat([F.normalize(last, dim=-1), F.normalize(mean, dim=-1)], dim=1)
