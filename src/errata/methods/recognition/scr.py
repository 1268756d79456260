"""SCR: retrieve facts, ask the model which one the question is about, and let it read that one.

Ren et al., "Revisiting Parameter-Based Knowledge Editing in Large Language Models", ICML 2026,
arXiv 2606.00570: the `candidates` nearest facts by a retriever (Contriever); the model is shown
them and the question, and writes the fact that matches or "no relevant fact."; with that one fact
in front it answers, without one as the base model. The wording is the published one.

What departs from the published code: what the model writes when asked is held to the candidates and
to `NONE`, so a small model cannot invent a fact (greedy decoding: token by token the likeliest of
those that one of them goes on with); a candidate must also score above the retriever's minimum (see
`RetrievalConfig`), since small models rarely say that nothing fits; facts are found by their
prompts; and there is no "Answer:" behind the question, which ends as it was asked. With
`encoder=FOLDER` a sentence encoder retrieves, with `retriever=bm25` shared words, by default the
model's own states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from errata.config import PositiveInt
from errata.edit import Edit
from errata.errors import PromptTooLongError
from errata.lm import LM
from errata.lm.logits import next_logits
from errata.methods.fact_method import FactMethod, check_template, fact_context, fact_text
from errata.retrieval import RetrievalConfig

NONE = "no relevant fact."
"""What the model says when no fact answers the question."""
SELECTION = (
    "Given a set of facts and a question, return the fact (the entire sentence) that best matches "
    "the core knowledge asked in the question. If the question cannot be answered with the facts, "
    f'return "{NONE}"\n\nFacts: \n{{facts}}\nQuestion: {{question}}\n\nOutput:'
)
TEMPLATE = "Answer the question based on the Fact.\n\nFact: {fact}.\nQuestion: {prompt}"


@dataclass(frozen=True)
class ScrConfig(RetrievalConfig):
    """Settings of SCR; those of the retriever are described in `RetrievalConfig`.

    Attributes:
        candidates: the most facts that the model is shown to choose from.
        template: the text of the chosen fact and the prompt; {fact} is the edit's prompt and
            target, {prompt} stands last.
    """

    method: ClassVar[str] = "scr"

    candidates: PositiveInt = 5
    template: str = TEMPLATE

    def __post_init__(self) -> None:
        super().__post_init__()
        check_template(self.template)


class Scr(FactMethod):
    """Retrieves facts, asks the model which one a prompt is about, and puts that in front of it."""

    config_class = ScrConfig
    paper = "arXiv 2606.00570"
    config: ScrConfig

    def __init__(self, config: ScrConfig, lm: LM) -> None:
        super().__init__(config, lm, config.candidates)

    def context(self, prompt: str, facts: Sequence[Edit]) -> tuple[str, ...]:
        """Return the fact that the model chooses and the words before the prompt; () for none."""
        chosen = self.choose(prompt, facts)
        return () if chosen is None else (fact_context(self.config.template, chosen),)

    @torch.no_grad()
    def choose(self, prompt: str, facts: Sequence[Edit]) -> Edit | None:
        """Return the fact that the model says the prompt is about; None where it says `NONE`.

        Facts for which the model's context has no room are not shown, the worst first; where it has
        room for none, the best is taken unasked.

        Args:
            prompt: the question.
            facts: the candidates, the best last.
        """
        for first in range(len(facts)):
            shown = facts[first:]
            sentences = [f"{fact_text(fact)}." for fact in shown]
            # the best first, as the publication has it
            asked = SELECTION.format(facts="\n".join(reversed(sentences)), question=prompt)
            try:
                rows = [self.lm.encode(asked, answer) for answer in (*sentences, NONE)]
            except PromptTooLongError:
                continue
            targets = [row.ids[row.prompt_length :] for row in rows]
            place = greedy_choice(self.lm, rows[0].ids[: rows[0].prompt_length], targets)
            return shown[place] if place < len(shown) else None
        return facts[-1]


@torch.no_grad()
def greedy_choice(lm: LM, prompt: Sequence[int], targets: Sequence[Sequence[int]]) -> int:
    """Return the target that greedy decoding writes behind a prompt if it must write one of them.

    The model is asked where the targets part, and reads each token once. Of equal targets, or where
    one begins with another, the first that ends is chosen.

    Args:
        lm: the model.
        prompt: its tokens.
        targets: tokens of each.
    """
    left, step, cache = list(range(len(targets))), 0, None
    unread = list(prompt)
    while len(left) > 1:
        if ended := [place for place in left if len(targets[place]) == step]:
            return ended[0]
        tokens = list(dict.fromkeys(targets[place][step] for place in left))
        if len(tokens) > 1:
            logits, cache = next_logits(lm, unread, cache)
            unread = []
            tokens = [max(tokens, key=lambda token: logits[token].item())]
        unread += tokens
        left = [place for place in left if targets[place][step] == tokens[0]]
        step += 1
    return left[0]
