"""Facts as precomputed keys and values in front of the prompts that are about them."""
