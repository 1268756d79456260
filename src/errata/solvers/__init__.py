"""Algorithms of several methods: value solving, multi-layer updates, moments, merging, adapters."""
