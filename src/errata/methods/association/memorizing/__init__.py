"""Facts as keys and values of one block's attention (Memorizing Transformers; Wu et al., 2022)."""
