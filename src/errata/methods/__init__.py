"""`METHODS`: one line a method, loaded when it is asked for. Others add theirs by the entry point
`errata.methods`.

A method with other settings may have a name of its own (its `variants`). Wherever a name is taken
or shown, it may be one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import Any

from errata.config import MethodConfig
from errata.errors import ConfigError, UnknownNameError, suggest
from errata.methods.base import Method

METHODS: Mapping[str, str] = MappingProxyType(
    {
        "wise": "errata.methods.association.wise.method:Wise",
        "folio": "errata.methods.association.folio.method:Folio",
        "grace": "errata.methods.association.grace.method:Grace",
        "defer": "errata.methods.association.defer.method:Defer",
        "memoir": "errata.methods.association.memoir.method:Memoir",
        "knn-lm": "errata.methods.association.knn_lm.method:KnnLm",
        "lora": "errata.methods.association.lora:Lora",
        "adapter": "errata.methods.association.adapter:Adapter",
        "prefix-tuning": "errata.methods.association.prefix:PrefixTuning",
        "prompt-tuning": "errata.methods.association.prompt_tuning:PromptTuning",
        "bitfit": "errata.methods.association.bitfit.method:BitFit",
        "ft": "errata.methods.mastery.ft:FineTuning",
        "ewc": "errata.methods.mastery.ewc:Ewc",
        "replay": "errata.methods.mastery.replay:Replay",
        "rome": "errata.methods.mastery.rome:Rome",
        "memit": "errata.methods.mastery.memit:Memit",
        "alphaedit": "errata.methods.mastery.alphaedit:AlphaEdit",
        "ultraedit": "errata.methods.mastery.ultraedit:UltraEdit",
        "mend": "errata.methods.mastery.mend.method:Mend",
        "ike": "errata.methods.recognition.ike:Ike",
        "rag": "errata.methods.recognition.rag:Rag",
        "serac": "errata.methods.recognition.serac.method:Serac",
    }
)

DEFAULT = "folio"
"""The method of who asks for none."""


def method_names() -> list[str]:
    """Names of all methods, those of other packages included."""
    return [
        *METHODS,
        *sorted({point.name for point in entry_points(group="errata.methods")} - set(METHODS)),
    ]


def method_class(name: str) -> type[Method]:
    """The class behind a method's name.

    Raises:
        UnknownNameError: no such method; the nearest name is suggested.
    """
    if name in METHODS:
        module, attribute = METHODS[name].split(":")
        found: type[Method] = getattr(import_module(module), attribute)
        return found
    for point in entry_points(group="errata.methods"):
        if point.name == name:
            loaded: type[Method] = point.load()
            return loaded
    known = variants()
    if name in known:
        method, settings = known[name]
        said = ", ".join(f"{key}={value}" for key, value in settings.items())
        raise UnknownNameError(
            f"{name!r} is the method {method!r} with {said}; method_config({name!r}) makes its settings."
        )
    raise UnknownNameError(
        f"there is no method {name!r}.{suggest(name, known)} See `errata methods`."
    )


def variants() -> dict[str, tuple[str, dict[str, Any]]]:
    """Every name that a method goes by -> (method, the settings that the name stands for; none for
    its own name).
    """
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for method in method_names():
        found[method] = (method, {})
        found |= {
            name: (method, dict(settings))
            for name, settings in method_class(method).variants.items()
        }
    return found


def resolve(name: str) -> tuple[type[Method], dict[str, Any]]:
    """(the method behind any name, the settings that the name stands for).

    Raises:
        UnknownNameError: no method goes by that name; the nearest is suggested.
    """
    if name in METHODS:  # no need to load them all
        return method_class(name), {}
    method, settings = variants().get(name, (name, {}))
    return method_class(method), settings


def name_of(method: str, settings: Mapping[str, Any]) -> str:
    """What a saved method is called with its settings; its own name where it is not at hand or they
    do not fit it.
    """
    with contextlib.suppress(UnknownNameError, ConfigError):
        found = method_class(method)
        return found.called(found.config_class.from_dict(settings))
    return method


def method_config(name: str, **settings: Any) -> MethodConfig:
    """The settings of a method by any of its names, those given above what the name stands for.

    Raises:
        UnknownNameError: no method goes by that name.
        ConfigError: a setting is unknown or out of range.
    """
    method, own = resolve(name)
    return method.config_class.from_dict({**own, **settings})
