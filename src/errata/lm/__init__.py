"""A model as the papers see it: its layers, tokens and endings, what flows through it, what it
says.
"""

from errata.lm.encoding import prompt_tokens
from errata.lm.lm import LM, Score

__all__ = ["LM", "Score", "prompt_tokens"]
