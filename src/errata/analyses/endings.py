"""What the end token alone changes: methods that learn answers with it, and without, on the same edits.

The field's scores cut answers off where the wanted one ends, or have it in the input already: whether the model stops there
is nobody's question. Here answers are free, and a model that was not taught to stop may go on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import errata
from errata.analyses import bars
from errata.analyses.given import Given, measured
from errata.bench.compare import contenders
from errata.config import MethodConfig

METHODS = ("wise", "folio", "grace", "knn-lm", "memoir", "defer", "ft-m", "replay", "ultraedit", "lora")
"""Some of each kind, where no method is named."""
SCORES = ("generated", "cut", "teacher_forced")


def find(given: Given) -> dict[str, Any]:
    """Reliability after all edits by each of `SCORES`, with the end token and without it."""
    names = (given.method,) if given.method else METHODS
    options = [f"{given.method}.{name}={value}" for name, value in given.settings.items()] if given.method else []
    variants: dict[str, MethodConfig] = {}
    for contender in contenders(names, given.base()[0].config, options):
        if contender.method is not None:
            config = errata.method_class(contender.method).config_class.from_dict(contender.settings)
            variants[contender.name] = replace(config, end_token=True)
            variants[f"{contender.name}, no end"] = replace(config, end_token=False)
    found = measured(given, variants)
    return {label: {score: said[score]["reliability"] for score in SCORES} for label, said in found.items()}


def draw(found: Mapping[str, Mapping[str, float | None]]) -> Any:
    """Three bars for each method, with the end token and without."""
    return bars.draw(found, SCORES)
