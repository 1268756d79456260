"""The plug-ins, by name; and their settings."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from errata.continual.architecture.lora import Lora
from errata.continual.architecture.o_lora import OLora
from errata.continual.architecture.packnet import Packnet
from errata.continual.architecture.progressive import Progressive
from errata.continual.config import LearningConfig
from errata.continual.naive import Naive
from errata.continual.optimisation.gpm import Gpm
from errata.continual.optimisation.ogd import Ogd
from errata.continual.optimisation.sam import Sam
from errata.continual.plugin import Plugin
from errata.continual.regularisation.ewc import Ewc
from errata.continual.regularisation.lwf import Lwf
from errata.continual.regularisation.mas import Mas
from errata.continual.regularisation.si import Si
from errata.continual.replay.a_gem import AGem
from errata.continual.replay.derpp import Derpp
from errata.continual.replay.er import Er
from errata.continual.replay.gem import Gem
from errata.continual.replay.mir import Mir
from errata.continual.representation.nearest_mean import NearestMean
from errata.continual.representation.prompt_pool import PromptPool
from errata.errors import UnknownNameError, quoted, suggest

PLUGINS: Mapping[str, type[Plugin]] = MappingProxyType(
    {
        each.__module__.rpartition(".")[2].replace("_", "-"): each
        for each in (
            *(Naive, Ewc, Si, Mas, Lwf, Er, Derpp, Gem, AGem, Mir),
            *(PromptPool, NearestMean, Ogd, Gpm, Sam, Packnet, Lora, OLora, Progressive),
        )
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
            f"there is no plug-in called {quoted(name)}.{suggest(name, PLUGINS)}"
        )
    return PLUGINS[name]


def config_of(name: str, given: Mapping[str, Any]) -> LearningConfig:
    """Return a plug-in's settings, with those that are given.

    Raises:
        UnknownNameError: there is no plug-in of this name.
        ConfigError: a setting is unknown, or not valid.
    """
    return plugin_of(name).config_class.from_dict(given)
