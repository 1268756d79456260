"""All methods on one stream, side by side: which ones, in which order, each in a process of its own, and the table.

A process a contender makes its peak memory its own, and one that dies takes no other with it.
"""

from __future__ import annotations

import multiprocessing
import queue as queue_module
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import errata
from errata import presets
from errata.bench.run import run
from errata.bench.stream import UNEDITED, Contender, Row, Stream, blank_row
from errata.cases import LOCALITY_KINDS
from errata.errors import UnknownNameError, UsageError, suggest
from errata.evaluate import MEASURES

ALL = "all"
Shown = Callable[[str, str, int, int], None]
"""Called with (contender, what it is doing, how much of it is done, out of how much)."""


def contender_names() -> dict[str, tuple[str, dict[str, Any]]]:
    """Every name that can be compared -> (method, the settings that the name stands for)."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for method in errata.method_names():
        found[method] = (method, {})
        found |= {name: (method, dict(more)) for name, more in errata.method_class(method).variants.items()}
    return found


def contenders(names: Sequence[str], base_config: Any, options: Sequence[str] = ()) -> list[Contender]:
    """The contenders behind names, the unedited model first.

    Settings are those measured or published for this model (`presets.toml`) where there are any, else the method's own; what
    a variant's name stands for comes above them, and what is asked for above both.

    Args:
        names: methods and variants; `all` stands for every one.
        base_config: the model's configuration.
        options: `NAME.setting=value`.

    Raises:
        UnknownNameError: no such method or variant.
        ConfigError: a setting is unknown or out of range.
        UsageError: an option is not of that form.
    """
    known = contender_names()
    wanted = list(dict.fromkeys(known if ALL in names else (name for name in names if name != UNEDITED)))
    for name in wanted:
        if name not in known:
            raise UnknownNameError(f"there is no method {name!r} to compare.{suggest(name, [*known, ALL])}")
    given: dict[str, dict[str, str]] = {}
    for option in options:
        target, _, value = option.partition("=")
        name, _, setting = target.partition(".")
        if not (value and setting) or name not in wanted:
            raise UsageError(f"--set takes NAME.setting=value, NAME one of {', '.join(wanted)}; got {option!r}.")
        given.setdefault(name, {})[setting] = value
    made = [Contender(UNEDITED, None)]
    for name in wanted:
        method, variant = known[name]
        settings = {**_preset(method, base_config), **variant, **given.get(name, {})}
        config = errata.method_class(method).config_class.from_dict(settings)
        made.append(Contender(name, method, {key: config.to_dict()[key] for key in settings}))
    return made


def compare(stream: Stream, racers: Sequence[Contender], jobs: int, shown: Shown) -> list[Row]:
    """Take every contender through the stream, `jobs` at a time; the unedited model goes first and alone.

    Rows that an earlier run left in the stream's folder are kept. A contender that fails has rows that say why.

    Returns:
        One row per contender and checkpoint, in order of checkpoints.
    """
    waiting = [racer for racer in racers if any(stream.kept_row(racer, n) is None for n in stream.checkpoints)]
    context = multiprocessing.get_context("spawn")
    messages = context.Queue()
    for group in ([r for r in waiting if r.method is None], [r for r in waiting if r.method is not None]):
        running: list[tuple[Contender, Any]] = []
        queue = list(group)
        try:
            while queue or running:
                while queue and len(running) < jobs:
                    racer = queue.pop(0)
                    process = context.Process(target=_race, args=(racer, stream, messages), daemon=True)
                    process.start()
                    running.append((racer, process))
                _pass_on(messages, shown)
                for racer, process in [pair for pair in running if not pair[1].is_alive()]:
                    running.remove((racer, process))
                    _note_death(racer, stream, process.exitcode)
        finally:
            for _, process in running:
                process.terminate()
    return list(rows(stream, racers))


def _race(racer: Contender, stream: Stream, messages: Any) -> None:
    """What a contender's process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this one
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    run(racer, stream, lambda what, done, total: messages.put((racer.name, what, done, total)))


def _pass_on(messages: Any, shown: Shown) -> None:
    """Show what has come in; wait a moment when nothing has."""
    try:
        shown(*messages.get(timeout=0.2))
        while True:
            shown(*messages.get_nowait())
    except queue_module.Empty:
        pass


def _note_death(racer: Contender, stream: Stream, code: int | None) -> None:
    """Rows that say so, where a process ended without having measured."""
    if not code:
        return
    for edits in stream.checkpoints:
        if stream.kept_row(racer, edits) is None:
            row = blank_row(racer, stream, edits, failed=f"its process ended with exit code {code}")
            row.save(stream.row_file(racer.name, edits))


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
    head = ["T", "method", "reliability", "generalization", "locality", *LOCALITY_KINDS, "portability"]
    head += ["s/edit", "peak MiB", "saved kB", "overhead 1 / 8"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(_cells(row)) + " |" for row in found]
    return "\n".join(lines)


def _cells(row: Row) -> list[str]:
    front = [f"{row.edits:,}", row.name]
    if row.figures is None:
        why = row.skipped or row.failed or ""
        return [*front, why.replace("|", "\\|"), *[""] * 10]
    free, forced, kinds = (row.figures[name] for name in ("generated", "teacher_forced", "locality_by_kind"))
    both = {name: "-" if free[name] is None else f"{free[name]:.2f} ({forced[name]:.2f})" for name in MEASURES}
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
