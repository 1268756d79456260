"""`EditModel`: a base model, the edits in it, and all that can be asked of it."""

from errata.model.edit_model import EditModel, get_edit_model

__all__ = ["EditModel", "get_edit_model"]
