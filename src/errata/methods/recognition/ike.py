"""IKE and ICE: put the fact in front of the prompt; IKE also puts demonstrations there.

Zheng et al., arXiv 2305.12740. A demonstration is a fact, a question and its answer, of three
kinds: `copy` asks for the fact in its own words, `update` in others, `retain` asks for something
else, whose answer stays. They stand before the fact in the ratio 1 : 3 : 4, those about the most
similar facts, the most similar last. ICE is the fact alone (`demonstrations` = 0).

What departs from the paper: it edits one fact at a time and is given it; here the one fact of the
store that is relevant to the prompt is retrieved, or none, and then the base model answers.
Demonstrations are compared by their facts' prompts, by the same retriever (there: a sentence
encoder, on all of the text). 16 demonstrations, as in EasyEdit; the paper has 32. The base model
gives the answers of the `retain` kind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from types import MappingProxyType
from typing import Any, ClassVar

from torch import Tensor

from errata.config import NonNegativeInt
from errata.edit import Edit, Example
from errata.errors import ConfigError
from errata.lm import LM
from errata.methods.base import Progress, no_progress
from errata.methods.editor_training import check_examples
from errata.methods.fact_method import TEMPLATE, FactMethod, check_template, fact_context
from errata.retrieval import RetrievalConfig, Retriever
from errata.storage import state

RATIO = {"copy": 1, "update": 3, "retain": 4}
EXAMPLES_PER_BATCH = 16


@dataclass(frozen=True)
class IkeConfig(RetrievalConfig):
    """Settings of IKE; those of the retriever are described in `RetrievalConfig`.

    Attributes:
        demonstrations: how many stand before the fact; 0 is ICE, which needs no training.
        template: the text of a fact and a prompt; {fact} is the edit's prompt and target, {prompt}
            stands last.
    """

    method: ClassVar[str] = "ike"

    demonstrations: NonNegativeInt = 16
    template: str = TEMPLATE

    def __post_init__(self) -> None:
        super().__post_init__()
        check_template(self.template)


@dataclass(frozen=True)
class Demonstration:
    """An example of a fact's use: its kind, the fact's prompt, and the whole text."""

    kind: str
    about: str
    text: str


class Ike(FactMethod):
    """Puts the relevant edit in front of a prompt, after demonstrations (IKE) or alone (ICE)."""

    config_class = IkeConfig
    paper = "arXiv 2305.12740"
    needs_training = True
    variants = MappingProxyType({"ice": {"demonstrations": 0}})
    config: IkeConfig

    def __init__(self, config: IkeConfig, lm: LM) -> None:
        super().__init__(config, lm, 1)
        self.demonstrations: list[Demonstration] = []
        self._example_ids: set[str] = set()
        self._library: Retriever | None = None

    @property
    def prepared(self) -> bool:
        """Whether there are demonstrations, or none are wanted."""
        return not self.config.demonstrations or bool(self.demonstrations)

    def prepare(self, examples: Sequence[Example], progress: Progress = no_progress) -> None:
        """Make demonstrations of examples, skipping those already made; nothing is trained.

        Raises:
            ConfigError: no demonstrations are wanted.
            EditError: there are no examples, or one lacks rephrases or other prompts.
        """
        if not self.config.demonstrations:
            raise ConfigError(
                "without demonstrations (ICE) there is nothing to prepare; write edits with it."
            )
        check_examples("ike", examples, "rephrases", "others")
        self.retriever.calibrate()
        new = [example for example in examples if example.edit.id not in self._example_ids]
        for start in range(0, len(new), EXAMPLES_PER_BATCH):
            part = new[start : start + EXAMPLES_PER_BATCH]
            others = [prompt for example in part for prompt in example.others]
            answers = dict(zip(others, self.lm.generate(others), strict=True))
            for example in part:
                self.demonstrations += self._demonstrate(example, answers)
                self._example_ids.add(example.edit.id)
            self._library = self._library or self.retriever.empty_copy()
            self._library.index(self._demonstrated_prompts())
            progress(len(part))

    def context(self, prompt: str, facts: Sequence[Edit]) -> tuple[str, ...]:
        """Return demonstrations, then the fact and the words before the prompt."""
        (fact,) = facts
        shown = [each.text for each in self.choose(fact)]
        return (*shown, fact_context(self.config.template, fact))

    def choose(self, fact: Edit) -> list[Demonstration]:
        """Return the demonstrations to stand before a fact, the most similar last."""
        if self._library is None or not self.config.demonstrations:
            return []
        (scores,) = self._library.scores([fact.prompt]).tolist()
        similarity = dict(zip(self._library.texts, scores, strict=True))
        chosen = []
        for kind, count in shares(self.config.demonstrations).items():
            candidates = [each for each in self.demonstrations if each.kind == kind]
            chosen += sorted(candidates, key=lambda each: -similarity[each.about])[:count]
        return sorted(chosen, key=lambda each: similarity[each.about])

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the retrievers' states and the demonstrations."""
        tensors, values = super().state()
        library = {} if self._library is None else self._library.state()[0]
        if "keys" in library:
            tensors["library.keys"] = library["keys"]
        rows = [list(astuple(each)) for each in self.demonstrations]
        return tensors, {**values, "demonstrations": rows, "learned": sorted(self._example_ids)}

    def load_state(
        self, edits: Sequence[Edit], tensors: Mapping[str, Tensor], values: Mapping[str, Any]
    ) -> None:
        """Restore from `state()`."""
        super().load_state(edits, tensors, values)
        self.demonstrations = [_demonstration(row) for row in state.rows(values, "demonstrations")]
        if unknown := {each.kind for each in self.demonstrations} - set(RATIO):
            raise ValueError(
                f"'demonstrations' has {sorted(unknown)[0][:40]!r} in it; "
                f"expected {', '.join(RATIO)}"
            )
        self._example_ids = set(state.texts(values, "learned"))
        if edits and not self.prepared:
            raise ValueError("there are edits, and no demonstrations")
        if self.demonstrations:
            library_tensors, library_values = self.retriever.state()
            if "library.keys" in tensors:
                library_tensors["keys"] = tensors["library.keys"]
            self._library = self.retriever.empty_copy()
            self._library.load_state(self._demonstrated_prompts(), library_tensors, library_values)

    def _demonstrate(self, example: Example, answers: Mapping[str, str]) -> list[Demonstration]:
        """Return all demonstrations of one example, given the base model's answers to others."""
        edit = example.edit
        questions = [("copy", edit.prompt, edit.target)]
        questions += [("update", prompt, edit.target) for prompt in example.rephrases]
        questions += [("retain", prompt, answers[prompt]) for prompt in example.others]
        front = fact_context(self.config.template, edit)
        return [
            Demonstration(
                kind, edit.prompt, f"{front}{prompt} {answer.rstrip().removesuffix('.')}.\n\n"
            )
            for kind, prompt, answer in questions
        ]

    def _demonstrated_prompts(self) -> list[str]:
        return list(dict.fromkeys(each.about for each in self.demonstrations))


def _demonstration(row: Any) -> Demonstration:
    """Read a demonstration from a saved (kind, fact, text)."""
    if not (
        isinstance(row, list | tuple)
        and len(row) == 3
        and all(isinstance(text, str) for text in row)
    ):
        raise ValueError("'demonstrations' has something other than (kind, fact, text) in it")
    return Demonstration(*row)


def shares(count: int) -> dict[str, int]:
    """Divide `count` demonstrations among kinds; remainders go to `retain`, then `update`."""
    whole = sum(RATIO.values())
    counts = {kind: count * share // whole for kind, share in RATIO.items()}
    for kind in list(reversed(RATIO))[: count - sum(counts.values())]:
        counts[kind] += 1
    return counts
