"""Measurements read back: figures with their intervals, what was kept of what was learnt, what
differs beyond noise.

Intervals are bootstrapped over edits, not over questions: the questions about one edit rise and
fall together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from errata.bench.stream import Row, read_answers
from errata.errors import UsageError
from errata.evaluation import MEASURES, SCORES, Answer, counted

DRAWS = 1000
"""Bootstrap samples."""
CERTAIN = 0.95


@dataclass(frozen=True)
class Figure:
    """A share with its bootstrapped interval.

    Attributes:
        value: the mean over questions.
        low, high: between these lie 95 % of the means of resampled edits.
        edits: how many edits have such questions.
    """

    value: float
    low: float
    high: float
    edits: int


@dataclass(frozen=True)
class Measured:
    """A contender after so many edits.

    Attributes:
        row: what was found.
        path: the file.
        label: the contender's name; the folder's behind it where two folders have the same
            measurement.
    """

    row: Row
    path: Path
    label: str

    @cached_property
    def answers(self) -> list[Answer]:
        """Every single answer."""
        return read_answers(self.path)

    def figure(
        self, measure: str, score: str = "generated", kind: str | None = None
    ) -> Figure | None:
        """A figure with its interval; None where nothing of the kind was asked.

        Args:
            measure: of `MEASURES`.
            score: of `SCORES`.
            kind: of the probes; None for all.
        """
        return interval(self._counted(measure, score, kind))

    def _counted(
        self, measure: str, score: str, kind: str | None = None
    ) -> list[tuple[str, float]]:
        """(edit, how the answer counts) of every question."""
        wanted = [
            a for a in self.answers if a.measure == measure and (kind is None or a.kind == kind)
        ]
        return [(answer.edit_id, float(counted(answer, score))) for answer in wanted]


def read_folders(folders: Iterable[Path]) -> list[Measured]:
    """All measurements of folders that `errata bench` or `errata compare` filled, in order of
    streams, edits and names.

    Raises:
        UsageError: a folder holds none.
    """
    found = []
    for folder in folders:
        paths = sorted((folder / "rows").glob("*.jsonl"))
        mine = [Measured(row, path, row.name) for path in paths if (row := Row.read(path))]
        if not mine:
            raise UsageError(
                f"{folder}: there is no measurement in it; `errata bench` writes them into its --out."
            )
        found += mine
    seen = Counter((stream_name(each.row), each.label, each.row.edits) for each in found)
    twice = {(stream, label) for (stream, label, _), count in seen.items() if count > 1}
    for place, each in enumerate(found):
        if (stream_name(each.row), each.label) in twice:
            found[place] = replace(each, label=f"{each.label} ({each.path.parent.parent.name})")
    return sorted(
        found,
        key=lambda each: (*stream_name(each.row), each.row.edits, each.row.method is not None),
    )


def stream_name(row: Row) -> tuple[str, str, str]:
    """What has to be equal for two rows to stand in one table: data, model, reading."""
    return Path(row.data).name, Path(row.model).name, row.reading


def interval(values: Sequence[tuple[str, float]]) -> Figure | None:
    """The mean of (edit, value) pairs, bootstrapped over edits."""
    if not values:
        return None
    sums, counts = _by_edit(values)
    drawn = _draws(len(sums))
    means = (drawn @ sums) / (drawn @ counts)
    low, high = np.quantile(means, [(1 - CERTAIN) / 2, (1 + CERTAIN) / 2])
    return Figure(float(sums.sum() / counts.sum()), float(low), float(high), len(sums))


def _by_edit(values: Sequence[tuple[str, float]]) -> tuple[np.ndarray, np.ndarray]:
    names = {name: place for place, name in enumerate(dict.fromkeys(name for name, _ in values))}
    sums, counts = np.zeros(len(names)), np.zeros(len(names))
    for name, value in values:
        sums[names[name]] += value
        counts[names[name]] += 1
    return sums, counts


def _draws(edits: int) -> np.ndarray:
    """(draws, edits): how often each edit is drawn."""
    return np.random.default_rng(0).multinomial(edits, np.full(edits, 1 / edits), size=DRAWS)


@dataclass(frozen=True)
class Retention:
    """What became of each cohort of edits: those between two checkpoints.

    Attributes:
        checkpoints: numbers of edits, rising.
        accuracy: [cohort][checkpoint] share of the cohort's own prompts that are answered right;
            None before it was written.
        forgetting: how far cohorts are at the end below the best they ever were, the mean over all
            but the last.
        backward_transfer: how far they are at the end above where they were when written.
    """

    checkpoints: tuple[int, ...]
    accuracy: tuple[tuple[float | None, ...], ...]
    forgetting: float | None
    backward_transfer: float | None


def retention(measured: Sequence[Measured]) -> Retention | None:
    """Of one contender at its checkpoints; None with fewer than two."""
    runs = sorted(measured, key=lambda each: each.row.edits)
    if len(runs) < 2:
        return None
    right = [
        {a.edit_id: a.right for a in run.answers if a.measure == "reliability"} for run in runs
    ]
    cohorts: list[list[str]] = []
    known: set[str] = set()
    for said in right:
        cohorts.append([name for name in said if name not in known])
        known |= said.keys()
    table = tuple(
        tuple(
            sum(said[name] for name in cohort) / len(cohort) if place <= at else None
            for at, said in enumerate(right)
        )
        for place, cohort in enumerate(cohorts)
    )
    earlier = [[value for value in row if value is not None] for row in table[:-1]]
    return Retention(
        tuple(run.row.edits for run in runs),
        table,
        sum(max(row) - row[-1] for row in earlier) / len(earlier),
        sum(row[-1] - row[0] for row in earlier) / len(earlier),
    )


@dataclass(frozen=True)
class Difference:
    """Two measurements held against each other.

    Attributes:
        name, edits: the contender, and after how many edits.
        measure, score: what is counted, and how.
        before, after: the two figures.
        low, high: the difference lies between these, 95 %.
        paired: the questions were the same, so only those that are answered otherwise make noise.
    """

    name: str
    edits: int
    measure: str
    score: str
    before: float
    after: float
    low: float
    high: float
    paired: bool

    @property
    def beyond_noise(self) -> bool:
        """The interval does not hold zero."""
        return self.low > 0 or self.high < 0


def differences(first: Sequence[Measured], second: Sequence[Measured]) -> list[Difference]:
    """What two runs have in common, figure by figure."""
    other = {(each.row.name, each.row.edits): each for each in second}
    found = []
    for one in first:
        two = other.get((one.row.name, one.row.edits))
        if two is None or one.row.figures is None or two.row.figures is None:
            continue
        for score in SCORES:
            for measure in MEASURES:
                found += _difference(one, two, measure, score)
    return found


def _difference(one: Measured, two: Measured, measure: str, score: str) -> list[Difference]:
    said = [
        [
            ((a.edit_id, a.prompt), float(counted(a, score)))
            for a in each.answers
            if a.measure == measure
        ]
        for each in (one, two)
    ]
    if not all(said):
        return []
    before, after = (sum(value for _, value in some) / len(some) for some in said)
    paired = [key for key, _ in said[0]] == [key for key, _ in said[1]]
    if paired:
        gained = [(key[0], new - old) for (key, old), (_, new) in zip(*said, strict=True)]
        figure = interval(gained)
        low, high = (figure.low, figure.high) if figure else (0.0, 0.0)
    else:
        means = []
        for some in said:
            sums, counts = _by_edit([(key[0], value) for key, value in some])
            drawn = _draws(len(sums))
            means.append((drawn @ sums) / (drawn @ counts))
        rng = np.random.default_rng(1)
        low, high = np.quantile(
            means[1] - rng.permutation(means[0]), [(1 - CERTAIN) / 2, (1 + CERTAIN) / 2]
        ).tolist()
    return [
        Difference(one.row.name, one.row.edits, measure, score, before, after, low, high, paired)
    ]
