"""Compares ways to merge shards: WISE (arXiv 2405.14768), table 5 and section 3.3."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import bars
from command import run

from errata.analyses.context import AnalysisContext
from errata.methods.association.wise.config import WiseConfig
from errata.solvers.merging import MERGES

SHARDS = 2


def find(context: AnalysisContext) -> dict[str, Any]:
    """Measure free answers after all edits in two shards, for each way to merge."""
    quota = max(1, math.ceil(len(context.cases) / SHARDS))
    fixed = {
        "variant": "retrieve",
        "shards_per_merge": SHARDS,
        "edits_per_shard": quota,
        "mask_ratio": 0.5,
    }
    config = WiseConfig.from_dict({**fixed, **context.settings})
    return bars.beside(context, {name: replace(config, merge_method=name) for name in MERGES})


draw = bars.draw

if __name__ == "__main__":
    run(find, draw)
