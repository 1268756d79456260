"""WISE: a second copy of one value matrix holds the edits, a router decides per question which copy
speaks.

Wang et al., "WISE: Rethinking the Knowledge Memory for Lifelong Model Editing", NeurIPS 2024, arXiv
2405.14768. `Merge` keeps one side memory, into which full shards are merged; `Retrieve` keeps many
and picks one.

What is decided here, where paper and published code differ or are silent:

- Activation: the paper's ||dW k|| (`score="linear"`), pooled over the prompt's tokens only, padding
  and target left out. `score="activated"` is the published code's.
- Threshold: the paper's is the smallest activation of an edit. Here it is `threshold_ratio` of a
  low quantile of them, and never below what all but `false_route` of the prompts out of scope
  reach; both are measured on the finished memory (at the time of its edit a memory is smaller, so a
  running minimum goes stale).
- Margins and step size fit the model: they are multiples of the norms of its values and keys on
  background text, unless set.
- Masks are Bernoulli(`mask_ratio`) per entry; nothing outside a mask ever changes, weight decay
  included.
- Merging, where `shards_per_merge` > 1: every shard weighs 1/k (`merge_weights="paper"`), or the
  code's .4 new, .6 old.
- An answer ends: the end token is a part of what is learned (and the full stop, where the model
  puts one).
- Rehearsal (`rehearse`): each step also sees some earlier edits of the same shard; 0 turns it off,
  as in the paper.
- Retrieve with `memo` > 0 is the paper's replay (App. B.3): earlier shards' prompts must stay below
  alpha.
- A shard depends on its own edits only (with `memo`, on earlier shards' prompts too), so undo
  writes one shard anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from torch import Tensor

from errata.edit import Edit
from errata.lm import LM
from errata.lm.background import background_texts, value_scale
from errata.lm.weights import read_weight
from errata.methods.association.wise.config import WiseConfig
from errata.methods.association.wise.patch import Memory, SideMemory
from errata.methods.association.wise.shards import Shard
from errata.methods.association.wise.writer import ShardWriter
from errata.methods.base import Method, Progress, no_progress
from errata.solvers.merging import merge
from errata.storage import state


class Wise(Method):
    """Side memories beside one value matrix, a router between them, knowledge sharded and merged."""

    config_class = WiseConfig
    phase = "association"
    undo_is = "exact, by writing the edit's shard anew"
    paper = "arXiv 2405.14768"
    variants = MappingProxyType({"wise-merge": {"variant": "merge"}})
    config: WiseConfig

    def __init__(self, config: WiseConfig, lm: LM) -> None:
        super().__init__(config, lm)
        self.layer = lm.architecture.default_layer() if config.layer is None else config.layer
        lm.architecture.value_module(lm.model, self.layer)  # a layer out of range is told now
        self.quota = config.edits_per_shard or min(500, max(10, lm.architecture.d_in // 12))
        self.shards: list[Shard] = []
        self._patch = SideMemory(lm, self.layer, score=config.score, pool=config.pool)
        self._writer: ShardWriter | None = None
        self._background: dict[str, Any] | None = None
        self._memories: dict[tuple[object, ...], Memory] = {}

    @property
    def edits(self) -> list[Edit]:
        """The ledger, oldest first."""
        return [edit for shard in self.shards for edit in shard.edits]

    @property
    def patch(self) -> SideMemory:
        """The router and its side memories."""
        return self._patch

    def write(self, edits: Sequence[Edit], progress: Progress = no_progress) -> None:
        """Add edits: the open shard first, then new ones; shards are written side by side."""
        todo: list[tuple[Shard, list[Edit]]] = []
        waiting, shards = list(edits), list(self.shards)
        while waiting:
            if not shards or shards[-1].slots >= self.quota or (todo and todo[-1][0] is shards[-1]):
                shards.append(self.writer.new_shard(len(shards)))
            room = self.quota - shards[-1].slots
            todo.append((shards[-1], waiting[:room]))
            waiting = waiting[room:]
        try:
            self.writer.write(todo, _ledger(shards, todo), progress)
        finally:  # cut off halfway, what was finished is kept, as far as no gap is before it
            first_open = next(
                (i for i, shard in enumerate(shards) if shard.slots < self.quota), len(shards)
            )
            self.shards = [shard for shard in shards[: first_open + 1] if shard.slots]
            self._settle()

    def clear(self) -> None:
        """Forget all edits."""
        self.shards = []
        self._settle()

    def undo(self, edit_ids: Iterable[str]) -> None:
        """Take edits back: their shards are written anew without them (with `memo`, all later ones
        too).
        """
        gone = self.check_ids(edit_ids)
        hit = {
            i for i, shard in enumerate(self.shards) if any(edit.id in gone for edit in shard.edits)
        }
        if self.config.memo and hit:
            hit = set(range(min(hit), len(self.shards)))
        shards, todo = list(self.shards), []
        for i in sorted(hit):
            kept = [edit for edit in shards[i].edits if edit.id not in gone]
            lost = shards[i].slots - len(kept) if i < len(shards) - 1 else 0
            shards[i] = self.writer.new_shard(i)
            shards[i].slots = lost
            todo.append((shards[i], kept))
        self.writer.write(todo, _ledger(shards, todo), no_progress)
        self.shards = [shard for shard in shards if shard.slots]
        self._settle()

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Per shard the changed entries (n,) in fp32 and the mask as bits; which edits it holds;
        the thresholds.
        """
        tensors: dict[str, Tensor] = {}
        for i, shard in enumerate(self.shards):
            bits, changed = shard.folded()
            tensors |= {f"shards.{i}.mask": bits, f"shards.{i}.values": changed.cpu()}
        values = {
            "layer": self.layer,
            "background": self.background,
            "shards": [{"edits": [e.id for e in s.edits], "slots": s.slots} for s in self.shards],
            "thresholds": [memory.threshold for memory in self._patch.memories],
        }
        return tensors, values

    def load_state(
        self, edits: Sequence[Edit], tensors: Mapping[str, Tensor], values: Mapping[str, Any]
    ) -> None:
        """Be what `state` described."""
        state.same(values, "layer", self.layer)
        held_by = state.rows(values, "shards")
        if [name for held in held_by for name in state.texts(held, "edits")] != [
            edit.id for edit in edits
        ]:
            raise ValueError("'shards' do not hold the edits of the ledger, in its order")
        by_id = {edit.id: edit for edit in edits}
        weight = read_weight(self.lm.architecture.value_module(self.lm.model, self.layer))
        background = state.value(values, "background", dict)
        self._background = {
            **{name: state.texts(background, name) for name in ("texts", "prefixes")},
            **{name: state.number(background, name, 0) for name in ("key_norm", "value_norm")},
        }
        self.shards = []
        for i, held in enumerate(held_by):
            bits = state.tensor(tensors, f"shards.{i}.mask", (None,), "bits")
            changed = state.tensor(tensors, f"shards.{i}.values", (None,)).to(weight.device)
            ledger = [by_id[name] for name in held["edits"]]
            slots = state.whole(held.get("slots"), "slots", max(1, len(ledger)), self.quota)
            self.shards.append(Shard.from_folded(i, bits, changed, weight.shape, ledger, slots))
        thresholds = [
            state.number({"thresholds": each}, "thresholds")
            for each in state.rows(values, "thresholds")
        ]
        self._settle(dict(zip(map(_stamps, self.groups()), thresholds, strict=True)))

    @property
    def background(self) -> dict[str, Any]:
        """What is derived from the base model: background texts, prefixes, norms of keys and
        values.
        """
        if self._background is None:
            texts = [
                text
                for text in background_texts(
                    self.lm, self.config.background, 24, seed=self.config.seed, shortest=4
                )
                if text
            ]
            length = self.config.prefix_length
            prefixes = background_texts(
                self.lm, max(1, self.config.prefixes), length, self.config.seed + 1, length
            )
            scale = value_scale(self.lm, self.layer, texts)
            self._background = {
                "texts": texts,
                "prefixes": prefixes[: self.config.prefixes],
                "key_norm": scale.key_norm,
                "value_norm": scale.value_norm,
            }
        return self._background

    @property
    def writer(self) -> ShardWriter:
        """What writes shards; made when it is first needed, since it asks the base model for
        background.
        """
        if self._writer is None:
            self._writer = ShardWriter(
                self.lm, self.layer, self.config, self._patch, self.background
            )
        return self._writer

    def groups(self) -> list[list[Shard]]:
        """The shards of each side memory: merged groups first, shards that wait for their group
        after.
        """
        k = self.config.shards_per_merge
        full = [shard for shard in self.shards if shard.slots >= self.quota]
        groups = [full[i : i + k] for i in range(0, len(full) - k + 1, k)]
        waiting = self.shards[len(groups) * k :]
        if self.config.variant == "merge" and groups:
            groups = [[shard for group in groups for shard in group]]
        groups += [[shard] for shard in waiting]
        return [group for group in groups if any(shard.edits for shard in group)]

    def _merge_all(self, deltas: list[Tensor]) -> Tensor:
        """With published weights each further group counts .4 and what was there before .6; on
        paper all count alike.
        """
        k = self.config.shards_per_merge
        if self.config.merge_weights == "paper" or len(deltas) <= k:
            return self._merge(deltas, None)
        merged = self._merge(deltas[:k], None)
        for start in range(k, len(deltas), k):
            new = deltas[start : start + k]
            merged = self._merge([*new, merged], [0.4 / len(new)] * len(new) + [0.6])
        return merged

    def _merge(self, deltas: list[Tensor], weights: list[float] | None) -> Tensor:
        how = self.config
        return merge(
            deltas, how.merge_method, weights=weights, density=how.merge_density, seed=how.seed
        )

    def _settle(
        self, thresholds: Mapping[tuple[object, ...], float] = MappingProxyType({})
    ) -> None:
        """Put the shards together into memories; those that changed are merged again and their
        thresholds measured.

        Args:
            thresholds: by stamps of the shards, where they are known already.
        """
        kept = {}
        for shards in self.groups():
            key = _stamps(shards)
            if (memory := self._memories.get(key)) is None:
                delta = (
                    self._merge_all([shard.delta for shard in shards])
                    if len(shards) > 1
                    else shards[0].delta
                )
                edits = [edit for shard in shards for edit in shard.edits]
                memory = Memory(
                    delta,
                    thresholds[key] if key in thresholds else self.writer.threshold(delta, edits),
                )
            kept[key] = memory
        self._memories = kept
        self._patch.memories = list(kept.values())
        for shard in self.shards[:-1]:
            shard.fold()


def _stamps(shards: Sequence[Shard]) -> tuple[object, ...]:
    return tuple(shard.stamp for shard in shards)


def _ledger(
    shards: Sequence[Shard], todo: Sequence[tuple[Shard, list[Edit]]]
) -> list[tuple[int, Edit]]:
    """(shard index, edit) of what is written and of what will be."""
    written = [(shard.index, edit) for shard in shards for edit in shard.edits]
    return written + [(shard.index, edit) for shard, queue in todo for edit in queue]
