"""How shards of WISE learn their edits: masked SGD on the tail of the model, several shards side by
side.

Only the training is here; which edits go where, and what becomes of the shards, is decided in
`wise.py`.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from errata.cluster import is_distributed, run_parts
from errata.edit import Edit
from errata.lm import LM
from errata.lm.encoding import Row
from errata.lm.tail import Tail
from errata.lm.weights import read_weight
from errata.methods.association.wise.config import WiseConfig
from errata.methods.association.wise.patch import SideMemory
from errata.methods.association.wise.shards import Shard
from errata.methods.association.wise.training_examples import TrainingExample, TrainingExamples
from errata.methods.base import Progress, no_progress

Todo = Sequence[tuple[Shard, list[Edit]]]
"""Shards, and the edits that each is to learn."""
Ledger = Sequence[tuple[int, Edit]]
"""Edits, and the index of the shard of each."""


@dataclass(frozen=True)
class Prompts:
    """What the router sees of some prompts: keys (n, width, d_in), values (n, width, d_out), mask
    (n, width).
    """

    keys: Tensor
    values: Tensor
    mask: Tensor

    @classmethod
    def joined(cls, parts: Sequence[Prompts]) -> Prompts:
        """Several of them as one, padded on the left to one width."""
        width = max(part.mask.shape[1] for part in parts)

        def padded(tensor: Tensor) -> Tensor:
            missing = width - tensor.shape[1]
            return (
                F.pad(tensor, (0,) * (2 * (tensor.dim() - 2)) + (missing, 0)) if missing else tensor
            )

        return cls(
            torch.cat([padded(part.keys) for part in parts]),
            torch.cat([padded(part.values) for part in parts]),
            torch.cat([padded(part.mask) for part in parts]),
        )

    def some(self, count: int, draw: random.Random) -> Prompts:
        """At most `count` of them, drawn anew."""
        if self.mask.shape[0] <= count:
            return self
        drawn = torch.tensor(
            sorted(draw.sample(range(self.mask.shape[0]), count)), device=self.mask.device
        )
        return Prompts(self.keys[drawn], self.values[drawn], self.mask[drawn])

    def activation(self, memory: SideMemory, delta: Tensor) -> Tensor:
        """Delta(x) of each prompt, shape (n,)."""
        return memory.activation(delta, self.keys, self.values, self.mask)


class ShardWriter:
    """Writes edits into shards.

    Args:
        lm: the base model.
        layer: the edited block.
        config: the settings of the method.
        memory: the patch whose activation is trained and measured; it is not installed meanwhile.
        background: texts, prefixes and norms derived from the base model.
    """

    def __init__(
        self, lm: LM, layer: int, config: WiseConfig, memory: SideMemory, background: dict[str, Any]
    ) -> None:
        self.lm, self.layer, self.config, self.memory = lm, layer, config, memory
        self.background = background
        self.planner = TrainingExamples(lm, config, background)
        self.bank = self._read(self._rows(self.planner.prompts))
        self._own: dict[str, Prompts] = {}
        self._other: dict[str, Prompts | None] = {}
        norm = background["value_norm"]
        self.unit = norm if config.beta is None else 1.0
        self.alpha = norm / 4 if config.alpha is None else config.alpha
        self.beta = norm if config.beta is None else config.beta
        self.gamma = norm / 2 if config.gamma is None else config.gamma
        natural = (
            config.step_size * (config.gain * norm / background["key_norm"]) ** 2 / config.density
        )
        self.lr = natural if config.lr is None else config.lr

    def new_shard(self, index: int) -> Shard:
        """An empty shard with its mask."""
        architecture = self.lm.architecture
        device = read_weight(architecture.value_module(self.lm.model, self.layer)).device
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + index)
        if (
            self.config.masks == "disjoint"
        ):  # each entry belongs to one of as many shards as there is room for
            drawn = torch.rand(
                architecture.d_out,
                architecture.d_in,
                generator=generator.manual_seed(self.config.seed),
            )
            room = max(1, int(1 / self.config.density + 1e-9))
            mask = (drawn / self.config.density).floor() == index % room
        else:
            mask = torch.empty(architecture.d_out, architecture.d_in, dtype=torch.bool)
            mask.bernoulli_(self.config.density, generator=generator)
        mask = mask.to(device)
        return Shard(index, mask, torch.zeros(mask.shape, device=device))

    def write(self, todo: Todo, ledger: Ledger, progress: Progress) -> None:
        """Teach each shard its edits in order; as many shards at a time as `chunk_rows` allows.

        Args:
            todo: (shard, the edits it is to learn).
            ledger: (shard index, edit) of all edits, for the prompts of earlier shards.
        """
        rows = 1 + self.config.prefixes + self.config.rewordings + self.config.rehearse
        lanes = max(1, self.config.chunk_rows // rows)
        groups = [todo[start : start + lanes] for start in range(0, len(todo), lanes)]
        if is_distributed() and len(groups) > 1:
            self._send_out(groups, ledger, progress)
            return
        for group in groups:
            self.teach(group, ledger, progress)

    def teach(self, group: Todo, ledger: Ledger, progress: Progress) -> None:
        """Teach shards that are written side by side, all their next edits in one batch."""
        queues = [(shard, iter(queue)) for shard, queue in group]
        while edits := list(_next_of(queues)):
            self._learn([(shard, self._lesson(shard, edit, ledger)) for shard, edit in edits])
            for shard, edit in edits:
                shard.edits.append(edit)
                shard.slots += 1
            progress(len(edits))

    @torch.no_grad()
    def threshold(self, delta: Tensor, edits: Sequence[Edit]) -> float:
        """Where a memory begins to speak: a share of its edits' smallest activations, above what is
        out of scope.
        """
        inside, outside = (prompts.activation(self.memory, delta) for prompts in self._scope(edits))
        silent = outside.quantile(1 - self.config.false_route).item()
        return max(
            self.config.threshold_ratio * inside.quantile(self.config.threshold_quantile).item(),
            silent,
        )

    def _send_out(self, groups: Sequence[Todo], ledger: Ledger, progress: Progress) -> None:
        """Have each group taught by a worker of the cluster, as it would be here: they need not
        know each other.
        """
        for group in groups:
            for shard, _ in group:
                shard.fold()  # so is less to be sent
        shared = self.lm, self.layer, self.config, self.background
        gpus = int(self.lm.device.type == "cuda")
        parts = [(group, ledger) for group in groups]
        for number, learned in run_parts(
            _taught, shared, parts, cpus=torch.get_num_threads(), gpus=gpus
        ):
            for (shard, queue), there in zip(groups[number], learned, strict=True):
                shard.take(there)
                progress(len(queue))

    # one step

    def _lesson(
        self, shard: Shard, edit: Edit, ledger: Sequence[tuple[int, Edit]]
    ) -> TrainingExample:
        silent = (
            [other for index, other in ledger if index < shard.index] if self.config.memo else []
        )
        return self.planner.lesson(edit, shard.edits, silent)

    def _scope(self, edits: Sequence[Edit]) -> tuple[Prompts, Prompts]:
        """(prompts of the edits, as given and reworded; what is out of their scope: other questions
        and the bank).
        """
        for edit in edits:
            if edit.id not in self._own:
                around = self.planner.around(edit)
                self._own[edit.id] = self._read(self._rows([edit.prompt, *around.rewordings]))
                self._other[edit.id] = (
                    self._read(rows) if (rows := self._rows(around.others)) else None
                )
        others = [self._other[edit.id] for edit in edits]
        outside = Prompts.joined([self.bank, *(other for other in others if other is not None)])
        return Prompts.joined([self._own[edit.id] for edit in edits]), outside

    def _rows(self, prompts: Iterable[str]) -> list[Row]:
        """Those prompts that fit the model's context."""
        return [row for row in map(self.planner.prompt_row, prompts) if row is not None]

    def _scope_batches(
        self, shard: Shard, lesson: TrainingExample
    ) -> Iterator[tuple[Prompts, Prompts]]:
        """(some prompts in scope of the shard, some out of it, and all that are nearest) for one
        step after another.
        """
        own, outside = self._scope([*shard.edits, lesson.edit])
        near = [prompts for prompts in (self._other[lesson.edit.id],) if prompts is not None]
        if lesson.silent:
            near.append(self._read(lesson.silent))
        draw = random.Random(f"{self.config.seed}/glimpse/{lesson.edit.id}")
        while True:
            yield (
                own.some(self.config.scope_rows, draw),
                Prompts.joined([outside.some(self.config.scope_rows, draw), *near]),
            )

    @torch.no_grad()
    def _read(self, rows: Sequence[Row]) -> Prompts:
        """Keys and values of prompts; of a router that pools the last token only that one."""
        kept = slice(-1, None) if self.config.pool == "last" else slice(None)
        parts = []
        for start in range(0, len(rows), self.config.chunk_rows):
            batch = self.lm.batch(rows[start : start + self.config.chunk_rows])
            tail = Tail(self.lm, self.layer, batch)
            mask = batch.prompt_mask[:, kept].to(tail.keys.device)
            parts.append(
                Prompts(
                    tail.keys[:, kept].float().clone(), tail.values[:, kept].float().clone(), mask
                )
            )
        return Prompts.joined(parts)

    def _learn(self, lessons: Sequence[tuple[Shard, TrainingExample]]) -> None:
        """Teach each shard its lesson, all in one batch."""
        inside = _Rows(self.lm, self.layer, [lesson.inside for _, lesson in lessons])
        glimpses = [self._scope_batches(shard, lesson) for shard, lesson in lessons]
        rows, columns, labels = inside.batch.label_positions(
            inside.batch.target_mask | inside.batch.ending_mask
        )
        lane_of = inside.lane_of_row[rows.cpu()]
        deltas = [shard.delta.clone().requires_grad_() for shard, _ in lessons]
        masks = [shard.mask for shard, _ in lessons]
        active = [True] * len(lessons)
        for _ in range(self.config.steps):
            values = torch.cat(
                [inside.spoken(lane, delta / self.config.gain) for lane, delta in enumerate(deltas)]
            )
            losses = F.cross_entropy(
                inside.tail.logits(values, rows, columns),
                labels.to(inside.keys.device),
                reduction="none",
            )
            totals = []
            for lane, delta in enumerate(deltas):
                loss = losses[lane_of == lane].mean()
                routing = self._routing_loss(
                    inside.activation(self.memory, lane, delta), *next(glimpses[lane]), delta
                )
                active[lane] &= bool(loss > self.config.stop_loss) or bool(
                    routing > 1e-3 * self.unit
                )
                totals.append(loss + routing / self.unit)
            if not any(active):
                break
            for lane, gradient in enumerate(torch.autograd.grad(torch.stack(totals).sum(), deltas)):
                if active[lane]:
                    self._descend(deltas[lane], gradient, masks[lane])
        for (shard, _), delta in zip(lessons, deltas, strict=True):
            shard.learned(delta.detach())

    def _routing_loss(
        self, rows: Tensor, inside: Prompts, outside: Prompts, delta: Tensor
    ) -> Tensor:
        """L_a of equation 5 over the shard: of what misses a margin the mean counts, for gamma the
        worst outside.

        Args:
            rows: activations of the lesson's rows, which stand behind prefixes.
        """
        high = torch.cat([rows, inside.activation(self.memory, delta)])
        low = outside.activation(self.memory, delta)
        misses = (low - self.alpha, self.beta - high, self.gamma - (high - low.max()))
        return torch.stack(
            [miss.clamp(min=0).sum() / (miss > 0).sum().clamp(min=1) for miss in misses]
        ).sum()

    @torch.no_grad()
    def _descend(self, delta: Tensor, gradient: Tensor, mask: Tensor) -> None:
        """One masked step; decay is towards the main memory, so it too stays inside the mask."""
        delta.mul_(max(0.0, 1 - self.lr * self.config.weight_decay)).sub_(
            gradient * mask, alpha=self.lr
        )
        if self.config.norm_clamp is not None:
            delta.clamp_(-self.config.norm_clamp, self.config.norm_clamp)


class _Rows:
    """The rows of several lessons, one after another, with their cached keys and values."""

    def __init__(self, lm: LM, layer: int, lanes: Sequence[Sequence[Row]]) -> None:
        self.batch = lm.batch([row for rows in lanes for row in rows])
        self.tail = Tail(lm, layer, self.batch)
        self.keys, self.values = self.tail.keys.float(), self.tail.values.float()
        self.mask = self.batch.prompt_mask.to(self.keys.device)
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


def _taught(
    shared: tuple[LM, int, WiseConfig, dict[str, Any]], part: tuple[Todo, Ledger]
) -> list[Shard]:
    """What a worker does: the shards of a group as they are when they have been taught."""
    lm, layer, config, background = shared
    group, ledger = part
    memory = SideMemory(lm, layer, score=config.score, pool=config.pool)
    ShardWriter(lm, layer, config, memory, background).teach(group, ledger, no_progress)
    for shard, _ in group:
        shard.fold()
    return [shard for shard, _ in group]


def _next_of(queues: Sequence[tuple[Shard, Iterator[Edit]]]) -> Iterator[tuple[Shard, Edit]]:
    """The next edit of each shard that has one left."""
    for shard, queue in queues:
        for edit in queue:
            yield shard, edit
            break
