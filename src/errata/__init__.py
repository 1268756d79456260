"""errata: lifelong knowledge editing for language models. The public names, nothing else.

A name is imported when it is first used, so that `errata --help` need not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from errata.cases import Case, Probe, read_cases
    from errata.config import MethodConfig
    from errata.edit import Edit, Example, read_edits
    from errata.errors import ErrataError
    from errata.evaluation import evaluate
    from errata.lm import LM
    from errata.measures import Evaluation
    from errata.methods import method_class, method_config, method_names
    from errata.methods.association.adapter import AdapterConfig
    from errata.methods.association.bitfit import BitFitConfig
    from errata.methods.association.defer import DeferConfig
    from errata.methods.association.folio.config import FolioConfig
    from errata.methods.association.grace.method import GraceConfig
    from errata.methods.association.knn_lm.method import KnnLmConfig
    from errata.methods.association.kv_prefix.method import KvPrefixConfig
    from errata.methods.association.lora import LoraConfig
    from errata.methods.association.memoir.method import MemoirConfig
    from errata.methods.association.memoria.method import MemoriaConfig
    from errata.methods.association.memorizing.method import MemorizingConfig
    from errata.methods.association.memoryllm.config import MemoryLlmConfig
    from errata.methods.association.neuraldb import NeuralDbConfig
    from errata.methods.association.pipeline.config import PipelineConfig
    from errata.methods.association.prefix import PrefixConfig
    from errata.methods.association.prompt_tuning import PromptTuningConfig
    from errata.methods.association.retro.method import RetroConfig
    from errata.methods.association.spalm import SpalmConfig
    from errata.methods.association.t_patcher import TPatcherConfig
    from errata.methods.association.wise.config import WiseConfig
    from errata.methods.mastery.alphaedit import AlphaEditConfig
    from errata.methods.mastery.ewc import EwcConfig
    from errata.methods.mastery.ft import FineTuningConfig
    from errata.methods.mastery.knowledge_neurons.config import KnowledgeNeuronsConfig
    from errata.methods.mastery.locft import LocFtConfig
    from errata.methods.mastery.memit import MemitConfig
    from errata.methods.mastery.mend.method import MendConfig
    from errata.methods.mastery.replay import ReplayConfig
    from errata.methods.mastery.rome import RomeConfig
    from errata.methods.mastery.ultraedit import UltraEditConfig
    from errata.methods.recognition.ike import IkeConfig
    from errata.methods.recognition.rag import RagConfig
    from errata.methods.recognition.scr import ScrConfig
    from errata.methods.recognition.serac.method import SeracConfig
    from errata.model import EditModel, get_edit_model
    from errata.model.loading import load
    from errata.report import EditReport, Explanation
    from errata.saving import load_base
    from errata.stream import edit_stream

__version__ = "0.1.0"

__all__ = [
    "LM",
    "AdapterConfig",
    "AlphaEditConfig",
    "BitFitConfig",
    "Case",
    "DeferConfig",
    "Edit",
    "EditModel",
    "EditReport",
    "ErrataError",
    "Evaluation",
    "EwcConfig",
    "Example",
    "Explanation",
    "FineTuningConfig",
    "FolioConfig",
    "GraceConfig",
    "IkeConfig",
    "KnnLmConfig",
    "KnowledgeNeuronsConfig",
    "KvPrefixConfig",
    "LocFtConfig",
    "LoraConfig",
    "MemitConfig",
    "MemoirConfig",
    "MemoriaConfig",
    "MemorizingConfig",
    "MemoryLlmConfig",
    "MendConfig",
    "MethodConfig",
    "NeuralDbConfig",
    "PipelineConfig",
    "PrefixConfig",
    "Probe",
    "PromptTuningConfig",
    "RagConfig",
    "ReplayConfig",
    "RetroConfig",
    "RomeConfig",
    "ScrConfig",
    "SeracConfig",
    "SpalmConfig",
    "TPatcherConfig",
    "UltraEditConfig",
    "WiseConfig",
    "edit_stream",
    "evaluate",
    "get_edit_model",
    "load",
    "load_base",
    "method_class",
    "method_config",
    "method_names",
    "read_cases",
    "read_edits",
]

_HOMES = {
    "cases": (
        "Case",
        "Probe",
        "read_cases",
    ),
    "config": ("MethodConfig",),
    "edit": (
        "Edit",
        "Example",
        "read_edits",
    ),
    "errors": ("ErrataError",),
    "evaluation": ("evaluate",),
    "measures": ("Evaluation",),
    "lm": ("LM",),
    "methods": ("method_class", "method_config", "method_names"),
    "methods.association.adapter": ("AdapterConfig",),
    "methods.association.bitfit": ("BitFitConfig",),
    "methods.association.defer": ("DeferConfig",),
    "methods.association.folio.config": ("FolioConfig",),
    "methods.association.grace.method": ("GraceConfig",),
    "methods.association.knn_lm.method": ("KnnLmConfig",),
    "methods.association.kv_prefix.method": ("KvPrefixConfig",),
    "methods.association.lora": ("LoraConfig",),
    "methods.association.memoir.method": ("MemoirConfig",),
    "methods.association.memoria.method": ("MemoriaConfig",),
    "methods.association.memorizing.method": ("MemorizingConfig",),
    "methods.association.memoryllm.config": ("MemoryLlmConfig",),
    "methods.association.neuraldb": ("NeuralDbConfig",),
    "methods.association.pipeline.config": ("PipelineConfig",),
    "methods.association.prefix": ("PrefixConfig",),
    "methods.association.prompt_tuning": ("PromptTuningConfig",),
    "methods.association.retro.method": ("RetroConfig",),
    "methods.association.spalm": ("SpalmConfig",),
    "methods.association.t_patcher": ("TPatcherConfig",),
    "methods.association.wise.config": ("WiseConfig",),
    "methods.mastery.alphaedit": ("AlphaEditConfig",),
    "methods.mastery.ewc": ("EwcConfig",),
    "methods.mastery.ft": ("FineTuningConfig",),
    "methods.mastery.knowledge_neurons.config": ("KnowledgeNeuronsConfig",),
    "methods.mastery.locft": ("LocFtConfig",),
    "methods.mastery.memit": ("MemitConfig",),
    "methods.mastery.mend.method": ("MendConfig",),
    "methods.mastery.replay": ("ReplayConfig",),
    "methods.mastery.rome": ("RomeConfig",),
    "methods.mastery.ultraedit": ("UltraEditConfig",),
    "methods.recognition.ike": ("IkeConfig",),
    "methods.recognition.rag": ("RagConfig",),
    "methods.recognition.scr": ("ScrConfig",),
    "methods.recognition.serac.method": ("SeracConfig",),
    "model.loading": ("load",),
    "model": ("EditModel", "get_edit_model"),
    "report": ("EditReport", "Explanation"),
    "saving": ("load_base",),
    "stream": ("edit_stream",),
}
"""Module -> the public names that live there; the same as above, for when the program runs."""


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            value = getattr(import_module(f"errata.{home}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module 'errata' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
