"""CartPole, MountainCar, Acrobot, LunarLander: numbers of a moving body, in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from errata.agents.game import Scale, ScaledGame


class CartPole(ScaledGame):
    """A pole on a cart that is pushed left or right, and must not fall."""

    name, title = "CartPole-v1", "CartPole"
    actions, moves, most_steps = ("left", "right"), (0, 1), 500
    questions = (
        "With {state}, which way is the cart pushed?",
        "Which way should the cart be pushed with {state}?",
        "What is the direction to push the cart in with {state}?",
    )
    goal = (
        "A pole stands on a cart and must not fall. Push the cart to the side to which the pole "
        "leans or falls."
    )
    scales = (
        Scale(
            "tilt",
            "T",
            (-0.1, -0.03, 0.0, 0.03, 0.1),
            (
                "the pole leaning far to the left",
                "the pole leaning to the left",
                "the pole leaning a bit to the left",
                "the pole leaning a bit to the right",
                "the pole leaning to the right",
                "the pole leaning far to the right",
            ),
        ),
        Scale(
            "swing",
            "S",
            (-0.6, -0.2, 0.0, 0.2, 0.6),
            (
                "falling fast to the left",
                "falling to the left",
                "falling slowly to the left",
                "falling slowly to the right",
                "falling to the right",
                "falling fast to the right",
            ),
        ),
        Scale(
            "place",
            "P",
            (-0.8, 0.8),
            ("the cart far left", "the cart near the middle", "the cart far right"),
        ),
    )

    def measure(self, observation: Any) -> Sequence[float]:
        """Return the pole's angle and angular velocity, and the cart's position."""
        place, _, tilt, swing = observation
        return tilt, swing, place

    def scripted(self, observation: Any) -> int:
        """Push to where the pole leans and falls, and a little to where the cart drifts."""
        place, drift, tilt, swing = observation
        return int(3 * tilt + swing + 0.1 * place + 0.3 * drift > 0)


class MountainCar(ScaledGame):
    """A car in a valley, too weak for the hill; it must swing itself up."""

    name, title = "MountainCar-v0", "MountainCar"
    actions, moves, most_steps = ("left", "wait", "right"), (0, 1, 2), 200
    questions = (
        "With {state}, which way is the engine driven?",
        "Which way should the engine be driven with {state}?",
        "What is the direction to drive the engine in with {state}?",
    )
    goal = (
        "A car stands in a valley and is too weak to drive up the hill. Drive the engine in the "
        "direction in which the car moves, so that it swings higher and higher."
    )
    scales = (
        Scale(
            "ground",
            "G",
            (-0.9, -0.6, -0.4, 0.0),
            (
                "the car high on the left",
                "the car on the left slope",
                "the car at the bottom",
                "the car on the right slope",
                "the car high on the right",
            ),
        ),
        Scale(
            "speed",
            "V",
            (-0.02, 0.0, 0.02),
            (
                "moving fast to the left",
                "moving to the left",
                "moving to the right",
                "moving fast to the right",
            ),
        ),
    )

    def measure(self, observation: Any) -> Sequence[float]:
        """Return the car's position and velocity."""
        return observation[0], observation[1]

    def scripted(self, observation: Any) -> int:
        """Drive where the car moves."""
        return 2 if observation[1] >= 0 else 0


class Acrobot(ScaledGame):
    """Two links that hang; the joint between them is turned until the end swings up."""

    name, title = "Acrobot-v1", "Acrobot"
    actions, moves, most_steps = ("left", "wait", "right"), (0, 1, 2), 500
    questions = (
        "With {state}, which way is the joint turned?",
        "Which way should the joint be turned with {state}?",
        "What is the direction to turn the joint in with {state}?",
    )
    goal = (
        "Two links hang from a bar, and their joint can be turned. Turn it in the direction in "
        "which the lower link swings, until its end is above the bar."
    )
    scales = (
        Scale(
            "upper",
            "U",
            (-1.5, 0.0, 1.5),
            (
                "the upper link swinging fast to the left",
                "the upper link swinging to the left",
                "the upper link swinging to the right",
                "the upper link swinging fast to the right",
            ),
        ),
        Scale(
            "lower",
            "L",
            (-2.0, 0.0, 2.0),
            (
                "the lower link swinging fast to the left",
                "the lower link swinging to the left",
                "the lower link swinging to the right",
                "the lower link swinging fast to the right",
            ),
        ),
    )

    def measure(self, observation: Any) -> Sequence[float]:
        """Return the angular velocities of both links."""
        return observation[4], observation[5]

    def scripted(self, observation: Any) -> int:
        """Turn the joint where the lower link swings."""
        return 2 if observation[5] > 0 else 0


class LunarLander(ScaledGame):
    """A lander with three engines that must come down softly between two flags.

    What is measured is how far it is off a course: leaning towards the flags, and sinking slower
    the lower it is. That course is gymnasium's own heuristic's.
    """

    name, title = "LunarLander-v3", "LunarLander"
    actions, moves, most_steps = ("wait", "left", "main", "right"), (0, 1, 2, 3), 1000
    questions = (
        "With {state}, which engine is fired?",
        "Which engine should be fired with {state}?",
        "What is the engine to fire with {state}?",
    )
    goal = (
        "A lander must come down softly between two flags. Fire the main engine where it sinks "
        "too fast, and the left or right one where it leans too far to the other side."
    )
    scales = (
        Scale(
            "lean",
            "L",
            (-0.25, -0.1, -0.05, 0.05, 0.1, 0.25),
            (
                "the lander having to turn far to the right",
                "the lander having to turn to the right",
                "the lander having to turn a bit to the right",
                "the lander upright",
                "the lander having to turn a bit to the left",
                "the lander having to turn to the left",
                "the lander having to turn far to the left",
            ),
        ),
        Scale(
            "sink",
            "K",
            (0.05, 0.1, 0.25),
            (
                "sinking slowly enough",
                "sinking a bit too fast",
                "sinking too fast",
                "sinking far too fast",
            ),
        ),
        Scale("leg", "G", (0.5,), ("no leg touching the ground", "a leg touching the ground")),
    )

    def measure(self, observation: Any) -> Sequence[float]:
        """Return how far it is off its course in leaning and sinking, and whether it stands."""
        x, y, dx, dy, angle, turning, *legs = (float(each) for each in observation)
        if any(legs):
            return 0.0, -dy * 0.5, 1.0
        course = min(0.4, max(-0.4, 0.5 * x + dx))
        return 0.5 * (course - angle) - turning, 0.5 * (0.55 * abs(x) - y) - 0.5 * dy, 0.0

    def scripted(self, observation: Any) -> int:
        """Fire as gymnasium's heuristic does."""
        lean, sink, _ = self.measure(observation)
        if sink > abs(lean) and sink > 0.05:
            return 2
        return 3 if lean < -0.05 else 1 if lean > 0.05 else 0
