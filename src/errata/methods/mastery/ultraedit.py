"""UltraEdit: one linear solve per turn, from what flows through a module and the gradient that
comes back.

Gu et al., arXiv 2505.14679. At every token that predicts one of an answer, h is a module's input
and g the gradient of the answers' NLL at its output. Both are normalised by the mean and deviation
of all tokens ever met; v = -`lr` |h^|^2 g^ is what the module should say besides; the change that
says so for the whole turn is, with h and v as the rows of H and V, dW^T = (H^T H + I)^-1 H^T V. It
needs no training, no subjects and no memory of former edits but the normaliser.

What departs from the published code: every module has a normaliser of its own (there modules of one
shape share one), whose deviation is that of all tokens (there it mixes two kinds of variance); the
NLL is the sum over tokens, so that a mini-batch is no more than what fits into memory at once
(there it is the mean, and edits in a ragged last one weigh more); the end of the answer is learned
too; and only value matrices are edited, where some published settings have other matrices. The
published learning rate, 1e-6, is for models of 7B parameters and does nothing in small ones. |h^|^2
is about the number of inputs and g^ about one in every coordinate, so eta = rms(value) / d_in moves
an output by as much as outputs are: that is the rate unless one is given. A first turn has no
normaliser but its own: if it holds few tokens, it is an unstable one.
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

from errata.config import MethodConfig, check_range
from errata.edit import Edit
from errata.errors import ConfigError
from errata.lm import LM
from errata.lm.background import background_texts, value_scale
from errata.lm.encoding import Batch
from errata.lm.hooks import capture_input, replace_output
from errata.methods.weight_method import WeightMethod

TINY = 1e-8
"""Added to a variance, as published."""

BACKGROUND, BACKGROUND_LENGTH = 64, 24
"""Texts of the model's own making whose values give the learning rate, and their tokens at most."""


@dataclass(frozen=True)
class UltraEditConfig(MethodConfig):
    """Settings of UltraEdit; the defaults are the paper's, but for the learning rate.

    Attributes:
        layer: the last of the edited blocks; None: the last but one.
        layers: so many blocks up to `layer` are edited; None: those of the last quarter.
        lr: eta, how far a module's output is moved; None: the root mean square of its values over
            the number of its inputs.
        turn: edits that make one change of the weights together.
        batch: edits that go through the model at once.
    """

    method: ClassVar[str] = "ultraedit"

    layers: int | None = None
    lr: float | None = None
    turn: int = 100
    batch: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("turn", "batch"):
            check_range(name, getattr(self, name), 1, math.inf)
        if self.lr is not None:
            check_range("lr", self.lr, 0, math.inf)
        if self.layers is not None:
            check_range("layers", self.layers, 1, math.inf)


class UltraEdit(WeightMethod):
    """UltraEdit on one model, turn after turn."""

    config_class = UltraEditConfig
    paper = "arXiv 2505.14679"
    config: UltraEditConfig

    def __init__(self, config: UltraEditConfig, lm: LM) -> None:
        architecture = lm.architecture
        last = max(0, architecture.n_layers - 2) if config.layer is None else config.layer
        count = config.layers or max(1, min(last + 1, architecture.n_layers // 4 - 1))
        if count > last + 1:
            raise ConfigError(
                f"layers is {count}, and up to layer {last} there are only {last + 1}; give a smaller 'layers'."
            )
        self.layers = {
            architecture.value_path(layer): layer for layer in range(last - count + 1, last + 1)
        }
        self.paths = list(self.layers)
        super().__init__(config, lm, self.paths, config.turn)

    def learn(self, edits: Sequence[Edit]) -> None:
        """Collect the turn's inputs and gradients on the model as it is edited so far, then solve
        for each module.
        """
        inputs, gradients = self.flows(edits)
        for path in self.paths:
            both = torch.cat([inputs[path], gradients[path]], -1)
            seen = self.normaliser(path).updated(both)
            h, g = seen.normalised(both).tensor_split([inputs[path].shape[-1]], -1)
            change = ridge(inputs[path], -self.rate(path) * h.square().sum(-1, keepdim=True) * g)
            before = self.patch.deltas[path]
            self.patch.deltas[path] = before + change.T.to(before)
            self.extra_state = {
                **self.extra_state,
                **{f"{path}.{name}": tensor for name, tensor in vars(seen).items()},
            }

    def carried_shapes(self, edits: int) -> dict[str, tuple[int, ...]]:
        """Of each module what is known of its tokens, and its rate where that is found."""
        shapes: dict[str, tuple[int, ...]] = {}
        for path, delta in self.patch.deltas.items():
            shapes |= {
                f"{path}.count": (1,),
                f"{path}.mean": (sum(delta.shape),),
                f"{path}.scatter": (sum(delta.shape),),
            }
            shapes |= {} if self.config.lr is not None else {f"{path}.rate": (1,)}
        return shapes

    def rate(self, path: str) -> float:
        """Eta of one module; found on background text when it is first needed, unless it is set."""
        if self.config.lr is not None:
            return self.config.lr
        name = f"{path}.rate"
        if name not in self.extra_state:
            texts = background_texts(self.lm, BACKGROUND, BACKGROUND_LENGTH, self.config.seed)
            scale = value_scale(self.lm, self.layers[path], texts)
            architecture = self.lm.architecture
            found = scale.value_norm / math.sqrt(architecture.d_out) / architecture.d_in
            self.extra_state = {
                **self.extra_state,
                name: torch.tensor([found], dtype=torch.float64),
            }
        return float(self.extra_state[name])

    def flows(self, edits: Sequence[Edit]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """By path, at each token that predicts one of the answers: inputs h (n, d_in), gradients of
        the NLL g (n, d_out).
        """
        rows = [
            self.lm.encode(e.prompt, e.target, self.lm.ending_of(e.prompt, e.target)) for e in edits
        ]
        found: dict[str, list[tuple[Tensor, Tensor]]] = {path: [] for path in self.paths}
        with self.patch.on(self.lm):
            for start in range(0, len(rows), self.config.batch):
                for path, pair in self._flow(
                    self.lm.batch(rows[start : start + self.config.batch])
                ).items():
                    found[path].append(pair)
        inputs = {path: torch.cat([h for h, _ in pairs]) for path, pairs in found.items()}
        return inputs, {path: torch.cat([g for _, g in pairs]) for path, pairs in found.items()}

    def _flow(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        where, columns, labels = batch.label_positions(batch.target_mask | batch.ending_mask)
        added: dict[str, Tensor] = {}

        def watched(path: str, output: Tensor) -> Tensor:
            added[path] = torch.zeros_like(output, requires_grad=True)
            return output + added[path]

        with ExitStack() as hooks:
            modules = {path: self.lm.model.get_submodule(path) for path in self.paths}
            inputs = {
                path: hooks.enter_context(capture_input(module)) for path, module in modules.items()
            }
            for path, module in modules.items():
                hooks.enter_context(replace_output(module, partial(watched, path)))
            logits = self.lm.run(batch, use_cache=False).logits[where, columns].float()
            loss = F.cross_entropy(logits, labels, reduction="sum")
            gradients = torch.autograd.grad(loss, [added[path] for path in self.paths])
        size = (*batch.input_ids.shape, -1)

        def here(tensor: Tensor) -> Tensor:
            return tensor.reshape(size)[where.to(tensor.device), columns.to(tensor.device)].double()

        return {
            path: (here(inputs[path][0]), here(g))
            for path, g in zip(self.paths, gradients, strict=True)
        }

    def normaliser(self, path: str) -> Normaliser:
        """What is known of the tokens of all turns so far, as they flowed through one module."""
        if f"{path}.count" not in self.extra_state:
            return Normaliser(
                *torch.zeros(3, 1, dtype=torch.float64, device=self.patch.deltas[path].device)
            )
        return Normaliser(
            *(self.extra_state[f"{path}.{name}"] for name in ("count", "mean", "scatter"))
        )


@dataclass(frozen=True)
class Normaliser:
    """Mean and deviation of every row ever met, kept without the rows (Welford; Chan's formula for
    many rows at once).

    Attributes:
        count: (1,), the rows met.
        mean: (d,).
        scatter: (d,), the sum of squared differences from the mean.
    """

    count: Tensor
    mean: Tensor
    scatter: Tensor

    def updated(self, rows: Tensor) -> Normaliser:
        """With rows (n, d) met too."""
        new = torch.full_like(self.count, len(rows))
        count, mean = self.count + new, rows.mean(0)
        apart = mean - self.mean
        scatter = (
            self.scatter + (rows - mean).square().sum(0) + apart.square() * self.count * new / count
        )
        return Normaliser(count, self.mean + apart * new / count, scatter)

    def normalised(self, rows: Tensor) -> Tensor:
        """Rows (n, d) less the mean, in units of the deviation."""
        return (rows - self.mean) / (self.scatter / self.count + TINY).sqrt()


def ridge(inputs: Tensor, outputs: Tensor) -> Tensor:
    """(H^T H + I)^-1 H^T V, (d_in, d_out), of H (n, d_in) and V (n, d_out): the smaller of two
    equal systems is solved.
    """
    many = inputs.shape[0] > inputs.shape[1]
    matrix, right = (
        (inputs.T @ inputs, inputs.T @ outputs) if many else (inputs @ inputs.T, outputs)
    )
    solved: Tensor = torch.linalg.solve(matrix + torch.eye(len(matrix)).to(matrix), right)
    return solved if many else inputs.T @ solved
