"""Agents: language models that solve control tasks by what is edited into them.

A game's states are binned into cells, and a cell is a prompt (`game.py`, `games/`); a model's
action is the likeliest of the game's action words (`scorer.py`). What an agent knows stands in its
prompts (`prompts.py`), or is written into the model as edits (`rules.py`), by any method; the loop
of `improvement.py` finds such edits by itself. The games are gymnasium's (`errata[agents]`).
"""

from __future__ import annotations

from errata.agents.agent import Agent, check_route, is_method
from errata.agents.figures import Played, bootstrapped, rules_said
from errata.agents.game import Cell, Game
from errata.agents.games import GAMES, game_named
from errata.agents.improvement import LoopSizes, improve, reweigh
from errata.agents.record import AgentRecord
from errata.agents.rollout import Episode, Rollout, play_episodes
from errata.agents.rules import edits_of, scripted_rules
from errata.agents.scorer import ActionScorer, Speaker

__all__ = [
    "GAMES", "ActionScorer", "Agent", "AgentRecord", "Cell", "Episode", "Game", "LoopSizes",
    "Played", "Rollout", "Speaker", "bootstrapped", "check_route", "edits_of", "game_named",
    "improve", "is_method", "play_episodes", "reweigh", "rules_said", "scripted_rules",
]  # fmt: skip
