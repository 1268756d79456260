"""Settled edits move into weights: each promotion is judged, and refused if anything gets worse.

An edit that Folio holds is live at once, beside the weights. `settle` writes edits by a method that
changes weights, in groups, and asks what the model with the edits beside it was asked: their own
prompts, their rewordings, and prompts that are to stay as they are. A group that makes anything
worse is taken back and tried in halves, down to the single edit, which is then refused: its copy
beside the weights stays. `with_others` puts the other edits beside weights that have the settled
ones; `consolidate` writes all of that into folders.
"""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from errata.config import MethodConfig
from errata.edit import Edit, same_answer
from errata.errors import ConfigError
from errata.lm.background import background_texts, open_prompt
from errata.model import EditModel
from errata.progress import OnProgress
from errata.saving import load_base
from errata.storage.checkpoints import save_checkpoint

GROUP = 16
"""Edits that are written and judged together, at most."""
ASKED = 64
"""Prompts that are asked together, at most."""
KEPT = 32
"""Prompts, of text that the base model writes, whose answers stay, where none are given."""
ASKING, SETTLING = "asking what is answered so far", "writing edits into the weights"
SETTLED, MODEL, EDITS = "settled", "model", "edits"
"""Folders: the settled edits, on the base model they were edits of; the checkpoint that has them in
its weights; and the other edits, beside that.
"""


@dataclass(frozen=True)
class Expected:
    """What a model with edits beside its weights answers, which settled edits must not worsen.

    Attributes:
        answers: prompt -> answer, greedily.
        wordings: edit id -> its own prompt and its rewordings.
        kept: prompts whose answers must stay as they are.
    """

    answers: Mapping[str, str]
    wordings: Mapping[str, Sequence[str]]
    kept: Sequence[str]

    @classmethod
    def of(
        cls,
        model: EditModel,
        rewordings: Mapping[str, Sequence[str]],
        kept: Iterable[str],
        progress: OnProgress,
    ) -> Expected:
        """Ask a model with edits.

        Args:
            model: the model.
            rewordings: edit id -> prompts that ask what the edit's own asks.
            kept: prompts whose answers must stay as they are; none: some of text that the base
                model writes.
            progress: called with what is done.
        """
        wordings = {
            edit.id: list(dict.fromkeys([edit.prompt, *rewordings.get(edit.id, ())]))
            for edit in model.edits
        }
        staying = list(dict.fromkeys(kept)) or _of_background(model)
        prompts = list(
            dict.fromkeys([*staying, *(text for texts in wordings.values() for text in texts)])
        )
        answers: dict[str, str] = {}
        for start in range(0, len(prompts), ASKED):
            progress(ASKING, start, len(prompts))
            asked = prompts[start : start + ASKED]
            answers |= zip(asked, model.ask(asked), strict=True)
        return cls(answers, wordings, staying)

    def says(self, edit: Edit) -> list[str]:
        """Return the wordings of an edit that are answered with its target."""
        return [
            text for text in self.wordings[edit.id] if same_answer(self.answers[text], edit.target)
        ]

    def unsaid(self, model: EditModel, edits: Sequence[Edit]) -> list[Edit]:
        """Return the edits of whose wordings a model answers one otherwise than before."""
        wordings = list(dict.fromkeys(text for edit in edits for text in self.says(edit)))
        answers = dict(zip(wordings, model.ask(wordings), strict=True))
        return [
            edit
            for edit in edits
            if not all(same_answer(answers[text], edit.target) for text in self.says(edit))
        ]

    def worse(self, model: EditModel, edits: Sequence[Edit]) -> str | None:
        """Say what a model with these edits in its weights answers worse; None: nothing."""
        wanted = {text: edit.target for edit in edits for text in self.says(edit)}
        prompts = list(dict.fromkeys([*wanted, *self.kept]))
        for prompt, answer in zip(prompts, model.ask(prompts), strict=True):
            if prompt in wanted and not same_answer(answer, wanted[prompt]):
                return f"{prompt!r} is answered {answer!r} instead of {wanted[prompt]!r}"
            if prompt not in wanted and answer != self.answers[prompt]:
                return f"{prompt!r} is answered {answer!r} instead of {self.answers[prompt]!r}"
        return None


@dataclass
class Consolidation:
    """What became of edits.

    Attributes:
        settled: those that are in the weights.
        refused: edit, and what got worse with it.
        both: those of the settled ones that stay beside the weights, too, since an older edit that
            stays there would answer in their place.
    """

    settled: list[Edit] = field(default_factory=list)
    refused: list[tuple[Edit, str]] = field(default_factory=list)
    both: list[Edit] = field(default_factory=list)


def check_settles(model: EditModel) -> None:
    """Make sure that a model's method changes weights.

    Raises:
        ConfigError: it keeps its edits beside them.
    """
    if model.method.patch.reads_prompts:
        raise ConfigError(
            f"{model.method.config.method} keeps edits beside the weights; give with -m a method "
            "that changes weights (`errata methods`)."
        )


def settle(
    model: EditModel, edits: Sequence[Edit], expected: Expected, progress: OnProgress
) -> Consolidation:
    """Write edits into weights, and keep those that make nothing worse.

    Args:
        model: without edits; its method changes weights. It has the settled edits afterwards.
        edits: what is to be settled. Those whose own prompt is not answered with their target,
            since a later edit contradicts them, are refused.
        expected: what was answered before.
        progress: called with what is done.

    Raises:
        ConfigError: the method keeps its edits beside the weights.
        EditError, PromptTooLongError: see `EditModel.edit`.
    """
    check_settles(model)
    found, ready = Consolidation(), []
    for edit in edits:
        if edit.prompt in expected.says(edit):
            ready.append(edit)
        else:
            answer = expected.answers[edit.prompt]
            found.refused.append((edit, f"its prompt is answered {answer!r} already"))
    waiting = deque(ready[start : start + GROUP] for start in range(0, len(ready), GROUP))
    while waiting:
        progress(SETTLING, len(found.settled) + len(found.refused), len(edits))
        group = waiting.popleft()
        model.edit(group, check=False)
        why = expected.worse(model, [*found.settled, *group])
        if why is None:
            found.settled += group
            continue
        model.undo([edit.id for edit in group])
        if len(group) == 1:
            found.refused.append((group[0], why))
        else:
            half = len(group) // 2
            waiting.extendleft([group[half:], group[:half]])
    return found


def consolidate(
    model: EditModel,
    config: MethodConfig,
    folder: str | Path,
    rewordings: Mapping[str, Sequence[str]],
    kept: Sequence[str],
    progress: OnProgress,
) -> Consolidation:
    """Move a model's edits into weights where that makes nothing worse; write what comes of it.

    The edits' folder is written last: where it is, all is there. Nothing is written where no edit
    could be settled.

    Args:
        model: a model with edits; it is unusable afterwards.
        config: the settings of a method that changes weights.
        folder: a new folder, see `SETTLED`.
        rewordings: edit id -> prompts that ask what the edit's own asks.
        kept: prompts whose answers must stay as they are; empty: some that the base model writes.
        progress: called with what is done.

    Raises:
        ConfigError: the method keeps its edits beside the weights, or must be trained first.
        EditError, PromptTooLongError: see `EditModel.edit`.
        StorageError: the folder cannot be written.
    """
    expected = Expected.of(model, rewordings, kept, progress)
    beside, edits, place = model.method.config, list(model.edits), Path(folder)
    tokenizer, dtype = model.tokenizer, str(model.base.dtype).removeprefix("torch.")
    device = model.lm.device
    weights = EditModel(model.unload(), config, tokenizer)
    found = settle(weights, edits, expected, progress)
    if not found.settled:
        weights.unload()
        return found
    weights.save_pretrained(place / SETTLED)
    save_checkpoint(weights.merge_and_unload(), tokenizer, place / MODEL)
    del weights
    base, tokenizer = load_base(str((place / MODEL).resolve()), dtype)
    after = with_others(EditModel(base.to(device), beside, tokenizer), edits, found, expected)
    if found.settled:
        after.save_pretrained(place / EDITS)
    else:
        shutil.rmtree(place / SETTLED)
        shutil.rmtree(place / MODEL)
    return found


def with_others(
    model: EditModel, edits: Sequence[Edit], found: Consolidation, expected: Expected
) -> EditModel:
    """Write edits beside weights that have the settled ones: the others, and what still needs it.

    Should anything be worse with all of it, no edit is settled after all.

    Args:
        model: without edits, on those weights; it is returned.
        edits: all, in their order.
        found: which are settled, and told which of those stay beside the weights, too.
        expected: what was answered before.

    Raises:
        EditError, PromptTooLongError: see `EditModel.edit`.
    """
    held = {edit.id for edit in found.settled}
    model.edit([edit for edit in edits if edit.id not in held], check=False)
    found.both = expected.unsaid(model, found.settled)
    model.edit(found.both, check=False)
    if why := expected.worse(model, edits):
        found.refused += [(edit, why) for edit in found.settled]
        found.settled, found.both = [], []
    return model


def _of_background(model: EditModel) -> list[str]:
    with model.disable_edits():
        return [open_prompt(text) for text in background_texts(model.lm, KEPT)]
