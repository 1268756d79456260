"""`METHODS`: one line a method, loaded when it is asked for. Others add theirs by the entry point `errata.methods`."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import entry_points
from types import MappingProxyType

from errata.errors import UnknownNameError, suggest
from errata.methods.base import Method

METHODS: Mapping[str, str] = MappingProxyType(
    {
        "wise": "errata.methods.association.wise:Wise",
        "folio": "errata.methods.association.folio:Folio",
        "grace": "errata.methods.association.grace:Grace",
        "defer": "errata.methods.association.defer:Defer",
        "memoir": "errata.methods.association.memoir:Memoir",
        "knn-lm": "errata.methods.association.knn_lm:KnnLm",
        "lora": "errata.methods.association.lora:Lora",
        "adapter": "errata.methods.association.adapter:Adapter",
        "prefix-tuning": "errata.methods.association.prefix:PrefixTuning",
        "prompt-tuning": "errata.methods.association.prompt_tuning:PromptTuning",
        "bitfit": "errata.methods.association.bitfit:BitFit",
        "ft": "errata.methods.mastery.ft:FineTuning",
        "ewc": "errata.methods.mastery.ewc:Ewc",
        "replay": "errata.methods.mastery.replay:Replay",
        "rome": "errata.methods.mastery.rome:Rome",
        "memit": "errata.methods.mastery.memit:Memit",
        "alphaedit": "errata.methods.mastery.alphaedit:AlphaEdit",
        "ultraedit": "errata.methods.mastery.ultraedit:UltraEdit",
        "mend": "errata.methods.mastery.mend:Mend",
        "ike": "errata.methods.recognition.ike:Ike",
        "rag": "errata.methods.recognition.rag:Rag",
        "serac": "errata.methods.recognition.serac:Serac",
    }
)


def method_names() -> list[str]:
    """Names of all methods, those of other packages included."""
    return [*METHODS, *sorted({point.name for point in entry_points(group="errata.methods")} - set(METHODS))]


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
    raise UnknownNameError(f"there is no method {name!r}.{suggest(name, method_names())} See `errata methods`.")
