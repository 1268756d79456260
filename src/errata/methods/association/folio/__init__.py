"""Folio: what the head should read besides, one leaf an edit; this project's own method
(docs/folio.md).
"""
