"""Measures a side memory at one block after another: WISE (arXiv 2405.14768), figure 4."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from errata.analyses.context import AnalysisContext, measured
from errata.bench.charts import new_figure
from errata.lm import LM
from errata.methods.association.wise.config import WiseConfig

MEASURES = ("reliability", "generalization", "locality")
MOST = 12
"""The most blocks that are tried: evenly spaced, with the first and the last."""


def find(context: AnalysisContext) -> dict[str, Any]:
    """Measure free answers after all edits, for each block."""
    base, tokenizer = context.base()
    count = LM(base, tokenizer).architecture.n_layers
    layers = (
        range(count)
        if count <= MOST
        else sorted({round(i * (count - 1) / (MOST - 1)) for i in range(MOST)})
    )
    config = WiseConfig.from_dict(context.settings)
    found = measured(context, {str(layer): replace(config, layer=layer) for layer in layers})
    return {
        "layers": list(layers),
        **{name: [scores["generated"][name] for scores in found.values()] for name in MEASURES},
    }


def draw(found: dict[str, Any]) -> Any:
    """Draw a line for each measure."""
    figure, axes = new_figure(7, 3.4)
    for name, colour, marker in zip(
        MEASURES, ("#0072b2", "#d55e00", "#009e73"), "os^", strict=True
    ):
        axes[0][0].plot(found["layers"], found[name], color=colour, marker=marker, label=name)
    axes[0][0].set_xticks(found["layers"])
    axes[0][0].set_xlabel("block")
    axes[0][0].set_ylim(-0.03, 1.03)
    axes[0][0].legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return figure
