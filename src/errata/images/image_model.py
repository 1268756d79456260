"""`ImageModel`: a text-to-image pipeline with edits in its text encoders."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch

from errata.edit import timestamp
from errata.errors import ArtifactError, BaseMismatchError, EditError, UnknownNameError, suggest
from errata.images.encoder import TextEncoder
from errata.images.folder import ImageArtifact, read_images, write_images
from errata.images.image_edit import ImageEdit
from errata.images.method import ImageMethod, Written
from errata.images.methods import method_of
from errata.images.opening import open_encoders, open_pipeline
from errata.images.settings import TEMPLATES
from errata.saving.names import IMAGES
from errata.storage.identity import tokenizer_digest, weights_digest
from errata.storage.locking import WAIT


class ImageModel:
    """A pipeline's text encoders with edits; the rest of it is loaded when it first draws.

    Args:
        source: the folder of the pipeline.
        encoders: its CLIP text encoders, without edits.
        method: how edits are written.

    Attributes:
        edits: those in the encoders, oldest first.
    """

    def __init__(self, source: str, encoders: Sequence[TextEncoder], method: ImageMethod) -> None:
        self.source, self.encoders, self.method = source, list(encoders), method
        self.edits: list[ImageEdit] = []
        self._known: dict[Path, str] = {}
        self._digests = {
            each.name: {
                "weights": weights_digest(each.model),
                "tokenizer": tokenizer_digest(each.tokenizer),
            }
            for each in self.encoders
        }
        self.method.install()

    @classmethod
    def open(cls, folder: str | Path, method: str = "refact", **settings: Any) -> Self:
        """Open a pipeline's folder, to be edited.

        Args:
            folder: what `DiffusionPipeline.from_pretrained` opens.
            method: `refact` or `memory`.
            settings: of the method.

        Raises:
            UnknownNameError: there is no such folder or method, or it cannot be loaded.
            ConfigError: a setting is unknown or out of range.
            ArchitectureError: the pipeline has no CLIP text encoder.
        """
        kind = method_of(method)
        given = kind.settings_class.from_dict(settings)
        encoders = open_encoders(folder)
        return cls(str(Path(folder).resolve()), encoders, kind(given, encoders))

    @classmethod
    def load(cls, folder: str | Path, base: str | Path | None = None) -> Self:
        """Load a folder of edits, with the pipeline that they were written for.

        Args:
            folder: what `save_pretrained` wrote.
            base: where the pipeline is now, if it was moved.

        Raises:
            ArtifactError: the folder is missing, damaged, or of another version.
            BaseMismatchError: the pipeline's text encoders are others than then.
            UnknownNameError: the pipeline cannot be loaded.
        """
        artifact = read_images(folder)
        try:
            model = cls.open(base or artifact.base, artifact.method, **artifact.settings)
        except UnknownNameError as error:
            raise UnknownNameError(f"{folder}: its pipeline is needed: {error}") from error
        model._restore(artifact)
        return model

    def _restore(self, artifact: ImageArtifact) -> None:
        for name in sorted({*artifact.encoders, *self._digests}):
            saved, here = artifact.encoders.get(name), self._digests.get(name)
            if saved != here:
                differs = "is missing" if None in (saved, here) else "is another"
                raise BaseMismatchError(
                    f"{artifact.path}: these edits were written for the pipeline {artifact.base}; "
                    f"in {self.source}, {name} {differs} now. Give the pipeline they were written "
                    "for."
                )
        try:
            self.method.load_state(artifact.tensors, artifact.edits)
        except (KeyError, ValueError) as error:
            reason = error.args[0] if error.args else error
            raise ArtifactError(f"{artifact.path}: damaged, {reason}.") from error
        self.edits = list(artifact.edits)
        self._known[artifact.path.resolve()] = artifact.generation

    def edit(self, edits: Sequence[ImageEdit] | ImageEdit) -> list[Written]:
        """Write edits, one after another; those that are in already are passed over.

        Raises:
            EditError: a subject is not among the prompt's tokens; nothing was written then.
        """
        wanted = [edits] if isinstance(edits, ImageEdit) else list(edits)
        self.check(wanted)
        written = []
        for edit in wanted:
            if edit.id in {each.id for each in self.edits}:
                continue
            begun = time.monotonic()
            share, steps = self.method.write(edit)
            stamped = dataclasses.replace(edit, time=timestamp())
            self.edits.append(stamped)
            written.append(Written(stamped, share, steps, time.monotonic() - begun))
        return written

    def check(self, edits: Sequence[ImageEdit]) -> None:
        """Make sure that edits can be written.

        Raises:
            EditError: a subject is not among the prompt's tokens, or two edits have one id.
        """
        known = {edit.id: edit for edit in self.edits}
        for edit in edits:
            if known.setdefault(edit.id, edit) != edit:
                raise EditError(f"two edits have the id {edit.id!r}; give one of them another.")
            for encoder in self.encoders:
                prompts = encoder.encode([each.format(edit.prompt) for each in TEMPLATES])
                encoder.last_of(prompts, edit.subject)

    def undo(self, *ids: str) -> None:
        """Take edits back; the model is then one that never had them.

        Raises:
            UnknownNameError: there is no edit of this id; nothing was changed then.
        """
        known = [edit.id for edit in self.edits]
        for each in ids:
            if each not in known:
                raise UnknownNameError(f"there is no edit {each!r} here.{suggest(each, known)}")
        kept = [number for number, each in enumerate(known) if each not in ids]
        again = self.method.keep(kept)
        for number in again:
            self.method.write(self.edits[number])
        self.edits = [self.edits[number] for number in kept]

    @contextlib.contextmanager
    def disable_edits(self) -> Iterator[None]:
        """Be the pipeline as it was, within a `with` block."""
        with self.method.removed():
            yield

    @cached_property
    def pipeline(self) -> Any:
        """The diffusers pipeline; it draws with the edits.

        Raises:
            UsageError: diffusers is not installed.
            UnknownNameError: it cannot be loaded.
        """
        return open_pipeline(self.source, self.encoders)

    def paint(
        self, prompts: str | Sequence[str], seed: int = 0, base: bool = False, **options: Any
    ) -> list[Any]:
        """Draw prompts; the same seed gives each prompt the same noise, whatever else is drawn.

        Args:
            prompts: one or more texts.
            seed: of the noise.
            base: draw without the edits.
            options: of the pipeline's call, such as `num_inference_steps` or `guidance_scale`.

        Returns:
            a picture of PIL's per prompt; with `output_type="pt"`, a tensor (3, height, width).
        """
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        noise = [torch.Generator().manual_seed(seed) for _ in texts]
        drawn = self.pipeline  # loaded before the edits are taken off
        with self.disable_edits() if base else contextlib.nullcontext():
            return list(drawn(texts, generator=noise, **options).images)

    def save_pretrained(self, folder: str | Path, wait: float = WAIT) -> None:
        """Save the edits: all files or none. The pipeline is not copied.

        Raises:
            UsageError: the folder holds other edits.
            FolderBusyError: another process writes there, or has written since they were loaded.
            StorageError: the disk refused; what was there before still is.
        """
        config = {
            IMAGES: self.source,
            "encoders": self._digests,
            "method": self.method.name,
            "settings": self.method.settings.to_dict(),
        }
        path = Path(folder).resolve()
        state = self.method.state()
        known = self._known.get(path)
        self._known[path] = write_images(folder, config, self.edits, state, known, wait)
