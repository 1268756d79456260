"""Unlearning: train a model not to know what it was trained on, and keep what it shall know."""

from errata.unlearning.config import UnlearningConfig
from errata.unlearning.passages import Passage, read_passages
from errata.unlearning.training import Unlearning, config_of

__all__ = ["Passage", "Unlearning", "UnlearningConfig", "config_of", "read_passages"]
