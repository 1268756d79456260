"""The games that can be played, by their names in gymnasium."""

from __future__ import annotations

from errata.agents.game import Game
from errata.agents.games.atari import Breakout, Pong
from errata.agents.games.control import Acrobot, CartPole, LunarLander, MountainCar
from errata.agents.games.toy_text import Blackjack, CliffWalking, FrozenLake, Taxi
from errata.errors import UnknownNameError, quoted, suggest

GAMES: dict[str, type[Game]] = {
    game.name: game
    for game in (
        CartPole, MountainCar, Acrobot, LunarLander, FrozenLake, Taxi, Blackjack, CliffWalking,
        Pong, Breakout,
    )
}  # fmt: skip
"""Name in gymnasium -> translator."""


def game_named(name: str) -> Game:
    """Return the game of this name.

    Raises:
        UnknownNameError: there is no translator for it.
    """
    if name not in GAMES:
        raise UnknownNameError(
            f"there is no translator for the game {quoted(name)}.{suggest(name, GAMES)}"
        )
    return GAMES[name]()
