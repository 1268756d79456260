"""`ShardWriter`: trains WISE's shards by masked SGD on the model's tail, several side by side.

Which edits go into which shard, and how shards become memories, is decided in `method.py`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from errata.cluster import is_distributed, run_parts
from errata.edit import Edit
from errata.lm import LM
from errata.lm.background import key_of
from errata.lm.encoding import Row
from errata.lm.tail import Tail
from errata.lm.weights import weight_device
from errata.methods.association.wise.config import WiseConfig
from errata.methods.association.wise.patch import SideMemory
from errata.methods.association.wise.prompt_states import PromptStates
from errata.methods.association.wise.shards import Shard
from errata.methods.association.wise.training_examples import TrainingExample, TrainingExamples
from errata.methods.base import Progress, no_progress
from errata.progress import report
from errata.storage.cache import cached

Work = Sequence[tuple[Shard, list[Edit]]]
"""Shards, and the edits that each is to learn."""
Ledger = Sequence[tuple[int, Edit]]
"""Edits, each with the index of its shard."""
READING = "reading background text"


class ShardWriter:
    """Trains shards on edits.

    Args:
        lm: the base model.
        layer: the edited block.
        config: the settings of WISE.
        memory: the patch whose activation is trained and measured; it is not installed meanwhile.
        background: texts, prefixes and norms, see `Wise.background`.

    Attributes:
        examples: builds what edits are trained on.
        background_states: of the background's prompts, which are out of every edit's scope.
    """

    def __init__(
        self, lm: LM, layer: int, config: WiseConfig, memory: SideMemory, background: dict[str, Any]
    ) -> None:
        self.lm, self.layer, self.config, self.memory = lm, layer, config, memory
        self.background = background
        self.examples = TrainingExamples(lm, config, background)
        self.background_states = self._background_states()
        self._in_scope: dict[str, PromptStates] = {}
        self._contrasts: dict[str, PromptStates | None] = {}
        norm = background["value_norm"]
        self.unit = norm if config.beta is None else 1.0
        self.alpha = norm / 4 if config.alpha is None else config.alpha
        self.beta = norm if config.beta is None else config.beta
        self.gamma = norm / 2 if config.gamma is None else config.gamma
        step = config.step_size * (config.gain * norm / background["key_norm"]) ** 2
        self.lr = step / config.density if config.lr is None else config.lr

    def new_shard(self, index: int) -> Shard:
        """Return an empty shard with its mask, drawn from the seed and the index."""
        architecture, density = self.lm.architecture, self.config.density
        shape = architecture.d_out, architecture.d_in
        device = weight_device(architecture.value_module(self.lm.model, self.layer))
        generator = torch.Generator()
        if self.config.masks == "disjoint":  # 1 / density shards share out the entries
            drawn = torch.rand(shape, generator=generator.manual_seed(self.config.seed))
            mask = (drawn / density).floor() == index % max(1, int(1 / density + 1e-9))
        else:
            generator.manual_seed(self.config.seed * 1_000_003 + index)
            mask = torch.empty(shape, dtype=torch.bool).bernoulli_(density, generator=generator)
        return Shard(index, mask.to(device), torch.zeros(shape, device=device))

    def write(self, work: Work, ledger: Ledger, progress: Progress) -> None:
        """Train each shard on its edits in order; as many shards at a time as `chunk_rows` allows.

        Args:
            work: what each shard is to learn.
            ledger: all edits, for the prompts of earlier shards.
            progress: called with the number of edits just finished.
        """
        rows = 1 + self.config.prefixes + self.config.rewordings + self.config.rehearse
        lanes = max(1, self.config.chunk_rows // rows)
        groups = [work[start : start + lanes] for start in range(0, len(work), lanes)]
        if is_distributed() and len(groups) > 1:
            self._train_on_cluster(groups, ledger, progress)
            return
        for group in groups:
            self.train(group, ledger, progress)

    def train(self, group: Work, ledger: Ledger, progress: Progress) -> None:
        """Train shards side by side: the next edit of each in one batch."""
        queues = [(shard, iter(edits)) for shard, edits in group]
        while batch := list(_next_edits(queues)):
            self._learn([(shard, self._example(shard, edit, ledger)) for shard, edit in batch])
            for shard, edit in batch:
                shard.edits.append(edit)
                shard.slots += 1
            progress(len(batch))

    @torch.no_grad()
    def threshold(self, delta: Tensor, edits: Sequence[Edit]) -> float:
        """Return a memory's threshold.

        It is a share of the edits' smallest activations, and at least what all but `false_route` of
        the out-of-scope prompts reach.
        """
        config = self.config
        inside, outside = (states.activation(self.memory, delta) for states in self._scope(edits))
        lowest = inside.quantile(config.threshold_quantile).item()
        highest = outside.quantile(1 - config.false_route).item()
        return max(config.threshold_ratio * lowest, highest)

    def _train_on_cluster(self, groups: Sequence[Work], ledger: Ledger, progress: Progress) -> None:
        """Have each group trained by a worker of the cluster; the result is the same as here."""
        for group in groups:
            for shard, _ in group:
                shard.pack()  # less to send
        shared = self.lm, self.layer, self.config, self.background
        gpus = int(self.lm.device.type == "cuda")
        parts = [(group, ledger) for group in groups]
        for number, trained in run_parts(
            _train_remotely, shared, parts, cpus=torch.get_num_threads(), gpus=gpus
        ):
            for (shard, edits), copy in zip(groups[number], trained, strict=True):
                shard.update_from(copy)
                progress(len(edits))

    # one step

    def _example(self, shard: Shard, edit: Edit, ledger: Ledger) -> TrainingExample:
        memo = [other for index, other in ledger if index < shard.index] if self.config.memo else []
        return self.examples.build(edit, shard.edits, memo)

    def _scope(self, edits: Sequence[Edit]) -> tuple[PromptStates, PromptStates]:
        """Return the edits' prompts and rewordings, and the contrasts and background prompts."""
        for edit in edits:
            if edit.id not in self._in_scope:
                near = self.examples.contrast_set(edit)
                inside = self.examples.prompt_rows([edit.prompt, *near.rewordings])
                contrasts = self.examples.prompt_rows(near.contrasts)
                self._in_scope[edit.id] = self._states(inside)
                self._contrasts[edit.id] = self._states(contrasts) if contrasts else None
        contrasts_of = (self._contrasts[edit.id] for edit in edits)
        outside = [states for states in contrasts_of if states is not None]
        return (
            PromptStates.cat([self._in_scope[edit.id] for edit in edits]),
            PromptStates.cat([self.background_states, *outside]),
        )

    def _scope_batches(
        self, shard: Shard, example: TrainingExample
    ) -> Iterator[tuple[PromptStates, PromptStates]]:
        """Yield, for each step, prompts drawn from the shard's scope, and from out of it.

        The contrasts of the edit itself and its memo are in every batch.
        """
        inside, outside = self._scope([*shard.edits, example.edit])
        contrasts = self._contrasts[example.edit.id]
        nearest = [] if contrasts is None else [contrasts]
        if example.memo:
            nearest.append(self._states(example.memo))
        draw = random.Random(f"{self.config.seed}/glimpse/{example.edit.id}")
        count = self.config.scope_rows
        while True:
            own, other = inside.sample(count, draw), outside.sample(count, draw)
            yield own, PromptStates.cat([other, *nearest])

    def _background_states(self) -> PromptStates:
        """Return the states of the background's prompts; if small, they are kept on disk."""
        rows = self.examples.prompt_rows(self.examples.prompts)
        if self.config.pool != "last":
            return self._states(rows)

        report(READING, 0, 1)
        key = json.dumps([key_of(self.lm), self.layer, [row.ids for row in rows]])
        joined = cached("states", key, lambda: self._states(rows).joined(), self.lm.name)
        device = weight_device(self.lm.architecture.value_module(self.lm.model, self.layer))
        return PromptStates.from_joined(joined.to(device), self.lm.architecture.d_in)

    @torch.no_grad()
    def _states(self, rows: Sequence[Row]) -> PromptStates:
        """Run prompts through the model; keep only the last token if the router pools that."""
        parts = []
        module = self.lm.architecture.value_module(self.lm.model, self.layer)
        for start in range(0, len(rows), self.config.chunk_rows):
            part = rows[start : start + self.config.chunk_rows]
            if self.config.pool == "last":
                states = self.examples.reader.last_states(module, [row.ids for row in part])
                keys, values = (each[:, None].float() for each in states)
                mask = torch.ones(keys.shape[:2], dtype=torch.bool)
            else:
                batch = self.lm.batch(part)
                tail = Tail(self.lm, self.layer, batch)
                keys, values, mask = tail.keys.float(), tail.values.float(), batch.prompt_mask
            parts.append(PromptStates(keys, values, mask.to(keys.device)))
        return PromptStates.cat(parts)

    def _learn(self, work: Sequence[tuple[Shard, TrainingExample]]) -> None:
        """Train each shard on its example, all in one batch; each has a lane of rows in it."""
        config = self.config
        batch = self.lm.batch([row for _, example in work for row in example.in_scope])
        rows, columns, labels = batch.label_positions(batch.target_mask | batch.ending_mask)
        tail = Tail(self.lm, self.layer, batch)
        keys, values = tail.keys.float(), tail.values.float()
        labels, mask = labels.to(keys.device), batch.prompt_mask.to(keys.device)
        sizes = [len(example.in_scope) for _, example in work]
        lanes = PromptStates(keys, values, mask).split(sizes)
        lane_of = torch.arange(len(work)).repeat_interleave(torch.tensor(sizes))[rows.cpu()]
        scope_batches = [self._scope_batches(shard, example) for shard, example in work]
        deltas = [shard.delta.clone().requires_grad_() for shard, _ in work]
        masks = [shard.mask for shard, _ in work]
        active = [True] * len(work)
        for _ in range(config.steps):
            outputs = [
                states.output(delta / config.gain)
                for states, delta in zip(lanes, deltas, strict=True)
            ]
            logits = tail.logits(torch.cat(outputs), rows, columns)
            losses = F.cross_entropy(logits, labels, reduction="none")
            totals = []
            for lane, delta in enumerate(deltas):
                loss = losses[lane_of == lane].mean()
                activation = lanes[lane].activation(self.memory, delta)
                routing = self._routing_loss(activation, *next(scope_batches[lane]), delta)
                active[lane] &= bool(loss > config.stop_loss) or bool(routing > 1e-3 * self.unit)
                totals.append(loss + routing / self.unit)
            if not any(active):
                break
            gradients = torch.autograd.grad(torch.stack(totals).sum(), deltas)
            for lane, gradient in enumerate(gradients):
                if active[lane]:
                    self._descend(deltas[lane], gradient, masks[lane])
        for (shard, _), delta in zip(work, deltas, strict=True):
            shard.delta = delta.detach()

    def _routing_loss(
        self, activation: Tensor, inside: PromptStates, outside: PromptStates, delta: Tensor
    ) -> Tensor:
        """Return L_a of equation 5 over the shard, ().

        Each margin counts with the mean of what misses it; gamma is taken to the most active prompt
        out of scope.

        Args:
            activation: of the example's rows, which stand behind prefixes.
            inside, outside: other prompts in the shard's scope, and out of it.
            delta: (d_out, d_in).
        """
        high = torch.cat([activation, inside.activation(self.memory, delta)])
        low = outside.activation(self.memory, delta)
        misses = (low - self.alpha, self.beta - high, self.gamma - (high - low.max()))
        return torch.stack(
            [miss.clamp(min=0).sum() / (miss > 0).sum().clamp(min=1) for miss in misses]
        ).sum()

    @torch.no_grad()
    def _descend(self, delta: Tensor, gradient: Tensor, mask: Tensor) -> None:
        """Make one step inside the mask; the decay of a change is towards the main memory."""
        delta.mul_(max(0.0, 1 - self.lr * self.config.weight_decay)).sub_(
            gradient * mask, alpha=self.lr
        )
        if self.config.norm_clamp is not None:
            delta.clamp_(-self.config.norm_clamp, self.config.norm_clamp)


def _train_remotely(
    shared: tuple[LM, int, WiseConfig, dict[str, Any]], part: tuple[Work, Ledger]
) -> list[Shard]:
    """Train the shards of a group on a worker; return them packed."""
    lm, layer, config, background = shared
    group, ledger = part
    memory = SideMemory(lm, layer, score=config.score, pool=config.pool)
    ShardWriter(lm, layer, config, memory, background).train(group, ledger, no_progress)
    for shard, _ in group:
        shard.pack()
    return [shard for shard, _ in group]


def _next_edits(queues: Sequence[tuple[Shard, Iterator[Edit]]]) -> Iterator[tuple[Shard, Edit]]:
    """Yield the next edit of each shard that has one left."""
    for shard, queue in queues:
        for edit in queue:
            yield shard, edit
            break
