"""All methods on one stream, side by side: which ones, in which order, and the table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import errata
from errata import presets
from errata.bench.executors import EXECUTORS, Shown
from errata.bench.stream import UNEDITED, Contender, Row, Stream
from errata.cases import LOCALITY_KINDS
from errata.errors import UnknownNameError, UsageError, suggest
from errata.evaluation import MEASURES
from errata.methods import variants

ALL = "all"


def contenders(
    names: Sequence[str], base_config: Any, options: Sequence[str] = ()
) -> list[Contender]:
    """The contenders behind names, the unedited model first.

    Settings are those measured or published for this model (`presets.toml`) where there are any,
    else the method's own; what a variant's name stands for comes above them, and what is asked for
    above both.

    Args:
        names: methods and variants; `all` stands for every one.
        base_config: the model's configuration.
        options: `NAME.setting=value`.

    Raises:
        UnknownNameError: no such method or variant.
        ConfigError: a setting is unknown or out of range.
        UsageError: an option is not of that form.
    """
    known = variants()
    wanted = list(
        dict.fromkeys(known if ALL in names else (name for name in names if name != UNEDITED))
    )
    for name in wanted:
        if name not in known:
            raise UnknownNameError(
                f"there is no method {name!r} to compare.{suggest(name, [*known, ALL])}"
            )
    given: dict[str, dict[str, str]] = {}
    for option in options:
        target, _, value = option.partition("=")
        name, _, setting = target.partition(".")
        if not (value and setting) or name not in wanted:
            raise UsageError(
                f"--set takes NAME.setting=value, NAME one of {', '.join(wanted)}; got {option!r}."
            )
        given.setdefault(name, {})[setting] = value
    made = [Contender(UNEDITED, None)]
    for name in wanted:
        method, variant = known[name]
        settings = {**_preset(method, base_config), **variant, **given.get(name, {})}
        config = errata.method_class(method).config_class.from_dict(settings)
        made.append(Contender(name, method, {key: config.to_dict()[key] for key in settings}))
    return made


def compare(
    stream: Stream, racers: Sequence[Contender], jobs: int, shown: Shown, executor: str = "local"
) -> list[Row]:
    """Take every contender through the stream, several at a time; the unedited model goes first and
    alone.

    Rows that an earlier run left in the stream's folder are kept. A contender that fails has rows
    that say why.

    Args:
        stream: what they go through.
        racers: who.
        jobs: how many at a time, here; a cluster takes as many as it has room for.
        shown: told of progress.
        executor: of `executors.EXECUTORS`.

    Returns:
        One row per contender and checkpoint, in order of checkpoints.

    Raises:
        UsageError: there is no such executor, or it is not installed.
    """
    if executor not in EXECUTORS:
        raise UsageError(f"there is no executor {executor!r}.{suggest(executor, EXECUTORS)}")
    waiting = [
        racer
        for racer in racers
        if any(stream.kept_row(racer, n) is None for n in stream.checkpoints)
    ]
    for group in (
        [r for r in waiting if r.method is None],
        [r for r in waiting if r.method is not None],
    ):
        if group:
            EXECUTORS[executor](group, stream, jobs, shown)
    return list(rows(stream, racers))


def rows(stream: Stream, racers: Sequence[Contender]) -> Iterator[Row]:
    """The rows there are, failures too, in order of checkpoints."""
    for edits in stream.checkpoints:
        for racer in racers:
            row = Row.read(stream.row_file(racer.name, edits))
            if row is not None and row.key == stream.key(racer, edits):
                yield row


def _preset(method: str, base_config: Any) -> dict[str, Any]:
    try:
        return presets.preset_for(method, base_config).settings
    except UnknownNameError:
        return {}


def table(found: Sequence[Row]) -> str:
    """The rows as Markdown: free answers, and teacher-forced figures in brackets."""
    head = [
        "T",
        "method",
        "reliability",
        "generalization",
        "locality",
        *LOCALITY_KINDS,
        "portability",
    ]
    head += ["s/edit", "peak MiB", "saved kB", "overhead 1 / 8"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(_cells(row)) + " |" for row in found]
    return "\n".join(lines)


def _cells(row: Row) -> list[str]:
    front = [f"{row.edits:,}", row.name]
    if row.figures is None:
        why = row.skipped or row.failed or ""
        return [*front, why.replace("|", "\\|"), *[""] * 10]
    free, forced, kinds = (
        row.figures[name] for name in ("generated", "teacher_forced", "locality_by_kind")
    )
    both = {
        name: "-" if free[name] is None else f"{free[name]:.2f} ({forced[name]:.2f})"
        for name in MEASURES
    }
    by_kind = ["-" if kinds[kind] is None else f"{kinds[kind]:.2f}" for kind in LOCALITY_KINDS]
    rest = ["-" if row.peak_memory is None else f"{row.peak_memory:,.0f}", "-", "-"]
    if row.bytes_saved is not None:
        rest[1] = f"{row.bytes_saved / 1000:,.0f}"
    if row.overhead:
        rest[2] = " / ".join(f"{share:+.0%}" for share in row.overhead.values())
    seconds = "-" if row.seconds_per_edit is None else f"{row.seconds_per_edit:.2f}"
    return [
        *front,
        *(both[name] for name in ("reliability", "generalization", "locality")),
        *by_kind,
        both["portability"],
        seconds,
        *rest,
    ]
