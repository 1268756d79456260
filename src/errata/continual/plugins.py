"""The plug-ins, by name; and their settings."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from errata.continual.config import LearningConfig
from errata.continual.naive import Naive
from errata.continual.plugin import Plugin
from errata.continual.regularisation.ewc import Ewc
from errata.continual.replay.er import Er
from errata.errors import UnknownNameError, quoted, suggest

PLUGINS: Mapping[str, type[Plugin]] = MappingProxyType(
    {
        each.__module__.rpartition(".")[2].replace("_", "-"): each
        for each in (Naive, Ewc, Er)
    }
)
"""Each is called as its file."""


def plugin_of(name: str) -> type[Plugin]:
    """Return a plug-in.

    Raises:
        UnknownNameError: there is none of this name.
    """
    if name not in PLUGINS:
        raise UnknownNameError(
            f"there is no plug-in called {quoted(name)}.{suggest(name, PLUGINS)} "
            f"There are {', '.join(PLUGINS)}."
        )
    return PLUGINS[name]


def config_of(name: str, given: Mapping[str, Any]) -> LearningConfig:
    """Return a plug-in's settings, with those that are given.

    Raises:
        UnknownNameError: there is no plug-in of this name.
        ConfigError: a setting is unknown, or not valid.
    """
    return plugin_of(name).config_class.from_dict(given)
