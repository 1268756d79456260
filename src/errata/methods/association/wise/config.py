"""`WiseConfig`: the settings of WISE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from errata.config import (
    Fraction,
    MethodConfig,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    Range,
    check_choice,
)
from errata.errors import ConfigError
from errata.methods.association.wise.patch import Pool, Score
from errata.solvers.merging import MERGES

Density = Annotated[float, Range(1e-6, 1.0)]


@dataclass(frozen=True)
class WiseConfig(MethodConfig):
    """Settings of WISE; how the defaults were found, and the paper's: docs/wise.md.

    Attributes:
        variant: `merge`, one side memory; `retrieve`, one per `shards_per_merge` shards, of which
            the most active is used.
        edits_per_shard: edits written through one mask; None: one per 12 input features, 10 to 500
            (the paper: 500).
        shards_per_merge: full shards merged at a time.
        mask_ratio: rho, the share of the matrix that a shard may change. None: all of it where each
            shard is a memory of its own, half of it where shards are merged (the paper: .2).
        masks: `random`, each entry by itself (shards overlap, which anchors the merge); `disjoint`,
            no entry in two shards, as long as there is room.
        steps: gradient steps per edit, at most; fewer when loss and margins are met.
        step_size: step in value space, relative to the size of the values; used when `lr` is None.
        lr: learning rate of the SGD, as in the paper (there 1.0); None derives it from `step_size`.
        alpha, beta, gamma: routing margins (there 5, 20, 10); None: 1/4, 1, 1/2 of the values'
            median norm on background text. Gamma, a difference, may be negative.
        stop_loss: an edit is learned when its mean target loss is below.
        gain: an edit must be learned with the change divided by this, since rephrasings get only
            part of it. 1: the paper.
        threshold_ratio, threshold_quantile: a memory's threshold is this share of that quantile of
            its edits' activations (0: the smallest).
        false_route: the share of out-of-scope prompts (background, contrasts) that may still be
            routed to a memory.
        score, pool: how a memory's activation is computed, see `SideMemory`.
        prefixes, prefix_length: self-generated texts put before the prompt in training, and their
            tokens.
        background: self-generated out-of-scope texts in the routing loss (the paper: one real text
            per edit).
        scope_rows: prompts in the shard's scope, and prompts out of it, that a step sees, drawn
            anew each time; those nearest to the edit it always sees.
        contrast: per edit with a subject, prompts that ask the same of others, and prompts that ask
            other things of it.
        rewordings: per edit with a subject, the most self-generated prompts learned with it, since
            the base model answers them as it answers the edit's prompt.
        rehearse: earlier edits of the shard seen again at each step.
        memo: prompts of earlier shards' edits that must stay out of scope (Retrieve's replay).
        merge_method, merge_density, merge_weights: how shards become one, see
            `errata.solvers.merging`.
        weight_decay: towards the main memory, on masked entries only.
        norm_clamp: largest change of an entry; None for none (published code: 1.0, which never
            binds).
        chunk_rows: rows in one pass of the tail, at most.
    """

    method: ClassVar[str] = "wise"

    variant: Literal["merge", "retrieve"] = "retrieve"
    edits_per_shard: PositiveInt | None = None
    shards_per_merge: PositiveInt = 1
    mask_ratio: Density | None = None
    masks: Literal["random", "disjoint"] = "random"
    steps: PositiveInt = 30
    step_size: NonNegativeFloat = 0.1
    lr: NonNegativeFloat | None = None
    alpha: NonNegativeFloat | None = None
    beta: NonNegativeFloat | None = None
    gamma: float | None = None
    stop_loss: NonNegativeFloat = 0.02
    gain: Annotated[float, Range(1e-3)] = 2.0
    threshold_ratio: NonNegativeFloat = 0.5
    threshold_quantile: Fraction = 0.05
    false_route: Fraction = 0.01
    score: Score = "linear"
    pool: Pool = "last"
    prefixes: NonNegativeInt = 2
    prefix_length: PositiveInt = 10
    background: PositiveInt = 96
    scope_rows: PositiveInt = 64
    contrast: NonNegativeInt = 8
    rewordings: NonNegativeInt = 4
    rehearse: NonNegativeInt = 4
    memo: NonNegativeInt = 0
    merge_method: str = "ties"
    merge_density: Density = 1.0
    merge_weights: Literal["paper", "published"] = "paper"
    weight_decay: NonNegativeFloat = 0.0
    norm_clamp: NonNegativeFloat | None = None
    chunk_rows: PositiveInt = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("merge_method", self.merge_method, tuple(MERGES))
        if self.merge_method == "slerp" and (self.shards_per_merge != 2 or self.variant == "merge"):
            raise ConfigError(
                "slerp merges two shards, no more: it needs variant=retrieve and "
                "shards_per_merge=2."
            )

    @property
    def density(self) -> float:
        """The share of the matrix that a shard may change: `mask_ratio`, or its default."""
        if self.mask_ratio is not None:
            return self.mask_ratio
        return 1.0 if self.variant == "retrieve" and self.shards_per_merge == 1 else 0.5
