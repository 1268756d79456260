"""errata: lifelong knowledge editing for language models. The public names, nothing else."""

from errata.cases import Case, Probe, read_cases
from errata.config import MethodConfig
from errata.edit import Edit, read_edits
from errata.errors import ErrataError
from errata.evaluate import Evaluation, evaluate
from errata.methods import method_class, method_names
from errata.methods.association.wise import WiseConfig
from errata.methods.mastery.ft import FineTuningConfig
from errata.model import EditModel, EditReport, get_edit_model, load
from errata.saving import load_base

__version__ = "0.1.0"

__all__ = [
    "Case",
    "Edit",
    "EditModel",
    "EditReport",
    "ErrataError",
    "Evaluation",
    "FineTuningConfig",
    "MethodConfig",
    "Probe",
    "WiseConfig",
    "evaluate",
    "get_edit_model",
    "load",
    "load_base",
    "method_class",
    "method_names",
    "read_cases",
    "read_edits",
]
