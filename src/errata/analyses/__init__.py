"""Analyses of an edited model, one per file: each finds numbers and draws them."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from errata.errors import UnknownNameError, suggest

ANALYSES = {
    "router": "a side memory's activations and router threshold, for several numbers of edits",
    "layers": "a side memory at one block after another",
    "tracing": "causal tracing: which states carry a fact",
    "lens": "the logit lens: what each block would predict, before and after editing",
    "readout": "what a changed matrix says in words: is an edit legible in the weights?",
    "neurons": "knowledge neurons: which neurons of the feed-forward blocks facts hang on",
}
"""What `errata analyze` can analyse; `failures` reads measurements, see `errata failures`."""


def analysis(name: str) -> Any:
    """Return the module of an analysis: `find(context)` and `draw(found)`.

    Raises:
        UnknownNameError: there is none of this name.
    """
    if name not in ANALYSES:
        raise UnknownNameError(f"there is no analysis {name!r}.{suggest(name, ANALYSES)}")
    return import_module(f"errata.analyses.{name}")
