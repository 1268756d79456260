"""Measurements as tables of words: rows of cells under headings, which become Markdown or HTML
elsewhere.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from errata.bench.judge import judged_share, opinions
from errata.bench.results import Difference, Figure, Measured, retention
from errata.bench.stream import Row
from errata.cases import LOCALITY_KINDS, PORTABILITY_KINDS
from errata.evaluation import MEASURES, SCORES

NONE = "–"


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
        """The table in Markdown, with its title and note."""
        lines = [
            " | ".join(self.head),
            " | ".join(["---"] * len(self.head)),
            *(" | ".join(map(_plain, row)) for row in self.rows),
        ]
        return (
            f"### {self.title}\n\n"
            + "\n".join(f"| {line} |" for line in lines)
            + f"\n\n{self.note}\n"
        )


def _plain(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")


def main_table(measured: Sequence[Measured]) -> Table:
    """What counts for the task, with intervals, and what it costs."""
    metrics = measured[0].row.metrics
    rows, runs = [], []
    for each in measured:
        row = each.row
        cells = [f"{row.edits:,}", each.label]
        if row.figures is None:
            cells += [row.skipped or row.failed or "", *[NONE] * (len(metrics) + 3)]
        else:
            cells += [_metric(each, metric) for metric in metrics]
            cells += [
                _number(row.seconds_per_edit, "{:.2f}"),
                _number(row.peak_memory, "{:,.0f}"),
                _kilobytes(row),
                _slower(row),
            ]
        rows.append(tuple(cells))
        runs.append(run_name(each))
    head = ("T", "method", *metrics, "s/edit", "peak MiB", "saved kB", "slower, batch 1 / 8")
    said = "Free answers with natural stop, on the final model, over all T edits: the share that is the wanted one, whole; "
    said += "below it the 95 % interval (bootstrapped over edits)."
    if "perplexity" in metrics:
        said += " Perplexity is that of the targets behind their prompts."
    if "ood" in metrics:
        said += (
            " Ood is the share of other true texts about the edits whose loss is below -log 0.8."
        )
    return Table("What counts", said, head, tuple(rows), tuple(runs))


def _metric(each: Measured, metric: str) -> str:
    figures = each.row.figures or {}
    if metric in ("perplexity", "ood"):
        return _number(figures.get(metric), "{:,.2f}")
    return with_interval(each.figure(metric))


def with_interval(figure: Figure | None) -> str:
    """A figure, and on a second line its interval."""
    return NONE if figure is None else f"{figure.value:.3f}\n{figure.low:.2f}–{figure.high:.2f}"


def scores_table(measured: Sequence[Measured]) -> Table:
    """The same answers, counted in every way that the field counts."""
    done = [each for each in measured if each.row.figures]
    shown = [
        measure
        for measure in MEASURES[:3]
        if any(_score(each, "generated", measure) is not None for each in done)
    ]
    known = {each.path: opinions(each.path.parent.parent) for each in done}
    judges = sorted({who for said in known.values() for who, _ in said.values()})
    rows = []
    for each in done:
        for measure in shown:
            cells = [_number(_score(each, score, measure), "{:.3f}") for score in SCORES]
            if judges:
                cells.append(_number(judged_share(each, known[each.path], measure), "{:.3f}"))
            rows.append((f"{each.row.edits:,}", each.label, measure, *cells))
    runs = [run_name(each) for each in done for _ in shown]
    note = " ".join(f"*{name}*: {what}." for name, what in SCORES.items())
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
    found: float | None = (each.row.figures or {})["scores"][score][measure]
    return found


def kinds_table(measured: Sequence[Measured]) -> Table:
    """Locality and portability by kind, and drift."""
    rows, runs = [], []
    for each in measured:
        if each.row.figures is None:
            continue
        figures, moved = each.row.figures, each.row.drift or {}
        cells = [_number(figures["locality_by_kind"][kind], "{:.3f}") for kind in LOCALITY_KINDS]
        cells += [
            _number(figures["divergence_by_kind"].get(kind), "{:.2g}") for kind in LOCALITY_KINDS
        ]
        cells += [
            _number(figures["portability_by_kind"].get(kind), "{:.3f}")
            for kind in PORTABILITY_KINDS
        ]
        cells += [
            _number(moved.get(name), form)
            for name, form in (("perplexity", "{:.1f}"), ("divergence", "{:.2g}"))
        ]
        rows.append(
            (f"{each.row.edits:,}", each.label, *cells, _number(moved.get("fluency"), "{:.2f}"))
        )
        runs.append(run_name(each))
    local = [kind.replace("_", " ") for kind in LOCALITY_KINDS]
    head = ("T", "method", *local, *(f"KL {kind}" for kind in local), *PORTABILITY_KINDS)
    note = (
        "Locality: the share of free answers that did not change, and KL(base || edited) per token of the base's answer, by "
        "what is asked. Portability: the share of free answers that are right. Drift: perplexity of, and KL on, text that "
        "no edit is about. Fluency: n-gram entropy of 100 tokens, in bits."
    )
    table = (*head, "text perplexity", "KL text", "fluency")
    return Table("What else moved, by kind", note, table, tuple(rows), tuple(runs))


def retention_table(measured: Sequence[Measured]) -> Table | None:
    """What became of each cohort of edits; None where there is one checkpoint only."""
    followed = {}
    for name in dict.fromkeys(
        each.label for each in measured if each.row.figures and each.row.method
    ):
        found = retention([each for each in measured if each.label == name and each.row.figures])
        if found is not None:
            followed[name] = found
    times = sorted({edits for found in followed.values() for edits in found.checkpoints})
    rows: list[tuple[str, ...]] = []
    for name, found in followed.items():
        whole = _number(found.forgetting, "{:.3f}"), _number(found.backward_transfer, "{:+.3f}")
        first = 1
        for last, shares in zip(found.checkpoints, found.accuracy, strict=True):
            at = dict(zip(found.checkpoints, shares, strict=True))
            cells = [
                "" if (share := at.get(edits)) is None else _number(share, "{:.3f}")
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
    if not rows:
        return None
    head = (
        "method",
        "edits",
        *(f"at {edits:,}" for edits in times),
        "forgetting",
        "backward transfer",
    )
    note = (
        "The share of each cohort's own prompts that is answered right at each later checkpoint. Forgetting: how far "
        "cohorts are at the end below the best they ever were. Backward transfer: above where they were when written."
    )
    return Table("Retention", note, head, tuple(rows))


def paper_tables(task: str) -> list[Table]:
    """What papers print about a task, marked as theirs."""
    known: list[dict[str, Any]] = tomllib.loads(
        files("errata.bench").joinpath("papers.toml").read_text("utf-8")
    )["table"]
    found = []
    for table in known:
        if table["task"] == task:
            rows = tuple(
                (f"{t:,}", name, *(f"{value:.2f}" for value in values))
                for t, name, *values in table["rows"]
            )
            head = ("T", "method", *table["columns"])
            found.append(
                Table(
                    f"Published: {table['paper']}",
                    "The paper's own figures, on its model and data.",
                    head,
                    rows,
                )
            )
    return found


def runs_table(measured: Sequence[Measured]) -> Table:
    """Where each figure comes from."""
    rows = []
    for each in measured:
        row, made = each.row, each.row.made
        settings = (
            ", ".join(f"{name}={value}" for name, value in row.settings.items())
            or "the method's own"
        )
        versions = ", ".join(
            f"{name} {version}" for name, version in made.get("versions", {}).items()
        )
        file = f"{each.path.parent.parent.name}/rows/{each.path.name}"
        commit, time = made.get("commit") or NONE, made.get("time", NONE)
        rows.append((run_name(each), file, settings, versions, commit, time, row.key))
    head = ("run", "file", "settings", "versions", "commit", "time", "key")
    note = "Every single answer stands in the file of its run, as JSON lines."
    return Table(
        "Where it comes from", note, head, tuple(rows), tuple(run_name(each) for each in measured)
    )


def difference_table(found: Sequence[Difference], all_of_them: bool) -> Table:
    """What differs between two runs, beyond noise or all of it."""
    shown = [each for each in found if all_of_them or each.beyond_noise]
    rows = tuple(
        (
            f"{each.edits:,}",
            each.name,
            each.measure,
            each.score.replace("_", " "),
            f"{each.before:.3f}",
            f"{each.after:.3f}",
            f"{each.after - each.before:+.3f}",
            f"{each.low:+.3f} to {each.high:+.3f}",
            "yes" if each.beyond_noise else "no",
        )
        for each in shown
    )
    head = (
        "T",
        "method",
        "measure",
        "counted",
        "before",
        "after",
        "difference",
        "95 %",
        "beyond noise",
    )
    note = (
        f"{sum(each.beyond_noise for each in found)} of {len(found)} figures differ beyond noise."
    )
    return Table("Differences", note, head, rows)


def run_name(each: Measured) -> str:
    """What a measurement is called."""
    return f"{each.label}, {each.row.edits:,}"


def about(row: Row) -> str:
    """What a stream is, in a sentence or two: data, model, reading, contradictions, ceiling."""
    conflicts, records = row.conflicts
    said = f"{row.data}, on {row.model.rstrip('/').rpartition('/')[2]}. "
    if not conflicts:
        return said + "No record contradicts another, so there is no ceiling below 1."
    share = f"{conflicts} of {records} records contradict another ({conflicts / records:.0%})"
    how = {
        "published": f"they are in the stream as published, so that reliability cannot be above {row.ceiling:.3f}",
        "conflict-free": "they are left out, and locality probes that ask what is edited",
        "later": "the last answer to a question is the right one, for all records that ask it",
    }[row.reading]
    return f"{said}{share}: {how}."


def _number(value: float | None, form: str) -> str:
    return NONE if value is None else form.format(value)


def _kilobytes(row: Row) -> str:
    return NONE if row.bytes_saved is None else f"{row.bytes_saved / 1000:,.0f}"


def _slower(row: Row) -> str:
    return " / ".join(f"{share:+.0%}" for share in row.overhead.values()) if row.overhead else NONE
