"""`SideMemory`: second copies of one value matrix, and the router that chooses between them and the
main one.

The router decides once per sequence (see `routed.py`). What is learned, and how, is the methods'
affair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from errata.lm import LM
from errata.patches.routed import MAIN, ForwardState, RoutedModule, last_token

SCORES = ("linear", "activated")
POOLS = ("mean", "max", "last")


@dataclass
class Memory:
    """One side memory: `delta` (d_out, d_in) = W' - W, used where its activation exceeds
    `threshold`.
    """

    delta: Tensor
    threshold: float


def pool_tokens(scores: Tensor, mask: Tensor, pool: str) -> Tensor:
    """One score per row: scores (..., batch, width) over the tokens under mask (batch, width) ->
    (..., batch).
    """
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
        memories: the side memories; empty means that all goes to the main memory.
        score: `linear`, ||dW k|| as in WISE's equation 3; `activated`, ||act(v) - act(v + dW k)||
            as published code has it.
        pool: over the prompt's tokens: `mean`, `max` or `last`.
        relative: choose among memories by activation / threshold, not by activation.

    Reference: WISE, arXiv 2405.14768, equations 3 and 6.
    """

    def __init__(
        self,
        lm: LM,
        layer: int,
        memories: Sequence[Memory] = (),
        score: str = "linear",
        pool: str = "mean",
        relative: bool = False,
    ) -> None:
        super().__init__(lm.architecture.value_path(layer))
        self.layer = layer
        self.memories = list(memories)
        self.score = score
        self.pool = pool
        self.relative = relative
        self._activation = _activation_of(lm) if score == "activated" else None

    @property
    def empty(self) -> bool:
        """No side memory yet."""
        return not self.memories

    def activations(self, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Delta_j(x), shape (memories, batch), of keys (batch, width, d_in), values (batch, width,
        d_out) under mask.
        """
        if (
            self.pool == "last" and keys.shape[1] > 1
        ):  # no more than one token of each row is looked at
            at = torch.arange(keys.shape[0], device=keys.device), last_token(mask)
            keys, values, mask = keys[at][:, None], values[at][:, None], mask[at][:, None]
        return torch.stack(
            [self.activation(memory.delta, keys, values, mask) for memory in self.memories]
        )

    def activation(self, delta: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Delta(x) of one memory, shape (batch,); differentiable in `delta`, also where that is
        zero.
        """
        change = F.linear(keys.to(delta.dtype), delta)
        if self._activation is not None:
            main = values.to(change.dtype)
            change = self._activation(main + change) - self._activation(main)
        return pool_tokens((change.square().sum(-1) + 1e-12).sqrt(), mask, self.pool)

    def decide(self, activations: Tensor) -> Tensor:
        """(memories, batch) -> (batch,): the memory to use, or `MAIN`."""
        thresholds = activations.new_tensor([memory.threshold for memory in self.memories])
        worth = activations / thresholds[:, None].clamp(min=1e-12) if self.relative else activations
        best = worth.argmax(0)
        enough = activations.gather(0, best[None])[0] > thresholds[best]
        return torch.where(enough, best, MAIN)

    @torch.no_grad()
    def probe(self, lm: LM, prompts: Sequence[str], batch_size: int = 32) -> Tensor:
        """Delta_j of prompts on an LM that this patch is installed on or not: (memories, prompts)."""
        was = self._lm
        self.remove()
        found = []
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
            found.append(self.activations(keys, values, batch.prompt_mask.to(keys.device)))
        if was is not None:
            self.install(was)
        return torch.cat(found, dim=1)

    # installed

    def _decide(self, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        return self.decide(self.activations(keys, values, mask))

    def _answer(self, keys: Tensor, output: Tensor, now: ForwardState) -> Tensor | None:
        """The main memory's output, with dW k added in the rows that are routed to a side memory."""
        if (route := now.route) is None:
            return None
        used = set(route.tolist()) - {MAIN}
        if not used:
            return None
        if len(used) == 1 and bool((route != MAIN).all()):
            delta = self.memories[used.pop()].delta
            flat = keys.reshape(-1, keys.shape[-1]).to(delta.dtype)
            return (
                torch.addmm(output.reshape(flat.shape[0], -1).to(delta.dtype), flat, delta.t())
                .view_as(output)
                .to(output)
            )
        rows_in, rows_out = keys.reshape(*now.size, -1), output.reshape(*now.size, -1).clone()
        for j in used:
            delta, mine = self.memories[j].delta, route == j
            rows_out[mine] += F.linear(rows_in[mine].to(delta.dtype), delta).to(output.dtype)
        return rows_out.reshape(output.shape)


def _activation_of(lm: LM) -> nn.Module:
    from transformers.activations import ACT2FN

    config = lm.model.config.get_text_config()
    names = ("hidden_activation", "hidden_act", "activation_function", "activation")
    name = next(
        (n for n in (getattr(config, key, None) for key in names) if isinstance(n, str)), "gelu"
    )
    activation: nn.Module = ACT2FN[name]
    return activation
