"""Atlas: an invented world, and a small language model that knows it. See docs/atlas.md."""

from __future__ import annotations

from pathlib import Path

from errata.atlas.cases import make_cases, max_cases, training_cases
from errata.atlas.prose import background_texts
from errata.atlas.world import WORLD_SEED, Entity, Fact, TwoHop, World, build_world

__all__ = [
    "WORLD_SEED", "Entity", "Fact", "TwoHop", "World", "atlas_path", "background_texts",
    "build_world", "make_cases", "max_cases", "training_cases",
]  # fmt: skip


def atlas_path() -> Path:
    """The folder of the bundled model, for `from_pretrained`."""
    return Path(__file__).parent / "model"
