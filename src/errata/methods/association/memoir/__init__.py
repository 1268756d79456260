"""MEMOIR: sparse columns of a residual memory for each edit (Wang et al., NeurIPS 2025)."""
