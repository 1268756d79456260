"""Unlearning: train a model not to know what it was trained on, and keep what it shall know.

Or, with SISA, train it so that what it learned can be taken out again.
"""

from errata.unlearning.config import SisaConfig, UnlearningConfig
from errata.unlearning.passages import Passage, read_passages
from errata.unlearning.shard_answers import Answer, answers, merged
from errata.unlearning.shard_folder import ShardFolder
from errata.unlearning.sisa import Sisa
from errata.unlearning.subnetwork import Subnetwork
from errata.unlearning.training import Unlearning, config_of

__all__ = [
    "Answer",
    "Passage",
    "ShardFolder",
    "Sisa",
    "SisaConfig",
    "Subnetwork",
    "Unlearning",
    "UnlearningConfig",
    "answers",
    "config_of",
    "merged",
    "read_passages",
]
