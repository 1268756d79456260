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
Of equally near keys the latest counts. Prefixes are self-generated. The layer is by default the
last of those that MEMIT changes, as published (8 of 28 blocks), at other depths the same share.

What follows from the design: the key is the subject's, and a subject at the beginning of a prompt
has one key whatever is asked of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from errata.config import Fraction
from errata.edit import Edit
from errata.lm import LM
from errata.lm.background import background_texts
from errata.methods.base import Method, Progress, no_progress
from errata.patches.base import Patch
from errata.solvers.values import ValueConfig, ValueProblem, solve_value
from errata.storage import state

TOKENS = 256
"""Tokens that are looked up at once, at most: the cosines of these and all keys are in memory."""


@dataclass(frozen=True)
class NeuralDbConfig(ValueConfig):
    """Settings of NeuralDB; those of the value are described in `ValueConfig`.

    Attributes:
        gate: the cosine with a stored key from which a token gets its value, as published.
    """

    method: ClassVar[str] = "neuraldb"

    gate: Fraction = 0.65


class GatedStore(Patch):
    """Keys and values beside one linear module: near a key, its value is added to the output.

    Every token is looked up by itself, so the prompt, the batch and a cache make no difference.

    Args:
        path: the module's full dotted name, see `Architecture.value_path`.
        gate: the cosine from which a value is added.

    Attributes:
        columns: edit id -> its key (d_in,), of length 1, and value (d_out,), in fp32 on the CPU;
            the latest last.
    """

    def __init__(self, path: str, gate: float) -> None:
        self.path = path
        self.gate = gate
        self.columns: dict[str, tuple[Tensor, Tensor]] = {}
        self._stacked: tuple[Tensor, Tensor] | None = None
        self._handle: RemovableHandle | None = None

    def add(self, edit_id: str, key: Tensor, value: Tensor) -> None:
        """Store a key (d_in,) and a value (d_out,)."""
        self.columns[edit_id] = F.normalize(key.float(), dim=-1).cpu(), value.float().cpu()
        self._stacked = None

    def drop(self, edit_ids: Iterable[str]) -> None:
        """Take pairs out."""
        for edit_id in edit_ids:
            del self.columns[edit_id]
        self._stacked = None

    def stacked(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return all keys (n, d_in) and values (n, d_out) on a device; the latest first."""
        if self._stacked is None or self._stacked[0].device != device:
            keys, values = zip(*reversed(self.columns.values()), strict=True)
            self._stacked = torch.stack(keys).to(device), torch.stack(values).to(device)
        return self._stacked

    def nearest(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cosine with the nearest stored key and its place, both (tokens,).

        Args:
            keys: (tokens, d_in).
        """
        stored = self.stacked(keys.device)[0]
        found = [
            (F.normalize(part.float(), dim=-1) @ stored.T).max(-1)
            for part in torch.split(keys, TOKENS)
        ]
        return torch.cat([each.values for each in found]), torch.cat(
            [each.indices for each in found]
        )

    def _attach(self, lm: LM) -> None:
        self._handle = lm.model.get_submodule(self.path).register_forward_hook(self._answer)

    def _detach(self, lm: LM) -> None:
        if self._handle is not None:
            self._handle.remove()
        self._handle = None

    def _answer(self, _: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if not self.columns:
            return None
        cosines, places = self.nearest(args[0].reshape(-1, args[0].shape[-1]))
        values = self.stacked(output.device)[1]
        there = (cosines > self.gate)[:, None]
        outputs = output.reshape(-1, output.shape[-1])
        added = (outputs.float() + values[places]).to(output.dtype)
        return torch.where(there, added, outputs).view_as(output)


class NeuralDb(Method):
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

    def write(self, edits: Sequence[Edit], progress: Progress = no_progress) -> None:
        """Add edits, each solved for on the base model."""
        for edit in edits:
            problem = ValueProblem.of(self.lm, edit, self.prefixes, self.config.token)
            solved = solve_value(self.lm, self.layer, problem, self.config)
            self._patch.add(edit.id, solved.keys.mean(0), solved.delta)
            self._edits.append(edit)
            progress(1)

    def clear(self) -> None:
        """Forget all edits."""
        self._edits = []
        self._patch.drop(list(self._patch.columns))

    def undo(self, edit_ids: Iterable[str]) -> None:
        """Remove edits.

        Raises:
            UnknownNameError: no edit has such an id; nothing is undone then.
        """
        removed = self.check_ids(edit_ids)
        self._patch.drop(removed)
        self._edits = [edit for edit in self._edits if edit.id not in removed]

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return keys (n, d_in) and values (n, d_out), in the order of the edits."""
        if not self._edits:
            return {}, {}
        keys, values = zip(*(self._patch.columns[edit.id] for edit in self._edits), strict=True)
        return {"keys": torch.stack(keys), "values": torch.stack(values)}, {}

    def load_state(
        self, edits: Sequence[Edit], tensors: Mapping[str, Tensor], values: Mapping[str, Any]
    ) -> None:
        """Restore from `state`."""
        architecture, columns = self.lm.architecture, list[tuple[Tensor, Tensor]]()
        if edits:
            keys = state.tensor(tensors, "keys", (len(edits), architecture.d_in))
            added = state.tensor(tensors, "values", (len(edits), architecture.d_out))
            columns = list(zip(keys.float(), added.float(), strict=True))
        self.clear()
        for edit, (key, value) in zip(edits, columns, strict=True):
            self._patch.columns[edit.id] = key.clone(), value.clone()
        self._edits = list(edits)
