"""`FolioConfig`: the settings of Folio."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

from errata.config import MethodConfig, check_range


@dataclass(frozen=True)
class FolioConfig(MethodConfig):
    """Settings of Folio.

    Attributes:
        gain: factor on the values once they are solved for.
        confidence: probability of each answer token at which its value counts as solved.
        steps: L-BFGS iterations per edit, at most.
        min_subject_overlap: share of an edit's subject that a prompt must mention, words weighted
            by how rare they are.
        threshold: score from which an edit answers a prompt; None calibrates it, see
            `false_route` and `min_threshold`.
        min_threshold: lower limit of the calibrated threshold.
        false_route: among pairs of self-generated prompts that the base model continues
            differently, the share that may score above the calibrated threshold.
        background: self-generated texts that the router is calibrated on.
        edits_per_file: edits in one folio, which is one file on disk.
    """

    method: ClassVar[str] = "folio"
    renamed: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"mentioned": "min_subject_overlap", "least": "min_threshold", "leaves": "edits_per_file"}
    )

    gain: float = 1.0
    confidence: float = 0.9999
    steps: int = 50
    min_subject_overlap: float = 0.7
    threshold: float | None = None
    min_threshold: float = 0.3
    false_route: float = 0.05
    background: int = 96
    edits_per_file: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("steps", "background", "edits_per_file"):
            check_range(name, getattr(self, name), 1, math.inf)
        check_range("gain", self.gain, 0, math.inf)
        shares = ("confidence", "min_subject_overlap", "threshold", "min_threshold", "false_route")
        for name in shares:
            if getattr(self, name) is not None:
                check_range(name, getattr(self, name), 0, 1)
