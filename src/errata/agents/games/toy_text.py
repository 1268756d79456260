"""FrozenLake, CliffWalking, Taxi, Blackjack: games on squares and with cards, in words."""

from __future__ import annotations

from functools import cached_property
from types import MappingProxyType
from typing import Any

from errata.agents.game import Cell, Game
from errata.agents.planning import plan

ORDINALS = (
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth".split()
)


def square(row: int, column: int) -> str:
    """Name a square as on a chessboard: its column's letter and its row's number, from 1."""
    return f"{'ABCDEFGHIJKL'[column]}{row + 1}"


def square_in_words(row: int, column: int, place: str = "square") -> str:
    """Name a square in words."""
    return f"the {ORDINALS[column]} {place} of the {ORDINALS[row]} row"


class Planned(Game):
    """A game that shows how it works, so that its best policy can be computed."""

    @cached_property
    def _plan(self) -> dict[int, int]:
        return plan(self.make().unwrapped.P)

    def states(self) -> list[Any]:
        """Return all states."""
        return list(self._plan)

    def scripted(self, observation: Any) -> int:
        """Do what value iteration found to be the best."""
        return self.moves.index(self._plan[int(observation)])


class OnSquares(Planned):
    """A walk over a board of squares; the state is the square's number.

    Attributes:
        rows: of the board.
        columns: of the board.
        place: what a square is called; no two games have it in common.
    """

    rows: int
    columns: int
    place: str

    def cell(self, observation: Any) -> Cell:
        """Return the row and the column."""
        row, column = divmod(int(observation), self.columns)
        return row, column

    def cells(self) -> list[Cell]:
        """Return all squares."""
        return [(row, column) for row in range(self.rows) for column in range(self.columns)]

    def state(self, cell: Cell) -> str:
        """Name the square."""
        return f"{self.place} {square(*cell)}"

    def other_words(self, cell: Cell) -> str:
        """Name the square in words."""
        row, column = cell
        return square_in_words(row, column, self.place)


class FrozenLake(OnSquares):
    """A walk over ice with holes, to the square at the lower right; it is not slippery here."""

    name, title, rows, columns, place = "FrozenLake-v1", "FrozenLake", 4, 4, "square"
    options = MappingProxyType({"is_slippery": False})
    actions, moves, most_steps = ("left", "down", "right", "up"), (0, 1, 2, 3), 100
    questions = (
        "From {state}, which way is the next step?",
        "Which way should the next step go from {state}?",
        "What is the direction of the next step from {state}?",
    )
    goal = "Walk over the ice from square A1 to square D4, and not into a hole: B2, D2, D3 and A4."


class CliffWalking(OnSquares):
    """A walk along a cliff, from the lower left to the lower right."""

    name, title, rows, columns, place = "CliffWalking-v1", "CliffWalking", 4, 12, "ledge"
    actions, moves, most_steps = ("up", "right", "down", "left"), (0, 1, 2, 3), 200
    questions = FrozenLake.questions
    goal = "Walk from ledge A4 to ledge L4, and never onto the ledges B4 to K4: there one falls."

    def cells(self) -> list[Cell]:
        """Return all squares on which one can stand."""
        return [cell for cell in super().cells() if cell[0] < 3 or cell[1] in (0, 11)]


class Taxi(Planned):
    """A taxi that fetches a passenger at one stand and brings them to another.

    Where the taxi is bound for is told: the passenger's stand, and with the passenger the stand
    they want to go to.
    """

    name, title = "Taxi-v4", "Taxi"
    actions = ("south", "north", "east", "west", "fetch", "drop")
    moves, most_steps = (0, 1, 2, 3, 4, 5), 200
    questions = (
        "With {state}, what does the driver do next?",
        "What should the driver do next with {state}?",
        "What is the driver's next act with {state}?",
    )
    goal = (
        "A taxi fetches a passenger at one stand and brings them to another. The stands are on "
        "the squares A1, E1, A5 and D5. Drive north, south, east or west; fetch; drop."
    )
    stands = ("R", "G", "Y", "B")
    told = ("red", "green", "yellow", "blue")

    def cell(self, observation: Any) -> Cell:
        """Return row, column, the stand it is bound for, and whether the passenger is in it."""
        rest, goal = divmod(int(observation), 4)
        rest, passenger = divmod(rest, 5)
        row, column = divmod(rest, 5)
        inside = int(passenger == 4)
        return row, column, goal if inside else passenger, inside

    def cells(self) -> list[Cell]:
        """Return all places, stands, and both loads."""
        return [
            (row, column, stand, inside)
            for row in range(5)
            for column in range(5)
            for stand in range(4)
            for inside in (0, 1)
        ]

    def state(self, cell: Cell) -> str:
        """Name the square, the load and the stand."""
        row, column, stand, inside = cell
        return f"taxi {square(row, column)} load {inside} stand {self.stands[stand]}"

    def other_words(self, cell: Cell) -> str:
        """Tell the same in words."""
        row, column, stand, inside = cell
        load = "with the passenger" if inside else "without the passenger"
        where = square_in_words(row, column)
        return f"the taxi on {where}, {load}, bound for the {self.told[stand]} stand"


class Blackjack(Game):
    """Cards up to 21 against a dealer who shows one card."""

    name, title = "Blackjack-v1", "Blackjack"
    options = MappingProxyType({"sab": True})
    actions, moves, most_steps = ("stand", "draw"), (0, 1), 20
    questions = (
        "With {state}, what does the player do next?",
        "What should the player do next with {state}?",
        "What is the player's next act with {state}?",
    )
    goal = (
        "Draw cards to come near to 21, and not above it; stand when the hand is better than what "
        "the dealer is likely to get."
    )

    def cell(self, observation: Any) -> Cell:
        """Return the hand's sum, the dealer's card, and whether an ace counts eleven."""
        hand, dealer, ace = observation
        return int(hand), int(dealer), int(ace)

    def cells(self) -> list[Cell]:
        """Return all hands in which there is something to choose."""
        return [
            (hand, dealer, ace)
            for ace in (0, 1)
            for hand in range(12 if ace else 4, 22)
            for dealer in range(1, 11)
        ]

    def states(self) -> list[Any]:
        """Return all hands."""
        return list(self.cells())

    def state(self, cell: Cell) -> str:
        """Write the three numbers as readings."""
        return f"hand H{cell[0]} dealer D{cell[1]} ace A{cell[2]}"

    def other_words(self, cell: Cell) -> str:
        """Tell the same in words."""
        ace = "an ace that counts eleven" if cell[2] else "no ace that counts eleven"
        return f"a sum of {cell[0]}, {ace}, and a dealer who shows {cell[1]}"

    def scripted(self, observation: Any) -> int:
        """Play the basic strategy, as far as it is about drawing (Thorp 1962)."""
        hand, dealer, ace = self.cell(observation)
        if ace:
            return int(hand <= 17 or (hand == 18 and dealer in (1, 9, 10)))
        if hand <= 11:
            return 1
        if hand == 12:
            return int(dealer not in (4, 5, 6))
        return int(hand <= 16 and (dealer == 1 or dealer >= 7))
