"""WISE: side memories beside one layer, a router, merged shards (Wang et al., NeurIPS 2024)."""
