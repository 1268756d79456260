"""Solve for values and distribute them over several blocks, as MEMIT and AlphaEdit do.

MEMIT (Meng et al., arXiv 2210.07229, section 4) solves, for each edit, for the state z that the
last block of a window should have at the last token of the subject. Then it goes through the blocks
from below and writes a share of the residual, (z - h) / (blocks left), into the value matrix, at
keys measured with the blocks below already changed.

This needs blocks that add the value matrix's output to the residual stream, as it is or times a
constant. Models that normalise it first are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from errata.config import NonNegativeFloat, NonNegativeInt, PositiveInt
from errata.edit import Edit
from errata.errors import ArchitectureError, ConfigError
from errata.lm import LM
from errata.lm.background import background_texts
from errata.lm.hooks import capture_output, replace_output
from errata.lm.subject import keys_at, states_at
from errata.patches import WeightDelta
from errata.progress import report
from errata.solvers.guards import GuardedConfig, value_length, with_length
from errata.solvers.values import ValueProblem, ValueSolution, solve_value

LayerUpdate = Callable[[int, Tensor, Tensor], Tensor]
"""(layer, keys (d_in, n), residuals of the output (d_out, n)) -> the change of the value matrix,
(d_out, d_in).
"""
Solution = tuple[Tensor, ValueSolution]
"""(the state of the last block at the bare prompt's subject, (hidden,); the value to add there)."""


@dataclass(frozen=True)
class MultiLayerConfig(GuardedConfig):
    """Settings of every method that distributes values over several blocks.

    Attributes:
        layer: the last block of the window; None: a quarter of the way up (8 of 32).
        window: how many blocks are changed, the last one included; None: an eighth of the depth,
            and one (5 of 32).
        turn: edits learned together; None: the whole ledger.
        clamp: the largest |delta|, in multiples of the length of the block's output.
    """

    window: PositiveInt | None = None
    turn: PositiveInt | None = 100
    steps: PositiveInt = 25
    clamp: NonNegativeFloat = 0.75
    prefixes: NonNegativeInt = 5


class MultiLayerSolver:
    """Solves for target states and distributes them. The base model must carry no patch.

    Args:
        lm: the base model.
        config: the settings of the method.

    Attributes:
        paths: layer -> the full name of its value matrix, for the layers of the window, ascending.
    """

    def __init__(self, lm: LM, config: MultiLayerConfig) -> None:
        self.lm, self.config = lm, config
        layers = window_of(lm.architecture.n_layers, config.layer, config.window)
        self.paths = {layer: lm.architecture.value_path(layer) for layer in layers}
        self._ledger: list[Edit] = []
        self._problems: dict[Edit, ValueProblem] = {}
        self._on_base: dict[Edit, Solution] = {}
        self._solutions = self._on_base

    @property
    def last_layer(self) -> int:
        """The last layer of the window."""
        return max(self.paths)

    @cached_property
    def gain(self) -> float:
        """The factor of the last value matrix's output on its way into the residual stream.

        Raises:
            ArchitectureError: the block does more than multiply it.
        """
        return stream_gain(self.lm, self.last_layer)

    @cached_property
    def prefixes(self) -> list[str]:
        """Self-generated texts that are put before prompts."""
        length = self.config.prefix_length
        return background_texts(
            self.lm, self.config.prefixes, length, self.config.seed + 1, shortest=length
        )

    def solve(
        self,
        deltas: Mapping[str, Tensor],
        ledger: Sequence[Edit],
        edits: Sequence[Edit],
        update: LayerUpdate,
        length: float | None = None,
    ) -> dict[str, Tensor]:
        """Return the deltas with more edits in them.

        Args:
            deltas: path -> the change (d_out, d_in) so far.
            ledger: the edits in these deltas.
            edits: the edits to add, learned together.
            update: computes the change of one layer.
            length: the length that values get; None: the one they have.
        """
        targets = self.target_states(deltas, ledger, edits, length)
        bare = [self._problems[edit].prompts[0] for edit in edits]
        deltas = dict(deltas)
        for done, (layer, path) in enumerate(self.paths.items()):
            with WeightDelta(deltas).on(self.lm):
                missing = targets - states_at(self.lm, self.last_layer, bare)
            residuals = missing.T / self.gain / (len(self.paths) - done)
            change = update(layer, self.keys(deltas, layer, edits), residuals)
            deltas[path] = deltas[path] + change.to(deltas[path])
        return deltas

    def keys(self, deltas: Mapping[str, Tensor], layer: int, edits: Sequence[Edit]) -> Tensor:
        """Return the edits' keys (d_in, n) on the model with `deltas`.

        A key is the mean of the bare prompt's key and of the prefixed prompts' mean key.
        """
        mentions = [each for edit in edits for each in self._problem(edit).prompts]
        with WeightDelta(deltas).on(self.lm):
            all_keys = keys_at(self.lm, layer, mentions)
        sizes = [len(self._problems[edit].prompts) for edit in edits]
        means = [
            (keys[0] + keys[1:].mean(0)) / 2 if len(keys) > 1 else keys[0]
            for keys in torch.split(all_keys, sizes)
        ]
        return torch.stack(means, dim=1)

    def target_states(
        self,
        deltas: Mapping[str, Tensor],
        ledger: Sequence[Edit],
        edits: Sequence[Edit],
        length: float | None = None,
    ) -> Tensor:
        """Return z of each edit, (n, hidden), solved for on the model with `deltas`.

        Solutions are cached for as long as the ledger stays the same. See `solve`.
        """
        if self._ledger != list(ledger):
            self._ledger, self._problems = list(ledger), {}
            self._solutions = {} if ledger else self._on_base
        problems = [self._problem(edit) for edit in edits]
        with WeightDelta(deltas).on(self.lm):
            for done, (edit, problem) in enumerate(zip(edits, problems, strict=True)):
                if edit not in self._solutions:
                    if len(edits) > 1:  # else the count of edits says as much
                        report("solving for what to write", done, len(edits))
                    self._solutions[edit] = self._solve_value(problem)
        return torch.stack([self._target_state(*self._solutions[edit], length) for edit in edits])

    def length_on_base(self, edit: Edit) -> float:
        """Return the length of the value of an edit, solved for on the base model."""
        if edit not in self._on_base:
            self._on_base[edit] = self._solve_value(self._problem(edit))
        return value_length(self._on_base[edit][1])

    def _solve_value(self, problem: ValueProblem) -> Solution:
        """Solve for a value on the model with the patch that it carries."""
        (state,) = states_at(self.lm, self.last_layer, problem.prompts[:1])
        size = float(state.norm()) / abs(self.gain)
        return state, solve_value(self.lm, self.last_layer, problem, self.config, size)

    def _target_state(self, state: Tensor, value: ValueSolution, length: float | None) -> Tensor:
        """Return z, (hidden,)."""
        delta = value.delta if length is None else with_length(value, length)
        return state + self.gain * delta.to(state)

    def _problem(self, edit: Edit) -> ValueProblem:
        if edit not in self._problems:
            self._problems[edit] = ValueProblem.of(self.lm, edit, self.prefixes, self.config.token)
        return self._problems[edit]


def window_of(depth: int, last: int | None, length: int | None) -> list[int]:
    """Return the layers that are changed, ascending.

    At 32 blocks these are the published ones, 4 to 8; at other depths the same share.

    Args:
        depth: blocks in the model.
        last: the last layer; None derives it.
        length: how many; None derives it.

    Raises:
        ConfigError: the length given reaches below the first block.
    """
    top = max(0, min(depth // 4, depth - 2)) if last is None else last
    count = depth // 4 - depth // 8 + 1 if length is None else length
    if length is not None and length > top + 1:
        raise ConfigError(f"window is {length}; up to layer {top} there are {top + 1} blocks.")
    return list(range(max(0, top + 1 - count), top + 1))


@torch.no_grad()
def stream_gain(lm: LM, layer: int) -> float:
    """Measure c, where a change x of the value matrix's output changes the block's by c x.

    It is 1 in most models.

    Raises:
        ArchitectureError: the block's output changes in another way, as where the block normalises.
    """
    batch, architecture = lm.prompt_batch(["."]), lm.architecture
    block, module = architecture.block(lm.model, layer), architecture.value_module(lm.model, layer)
    with capture_output(block) as states, capture_output(module) as values:
        lm.run(batch, use_cache=False)
    state, value = states[0].flatten(0, -2)[-1].float(), values[0].flatten(0, -2)[-1].float()
    push = torch.randn(value.shape, generator=torch.Generator().manual_seed(0)).to(value)
    push *= max(float(state.norm()), float(value.norm())) / push.norm()
    with replace_output(module, lambda out: out + push.to(out)), capture_output(block) as pushed:
        lm.run(batch, use_cache=False)
    change = pushed[0].flatten(0, -2)[-1].float() - state
    gain = float(change @ push / push.square().sum())
    if (change - gain * push).norm() > 0.05 * change.norm():
        raise ArchitectureError(
            f"{architecture.model_type}: its blocks change (normalise) what their value matrix "
            "says before they add it to the stream, so a value cannot be spread over several of "
            "them; use a method that changes one matrix."
        )
    return gain
