"""GRACE: keys, radii and values beside one layer (Hartvigsen et al., NeurIPS 2023)."""
