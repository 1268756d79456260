"""`EditModel`: a base model, what its edits left behind, and the list of those edits. It
re-implements no model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import overload

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import PushToHubMixin

from errata import saving
from errata.arguments import listed
from errata.config import MethodConfig
from errata.conflicts import Conflict, OnConflict, accept, new_among
from errata.edit import Edit, Example, same_answer, stamped
from errata.errors import ConfigError, EditError
from errata.lm.architecture import add_to_weight
from errata.lm.endings import ANSWER_LENGTH, special_token_in, special_tokens
from errata.methods import method_class
from errata.methods.base import Progress, no_progress
from errata.model.asking import AskedModel
from errata.patches.context import leaving_room
from errata.report import EditReport, EditResult, Explanation
from errata.storage.locking import WAIT


class EditModel(AskedModel, PushToHubMixin):  # type: ignore[misc]
    """A language model with corrections: an `nn.Module` around a base model of transformers.

    The base model is put into evaluation mode, and stays there; its parameters are frozen. What is
    not found here is the base model's, as far as it leaves the edits alone (see `delegation`).
    `state_dict` is the edits' own tensors; `to` and its like take the edits along; a copy, also by
    pickle, is a model of its own. Any number of threads may ask; one that edits waits for them, and
    they for it. What is called on `base`, `lm` or `method` directly waits for nobody.

    Attributes:
        base: the base model, a submodule.
        base_answers: what the base model has said so far, by (options of generation, prompt).

    Args:
        base: a causal language model of transformers.
        config: the method's settings; its class chooses the method.
        tokenizer: the base model's tokenizer.

    Raises:
        ArchitectureError: the base model has no place for edits.
        ConfigError: a setting does not fit this model, or its weights are offloaded or were made in
            inference mode.
    """

    def edit(
        self,
        edits: Edit | Iterable[Edit],
        check: bool = True,
        progress: Progress = no_progress,
        on_conflict: OnConflict = "replace",
        conflicts: Sequence[Conflict] | None = None,
    ) -> EditReport:
        """Write edits into the model; call it again whenever there are more (or `edit_stream`).

        Cut off half-way, by an error in `progress` or from the keyboard, it has written whole edits
        or none.

        Args:
            edits: the corrections, in order. Those already in the model are skipped.
            check: ask the final model each new edit's prompt and report its answer.
            progress: called with the number of edits just written.
            on_conflict: what becomes of an edit that asks what an older one asks and wants another
                answer: it is written and meant to win (`replace`), left out (`keep`), or nothing is
                    written (`error`).
            conflicts: what `conflicts` has found for these edits before; None: they are looked for
                now.

        Raises:
            EditError: two different edits carry the same id, one lacks the subject that the method
                needs or holds a special token, or there is a conflict and there may be none.
            ConfigError: the method must be trained first, or edits are disabled.
            PromptTooLongError: an edit does not fit the model's context; nothing is written then.
        """
        given = listed(edits, Edit, "edits")
        with self._lock.exclusive("edit"):
            warnings = []
            with self._base_alone("edit"):
                self._check_enabled("edit")
                new, present = new_among(given, self.edits)
                if new:
                    self.method.check(new)
                self._check_texts(new)
                found = self.method.conflicts(new) if conflicts is None else conflicts
                accepted = accept(new, found, on_conflict, self.edits)
                written = [stamped(edit) for edit in accepted.edits]
                if written:
                    self.method.write(written, progress)
                    warnings = self.method.warnings(written)
            return EditReport(
                self.check_edits(written) if check and written else [],
                present + accepted.left_out,
                accepted.conflicts,
                warnings,
                written,
                accepted.left_out,
                len(self.edits),
            )

    def _check_texts(self, edits: Sequence[Edit]) -> None:
        """Make sure that edits can be encoded.

        Raises:
            EditError: an edit holds a special token.
            PromptTooLongError: one does not fit the model's context.
        """
        special = special_tokens(self.tokenizer)
        for edit in edits:
            for name, text in (("prompt", edit.prompt), ("target", edit.target)):
                if (token := special_token_in(text, special, self.tokenizer)) is not None:
                    raise EditError(
                        f"the {name} {text!r} holds the special token {token!r}, which the model would not say as text; "
                        "take it out (how answers end is learned without it)."
                    )
            self.lm.encode(edit.prompt, edit.target, "")

    def check_edits(self, edits: Edit | Iterable[Edit]) -> list[EditResult]:
        """Ask each edit's prompt, and report the model's free answer and whether it is the target."""
        given = listed(edits, Edit, "edits")
        rows = [self.lm.encode(edit.prompt, edit.target, "") for edit in given]
        full_stop = 1
        length = max(
            [ANSWER_LENGTH, *(len(row.ids) - row.prompt_length + full_stop for row in rows)]
        )
        with leaving_room(length):
            answers = self.ask([edit.prompt for edit in given], max_new_tokens=length)
        return [
            EditResult(edit, answer, same_answer(answer, edit.target))
            for edit, answer in zip(given, answers, strict=True)
        ]

    def conflicts(self, edits: Edit | Iterable[Edit]) -> list[Conflict]:
        """Find (new id, older id) of edits that ask what an older one asks and want another answer.

        Older ones are those in the model, and those before it among them. Edits that are in the
        model are passed over.
        """
        given = listed(edits, Edit, "edits")
        with self._base_alone("conflicts"):
            held = {edit.id for edit in self.edits}
            return self.method.conflicts([edit for edit in given if edit.id not in held])

    @overload
    def explain(self, prompts: str) -> Explanation: ...  # type: ignore[overload-overlap]

    @overload
    def explain(self, prompts: Iterable[str]) -> list[Explanation]: ...

    def explain(self, prompts: str | Iterable[str]) -> Explanation | list[Explanation]:
        """Which edit answers each prompt, and how much speaks for it and for others; of one text,
        one explanation.

        Raises:
            ConfigError: the method does not choose among edits.
        """
        texts = listed(prompts, str, "prompts")
        with self._base_alone("explain"):
            told = self.method.explain(texts)
        return told[0] if isinstance(prompts, str) else told

    def prepare(
        self, examples: Example | Iterable[Example], progress: Progress = no_progress
    ) -> None:
        """Train a method that needs it, before the first edit. Saved and loaded, it stays trained.

        Args:
            examples: what it learns from (`Case.example`), none of them in the stream to come.
            progress: called with the number of steps just made; the model may be saved then, and
                goes on from there.

        Raises:
            ConfigError: the method needs no training, there are edits in the model, or edits are
                disabled.
            EditError: an example lacks what the method learns from.
        """
        given = listed(examples, Example, "examples")
        with self._base_alone("prepare"):
            self._check_enabled("prepare")
            if self.edits:
                raise ConfigError(
                    f"there are {len(self.edits)} edits in the model; a method is trained before the first."
                )
            self.method.prepare(given, progress)

    def undo(self, *edit_ids: str | Iterable[str]) -> None:
        """Take edits back; the model is then one that never had them. Cut off half-way, it has
        undone nothing.

        Args:
            edit_ids: ids, or lists of ids.

        Raises:
            UnknownNameError: no edit has such an id; nothing is undone then.
            ConfigError: edits are disabled.
        """
        names = [name for some in edit_ids for name in listed(some, str, "edit_ids")]
        with self._base_alone("undo"):
            self._check_enabled("undo")
            self.method.undo(names)

    def merge_and_unload(self) -> PreTrainedModel:
        """Write the edits into the base model's weights for good and give it back; this object
        cannot be used any more.

        Raises:
            ConfigError: the edits are no change of weights.
        """
        with self._base_alone("merge_and_unload"):
            deltas = self.method.weight_changes()
            for path, delta in deltas.items():
                add_to_weight(self.base.get_submodule(path), delta)
            self._unloaded = True
        return self.base

    def save_pretrained(
        self,
        path: str | Path,
        overwrite: bool = False,
        wait: float = WAIT,
        max_shard_size: int | str | None = None,
    ) -> None:
        """Write the artifact: `edit_config.json`, `edit_model.safetensors`, `edits.jsonl` and what
        parts the method keeps besides (see `saving`); whole or not at all.

        Args:
            path: a new folder, or one whose edits this model came from.
            overwrite: replace whatever artifact is there.
            wait: seconds to wait for another process that writes there; 0 does not wait.
            max_shard_size: what `push_to_hub` of transformers asks for; a method keeps its tensors
                in parts of its own.

        Raises:
            UsageError: there are other edits in the folder.
            FolderBusyError: another process writes there, or has written since this model was
                loaded or saved there.
            StorageError: the disk refused; what stood there before still does.
        """
        with self.disable_edits():  # the identity is the base model's own
            saving.write_artifact(
                path,
                self.base,
                self.tokenizer,
                self.method.config,
                self.method.state(),
                self.edits,
                self.origin,
                overwrite,
                wait,
            )

    @classmethod
    @torch.inference_mode(False)
    def from_pretrained(
        cls,
        base: PreTrainedModel,
        path: str | Path | saving.Artifact,
        tokenizer: PreTrainedTokenizerBase,
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


def get_edit_model(
    base: PreTrainedModel, config: MethodConfig, tokenizer: PreTrainedTokenizerBase
) -> EditModel:
    """A model that can be edited with the method that the config belongs to.

    Raises:
        ArchitectureError: the base model has no place for edits.
        ConfigError: a setting does not fit this model.
    """
    return EditModel(base, config, tokenizer)
