"""`Patch`: tensors that install on an `LM` and come off bit for bit. It is not an algorithm."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from errata.lm import LM


class Patch(ABC):
    """Something that changes what a model says while it is installed."""

    reads_prompts: ClassVar[bool] = False
    """Whether what it does depends on the prompt, or on where a text begins; it must see them then.
    """
    changes_cache: ClassVar[bool] = False
    """Whether what a key-value cache holds depends on what it does with a prompt."""

    _lm: LM | None = None

    @property
    def installed(self) -> bool:
        """Whether the patch is on a model now."""
        return self._lm is not None

    def install(self, lm: LM) -> None:
        """Put the patch on the model; a second call does nothing."""
        if self._lm is None:
            self._attach(lm)
            self._lm = lm

    def remove(self) -> None:
        """Take the patch off; the model is the base model again, bit for bit. A second call does
        nothing.
        """
        if self._lm is not None:
            self._detach(self._lm)
            self._lm = None

    @contextmanager
    def on(self, lm: LM) -> Iterator[None]:
        """The patch on the model for the length of a `with` block."""
        was = self.installed
        self.install(lm)
        try:
            yield
        finally:
            if not was:
                self.remove()

    @abstractmethod
    def _attach(self, lm: LM) -> None: ...

    @abstractmethod
    def _detach(self, lm: LM) -> None: ...
