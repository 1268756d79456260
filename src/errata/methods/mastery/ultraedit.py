"""UltraEdit: one linear solve per turn, from the inputs and output gradients of some modules.

Gu et al., arXiv 2505.14679. At every token that predicts one of an answer, h is a module's input
and g the gradient of the answers' NLL at its output. Both are normalised, h^ and g^, by the mean
and deviation of all tokens of all turns; v = -`lr` |h^|^2 g^ is the wanted change of the output;
and with h and v as the rows of H and V, dW^T = (H^T H + I)^-1 H^T V makes it for the whole turn.
This needs no training, no subjects, and nothing of earlier edits but the normaliser.

What departs from the published code: every module has its own normaliser (there modules of one
shape share one), whose deviation is that of all tokens (there it mixes two kinds of variance); the
NLL is the sum over tokens, so that a mini-batch is only what fits into memory at once (there it is
the mean, and edits in a ragged last one weigh more); the end of the answer is learned too; and only
value matrices are edited, where some published settings have other matrices. The published learning
rate, 1e-6, is for models of 7B parameters and has no effect in small ones. |h^|^2 is about the
number of inputs and g^ about one in every coordinate, so eta = rms(value) / d_in changes an output
by about its own size: that is the default rate. A first turn is normalised by itself alone, which
is unstable if it has few tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from errata.config import MethodConfig, NonNegativeFloat, PositiveInt
from errata.edit import Edit
from errata.errors import ConfigError
from errata.lm import LM
from errata.lm.background import background_texts, value_scale
from errata.lm.encoding import Batch
from errata.lm.hooks import capture_input, replace_output
from errata.lm.logits import logits_at
from errata.methods.weight_method import WeightMethod

TINY = 1e-8
"""Added to a variance, as published."""

BACKGROUND = 64
"""The number of self-generated texts whose values give the default learning rate, and their tokens
at most.
"""


@dataclass(frozen=True)
class UltraEditConfig(MethodConfig):
    """Settings of UltraEdit; the defaults are the paper's, except for the learning rate.

    Attributes:
        layer: the last of the edited blocks; None: the last but one.
        layers: how many blocks are edited, up to `layer`; None: those of the last quarter.
        lr: eta, the size of the change of a module's output; None: the root mean square of its
            values over the number of its inputs.
        turn: edits that make one change of the weights together.
        batch: edits that go through the model at once.
    """

    method: ClassVar[str] = "ultraedit"

    layers: PositiveInt | None = None
    lr: NonNegativeFloat | None = None
    turn: PositiveInt = 100
    batch: PositiveInt = 10


class UltraEdit(WeightMethod):
    """Changes several value matrices by one ridge regression per turn."""

    config_class = UltraEditConfig
    paper = "arXiv 2505.14679"
    config: UltraEditConfig

    def __init__(self, config: UltraEditConfig, lm: LM) -> None:
        architecture = lm.architecture
        last = max(0, architecture.n_layers - 2) if config.layer is None else config.layer
        count = config.layers or max(1, min(last + 1, architecture.n_layers // 4 - 1))
        if count > last + 1:
            raise ConfigError(
                f"layers is {count}, and up to layer {last} there are only {last + 1}; give a "
                "smaller 'layers'."
            )
        self.layers = {
            architecture.value_path(layer): layer for layer in range(last - count + 1, last + 1)
        }
        self.paths = list(self.layers)
        super().__init__(config, lm, self.paths, config.turn)

    def learn(self, edits: Sequence[Edit]) -> None:
        """Collect a turn's inputs and gradients on the edited model, then solve for the changes."""
        for path, (inputs, gradients) in self.inputs_and_gradients(edits).items():
            rows = torch.cat([inputs, gradients], -1)
            normaliser = self.normaliser(path).updated(rows)
            h, g = normaliser.normalise(rows).tensor_split([inputs.shape[-1]], -1)
            outputs = -self.rate(path) * h.square().sum(-1, keepdim=True) * g
            before = self.patch.deltas[path]
            self.patch.deltas[path] = before + ridge(inputs, outputs).T.to(before)
            moments = {f"{path}.{name}": tensor for name, tensor in vars(normaliser).items()}
            self.extra_state = {**self.extra_state, **moments}

    def extra_state_shapes(self, edits: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of each module's normaliser, and of its rate unless it is set."""
        shapes: dict[str, tuple[int, ...]] = {}
        for path, delta in self.patch.deltas.items():
            width = sum(delta.shape)
            shapes |= {f"{path}.count": (1,), f"{path}.mean": (width,), f"{path}.scatter": (width,)}
            if self.config.lr is None:
                shapes[f"{path}.rate"] = (1,)
        return shapes

    def rate(self, path: str) -> float:
        """Return eta of one module: as set, or measured on background text at its first use."""
        if self.config.lr is not None:
            return self.config.lr
        name = f"{path}.rate"
        if name not in self.extra_state:
            texts = background_texts(self.lm, BACKGROUND, seed=self.config.seed)
            norm = value_scale(self.lm, self.layers[path], texts).value_norm
            rate = norm / math.sqrt(self.lm.architecture.d_out) / self.lm.architecture.d_in
            self.extra_state = {
                **self.extra_state,
                name: torch.tensor([rate], dtype=torch.float64),
            }
        return float(self.extra_state[name])

    def normaliser(self, path: str) -> Normaliser:
        """Return the mean and deviation of one module's tokens, over all turns so far."""
        names = [f"{path}.{name}" for name in ("count", "mean", "scatter")]
        if names[0] in self.extra_state:
            return Normaliser(*(self.extra_state[name] for name in names))
        device = self.patch.deltas[path].device
        return Normaliser(*torch.zeros(3, 1, dtype=torch.float64, device=device))

    def inputs_and_gradients(self, edits: Sequence[Edit]) -> dict[str, tuple[Tensor, Tensor]]:
        """Return by path the inputs h (n, d_in) and the gradients g (n, d_out), in fp64.

        The gradients are of the NLL at the outputs, at each token that predicts one of the answers.
        """
        rows = [
            self.lm.encode(e.prompt, e.target, self.lm.ending_of(e.prompt, e.target)) for e in edits
        ]
        pairs: dict[str, list[tuple[Tensor, Tensor]]] = {path: [] for path in self.paths}
        with self.patch.on(self.lm):
            for start in range(0, len(rows), self.config.batch):
                batch = self.lm.batch(rows[start : start + self.config.batch])
                for path, pair in self._backpropagate(batch).items():
                    pairs[path].append(pair)
        return {
            path: (torch.cat([h for h, _ in parts]), torch.cat([g for _, g in parts]))
            for path, parts in pairs.items()
        }

    def _backpropagate(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """Return (h, g) of one batch, by path."""
        rows, columns, labels = batch.label_positions(batch.target_mask | batch.ending_mask)
        probes: dict[str, Tensor] = {}

        def add_probe(path: str, output: Tensor) -> Tensor:
            probes[path] = torch.zeros_like(output, requires_grad=True)
            return output + probes[path]

        with ExitStack() as hooks:
            modules = {path: self.lm.model.get_submodule(path) for path in self.paths}
            inputs = {
                path: hooks.enter_context(capture_input(module)) for path, module in modules.items()
            }
            for path, module in modules.items():
                hooks.enter_context(replace_output(module, partial(add_probe, path)))
            logits = logits_at(self.lm, batch, rows, columns)
            loss = F.cross_entropy(logits, labels, reduction="sum")
            gradients = torch.autograd.grad(loss, [probes[path] for path in self.paths])
        shape = (*batch.input_ids.shape, -1)

        def at_labels(tensor: Tensor) -> Tensor:
            where = rows.to(tensor.device), columns.to(tensor.device)
            return tensor.reshape(shape)[where].double()

        return {
            path: (at_labels(inputs[path][0]), at_labels(gradient))
            for path, gradient in zip(self.paths, gradients, strict=True)
        }


@dataclass(frozen=True)
class Normaliser:
    """The running mean and deviation of rows (Welford; Chan's formula for many rows at once).

    Attributes:
        count: (1,), the number of rows.
        mean: (d,).
        scatter: (d,), the sum of squared differences from the mean.
    """

    count: Tensor
    mean: Tensor
    scatter: Tensor

    def updated(self, rows: Tensor) -> Normaliser:
        """Return the normaliser with more rows (n, d) taken in."""
        new = torch.full_like(self.count, len(rows))
        count, mean = self.count + new, rows.mean(0)
        shift = mean - self.mean
        scatter = (
            self.scatter + (rows - mean).square().sum(0) + shift.square() * self.count * new / count
        )
        return Normaliser(count, self.mean + shift * new / count, scatter)

    def normalise(self, rows: Tensor) -> Tensor:
        """Return rows (n, d) minus the mean, in units of the deviation."""
        return (rows - self.mean) / (self.scatter / self.count + TINY).sqrt()


def ridge(inputs: Tensor, outputs: Tensor) -> Tensor:
    """Return (H^T H + I)^-1 H^T V, (d_in, d_out), of H (n, d_in) and V (n, d_out).

    The smaller of two equivalent systems is solved.
    """
    many = inputs.shape[0] > inputs.shape[1]
    matrix, right = (
        (inputs.T @ inputs, inputs.T @ outputs) if many else (inputs @ inputs.T, outputs)
    )
    solution: Tensor = torch.linalg.solve(matrix + torch.eye(len(matrix)).to(matrix), right)
    return solution if many else inputs.T @ solution
