"""Measuring methods against each other: one stream of edits, one evaluation, every method. It edits
nothing itself.
"""
