"""Nearest class mean: a label is the one whose texts' mean state is nearest; nothing is trained.

Mensink et al., "Distance-Based Image Classification: Generalizing to New Classes at Near-Zero
Cost", TPAMI 2013; in continual learning on pretrained features, Janson et al., arXiv 2210.04428.
The state is that of the text's last token behind the last block. A new label moves no other mean,
so nothing is forgotten; what is lost are texts that a new label's mean is nearer to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from errata.continual.architecture.separate import prompt_of
from errata.continual.config import LearningConfig
from errata.continual.language import LanguageLearner
from errata.continual.plugin import Plugin


class NearestMean(Plugin):
    """Classifies by the nearest mean of states."""

    kind = "representation"
    paper = "arXiv 2210.04428"
    saves = False
    beside = True
    takes = ("labels",)
    learner: LanguageLearner

    def __init__(self, config: LearningConfig, learner: Any) -> None:
        super().__init__(config, learner)
        self.sums: dict[tuple[int, ...], Tensor] = {}
        """By the label's tokens: (hidden + 1,), the sum of states, and last their number."""

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        """Nothing."""
        return {}

    def end(self) -> None:
        """Add the task's states to the means."""
        states = self.learner.states([prompt_of(row) for row in self.tasks[-1]])
        for row, state in zip(self.tasks[-1], states, strict=True):
            label = row.ids[row.prompt_length : row.prompt_length + row.target_length]
            counted = torch.cat([state, torch.ones(1)])
            self.sums[label] = self.sums.get(label, torch.zeros_like(counted)) + counted

    def classify(self, texts: Sequence[str], labels: Sequence[str]) -> list[str] | None:
        """Return the label of the nearest mean; None before any is known."""
        lm, named = self.learner.lm, {}
        for label in labels:
            row = lm.encode(texts[0], label)
            named[label] = self.sums.get(row.ids[row.prompt_length :])
        means = {label: each[:-1] / each[-1] for label, each in named.items() if each is not None}
        if not means:
            return None
        states = self.learner.states([lm.encode_prompt(text) for text in texts])
        near = torch.cdist(states, torch.stack(list(means.values()))).argmin(1).tolist()
        return [list(means)[number] for number in near]

    def state(self) -> dict[str, Any]:
        """Return the sums."""
        return {"labels": [list(each) for each in self.sums], "sums": list(self.sums.values())}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from `state()`."""
        labels = [tuple(each) for each in state["labels"]]
        self.sums = {label: each.cpu() for label, each in zip(labels, state["sums"], strict=True)}
