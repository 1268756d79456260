"""Measures general ability with lm-evaluation-harness: an edited model beside its base model.

The harness takes an edited model as an ordinary Hugging Face model; in addition, each request marks
which tokens are the prompt. A request of (context, continuation) is a question and an answer, and a
routed memory decides on the question alone, as in generation. A text for perplexity is a prompt as
a whole.
"""

from __future__ import annotations

import copy
import difflib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from errata.arguments import as_list
from errata.errors import PromptTooLongError, UnknownNameError, UsageError
from errata.lm import LM
from errata.lm.encoding import Row, in_batches, prompt_tokens
from errata.model import EditModel

try:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from tqdm import tqdm
except ImportError as error:
    raise UsageError(
        "general ability needs lm-evaluation-harness: pip install 'errata[ability]'."
    ) from error

Request = tuple[tuple[str, str] | None, list[int], list[int]]
"""(context, continuation) as texts, or None where a text is read; then the token ids of both."""
Likelihood = tuple[float, bool]
"""The log-probability of a continuation, in nats, and whether each token is the likeliest."""


@dataclass(frozen=True)
class HarnessRequest:
    """A request of the harness in tokens.

    Attributes:
        ids: context and continuation, as far as they fit; the last is predicted, never read.
        prompt_length: how many of them a memory decides on.
        continuation_length: how many, at the end, are the continuation.
    """

    ids: tuple[int, ...]
    prompt_length: int
    continuation_length: int

    @property
    def input_row(self) -> Row:
        """What the model reads."""
        return Row(self.ids[:-1], self.prompt_length)

    def likelihood(self, logits: Tensor) -> Likelihood:
        """Compute the continuation's likelihood from all logits (tokens, vocabulary)."""
        log_probs = logits[-self.continuation_length :].float().log_softmax(-1)
        tokens = torch.tensor(self.ids[-self.continuation_length :], device=logits.device)
        return float(log_probs.gather(1, tokens[:, None]).sum()), bool(
            (log_probs.argmax(-1) == tokens).all()
        )


class HarnessModel(HFLM):  # type: ignore[misc]
    """An edited model as a model of lm-evaluation-harness.

        lm_eval.simple_evaluate(HarnessModel(model), tasks=[...])

    Args:
        model: an edited model, or a language model without edits.
        batch_size: requests at a time.
    """

    def __init__(self, model: EditModel | LM, batch_size: int = 8) -> None:
        self.lm = model.lm if isinstance(model, EditModel) else model
        tokenizer = copy.deepcopy(self.lm.tokenizer)  # the harness sets its padding
        if tokenizer.pad_token is None:
            tokenizer.pad_token_id = self.lm.pad_id
        # An `EditModel` goes in as it is, since its `generate` knows what the prompt is.
        pretrained = model if isinstance(model, EditModel) else model.model
        super().__init__(pretrained=pretrained, tokenizer=tokenizer, batch_size=batch_size)

    @torch.no_grad()
    def _loglikelihood_tokens(
        self,
        requests: Sequence[Request],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[Likelihood]:
        """Score requests; those that differ in the last token only share a row."""
        encoded = [self._encoded(*request) for request in requests]
        alike: dict[Row, set[HarnessRequest]] = {}
        for each in encoded:
            alike.setdefault(each.input_row, set()).add(each)
        found: dict[HarnessRequest, Likelihood] = {}
        with tqdm(
            total=len(alike), desc="Running loglikelihood requests", disable=disable_tqdm or None
        ) as shown:

            def read(part: list[Row]) -> list[dict[HarnessRequest, Likelihood]]:
                batch = self.lm.batch(part)
                with prompt_tokens(batch.prompt_mask):
                    logits = self.lm.run(batch).logits
                shown.update(len(part))
                return [
                    {each: each.likelihood(logits[i]) for each in alike[row]}
                    for i, row in enumerate(part)
                ]

            for likelihoods in in_batches(
                list(alike), read, self.batch_size, size=lambda row: len(row.ids)
            ):
                found.update(likelihoods)
        for (texts, *_), each in zip(requests, encoded, strict=True):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, found[each])
        return [found[each] for each in encoded]

    def _encoded(
        self, texts: tuple[str, str] | None, context: list[int], continuation: list[int]
    ) -> HarnessRequest:
        """Return as much of a request as fits, cut at its beginning."""
        if len(continuation) > self.max_length:
            raise PromptTooLongError(
                f"a continuation takes {len(continuation)} tokens; this model's context is "
                f"{self.max_length}. Leave the task out, or shorten its answers."
            )
        whole = [*context, *continuation]
        prompt = len(whole) - 1 if texts is None else len(context)
        # The harness moves white space at the context's end to the continuation.
        if texts is not None and texts[0] != texts[0].rstrip():
            question = self.tok_encode(texts[0])
            prompt = len(question) if whole[: len(question)] == question else prompt
        cut = max(0, len(whole) - self.max_length - 1)
        return HarnessRequest(tuple(whole[cut:]), prompt - cut, len(continuation))


@dataclass(frozen=True)
class Figure:
    """A metric of a task, of the base model and of the edited one.

    Attributes:
        task: its name in the harness; a group of tasks is one, too.
        metric: its name there, and the filter that the answers went through, if any.
        base, edited: its values; `edited` is None for a model without edits.
        base_error, edited_error: their standard errors, where the harness gives one.
        questions: the number of questions in the task; None for a group.
        moved: those to which the edited model gives other likelihoods or another text.
        version: the task's, as the harness counts them.
    """

    task: str
    metric: str
    base: float
    base_error: float | None
    edited: float | None = None
    edited_error: float | None = None
    questions: int | None = None
    moved: int | None = None
    version: Any = None

    @property
    def difference(self) -> float | None:
        """How much larger the edited model's value is."""
        return None if self.edited is None else self.edited - self.base


def ability(
    model: EditModel | LM,
    tasks: str | Iterable[str],
    *,
    limit: int | None = None,
    include_path: str | Path | None = None,
    batch_size: int = 8,
    fewshot: int | None = None,
    chat: bool = False,
) -> list[Figure]:
    """Measure a model with lm-evaluation-harness, with its edits and without them.

    Args:
        model: an edited model, or a language model without edits, which is measured once.
        tasks: names of tasks or groups of the harness.
        limit: questions of each task; None: all.
        include_path: a folder with tasks of your own, in the harness's YAML.
        batch_size: requests at a time.
        fewshot: examples before each question; None: as the task says.
        chat: put questions into the chat template.

    Raises:
        UnknownNameError: no task has this name.
        UsageError: there is no task, or no such folder.
        PromptTooLongError: a continuation alone is longer than the model's context.
    """
    tasks = as_list(tasks, str, "tasks")
    known = _known_tasks(tasks, include_path)
    harness = HarnessModel(model, batch_size)

    def measure() -> dict[str, Any]:
        return dict(
            simple_evaluate(
                harness,
                tasks=tasks,
                task_manager=known,
                limit=limit,
                num_fewshot=fewshot,
                apply_chat_template=chat,
                batch_size=batch_size,
            )
        )

    if isinstance(model, LM):
        return list(_figures(measure(), None))
    with model.disable_edits():
        base = measure()
    return list(_figures(base, measure()))


def _known_tasks(names: Sequence[str], folder: str | Path | None) -> TaskManager:
    """Find tasks; only the folder's own if those suffice, as loading the harness's is slow."""
    if not names:
        raise UsageError("no task is named; give at least one, e.g. hellaswag.")
    own: list[str] = []
    if folder is not None:
        if not Path(folder).is_dir():
            raise UsageError(f"{folder} is not a folder; tasks of your own are YAML files in one.")
        found = TaskManager(include_path=str(folder), include_defaults=False)
        if set(names) <= set(found.all_subtasks):
            return found
        own = list(found.all_tasks)
    found = TaskManager(include_path=None if folder is None else str(folder))
    for name in names:
        if name not in found.all_tasks:
            near = difflib.get_close_matches(name, [*own, *found.all_tasks], n=1, cutoff=0.6)
            meant = f" Did you mean {near[0]!r}?" if near else ""
            where = (
                f"{folder} has {', '.join(own) or 'none'}"
                if folder
                else "--include-path names a folder of your own"
            )
            raise UnknownNameError(
                f"no task is called {name!r}.{meant} `lm_eval ls tasks` lists the harness's; "
                f"{where}."
            )
    return found


def _figures(base: dict[str, Any], edited: dict[str, Any] | None) -> Iterator[Figure]:
    for task, values in base["results"].items():
        samples, version = base["samples"].get(task), base["versions"].get(task)
        questions = None if samples is None else len({each["doc_id"] for each in samples})
        for key, value in values.items():
            metric, _, sieve = key.partition(",")
            if not sieve or metric.endswith("_stderr") or _number(value) is None:
                continue
            name, error = (
                metric if sieve == "none" else f"{metric}, {sieve}",
                f"{metric}_stderr,{sieve}",
            )
            figure = Figure(
                task,
                name,
                float(value),
                _number(values.get(error)),
                questions=questions,
                version=version,
            )
            if edited is not None:
                after = edited["results"][task]
                moved = None if samples is None else _moved(samples, edited["samples"][task])
                figure = replace(
                    figure,
                    edited=float(after[key]),
                    edited_error=_number(after.get(error)),
                    moved=moved,
                )
            yield figure


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _moved(before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]]) -> int:
    """Count the questions with another answer, by each filter's own record of it."""
    pairs = zip(before, after, strict=True)
    return len({one["doc_id"] for one, other in pairs if not _same(one["resps"], other["resps"])})


def _same(one: Any, other: Any) -> bool:
    """Compare texts exactly and likelihoods up to rounding, in lists of lists."""
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, float):
        return math.isclose(one, other, rel_tol=1e-5, abs_tol=1e-4)
    return bool(one == other)
