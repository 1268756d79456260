"""`plan`: the best action in every state of an environment that shows how it works, from `P`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Transitions = Mapping[int, Mapping[int, Sequence[tuple[float, int, float, bool]]]]
"""State -> action -> (probability, next state, reward, whether it ends there)."""
DISCOUNT = 0.99
TOLERANCE = 1e-9


def plan(transitions: Transitions) -> dict[int, int]:
    """Return the best action in every state, by value iteration (Bellman 1957).

    Of equally good actions it is the first.
    """
    values = dict.fromkeys(transitions, 0.0)

    def worth(state: int, action: int) -> float:
        return sum(
            chance * (reward + (0.0 if ends else DISCOUNT * values[int(following)]))
            for chance, following, reward, ends in transitions[state][action]
        )

    change = 1.0
    while change > TOLERANCE:
        change = 0.0
        for state, actions in transitions.items():
            best = max(worth(state, action) for action in actions)
            change, values[state] = max(change, abs(best - values[state])), best
    return {
        state: max(actions, key=lambda action: (round(worth(state, action), 6), -action))
        for state, actions in transitions.items()
    }
