"""How well a model does a task: free answers, labels among those known, next tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

import torch

from errata.continual.language import BATCH, LanguageLearner
from errata.continual.plugin import Plugin
from errata.continual.task import Task
from errata.edit import same_answer
from errata.lm.encoding import Row, in_batches
from errata.unlearning.passages import Passage

MORE = 4
"""Tokens of a free answer beyond those of the longest right one, for a full stop and the end."""


@torch.no_grad()
def accuracy(
    plugin: Plugin,
    learner: LanguageLearner,
    task: Task,
    labels: Mapping[str, str | None],
    rows: Sequence[Sequence[Row]],
    number: int | None,
    tell: Callable[[], None],
) -> float:
    """Return how well a task is done, from 0 to 1.

    Questions: the share of free greedy answers that are the right one, whole. Labels: the share of
    texts whose own is the likeliest of all labels known so far. Documents: the share of tokens that
    are the likeliest, each after the text before it.

    Args:
        plugin: what the model learned with.
        learner: the model.
        task: what is asked.
        labels: those that are known, with what stands after each.
        rows: the tests' tokens.
        number: of the task; None where it was not learned yet.
        tell: called before each part of the work.
    """
    hits: list[float] = []
    for known, places in plugin.asked([_prompt_ids(learner, each) for each in task.tests], number):
        with plugin.at(known):
            part = [task.tests[place] for place in places]
            if task.kind == "questions":
                hits += answered(learner, part, tell)
            elif task.kind == "labels":
                chosen = plugin.classify([each.prompt for each in part], list(labels))
                tell()
                if chosen is None:
                    chosen = likeliest(learner, [each.prompt for each in part], labels, tell)
                hits += [float(a == each.text) for a, each in zip(chosen, part, strict=True)]
            else:
                hits += predicted(learner, [row for place in places for row in rows[place]], tell)
    return fmean(hits)


def _prompt_ids(learner: LanguageLearner, passage: Passage) -> list[int]:
    """Return the tokens by which a passage is asked; of a document its beginning."""
    if passage.prompt:
        return learner.lm.encode_prompt(passage.prompt)
    return learner.lm.encode_text(passage.text)[: learner.lm.context_length or None]


def answered(
    learner: LanguageLearner, passages: Sequence[Passage], tell: Callable[[], None]
) -> list[float]:
    """Return for each question 1 where the free answer is the right one, whole, else 0."""
    hits: list[float] = []
    for start in range(0, len(passages), BATCH):
        tell()
        part = passages[start : start + BATCH]
        most = max(len(learner.lm.encode_piece(each.text)) for each in part) + MORE
        answers = learner.generate([each.prompt for each in part], most)
        hits += [float(same_answer(a, each.text)) for a, each in zip(answers, part, strict=True)]
    return hits


def likeliest(
    learner: LanguageLearner,
    texts: Sequence[str],
    labels: Mapping[str, str | None],
    tell: Callable[[], None],
) -> list[str]:
    """Return for each text the label that is the likeliest answer, among some."""
    chosen: list[str] = []
    for text in texts:
        tell()
        rows = [learner.lm.encode(text, label, ending) for label, ending in labels.items()]
        forward = learner.forward(rows)
        tokens = torch.bincount(forward.rows, minlength=len(rows))
        chosen.append(list(labels)[int((forward.losses * tokens).argmin())])
    return chosen


def predicted(
    learner: LanguageLearner, rows: Sequence[Row], tell: Callable[[], None]
) -> list[float]:
    """Return for each token of documents 1 where it is the likeliest, else 0."""

    def hits(part: list[Row]) -> list[list[float]]:
        tell()
        forward = learner.forward(part)
        return [forward.hits[forward.rows == row].tolist() for row in range(len(part))]

    found = in_batches(rows, hits, 4, size=lambda row: len(row.ids))
    return [hit for of_row in found for hit in of_row]
