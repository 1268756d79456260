"""MemoryLLM: memory vectors at every layer, which the model itself writes (Wang et al., 2024)."""
