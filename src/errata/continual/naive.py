"""Naive: fine-tuning on one task after another, and nothing against forgetting."""

from __future__ import annotations

from errata.continual.plugin import Plugin


class Naive(Plugin):
    """Fine-tunes on each task alone."""

    kind = "none"
