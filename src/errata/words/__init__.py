"""Words of a text and names in it, by the rules of Unicode. Nothing here knows a model."""
