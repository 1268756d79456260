"""DEFER: a gate and a linear model beside one value matrix; the gate picks which of them answers.

The comparison of that name in GRACE (Hartvigsen et al., arXiv 2211.11031) and WISE (arXiv
2405.14768). With h the value matrix's input at the last token of the prompt, g(h) = sigmoid(w^T h +
b) and o(h) = U h + c. In training, the matrix's output is g o(h) + (1 - g) v at every token, v its
own output, and Adam lowers the NLL of the target; in use it is o(h) at every token if g(h) >=
`threshold`, else v. All edits share g and o, and each is learned by itself.

What departs from the published code: the gate reads the last token of the prompt, once, for the
whole answer (there, while generating, whatever token came last); and the end of the answer is
learned too. Only edits are ever trained on, so nothing closes the gate to other texts: locality
falls as edits come, and earlier edits are forgotten, as is known of this method.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from errata.config import Fraction, MethodConfig, NonNegativeFloat, PositiveInt
from errata.edit import Edit
from errata.lm import LM
from errata.lm.encoding import Row
from errata.lm.tail import Tail
from errata.lm.weights import weight_device
from errata.methods.base import Method, Progress, no_progress
from errata.patches.routed import ForwardState, RoutedModule, last_token
from errata.storage import state


@dataclass(frozen=True)
class DeferConfig(MethodConfig):
    """Settings of DEFER; the defaults are those of GRACE's comparison (WISE's: lr 7e-5).

    Attributes:
        steps: Adam steps per edit.
        lr: Adam's learning rate.
        threshold: the gate opens at this value.
    """

    method: ClassVar[str] = "defer"

    steps: PositiveInt = 100
    lr: NonNegativeFloat = 1e-1
    threshold: Fraction = 0.5


class GatedModel(nn.Module):
    """A gate g(h) = sigmoid(w^T h + b) and a linear model o(h) = U h + c.

    Args:
        d_in: the size of h.
        d_out: the size of o(h).
        seed: of the initial weights, drawn as `nn.Linear` draws them.
    """

    def __init__(self, d_in: int, d_out: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.gate = nn.Linear(d_in, 1)
            self.value = nn.Linear(d_in, d_out)

    def forward(self, query: Tensor) -> Tensor:
        """Return g(h), then o(h), (batch, 1 + d_out), of query (batch, d_in)."""
        query = query.to(self.gate.weight)
        return torch.cat([self.gate(query).sigmoid(), self.value(query)], -1)


class GatedPatch(RoutedModule):
    """A `GatedModel` that replaces a module's output where its gate is at least `threshold`.

    Both read the last token of the prompt alone; o(h) replaces the output at every token of prompt
    and answer.

    Args:
        path: the module's full dotted name, see `Architecture.value_path`.
        threshold: from 0 to 1.
    """

    def __init__(self, path: str, threshold: float) -> None:
        super().__init__(path)
        self.threshold = threshold
        self.gated_model: GatedModel | None = None

    @property
    def empty(self) -> bool:
        """Whether there is no model yet."""
        return self.gated_model is None

    def answered(self, route: Tensor) -> Tensor:
        """Return the rows whose gate is open, (batch,) bool."""
        return route[:, 0] >= self.threshold

    @torch.no_grad()
    def _decide(self, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Return gate and value for each prompt, (batch, 1 + d_out)."""
        if self.gated_model is None:
            return values.new_zeros(keys.shape[0], 1 + values.shape[-1])
        rows = torch.arange(keys.shape[0], device=keys.device)
        route: Tensor = self.gated_model(keys[rows, last_token(mask)])
        return route

    def _answer(self, keys: Tensor, output: Tensor, now: ForwardState) -> Tensor | None:
        if now.route is None or not bool((opened := now.route[:, 0] >= self.threshold).any()):
            return None
        value = now.route[:, 1:].to(output)[:, None]
        opened = opened[:, None, None].to(output.device)
        return torch.where(opened, value, output.reshape(*now.size, -1)).reshape(output.shape)


class Defer(Method):
    """DEFER on one model, one edit after another."""

    config_class = DeferConfig
    phase = "association"
    undo_is = "exact, by writing the whole ledger anew"
    paper = "arXiv 2211.11031"
    config: DeferConfig

    def __init__(self, config: DeferConfig, lm: LM) -> None:
        super().__init__(config, lm)
        self.layer = lm.architecture.default_layer() if config.layer is None else config.layer
        self._patch = GatedPatch(lm.architecture.value_path(self.layer), config.threshold)

    @property
    def patch(self) -> GatedPatch:
        """The gate and the model behind it; empty before the first edit."""
        return self._patch

    def clear(self) -> None:
        """Forget all edits."""
        self._edits = []
        self._patch.gated_model = None

    def write(self, edits: Sequence[Edit], progress: Progress = no_progress) -> None:
        """Add edits, one after another."""
        for edit in edits:
            self._learn(edit)
            self._edits.append(edit)
            progress(1)

    def new_model(self) -> GatedModel:
        """Return an untrained gate and model, drawn from the seed."""
        architecture = self.lm.architecture
        device = weight_device(architecture.value_module(self.lm.model, self.layer))
        return GatedModel(architecture.d_in, architecture.d_out, self.config.seed).to(device)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the weights and biases of gate and model; nothing before the first edit."""
        tensors = {} if self._patch.gated_model is None else self._patch.gated_model.state_dict()
        return {name: tensor.cpu() for name, tensor in tensors.items()}, {}

    def load_state(
        self, edits: Sequence[Edit], tensors: Mapping[str, Tensor], values: Mapping[str, Any]
    ) -> None:
        """Restore from `state`."""
        self.clear()
        if edits:
            model = self.new_model()
            state.copy_into(model.state_dict(), tensors)
            self._patch.gated_model = model.requires_grad_(False)
        self._edits = list(edits)

    def _learn(self, edit: Edit) -> None:
        """Train gate and model on one edit with Adam."""
        model = copy.deepcopy(self._patch.gated_model) or self.new_model()
        loss = EditLoss(self.lm, self.layer, self.encode(edit))
        adam = torch.optim.Adam(model.requires_grad_().parameters(), lr=self.config.lr)
        for _ in range(self.config.steps):
            adam.zero_grad()
            loss(model).backward()  # type: ignore[no-untyped-call]
            adam.step()
        model.zero_grad()
        self._patch.gated_model = model.requires_grad_(False)


class EditLoss:
    """The loss of one edit as a function of a `GatedModel`.

    Args:
        lm: the base model, without patches.
        layer: the block whose value matrix is replaced.
        row: the edit's prompt, target and ending.
    """

    def __init__(self, lm: LM, layer: int, row: Row) -> None:
        batch = lm.batch([row])
        self._tail = Tail(lm, layer, batch)
        self._query = self._tail.keys[:, row.prompt_length - 1]
        self._positions = batch.label_positions(batch.target_mask | batch.ending_mask)

    def __call__(self, model: GatedModel) -> Tensor:
        """Return the answer's NLL, (), with the output g o(h) + (1 - g) v at every token."""
        rows, columns, labels = self._positions
        own = self._tail.values
        gate, value = model(self._query)[:, None].split([1, own.shape[-1]], -1)
        logits = self._tail.logits(gate * value + (1 - gate) * own.to(value), rows, columns)
        return F.cross_entropy(logits, labels.to(logits.device))
