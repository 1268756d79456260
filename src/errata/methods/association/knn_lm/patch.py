"""`Mixture`: stored contexts, each with the token that followed it, vote for the next token.

A context is the input of one linear module at a token. The neighbours' vote is mixed into the
model's final logits, behind whatever a family does to the head's output.

Reference: kNN-LM, arXiv 1911.00172, equations 2 and 3.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from errata.lm import LM
from errata.patches.answer_store import AnswerStore


class Mixture(AnswerStore):
    """A store whose tokens vote, see `AnswerStore`.

    Args:
        lm: the base model; nothing is installed on it yet.
        path: the module whose input is the context, see `Architecture.value_path`.
        radius: how far a prompt may be from a stored one for the store to be used.
        temperature: tau, a squared distance: a neighbour at distance d weighs exp(-d^2 / tau).
        share: lambda, the store's part in the mixture.
        neighbours: k, how many vote.
    """

    def __init__(
        self, lm: LM, path: str, radius: float, temperature: float, share: float, neighbours: int
    ) -> None:
        device = lm.model.get_submodule(path).weight.device
        super().__init__(lm, lm.architecture.d_in, device, radius, neighbours)
        self.path = path
        self.temperature, self.share = temperature, share

    def vote(self, contexts: Tensor, vocabulary: int) -> Tensor:
        """Return log p_kNN (n, vocabulary) in fp32 at contexts (n, width).

        It is -inf for tokens that no neighbour has.
        """
        distances, tokens = self.nearest(contexts)
        weights = torch.softmax(-distances.square() / self.temperature, dim=-1).float()
        votes = weights.new_zeros(len(contexts), vocabulary).scatter_add_(-1, tokens, weights)
        return votes.log()

    def mix(self, logits: Tensor, contexts: Tensor) -> Tensor:
        """Return log(lambda p_kNN + (1 - lambda) p_LM), (n, vocabulary).

        Logits are (n, vocabulary), contexts (n, width).
        """
        own = logits.float().log_softmax(-1)
        votes = self.vote(contexts.float(), logits.shape[-1]).to(own.device)
        stored = math.log(self.share) if self.share else -math.inf
        rest = math.log(1 - self.share) if self.share < 1 else -math.inf
        return torch.logaddexp(votes + stored, own + rest).to(logits.dtype)

    # installed

    def _register_hooks(self, lm: LM) -> list[RemovableHandle]:
        return [
            lm.model.get_submodule(self.path).register_forward_pre_hook(self._keep_contexts),
            lm.model.register_forward_hook(self._mix_logits, with_kwargs=True),
        ]

    def _keep_contexts(self, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        """Decide on the contexts that the module reads, and keep them for the logits."""
        now = self._pass
        if now is None:
            return
        contexts = args[0].reshape(*now.size, -1)
        if self._choose(now, contexts):
            now.kept["contexts"] = contexts

    def _mix_logits(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        """Return the model's output with mixed logits, and the loss that follows from them."""
        now = self._pass
        if now is None or now.route is None or (contexts := now.kept.get("contexts")) is None:
            return None
        given = self._arguments(args, kwargs)
        routed = self._answer_tokens(now)
        kept = given.get("logits_to_keep", 0)
        kept = slice(-kept or None, None) if isinstance(kept, int) else kept
        labels = given.get("labels")
        at = 1 if isinstance(output, tuple) and labels is not None else 0
        logits = output[at] if isinstance(output, tuple) else output.logits
        tokens = routed[:, kept].to(logits.device)
        if not bool(tokens.any()):
            return None
        mixed = logits.clone()
        mixed[tokens] = self.mix(logits[tokens], contexts[:, kept].to(logits.device)[tokens])
        loss = None if labels is None else self._loss(model, mixed, labels, given)
        if isinstance(output, tuple):
            return (*((loss,) if at else ()), mixed, *output[at + 1 :])
        output.logits = mixed
        if loss is not None:
            output.loss = loss
        return output

    @staticmethod
    def _loss(model: Any, logits: Tensor, labels: Tensor, given: dict[str, Any]) -> Tensor:
        """Return the loss as the model's family defines it."""
        options = {name: given[name] for name in ("num_items_in_batch",) if name in given}
        loss: Tensor = model.loss_function(
            logits=logits, labels=labels, vocab_size=logits.shape[-1], **options
        )
        return loss
