"""A language model as the editing papers see it: architecture, prompts as tokens, hooks, scores."""

from errata.lm.encoding import prompt_tokens
from errata.lm.lm import LM, Score

__all__ = ["LM", "Score", "prompt_tokens"]
