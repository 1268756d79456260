"""GRACE: a codebook of keys and values beside one layer (Hartvigsen et al., NeurIPS 2023)."""
