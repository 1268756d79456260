"""`errata sisa MODEL --data records.jsonl --out FOLDER`, then `errata sisa FOLDER --forget ...`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from errata.cli import options
from errata.errors import UsageError


def sisa(
    model: Annotated[
        str, typer.Argument(metavar="MODEL|FOLDER", help="A base model; or what --out was before.")
    ],
    data: Annotated[
        Path | None, typer.Option(help="JSON lines to learn: question and answer, or text.")
    ] = None,
    out: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="For records, shards and checkpoints.")
    ] = None,
    forget: Annotated[
        Path | None, typer.Option(help="JSON lines to take out of a folder again.")
    ] = None,
    to: Annotated[
        Path | None, typer.Option(metavar="NEW", help="Write one model, with the shards merged.")
    ] = None,
    ask: Annotated[
        list[str] | None, typer.Option(metavar="PROMPT", help="Ask all shards, hear the surest.")
    ] = None,
    settings: options.Settings = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    dtype: Annotated[
        str | None, typer.Option(help="float32 (the default), bfloat16 or float16, for --data.")
    ] = None,
    device_map: options.DeviceMap = None,
    wait: options.Wait = 60,
) -> None:
    """Learn records in shards, so that one can be taken out again at a small part of the cost."""
    from errata.cli import sharding
    from errata.cli.choices import Choices
    from errata.cli.opening import writing_into

    tasks = [name for name, given in _tasks(data, forget, to, ask) if given]
    if len(tasks) > 1:
        raise UsageError(f"{' and '.join(tasks)} do not go together; give one at a time.")
    if (data is None) != (out is None):
        raise UsageError("--data and --out go together: errata sisa MODEL --data FILE --out FOLDER")
    if data is None and (settings or dtype):
        raise UsageError(
            "--set and --dtype are for --data alone; a folder keeps those it began in."
        )
    where = sharding.Where(model, dtype or "float32", device_map)
    if data is None:
        sharding.folder_of(where)  # before it is locked, which would make it
    with writing_into(model if out is None else out, wait):
        if data is not None and out is not None:
            sharding.begin(where, data, Path(out), Choices(None, settings or ()).given, as_json)
        elif forget is not None:
            sharding.forget(where, forget, as_json)
        elif ask:
            sharding.ask(where, ask, as_json)
        elif to is not None:
            sharding.write(where, to, as_json)
        else:
            sharding.go_on(where, as_json)


def _tasks(*given: object) -> zip[tuple[str, object]]:
    return zip(("--data", "--forget", "--to", "--ask"), given, strict=True)
