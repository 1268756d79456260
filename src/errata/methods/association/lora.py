"""LoRA: train two thin matrices beside a frozen one on the edits, W k + (alpha / r) B A k.

Hu et al., arXiv 2106.09685. The matrices are PEFT's and are saved under PEFT's names: one adapter
for all edits loads there as it is. One adapter trained edit after edit (with the loss of
`solvers/adapters.py`) forgets; with `merge`, each shard of `edits_per_shard` edits has an adapter
of its own, trained on the base model, and the changes of all shards are merged into one, as WISE
does with side memories.

What departs from the field's "LoRA" (EasyEdit: an AdaLoRA that never reallocates its ranks, on the
query and value projections of LLaMA-2, 70 steps, lr 5e-3, no loss on anything but the edit): LoRA
itself, no dropout, the value matrices W_out of all blocks, where facts are kept and which every
family has, and KL to the base model on background texts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

from torch import Tensor

from errata.config import PositiveInt, Range, check_choice
from errata.edit import Edit
from errata.errors import ConfigError
from errata.lm import LM
from errata.methods.adapter_method import ValueMatrixMethod
from errata.methods.base import Progress, no_progress
from errata.patches import Adapters, Patch, WeightDelta
from errata.patches.adapter import low_rank, weight_changes
from errata.solvers.adapters import AdapterTrainerConfig
from errata.solvers.merging import MERGES, merge


@dataclass(frozen=True)
class LoraConfig(AdapterTrainerConfig):
    """Settings of LoRA; rank, alpha, steps and lr are EasyEdit's for LLaMA-2-7B.

    Attributes:
        layer: the one block whose value matrix is adapted; None: every block's.
        kind: `lora`; `rslora`, scaled by alpha over the root of r (arXiv 2312.03732); `dora` (arXiv
            2402.09353).
        rank: r.
        alpha: the change is scaled by alpha / r.
        merge: how the shards' changes become one, see `errata.solvers.merging`; None: one adapter
            for all edits.
        edits_per_shard: edits that share an adapter, with `merge`.
        merge_density: share of a shard's change that is kept.
        merge_scale: factor on the merged change.
    """

    method: ClassVar[str] = "lora"

    kind: Literal["lora", "rslora", "dora"] = "lora"
    rank: PositiveInt = 8
    alpha: Annotated[float, Range(1e-6)] = 32.0
    merge: str | None = None
    edits_per_shard: PositiveInt = 10
    merge_density: Annotated[float, Range(1e-6, 1)] = 1.0
    merge_scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.merge is not None:
            check_choice("merge", self.merge, tuple(name for name in MERGES if name != "slerp"))
            if self.kind == "dora":
                raise ConfigError(
                    "dora is no sum that could be merged; use kind=lora, or leave merge out."
                )


class Lora(ValueMatrixMethod):
    """LoRA (PEFT) beside the value matrices, one adapter for all edits or one per shard, merged."""

    config_class = LoraConfig
    paper = "arXiv 2106.09685"
    variants = MappingProxyType({"lora-ties": {"merge": "ties", "merge_density": 0.2}})
    config: LoraConfig

    def __init__(self, config: LoraConfig, lm: LM) -> None:
        super().__init__(config, lm)
        self.shards: list[Adapters] = []
        self._merged: WeightDelta | None = None

    def begin(self) -> Adapters:
        """Return a new adapter; each shard's has a seed of its own."""
        config = self.config
        seed = config.seed + len(self.shards)
        return low_rank(self.lm, self.paths, config.rank, config.alpha, config.kind, seed)

    @property
    def patch(self) -> Patch:
        """The adapter, or the merged change of all shards."""
        if not self.shards:
            return super().patch
        if self._merged is None:
            self._merged = self._merge()
        return self._merged

    def weight_changes(self) -> Mapping[str, Tensor]:
        """Return what the adapter, or all shards merged, add to the weights, (d_out, d_in) by path.

        Raises:
            ConfigError: the adapter is DoRA, which also scales the weights.
        """
        if self.config.kind == "dora":
            raise ConfigError(
                "dora is no sum that could be merged into the weights; "
                "keep it with save_pretrained."
            )
        if isinstance(patch := self.patch, Adapters):
            return weight_changes(patch)
        return patch.deltas if isinstance(patch, WeightDelta) else {}

    def clear(self) -> None:
        """Forget all edits."""
        super().clear()
        self.shards, self._merged = [], None

    def write(self, edits: Sequence[Edit], progress: Progress = no_progress) -> None:
        """Add edits, one after another; with `merge`, each into its own shard's adapter."""
        if self.config.merge is None:
            return super().write(edits, progress)
        for edit in edits:
            in_shard = len(self._edits) % self.config.edits_per_shard
            shard = self.shards[-1] if in_shard else self.begin()
            self.train(shard, edit, self._edits[len(self._edits) - in_shard :])
            if not in_shard:
                self.shards.append(shard)
            self._edits.append(edit)
            self._merged = None
            progress(1)
        return None

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return A and B of each module by PEFT's names, for each shard if there are shards."""
        if not self.shards:
            return super().state()
        return {
            f"shard.{i}.{name}": tensor
            for i, shard in enumerate(self.shards)
            for name, tensor in shard.state().items()
        }, {}

    def load_state(
        self, edits: Sequence[Edit], tensors: Mapping[str, Tensor], values: Mapping[str, Any]
    ) -> None:
        """Restore from `state`."""
        if self.config.merge is None:
            return super().load_state(edits, tensors, values)
        self.clear()
        for i in range(math.ceil(len(edits) / self.config.edits_per_shard)):
            shard, prefix = self.begin(), f"shard.{i}."
            shard.load_state(
                {
                    name.removeprefix(prefix): tensor
                    for name, tensor in tensors.items()
                    if name.startswith(prefix)
                }
            )
            self.shards.append(shard)
        self._edits = list(edits)
        return None

    def _merge(self) -> WeightDelta:
        config = self.config
        changes = [weight_changes(shard) for shard in self.shards]
        return WeightDelta(
            {
                path: merge(
                    [change[path] for change in changes],
                    str(config.merge),
                    density=config.merge_density,
                    scale=config.merge_scale,
                    seed=config.seed,
                )
                for path in self.paths
            }
        )
