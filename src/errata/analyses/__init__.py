"""Looking closer: an analysis a file. Each finds numbers and draws them; `errata analyze NAME`
keeps both.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from errata.errors import UnknownNameError, suggest

ANALYSES = {
    "router": "activations of a side memory's router, and its threshold, for several numbers of edits",
    "layers": "a side memory at one block after another",
    "masks": "shares of the matrix by numbers of shards, and how often masks meet",
    "anchors": "shards whose masks overlap, against shards that share nothing",
    "merges": "ways to make one memory of several shards",
    "scaling": "Merge, Retrieve, Retrieve with replay and perfect routing as the stream grows; retrieval precision",
    "inference": "what a prompt and a token cost as the stream grows",
    "ablations": "WISE without each of its parts",
    "endings": "what it changes alone that answers are learned with the end token",
    "radii": "a codebook's radii as edits come in",
    "tracing": "causal tracing: which states carry a fact",
    "lens": "the logit lens: what each block would say, before and after editing",
    "weights": "how far an editor has moved each matrix",
}
"""What can be analysed by `errata analyze`; `failures` reads measurements, see `errata failures`.
"""


def analysis(name: str) -> Any:
    """Return the module of an analysis: `find(context)` and `draw(found)`.

    Raises:
        UnknownNameError: there is none of this name.
    """
    if name not in ANALYSES:
        raise UnknownNameError(f"there is no analysis {name!r}.{suggest(name, ANALYSES)}")
    return import_module(f"errata.analyses.{name}")
