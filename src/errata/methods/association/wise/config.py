"""The settings of WISE. What they mean is told here, what they do in `wise.py` and the files beside
it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from errata.config import MethodConfig, check_choice, check_range
from errata.errors import ConfigError
from errata.methods.association.wise.patch import POOLS, SCORES
from errata.solvers.merging import MERGES


@dataclass(frozen=True)
class WiseConfig(MethodConfig):
    """Settings of WISE. None is derived from the model; how the defaults were found, and the
    paper's: docs/wise.md.

    Attributes:
        variant: `merge`, one side memory; `retrieve`, one per `shards_per_merge` shards, the most
            active is used.
        edits_per_shard: edits written through one mask; None: one per 12 input features, 10 to 500
            (the paper: 500).
        shards_per_merge: full shards merged at a time.
        mask_ratio: rho, the share of the matrix that a shard may change. None: all of it where each
            shard is a memory of its own, and half of it where shards are merged (the paper: .2).
        masks: `random`, each entry by itself (shards overlap, which anchors the merge); `disjoint`,
            no entry in two shards, as long as there is room.
        steps: gradient steps per edit, at most; fewer when loss and margins are met.
        step_size: step in value space, relative to the size of the values; used when `lr` is None.
        lr: learning rate of the SGD, as in the paper (there 1.0); None derives it from `step_size`.
        alpha, beta, gamma: routing margins (there 5, 20, 10); None: 1/4, 1, 1/2 of the values'
            median norm on background.
        stop_loss: an edit is learned when its mean target loss is below.
        gain: an edit must be learned with the change divided by this, for rephrasings get but a
            part of it. 1: the paper.
        threshold_ratio, threshold_quantile: the threshold is this share of that quantile of the
            edits' activations (0: min).
        false_route: the share of what is out of scope (background, contrasts) that a memory may
            still speak on.
        score, pool: the activation of a memory, see `SideMemory`.
        prefixes, prefix_length: texts of the model's own making put before the prompt while
            learning.
        background: irrelevant texts of the model's own making in the routing loss (the paper: one
            real text per edit).
        scope_rows: how many prompts in the shard's scope, and how many out of it, a step sees,
            drawn anew each time; what is nearest to the edit it always sees.
        contrast: per edit with a subject, so many prompts that ask the same of others, and other
            things of it, likewise.
        rewordings: per edit with a subject, at most so many prompts of the model's own making that
            it answers as it answered the edit's prompt; they are learned with it, and are in its
            scope.
        rehearse: earlier edits of the shard seen again at each step.
        memo: prompts of earlier shards' edits that must stay silent (Retrieve's replay).
        merge_method, merge_density, merge_weights: how shards become one, see
            `errata.solvers.merging`.
        weight_decay: towards the main memory, on masked entries only.
        norm_clamp: largest change of an entry; None for none (published code: 1.0, which never
            binds).
        chunk_rows: most rows that one pass of the tail holds.
    """

    method: ClassVar[str] = "wise"

    variant: Literal["merge", "retrieve"] = "retrieve"
    edits_per_shard: int | None = None
    shards_per_merge: int = 1
    mask_ratio: float | None = None
    masks: Literal["random", "disjoint"] = "random"
    steps: int = 30
    step_size: float = 0.1
    lr: float | None = None
    alpha: float | None = None
    beta: float | None = None
    gamma: float | None = None
    stop_loss: float = 0.02
    gain: float = 2.0
    threshold_ratio: float = 0.5
    threshold_quantile: float = 0.05
    false_route: float = 0.01
    score: str = "linear"
    pool: str = "last"
    prefixes: int = 2
    prefix_length: int = 10
    background: int = 2048
    scope_rows: int = 64
    contrast: int = 64
    rewordings: int = 4
    rehearse: int = 4
    memo: int = 0
    merge_method: str = "ties"
    merge_density: float = 1.0
    merge_weights: Literal["paper", "published"] = "paper"
    weight_decay: float = 0.0
    norm_clamp: float | None = None
    chunk_rows: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("variant", self.variant, ("merge", "retrieve"))
        check_choice("masks", self.masks, ("random", "disjoint"))
        check_choice("score", self.score, SCORES)
        check_choice("pool", self.pool, POOLS)
        check_choice("merge_method", self.merge_method, tuple(MERGES))
        check_choice("merge_weights", self.merge_weights, ("paper", "published"))
        check_range("mask_ratio", self.density, 1e-6, 1.0)
        check_range("merge_density", self.merge_density, 1e-6, 1.0)
        if self.edits_per_shard is not None:
            check_range("edits_per_shard", self.edits_per_shard, 1, math.inf)
        for name in (
            "shards_per_merge",
            "steps",
            "background",
            "scope_rows",
            "chunk_rows",
            "prefix_length",
        ):
            check_range(name, getattr(self, name), 1, math.inf)
        for name in ("false_route", "threshold_quantile"):
            check_range(name, getattr(self, name), 0, 1)
        check_range("gain", self.gain, 1e-3, math.inf)
        for name in (
            "norm_clamp",
            "lr",
            "alpha",
            "beta",
        ):  # gamma, a difference, may be less than nothing
            if getattr(self, name) is not None:
                check_range(name, getattr(self, name), 0, math.inf)
        if self.merge_method == "slerp" and (self.shards_per_merge != 2 or self.variant == "merge"):
            raise ConfigError(
                "slerp merges two shards, no more: it needs variant=retrieve and shards_per_merge=2."
            )
        for name in (
            "prefixes",
            "contrast",
            "rewordings",
            "rehearse",
            "memo",
            "weight_decay",
            "threshold_ratio",
            "step_size",
            "stop_loss",
        ):
            check_range(name, getattr(self, name), 0, math.inf)

    @property
    def density(self) -> float:
        """The share of the matrix that a shard may change, `mask_ratio` or what stands for it."""
        if self.mask_ratio is not None:
            return self.mask_ratio
        return 1.0 if self.variant == "retrieve" and self.shards_per_merge == 1 else 0.5
