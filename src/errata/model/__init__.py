"""`EditModel`: a base model, the edits in it, and the calls that edit, run, save and load it."""

from errata.model.edit_model import EditModel
from errata.model.loading import get_edit_model, load

__all__ = ["EditModel", "get_edit_model", "load"]
