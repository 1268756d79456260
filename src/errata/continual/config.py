"""`LearningConfig`: how a model learns tasks one after another, whatever the plug-in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from errata.config import MethodConfig, NonNegativeFloat, PositiveInt


@dataclass(frozen=True)
class LearningConfig(MethodConfig):
    """Settings of learning; a plug-in adds its own.

    Attributes:
        trains: `linear`: the matrices of the blocks; `values`: the value matrices of `blocks`
            blocks up to `layer`; `all`: every weight. Plug-ins that put something beside the model
            train that, and look here for the matrices beside which they put it.
        blocks: see `trains`.
        epochs: times that each example of a task is seen.
        batch: examples at a step.
        lr: the optimizer's learning rate.
        optimizer: `adamw` without weight decay, or plain `sgd`.
    """

    method: ClassVar[str] = "learn"

    trains: Literal["linear", "values", "all"] = "linear"
    blocks: PositiveInt = 3
    epochs: PositiveInt = 10
    batch: PositiveInt = 8
    lr: NonNegativeFloat = 1e-4
    optimizer: Literal["adamw", "sgd"] = "adamw"
