"""Measures what learning the end token of answers changes, method by method on the same edits.

The field's scores cut answers off where the wanted one ends, or have it in the input already:
whether the model stops there is nobody's question. Here answers are free, and a model that was not
taught to stop may go on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import bars
from command import run

import errata
from errata.analyses.context import AnalysisContext, measured
from errata.bench.runs import ALL, runs_of
from errata.config import MethodConfig

SCORES = ("generated", "cut", "teacher_forced")


def find(context: AnalysisContext) -> dict[str, Any]:
    """Measure reliability by each of `SCORES`, with the end token and without it.

    Of the methods that are named, with commas between them; where none is, of all that need no
    training.
    """
    names = context.method.split(",") if context.method else [ALL]
    options = [
        f"{name}.{setting}={value}" for name in names for setting, value in context.settings.items()
    ]
    variants: dict[str, MethodConfig] = {}
    for each in runs_of(names, context.base()[0].config, options):
        method = errata.method_class(each.method) if each.method else None
        if method is not None and (context.method or not method.needs_training):
            config = method.config_class.from_dict(each.settings)
            variants[each.name] = replace(config, end_token=True)
            variants[f"{each.name}, no end"] = replace(config, end_token=False)
    found = measured(context, variants)
    return {
        label: {score: scores[score]["reliability"] for score in SCORES}
        for label, scores in found.items()
    }


def draw(found: Mapping[str, Mapping[str, float | None]]) -> Any:
    """Draw three bars for each method, with the end token and without."""
    return bars.draw(found, SCORES)


if __name__ == "__main__":
    run(find, draw)
