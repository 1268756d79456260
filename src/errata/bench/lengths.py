"""Says whether a case fits a model's context, and how long the right answers of cases are."""

from __future__ import annotations

from collections.abc import Sequence

from errata.cases import Case
from errata.errors import PromptTooLongError
from errata.lm import LM


def fits(lm: LM, case: Case) -> bool:
    """Return whether all prompts of a case fit the model's context with their answers."""
    target = case.edit.target
    probes = [
        (probe.prompt, probe.answer or ".")
        for probe in (*case.locality, *case.portability, *case.ood)
    ]
    try:
        for prompt, answer in [
            *((prompt, target) for prompt in (case.edit.prompt, *case.rephrases)),
            *probes,
        ]:
            lm.encode(prompt, answer, "")
    except PromptTooLongError:
        return False
    return True


def longest_answer(lm: LM, cases: Sequence[Case]) -> int:
    """Return the tokens of the longest right answer and its full stop, so none is cut early."""
    wanted = [(case.edit.prompt, case.edit.target) for case in cases]
    wanted += [
        (probe.prompt, probe.answer) for case in cases for probe in case.portability if probe.answer
    ]
    rows = (lm.encode(prompt, answer, "") for prompt, answer in wanted)
    return 1 + max(len(row.ids) - row.prompt_length for row in rows)
