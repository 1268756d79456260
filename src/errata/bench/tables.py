"""Builds tables of measurements and prints them as Markdown; `report` prints them as HTML."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import product
from typing import Any

from errata.bench.judge import judged_share, opinions
from errata.bench.results import Estimate, Measured, retentions
from errata.bench.stream import Result
from errata.cases import LOCALITY_KINDS, PORTABILITY_KINDS
from errata.measures import MEASURES, SCORES

NONE = "–"
DRIFT = {"perplexity": "{:.1f}", "divergence": "{:.2g}", "fluency": "{:.2f}"}
"""The figures of drift, and their formats."""


@dataclass(frozen=True)
class Table:
    """Headings and rows of cells; what they mean stands in `note`.

    Attributes:
        title: above it.
        note: below it.
        head: the headings.
        rows: of as many cells.
        runs: for each row the name of the measurement it comes from; None where it comes from
            several, or from a paper.
    """

    title: str
    note: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    runs: tuple[str | None, ...] = ()

    def markdown(self) -> str:
        """Return the table in Markdown, with its title and note."""
        cells = [self.head, ["---"] * len(self.head), *(map(plain, row) for row in self.rows)]
        lines = "\n".join(f"| {' | '.join(line)} |" for line in cells)
        return f"### {self.title}\n\n{lines}\n\n{self.note}\n"


def plain(cell: str) -> str:
    """Return a cell's text as Markdown takes it."""
    return cell.replace("|", "\\|").replace("\n", " ")


def main_table(measured: Sequence[Measured]) -> Table:
    """Show the task's metrics with intervals, and the cost."""
    metrics = measured[0].result.metrics
    rows = []
    for each in measured:
        result = each.result
        if result.figures is None:
            cells = [result.skipped or result.failed or "", *[NONE] * (len(metrics) + 4)]
        else:
            seconds, *others = costs(result)
            measured_metrics = (_metric(each, metric) for metric in metrics)
            cells = [*measured_metrics, seconds, number(passes(result), "{:,.1f}"), *others]
        rows.append((f"{result.edits:,}", each.label, *cells))
    cost = ("s/edit", "passes/edit", "peak MiB", "saved kB", "slower, batch 1 / 8")
    head = ("T", "method", *metrics, *cost)
    note = (
        "Free answers with natural stop, on the final model, over all T edits: the share that is "
        "the wanted one, whole; below it the 95 % interval (bootstrapped over edits). A pass is "
        "one forward pass of a prompt of 40 tokens, in the same process."
    )
    if "perplexity" in metrics:
        note += " Perplexity is that of the targets behind their prompts."
    if "ood" in metrics:
        note += (
            " Ood is the share of other true texts about the edits whose loss is below -log 0.8."
        )
    return Table("What counts", note, head, tuple(rows), tuple(map(run_name, measured)))


def _metric(each: Measured, metric: str) -> str:
    figures = each.result.figures or {}
    if metric in ("perplexity", "ood"):
        return number(figures.get(metric), "{:,.2f}")
    return with_interval(each.figure(metric))


def with_interval(figure: Estimate | None) -> str:
    """Return a figure, and on a second line its interval."""
    return NONE if figure is None else f"{figure.value:.3f}\n{figure.spread}"


def scores_table(measured: Sequence[Measured]) -> Table:
    """Show the same answers under every score that the field uses."""
    done = [each for each in measured if each.result.figures]
    shown = [
        measure
        for measure in MEASURES[:3]
        if any(_score(each, "generated", measure) is not None for each in done)
    ]
    known = {each.path: opinions(each.path.parent.parent) for each in done}
    judges = sorted({judge for found in known.values() for judge, _ in found.values()})
    rows, runs = [], []
    for each, measure in product(done, shown):
        cells = [number(_score(each, score, measure), "{:.3f}") for score in SCORES]
        cells += [number(judged_share(each, known[each.path], measure), "{:.3f}")] if judges else []
        rows.append((f"{each.result.edits:,}", each.label, measure, *cells))
        runs.append(run_name(each))
    note = " ".join(f"*{name}*: {meaning}." for name, meaning in SCORES.items())
    if judges:
        note += f" *judged*: generated, or right in the opinion of {', '.join(judges)}."
    head = (
        "T",
        "method",
        "measure",
        *(name.replace("_", " ") for name in SCORES),
        *(["judged"] if judges else []),
    )
    return Table("The same answers, counted otherwise", note, head, tuple(rows), tuple(runs))


def _score(each: Measured, score: str, measure: str) -> float | None:
    found: float | None = (each.result.figures or {})["scores"][score][measure]
    return found


def kinds_table(measured: Sequence[Measured]) -> Table:
    """Show locality and portability by kind, and drift."""
    rows = []
    done = [each for each in measured if each.result.figures]
    for each in done:
        figures, moved = each.result.figures or {}, each.result.drift or {}
        cells = [number(figures["locality_by_kind"][kind], "{:.3f}") for kind in LOCALITY_KINDS]
        cells += [
            number(figures["divergence_by_kind"].get(kind), "{:.2g}") for kind in LOCALITY_KINDS
        ]
        cells += [
            number(figures["portability_by_kind"].get(kind), "{:.3f}") for kind in PORTABILITY_KINDS
        ]
        cells += [number(moved.get(name), form) for name, form in DRIFT.items()]
        rows.append((f"{each.result.edits:,}", each.label, *cells))
    local = [kind.replace("_", " ") for kind in LOCALITY_KINDS]
    head = ("T", "method", *local, *(f"KL {kind}" for kind in local), *PORTABILITY_KINDS)
    note = (
        "Locality: the share of free answers that did not change, and KL(base || edited) per token "
        "of the base's answer, by what is asked. Portability: the share of free answers that are "
        "right. Drift: perplexity of, and KL on, text that no edit is about. Fluency: n-gram "
        "entropy of 100 tokens, in bits."
    )
    head += ("text perplexity", "KL text", "fluency")
    return Table("What else moved, by kind", note, head, tuple(rows), tuple(map(run_name, done)))


def retention_table(measured: Sequence[Measured]) -> Table | None:
    """Show the retention of each cohort of edits; None with one checkpoint only."""
    followed = retentions(measured)
    if not followed:
        return None
    times = sorted({edits for found in followed.values() for edits in found.checkpoints})
    rows: list[tuple[str, ...]] = []
    for name, found in followed.items():
        whole = number(found.forgetting, "{:.3f}"), number(found.backward_transfer, "{:+.3f}")
        first = 1
        for last, shares in zip(found.checkpoints, found.accuracy, strict=True):
            at = dict(zip(found.checkpoints, shares, strict=True))
            cells = [
                "" if (share := at.get(edits)) is None else number(share, "{:.3f}")
                for edits in times
            ]
            rows.append(
                (
                    name if first == 1 else "",
                    f"{first:,}–{last:,}",
                    *cells,
                    *(whole if first == 1 else ("", "")),
                )
            )
            first = last + 1
    head = (
        "method",
        "edits",
        *(f"at {edits:,}" for edits in times),
        "forgetting",
        "backward transfer",
    )
    note = (
        "The share of each cohort's own prompts that is answered right at each later checkpoint. "
        "Forgetting: how far cohorts are at the end below the best they ever were. "
        "Backward transfer: above where they were when written."
    )
    return Table("Retention", note, head, tuple(rows))


def paper_tables(task: str) -> list[Table]:
    """Show the figures that papers report for a task, marked as theirs."""
    known: list[dict[str, Any]] = tomllib.loads(
        files("errata.bench").joinpath("papers.toml").read_text("utf-8")
    )["table"]
    note, found = "The paper's own figures, on its model and data.", []
    for table in known:
        if table["task"] == task:
            rows = tuple(
                (f"{t:,}", name, *(f"{value:.2f}" for value in values))
                for t, name, *values in table["rows"]
            )
            found.append(
                Table(
                    f"Published: {table['paper']}", note, ("T", "method", *table["columns"]), rows
                )
            )
    return found


def runs_table(measured: Sequence[Measured]) -> Table:
    """Show where each figure comes from."""
    rows = []
    for each in measured:
        result, made = each.result, each.result.made
        settings = (
            ", ".join(f"{name}={value}" for name, value in result.settings.items())
            or "the method's own"
        )
        versions = ", ".join(
            f"{name} {version}" for name, version in made.get("versions", {}).items()
        )
        file = f"{each.path.parent.parent.name}/rows/{each.path.name}"
        commit, time = made.get("commit") or NONE, made.get("time", NONE)
        rows.append((run_name(each), file, settings, versions, commit, time, result.key))
    head = ("run", "file", "settings", "versions", "commit", "time", "key")
    note = "Every single answer stands in the file of its run, as JSON lines."
    return Table(
        "Where it comes from", note, head, tuple(rows), tuple(run_name(each) for each in measured)
    )


def run_name(each: Measured) -> str:
    """Return the name of a measurement."""
    return f"{each.label}, {each.result.edits:,}"


def about(result: Result) -> str:
    """Describe a stream in a sentence or two: data, model, contradictions, policy, ceiling."""
    conflicts, records = result.conflicts
    stream = f"{result.data}, on {result.model.rstrip('/').rpartition('/')[2]}. "
    if not conflicts:
        return stream + "No record contradicts another, so there is no ceiling below 1."
    share = f"{conflicts} of {records} records contradict another ({conflicts / records:.0%})"
    policy = {
        "published": "they are in the stream as published, so that reliability cannot be above "
        f"{result.ceiling:.3f}",
        "conflict-free": "they are left out, and locality probes that ask what is edited",
        "later": "the last answer to a question is the right one, for all records that ask it",
    }[result.reading]
    return f"{stream}{share}: {policy}."


def costs(result: Result) -> tuple[str, str, str, str]:
    """Return seconds per edit, peak memory, kilobytes on disk, and generation's overhead."""
    return (
        number(result.seconds_per_edit, "{:.2f}"),
        number(result.peak_memory, "{:,.0f}"),
        NONE if result.bytes_saved is None else f"{result.bytes_saved / 1000:,.0f}",
        " / ".join(f"{share:+.0%}" for share in result.overhead.values())
        if result.overhead
        else NONE,
    )


def passes(result: Result) -> float | None:
    """Return what an edit costs in forward passes of a prompt of 40 tokens, of the same run."""
    one = result.made.get("forward_seconds")
    return result.seconds_per_edit / one if one and result.seconds_per_edit is not None else None


def number(value: float | None, form: str) -> str:
    """Return a figure in a format; `NONE` where there is none."""
    return NONE if value is None else form.format(value)
