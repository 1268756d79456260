"""BitFit: only biases are trained (Ben Zaken et al., ACL 2022)."""
