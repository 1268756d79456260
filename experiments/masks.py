"""Measures mask ratios and numbers of shards, and how often masks overlap: WISE, figure 5.

Wang et al., arXiv 2405.14768: k masks that each hold an entry with probability rho share rho^k of
all entries. The shards are merged into one memory; too small a share learns little, too large a one
makes the shards overwrite each other.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from command import run

import errata
from errata.analyses.context import AnalysisContext, measured
from errata.bench.charts import new_figure
from errata.methods.association.wise.config import WiseConfig
from errata.methods.association.wise.method import Wise
from errata.methods.association.wise.overlap import expected_overlap

RATIOS = (0.05, 0.1, 0.2, 0.3, 0.5)
SHARDS = (2, 3, 4, 5)
MEASURES = ("reliability", "generalization", "locality")


def find(context: AnalysisContext) -> dict[str, Any]:
    """Measure the mean of the three measures and the overlap of masks, for each rho and k."""
    config = WiseConfig.from_dict({"variant": "merge", **context.settings})
    edits = len(context.cases)

    def of(rho: float, k: int) -> WiseConfig:
        return replace(
            config, mask_ratio=rho, edits_per_shard=max(1, math.ceil(edits / k)), shards_per_merge=1
        )

    found = measured(context, {f"{rho} {k}": of(rho, k) for rho in RATIOS for k in SHARDS})
    average: list[list[float]] = []
    overlaps: list[list[dict[str, float]]] = []
    base, tokenizer = context.base()
    for rho in RATIOS:
        average.append([])
        overlaps.append([])
        for k in SHARDS:
            said = found[f"{rho} {k}"]["generated"]
            values = [said[name] for name in MEASURES if said[name] is not None]
            average[-1].append(sum(values) / len(values))
            overlaps[-1].append(
                _overlap(errata.get_edit_model(base, of(rho, k), tokenizer), rho, k)
            )
    return {"ratios": RATIOS, "shards": SHARDS, "average": average, "overlap": overlaps}


def _overlap(model: Any, rho: float, k: int) -> dict[str, float]:
    """Return the share of entries in all of k masks, rho^k, and the distance of 95 % of masks."""
    method: Wise = model.method
    masks = torch.stack([method.writer.new_shard(i).mask for i in range(k)])
    size = masks[0].numel()
    share = float(masks.all(0).float().mean())
    theory = expected_overlap(rho, k)
    return {
        "measured": share,
        "expected": theory.every,
        "within": 1.96 * theory.deviation(size) / size,
    }


def draw(found: dict[str, Any]) -> Any:
    """Draw the mean of the measures as a map, with rho^k in each cell."""
    figure, axes = new_figure(6, 3.8)
    axis = axes[0][0]
    shown = axis.imshow(found["average"], cmap="cividis", aspect="auto")
    middle = (max(map(max, found["average"])) + min(map(min, found["average"]))) / 2
    for y, row in enumerate(found["average"]):
        for x, value in enumerate(row):
            overlap = found["overlap"][y][x]
            text = f"{value:.2f}\n{overlap['expected']:.2g}"
            axis.text(
                x,
                y,
                text,
                ha="center",
                va="center",
                fontsize=8,
                color="black" if value > middle else "white",
            )
    axis.set_xticks(range(len(found["shards"])), found["shards"])
    axis.set_yticks(range(len(found["ratios"])), found["ratios"])
    axis.set_xlabel("shards k")
    axis.set_ylabel("share of the matrix, rho")
    axis.set_title("mean of the measures, and rho^k below it", fontsize=11)
    figure.colorbar(shown, ax=axis)
    return figure


if __name__ == "__main__":
    run(find, draw)
