"""Pong and Breakout, told from labels of the console's memory (Anand et al. 2019, AtariARI)."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

from errata.agents.game import Scale, ScaledGame

MEMORY = MappingProxyType({"obs_type": "ram", "frameskip": 4, "repeat_action_probability": 0.25})
"""The environment's options: 128 bytes are seen, and a quarter of the actions comes late."""


class Pong(ScaledGame):
    """Pong: the paddle on the right plays against the console."""

    name, title = "ALE/Pong-v5", "Pong"
    options = MEMORY
    actions, moves, most_steps = ("wait", "up", "down"), (0, 2, 3), 400
    questions = (
        "With {state}, which way does the paddle go?",
        "Which way should the paddle go with {state}?",
        "What is the direction of the paddle with {state}?",
    )
    goal = "Two paddles play a ball. Move the paddle up where the ball is above it, else down."
    scales = (
        Scale(
            "ball",
            "B",
            (-40.0, -12.0, -4.0, 4.0, 12.0, 40.0),
            (
                "the ball far above the paddle",
                "the ball above the paddle",
                "the ball a bit above the paddle",
                "the ball level with the paddle",
                "the ball a bit below the paddle",
                "the ball below the paddle",
                "the ball far below the paddle",
            ),
        ),
        Scale("side", "S", (128.0,), ("on the left side", "on the right side")),
    )

    def measure(self, observation: Any) -> Sequence[float]:
        """Return how far the ball is below the paddle, 0 without a ball, and where it is."""
        x, paddle, y = (int(observation[at]) for at in (49, 51, 54))
        return (float(y - paddle - 8) if x and y else 0.0), float(x)

    def scripted(self, observation: Any) -> int:
        """Follow the ball."""
        below, _ = self.measure(observation)
        return 2 if below > 4 else 1 if below < -4 else 0


class Breakout(ScaledGame):
    """Breakout: a ball breaks bricks as long as the paddle catches it."""

    name, title = "ALE/Breakout-v5", "Breakout"
    options = MEMORY
    actions, moves, most_steps = ("wait", "serve", "right", "left"), (0, 1, 2, 3), 400
    questions = Pong.questions
    goal = (
        "A ball breaks bricks as long as the paddle catches it. Serve where there is no ball, else "
        "move the paddle to the side on which the ball is."
    )
    scales = (
        Scale(
            "ball",
            "B",
            (-40.0, -12.0, -3.0, 3.0, 12.0, 40.0),
            (
                "the ball far left of the paddle",
                "the ball left of the paddle",
                "the ball a bit left of the paddle",
                "the ball above the paddle",
                "the ball a bit right of the paddle",
                "the ball right of the paddle",
                "the ball far right of the paddle",
            ),
        ),
        Scale("game", "G", (0.5,), ("no ball in the game", "the ball in the game")),
    )

    def measure(self, observation: Any) -> Sequence[float]:
        """Return how far the ball is right of the paddle, 0 without a ball, and if there is one."""
        ball, height, paddle = (int(observation[at]) for at in (99, 101, 72))
        return (float(ball - paddle - 8) if height else 0.0), float(height > 0)

    def scripted(self, observation: Any) -> int:
        """Serve, then follow the ball."""
        right, served = self.measure(observation)
        if not served:
            return 1
        return 2 if right > 3 else 3 if right < -3 else 0
