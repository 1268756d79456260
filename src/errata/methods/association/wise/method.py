"""WISE: a second copy of one value matrix holds the edits; a router picks the copy for each prompt.

Wang et al., "WISE: Rethinking the Knowledge Memory for Lifelong Model Editing", NeurIPS 2024, arXiv
2405.14768. `Merge` keeps one side memory, into which full shards are merged; `Retrieve` keeps many
and picks one.

What is decided here, where paper and published code differ or are silent:

- Activation: the paper's ||dW k|| (`score="linear"`), pooled over the prompt's tokens only, padding
  and target left out. `score="activated"` is the published code's.
- Threshold: the paper's is the smallest activation of an edit. Here it is `threshold_ratio` of a
  low quantile of them, and at least what all but `false_route` of the out-of-scope prompts reach;
  both are measured on the finished memory (at the time of its edit a memory is smaller, so a
  running minimum goes stale).
- Margins and step size fit the model: they are multiples of the norms of its values and keys on
  background text, unless set.
- Masks are Bernoulli(`mask_ratio`) per entry; nothing outside a mask ever changes, weight decay
  included.
- Merging, where `shards_per_merge` > 1: every shard weighs 1/k (`merge_weights="paper"`), or the
  code's .4 new, .6 old.
- An answer's end token is learned too (and the full stop, where the model puts one).
- Rehearsal (`rehearse`): each step also sees some earlier edits of the same shard; 0 turns it off,
  as in the paper.
- Retrieve with `memo` > 0 is the paper's replay (App. B.3): earlier shards' prompts must stay below
  alpha.
- A shard depends on its own edits only (with `memo`, on earlier shards' prompts too), so undo
  writes one shard anew.

The parts: `config.py`, `patch.py` (the router), `shards.py`, `writer.py` (the training, on what is
in `training_examples.py` and `prompt_states.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from torch import Tensor

from errata.edit import Edit
from errata.lm import LM
from errata.lm.background import background_texts, value_scale
from errata.lm.weights import weight_device
from errata.methods.association.wise.config import WiseConfig
from errata.methods.association.wise.patch import Memory, SideMemory
from errata.methods.association.wise.shards import Shard
from errata.methods.association.wise.writer import ShardWriter
from errata.methods.base import Method, Progress, no_progress
from errata.solvers.merging import merge
from errata.storage import state

Key = tuple[object, ...]
"""The versions of the shards that make up a memory."""


class Wise(Method):
    """Side memories beside one value matrix, a router between them, knowledge sharded and merged.

    Attributes:
        shard_size: edits written through one mask.
        shards: all shards, oldest first.
    """

    config_class = WiseConfig
    phase = "association"
    undo_is = "exact, by writing the edit's shard anew"
    paper = "arXiv 2405.14768"
    variants = MappingProxyType({"wise-merge": {"variant": "merge"}})
    config: WiseConfig

    def __init__(self, config: WiseConfig, lm: LM) -> None:
        super().__init__(config, lm)
        self.layer = lm.architecture.default_layer() if config.layer is None else config.layer
        lm.architecture.value_module(lm.model, self.layer)  # an early error if out of range
        self.shard_size = config.edits_per_shard or min(500, max(10, lm.architecture.d_in // 12))
        self.shards: list[Shard] = []
        self._patch = SideMemory(lm, self.layer, score=config.score, pool=config.pool)
        self._writer: ShardWriter | None = None
        self._background: dict[str, Any] | None = None
        self._memories: dict[Key, Memory] = {}

    @property
    def edits(self) -> list[Edit]:
        """The ledger, oldest first."""
        return [edit for shard in self.shards for edit in shard.edits]

    @property
    def patch(self) -> SideMemory:
        """The router and its side memories."""
        return self._patch

    @property
    def writer(self) -> ShardWriter:
        """The trainer of shards, made on first use, since it runs the base model on background."""
        if self._writer is None:
            self._writer = ShardWriter(
                self.lm, self.layer, self.config, self._patch, self.background
            )
        return self._writer

    @property
    def background(self) -> dict[str, Any]:
        """Self-generated texts and prefixes, and the norms of keys and values on the texts."""
        if self._background is None:
            config = self.config
            texts = background_texts(self.lm, config.background, seed=config.seed)
            texts = [text for text in texts if text]
            length = config.prefix_length
            prefixes = background_texts(
                self.lm, max(1, config.prefixes), length, config.seed + 1, length
            )
            scale = value_scale(self.lm, self.layer, texts)
            self._background = {
                "texts": texts,
                "prefixes": prefixes[: config.prefixes],
                "key_norm": scale.key_norm,
                "value_norm": scale.value_norm,
            }
        return self._background

    def write(self, edits: Sequence[Edit], progress: Progress = no_progress) -> None:
        """Add edits: to the open shard first, then to new ones; shards are trained side by side."""
        work: list[tuple[Shard, list[Edit]]] = []
        waiting, shards = list(edits), list(self.shards)
        while waiting:
            if not shards or self._full(shards[-1]) or (work and work[-1][0] is shards[-1]):
                shards.append(self.writer.new_shard(len(shards)))
            room = self.shard_size - shards[-1].slots
            work.append((shards[-1], waiting[:room]))
            waiting = waiting[room:]
        try:
            self.writer.write(work, _ledger(shards, work), progress)
        finally:  # if interrupted, what was finished is kept, up to the first gap
            first_open = next(
                (i for i, shard in enumerate(shards) if not self._full(shard)), len(shards)
            )
            self.shards = [shard for shard in shards[: first_open + 1] if shard.slots]
            self._update_memories()

    def clear(self) -> None:
        """Forget all edits."""
        self.shards = []
        self._update_memories()

    def undo(self, edit_ids: Iterable[str]) -> None:
        """Remove edits; their shards (with `memo`, later ones as well) are written anew."""
        removed = self.check_ids(edit_ids)
        affected = {
            i
            for i, shard in enumerate(self.shards)
            if any(edit.id in removed for edit in shard.edits)
        }
        if self.config.memo and affected:
            affected = set(range(min(affected), len(self.shards)))
        shards, work = list(self.shards), []
        for i in sorted(affected):
            kept = [edit for edit in shards[i].edits if edit.id not in removed]
            lost = shards[i].slots - len(kept) if i < len(shards) - 1 else 0
            shards[i] = self.writer.new_shard(i)
            shards[i].slots = lost
            work.append((shards[i], kept))
        self.writer.write(work, _ledger(shards, work), no_progress)
        self.shards = [shard for shard in shards if shard.slots]
        self._update_memories()

    def groups(self) -> list[list[Shard]]:
        """Return the shards of each memory: merged groups, then shards not merged yet."""
        k = self.config.shards_per_merge
        full = [shard for shard in self.shards if self._full(shard)]
        groups = [full[i : i + k] for i in range(0, len(full) - k + 1, k)]
        waiting = self.shards[len(groups) * k :]
        if self.config.variant == "merge" and groups:
            groups = [[shard for group in groups for shard in group]]
        groups += [[shard] for shard in waiting]
        return [group for group in groups if any(shard.edits for shard in group)]

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return each shard's changed entries (n,), in fp32, and its mask as bits; plain values.

        The plain values are the layer, the background, the shards' edits and the thresholds.
        """
        tensors: dict[str, Tensor] = {}
        for i, shard in enumerate(self.shards):
            bits, changed = shard.packed()
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
        """Restore from `state`."""
        state.same(values, "layer", self.layer)
        rows = state.rows(values, "shards")
        ids = [edit_id for row in rows for edit_id in state.texts(row, "edits")]
        if ids != [edit.id for edit in edits]:
            raise ValueError("'shards' do not hold the edits of the ledger, in its order")
        by_id = {edit.id: edit for edit in edits}
        places = self.lm.architecture
        shape = places.d_out, places.d_in
        device = weight_device(places.value_module(self.lm.model, self.layer))
        background = state.value(values, "background", dict)
        self._background = {
            **{name: state.texts(background, name) for name in ("texts", "prefixes")},
            **{name: state.number(background, name, 0) for name in ("key_norm", "value_norm")},
        }
        self.shards = []
        for i, row in enumerate(rows):
            bits = state.tensor(tensors, f"shards.{i}.mask", (None,), "bits")
            changed = state.tensor(tensors, f"shards.{i}.values", (None,)).to(device)
            ledger = [by_id[edit_id] for edit_id in row["edits"]]
            slots = state.whole(row.get("slots"), "slots", max(1, len(ledger)), self.shard_size)
            self.shards.append(Shard.from_packed(i, bits, changed, shape, ledger, slots))
        thresholds = [
            state.number({"thresholds": each}, "thresholds")
            for each in state.rows(values, "thresholds")
        ]
        self._update_memories(dict(zip(map(_key, self.groups()), thresholds, strict=True)))

    def _full(self, shard: Shard) -> bool:
        return shard.slots >= self.shard_size

    def _update_memories(self, thresholds: Mapping[Key, float] = MappingProxyType({})) -> None:
        """Make the patch's memories those of the shards: merge and measure the ones that changed.

        Args:
            thresholds: those known already, by the memory's key.
        """
        memories = {}
        for shards in self.groups():
            key = _key(shards)
            memory = self._memories.get(key)
            if memory is None:
                deltas = [shard.delta for shard in shards]
                delta = self._merge_all(deltas) if len(deltas) > 1 else deltas[0]
                threshold = thresholds.get(key)
                if threshold is None:
                    edits = [edit for shard in shards for edit in shard.edits]
                    threshold = self.writer.threshold(delta, edits)
                memory = Memory(delta, threshold)
            memories[key] = memory
        self._memories = memories
        self._patch.memories = list(memories.values())
        for shard in self.shards[:-1]:
            shard.pack()

    def _merge_all(self, deltas: list[Tensor]) -> Tensor:
        """Merge the deltas of all shards (d_out, d_in).

        In the paper all count alike; with published weights each further group counts .4 and what
        was merged before .6.
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
        config = self.config
        return merge(
            deltas,
            config.merge_method,
            weights=weights,
            density=config.merge_density,
            seed=config.seed,
        )


def _key(shards: Sequence[Shard]) -> Key:
    return tuple(shard.version for shard in shards)


def _ledger(
    shards: Sequence[Shard], work: Sequence[tuple[Shard, list[Edit]]]
) -> list[tuple[int, Edit]]:
    """Return (shard index, edit) of all edits, written and to be written."""
    written = [(shard.index, edit) for shard in shards for edit in shard.edits]
    return written + [(shard.index, edit) for shard, edits in work for edit in edits]
