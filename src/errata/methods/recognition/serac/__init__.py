"""SERAC: a scope classifier and a counterfactual model (Mitchell et al., ICML 2022)."""
