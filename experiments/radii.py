"""Measures the radii of GRACE's codebook as the stream grows: WISE, figure 10.

Radii grow where edits agree and halve where they collide.

Hartvigsen et al., GRACE, arXiv 2211.11031. It also counts how many of the cases' other prompts fall
into some key's reach.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from command import run

import errata
from errata.analyses.context import AnalysisContext, streamed
from errata.bench.charts import new_figure
from errata.errors import UsageError
from errata.methods.association.grace.patch import Codebook
from errata.model import EditModel

POINTS = 25
"""Times that the codebook is looked at."""


def find(context: AnalysisContext) -> dict[str, Any]:
    """Measure radii after each part of the stream, and the share of other prompts in reach.

    Raises:
        UsageError: the method keeps no codebook.
    """
    config = context.config()
    base, tokenizer = context.base()
    model = errata.get_edit_model(base, config, tokenizer)
    book = model.method.patch
    if not isinstance(book, Codebook):
        raise UsageError(
            f"{config.method} keeps no codebook; give a method with -m that has keys with a radius."
        )
    others = {
        "rephrasings": [prompt for case in context.cases for prompt in case.rephrases],
        "other prompts": [probe.prompt for case in context.cases for probe in case.locality],
    }
    found: dict[str, Any] = {
        "method": config.method,
        "edits": [],
        "radii": [],
        "in reach": {name: [] for name in others},
    }
    for edits in streamed(context, model, POINTS):
        found["edits"].append(edits)
        found["radii"].append(sorted(float(entry.radius) for entry in book.entries.values()))
        for name, prompts in others.items():
            found["in reach"][name].append(_in_reach(model, prompts))
    return found


def _in_reach(model: EditModel, prompts: Sequence[str]) -> float | None:
    """The share of prompts whose answer changes, as it does within a key's radius."""
    if not prompts:
        return None
    before, after = model.ask_base(prompts, max_new_tokens=8), model.ask(prompts, max_new_tokens=8)
    changed = sum(a != b for a, b in zip(before, after, strict=True))
    return changed / len(prompts)


def draw(found: dict[str, Any]) -> Any:
    """Draw quantiles of the radii, and what is in reach, over the edits."""
    figure, axes = new_figure(9, 3.4, columns=2)
    edits, radii = found["edits"], found["radii"]
    for share, style in ((0.05, ":"), (0.5, "-"), (0.95, "--")):
        axes[0][0].plot(
            edits,
            [r[int(share * (len(r) - 1))] for r in radii],
            style,
            color="#0072b2",
            label=f"{share:.0%}",
        )
    axes[0][0].set_title("radii: quantiles", fontsize=11)
    for (name, values), colour in zip(
        found["in reach"].items(), ("#009e73", "#d55e00"), strict=True
    ):
        if values[0] is not None:
            axes[0][1].plot(edits, values, color=colour, label=name)
    axes[0][1].set_ylim(-0.03, 1.03)
    axes[0][1].set_title("answers that change", fontsize=11)
    for axis in axes[0]:
        axis.set_xlabel("edits")
        axis.legend(fontsize=8)
    return figure


if __name__ == "__main__":
    run(find, draw)
