"""`EditModel`: a base model, its patch, and the list of edits in it.

It adds to `PatchedModel` the verbs that write, ask, explain and undo edits. How edits become a
patch is up to the method.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, overload

from transformers import PreTrainedModel

from errata.arguments import as_list
from errata.conflicts import Conflict, OnConflict, accept, new_among
from errata.edit import Edit, Example, with_timestamp
from errata.errors import ConfigError, EditError
from errata.lm import Score
from errata.lm.lm import ANSWER_LENGTH
from errata.lm.prompt_encoder import special_token_in, special_tokens
from errata.lm.weights import add_to_weight
from errata.methods.base import Progress, no_progress
from errata.model.patched import PatchedModel
from errata.patches.context import leaving_room
from errata.report import EditReport, EditResult, Explanation, judged


class EditModel(PatchedModel):
    """A language model with edits: an `nn.Module` around a base model of transformers.

    The base model is put into evaluation mode and its parameters are frozen, for good. An attribute
    that is not defined here is the base model's, unless it would bypass the edits (see
    `delegation`). `state_dict` holds the edits' own tensors; `to` and its like move the edits too;
    a copy, also by pickle, is independent. Any number of threads may run the model at once; one
    that edits it waits for them, and they for it. Calls on `base`, `lm` or `method` directly take
    no lock.

    Attributes:
        base: the base model, a submodule.
        method: what writes the edits; its `config` has the settings.
        base_answers: the base model's answers so far, by (options of generation, prompt).

    Args:
        base: a causal language model of transformers.
        config: the method's settings; its class chooses the method.
        tokenizer: the base model's tokenizer.

    Raises:
        UsageError: an argument is of another type.
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
            check: ask the edited model each new edit's prompt and report its answer.
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
        given = as_list(edits, Edit, "edits")
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
                written = [with_timestamp(edit) for edit in accepted.edits]
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
            ConfigError: answers would be taught with an end token that the model does not have.
            EditError: an edit holds a special token.
            PromptTooLongError: one does not fit the model's context.
        """
        if self.lm.learns_eos and not self.lm.end_ids:
            raise ConfigError(
                "this model's tokenizer has no end token, so no answer would end: give it one "
                "(eos_token), or teach answers without (--set end_token=false)."
            )
        special = special_tokens(self.tokenizer)
        for edit in edits:
            for name, text in (("prompt", edit.prompt), ("target", edit.target)):
                if (token := special_token_in(text, special, self.tokenizer)) is not None:
                    raise EditError(
                        f"the {name} {text!r} holds the special token {token!r}, which the "
                        "model would not say as text; take it out (how answers end is learned "
                        "without it)."
                    )
            self.lm.encode(edit.prompt, edit.target, "")

    def check_edits(self, edits: Edit | Iterable[Edit]) -> list[EditResult]:
        """Ask each edit's prompt; report the free answer and whether it is as wanted."""
        given = as_list(edits, Edit, "edits")
        rows = [self.lm.encode(edit.prompt, edit.target, "") for edit in given]
        full_stop = 1
        length = max(
            [ANSWER_LENGTH, *(len(row.ids) - row.prompt_length + full_stop for row in rows)]
        )
        with leaving_room(length):
            answers = self.ask([edit.prompt for edit in given], max_new_tokens=length)
            mute = [e.prompt for e in given if e.operation == "erase" and not self.method.refuses]
            told = dict(zip(mute, self.ask_base(mute, max_new_tokens=length), strict=True))
        return [
            judged(edit, answer, told.get(edit.prompt) if edit.operation == "erase" else None)
            for edit, answer in zip(given, answers, strict=True)
        ]

    def conflicts(self, edits: Edit | Iterable[Edit]) -> list[Conflict]:
        """Find (new id, older id) of edits that ask what an older one asks and want another answer.

        Older ones are those in the model, and those before it among them. Edits that are in the
        model are passed over.
        """
        given = as_list(edits, Edit, "edits")
        with self._base_alone("conflicts"):
            held = {edit.id for edit in self.edits}
            return self.method.conflicts([edit for edit in given if edit.id not in held])

    @overload
    def ask(self, prompts: str, **options: Any) -> str: ...

    @overload
    def ask(self, prompts: Iterable[str], **options: Any) -> list[str]: ...

    def ask(self, prompts: str | Iterable[str], **options: Any) -> str | list[str]:
        """Generate an answer in words for each prompt, greedily, whatever `generation_config` says.

        Args:
            prompts: the prompts; for a single text, the answer is a single text.
            options: of `generate`, and `batch_size`.
        """
        texts = as_list(prompts, str, "prompts")
        with self._shared("ask"):
            answers = self.lm.generate(texts, **options)
        return answers[0] if isinstance(prompts, str) else answers

    @overload
    def ask_base(self, prompts: str, **options: Any) -> str: ...

    @overload
    def ask_base(self, prompts: Iterable[str], **options: Any) -> list[str]: ...

    def ask_base(self, prompts: str | Iterable[str], **options: Any) -> str | list[str]:
        """Generate the base model's answers, as `ask` does; greedy ones are kept in `base_answers`.

        They never change, since the base model does not.
        """
        self._check_usable()
        texts = as_list(prompts, str, "prompts")
        kind = repr(sorted((name, x) for name, x in options.items() if name != "batch_size"))
        known = {} if options.get("do_sample") else self.base_answers
        new = [prompt for prompt in dict.fromkeys(texts) if (kind, prompt) not in known]
        if new:
            with self.disable_edits():
                answers = self.lm.generate(new, **options)
            self.base_answers.update(zip(((kind, p) for p in new), answers, strict=True))
        answers = [self.base_answers[kind, prompt] for prompt in texts]
        return answers[0] if isinstance(prompts, str) else answers

    def score(
        self, pairs: Iterable[tuple[str, str]], batch_size: int = 32, whole: bool = False
    ) -> list[Score]:
        """Score (prompt, target) pairs by teacher forcing, see `LM.score`."""
        with self._shared("score"):
            return self.lm.score(pairs, batch_size, whole=whole)

    @overload
    def explain(self, prompts: str) -> Explanation: ...  # type: ignore[overload-overlap]

    @overload
    def explain(self, prompts: Iterable[str]) -> list[Explanation]: ...

    def explain(self, prompts: str | Iterable[str]) -> Explanation | list[Explanation]:
        """Explain which edit answers each prompt, with its score and those of others.

        Raises:
            ConfigError: the method does not choose among edits.
        """
        texts = as_list(prompts, str, "prompts")
        with self._base_alone("explain"):
            explanations = self.method.explain(texts)
        return explanations[0] if isinstance(prompts, str) else explanations

    def prepare(
        self, examples: Example | Iterable[Example], progress: Progress = no_progress
    ) -> None:
        """Train a method that needs it, before the first edit; saving keeps the training.

        Args:
            examples: what it learns from (`Case.example`), none of them in the stream to come.
            progress: called with the number of steps just made; the model may be saved then, and
                training goes on from there.

        Raises:
            ConfigError: the method needs no training, there are edits in the model, or edits are
                disabled.
            EditError: an example lacks what the method learns from.
        """
        given = as_list(examples, Example, "examples")
        with self._base_alone("prepare"):
            self._check_enabled("prepare")
            if self.edits:
                raise ConfigError(
                    f"there are {len(self.edits)} edits in the model; a method is trained before "
                    "the first."
                )
            self.method.prepare(given, progress)

    def undo(self, *edit_ids: str | Iterable[str]) -> None:
        """Take edits out; the model is then one that never had them.

        Broken off half-way, it has undone nothing.

        Args:
            edit_ids: ids, or lists of ids.

        Raises:
            UnknownNameError: no edit has such an id; nothing is undone then.
            ConfigError: edits are disabled.
        """
        ids = [edit_id for some in edit_ids for edit_id in as_list(some, str, "edit_ids")]
        with self._base_alone("undo"):
            self._check_enabled("undo")
            self.method.undo(ids)

    def get_base_model(self) -> PreTrainedModel:
        """Return the base model, with the edits on unless they are disabled or unloaded."""
        return self.base

    def unload(self) -> PreTrainedModel:
        """Remove the edits for good and return the base model; this object is then unusable.

        Raises:
            ConfigError: it was unloaded before.
        """
        with self._lock.exclusive("unload"):
            if self._unloaded:
                self._check_usable()
            self.method.patch.remove()
            self._unloaded = True
        return self.base

    def merge_and_unload(self) -> PreTrainedModel:
        """Write the edits into the base model's weights for good and return the base model.

        This object is then unusable.

        Raises:
            ConfigError: the edits are more than changes of weights.
        """
        with self._base_alone("merge_and_unload"):
            for path, delta in self.method.weight_changes().items():
                add_to_weight(self.base.get_submodule(path), delta)
            self._unloaded = True
        return self.base
