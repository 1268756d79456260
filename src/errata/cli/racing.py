"""What `errata compare` reads and shows: the stream that its options ask for, and a bar for every contender that runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from errata.cli import screen
from errata.cli.opening import loading
from errata.cli.reading import check_cases_fit
from errata.errors import UsageError

if TYPE_CHECKING:
    from errata.bench.compare import Shown
    from errata.bench.stream import Stream
    from errata.cases import Case

TRAINING = 1000
"""Cases about the bundled model that methods are trained on."""


def stream_of(
    model: str,
    edits: int,
    cases: Path | None,
    train: Path | None,
    at: str,
    out: Path | None,
    seed: int,
    dtype: str,
    device_map: str | None,
) -> tuple[Stream, Any]:
    """(the stream, the model's configuration).

    Raises:
        UsageError: there are no cases for this model, too few, or some of them are trained on.
    """
    import errata
    from errata.bench.readings import read_as
    from errata.bench.stream import Stream
    from errata.cache import fingerprint
    from errata.saving import BUNDLED

    try:
        checkpoints = sorted({n for n in (int(part) for part in at.split(",")) if n < edits} | {edits})
    except ValueError:
        raise UsageError(f"--at takes numbers with commas between, e.g. 1,10,100; got {at!r}.") from None
    if checkpoints[0] < 1:
        raise UsageError(f"--at takes numbers from 1; got {checkpoints[0]}.")
    if cases is None and model not in BUNDLED:
        raise UsageError(f"say with --cases FILE what {model} is to be edited with; only cases about atlas are made here.")
    wanted, training, data = _cases(edits, cases, train, seed)
    with loading(model):
        base, tokenizer = errata.load_base(model, dtype, device_map)
    if cases is not None:
        check_cases_fit(errata.LM(base, tokenizer), cases, wanted)
    folder = out or Path("out") / f"compare-{Path(model).name}"
    reading = read_as("published", wanted, [frozenset()] * len(wanted))
    stream = Stream(
        model, fingerprint(base), data, reading, training, tuple(checkpoints), folder, dtype=dtype, device_map=device_map
    )
    return stream, base.config


def _cases(edits: int, cases: Path | None, train: Path | None, seed: int) -> tuple[list[Case], list[Case], str]:
    """(the stream's cases, those to train on, what the data is called)."""
    import errata
    from errata.atlas import make_cases, training_cases

    wanted = errata.read_cases(cases) if cases else make_cases(edits, seed)
    if len(wanted) < edits:
        raise UsageError(f"{cases} has {len(wanted)} cases; --edits {edits} asks for more.")
    wanted = wanted[:edits]
    training = errata.read_cases(train) if train else [] if cases else training_cases(TRAINING, wanted, seed + 1)
    asked = {prompt for case in wanted for prompt in (case.edit.prompt, *case.rephrases)}
    both = next((case for case in training if {case.edit.prompt, *case.rephrases} & asked), None)
    if both is not None:
        raise UsageError(f"{train}: {both.edit.prompt!r} is trained on and in the stream; take it out of one of them.")
    return wanted, training, cases.stem if cases else f"atlas seed {seed}"


@contextlib.contextmanager
def race_bars(count: int) -> Iterator[Shown]:
    """A bar for every contender, as it starts."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=screen.err, disable=not screen.err.is_terminal) as progress:
        tasks: dict[str, TaskID] = {}

        def shown(name: str, what: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = progress.add_task(name)
            text = f"{name}: {what} ({list(tasks).index(name) + 1} of {count})"
            progress.update(tasks[name], description=text, completed=done, total=total or None)

        yield shown
