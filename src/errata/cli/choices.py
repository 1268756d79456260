"""The method and its settings, chosen by `-m`, `--set name=value`, `--preset NAME`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from errata.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from errata import EditModel, MethodConfig
    from errata.conflicts import OnConflict
    from errata.methods.base import Method


@dataclass(frozen=True)
class Choices:
    """A method and settings; None or empty means the method's own, or those of the folder.

    Raises:
        UsageError: an option is not `name=value`; the method, a setting or the preset is unknown.
    """

    method: str | None
    options: Sequence[str] = ()
    preset: str | None = None

    def __post_init__(self) -> None:
        if self.method is not None:  # fails before a model is loaded, where it can
            method, settings = self._resolved()
            method.config_class.from_dict({**settings, **self.given})
            if self.preset != "auto":
                self._of_preset(None)

    @property
    def name(self) -> str:
        """The method's name; that of the recommended one where none is given."""
        from errata.methods import DEFAULT

        return self.method or DEFAULT

    @property
    def given(self) -> dict[str, str]:
        """The settings as texts."""
        for option in self.options:
            if "=" not in option:
                raise UsageError(f"--set takes name=value, e.g. --set steps=40; got {option!r}.")
        return {
            name.strip(): value.strip()
            for name, _, value in (option.partition("=") for option in self.options)
        }

    def config(self, base_config: Any) -> MethodConfig:
        """Return the settings: the method's, above them the preset's, its variant's, the given."""
        method, settings = self._resolved()
        return method.config_class.from_dict(
            {**self._of_preset(base_config), **settings, **self.given}
        )

    def check_trainable(self) -> None:
        """Check that the method needs training.

        Raises:
            ConfigError: it needs no training.
        """
        from errata.methods import resolve, variants

        method, settings = self._resolved()
        if not method.is_trained(method.config_class.from_dict({**settings, **self.given})):
            trained = ", ".join(name for name in variants() if resolve(name)[0].needs_training)
            raise ConfigError(
                f"{self.name} needs no training; say with -m one that does ({trained}), "
                "or write edits with it."
            )

    def check(self, begun: EditModel, where: Path) -> None:
        """Check that edits can resume: method and settings are the same as before.

        Raises:
            ConfigError: another method or another value is given.
        """
        old = begun.method.config
        method, settings = self._resolved() if self.method else (type(begun.method), {})
        if not isinstance(begun.method, method):
            name = begun.method.name
            raise ConfigError(
                f"{where} was begun with the method {name!r}, not {self.method!r}; "
                "give another --out."
            )
        wanted = {**self._of_preset(begun.base.config, old.method), **settings, **self.given}
        new = type(old).from_dict({**old.to_dict(), **wanted}).to_dict()
        for name, value in old.to_dict().items():
            if new[name] != value:
                raise ConfigError(
                    f"{where} was begun with {name}={value}, not {new[name]}; "
                    "leave it, or give another --out."
                )

    def _resolved(self) -> tuple[type[Method], dict[str, Any]]:
        """Return the method, and the settings that its name stands for."""
        from errata.methods import resolve

        return resolve(self.name)

    def _of_preset(self, base_config: Any, method: str | None = None) -> dict[str, Any]:
        from errata import presets

        method = method or self._resolved()[0].config_class.method
        if self.preset is None:
            return {}
        if self.preset == "auto":
            return presets.preset_for(method, base_config).settings
        return presets.preset(method, self.preset).settings


def conflict_choice(given: str) -> OnConflict:
    """Read the policy for conflicts.

    Raises:
        UsageError: it is none of the choices.
    """
    for known in ("replace", "keep", "error"):
        if given == known:
            return known
    raise UsageError(f"--on-conflict is replace, keep or error; got {given!r}.")


@contextlib.contextmanager
def spread_by(executor: str) -> Iterator[None]:
    """Run independent parts, within, where the executor says: here or on a Ray cluster.

    Raises:
        UsageError: there is no such executor, or Ray is not installed or not reached.
    """
    from errata.cluster import cluster, distribute

    if executor not in ("local", "ray"):
        raise UsageError(f"--executor is local or ray; got {executor!r}.")
    with contextlib.ExitStack() as entered:
        if executor == "ray":
            entered.enter_context(cluster())
            entered.enter_context(distribute())
        yield
