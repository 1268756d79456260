"""`Bridge`: from the hidden states of one model to those of another, by the words both have.

Dar et al., "Analyzing Transformers in Embedding Space", ACL 2023, arXiv 2209.02535. Two models'
states have nothing to do with each other, but both are read by a head, row by row of the same
words. So a state goes to the one that says the same: v_B = v_A E_A pinv(E_B), with E the heads'
(hidden, vocabulary) matrices, over the words that both vocabularies have. Nothing as wide as a
vocabulary is formed but the heads themselves: only the Gram matrices of their rows are needed.

The heads' means are taken out first: they say what all words have in common, and correlations with
them would rule all others. The final norm is left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from errata.errors import UsageError
from errata.lm import LM
from errata.lm.vocabulary import shared_tokens
from errata.lm.weights import read_weight

RIDGE = 1e-4
"""Added to a Gram matrix before it is inverted, as a share of its mean eigenvalue."""
ROWS = 512
"""Value rows of a block that are compared with another's, at most; evenly spread."""
SLACK = 1e-12


@dataclass(frozen=True)
class Bridge:
    """The words of two models, as their heads have them.

    Attributes:
        shared: how many words both have.
        own, other: (hidden, hidden) each, the mean over these words of E E^T, centred, in fp64.
        cross: (hidden of the one, hidden of the other), the same of the one with the other.
    """

    shared: int
    own: Tensor
    other: Tensor
    cross: Tensor

    @classmethod
    def between(cls, one: LM, other: LM) -> Bridge:
        """Make the bridge from a model to another.

        Raises:
            ConfigError: their vocabularies have no token in common.
            ArchitectureError: a head is quantised or offloaded.
        """
        ids = shared_tokens(one.tokenizer, other.tokenizer)
        heads = [
            read_weight(lm.architecture.head_module(lm.model)).cpu()[chosen].double()
            for lm, chosen in zip((one, other), ids, strict=True)
        ]
        first, second = (head - head.mean(0) for head in heads)
        count = len(first)
        return cls(
            count, first.T @ first / count, second.T @ second / count, first.T @ second / count
        )

    @property
    def kernel(self) -> Tensor:
        """(hidden of the one, hidden of the other), E_A pinv(E_B), in fp64."""
        size = len(self.other)
        ridge = RIDGE * self.other.trace() / size * torch.eye(size, dtype=torch.float64)
        kernel: Tensor = torch.linalg.solve(self.other + ridge, self.cross.T).T
        return kernel

    def carry(self, states: Tensor) -> Tensor:
        """Return the other model's states (..., hidden) that say what the one's (..., hidden) do.

        They are in fp32, on the CPU.
        """
        return (states.detach().cpu().double() @ self.kernel).float()

    def correlations(self, one: Tensor, other: Tensor) -> Tensor:
        """Return how alike rows of both models are in what they say of the words, (n, m).

        Args:
            one: (n, hidden of the one).
            other: (m, hidden of the other).
        """
        return _of_length_one(one, self.own) @ self.cross @ _of_length_one(other, self.other).T


def match_layers(one: LM, other: LM, bridge: Bridge) -> tuple[dict[int, int], Tensor]:
    """Match the blocks of two models by what their value rows say.

    Two blocks are as alike as each value row of the one is, in the mean, to the row of the other
    that is most like it, and the other way round. The assignment makes the sum of that largest.

    Returns:
        Block of the one -> block of the other, as many as the shallower has; and how alike all
        are, (blocks of the one, blocks of the other), each row and column less its mean.

    Raises:
        UsageError: SciPy is not installed.
    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise UsageError(
            "layers are matched by SciPy: pip install 'errata[unlearning]'."
        ) from error
    mine, theirs = (
        [_of_length_one(_spread(lm, layer), gram) for layer in range(lm.architecture.n_layers)]
        for lm, gram in ((one, bridge.own), (other, bridge.other))
    )
    across = [(rows @ bridge.cross).float() for rows in mine]
    others = [rows.float().T for rows in theirs]
    alike = torch.tensor([[_best(rows @ each) for each in others] for rows in across])
    alike = alike - alike.mean(0) - alike.mean(1, keepdim=True) + alike.mean()
    pairs = linear_sum_assignment(-alike.numpy())
    return dict(zip(*(each.tolist() for each in pairs), strict=True)), alike


def _spread(lm: LM, layer: int) -> Tensor:
    """Some of a block's value rows, (at most ROWS, hidden)."""
    rows = read_weight(lm.architecture.value_module(lm.model, layer)).T
    return rows[torch.linspace(0, len(rows) - 1, min(ROWS, len(rows))).long()]


def _of_length_one(rows: Tensor, gram: Tensor) -> Tensor:
    """Rows (n, hidden) in fp64, of which each says as much of the words, in all, as any other."""
    rows = rows.cpu().double()
    return rows / ((rows @ gram) * rows).sum(-1, keepdim=True).clamp(min=SLACK).sqrt()


def _best(correlations: Tensor) -> float:
    return float((correlations.amax(0).mean() + correlations.amax(1).mean()) / 2)
