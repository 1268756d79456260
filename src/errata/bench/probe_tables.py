"""Tables of the sceptic's probes: every kind on its own, and their mean, with intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from errata.bench.judge import PROBE_KINDS, judged_share, opinions
from errata.bench.results import DRAWS, TAILS, Estimate, Measured
from errata.bench.tables import NONE, Table, number, run_name, with_interval
from errata.measures import PROBE_SCORES, PROBES, counted
from errata.probes import KINDS


def probes_tables(measured: Sequence[Measured]) -> list[Table]:
    """Show the probes by kind, one table for each way to count them, and for a judge's opinions."""
    asked = [each for each in measured if (each.result.figures or {}).get("probes")]
    tables = [_table(asked, score) for score in PROBE_SCORES] if asked else []
    return [*tables, *_judged(asked)]


def probes_mean(each: Measured, score: str) -> Estimate | None:
    """Return the mean over kinds of the shares of right answers, bootstrapped over edits.

    Args:
        each: a measurement.
        score: of `PROBE_SCORES`.
    """
    answers = [answer for answer in each.answers if answer.measure == PROBES]
    if not answers:
        return None
    edits = {
        edit_id: place for place, edit_id in enumerate(dict.fromkeys(a.edit_id for a in answers))
    }
    kinds = {kind: place for place, kind in enumerate(dict.fromkeys(a.kind for a in answers))}
    sums, counts = np.zeros((len(edits), len(kinds))), np.zeros((len(edits), len(kinds)))
    for answer in answers:
        place = edits[answer.edit_id], kinds[answer.kind]
        sums[place] += counted(answer, score)
        counts[place] += 1
    number = len(edits)
    drawn = np.random.default_rng(0).multinomial(number, np.full(number, 1 / number), size=DRAWS)
    with np.errstate(invalid="ignore"):  # a kind that no drawn edit has
        means = np.nanmean((drawn @ sums) / (drawn @ counts), axis=1)
    low, high = np.quantile(means, TAILS).tolist()
    value = float((sums.sum(0) / counts.sum(0)).mean())
    return Estimate(value, low, high, number)


def _judged(asked: Sequence[Measured]) -> list[Table]:
    """Show the probes that are answered in words, as a judge counts them; [] without a judge."""
    known = {each.path: opinions(each.path.parent.parent) for each in asked}
    judges = sorted({judge for found in known.values() for judge, _ in found.values()})
    rows = [
        (
            f"{each.result.edits:,}",
            each.label,
            *(
                number(judged_share(each, known[each.path], PROBES, kind), "{:.3f}")
                for kind in PROBE_KINDS
            ),
        )
        for each in asked
    ]
    note = f"Exact, or right in the opinion of {', '.join(judges)}."
    head = ("T", "method", *PROBE_KINDS)
    shown = [row for row in rows if any(cell != NONE for cell in row[2:])]
    if not judges or not shown:
        return []
    return [
        Table("The sceptic's probes, judged", note, head, tuple(rows), tuple(map(run_name, asked)))
    ]


def _table(asked: Sequence[Measured], score: str) -> Table:
    there = {kind for each in asked for kind in (each.result.figures or {})["probes"][score]}
    kinds = [kind for kind in KINDS if kind in there]
    rows = [
        (
            f"{each.result.edits:,}",
            each.label,
            *(with_interval(each.figure(PROBES, score, kind)) for kind in kinds),
            with_interval(probes_mean(each, score)),
        )
        for each in asked
    ]
    head = ("T", "method", *(kind.replace("_", " ") for kind in kinds), "mean")
    right = "; ".join(f"*{kind}*: {KINDS[kind].asks} ({KINDS[kind].right})" for kind in kinds)
    note = (
        f"Free answers with natural stop. *{score}*: {PROBE_SCORES[score]}. {right}. "
        "The mean is over the kinds; below each share its 95 % interval."
    )
    left_out = (asked[0].result.figures or {}).get("probes_left_out") or {}
    if left_out:
        listed = ", ".join(f"{kind} {edits}" for kind, edits in left_out.items())
        note += f" Edits that lack what a kind needs, left out: {listed}."
    return Table(
        f"The sceptic's probes, {score}", note, head, tuple(rows), tuple(map(run_name, asked))
    )
