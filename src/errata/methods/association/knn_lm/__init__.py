"""kNN-LM: stored contexts vote for the next token (Khandelwal et al., ICLR 2020)."""
