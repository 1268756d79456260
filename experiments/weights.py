"""Measures how far an editor has moved each matrix as the stream grows: ||dW|| / ||W||.

Editors that write into the weights lose the model where this grows without bound. What lies beside
the weights moves none of them, and is refused.
"""

from __future__ import annotations

from typing import Any

from command import run

import errata
from errata.analyses.context import AnalysisContext, streamed
from errata.bench.charts import new_figure
from errata.errors import UsageError
from errata.lm.weights import read_weight
from errata.patches.delta import WeightDelta

POINTS = 20
"""Times that the weights are looked at."""


def find(context: AnalysisContext) -> dict[str, Any]:
    """Measure the relative change of each matrix after each part of the stream.

    Raises:
        UsageError: the method changes no weights.
    """
    config = context.config()
    base, tokenizer = context.base()
    model = errata.get_edit_model(base, config, tokenizer)
    patch = model.method.patch
    if not isinstance(patch, WeightDelta):
        raise UsageError(
            f"{config.method} changes no weights; give a method of mastery with -m, "
            "see `errata methods`."
        )
    with model.disable_edits():
        norms = {
            path: float(read_weight(base.get_submodule(path)).float().norm())
            for path in patch.deltas
        }
    found: dict[str, Any] = {
        "method": config.method,
        "edits": [],
        "change": {path: [] for path in norms},
    }
    for edits in streamed(context, model, POINTS):
        found["edits"].append(edits)
        for path, norm in norms.items():
            found["change"][path].append(float(patch.deltas[path].float().norm()) / norm)
    return found


def draw(found: dict[str, Any]) -> Any:
    """Draw a line for each matrix."""
    figure, axes = new_figure(7, 3.6)
    colours = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
    for number, (path, values) in enumerate(found["change"].items()):
        axes[0][0].plot(
            found["edits"],
            values,
            color=colours[number % len(colours)],
            marker="os^vD"[number % 5],
            label=path,
        )
    axes[0][0].set_xlabel("edits")
    axes[0][0].set_ylabel("‖ΔW‖ / ‖W‖")
    axes[0][0].set_ylim(bottom=0)
    axes[0][0].legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


if __name__ == "__main__":
    run(find, draw)
