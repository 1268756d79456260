"""NeuralDB: keys and values beside one value matrix, and one gate for all of them.

Fei et al., "NeuralDB: Scaling Knowledge Editing in LLMs to 100,000 Facts with Neural KV Database",
arXiv 2507.18028. Editors that locate first and then edit solve for a value at the last token of an
edit's subject and fit all pairs of keys and values into one matrix by least squares; with many
pairs the fit fails, and disturbs whatever else the matrix does. Here the pairs stay apart: a token
whose key has a cosine of more than `gate` with a stored key gets that one's value added to the
matrix's output, and no other token is changed. The value is ROME's (see `solvers/values.py`), the
key the mean one over the bare prompt and prefixed ones.

What departs: each value is solved for on the base model alone, not on what earlier edits left, so
that neither order nor number of the others matters, and an edit is undone by taking its column out.
Of equally near keys the latest counts. Prefixes are self-generated, as many as MEMIT has. The layer
is by default the last of those that MEMIT changes, as published (8 of 28 blocks), at other depths
the same share.

What follows from the design: the key is the subject's, and a subject at the beginning of a prompt
has one key whatever is asked of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from errata.config import Fraction, NonNegativeInt
from errata.edit import Edit
from errata.lm import LM
from errata.lm.background import background_texts
from errata.lm.subject import keys_at
from errata.methods.base import Carry, Method
from errata.methods.separate_method import SeparateMethod
from errata.patches.key_values import KeyValues
from errata.solvers.values import ValueConfig, ValueProblem, solve_value
from errata.storage import state


@dataclass(frozen=True)
class NeuralDbConfig(ValueConfig):
    """Settings of NeuralDB; those of the value are described in `ValueConfig`.

    Attributes:
        gate: the cosine with a stored key from which a token gets its value, as published.
    """

    method: ClassVar[str] = "neuraldb"

    gate: Fraction = 0.65
    prefixes: NonNegativeInt = 5


class GatedStore(KeyValues):
    """Keys of length 1 and values: near a key, its value is added to the output.

    Args:
        path: the module's full dotted name, see `Architecture.value_path`.
        gate: the cosine from which a value is added.
    """

    def __init__(self, path: str, gate: float) -> None:
        super().__init__(path)
        self.gate = gate

    def added(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Return the values of the nearest keys, and which of them are near enough."""
        stored, values = self.stacked(keys.device)
        nearest = (F.normalize(keys, dim=-1) @ stored.T).max(-1)
        return values[nearest.indices], nearest.values > self.gate


class NeuralDb(SeparateMethod):
    """Keys of subjects and values solved for, beside one value matrix, behind one gate."""

    config_class = NeuralDbConfig
    phase = "association"
    undo_is = "exact, by taking the edit's key and value out"
    paper = "arXiv 2507.18028"
    needs_subject = True
    config: NeuralDbConfig

    def __init__(self, config: NeuralDbConfig, lm: LM) -> None:
        super().__init__(config, lm)
        depth = lm.architecture.n_layers
        default = max(0, min(round(8 * depth / 28), depth - 2))
        self.layer = default if config.layer is None else config.layer
        self._patch = GatedStore(lm.architecture.value_path(self.layer), config.gate)

    @property
    def patch(self) -> GatedStore:
        """The keys and values."""
        return self._patch

    @cached_property
    def prefixes(self) -> list[str]:
        """Self-generated texts that are put before the prompt."""
        count, length = self.config.prefixes, self.config.prefix_length
        seed = self.config.seed + 1
        return background_texts(self.lm, count, length, seed, shortest=length)

    def solve(self, edit: Edit) -> tuple[Tensor, Tensor]:
        """Return an edit's key (1, d_in), of length 1, and its value (1, d_out)."""
        problem = ValueProblem.of(self.lm, edit, self.prefixes, self.config.token)
        solved = solve_value(self.lm, self.layer, problem, self.config)
        return F.normalize(solved.keys.mean(0, keepdim=True), dim=-1), solved.delta[None]

    def take(self, source: Method, carry: Carry) -> None:
        """Take edits' values from the same method on another model; read the keys on this one.

        Raises:
            ConfigError: the other is no such method.
        """
        if not isinstance(source, NeuralDb):
            return super().take(source, carry)
        edits, columns = source.edits, []
        for edit in edits:
            prompts = ValueProblem.of(self.lm, edit, self.prefixes, self.config.token).prompts
            key = keys_at(self.lm, self.layer, prompts).float().mean(0, keepdim=True)
            value = carry(source.patch.columns[edit.id][1], source.layer, self.layer)
            columns.append((F.normalize(key, dim=-1), value))
        self.restore(edits, columns)
        return None

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return keys (n, d_in) and values (n, d_out), in the order of the edits."""
        if not self._edits:
            return {}, {}
        keys, values = zip(*(self._patch.columns[edit.id] for edit in self._edits), strict=True)
        return {"keys": torch.cat(keys), "values": torch.cat(values)}, {}

    def load_state(
        self, edits: Sequence[Edit], tensors: Mapping[str, Tensor], values: Mapping[str, Any]
    ) -> None:
        """Restore from `state`."""
        architecture, columns = self.lm.architecture, list[tuple[Tensor, Tensor]]()
        if edits:
            keys = state.tensor(tensors, "keys", (len(edits), architecture.d_in))
            added = state.tensor(tensors, "values", (len(edits), architecture.d_out))
            columns = list(
                zip(*(torch.split(each.clone(), 1) for each in (keys, added)), strict=True)
            )
        self.restore(edits, columns)
