"""Settings of Folio, see `folio.py`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from errata.config import MethodConfig, check_range


@dataclass(frozen=True)
class FolioConfig(MethodConfig):
    """Settings of Folio.

    Attributes:
        gain: factor on the values that are solved.
        confidence: a value is solved when its token has this probability.
        steps: L-BFGS iterations per edit, at most.
        mentioned: the share of the subject that a prompt must mention, its rare words counting
            most.
        threshold: a leaf speaks when its score is not below; None: `least`, or more where
            `false_route` asks for it.
        least: the lowest threshold.
        false_route: of pairs of prompts of the model's own making that it answers differently, the
            share that may reach the threshold.
        background: texts of the model's own making.
        leaves: edits of a folio, which are kept in one file.
    """

    method: ClassVar[str] = "folio"

    gain: float = 1.0
    confidence: float = 0.9999
    steps: int = 50
    mentioned: float = 0.7
    threshold: float | None = None
    least: float = 0.3
    false_route: float = 0.05
    background: int = 512
    leaves: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("steps", "background", "leaves"):
            check_range(name, getattr(self, name), 1, math.inf)
        check_range("gain", self.gain, 0, math.inf)
        for name in ("confidence", "mentioned", "threshold", "least", "false_route"):
            if getattr(self, name) is not None:
                check_range(name, getattr(self, name), 0, 1)
