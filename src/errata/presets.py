"""Published settings by method and model, read from `presets.toml` and applied only when asked for.

A preset fits a model when every value under `match` is that of the model's configuration.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from errata.errors import UnknownNameError, suggest


@dataclass(frozen=True)
class Preset:
    """The published settings of one method for one model.

    Attributes:
        name: what `--preset` takes.
        method: the method that the settings belong to.
        match: name -> value in the configuration of the models it was published for.
        settings: fields of the method's config.
        source: where they were published.
    """

    name: str
    method: str
    match: dict[str, Any]
    settings: dict[str, Any]
    source: str

    def fits(self, config: Any) -> bool:
        """Return whether it was published for a model with this configuration."""
        text = config.get_text_config()
        return all(getattr(text, name, None) == value for name, value in self.match.items())


def presets(method: str | None = None) -> list[Preset]:
    """Return all presets, or those of one method."""
    data = tomllib.loads(files("errata").joinpath("presets.toml").read_text(encoding="utf-8"))
    rows = [Preset(**row) for row in data["preset"]]
    return [row for row in rows if method in (None, row.method)]


def preset(method: str, name: str) -> Preset:
    """Return the preset of a method that has this name.

    Raises:
        UnknownNameError: the method has none; the nearest name is suggested.
    """
    known = {row.name: row for row in presets(method)}
    if name not in known:
        raise UnknownNameError(f"{method} has no preset {name!r}.{suggest(name, [*known, 'auto'])}")
    return known[name]


def preset_for(method: str, config: Any) -> Preset:
    """Return the first preset of a method that fits the model with this configuration.

    Raises:
        UnknownNameError: there is none.
    """
    for row in presets(method):
        if row.fits(config):
            return row
    known = ", ".join(row.name for row in presets(method)) or "none at all"
    raise UnknownNameError(
        f"{method} has no preset for this {config.model_type} with {config.num_hidden_layers} "
        f"layers (there are: {known}). "
        "Leave --preset out: the defaults fit themselves to the model."
    )
