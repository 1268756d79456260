"""`EditModel`: a base model, what its edits left behind, and the list of those edits. It re-implements no model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from errata import generation, saving
from errata.config import MethodConfig, check_choice
from errata.edit import Edit, Example, same_answer, stamped
from errata.errors import ConfigError, EditError
from errata.lm import LM, prompt_tokens
from errata.locking import WAIT
from errata.methods import method_class
from errata.methods.base import Progress, no_progress
from errata.report import EditReport, EditResult, Explanation, OnConflict, conflict_error, older_kept


class EditModel:
    """A language model with corrections.

    The base model is put into evaluation mode and its parameters are frozen. Attributes that are not found here are the
    base model's.

    Attributes:
        base_answers: what the base model has said so far, by (options of generation, prompt).

    Args:
        base: a causal language model of transformers.
        config: the method's settings; its class chooses the method.
        tokenizer: the base model's tokenizer.

    Raises:
        ArchitectureError: the base model has no place for edits.
        ConfigError: a setting does not fit this model.
    """

    def __init__(self, base: PreTrainedModel, config: MethodConfig, tokenizer: PreTrainedTokenizerBase) -> None:
        base.eval()
        base.requires_grad_(False)
        self.base = base
        self.tokenizer = tokenizer
        self.config_of_method = config
        self.lm = LM(base, tokenizer, config.chat_template, config.end_token)
        self.method = method_class(config.method)(config, self.lm)
        self.base_answers: dict[tuple[str, str], str] = {}
        self.origin = saving.Origin()

    def __getattr__(self, name: str) -> Any:
        if name == "base":
            raise AttributeError(name)
        return getattr(self.base, name)

    @property
    def edits(self) -> list[Edit]:
        """The edits in the model, oldest first."""
        return self.method.edits

    def edit(
        self,
        edits: Sequence[Edit],
        check: bool = True,
        progress: Progress = no_progress,
        on_conflict: OnConflict = "replace",
    ) -> EditReport:
        """Write edits into the model; call it again whenever there are more.

        Args:
            edits: the corrections, in order. Those already in the model are skipped.
            check: ask the final model each new edit's prompt and report its answer.
            progress: called with the number of edits just written.
            on_conflict: what becomes of an edit that asks what an older one asks and wants another answer: it is written
                and meant to win (`replace`), left out (`keep`), or nothing is written (`error`).

        Raises:
            EditError: two different edits carry the same id, one lacks the subject that the method needs, or there is a
                conflict and there may be none.
            ConfigError: the method must be trained first.
            PromptTooLongError: an edit does not fit the model's context; nothing is written then.
        """
        check_choice("on_conflict", on_conflict, get_args(OnConflict))
        new, skipped = self._sort_out(edits)
        if new:
            self.method.check(new)
        for edit in new:
            self.lm.encode(edit.prompt, edit.target, "")
        if on_conflict == "error":
            self.refuse_conflicts(new)
        conflicts = self.conflicts(new)
        if on_conflict == "keep":
            new, conflicts, gone = older_kept(new, conflicts)
            skipped += gone
        warnings = []
        if new:
            with self._base_alone():
                self.method.write(new := [stamped(edit) for edit in new], progress)
                warnings = self.method.warnings(new)
        results = []
        if check and new:
            answers = self.ask([edit.prompt for edit in new])
            results = [
                EditResult(edit, said, same_answer(said, edit.target)) for edit, said in zip(new, answers, strict=True)
            ]
        return EditReport(results, skipped, conflicts, warnings)

    def conflicts(self, edits: Sequence[Edit]) -> list[tuple[str, str]]:
        """(new id, older id) of edits that ask what an older one asks and want another answer.

        Older ones are those in the model, and those before it among them. Edits that are in the model are passed over.
        """
        held = {edit.id for edit in self.edits}
        with self._base_alone():
            return self.method.conflicts([edit for edit in edits if edit.id not in held])

    def refuse_conflicts(self, edits: Sequence[Edit]) -> None:
        """Make sure that there are none.

        Raises:
            EditError: two edits ask the same and want different answers; both are named.
        """
        found = self.conflicts(edits)
        if found:
            raise conflict_error(found, [*self.edits, *edits])

    def explain(self, prompts: Sequence[str]) -> list[Explanation]:
        """Which edit answers each prompt, and how much speaks for it and for others.

        Raises:
            ConfigError: the method does not choose among edits.
        """
        with self._base_alone():
            return self.method.explain(prompts)

    def prepare(self, examples: Sequence[Example], progress: Progress = no_progress) -> None:
        """Train a method that needs it, before the first edit. Saved and loaded, it stays trained.

        Args:
            examples: what it learns from (`Case.example`), none of them in the stream to come.
            progress: called with the number of steps just made; the model may be saved then, and goes on from there.

        Raises:
            ConfigError: the method needs no training, or there are edits in the model.
            EditError: an example lacks what the method learns from.
        """
        if self.edits:
            raise ConfigError(f"there are {len(self.edits)} edits in the model; a method is trained before the first.")
        with self._base_alone():
            self.method.prepare(examples, progress)

    def undo(self, *edit_ids: str) -> None:
        """Take edits back; the model is then one that never had them.

        Raises:
            UnknownNameError: no edit has such an id; nothing is undone then.
        """
        with self._base_alone():
            self.method.undo(edit_ids)

    @torch.no_grad()
    def generate(self, input_ids: Tensor | None = None, **inputs: Any) -> Any:
        """The base model's `generate`, with every option it has; each sequence is routed once, on its prompt.

        Raises:
            ConfigError: the prompt is to be read in chunks, so that no one sees it whole.
        """
        if input_ids is not None:
            inputs["input_ids"] = input_ids
        ready = generation.prepared(self.lm, self.method.patch, inputs)
        with prompt_tokens(ready.mask, ready.ids):
            return self.base.generate(**ready.options)

    def __call__(self, *args: Any, **inputs: Any) -> Any:
        """The base model's forward with the edits in; where `labels` are given, tokens labelled -100 are the prompt."""
        return self.base(*args, **inputs)

    def ask(self, prompts: Sequence[str], **options: Any) -> list[str]:
        """Free answers in words, one per prompt; options are those of `generate`, and `batch_size`."""
        return self.lm.generate(prompts, **options)

    def ask_base(self, prompts: Sequence[str], **options: Any) -> list[str]:
        """What the base model says. Answers are kept, since a base model never changes its mind."""
        kind = repr(sorted((name, value) for name, value in options.items() if name != "batch_size"))
        sampled = bool(options.get("do_sample"))
        new = [p for p in dict.fromkeys(prompts) if sampled or (kind, p) not in self.base_answers]
        with self.disable_edits():
            answers = self.lm.generate(new, **options) if new else []
        self.base_answers.update(zip(((kind, p) for p in new), answers, strict=True))
        return [self.base_answers[kind, prompt] for prompt in prompts]

    @contextlib.contextmanager
    def disable_edits(self) -> Iterator[None]:
        """The base model, bit for bit, inside the `with` block."""
        was = self.method.patch.installed
        self.method.patch.remove()
        try:
            yield
        finally:
            if was:
                self._install()

    def unload(self) -> PreTrainedModel:
        """Take the edits off for good and give the base model back."""
        self.method.patch.remove()
        return self.base

    def save_pretrained(self, path: str | Path, overwrite: bool = False, wait: float = WAIT) -> None:
        """Write the artifact: `edit_config.json`, `edit_model.safetensors`, `edits.jsonl` and what parts the
        method keeps besides (see `saving`); whole or not at all.

        Args:
            path: a new folder, or one whose edits this model came from.
            overwrite: replace whatever artifact is there.
            wait: seconds to wait for another process that writes there; 0 does not wait.

        Raises:
            UsageError: there are other edits in the folder.
            FolderBusyError: another process writes there, or has written since this model was loaded or saved there.
            StorageError: the disk refused; what stood there before still does.
        """
        state = self.method.state()
        with self.disable_edits():  # the identity is the base model's own
            saving.write_artifact(
                path, self.base, self.tokenizer, self.method.config, state, self.edits, self.origin, overwrite, wait
            )

    @classmethod
    def from_pretrained(
        cls, base: PreTrainedModel, path: str | Path | saving.Artifact, tokenizer: PreTrainedTokenizerBase
    ) -> EditModel:
        """Put saved edits on a base model.

        Args:
            path: a folder written by `save_pretrained`, or what was read of it.

        Raises:
            ArtifactError: the folder is missing, damaged or of another version.
            BaseMismatchError: the edits were written for another base model or tokenizer.
        """
        artifact = path if isinstance(path, saving.Artifact) else saving.read_artifact(path)
        origin = artifact.check_base(base, tokenizer)
        with saving.damage_named(artifact.path):
            config = method_class(artifact.method).config_class.from_dict(artifact.settings)
            model = cls(base, config, tokenizer)
            model.method.load_state(artifact.edits, artifact.tensors, artifact.values)
        model.origin = origin
        model._install()
        return model

    def _sort_out(self, edits: Sequence[Edit]) -> tuple[list[Edit], list[str]]:
        """(edits to write, ids already in)."""
        held = {edit.id: edit for edit in self.edits}
        new, skipped = [], []
        for edit in edits:
            if edit.id in held:
                if held[edit.id] != edit:
                    raise EditError(f"the id {edit.id!r} already belongs to another edit: {held[edit.id].prompt!r}.")
                skipped.append(edit.id)
                continue
            held[edit.id] = edit
            new.append(edit)
        return new, skipped

    @contextlib.contextmanager
    def _base_alone(self) -> Iterator[None]:
        self.method.patch.remove()
        try:
            yield
        finally:
            self._install()

    def _install(self) -> None:
        self.method.patch.install(self.lm)


def get_edit_model(base: PreTrainedModel, config: MethodConfig, tokenizer: PreTrainedTokenizerBase) -> EditModel:
    """A model that can be edited with the method that the config belongs to.

    Raises:
        ArchitectureError: the base model has no place for edits.
        ConfigError: a setting does not fit this model.
    """
    return EditModel(base, config, tokenizer)
