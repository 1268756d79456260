"""A pipeline: a memory in front of another, and one router that says which of them answers.

errata's own, for the asked-for integration of memories: text in front of a prompt before a memory
beside the weights, a codebook or folio before a trained adapter. Both methods are given every edit.
For each prompt the first decides as it does alone whether it has anything for it; where it has not,
the prompt is the second's, as if the first were not there (see `patch.py`). What the first one
answers rightly is so never the second's to get wrong, and what the first one misses, the second may
still know.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from errata.config import MethodConfig
from errata.conflicts import Conflict
from errata.edit import Edit, Example
from errata.errors import ConfigError
from errata.lm import LM
from errata.methods import method_class
from errata.methods.association.pipeline.config import PARTS, PipelineConfig
from errata.methods.association.pipeline.patch import Pipeline
from errata.methods.base import Method, Progress, no_progress
from errata.patches.routed import RoutedPatch
from errata.report import Explanation
from errata.storage import state


class TwoMemories(Method):
    """A memory in front of another: the second answers what the first has nothing for.

    Attributes:
        first: the method that decides for each prompt whether it answers.
        then: the method that answers all other prompts.
    """

    config_class = PipelineConfig
    phase = "association"
    reads_text = True
    shares_rows = False
    undo_is = "as exact as that of both methods"
    paper = "errata, docs/memory.md"
    config: PipelineConfig

    def __init__(self, config: PipelineConfig, lm: LM) -> None:
        super().__init__(config, lm)
        self.first, self.then = (method_class(part.method)(part, lm) for part in config.parts)
        self._patch = Pipeline(self.first.patch, self.then.patch)

    @classmethod
    def is_trained(cls, config: MethodConfig) -> bool:
        """Return whether one of the two methods is trained before it writes."""
        parts = config.parts if isinstance(config, PipelineConfig) else ()
        return any(method_class(part.method).is_trained(part) for part in parts)

    @property
    def edits(self) -> list[Edit]:
        """The ledger, which both methods have."""
        return self.first.edits

    @property
    def patch(self) -> Pipeline:
        """Both patches."""
        parts = self.first.patch, self.then.patch
        if parts != (self._patch.first, self._patch.then):
            self._patch = Pipeline(*parts)
        return self._patch

    @property
    def steps_left(self) -> int:
        """Training steps that either method has still to make."""
        return self.first.steps_left + self.then.steps_left

    @property
    def relearns_all(self) -> bool:
        """Whether either method learns the whole ledger anew at each write."""
        return self.first.relearns_all or self.then.relearns_all

    def prepare(self, examples: Sequence[Example], progress: Progress = no_progress) -> None:
        """Train the methods that need it, the first before the second."""
        for method in (self.first, self.then):
            if not method.prepared:
                method.prepare(examples, progress)

    def check(self, edits: Sequence[Edit]) -> None:
        """Check that both methods can write edits.

        Raises:
            ConfigError: one of them must be trained first.
            EditError: one of them cannot do what an edit asks, or lacks something of it.
        """
        for method in (self.first, self.then):
            if not method.prepared:
                raise ConfigError(
                    f"{method.name} is not trained for this model yet: `errata prepare MODEL -m "
                    f"pipeline --set 'first={self.config.first}' --set 'then={self.config.then}' "
                    "--cases FILE --out DIR`, then edit DIR (in Python, EditModel.prepare)."
                )
            method.check(edits)

    def conflicts(self, edits: Sequence[Edit]) -> list[Conflict]:
        """Return (new id, older id) of edits that are a conflict to either method."""
        found = [*self.first.conflicts(edits), *self.then.conflicts(edits)]
        return list(dict.fromkeys(found))

    def warnings(self, edits: Sequence[Edit]) -> list[tuple[str, str]]:
        """Return (edit id, warning) of both methods."""
        return [*self.first.warnings(edits), *self.then.warnings(edits)]

    def explain(self, prompts: Sequence[str]) -> list[Explanation]:
        """Return which of the methods answers each prompt, and what that one says of it."""
        told = _told(self.first, prompts)
        answers = self._found(self.first, prompts)
        left = [place for place, found in enumerate(answers) if not found]
        rest = [prompts[place] for place in left]
        second = zip(left, self._found(self.then, rest), _told(self.then, rest), strict=True)
        told = [replace(each, by=self.first.name) for each in told]
        for place, found, other in second:
            shown = other if found and other.reasons else told[place]
            told[place] = replace(shown, by=self.then.name if found else "")
        return told

    def _found(self, method: Method, prompts: Sequence[str]) -> list[bool]:
        """Return for which prompts a method, alone, has anything; all, where it has no router."""
        patch = method.patch
        if not isinstance(patch, RoutedPatch):
            return [bool(method.edits)] * len(prompts)
        ids = [tuple(self.lm.encode_prompt(prompt)) for prompt in prompts]
        with patch.on(self.lm):
            return patch.finds(self.lm, ids)

    def write(self, edits: Sequence[Edit], progress: Progress = no_progress) -> None:
        """Give edits to both methods."""
        try:
            self.first.write(edits)
            self.then.write(edits, progress)
        except BaseException:
            self._settle()
            raise

    def clear(self) -> None:
        """Forget all edits, in both methods."""
        self.first.clear()
        self.then.clear()

    def undo(self, edit_ids: Iterable[str]) -> None:
        """Remove edits from both methods."""
        removed = self.check_ids(edit_ids)
        with self.first.all_or_nothing():
            self.first.undo(removed)
            self.then.undo(removed)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the states of both methods."""
        tensors: dict[str, Tensor] = {}
        values: dict[str, Any] = {}
        for name, method in zip(PARTS, (self.first, self.then), strict=True):
            own, values[name] = method.state()
            tensors |= {f"{name}.{key}": tensor for key, tensor in own.items()}
        return tensors, values

    def load_state(
        self, edits: Sequence[Edit], tensors: Mapping[str, Tensor], values: Mapping[str, Any]
    ) -> None:
        """Restore from `state`."""
        for name, method in zip(PARTS, (self.first, self.then), strict=True):
            prefix = f"{name}."
            own = {
                key.removeprefix(prefix): tensor
                for key, tensor in tensors.items()
                if key.startswith(prefix)
            }
            method.load_state(edits, own, state.value(values, name, dict))

    def _settle(self) -> None:
        """Take out what only one of the methods has, since writing was interrupted."""
        both = {edit.id for edit in self.first.edits} & {edit.id for edit in self.then.edits}
        for method in (self.first, self.then):
            if alone := [edit.id for edit in method.edits if edit.id not in both]:
                method.undo(alone)


def _told(method: Method, prompts: Sequence[str]) -> list[Explanation]:
    """Return a method's explanations; ones that say nothing where it has none."""
    with contextlib.suppress(ConfigError):
        return method.explain(prompts)
    return [Explanation(prompt, None, 1.0, []) for prompt in prompts]
