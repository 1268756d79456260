"""`IntentClassifier`: in which way a prompt asks, whatever it asks.

"Who leads Traren?" wants the answer; "Who led it before?" another one; "Is it Ana Brisk?" a yes or
a no; "Tell me about Traren" sentences in which the answer may stand. The base model's state at the
prompt's last token, in the middle of its blocks, tells these apart. A linear discriminant is fitted
in closed form, once per base model, on texts that come with errata (`intents.jsonl`, and the
wordings of `question_space.py`, which all want the answer).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

INTENTS = ("answer", "former", "exclude", "verify", "choose", "describe")
ANSWER = INTENTS.index("answer")
READ = frozenset(INTENTS.index(name) for name in ("verify", "choose", "describe"))
"""Those that a fact is read for: what is to be said is another thing than the edit's answer."""
EXCLUDE, DESCRIBE = INTENTS.index("exclude"), INTENTS.index("describe")
RIDGE = 0.3
"""Of the variance within an intent, in units of its mean."""
MARGIN = 1.0
"""How much more, in log odds, must speak for another intent than for wanting the answer, at least.
"""
EDIT_MARGIN = 1.9
"""How much more must speak for it yet in an edit's own prompt, since that has an answer. Less than
the log of `AGREED`, by which that prompt is still found.
"""
MISTAKEN = 0.02
"""The share of wordings, of relations that were not fitted on, that may be taken to ask in another
way.
"""
FOLDS = 3
"""Parts of the wordings that the margin is measured on, each with a fit to the others."""


@dataclass(frozen=True)
class IntentClassifier:
    """Tells in which way a prompt asks.

    Attributes:
        weights: (hidden, intents).
        bias: (intents,).
    """

    weights: Tensor
    bias: Tensor

    def of(self, states: Tensor, margin: float = 0.0) -> list[int]:
        """Return the intent of each state (n, hidden), as its place in `INTENTS`.

        Args:
            states: of the texts.
            margin: the log odds by which another intent than to want the answer must be likelier.
        """
        logits = self.logits(states)
        logits[:, ANSWER] += margin
        found: list[int] = logits.argmax(-1).tolist()
        return found

    def odds(self, states: Tensor) -> Tensor:
        """Return the log odds of each intent against the likeliest other one, (n, intents)."""
        logits = self.logits(states)
        best = logits.topk(2, -1).values
        return logits - torch.where(logits == best[:, :1], best[:, 1:], best[:, :1])

    def logits(self, states: Tensor) -> Tensor:
        """Return how much speaks for each intent, (n, intents), of states (n, hidden)."""
        return states.float() @ self.weights + self.bias


def fit_intents(
    states: Tensor, intents: Sequence[int], relations: Sequence[int]
) -> IntentClassifier:
    """Fit a linear discriminant, whose classes are equally likely beforehand.

    Another intent than to want the answer needs a margin of log odds: `MARGIN`, or more where a
    model tells them apart so badly that more than `MISTAKEN` of the wordings would be taken for
    something else.

    Args:
        states: (n, hidden), of the texts.
        intents: in which way each asks.
        relations: what each of the first texts asks; they want the answer.
    """
    states, labels, asked = states.double(), torch.tensor(intents), torch.tensor(relations)
    excess = []
    for fold in range(FOLDS):
        held = torch.zeros(len(states), dtype=torch.bool)
        held[: len(asked)] = asked % FOLDS == fold
        logits = _fitted(states[~held], labels[~held]).logits(states[held])
        others = logits.index_fill(1, torch.tensor([ANSWER]), -torch.inf)
        excess.append(others.amax(1) - logits[:, ANSWER])
    found = _fitted(states, labels)
    found.bias[ANSWER] += max(MARGIN, float(torch.cat(excess).quantile(1 - MISTAKEN)))
    return found


def _fitted(states: Tensor, labels: Tensor) -> IntentClassifier:
    center, scale = states.mean(0), states.std(0).clamp(min=1e-6)
    scaled = (states - center) / scale
    means = torch.stack([scaled[labels == intent].mean(0) for intent in range(len(INTENTS))])
    apart = scaled - means[labels]
    within = apart.T @ apart / len(apart)
    within += RIDGE * within.diagonal().mean() * torch.eye(len(within), dtype=within.dtype)
    axes = torch.linalg.solve(within, means.T)  # (hidden, intents)
    weights = axes / scale[:, None]
    bias = -0.5 * (means.T * axes).sum(0) - center @ weights
    return IntentClassifier(weights.float(), bias.float())
