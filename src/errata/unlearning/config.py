"""`UnlearningConfig`: how a model is trained to forget; `SisaConfig`: how it learns by shards."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from errata.config import Fraction, MethodConfig, NonNegativeFloat, NonNegativeInt, PositiveInt


@dataclass(frozen=True)
class UnlearningConfig(MethodConfig):
    """Settings of unlearning.

    The loss is `forget_weight` * L(forget) + `retain_weight` * L(retain); which L(forget), says the
    objective. Settings that are left out are the objective's own.

    Attributes:
        trains: `low-rank`: low-rank matrices beside all linear layers, merged into them at the end;
            `values`: the value matrices of `blocks` blocks up to `layer`; `all`: every weight;
            `masks`: which weights of the upper half's linear layers are set to zero.
        rank: of the low-rank matrices; they count twice.
        blocks: see `trains`.
        epochs: times that each passage to be forgotten is seen.
        batch: passages of each kind at a step.
        lr: AdamW's learning rate; None: 1e-4 for `low-rank`, .2 for `masks`, 1e-5 otherwise.
        retain: `nll`: the passages to keep are learned; `kl`: what the model makes of them stays.
        forget_weight, retain_weight: see above.
        beta: of the objective.
        delta: SimNPO's margin.
        steering: length of the vector to which RMU steers states, in mean lengths of the states.
        scale: how far task-vector negation goes.
        sparsity: weight of the share of weights that `masks` set to zero.
        save_every: steps between two saves, from which an interrupted run goes on.
    """

    method: ClassVar[str] = "unlearning"

    trains: Literal["low-rank", "values", "all", "masks"] = "low-rank"
    rank: PositiveInt = 16
    blocks: PositiveInt = 3
    epochs: PositiveInt = 5
    batch: PositiveInt = 8
    lr: NonNegativeFloat | None = None
    retain: Literal["nll", "kl"] = "nll"
    forget_weight: NonNegativeFloat = 1.0
    retain_weight: NonNegativeFloat = 1.0
    beta: NonNegativeFloat = 0.1
    delta: NonNegativeFloat = 0.0
    steering: NonNegativeFloat = 2.0
    scale: Fraction = 0.5
    sparsity: NonNegativeFloat = 20.0
    save_every: NonNegativeInt = 50

    @property
    def learning_rate(self) -> float:
        """AdamW's learning rate."""
        usual = {"low-rank": 1e-4, "masks": 0.2}
        return self.lr if self.lr is not None else usual.get(self.trains, 1e-5)


@dataclass(frozen=True)
class SisaConfig(MethodConfig):
    """Settings of SISA.

    Attributes:
        shards: disjoint parts of the records, each learned by a LoRA of its own.
        slices: parts of a shard that are learned one after another, with a checkpoint after each.
        epochs: times that a shard's records would each be seen without slices. With them each
            slice's turn takes 2 * `epochs` / (`slices` + 1), rounded up, which is as much work.
        batch: records at a step.
        lr: AdamW's learning rate.
        rank: of the LoRAs; they count twice.
    """

    method: ClassVar[str] = "sisa"

    shards: PositiveInt = 10
    slices: PositiveInt = 5
    epochs: PositiveInt = 30
    batch: PositiveInt = 8
    lr: NonNegativeFloat = 2e-3
    rank: PositiveInt = 8

    @property
    def epochs_of_a_slice(self) -> int:
        """Times that what is there so far is seen at a slice's turn."""
        return math.ceil(2 * self.epochs / (self.slices + 1))
