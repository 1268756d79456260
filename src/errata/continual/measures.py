"""What an accuracy matrix says of a run: how much is known, forgotten, and still learned."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

Matrix = Sequence[Sequence[float]]
"""R[i][j]: the accuracy on task j after task i was learned; (T, T)."""

MEANINGS = {
    "average_accuracy": "the mean over all tasks, at the end",
    "backward_transfer": "what later tasks added to an earlier one since it was learned; below 0 "
    "it was forgotten",
    "forgetting": "what an earlier task lost from the best it ever was to the end",
    "plasticity": "how well a task is done right after it was learned",
    "forward_transfer": "what earlier tasks added to one that was not learned yet",
}


def summary(matrix: Matrix, before: Sequence[float]) -> dict[str, float | None]:
    """Return the measures of a run; None where one task says nothing about them.

    Lopez-Paz and Ranzato, arXiv 1706.08840 (average accuracy, both transfers); Chaudhry et al.,
    arXiv 1801.10112 (forgetting: the mean, over all tasks but the last, of the best accuracy before
    the end less that at the end).

    Args:
        matrix: R.
        before: the accuracies before anything was learned.
    """
    last = len(matrix) - 1
    earlier = range(last)
    return {
        "average_accuracy": fmean(matrix[last]),
        "backward_transfer": (
            fmean(matrix[last][j] - matrix[j][j] for j in earlier) if last else None
        ),
        "forgetting": (
            fmean(max(matrix[i][j] for i in range(j, last)) - matrix[last][j] for j in earlier)
            if last
            else None
        ),
        "plasticity": fmean(matrix[i][i] for i in range(last + 1)),
        "forward_transfer": (
            fmean(matrix[j - 1][j] - before[j] for j in range(1, last + 1)) if last else None
        ),
    }
