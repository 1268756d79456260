"""ROME and R-ROME: a fact is a rank-one change of a value matrix at the subject's last token.

ROME: Meng et al., arXiv 2202.05262. W' = W + (v* - W k) (C^-1 k*)^T / ((C^-1 k*)^T k) is the change
that makes W' k = v* and disturbs the other keys least, as measured by their second moment C. v* is
solved for (see `solvers/values.py`), k* is the mean key over the bare prompt and prefixed ones. As
published it mixes two keys: k above is the bare prompt's (`key="mixed"`), and sometimes (C^-1
k*)^T k is so small that one edit disables the model. R-ROME (Gupta et al., arXiv 2403.07175) uses
one key everywhere: the mean one (`key="prefixes"`) or the bare prompt's (`key="prompt"`).

What departs from the published code: C is taken over self-generated text unless `corpus` names a
file, and a ridge makes up for missing text; prefixes are sampled once per model and seed; the end
of the answer is learned too. The default layer is the one published for 28 and 32 blocks (5), at
other depths the same share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import ClassVar, Literal

import torch
from torch import Tensor

from errata.edit import Edit
from errata.lm import LM
from errata.lm.background import background_texts
from errata.methods.guarded_method import GuardedMethod
from errata.solvers.guards import GUARDED, GuardedConfig, value_length, with_length
from errata.solvers.moments import KeyStatistics, SecondMoment
from errata.solvers.values import ValueProblem, ValueSolution, solve_value


@dataclass(frozen=True)
class RomeConfig(GuardedConfig):
    """Settings of ROME; the defaults are those published for GPT-2 XL and GPT-J.

    Attributes:
        key: the key that the value is written at: "mixed" as in ROME, "prefixes" or "prompt" as in
            R-ROME.
    """

    method: ClassVar[str] = "rome"

    key: Literal["mixed", "prefixes", "prompt"] = "mixed"


class Rome(GuardedMethod):
    """Writes one fact by a rank-one change of one value matrix (ROME, R-ROME)."""

    config_class = RomeConfig
    paper = "arXiv 2202.05262"
    variants = MappingProxyType({"r-rome": {"key": "prefixes"}, "rome-guarded": GUARDED})
    config: RomeConfig

    def __init__(self, config: RomeConfig, lm: LM) -> None:
        depth = lm.architecture.n_layers
        default = max(0, min(round(depth / 6), depth - 2))
        self.layer = default if config.layer is None else config.layer
        self.path = lm.architecture.value_path(self.layer)
        super().__init__(config, lm, [self.path])
        self.statistics = KeyStatistics(
            lm, [self.layer], config.corpus, config.background, config.seed, config.ridge
        )

    def check(self, edits: Sequence[Edit]) -> None:
        """Make sure that edits can be written.

        Raises:
            ConfigError: the corpus is missing, not text, or too short.
        """
        super().check(edits)
        self.statistics.check()

    @cached_property
    def prefixes(self) -> list[str]:
        """Return self-generated prompt prefixes: half of the published length, half shorter."""
        count, length, seed = self.config.prefixes, self.config.prefix_length, self.config.seed + 1
        short = max(1, length // 2)
        texts = background_texts(self.lm, count // 2, short, seed, shortest=short)
        return texts + background_texts(self.lm, count - count // 2, length, seed, shortest=length)

    def learn(self, edits: Sequence[Edit]) -> None:
        """Solve for the value, then change the matrix."""
        (edit,) = edits
        moment = self.statistics[self.layer]
        problem = ValueProblem.of(self.lm, edit, self.prefixes, self.config.token)
        with self.patch.on(self.lm):
            value = solve_value(self.lm, self.layer, problem, self.config)
        if (length := self.length(edits)) is not None:
            value = replace(value, delta=with_length(value, length))
        change = self.guarded(self.path, rank_one(value, self.config.key, moment))
        before = self.patch.deltas[self.path]
        self.patch.deltas[self.path] = before + change.to(before)

    def length_on_base(self, edit: Edit) -> float:
        """Return the length of the value that is solved for on the base model."""
        problem = ValueProblem.of(self.lm, edit, self.prefixes, self.config.token)
        return value_length(solve_value(self.lm, self.layer, problem, self.config))


def rank_one(value: ValueSolution, key: str, moment: SecondMoment) -> Tensor:
    """Return the change (d_out, d_in), in fp64, that makes the value matrix output v* at a key.

    Args:
        value: the value, with the keys and values of each prompt.
        key: see `RomeConfig`.
        moment: C.
    """
    keys, values = value.keys.double(), value.values.double()
    mean = key == "prefixes"
    k, v = (keys.mean(0), values.mean(0)) if mean else (keys[0], values[0])
    k_star = keys[0] if key == "prompt" else keys.mean(0)
    v_star = values[0] + value.delta.double()
    direction = moment.solve(k_star[:, None])[:, 0].to(keys)
    return torch.outer(v_star - v, direction / (direction @ k))
