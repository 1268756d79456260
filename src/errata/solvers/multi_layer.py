"""Many values at once, spread over the value matrices of several blocks: what MEMIT and its kin
have in common.

MEMIT (Meng et al., arXiv 2210.07229, section 4): for each edit solve for the state z that the last
block of a window should have at the last token of the subject. Then, block after block from below,
write a share of what is still missing, (z - h) over the blocks left, into the value matrix at the
keys as they are now, with the blocks below already changed.

That rests on a block being a sum, so that what the value matrix says arrives in the stream as it
is, or times a constant. A model that normalises it first is told so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from errata.config import check_range
from errata.edit import Edit
from errata.errors import ArchitectureError, ConfigError
from errata.lm import LM
from errata.lm.background import background_texts
from errata.lm.hooks import capture_output, replace_output
from errata.lm.subject import keys_at, states_at
from errata.patches import WeightDelta
from errata.solvers.values import ValueConfig, ValueProblem, solve_value

Change = Callable[[int, Tensor, Tensor], Tensor]
"""(layer, keys (d_in, n), what they should say more (d_out, n)) -> the change of the value matrix,
(d_out, d_in).
"""


@dataclass(frozen=True)
class MultiLayerConfig(ValueConfig):
    """What every method that spreads values over several blocks can be told.

    Attributes:
        layer: the last block of the window; None: a quarter of the way up (8 of 32).
        window: blocks that are changed, up to and with the last; None: an eighth of the depth, and
            one (5 of 32).
        turn: edits learned together; None: all there are.
        clamp: |delta| stays below this many lengths of the block's output.
    """

    window: int | None = None
    turn: int | None = 100
    steps: int = 25
    clamp: float = 0.75
    prefixes: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("window", "turn"):
            if getattr(self, name) is not None:
                check_range(name, getattr(self, name), 1, math.inf)


class MultiLayerSolver:
    """Solves for states and spreads them. The base model must carry no patch.

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
        self._before: list[Edit] = []
        self._lessons: dict[Edit, ValueProblem] = {}
        self._aims: dict[Edit, Tensor] = {}

    @property
    def last(self) -> int:
        """The last layer of the window."""
        return max(self.paths)

    @cached_property
    def gain(self) -> float:
        """What a change of the last value matrix' output is multiplied by on its way into the
        stream.

        Raises:
            ArchitectureError: it is not merely multiplied.
        """
        return stream_gain(self.lm, self.last)

    @cached_property
    def prefixes(self) -> list[str]:
        """Texts of the model's own making that prompts are put behind."""
        length = self.config.prefix_length
        return background_texts(
            self.lm, self.config.prefixes, length, self.config.seed + 1, shortest=length
        )

    def write(
        self,
        deltas: Mapping[str, Tensor],
        before: Sequence[Edit],
        edits: Sequence[Edit],
        change: Change,
    ) -> dict[str, Tensor]:
        """The deltas that know `edits` too.

        Args:
            deltas: path -> the change (d_out, d_in) so far.
            before: the edits that they hold.
            edits: those to be learned together.
            change: how a layer is changed.
        """
        aims = self.aims(deltas, before, edits)
        bare = [self._lessons[edit].answers[0] for edit in edits]
        deltas = dict(deltas)
        for done, (layer, path) in enumerate(self.paths.items()):
            with WeightDelta(deltas).on(self.lm):
                missing = aims - states_at(self.lm, self.last, bare)
            share = missing.T / self.gain / (len(self.paths) - done)
            deltas[path] = deltas[path] + change(layer, self.keys(deltas, layer, edits), share).to(
                deltas[path]
            )
        return deltas

    def keys(self, deltas: Mapping[str, Tensor], layer: int, edits: Sequence[Edit]) -> Tensor:
        """The edits' keys (d_in, n) on the model with `deltas`: half the bare prompt's, half the
        mean behind prefixes.
        """
        mentions = [each for edit in edits for each in self._lesson(edit).answers]
        with WeightDelta(deltas).on(self.lm):
            flat = keys_at(self.lm, layer, mentions)
        keys, start = [], 0
        for edit in edits:
            mine = flat[start : start + len(self._lessons[edit].answers)]
            start += len(mine)
            keys.append((mine[0] + mine[1:].mean(0)) / 2 if len(mine) > 1 else mine[0])
        return torch.stack(keys, dim=1)

    def aims(
        self, deltas: Mapping[str, Tensor], before: Sequence[Edit], edits: Sequence[Edit]
    ) -> Tensor:
        """z of each edit, (n, hidden), on the model with `deltas`; kept as long as the edits before
        are the same.
        """
        if self._before != list(before):
            self._before, self._aims, self._lessons = list(before), {}, {}
        new = [edit for edit in edits if edit not in self._aims]
        lessons = {edit: self._lesson(edit) for edit in new}
        with WeightDelta(deltas).on(self.lm):
            for edit, lesson in lessons.items():
                (state,) = states_at(self.lm, self.last, lesson.answers[:1])
                found = solve_value(
                    self.lm,
                    self.last,
                    lesson,
                    self.config,
                    size=float(state.norm()) / abs(self.gain),
                )
                self._aims[edit] = state + self.gain * found.delta.to(state)
        return torch.stack([self._aims[edit] for edit in edits])

    def _lesson(self, edit: Edit) -> ValueProblem:
        if edit not in self._lessons:
            self._lessons[edit] = ValueProblem.of(self.lm, edit, self.prefixes, self.config.token)
        return self._lessons[edit]


def window_of(depth: int, last: int | None, length: int | None) -> list[int]:
    """The layers that are changed, ascending.

    At 32 blocks these are the published ones, 4 to 8; elsewhere the same share of the depth.

    Args:
        depth: blocks in the model.
        last: the last layer; None derives it.
        length: how many; None derives it.

    Raises:
        ConfigError: a window was asked for that begins below the first block.
    """
    upto = max(0, min(depth // 4, depth - 2)) if last is None else last
    count = depth // 4 - depth // 8 + 1 if length is None else length
    if length is not None and length > upto + 1:
        raise ConfigError(f"window is {length}; up to layer {upto} there are {upto + 1} blocks.")
    return list(range(max(0, upto + 1 - count), upto + 1))


@torch.no_grad()
def stream_gain(lm: LM, layer: int) -> float:
    """c, where a change of the value matrix' output changes the block's output by c times that
    change: 1 in most models.

    Raises:
        ArchitectureError: the block does something else with it, such as to normalise it.
    """
    batch = lm.prompt_batch(["."])
    block, module = (
        lm.architecture.block(lm.model, layer),
        lm.architecture.value_module(lm.model, layer),
    )
    with capture_output(block) as states, capture_output(module) as values:
        lm.run(batch, use_cache=False)
    state, value = states[0].flatten(0, -2)[-1].float(), values[0].flatten(0, -2)[-1].float()
    push = torch.randn(value.shape, generator=torch.Generator().manual_seed(0)).to(value)
    push *= max(float(state.norm()), float(value.norm())) / push.norm()
    with replace_output(module, lambda out: out + push.to(out)), capture_output(block) as moved:
        lm.run(batch, use_cache=False)
    change = moved[0].flatten(0, -2)[-1].float() - state
    gain = float(change @ push / push.square().sum())
    if (change - gain * push).norm() > 0.05 * change.norm():
        raise ArchitectureError(
            f"{lm.architecture.model_type}: its blocks change (normalise) what their value matrix says before they add it "
            "to the stream, so a value cannot be spread over several of them; use a method that changes one matrix."
        )
    return gain
