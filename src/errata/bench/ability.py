"""Measures general ability with lm-evaluation-harness: an edited model beside its base model."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from errata.arguments import as_list
from errata.bench.harness import HarnessModel
from errata.errors import ConfigError, UnknownNameError, UsageError
from errata.lm import LM
from errata.model import EditModel

from lm_eval import simple_evaluate  # isort: skip  # behind `harness`, which says what to install
from lm_eval.tasks import TaskManager  # isort: skip


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
        ConfigError: `chat` is on, and the tokenizer has no chat template.
        PromptTooLongError: a continuation alone is longer than the model's context.
    """
    if chat and not (model if isinstance(model, LM) else model.lm).tokenizer.chat_template:
        raise ConfigError("chat is on, but this tokenizer has no chat template; leave it out.")
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
