"""MEND: a trained editor transforms the gradient of an edit (Mitchell et al., ICLR 2022)."""
