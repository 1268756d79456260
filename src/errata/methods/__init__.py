"""`METHODS`: one line per method, imported on first use.

Other packages add methods by the entry point `errata.methods`. A method with certain settings may
have a name of its own (its `variants`), which is accepted and shown wherever a method's name is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import EntryPoints, entry_points
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
        "defer": "errata.methods.association.defer:Defer",
        "memoir": "errata.methods.association.memoir.method:Memoir",
        "neuraldb": "errata.methods.association.neuraldb:NeuralDb",
        "kv-prefix": "errata.methods.association.kv_prefix.method:KvPrefix",
        "memorizing": "errata.methods.association.memorizing.method:Memorizing",
        "retro": "errata.methods.association.retro.method:Retro",
        "memoria": "errata.methods.association.memoria.method:Memoria",
        "memoryllm": "errata.methods.association.memoryllm.method:MemoryLlm",
        "t-patcher": "errata.methods.association.t_patcher:TPatcher",
        "knn-lm": "errata.methods.association.knn_lm.method:KnnLm",
        "spalm": "errata.methods.association.spalm:Spalm",
        "lora": "errata.methods.association.lora:Lora",
        "adapter": "errata.methods.association.adapter:Adapter",
        "prefix-tuning": "errata.methods.association.prefix:PrefixTuning",
        "prompt-tuning": "errata.methods.association.prompt_tuning:PromptTuning",
        "bitfit": "errata.methods.association.bitfit:BitFit",
        "ft": "errata.methods.mastery.ft:FineTuning",
        "locft-bf": "errata.methods.mastery.locft:LocFt",
        "ewc": "errata.methods.mastery.ewc:Ewc",
        "replay": "errata.methods.mastery.replay:Replay",
        "rome": "errata.methods.mastery.rome:Rome",
        "memit": "errata.methods.mastery.memit:Memit",
        "alphaedit": "errata.methods.mastery.alphaedit:AlphaEdit",
        "ultraedit": "errata.methods.mastery.ultraedit:UltraEdit",
        "mend": "errata.methods.mastery.mend.method:Mend",
        "knowledge-neurons": ("errata.methods.mastery.knowledge_neurons.method:KnowledgeNeurons"),
        "ike": "errata.methods.recognition.ike:Ike",
        "rag": "errata.methods.recognition.rag:Rag",
        "scr": "errata.methods.recognition.scr:Scr",
        "serac": "errata.methods.recognition.serac.method:Serac",
        "pipeline": "errata.methods.association.pipeline.method:TwoMemories",
    }
)

DEFAULT = "folio"
"""The method used when none is named."""
IN_PIPELINE = ("rag", "wise")
"""The methods of a pipeline that names none: the first, and the one behind it."""


def method_names() -> list[str]:
    """Return the names of all methods, those of other packages included."""
    return [*METHODS, *sorted({point.name for point in _entry_points()} - set(METHODS))]


def method_class(name: str) -> type[Method]:
    """Return the class of a method.

    Raises:
        UnknownNameError: no such method; the nearest name is suggested.
    """
    if name in METHODS:
        module, attribute = METHODS[name].split(":")
        builtin: type[Method] = getattr(import_module(module), attribute)
        return builtin
    for point in _entry_points():
        if point.name == name:
            loaded: type[Method] = point.load()
            return loaded
    known = variants()
    if name in known:
        method, settings = known[name]
        with_settings = ", ".join(f"{key}={value}" for key, value in settings.items())
        raise UnknownNameError(
            f"{name!r} is the method {method!r} with {with_settings}; method_config({name!r}) "
            "makes its settings."
        )
    raise UnknownNameError(
        f"there is no method {name!r}.{suggest(name, known)} See `errata methods`."
    )


def variants() -> dict[str, tuple[str, dict[str, Any]]]:
    """Map every name of a method, its own and its variants', to (method, the name's settings)."""
    by_name: dict[str, tuple[str, dict[str, Any]]] = {}
    for method in method_names():
        by_name[method] = (method, {})
        for name, settings in method_class(method).variants.items():
            by_name[name] = (method, dict(settings))
    return by_name


def resolve(name: str) -> tuple[type[Method], dict[str, Any]]:
    """Return (the method's class, the name's settings) for any name of a method.

    Raises:
        UnknownNameError: no method has that name; the nearest is suggested.
    """
    if name in METHODS:  # no need to load them all
        return method_class(name), {}
    method, settings = variants().get(name, (name, {}))
    return method_class(method), settings


def name_of(method: str, settings: Mapping[str, Any]) -> str:
    """Return a saved method's name with its settings.

    It is `method` where the method is not installed or the settings do not fit it.
    """
    with contextlib.suppress(UnknownNameError, ConfigError):
        cls = method_class(method)
        return cls.called(cls.config_class.from_dict(settings))
    return method


def method_config(name: str, **settings: Any) -> MethodConfig:
    """Return the settings of a method by any of its names; those given override the name's.

    Raises:
        UnknownNameError: no method has that name.
        ConfigError: a setting is unknown or out of range.
    """
    cls, own = resolve(name)
    return cls.config_class.from_dict({**own, **settings})


def _entry_points() -> EntryPoints:
    return entry_points(group="errata.methods")
