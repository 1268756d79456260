"""`Game`: an environment of gymnasium in words: its states as cells, each one a prompt.

A translator bins the numbers of a state, so that there are finitely many *cells*, and writes a cell
in two ways: as *readings* ("tilt T4 swing S1"), short and never the same for two cells, and in
*other words* ("the pole leaning to the right and falling fast to the left").
"""

from __future__ import annotations

import itertools
import os
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar

from errata.edit import Edit
from errata.errors import UsageError

Cell = tuple[int, ...]
"""A state, binned: one level for each reading."""
EXTRA = "agents"


@dataclass(frozen=True)
class Scale:
    """One number of a state, cut into levels.

    Attributes:
        name: what is read, e.g. tilt.
        letter: of its readings: T0, T1, ...
        edges: where one level ends and the next begins, ascending.
        words: each level in other words, one more than `edges`.
    """

    name: str
    letter: str
    edges: tuple[float, ...]
    words: tuple[str, ...]

    def level(self, value: float) -> int:
        """Return the level of a number."""
        return bisect_right(self.edges, value)

    def reading(self, level: int) -> str:
        """Write a level as it is read from an instrument: "tilt T3"."""
        return f"{self.name} {self.letter}{level}"


class Game(ABC):
    """One environment of gymnasium in words. A subclass is a translator.

    Attributes:
        name: the environment's name in gymnasium.
        title: what it is called in a sentence.
        options: of `gymnasium.make`.
        actions: the words by which actions are said.
        moves: the environment's number of each action.
        questions: ways to ask for an action, each with {state}; edits are written in the first.
        goal: what is to be done, in a sentence or two; a prompt of instructions begins with it.
        most_steps: after so many steps an episode is cut.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    options: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    actions: ClassVar[tuple[str, ...]]
    moves: ClassVar[tuple[int, ...]]
    questions: ClassVar[tuple[str, ...]]
    goal: ClassVar[str]
    most_steps: ClassVar[int]

    @abstractmethod
    def cell(self, observation: Any) -> Cell:
        """Return the cell that a state lies in."""

    @abstractmethod
    def cells(self) -> list[Cell]:
        """Return all cells."""

    @abstractmethod
    def state(self, cell: Cell) -> str:
        """Write a cell as readings."""

    @abstractmethod
    def other_words(self, cell: Cell) -> str:
        """Write a cell in other words."""

    @abstractmethod
    def scripted(self, observation: Any) -> int:
        """Return the action of a policy that people wrote, or planned, for this game."""

    def states(self) -> list[Any]:
        """Return all states, as they are observed; none where they cannot be listed."""
        return []

    def prompt(self, cell: Cell, wording: int = 0) -> str:
        """Ask for the action in a cell; each number of `wording` asks in another way."""
        return self.questions[wording].format(state=self.state(cell))

    def reworded(self, cell: Cell) -> str:
        """Ask for the action in a cell that is told in other words."""
        return self.questions[0].format(state=self.other_words(cell))

    def edit(self, cell: Cell, action: int, source: str, number: int | None = None) -> Edit:
        """Return the rule "in this cell, this action" as an edit.

        Args:
            cell: where.
            action: what to do.
            source: where the rule is from.
            number: of the round that found it; it becomes a part of the edit's id, so that a rule
                which an earlier round had, and a later one replaced, can come back.
        """
        edit = Edit(
            prompt=self.prompt(cell),
            target=self.actions[action],
            subject=self.state(cell),
            aliases=(self.other_words(cell),),
            source=source,
        )
        return edit if number is None else replace(edit, id=f"{edit.id}-{number}")

    def make(self, drawn: bool = False) -> Any:
        """Make the environment; with `drawn`, it draws itself.

        Raises:
            UsageError: what it needs is not installed.
        """
        gymnasium = imported()
        if drawn:  # in memory, whatever screen there is
            os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
        options = {**self.options, "max_episode_steps": self.most_steps}
        try:
            return gymnasium.make(self.name, render_mode="rgb_array" if drawn else None, **options)
        except (gymnasium.error.Error, ImportError, AttributeError) as error:
            raise UsageError(
                f"{self.name} cannot be played here ({str(error).splitlines()[0]}): "
                f"`pip install 'errata[{EXTRA}]'`."
            ) from error


class ScaledGame(Game):
    """A game whose cells are the levels of some numbers that are measured in a state."""

    scales: ClassVar[tuple[Scale, ...]]

    @abstractmethod
    def measure(self, observation: Any) -> Sequence[float]:
        """Return the numbers that the scales read, in their order."""

    def cell(self, observation: Any) -> Cell:
        """Return the levels of what is measured."""
        measured = self.measure(observation)
        return tuple(
            scale.level(float(value)) for scale, value in zip(self.scales, measured, strict=True)
        )

    def cells(self) -> list[Cell]:
        """Return all combinations of levels."""
        return list(itertools.product(*(range(len(each.words)) for each in self.scales)))

    def state(self, cell: Cell) -> str:
        """Write the readings one after the other."""
        return " ".join(each.reading(level) for each, level in zip(self.scales, cell, strict=True))

    def other_words(self, cell: Cell) -> str:
        """Write each level in words."""
        told = [each.words[level] for each, level in zip(self.scales, cell, strict=True)]
        return told[0] if len(told) == 1 else f"{', '.join(told[:-1])} and {told[-1]}"


def imported() -> Any:
    """Import gymnasium, with the Atari games where they are installed.

    Raises:
        UsageError: gymnasium is not installed.
    """
    try:
        import gymnasium
    except ImportError as error:
        raise UsageError(f"games need gymnasium: `pip install 'errata[{EXTRA}]'`.") from error
    try:
        import ale_py
    except ImportError:
        return gymnasium
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    gymnasium.register_envs(ale_py)
    return gymnasium
