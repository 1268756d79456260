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
        confidence: the probability that each token of an answer gets, at least.
        min_subject_overlap: share of an edit's subject that a prompt must mention, words weighted
            by how rare they are.
        threshold: score from which an edit answers a prompt.
        false_route: of wordings that ask different things of one subject, the share that may score
            one half or more.
        background: self-generated texts that the router is calibrated on.
        edits_per_file: edits in one folio, which is one file on disk.
    """

    method: ClassVar[str] = "folio"
    renamed: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"mentioned": "min_subject_overlap", "leaves": "edits_per_file"}
    )
    dropped: ClassVar[frozenset[str]] = frozenset({"min_threshold", "least", "gain", "steps"})

    confidence: float = 0.9999
    min_subject_overlap: float = 0.7
    threshold: float | None = None
    false_route: float = 0.0125
    background: int = 24
    edits_per_file: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("background", "edits_per_file"):
            check_range(name, getattr(self, name), 1, math.inf)
        shares = ("confidence", "min_subject_overlap", "threshold", "false_route")
        for name in shares:
            if getattr(self, name) is not None:
                check_range(name, getattr(self, name), 0, 1)
