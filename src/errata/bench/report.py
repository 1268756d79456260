"""Makes the report: one self-contained HTML page, or Markdown tables. It computes nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby

from errata.bench import charts
from errata.bench.probe_tables import probes_tables
from errata.bench.results import Measured, stream_name
from errata.bench.tables import (
    Table,
    about,
    kinds_table,
    main_table,
    paper_tables,
    retention_table,
    runs_table,
    scores_table,
)
from errata.measures import MEANINGS


def markdown(measured: Sequence[Measured]) -> str:
    """Return every stream's tables in Markdown."""
    parts = ["# Report\n"]
    for stream in _streams(measured):
        parts.append(f"## {_title(stream)}\n\n{about(stream[0].result)}\n")
        parts += [table.markdown() for table in _tables(stream)]
    return "\n".join(parts)


def html(measured: Sequence[Measured]) -> str:
    """Return the page."""
    streams = list(_streams(measured))
    body = ["<h1>Report</h1>", f"<p>{escape(_meanings())}</p>"]
    if len(streams) > 1:
        links = "".join(
            f'<li><a href="#s{i}">{escape(_title(stream))}</a></li>'
            for i, stream in enumerate(streams)
        )
        body.append(f"<ul>{links}</ul>")
    for place, stream in enumerate(streams):
        body += _section(place, stream)
    return _PAGE.format(style=_STYLE, body="\n".join(body))


def _section(place: int, stream: Sequence[Measured]) -> Iterator[str]:
    yield f'<section id="s{place}"><h2>{escape(_title(stream))}</h2>'
    yield f"<p>{escape(about(stream[0].result))}</p>"
    figures = (
        (
            charts.over_time(stream, stream[0].result.metrics),
            "The shares that count, over the stream; bars are 95 % intervals.",
        ),
        (
            charts.locality_map(stream),
            "The share of free answers that did not change, by what is asked.",
        ),
        (
            charts.retention_maps(stream),
            "The share of each cohort's own prompts that is answered right, later on.",
        ),
    )
    tables = _tables(stream)
    yield _table(place, tables[0])
    for drawn, caption in figures:
        if drawn:
            yield f"<figure>{drawn}<figcaption>{escape(caption)}</figcaption></figure>"
    for table in tables[1:]:
        yield _table(place, table)
    yield "</section>"


def _tables(stream: Sequence[Measured]) -> list[Table]:
    kept = retention_table(stream)
    own = [main_table(stream), *probes_tables(stream), scores_table(stream), kinds_table(stream)]
    return [
        *own,
        *([kept] if kept else []),
        *paper_tables(stream[0].result.task),
        runs_table(stream),
    ]


def _streams(measured: Sequence[Measured]) -> Iterator[list[Measured]]:
    for _, group in groupby(measured, key=lambda each: stream_name(each.result)):
        yield list(group)


def _title(stream: Sequence[Measured]) -> str:
    data, model, reading = stream_name(stream[0].result)
    return f"{data.split(' ')[0]} on {model}, {reading}"


def _meanings() -> str:
    return "; ".join(f"{name}: {what}" for name, what in MEANINGS.items()) + "."


def _table(place: int, table: Table) -> str:
    """Return a table; where a row comes from one run, its first cells lead to it."""
    head = "".join(f"<th>{escape(name)}</th>" for name in table.head)
    wide = "<div class='wide'>"
    lines = []
    listing = table.title.startswith("Where")
    for number, row in enumerate(table.rows):
        run = table.runs[number] if table.runs else None
        anchor = f"s{place}-{re.sub('[^a-z0-9]+', '-', run.lower())}" if run else ""
        cells = [_cell(cell) for cell in row]
        if run and not listing:
            cells[1] = f'<a href="#{anchor}">{cells[1]}</a>'
        mark = f' id="{anchor}"' if run and listing else ""
        lines.append(f"<tr{mark}>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    note = re.sub(r"\*([a-z_]+)\*", r"<i>\1</i>", escape(table.note))
    return (
        f"<h3>{escape(table.title)}</h3>{wide}<table><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div><p class='note'>{note}</p>"
    )


def _cell(text: str) -> str:
    value, _, below = text.partition("\n")
    return escape(value) + (f"<small>{escape(below)}</small>" if below else "")


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; margin: 2rem auto;
  max-width: 1200px; padding: 0 1.5rem; }
h1 { font-size: 1.7rem; } h2 { margin-top: 3rem; border-bottom: 2px solid #1a1a1a; }
h3 { margin: 2rem 0 .5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem .25rem 0; }
th { text-align: left; vertical-align: bottom; border-bottom: 1px solid #1a1a1a; }
td { border-bottom: 1px solid #e2e2e2; vertical-align: top; white-space: nowrap; }
td:nth-child(n+3) { max-width: 22rem; overflow-wrap: anywhere; white-space: normal; }
small { display: block; color: #595959; font-size: 11px; white-space: nowrap; }
.note { color: #404040; font-size: 13px; max-width: 65rem; }
figure { margin: 1.5rem 0; } figure svg { max-width: 100%; height: auto; }
figcaption { color: #404040; font-size: 13px; }
a { color: #00558b; } tr:target td { background: #fff3cd; }
"""
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>errata: report</title><style>{style}</style></head>
<body>
{body}
</body></html>
"""
