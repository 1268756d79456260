"""Compares methods on one stream of edits, with one evaluation. It edits nothing itself."""
