"""`Experience`: where each action has led in each cell, and what is best to do by that."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from errata.agents.game import Cell
from errata.agents.planning import plan
from errata.agents.rollout import Episode
from errata.agents.values import LEAST
from errata.errors import ArtifactError


class Experience:
    """Where actions led in an agent's own episodes, and what they earned there.

    Reflexion (Shinn et al., arXiv 2303.11366) has the model write what it learns from an episode;
    here it is looked up what is best by all of them, and put into the words of an example, since
    small models cannot. Best is what value iteration on the steps that were seen says, not what
    the episodes that began so earned in the mean: where a policy stands still, those do best that
    stand still, too, until something at random leads on.
    """

    def __init__(self) -> None:
        self._seen: dict[Cell, dict[int, dict[Cell | None, list[float]]]] = defaultdict(
            lambda: defaultdict(dict)
        )

    def add(self, episodes: Sequence[Episode]) -> None:
        """Take in episodes; of one that was cut it is not known where its last step led."""
        for each in episodes:
            following = [*each.cells[1:], None]
            steps = list(zip(each.cells, each.actions, each.rewards, following, strict=True))
            for cell, action, reward, then in steps[:-1] if each.cut else steps:
                seen = self._seen[cell][action].setdefault(then, [0, 0.0])
                seen[0] += 1
                seen[1] += reward

    @property
    def best(self) -> dict[Cell, int]:
        """The best action in each cell in which two were tried often enough to tell."""
        tried = {
            cell: {
                action: led
                for action, led in sorted(actions.items())
                if sum(count for count, _ in led.values()) >= LEAST
            }
            for cell, actions in sorted(self._seen.items())
        }
        numbers = {cell: number for number, cell in enumerate(c for c in tried if tried[c])}
        cells = list(numbers)
        transitions = {
            number: {
                action: [
                    (
                        count / sum(each for each, _ in led.values()),
                        numbers.get(then, 0),  # type: ignore[arg-type]
                        earned / count,
                        then not in numbers,
                    )
                    for then, (count, earned) in led.items()
                ]
                for action, led in tried[cell].items()
            }
            for cell, number in numbers.items()
        }
        found = plan(transitions)
        return {cells[number]: found[number] for number in found if len(tried[cells[number]]) > 1}

    def to_list(self) -> list[Any]:
        """Return it, ready for JSON."""
        return [
            [list(cell), [[action, _listed(led)] for action, led in sorted(actions.items())]]
            for cell, actions in sorted(self._seen.items())
        ]

    @classmethod
    def from_list(cls, data: Sequence[Any]) -> Experience:
        """Build it from what `to_list` returned.

        Raises:
            ArtifactError: it is none.
        """
        made = cls()
        try:
            for cell, actions in data:
                for action, led in actions:
                    for then, count, earned in led:
                        place = None if then is None else tuple(then)
                        made._seen[tuple(cell)][int(action)][place] = [int(count), float(earned)]
        except (TypeError, ValueError) as error:
            raise ArtifactError(
                f"an agent's experience is damaged, or of an older errata ({error}); give another "
                "--out."
            ) from None
        return made


def _listed(led: dict[Cell | None, list[float]]) -> list[Any]:
    return [
        [None if then is None else list(then), count, earned]
        for then, (count, earned) in led.items()
    ]
