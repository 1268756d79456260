"""From one model to another: corrections taught, parts of weights taken, edits carried over."""

from __future__ import annotations

from errata.transfer.distillation import Distillation, DistillationConfig
from errata.transfer.moving import Moved, move
from errata.transfer.parametric import ParametricTransfer, ParametricTransferConfig
from errata.transfer.spaces import Bridge, match_layers

__all__ = [
    "Bridge",
    "Distillation",
    "DistillationConfig",
    "Moved",
    "ParametricTransfer",
    "ParametricTransferConfig",
    "match_layers",
    "move",
]
