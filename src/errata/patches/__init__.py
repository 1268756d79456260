"""What edits leave in a model: patches, which install on an `LM` and come off without a trace."""

from errata.patches.adapter import Adapters
from errata.patches.base import Patch, TrainablePatch
from errata.patches.context import ContextFor, ContextPatch
from errata.patches.delta import WeightDelta
from errata.patches.routed import RoutedModule, RoutedPatch
from errata.patches.virtual_tokens import VirtualTokens

__all__ = [
    "Adapters",
    "ContextFor",
    "ContextPatch",
    "Patch",
    "RoutedModule",
    "RoutedPatch",
    "TrainablePatch",
    "VirtualTokens",
    "WeightDelta",
]
