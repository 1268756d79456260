"""Settings of a pipeline: two methods, each named with settings of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from errata.config import MethodConfig
from errata.errors import ConfigError, quoted
from errata.methods import IN_PIPELINE, method_class, method_config, resolve

PARTS = ("first", "then")
"""The settings that name a method."""
OF_BOTH = ("chat_template", "end_token")
"""Settings that a pipeline has for both of its methods."""


@dataclass(frozen=True)
class PipelineConfig(MethodConfig):
    """Settings of a pipeline.

    A method stands with settings of its own behind its name, `rag passages=2 min_score=0.4`. Where
    it has none, `layer` and `seed` are the pipeline's.

    Attributes:
        first: the method that decides for each prompt whether it answers.
        then: the method that answers all other prompts.

    Raises:
        ConfigError: both are the same method, one is a pipeline or has a setting that it does not
            know, or the second cannot leave rows of a batch to the first.
        UnknownNameError: there is no such method.
    """

    method: ClassVar[str] = "pipeline"

    first: str = IN_PIPELINE[0]
    then: str = IN_PIPELINE[1]

    def __post_init__(self) -> None:
        super().__post_init__()
        first, then = (self._name(name) for name in PARTS)
        if first == then:
            raise ConfigError(f"first and then are both {first}; a pipeline is of two methods.")
        if not method_class(then).shares_rows:
            raise ConfigError(
                f"then is {then}, which changes every prompt of a batch and cannot leave some to "
                "another method; take one that can, e.g. lora or wise."
            )
        _ = self.parts  # their settings are checked

    @property
    def parts(self) -> tuple[MethodConfig, MethodConfig]:
        """The settings of the first method and of the second."""
        first, then = (self._settings(name) for name in PARTS)
        return first, then

    def _name(self, name: str) -> str:
        """Return the method's own name, of whichever part."""
        words = getattr(self, name).split()
        method: str = resolve(words[0] if words else "")[0].config_class.method
        if method == self.method:
            raise ConfigError(
                f"{name} is a pipeline; a pipeline is of two other methods, e.g. --set first=rag "
                "--set then=wise."
            )
        return method

    def _settings(self, name: str) -> MethodConfig:
        text = getattr(self, name)
        method, *options = text.split()
        settings: dict[str, Any] = {"seed": self.seed, "layer": self.layer}
        for option in options:
            key, given, value = option.partition("=")
            if not given or key in OF_BOTH:
                raise ConfigError(
                    f"{name} is {quoted(text)}; it is a method's name and settings of its own, "
                    f"name=value ({' and '.join(OF_BOTH)} are set for both methods at once)."
                )
            settings[key] = value
        both = {key: getattr(self, key) for key in OF_BOTH}
        return method_config(method, **settings, **both)
