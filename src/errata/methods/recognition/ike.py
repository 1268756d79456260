"""IKE and ICE: the fact is told in front of the prompt; IKE also shows by demonstrations what is to
be made of it.

Zheng et al., arXiv 2305.12740. A demonstration is a fact, a question and its answer, of three
kinds: `copy` asks the fact in its own words, `update` in others, `retain` asks something else, and
the answer stays what it was. They stand before the fact in the ratio 1 : 3 : 4, those about the
most similar facts, the most similar last. ICE is the fact alone (`demonstrations` = 0).

What departs from the paper: it edits one fact at a time and is told which; here the one fact of the
store that bears on the prompt is found, or none, and then the base model answers. Demonstrations
are compared by their facts' prompts, by the same retriever (there: a sentence encoder, on all of
the text). 16 demonstrations, as in EasyEdit; the paper has 32. What a `retain` must answer is asked
of the base model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from types import MappingProxyType
from typing import Any, ClassVar

from torch import Tensor

from errata.config import check_range
from errata.edit import Edit, Example
from errata.errors import ConfigError, EditError
from errata.lm import LM
from errata.methods.base import Progress, no_progress
from errata.methods.fact_method import FactMethod, stated
from errata.retrieval import RetrievalConfig, Retriever
from errata.storage import state

RATIO = {"copy": 1, "update": 3, "retain": 4}
AT_ONCE = 16


@dataclass(frozen=True)
class IkeConfig(RetrievalConfig):
    """Settings of IKE; those of the retriever are told in `RetrievalConfig`.

    Attributes:
        demonstrations: how many stand before the fact; 0 is ICE, which needs none to be given.
        template: how a fact is told and the prompt asked; {fact} is the edit's prompt and target,
            {prompt} stands last.
    """

    method: ClassVar[str] = "ike"

    demonstrations: int = 16
    template: str = "New Fact: {fact}.\nPrompt: {prompt}"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("demonstrations", self.demonstrations, 0, math.inf)
        if "{fact}" not in self.template or not self.template.endswith("{prompt}"):
            raise ConfigError(
                f"template is {self.template!r}; it must have {{fact}} in it and end with {{prompt}}."
            )


@dataclass(frozen=True)
class Demonstration:
    """What is made of a fact: its kind, the fact's prompt, and the whole text."""

    kind: str
    about: str
    text: str


class Ike(FactMethod):
    """IKE on one model; ICE with no demonstrations."""

    config_class = IkeConfig
    paper = "arXiv 2305.12740"
    needs_training = True
    variants = MappingProxyType({"ice": {"demonstrations": 0}})
    config: IkeConfig

    def __init__(self, config: IkeConfig, lm: LM) -> None:
        super().__init__(config, lm, 1)
        self.demonstrations: list[Demonstration] = []
        self._learned: set[str] = set()
        self._library: Retriever | None = None

    @property
    def prepared(self) -> bool:
        """Whether there are demonstrations, or none are wanted."""
        return not self.config.demonstrations or bool(self.demonstrations)

    def prepare(self, examples: Sequence[Example], progress: Progress = no_progress) -> None:
        """Make demonstrations of examples: nothing is trained. Those that are known already are
        passed over.
        """
        if not self.config.demonstrations:
            raise ConfigError(
                "without demonstrations (ICE) there is nothing to prepare; write edits with it."
            )
        for example in examples:
            if not example.rephrases or not example.others:
                raise EditError(
                    f"a demonstration needs rephrases of the fact and others that stay; {example.edit.prompt!r} lacks them."
                )
        self.retriever.calibrate()
        new = [example for example in examples if example.edit.id not in self._learned]
        for start in range(0, len(new), AT_ONCE):
            part = new[start : start + AT_ONCE]
            others = [prompt for example in part for prompt in example.others]
            answers = dict(zip(others, self.lm.generate(others), strict=True))
            for example in part:
                self.demonstrations += self._made(example, answers)
                self._learned.add(example.edit.id)
            self._shelve()
            progress(len(part))

    def context(self, prompt: str, facts: Sequence[Edit]) -> tuple[str, ...]:
        """Demonstrations, then the fact and the words before the prompt."""
        fact = facts[-1]
        return (*(each.text for each in self.choose(fact)), self._told(fact, ""))

    def choose(self, fact: Edit) -> list[Demonstration]:
        """The demonstrations to stand before a fact, the most similar last."""
        if self._library is None or not self.config.demonstrations:
            return []
        (scores,) = self._library.scores([fact.prompt]).tolist()
        alike = dict(zip(self._library.texts, scores, strict=True))
        chosen = []
        for kind, count in shares(self.config.demonstrations).items():
            mine = [each for each in self.demonstrations if each.kind == kind]
            chosen += sorted(mine, key=lambda each: -alike[each.about])[:count]
        return sorted(chosen, key=lambda each: alike[each.about])

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What the retrievers know; the demonstrations."""
        tensors, values = super().state()
        if self._library is not None and "keys" in (held := self._library.state()[0]):
            tensors["library.keys"] = held["keys"]
        shown = [list(astuple(each)) for each in self.demonstrations]
        return tensors, {**values, "demonstrations": shown, "learned": sorted(self._learned)}

    def load_state(
        self, edits: Sequence[Edit], tensors: Mapping[str, Tensor], values: Mapping[str, Any]
    ) -> None:
        """Be what `state` described."""
        super().load_state(edits, tensors, values)
        shown = state.rows(values, "demonstrations")
        if not all(
            isinstance(each, list | tuple)
            and len(each) == 3
            and all(isinstance(t, str) for t in each)
            for each in shown
        ):
            raise ValueError("'demonstrations' has something other than (kind, fact, text) in it")
        self.demonstrations = [Demonstration(*each) for each in shown]
        if strange := {each.kind for each in self.demonstrations} - set(RATIO):
            raise ValueError(
                f"'demonstrations' has {sorted(strange)[0][:40]!r} in it; expected {', '.join(RATIO)}"
            )
        self._learned = set(state.texts(values, "learned"))
        if edits and not self.prepared:
            raise ValueError("there are edits, and no demonstrations")
        if self.demonstrations:
            mine, held = self.retriever.state()
            if "library.keys" in tensors:
                mine["keys"] = tensors["library.keys"]
            self._library = self.retriever.empty_copy()
            self._library.load_state(self._abouts(), mine, held)

    def _made(self, example: Example, answers: Mapping[str, str]) -> list[Demonstration]:
        edit = example.edit
        asked = [("copy", edit.prompt, edit.target)]
        asked += [("update", prompt, edit.target) for prompt in example.rephrases]
        asked += [("retain", prompt, answers[prompt]) for prompt in example.others]
        return [
            Demonstration(
                kind,
                edit.prompt,
                f"{self._told(edit, prompt)} {answer.rstrip().removesuffix('.')}.\n\n",
            )
            for kind, prompt, answer in asked
        ]

    def _told(self, fact: Edit, prompt: str) -> str:
        told = self.config.template.removesuffix("{prompt}").replace("{fact}", stated(fact))
        return told + prompt

    def _abouts(self) -> list[str]:
        return list(dict.fromkeys(each.about for each in self.demonstrations))

    def _shelve(self) -> None:
        self._library = self._library or self.retriever.empty_copy()
        self._library.index(self._abouts())


def shares(count: int) -> dict[str, int]:
    """How many demonstrations of each kind make up `count`; what does not divide goes to `retain`,
    then to `update`.
    """
    whole = sum(RATIO.values())
    out = {kind: count * share // whole for kind, share in RATIO.items()}
    for kind in list(reversed(RATIO))[: count - sum(out.values())]:
        out[kind] += 1
    return out
