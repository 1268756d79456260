"""The key-value cache of a call: `cache` in transformers from 5.24 on, `past_key_values` before."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, MutableMapping
from typing import Any

import transformers
from torch import nn

from errata.errors import ArchitectureError

NAMES = ("cache", "past_key_values")
"""What transformers calls it, the newer name first."""


def cache_name(module: nn.Module) -> str:
    """Return what the forward of a model, or of its body, calls its key-value cache.

    Raises:
        ArchitectureError: it keeps a cache, by a name that is not known here; then nobody could
            tell more of an answer from a new prompt.
    """
    parameters = inspect.signature(module.forward).parameters
    known = next((name for name in NAMES if name in parameters), None)
    if known is None and "use_cache" in parameters:
        raise ArchitectureError(
            f"{type(module).__name__} keeps a cache, but its forward calls it neither "
            f"{' nor '.join(NAMES)} (transformers {transformers.__version__}); editing needs to "
            "see it. Another version of transformers may do."
        )
    return known or NAMES[-1]


def cache_in(named: Mapping[str, Any]) -> Any:
    """Return the cache among a call's arguments or in its output; None where there is none."""
    # an output that is asked for it by the older name warns whoever uses the model
    return next((held for name, held in named.items() if name in NAMES and held is not None), None)


def name_cache(arguments: MutableMapping[str, Any], name: str) -> None:
    """Give the cache among a call's arguments, by whichever name it is there, one name."""
    for other in NAMES:
        if other != name and other in arguments:
            arguments.setdefault(name, arguments.pop(other))
