"""How a shard of WISE learns its edits: masked SGD on the tail of the model, several shards side by side.

Only the training is here; which edits go where, and what becomes of the shards, is decided in `wise.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from errata.architecture import read_weight
from errata.edit import Edit
from errata.lm import LM, Row
from errata.methods.association.wise_lessons import Lesson, LessonPlanner
from errata.methods.base import Progress
from errata.patches.side_memory import SideMemory
from errata.tail import Tail

if TYPE_CHECKING:
    from errata.methods.association.wise import WiseConfig


class Shard:
    """One random subspace of the side memory and what was written through it.

    While it is written it is dense; `fold` leaves its bits and the entries under them, and it unfolds where it is looked at.

    Attributes:
        index: its place among the shards; with the seed it decides the mask.
        edits: the edits in it, oldest first.
        slots: edits ever written into it; undone ones keep their place when later shards exist.
        stamp: changes whenever something is written.
    """

    def __init__(self, index: int, mask: Tensor, delta: Tensor, edits: Sequence[Edit] = (), slots: int = 0) -> None:
        self.index = index
        self.edits = list(edits)
        self.slots = slots
        self.stamp = object()
        self._shape = (mask.shape[0], mask.shape[1])
        self._dense: tuple[Tensor, Tensor] | None = (mask, delta)
        self._folded: tuple[Tensor, Tensor] | None = None

    @classmethod
    def from_folded(
        cls, index: int, bits: Tensor, values: Tensor, shape: tuple[int, int], edits: Sequence[Edit], slots: int
    ) -> Shard:
        """The shard that `folded` described.

        Args:
            bits: (ceil(entries / 8),) uint8, on the CPU.
            values: (n,), the entries under the mask.
        """
        mask = unpack_mask(bits, shape).to(values.device)
        delta = torch.zeros(shape, device=values.device)
        delta[mask] = values.float()
        return cls(index, mask, delta, edits, slots)

    @property
    def mask(self) -> Tensor:
        """(d_out, d_in) bool, the entries it may change."""
        return self._unfolded()[0]

    @property
    def delta(self) -> Tensor:
        """(d_out, d_in) fp32, what it changed; zero outside the mask."""
        return self._unfolded()[1]

    def learned(self, delta: Tensor) -> None:
        """Take what was learned."""
        self._dense, self._folded, self.stamp = (self.mask, delta), None, object()

    def folded(self) -> tuple[Tensor, Tensor]:
        """(the mask as bits, the entries under it)."""
        if self._folded is None:
            mask, delta = self._unfolded()
            return pack_mask(mask), delta[mask].contiguous()
        return self._folded

    def fold(self) -> None:
        """Keep no more than `folded`."""
        self._folded, self._dense = self.folded(), None

    def _unfolded(self) -> tuple[Tensor, Tensor]:
        if self._dense is not None:
            return self._dense
        bits, values = self.folded()
        return self.from_folded(self.index, bits, values, self._shape, (), 0)._unfolded()


class ShardWriter:
    """Writes edits into shards.

    Args:
        lm: the base model.
        layer: the edited block.
        config: the settings of the method.
        memory: the patch whose activation is trained and measured; it is not installed meanwhile.
        background: texts, prefixes and norms derived from the base model.
    """

    def __init__(self, lm: LM, layer: int, config: WiseConfig, memory: SideMemory, background: dict[str, Any]) -> None:
        self.lm, self.layer, self.config, self.memory = lm, layer, config, memory
        self.background = background
        self.planner = LessonPlanner(lm, config, background)
        bank = [row for row in map(self.planner.prompt_row, self.planner.prompts) if row is not None]
        self.bank = _Scope(lm, layer, [bank], config.pool == "last")
        self._inside: dict[str, _Scope] = {}
        norm = background["value_norm"]
        self.unit = norm if config.beta is None else 1.0
        self.alpha = norm / 4 if config.alpha is None else config.alpha
        self.beta = norm if config.beta is None else config.beta
        self.gamma = norm / 2 if config.gamma is None else config.gamma
        natural = config.step_size * (config.gain * norm / background["key_norm"]) ** 2 / config.mask_ratio
        self.lr = natural if config.lr is None else config.lr

    def new_shard(self, index: int) -> Shard:
        """An empty shard with its mask."""
        architecture = self.lm.architecture
        device = read_weight(architecture.value_module(self.lm.model, self.layer)).device
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + index)
        mask = torch.empty(architecture.d_out, architecture.d_in, dtype=torch.bool)
        mask.bernoulli_(self.config.mask_ratio, generator=generator)
        mask = mask.to(device)
        return Shard(index, mask, torch.zeros(mask.shape, device=device))

    def write(
        self, todo: Sequence[tuple[Shard, list[Edit]]], ledger: Sequence[tuple[int, Edit]], progress: Progress
    ) -> None:
        """Teach each shard its edits in order; as many shards at a time as `chunk_rows` allows.

        Args:
            todo: (shard, the edits it is to learn).
            ledger: (shard index, edit) of all edits, for the prompts of earlier shards.
        """
        rows = 1 + self.config.prefixes + self.config.rehearse
        lanes = max(1, self.config.chunk_rows // rows)
        for start in range(0, len(todo), lanes):
            queues = [(shard, iter(queue)) for shard, queue in todo[start : start + lanes]]
            while edits := list(_next_of(queues)):
                self._learn([(shard, self._lesson(shard, edit, ledger)) for shard, edit in edits])
                for shard, edit in edits:
                    shard.edits.append(edit)
                    shard.slots += 1
                progress(len(edits))

    @torch.no_grad()
    def threshold(self, delta: Tensor, edits: Sequence[Edit]) -> float:
        """Where a memory begins to speak: a share of its edits' smallest activation, above most of the background's."""
        for edit in edits:
            if edit.id not in self._inside:
                row = self.planner.row(edit)
                alone = Row(row.ids[: row.prompt_length], row.prompt_length)
                self._inside[edit.id] = _Scope(self.lm, self.layer, [[alone]], self.config.pool == "last")
        inside = [self._inside[edit.id].activation(self.memory, 0, delta) for edit in edits]
        outside = self.bank.activation(self.memory, 0, delta)
        return max(self.config.threshold_ratio * torch.cat(inside).min().item(), outside.quantile(0.95).item())

    # one step

    def _lesson(self, shard: Shard, edit: Edit, ledger: Sequence[tuple[int, Edit]]) -> Lesson:
        silent = [other for index, other in ledger if index < shard.index] if self.config.memo else []
        return self.planner.lesson(edit, shard.edits, silent)

    def _learn(self, lessons: Sequence[tuple[Shard, Lesson]]) -> None:
        """Teach each shard its lesson, all in one batch."""
        inside = _Scope(self.lm, self.layer, [lesson.inside for _, lesson in lessons])
        rows_outside = [lesson.outside for _, lesson in lessons]
        outside = _Scope(self.lm, self.layer, rows_outside, self.config.pool == "last") if any(rows_outside) else None
        rows, columns, labels = inside.batch.predictors(inside.batch.target_mask | inside.batch.ending_mask)
        lane_of = inside.lane_of_row[rows.cpu()]
        deltas = [shard.delta.clone().requires_grad_() for shard, _ in lessons]
        masks = [shard.mask for shard, _ in lessons]
        active = [True] * len(lessons)
        for _ in range(self.config.steps):
            values = torch.cat([inside.spoken(lane, delta / self.config.gain) for lane, delta in enumerate(deltas)])
            losses = F.cross_entropy(
                inside.tail.logits(values, rows, columns), labels.to(inside.keys.device), reduction="none"
            )
            totals = []
            for lane, delta in enumerate(deltas):
                loss = losses[lane_of == lane].mean()
                routing = self._routing_loss(inside, outside, lane, delta)
                active[lane] &= bool(loss > self.config.stop_loss) or bool(routing > 1e-3 * self.unit)
                totals.append(loss + routing / self.unit)
            if not any(active):
                break
            for lane, gradient in enumerate(torch.autograd.grad(torch.stack(totals).sum(), deltas)):
                if active[lane]:
                    self._descend(deltas[lane], gradient, masks[lane])
        for (shard, _), delta in zip(lessons, deltas, strict=True):
            shard.learned(delta.detach())

    def _routing_loss(self, inside: _Scope, outside: _Scope | None, lane: int, delta: Tensor) -> Tensor:
        """L_a of equation 5 over many rows: of those that miss a margin the mean counts, for gamma the worst outside."""
        high = inside.activation(self.memory, lane, delta)
        low = self.bank.activation(self.memory, 0, delta)
        if outside is not None:
            low = torch.cat([low, outside.activation(self.memory, lane, delta)])
        misses = (low - self.alpha, self.beta - high, self.gamma - (high - low.max()))
        return torch.stack([miss.clamp(min=0).sum() / (miss > 0).sum().clamp(min=1) for miss in misses]).sum()

    @torch.no_grad()
    def _descend(self, delta: Tensor, gradient: Tensor, mask: Tensor) -> None:
        """One masked step; decay is towards the main memory, so it too stays inside the mask."""
        delta.mul_(max(0.0, 1 - self.lr * self.config.weight_decay)).sub_(gradient * mask, alpha=self.lr)
        if self.config.norm_clamp is not None:
            delta.clamp_(-self.config.norm_clamp, self.config.norm_clamp)


class _Scope:
    """Rows of several lanes, one after another, with their cached keys and values."""

    def __init__(self, lm: LM, layer: int, lanes: Sequence[Sequence[Row]], last_token_only: bool = False) -> None:
        self.batch = lm.batch([row for rows in lanes for row in rows])
        self.tail = Tail(lm, layer, self.batch)
        kept = slice(-1, None) if last_token_only else slice(None)
        self.keys, self.values = self.tail.keys[:, kept].float(), self.tail.values[:, kept].float()
        self.mask = self.batch.prompt_mask[:, kept].to(self.keys.device)
        self.lane_of_row = torch.tensor([lane for lane, rows in enumerate(lanes) for _ in rows])
        ends = torch.tensor([len(rows) for rows in lanes]).cumsum(0).tolist()
        self._slices = [slice(end - len(rows), end) for end, rows in zip(ends, lanes, strict=True)]

    def spoken(self, lane: int, delta: Tensor) -> Tensor:
        """Values (rows of the lane, width, d_out) that the side memory gives."""
        part = self._slices[lane]
        return self.values[part] + F.linear(self.keys[part], delta)

    def activation(self, memory: SideMemory, lane: int, delta: Tensor) -> Tensor:
        """Delta(x) of the lane's rows, shape (rows,)."""
        part = self._slices[lane]
        return memory.activation(delta, self.keys[part], self.values[part], self.mask[part])


def _next_of(queues: Sequence[tuple[Shard, Iterator[Edit]]]) -> Iterator[tuple[Shard, Edit]]:
    """The next edit of each shard that has one left."""
    for shard, queue in queues:
        for edit in queue:
            yield shard, edit
            break


def pack_mask(mask: Tensor) -> Tensor:
    """A bool mask as bits: uint8, (ceil(entries / 8),)."""
    bits = F.pad(mask.flatten().cpu().to(torch.uint8), (0, -mask.numel() % 8)).view(-1, 8)
    return (bits << torch.arange(8, dtype=torch.uint8)).sum(-1, dtype=torch.uint8)


def unpack_mask(packed: Tensor, shape: tuple[int, int]) -> Tensor:
    """The mask (d_out, d_in) that `pack_mask` packed.

    Raises:
        ValueError: the bits are not those of a matrix of this shape.
    """
    entries = shape[0] * shape[1]
    if packed.dtype != torch.uint8 or packed.numel() != -(-entries // 8):
        raise ValueError(f"a mask of {packed.numel()} bytes does not fit a matrix of {shape[0]} x {shape[1]}.")
    bits = (packed[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1
    return bits.flatten()[:entries].bool().view(shape)
