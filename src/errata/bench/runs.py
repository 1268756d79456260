"""The runs of a benchmark: methods and variants by their names, with their settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import errata
from errata import presets
from errata.bench.stream import FORCED, GIVEN, UNEDITED, Run
from errata.errors import UnknownNameError, UsageError, suggest
from errata.methods import variants

ALL = "all"
"""Means every method and variant."""


def runs_of(names: Sequence[str], base_config: Any, options: Sequence[str] = ()) -> list[Run]:
    """Make the runs of methods and variants, the unedited model first.

    Settings are those measured or published for this model (`presets.toml`) where there are any,
    else the method's own; what a variant's name stands for comes above them, and the options above
    both.

    Args:
        names: methods and variants; `all` stands for every one. `given` is the base model with the
            right fact in front, `forced-NAME` what a method's router finds, printed (`references`).
        base_config: the model's configuration.
        options: `NAME.setting=value`.

    Raises:
        UnknownNameError: no such method or variant.
        ConfigError: a setting is unknown or out of range.
        UsageError: an option is not of that form.
    """
    known = variants()
    every = known if ALL in names else ()
    named = (name for name in names if name not in (UNEDITED, ALL))
    wanted = list(dict.fromkeys([*every, *named]))
    for name in wanted:
        if name != GIVEN and name.removeprefix(FORCED) not in known:
            raise UnknownNameError(
                f"there is no method {name!r} to compare.{suggest(name, [*known, ALL, GIVEN])}"
            )
    given: dict[str, dict[str, str]] = {name.removeprefix(FORCED): {} for name in wanted}
    for option in options:
        target, _, value = option.partition("=")
        name, _, setting = target.partition(".")
        if not (value and setting) or name not in given:
            raise UsageError(
                f"--set takes NAME.setting=value, NAME one of {', '.join(given)}; got {option!r}."
            )
        given[name][setting] = value
    runs = [Run(UNEDITED, None)]
    for name in wanted:
        if name == GIVEN:
            runs.append(Run(GIVEN, None))
            continue
        plain = name.removeprefix(FORCED)
        method, variant = known[plain]
        settings = {**_preset(method, base_config), **variant, **given[plain]}
        config = errata.method_class(method).config_class.from_dict(settings)
        runs.append(Run(name, method, {key: config.to_dict()[key] for key in settings}))
    return runs


def _preset(method: str, base_config: Any) -> dict[str, Any]:
    try:
        return presets.preset_for(method, base_config).settings
    except UnknownNameError:
        return {}
