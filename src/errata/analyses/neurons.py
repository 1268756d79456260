"""Knowledge neurons: on which feed-forward neurons facts hang (Dai et al., arXiv 2104.08696).

Of each fact, what the model itself answers is searched for behind the edit's prompt and its
rephrasings, by integrated gradients; other questions about its subject, with their own answers, are
negatives. The settings are those of the method that acts on what is found: `--set threshold=0.2`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from statistics import fmean
from typing import Any

from errata.analyses.context import AnalysisContext
from errata.bench.charts import new_figure
from errata.cases import Case
from errata.errors import UsageError
from errata.lm import LM
from errata.methods.mastery.knowledge_neurons.attribution import told
from errata.methods.mastery.knowledge_neurons.config import KnowledgeNeuronsConfig
from errata.methods.mastery.knowledge_neurons.search import Neuron, fitting, found_in, refined

FACTS = 50
"""Facts, at most."""


def find(context: AnalysisContext) -> dict[str, Any]:
    """Find the neurons of each fact, where they lie, and how far prompts share them.

    Returns:
        "facts": how many; "blocks": those searched; "by block": a fact's neurons in each, on
        average; "by fact": id, prompt, answer, the numbers of prompts and negatives, and the
        neurons, [block, place] each; "before refining": a prompt's neurons, on average; "overlap":
        of two prompts' neurons, those that both have as a share of those that either has, between
        prompts of one fact and between the edits' prompts of different facts, on average; None
        where there are no two.

    Raises:
        UsageError: there are no cases.
    """
    config = KnowledgeNeuronsConfig.from_dict(context.settings)
    base, tokenizer = context.base()
    lm = LM(base, tokenizer, config.chat_template)
    cases = list(context.cases)[:FACTS]
    if not cases:
        raise UsageError("there are no edits whose neurons could be found.")
    facts, coarse = [], []
    for number, case in enumerate(cases, start=1):
        context.progress("attributing", number, len(cases))
        fact, sets = neurons_of(lm, case, config)
        facts.append(fact)
        coarse.append(sets)
    counts = Counter(block for fact in facts for block, _ in fact["neurons"])
    within = [overlap(*pair) for sets in coarse for pair in combinations(sets, 2)]
    between = [overlap(*pair) for pair in combinations([sets[0] for sets in coarse if sets], 2)]
    blocks = config.blocks(lm)
    return {
        "facts": len(facts),
        "blocks": blocks,
        "by block": [counts[block] / len(facts) for block in blocks],
        "before refining": mean([len(found) for sets in coarse for found in sets]),
        "overlap": {"one fact": mean(within), "different facts": mean(between)},
        "by fact": facts,
    }


def neurons_of(
    lm: LM, case: Case, config: KnowledgeNeuronsConfig
) -> tuple[dict[str, Any], list[set[Neuron]]]:
    """Return what was found of one fact, and each prompt's neurons before refining."""
    answer = told(lm, case.edit.prompt, config.tokens)
    found = _found(lm, [case.edit.prompt, *case.rephrases], answer, config)
    negatives = []
    for probe in case.locality:
        if probe.kind == "same_subject":
            other = told(lm, probe.prompt, config.tokens)
            negatives += _found(lm, [probe.prompt], other, config)
    neurons = refined(found, config.share, negatives)
    fact = {
        "id": case.edit.id,
        "prompt": case.edit.prompt,
        "answer": lm.decode(answer),
        "prompts": len(found),
        "negatives": len(negatives),
        "neurons": [list(neuron) for neuron in neurons],
    }
    return fact, found


def _found(
    lm: LM, prompts: Sequence[str], answer: tuple[int, ...], config: KnowledgeNeuronsConfig
) -> list[set[Neuron]]:
    rows = fitting(lm, prompts, (), answer)
    return [found_in(lm, row, config) for row in rows]


def overlap(one: set[Neuron], other: set[Neuron]) -> float:
    """Return the share of the neurons of either that both have; 0 where there are none."""
    return len(one & other) / max(1, len(one | other))


def mean(values: Sequence[float]) -> float | None:
    """Return the mean; None of nothing."""
    return fmean(values) if values else None


def draw(found: dict[str, Any]) -> Any:
    """Draw a fact's neurons by block, the number of neurons of each fact, and the overlaps."""
    figure, axes = new_figure(11, 3.4, columns=3)
    by_block, by_fact, shared = axes[0]
    by_block.bar(found["blocks"], found["by block"], color="#0072b2")
    by_block.set_xlabel("block")
    by_block.set_ylabel("neurons of a fact")
    by_fact.hist([len(fact["neurons"]) for fact in found["by fact"]], bins=12, color="#009e73")
    by_fact.set_xlabel("neurons")
    by_fact.set_ylabel("facts")
    known = {name: value for name, value in found["overlap"].items() if value is not None}
    shared.bar(list(known), list(known.values()), color="#d55e00", width=0.5)
    shared.set_ylim(0, 1)
    shared.set_ylabel("overlap of two prompts' neurons")
    return figure
