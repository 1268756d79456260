"""What methods are compared with: the base model, reading the right fact, and printing the target.

Each stands where an `EditModel` would and goes through the same evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from errata.cases import Case
from errata.errors import PromptTooLongError
from errata.lm import LM, Score
from errata.methods.fact_method import TEMPLATE, fact_context
from errata.model import EditModel
from errata.probes import Probes
from errata.probes.conversation import asked_probes
from errata.words.parts import mentions

IMPOSSIBLE = 100.0
"""The loss, in nats per token, of an answer that is not the one that is printed."""


class Unedited:
    """The base model: nothing is asked of it twice."""

    def __init__(self, model: EditModel) -> None:
        self.model = model
        self._off = False

    @property
    def lm(self) -> LM:
        """The base model with its tokenizer."""
        return self.model.lm

    def ask_base(self, prompts: list[str], **options: Any) -> list[str]:
        """Answer as the base model does."""
        return self.model.ask_base(prompts, **options)

    def ask(self, prompts: list[str], **options: Any) -> list[str]:
        """Answer as the base model does."""
        return self.ask_base(prompts, **options)

    def score(
        self, pairs: list[tuple[str, str]], batch_size: int = 32, whole: bool = False
    ) -> list[Score]:
        """Score (prompt, target) pairs by teacher forcing, without edits."""
        with self.model.disable_edits():
            return self.model.score(pairs, batch_size, whole)

    @contextmanager
    def disable_edits(self) -> Iterator[None]:
        """Be the base model within a `with` block."""
        self._off = True
        try:
            yield
        finally:
            self._off = False


class Given(Unedited):
    """The base model with the right fact in front of every prompt that is about it.

    That is what reading alone reaches where the fact to read is always found. It is put before what
    should follow from an edit, and before what else mentions its subject.
    """

    def __init__(
        self, model: EditModel, cases: Sequence[Case], probes: Probes, max_new_tokens: int
    ) -> None:
        super().__init__(model)
        self.with_facts: dict[str, str] = {}
        by_id = {case.edit.id: case for case in cases}
        for case in cases:
            for prompt in _about(case):
                self._add(prompt, fact_context(TEMPLATE, case.edit) + prompt)
        for probe in asked_probes(model.lm, probes, max_new_tokens)[0]:
            edit, question = by_id[probe.question.edit_id].edit, probe.question
            if question.expects != "as the base" or _names(question.turns[-1], edit.subject):
                context = fact_context(TEMPLATE, edit)
                self._add(probe.prompt.text, probe.prompt.behind(context))

    def ask(self, prompts: list[str], **options: Any) -> list[str]:
        """Answer with the facts in front."""
        return self.ask_base([self.with_facts.get(each, each) for each in prompts], **options)

    def score(
        self, pairs: list[tuple[str, str]], batch_size: int = 32, whole: bool = False
    ) -> list[Score]:
        """Score (prompt, target) pairs by teacher forcing, with the facts in front."""
        if not self._off:
            pairs = [(self.with_facts.get(prompt, prompt), target) for prompt, target in pairs]
        return super().score(pairs, batch_size, whole)

    def _add(self, prompt: str, fronted: str) -> None:
        """Note a prompt with its fact, unless it has one, or the two do not fit the context."""
        try:
            self.lm.encode_prompt(fronted)
        except PromptTooLongError:
            return
        self.with_facts.setdefault(prompt, fronted)


class Forced(Unedited):
    """A method's router, and behind it the target of the edit it finds, printed word for word.

    What the method reaches above that is what its edits do to the model, over a lookup.
    """

    def __init__(self, model: EditModel) -> None:
        super().__init__(model)
        self._targets = {edit.id: edit.target for edit in model.edits}
        self._printed: dict[str, str | None] = {}

    def ask(self, prompts: list[str], **options: Any) -> list[str]:
        """Print the target of each prompt's edit; where there is none the base model answers."""
        return self._either(prompts, lambda rest: self.ask_base(rest, **options))

    def score(
        self, pairs: list[tuple[str, str]], batch_size: int = 32, whole: bool = False
    ) -> list[Score]:
        """Score (prompt, target) pairs: as the base model, or token by token against the target."""
        if self._off:
            return super().score(pairs, batch_size, whole)
        printed = self._targets_of([prompt for prompt, _ in pairs])
        rest = [pair for pair, target in zip(pairs, printed, strict=True) if target is None]
        scores = iter(super().score(rest, batch_size, whole))
        return [
            next(scores) if target is None else self._score(prompt, wanted, target)
            for (prompt, wanted), target in zip(pairs, printed, strict=True)
        ]

    def _either(self, prompts: list[str], ask: Callable[[list[str]], list[str]]) -> list[str]:
        printed = self._targets_of(prompts)
        rest = [prompt for prompt, target in zip(prompts, printed, strict=True) if target is None]
        answers = iter(ask(rest) if rest else [])
        return [next(answers) if target is None else target for target in printed]

    def _targets_of(self, prompts: list[str]) -> list[str | None]:
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._printed]
        for found in self.model.explain(new) if new else ():
            edit_id = found.edit_id
            self._printed[found.prompt] = None if edit_id is None else self._targets[edit_id]
        return [self._printed[prompt] for prompt in prompts]

    def _score(self, prompt: str, wanted: str, target: str) -> Score:
        row, said = self.lm.encode(prompt, wanted), self.lm.encode(prompt, target)
        length = row.target_length
        labels = row.ids[row.prompt_length :]
        predicted = (*said.ids[said.prompt_length :], *[-1] * length)[:length]
        same = [a == b for a, b in zip(labels, predicted, strict=True)]
        exact = all(same)
        return Score(sum(same) / length, exact, 0.0 if exact else IMPOSSIBLE, predicted)


def _about(case: Case) -> Iterator[str]:
    """Yield the prompts of a case that its fact is put in front of."""
    yield case.edit.prompt
    yield from case.rephrases
    yield from (probe.prompt for probe in (*case.portability, *case.ood))
    yield from (probe.prompt for probe in case.locality if _names(probe.prompt, case.edit.subject))


def _names(text: str, subject: str | None) -> bool:
    return subject is not None and bool(mentions(text, subject))
