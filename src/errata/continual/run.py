"""`Continual`: a run that learns tasks one after another, and measures all of them after each."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from errata.continual.answering import accuracy
from errata.continual.config import LearningConfig
from errata.continual.language import LanguageLearner
from errata.continual.measures import summary
from errata.continual.plugin import Plugin
from errata.continual.plugins import plugin_of
from errata.continual.task import Task, all_labels
from errata.continual.trainer import learn
from errata.errors import ArtifactError, UsageError
from errata.lm import LM
from errata.lm.encoding import Row
from errata.progress import OnProgress
from errata.storage.cache import fingerprint
from errata.storage.files import storage_error
from errata.unlearning.passages import digest

STATE = "learn-state.pt"
"""The file from which an interrupted run goes on; gone when it is done."""
ENCODING = "encoding the tasks"


class Continual:
    """A run of continual learning.

    Args:
        lm: the model; it is changed.
        name: of the plug-in.
        config: its settings, see `config_of`.
        tasks: in the order in which they are learned.
        progress: called with (what, done, total) while they are encoded.

    Attributes:
        before: the accuracy on each task before anything was learned; empty before `run`.
        matrix: R[i][j], the accuracy after task i on task j, as far as it is known.
        plugin, learner: what learns.

    Raises:
        UsageError: there is no task, or the plug-in cannot learn one; or no plug-in has this name.
        PromptTooLongError: a question with its answer does not fit the model's context.
        ConfigError: there is no such layer.
    """

    def __init__(
        self,
        lm: LM,
        name: str,
        config: LearningConfig,
        tasks: Sequence[Task],
        progress: OnProgress = lambda *_: None,
    ) -> None:
        if not tasks:
            raise UsageError("there is no task to learn.")
        self.name, self.config, self.tasks = name, config, list(tasks)
        kind = plugin_of(name)
        if unfit := [task.name for task in tasks if task.kind not in kind.takes]:
            raise UsageError(
                f"{name} learns {' and '.join(kind.takes)} only, and {unfit[0]} has "
                f"{next(task.kind for task in tasks if task.name == unfit[0])}."
            )
        self._base = fingerprint(lm.model)
        self.learner = LanguageLearner(lm, config)
        progress(ENCODING, 0, len(tasks))
        self._rows: list[list[Row]] = []
        self._tests: list[list[list[Row]]] = []
        self._endings: dict[str, str | None] = {}
        for number, task in enumerate(self.tasks):
            progress(ENCODING, number, len(tasks))
            self._encode(task)
        self.plugin: Plugin = kind(config, self.learner)
        self.before: list[float] = []
        self.matrix: list[list[float]] = []
        self.seconds = 0.0

    def run(self, folder: Path, progress: OnProgress) -> None:
        """Learn what is not learned yet, with a checkpoint after each task.

        Args:
            folder: where the state is kept meanwhile; a run that was interrupted goes on from the
                last task that it finished.
            progress: called with (what, done, total).

        Raises:
            ArtifactError: the state there is that of another run.
            StorageError: the folder cannot be written.
        """
        state = folder / STATE
        self._resume(state)
        if not self.before:
            begun = time.monotonic()
            self.before = self._measure("before", None, progress)
            self._save(state, begun)
        for number in range(len(self.matrix), len(self.tasks)):
            begun, what = time.monotonic(), f"learning {self._called(number)}"
            progress(what, 0, 0)
            learn(self.plugin, self._rows[number], partial(progress, what))
            self.matrix.append(self._measure(f"after {self._called(number)}", number, progress))
            self._save(state, begun)

    def record(self) -> dict[str, Any]:
        """Return what was asked for and found, ready for JSON."""
        return {
            "with": self.name,
            "paper": self.plugin.paper,
            "settings": self.config.to_dict(),
            "base": self._base,
            "tasks": [
                {
                    "name": task.name, "kind": task.kind, "examples": len(task.examples),
                    "tests": len(task.tests), "sha256": digest(task.examples),
                }
                for task in self.tasks
            ],
            "before": self.before,
            "accuracy": self.matrix,
            **summary(self.matrix, self.before),
            "seconds": round(self.seconds, 1),
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }  # fmt: skip

    def _called(self, number: int) -> str:
        return f"{self.tasks[number].name} ({number + 1} of {len(self.tasks)})"

    def _encode(self, task: Task) -> None:
        rows = self.learner.rows(task.examples)
        self._rows.append(rows)
        if task.kind == "documents":
            self._tests.append([each.rows(self.learner.lm) for each in task.tests])
        else:
            self._tests.append([[] for _ in task.tests])
            for each in task.tests:
                self.learner.lm.encode(each.prompt, each.text, ".")
        for label in task.labels if task.kind == "labels" else ():
            prompt = task.examples[0].prompt
            self._endings.setdefault(label, self.learner.lm.ending_of(prompt, label))

    def _measure(self, when: str, learned: int | None, progress: OnProgress) -> list[float]:
        """Return the accuracy on each task; `learned` is the last task that was learned."""
        found, done = [], 0
        known = all_labels(self.tasks[: (learned or 0) + 1])
        for number, task in enumerate(self.tasks):
            labels = dict.fromkeys([*known, *(task.labels if task.kind == "labels" else ())])

            def tell(task: Task = task) -> None:
                nonlocal done
                progress(f"asking {task.name}, {when}", done, 0)
                done += 1

            tell()
            at = number if learned is not None and number <= learned else None
            endings = {label: self._endings[label] for label in labels}
            found.append(
                accuracy(self.plugin, self.learner, task, endings, self._tests[number], at, tell)
            )
        return found

    # what is kept of an interrupted run

    def _identity(self) -> str:
        parts: list[Any] = [self.name, self.config.to_dict(), self._base]
        parts += [[each.name, digest(each.examples), digest(each.tests)] for each in self.tasks]
        return json.dumps(parts, sort_keys=True)

    def _save(self, path: Path, begun: float) -> None:
        self.seconds += time.monotonic() - begun
        changed = {} if self.plugin.beside else self.learner.parameters
        values = {name: each.detach() for name, each in changed.items()}
        content = {
            "of": self._identity(), "before": self.before, "matrix": self.matrix,
            "values": values, "plugin": self.plugin.state(), "seconds": self.seconds,
        }  # fmt: skip
        new = path.with_suffix(".new")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(content, new)
            os.replace(new, path)
        except OSError as error:
            raise storage_error(path.parent, error) from error

    def _resume(self, path: Path) -> None:
        if not path.exists():
            return
        try:
            found: Mapping[str, Any] = torch.load(
                path, weights_only=True, map_location=self.learner.lm.device
            )
            same = found["of"] == self._identity()
            if same:
                with torch.no_grad():
                    for name, value in found["values"].items():
                        self.learner.parameters[name].copy_(value)
                self.before, self.matrix = found["before"], found["matrix"]
                self.seconds = found["seconds"]
                self.plugin.tasks = list(self._rows[: len(self.matrix)])
                self.plugin.load_state(found["plugin"])
        except Exception as error:
            raise ArtifactError(f"{path}: it is damaged ({error}); delete it.") from error
        if not same:
            raise ArtifactError(
                f"{path}: it is of another run (another model, other tasks or settings); give "
                "another --out, or delete it."
            )
