"""The figures of `errata eval`, read for a card: checked, and bound to the edits they are of."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from errata.errors import UsageError

_NAME = re.compile(r"[a-z0-9_]{1,40}")
_MOST_BYTES = 2**24


@dataclass(frozen=True)
class Figures:
    """What was measured of edits.

    Attributes:
        cases: how many cases were asked.
        generation: of the artifact that was measured; None where the report does not say.
        generated: measure -> share of free answers that are right, None where nothing was asked.
        teacher_forced: measure -> share of target tokens that are the likeliest.
        probes: score -> kind of probe -> share of right answers.
    """

    cases: int
    generation: str | None
    generated: Mapping[str, float | None]
    teacher_forced: Mapping[str, float | None]
    probes: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)


def read_figures(path: Path) -> Figures:
    """Read the file that `errata eval --json` has written.

    Raises:
        UsageError: it cannot be read, or is something else.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES)
        data = json.loads(content.decode("utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: {_expected('no JSON')}") from error
    return figures_of(data, str(path))


def figures_of(data: Any, where: str = "the report") -> Figures:
    """Read the figures of `Evaluation.to_dict`, or of its JSON; `where` is for the error.

    Raises:
        UsageError: it is something else.
    """
    if not isinstance(data, Mapping):
        raise UsageError(f"{where}: {_expected('no JSON object')}")
    cases, generation = data.get("edits"), data.get("generation")
    if not isinstance(cases, int) or isinstance(cases, bool) or cases < 0:
        raise UsageError(f"{where}: {_expected('it does not count its cases')}")
    if generation is not None and not isinstance(generation, str):
        raise UsageError(f"{where}: {_expected('its generation is no text')}")
    scores = data.get("probes") or {}
    if not isinstance(scores, Mapping):
        raise UsageError(f"{where}: {_expected('its probes are no object')}")
    return Figures(
        cases,
        generation,
        _shares(data, "generated", where),
        _shares(data, "teacher_forced", where),
        {str(score): _shares(scores, score, where) for score in scores},
    )


def _shares(data: Mapping[str, Any], name: str, where: str) -> dict[str, float | None]:
    """Return name -> share, of a field."""
    shares = data.get(name)
    if not isinstance(shares, Mapping):
        raise UsageError(f"{where}: {_expected(f'it has no {name!r}')}")
    for key, value in shares.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not isinstance(key, str) or _NAME.fullmatch(key) is None:
            raise UsageError(f"{where}: {_expected(f'{name!r} has a name that is none of its')}")
        if value is not None and not (is_number and 0 <= value <= 1):
            raise UsageError(f"{where}: {_expected(f'{name}.{key} is no share of 0 to 1')}")
    return dict(shares)


def _expected(what: str) -> str:
    return f"{what}; give what `errata eval DIR --cases FILE --json` prints."
