"""Folio, errata's own method: one leaf per edit at the output head; see `method.py`."""
