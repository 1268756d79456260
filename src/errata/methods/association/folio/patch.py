"""`FolioMemory`: what each prompt is answered with: an edit's answer, its fact, or the base model.

It is decided once per sequence (see `patches.routed`), on the prompt, by three criteria:

1. Does it mention an edit's subject? Words are compared, rare ones weigh most. Where it mentions
   none, nothing more is asked, and the base model answers.
2. Does it ask what the edit's own prompt asks? What the base model makes of both in the middle of
   its blocks lies near each other in a space of questions, see `question_space.py`.
3. In which way does it ask: for the answer, a yes or no, a choice, a text, or for what it is not or
   was before? The same states tell, see `intents.py`.

An edit's answer is *said* where the same is asked in the same way: each of its tokens is made as
likely as wanted, see `saying.py`. Its fact is *read* where the prompt asks for a yes or no, a
choice or a text: it is put in front of the prompt, inside the model's own forward (see
`ContextPatch`), and the base model draws the conclusion. All else the base model answers, bit for
bit.

Where an edit's subject is mentioned and the edit erases, what the base model told of it is withheld
from any answer, see `withholding.py`; all else of that is as without the edit.

Where the base model is sure of how it would begin either answer, that counts too: beginning
otherwise, it was asked other things.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from errata.lm import LM
from errata.lm.hooks import tensor_of
from errata.methods.association.folio.base_head import BaseHead
from errata.methods.association.folio.calibration import RouterCalibration
from errata.methods.association.folio.leaf import EncodedPrompt
from errata.methods.association.folio.leaves import Leaves
from errata.methods.association.folio.question_reader import QuestionReader
from errata.methods.association.folio.saying import places_to_say, with_said
from errata.methods.association.folio.withholding import with_withheld, withheld_places
from errata.methods.fact_method import TEMPLATE, fact_contexts
from errata.patches.base import Arguments, idle, patches_idle
from errata.patches.context import MAX_CACHED, ContextPatch
from errata.patches.grown import COLUMNS, DECIDED, GROWN, UNDECIDED, WIDER, WITHHELD
from errata.patches.outcome import Outcome, listener, outcomes_told_to
from errata.patches.routed import MAIN, ForwardState, RoutedPatch, last_token

TO_SAY, NOT_TO_SAY, KEEP = "to_say", "not_to_say", "logits_to_keep"
"""What one hook leaves for the next: places, see `Place`; and which columns get logits."""
SAID = "said"
"""A note of a history: rows that are answered by an edit, each with its answer's tokens."""


class FolioMemory(ContextPatch):
    """Says edits' answers, and puts their facts in front of prompts.

    Args:
        lm: the base model; nothing is installed on it yet.
        min_subject_overlap: share of an edit's subject that a prompt must mention.
        edits_per_file: leaves in one folio.
        confidence: the probability that each token of an answer gets, at least.

    Attributes:
        base: the base model's head.
        reader: reads what prompts ask.
    """

    def __init__(
        self, lm: LM, min_subject_overlap: float, edits_per_file: int, confidence: float
    ) -> None:
        super().__init__()
        self.base = BaseHead(lm)
        self.reader = QuestionReader(self.base)
        self.min_subject_overlap, self.edits_per_file = min_subject_overlap, edits_per_file
        self.confidence = confidence
        self._leaves: Leaves | None = None
        self._read: dict[tuple[str, ...], list[int]] = {}  # questions -> leaves that they read
        self._withheld: list[tuple[int, ...]] = []  # leaves that one row withholds, together

    @property
    def empty(self) -> bool:
        """Whether there is no leaf, or this thread is calling the base model."""
        return not self._leaves or idle()

    @property
    def calibrated(self) -> bool:
        """Whether there are statistics of background text."""
        return self._leaves is not None

    @property
    def leaves(self) -> Leaves:
        """The edits.

        Raises:
            RuntimeError: `reset` has not been called yet.
        """
        if self._leaves is None:
            raise RuntimeError("reset() comes before the first leaf.")
        return self._leaves

    @property
    def calibration(self) -> RouterCalibration:
        """Statistics of background text."""
        return self.leaves.calibration

    def reset(self, calibration: RouterCalibration) -> None:
        """Remove all leaves, and route by these statistics from now on."""
        self.base.logit_scale = calibration.logit_scale
        overlap, size = self.min_subject_overlap, self.edits_per_file
        self._leaves = Leaves(self.reader, overlap, calibration, size)

    def _contexts(self, questions: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
        """Return the facts that go before conversations, each given by its questions."""
        prompts = [EncodedPrompt(turns[0], turns[1:]) for turns in questions]
        with patches_idle():
            found = self.leaves.to_read(prompts)
        if len(self._read) > MAX_CACHED:
            self._read = {}
        self._read.update(zip(questions, found, strict=True))
        return [
            fact_contexts(TEMPLATE, [self.leaves[number].edit for number in numbers])
            for numbers in found
        ]

    def finds(self, lm: LM, prompts: Sequence[tuple[int, ...]]) -> list[bool]:
        """Return to which prompts an edit is said or read, or of which something is withheld."""
        with outcomes_told_to(None):
            return RoutedPatch.finds(self, lm, prompts)

    def answered(self, route: Tensor) -> Tensor:
        """Return the rows whose answer an edit changes, (batch,) bool."""
        return (route[:, GROWN] > 0) | (route[:, DECIDED] >= 0) | (route[:, WITHHELD] > 0)

    def _attach(self, lm: LM) -> None:
        self._read, self._withheld = {}, []
        super()._attach(lm)

    def _register_hooks(self, lm: LM) -> list[RemovableHandle]:
        before, after = super()._register_hooks(lm)
        return [
            before,
            self.base.body.register_forward_hook(self._after_body),
            self.base.head.register_forward_hook(self._after_head),
            after,
        ]

    def _change(self, lm: LM, arguments: Arguments) -> tuple[tuple[()], Arguments] | None:
        changed = super()._change(lm, arguments)
        if self._pass is not None:
            self._pass.kept[KEEP] = (changed[1] if changed else arguments).get(KEEP)
        return changed

    def _after_body(self, body: nn.Module, _: tuple[Tensor, ...], output: Any) -> None:
        """Choose the leaf that answers each prompt, and the tokens that are said in this call."""
        state = self._pass
        if state is None or self.empty or state.route is None or state.ids is None:
            return
        if state.mask is not None:
            self._decide(tensor_of(body, output), state)
            self._withhold(state)
            if (tell := listener()) is not None:
                tell(self._outcomes(state))
        notes = state.history.notes
        if SAID not in notes:
            numbers = enumerate(state.route[:, DECIDED].tolist())
            notes[SAID] = [(row, self.leaves[each].tokens) for row, each in numbers if each >= 0]
        if notes[SAID]:
            state.kept[TO_SAY] = list(places_to_say(state, notes[SAID]))
        if self._withheld and len(rows := state.route[:, WITHHELD].nonzero()[:, 0]):
            told = [
                (row, self.leaves.spelled(self._withheld[number - 1]))
                for row, number in zip(
                    rows.tolist(), state.route[rows, WITHHELD].tolist(), strict=True
                )
            ]
            generic = self.calibration.generic
            state.kept[NOT_TO_SAY] = list(withheld_places(state, told, generic))

    def _withhold(self, state: ForwardState) -> None:
        """Put into the route what each row's answer must not tell; 0 is nothing."""
        if state.route is None or not self.leaves.withholds:
            return
        turns = [self._turns(ids) for ids in state.history.prompts]
        prompts = [EncodedPrompt(text, tuple(earlier)) for text, *earlier in turns]
        nothing: tuple[int, ...] = ()
        for row, numbers in enumerate(state.in_rows(prompts, self.leaves.withheld, nothing)):
            if numbers:
                if numbers not in self._withheld:
                    self._withheld.append(numbers)
                state.route[row, WITHHELD] = self._withheld.index(numbers) + 1

    def _turns(self, ids: tuple[int, ...]) -> tuple[str, ...]:
        """Return a prompt's question, and behind it the earlier ones of its conversation."""
        return self.base.lm.questions(ids)

    def _outcomes(self, state: ForwardState) -> list[Outcome | None]:
        """Return what the rows are answered with, once it is decided."""
        if state.route is None or state.ids is None:
            return [Outcome("main")] * state.size[0]
        routes = state.route[:, :COLUMNS].tolist()
        rows = list(zip(routes, state.history.prompts, strict=True))
        return state.in_rows(rows, lambda some: [self._outcome(*row) for row in some], None)

    def _outcome(self, route: Sequence[int], prompt: tuple[int, ...]) -> Outcome:
        if (number := route[DECIDED]) >= 0:
            return Outcome("say", (self.leaves[number].edit.id,))
        if route[GROWN] <= 0:
            if number := route[WITHHELD]:
                withheld = self._withheld[number - 1]
                return Outcome("withhold", tuple(self.leaves[each].edit.id for each in withheld))
            return Outcome("main")
        questions = self._turns(prompt)
        if questions not in self._read:
            self._contexts([questions])
        numbers = self._read[questions]
        return Outcome("read", tuple(self.leaves[number].edit.id for number in numbers))

    def _decide(self, inputs: Tensor, state: ForwardState) -> None:
        """Put the number of the leaf that answers each row into the route, or `MAIN`.

        Args:
            inputs: (batch, columns, hidden), the head's inputs.
            state: the call; its rows with a context are decided already.
        """
        if state.route is None or state.mask is None or state.ids is None:
            return
        rows = (state.route[:, GROWN] == 0) & (state.route[:, DECIDED] == UNDECIDED)
        rows = state.left_out(rows, nothing=False)
        last = last_token(state.mask).to(inputs.device) + int(state.route[0, WIDER])
        state.route[:, DECIDED] = MAIN
        keys = inputs[torch.arange(len(last), device=inputs.device), last]
        prompts = []
        for key, ids, is_open in zip(keys, state.history.prompts, rows.tolist(), strict=True):
            if is_open:
                text, *earlier = self._turns(ids)
                prompts.append(EncodedPrompt(text, tuple(earlier), ids, key))
        chosen = torch.tensor(self.leaves.choose(prompts), device=state.route.device)
        state.route[rows, DECIDED] = chosen.to(state.route)

    def _after_head(self, _: nn.Module, __: tuple[Tensor, ...], logits: Tensor) -> Tensor | None:
        state = self._pass
        if state is None or self.empty or state.route is None:
            return None
        said, withheld = state.kept.get(TO_SAY), state.kept.get(NOT_TO_SAY)
        if not (said or withheld):
            return None
        there = {column: place for place, column in enumerate(self._columns(state, logits))}
        said, withheld = (
            [(row, there[column], token) for row, column, token in places if column in there]
            for places in (said or (), withheld or ())
        )
        if withheld:
            logits = with_withheld(logits, withheld)
        if said:
            logits = with_said(logits, said, self.confidence, self.base.logit_scale)
        return logits

    def _columns(self, state: ForwardState, logits: Tensor) -> Sequence[int]:
        """Return which columns of the call logits are of; those of a context are below 0."""
        if state.route is None:
            raise ValueError("nothing is decided yet")
        width, keep = state.size[1], state.kept[KEEP]
        if not isinstance(keep, Tensor):
            return range(width - logits.shape[1], width)
        wider = int(state.route[0, WIDER])
        columns: list[int] = torch.where(keep < 0, keep + width, keep - wider).tolist()
        return columns
