"""`SideMemory`: changed copies of one value matrix, and the router between them and the main one.

The router decides once per sequence (see `patches/routed.py`). The memories are trained in
`writer.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from errata.lm import LM
from errata.patches.routed import MAIN, ForwardState, RoutedModule, last_token

Score = Literal["linear", "activated"]
"""The activation at a token: ||dW k||, as in WISE's equation 3; or ||act(v) - act(v + dW k)||, as
in the published code.
"""
Pool = Literal["mean", "max", "last"]
"""How the activations of a prompt's tokens become one."""


@dataclass
class Memory:
    """One side memory, used where its activation exceeds `threshold`.

    Attributes:
        delta: W' - W, (d_out, d_in).
        threshold: see `ShardWriter.threshold`.
    """

    delta: Tensor
    threshold: float


def pool_tokens(scores: Tensor, mask: Tensor, pool: Pool) -> Tensor:
    """Pool scores (..., batch, width) under mask (batch, width) to one per row, (..., batch)."""
    kept = scores * mask
    if pool == "mean":
        return kept.sum(-1) / mask.sum(-1).clamp(min=1)
    if pool == "max":
        return kept.amax(-1)
    return kept.gather(-1, last_token(mask).expand(kept.shape[:-1]).unsqueeze(-1)).squeeze(-1)


class SideMemory(RoutedModule):
    """Side memories beside the value matrix of `layer`, behind a router.

    Args:
        lm: the base model; nothing is installed on it yet.
        layer: the edited block.
        memories: the side memories; without one, the main memory answers everything.
        score: how a token's activation is computed.
        pool: how those of the prompt's tokens become one.

    Reference: WISE, arXiv 2405.14768, equations 3 and 6.
    """

    def __init__(
        self,
        lm: LM,
        layer: int,
        memories: Sequence[Memory] = (),
        score: Score = "linear",
        pool: Pool = "mean",
    ) -> None:
        super().__init__(lm.architecture.value_path(layer))
        self.layer = layer
        self.memories = list(memories)
        self.pool = pool
        self._activation = _activation_of(lm) if score == "activated" else None

    @property
    def empty(self) -> bool:
        """Whether there is no side memory yet."""
        return not self.memories

    def activations(self, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Return Delta_j(x), (memories, batch).

        Args:
            keys: (batch, width, d_in).
            values: (batch, width, d_out).
            mask: (batch, width), the prompt's tokens.
        """
        if self.pool == "last" and keys.shape[1] > 1:  # one token of each row is enough
            at = torch.arange(keys.shape[0], device=keys.device), last_token(mask)
            keys, values, mask = keys[at][:, None], values[at][:, None], mask[at][:, None]
        return torch.stack(
            [self.activation(memory.delta, keys, values, mask) for memory in self.memories]
        )

    def activation(self, delta: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Return Delta(x) of one memory, (batch,); differentiable in `delta`, also at zero."""
        change = F.linear(keys.to(delta.dtype), delta)
        if self._activation is not None:
            main = values.to(change.dtype)
            change = self._activation(main + change) - self._activation(main)
        return pool_tokens((change.square().sum(-1) + 1e-12).sqrt(), mask, self.pool)

    def decide(self, activations: Tensor) -> Tensor:
        """Return the memory to use or `MAIN`, (batch,), of activations (memories, batch)."""
        thresholds = activations.new_tensor([memory.threshold for memory in self.memories])
        highest, best = activations.max(0)
        return torch.where(highest > thresholds[best], best, MAIN)

    @torch.no_grad()
    def probe(self, lm: LM, prompts: Sequence[str], batch_size: int = 32) -> Tensor:
        """Return Delta_j of prompts, (memories, prompts), whether the patch is installed or not."""
        installed_on = self._lm
        self.remove()
        parts = []
        module = lm.architecture.value_module(lm.model, self.layer)
        for start in range(0, len(prompts), batch_size):
            batch = lm.prompt_batch(prompts[start : start + batch_size])
            seen: list[Tensor] = []
            hook = module.register_forward_hook(
                lambda _, args, out, seen=seen: seen.extend((args[0].clone(), out.clone()))
            )
            try:
                lm.run(batch)
            finally:
                hook.remove()
            keys, values = (tensor.reshape(*batch.input_ids.shape, -1) for tensor in seen)
            parts.append(self.activations(keys, values, batch.prompt_mask.to(keys.device)))
        if installed_on is not None:
            self.install(installed_on)
        return torch.cat(parts, dim=1)

    # installed

    def _decide(self, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        return self.decide(self.activations(keys, values, mask))

    def _answer(self, keys: Tensor, output: Tensor, now: ForwardState) -> Tensor | None:
        """Return the main memory's output, plus dW k in the rows routed to a side memory."""
        if (route := now.route) is None:
            return None
        used = set(route.tolist()) - {MAIN}
        if not used:
            return None
        if len(used) == 1 and bool((route != MAIN).all()):
            delta = self.memories[used.pop()].delta
            flat = keys.reshape(-1, keys.shape[-1]).to(delta.dtype)
            main = output.reshape(flat.shape[0], -1).to(delta.dtype)
            return torch.addmm(main, flat, delta.t()).view_as(output).to(output)
        inputs, outputs = keys.reshape(*now.size, -1), output.reshape(*now.size, -1).clone()
        for j in used:
            delta, rows = self.memories[j].delta, route == j
            outputs[rows] += F.linear(inputs[rows].to(delta.dtype), delta).to(output.dtype)
        return outputs.reshape(output.shape)


def _activation_of(lm: LM) -> nn.Module:
    """Return the activation function of the model's feed-forward networks."""
    from transformers.activations import ACT2FN

    config = lm.model.config.get_text_config()
    keys = ("hidden_activation", "hidden_act", "activation_function", "activation")
    names = (getattr(config, key, None) for key in keys)
    activation: nn.Module = ACT2FN[next((n for n in names if isinstance(n, str)), "gelu")]
    return activation
