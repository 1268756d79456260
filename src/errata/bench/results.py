"""Reads measurements back: figures with intervals, retention, differences beyond noise.

Intervals are bootstrapped over edits, not over questions: the questions about one edit rise and
fall together.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from errata.bench.stream import UNEDITED, Result, read_answers
from errata.errors import UsageError
from errata.measures import MEASURES, SCORES, Answer, counted

DRAWS = 1000
"""Bootstrap samples."""
TAILS = (0.025, 0.975)
"""Between these quantiles lie 95 % of the draws."""
WILSON = 1.96**2
"""The square of the normal quantile of 95 %."""


@dataclass(frozen=True)
class Estimate:
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

    def widened(self) -> Estimate:
        """Return it with Wilson's interval where all or none are right: there is nothing to draw.

        Edits that answer all alike may still have one among them, unseen, that does not.
        """
        if self.low < self.high or self.value not in (0.0, 1.0):
            return self
        far = WILSON / (self.edits + WILSON)
        return replace(self, low=0.0, high=far) if not self.value else replace(self, low=1.0 - far)

    @property
    def spread(self) -> str:
        """The interval, as text."""
        return f"{self.low:.2f}–{self.high:.2f}"


@dataclass(frozen=True)
class Measured:
    """A run after so many edits, read back from disk.

    Attributes:
        result: what was found.
        path: the file.
        label: the run's name; the folder's behind it where two folders have the same measurement.
    """

    result: Result
    path: Path
    label: str

    @cached_property
    def answers(self) -> list[Answer]:
        """Read every single answer."""
        return read_answers(self.path)

    def figure(
        self, measure: str, score: str = "generated", kind: str | None = None
    ) -> Estimate | None:
        """Return a figure with its interval; None where there is no such question.

        Args:
            measure: of `MEASURES`.
            score: of `SCORES`, or `PROBE_SCORES`.
            kind: of the probes; None for all.
        """
        found = interval(self._counted(measure, score, kind))
        return None if found is None else found.widened()

    def _counted(
        self, measure: str, score: str, kind: str | None = None
    ) -> list[tuple[str, float]]:
        """Return (edit, how the answer counts) of every question."""
        wanted = [
            a for a in self.answers if a.measure == measure and (kind is None or a.kind == kind)
        ]
        return [(answer.edit_id, float(counted(answer, score))) for answer in wanted]


def read_folders(folders: Iterable[Path]) -> list[Measured]:
    """Read all measurements of benchmark folders, in order of streams, edits and names.

    Raises:
        UsageError: a folder holds none.
    """
    found = []
    for folder in folders:
        paths = sorted((folder / "rows").glob("*.jsonl"))
        mine = [
            Measured(result, path, result.name) for path in paths if (result := Result.read(path))
        ]
        if not mine:
            raise UsageError(
                f"{folder}: there is no measurement in it; "
                "`errata bench` writes them into its --out."
            )
        found += mine
    seen = Counter((stream_name(each.result), each.label, each.result.edits) for each in found)
    twice = {(stream, label) for (stream, label, _), count in seen.items() if count > 1}
    for place, each in enumerate(found):
        if (stream_name(each.result), each.label) in twice:
            found[place] = replace(each, label=f"{each.label} ({each.path.parent.parent.name})")
    return sorted(
        found,
        key=lambda each: (
            *stream_name(each.result),
            each.result.edits,
            each.result.method is not None,
            each.result.name != UNEDITED,
        ),
    )


def stream_name(result: Result) -> tuple[str, str, str]:
    """Return what two results of one table share: data, model, policy for contradictions."""
    return Path(result.data).name, Path(result.model).name, result.reading


def interval(values: Sequence[tuple[str, float]]) -> Estimate | None:
    """Return the mean of (edit, value) pairs, bootstrapped over edits."""
    if not values:
        return None
    low, high = np.quantile(_drawn_means(values), TAILS).tolist()
    mean = sum(value for _, value in values) / len(values)
    return Estimate(mean, low, high, len({edit_id for edit_id, _ in values}))


def _drawn_means(values: Sequence[tuple[str, float]]) -> np.ndarray:
    """Return the means (draws,) of (edit, value) pairs under resampled edits."""
    places = {
        edit_id: place
        for place, edit_id in enumerate(dict.fromkeys(edit_id for edit_id, _ in values))
    }
    sums, counts = np.zeros(len(places)), np.zeros(len(places))
    for edit_id, value in values:
        sums[places[edit_id]] += value
        counts[places[edit_id]] += 1
    edits = len(places)
    drawn = np.random.default_rng(0).multinomial(edits, np.full(edits, 1 / edits), size=DRAWS)
    means: np.ndarray = (drawn @ sums) / (drawn @ counts)
    return means


@dataclass(frozen=True)
class Retention:
    """Retention of each cohort of edits: those between two checkpoints.

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
    forgetting: float
    backward_transfer: float


def retentions(measured: Sequence[Measured]) -> dict[str, Retention]:
    """Return the retention of each edited run, by label, that has several checkpoints."""
    by_label: dict[str, list[Measured]] = defaultdict(list)
    for each in measured:
        if each.result.figures and each.result.method:
            by_label[each.label].append(each)
    return {label: retention(some) for label, some in by_label.items() if len(some) > 1}


def retention(measured: Sequence[Measured]) -> Retention:
    """Return the retention of one run's cohorts, at two checkpoints or more."""
    ordered = sorted(measured, key=lambda each: each.result.edits)
    right = [
        {a.edit_id: a.right for a in each.answers if a.measure == "reliability"} for each in ordered
    ]
    cohorts: list[list[str]] = []
    known: set[str] = set()
    for at_checkpoint in right:
        cohorts.append([edit_id for edit_id in at_checkpoint if edit_id not in known])
        known |= at_checkpoint.keys()
    table = tuple(
        tuple(
            sum(at_checkpoint[edit_id] for edit_id in cohort) / len(cohort)
            if number <= place
            else None
            for place, at_checkpoint in enumerate(right)
        )
        for number, cohort in enumerate(cohorts)
    )
    earlier = [[share for share in shares if share is not None] for shares in table[:-1]]
    return Retention(
        tuple(each.result.edits for each in ordered),
        table,
        sum(max(shares) - shares[-1] for shares in earlier) / len(earlier),
        sum(shares[-1] - shares[0] for shares in earlier) / len(earlier),
    )


@dataclass(frozen=True)
class Difference:
    """The difference between two measurements.

    Attributes:
        name, edits: the run, and after how many edits.
        measure, score: what is counted, and how.
        before, after: the two figures.
        low, high: the difference lies between these, 95 %.
        paired: the questions were the same, so only changed answers contribute noise.
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
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0


def differences(first: Sequence[Measured], second: Sequence[Measured]) -> list[Difference]:
    """Compare what two measurements have in common, figure by figure."""
    other = {(each.result.name, each.result.edits): each for each in second}
    found = []
    for one in first:
        two = other.get((one.result.name, one.result.edits))
        if two is None or one.result.figures is None or two.result.figures is None:
            continue
        for score in SCORES:
            for measure in MEASURES:
                found += _difference(one, two, measure, score)
    return found


def _difference(one: Measured, two: Measured, measure: str, score: str) -> list[Difference]:
    first, second = (
        [
            ((a.edit_id, a.prompt), float(counted(a, score)))
            for a in each.answers
            if a.measure == measure
        ]
        for each in (one, two)
    )
    if not first or not second:
        return []
    before, after = (sum(value for _, value in values) / len(values) for values in (first, second))
    paired = [key for key, _ in first] == [key for key, _ in second]
    if paired:
        gained = interval(
            [(key[0], new - old) for (key, old), (_, new) in zip(first, second, strict=True)]
        )
        low, high = (gained.low, gained.high) if gained else (0.0, 0.0)
    else:
        means = [
            _drawn_means([(key[0], value) for key, value in values]) for values in (first, second)
        ]
        rng = np.random.default_rng(1)
        low, high = np.quantile(means[1] - rng.permutation(means[0]), TAILS).tolist()
    return [
        Difference(
            one.result.name, one.result.edits, measure, score, before, after, low, high, paired
        )
    ]
