"""WISE: a side memory beside one layer, a router, shards that are merged (Wang et al., NeurIPS
2024).
"""
