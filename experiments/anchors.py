"""Compares overlapping with disjoint masks: WISE (arXiv 2405.14768), section 2.3.3, table 13.

The paper's argument: entries that lie in several masks anchor the shards to each other, so that
they merge without conflict.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import bars
from command import run

from errata.analyses.context import AnalysisContext
from errata.methods.association.wise.config import WiseConfig

RATIOS = {2: (0.2, 0.3, 0.5), 5: (0.1, 0.2)}
"""Shards -> shares of the matrix, whose product is at most 1, so that disjoint masks have room."""


def find(context: AnalysisContext) -> dict[str, Any]:
    """Measure free answers of the merged memory, for each number of shards and mask ratio."""
    config = WiseConfig.from_dict({"variant": "merge", **context.settings})
    variants = {}
    for shards, ratios in RATIOS.items():
        quota = max(1, math.ceil(len(context.cases) / shards))
        for ratio in ratios:
            for masks in ("random", "disjoint"):
                label = f"{shards} shards of {ratio}, {masks}"
                variants[label] = replace(
                    config, masks=masks, mask_ratio=ratio, edits_per_shard=quota
                )
    return bars.beside(context, variants)


draw = bars.draw

if __name__ == "__main__":
    run(find, draw)
