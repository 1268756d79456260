"""Continual learning: a model learns tasks one after another, and what it forgets is measured."""

from errata.continual.charts import heat_map
from errata.continual.config import LearningConfig
from errata.continual.measures import MEANINGS, summary
from errata.continual.plugin import Plugin
from errata.continual.plugins import PLUGINS, config_of, plugin_of
from errata.continual.run import Continual
from errata.continual.task import Task, read_tasks
from errata.continual.writing import write

__all__ = [
    "MEANINGS",
    "PLUGINS",
    "Continual",
    "LearningConfig",
    "Plugin",
    "Task",
    "config_of",
    "heat_map",
    "plugin_of",
    "read_tasks",
    "summary",
    "write",
]
