"""Algorithms that several methods use: value optimisation, multi-layer updates, second moments,
merging, adapter training.
"""
