"""`ImageMethod`: how edits are written into a pipeline's text encoders, and taken back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from errata.images.encoder import TextEncoder
from errata.images.image_edit import ImageEdit
from errata.images.settings import ValueSettings


@dataclass(frozen=True)
class Written:
    """What became of an edit.

    Attributes:
        edit: the edit.
        share: of the target among the candidates, in the encoder that lacks it most.
        steps: that Adam took, in all encoders together.
        seconds: that it took to write.
    """

    edit: ImageEdit
    share: float
    steps: int
    seconds: float


class ImageMethod(ABC):
    """A way to edit; the encoders carry its edits while it is installed.

    Args:
        settings: of this method.
        encoders: of the pipeline, without edits.
    """

    name: ClassVar[str]
    settings_class: ClassVar[type[ValueSettings]]

    def __init__(self, settings: ValueSettings, encoders: Sequence[TextEncoder]) -> None:
        self.settings, self.encoders = settings, list(encoders)
        self.layers = [each.layer(settings.layer) for each in self.encoders]

    @abstractmethod
    def write(self, edit: ImageEdit) -> tuple[float, int]:
        """Write an edit after those before it; return (share of the target, Adam's steps).

        Raises:
            EditError: the subject is not among the prompt's tokens.
        """

    @abstractmethod
    def keep(self, numbers: Sequence[int]) -> list[int]:
        """Keep the edits of these numbers, in order; return those that are to be written again.

        Those are the last of them.
        """

    @abstractmethod
    def install(self) -> None:
        """Put the edits on the encoders."""

    @abstractmethod
    def remove(self) -> None:
        """Take the edits off the encoders, which are then, bit for bit, those they were."""

    @contextmanager
    def removed(self) -> Iterator[None]:
        """Take the edits off within a `with` block."""
        self.remove()
        try:
            yield
        finally:
            self.install()

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Return what the edits left behind."""

    @abstractmethod
    def load_state(self, tensors: Mapping[str, Tensor], edits: Sequence[ImageEdit]) -> None:
        """Restore from `state()`, and install.

        Raises:
            KeyError, ValueError: a tensor is missing, or of another shape.
        """
