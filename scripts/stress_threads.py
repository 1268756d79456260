"""Eight threads ask one model while a ninth edits, undoes and switches the edits off.

Every answer must be what the model says, asked by one thread, before or after the change that was
under way. A twin that nobody else asks goes through the same changes first and says what is right.
Models are the tiny ones of the tests.

    python scripts/stress_threads.py --seconds 60 --seed 0
"""

from __future__ import annotations

import argparse
import copy
import random
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from edited import EDITS, PROMPTS, edit_model

from errata import EditModel

METHODS = ("folio", "wise", "rag", "grace", "knn-lm", "ft", "prefix-tuning")
FAMILY = "llama"
ASKERS = 8
NEW = 6
"""Tokens of an answer."""
TOLERANCE = 1e-4
"""Of logits, for which it does not matter how many threads there are."""


@dataclass(frozen=True)
class Probe:
    """A way to ask: some prompts in one batch, generated or read."""

    how: str
    prompts: tuple[str, ...]

    def of(self, model: EditModel) -> Any:
        """What the model says: texts, or logits at each prompt's end."""
        if self.how == "generate":
            return model.ask(self.prompts, max_new_tokens=NEW)
        batch = model.lm.prompt_batch(self.prompts)
        with torch.no_grad():
            said = model(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                position_ids=batch.position_ids,
            ).logits
        return said[:, -1]

    def same(self, one: Any, other: Any) -> bool:
        """Whether two answers to it are the same."""
        if self.how == "generate":
            return bool(one == other)
        return torch.allclose(one, other, rtol=0, atol=TOLERANCE)

    def __str__(self) -> str:
        return f"{self.how} of {len(self.prompts)} ({self.prompts[0]!r} ...)"


PROBES = [
    Probe(how, prompts)
    for how in ("generate", "forward")
    for prompts in (*((p,) for p in PROMPTS), tuple(PROMPTS))
]
"""In scope and out of it, alone and in a batch."""


@dataclass
class Race:
    """One model under many threads.

    Attributes:
        states: what is right before the first change and after each, by probe; the last may still
            be under way.
        made: changes that the model has surely had.
    """

    model: EditModel
    twin: EditModel
    rng: random.Random
    states: list[dict[Probe, Any]] = field(default_factory=list)
    made: int = 0
    asked: int = 0
    failures: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def announce(self) -> None:
        """Let the twin say what is right from now on."""
        self.states.append({probe: probe.of(self.twin) for probe in PROBES})

    def change(self) -> None:
        """One edit, undo, or look at the base model."""
        held = {edit.id for edit in self.model.edits}
        kind = self.rng.choice(["edit", "edit", "undo", "disable", "explain"])
        if kind == "disable":
            with self.model.disable_edits():
                time.sleep(0.002)
            return
        if kind == "explain":
            self.model.ask_base(self.rng.choice(PROMPTS))
            return
        some = [edit for edit in EDITS if (edit.id in held) == (kind == "undo")]
        if not some:
            return
        edit = self.rng.choice(some)

        def apply(model: EditModel) -> None:
            if kind == "undo":
                model.undo(edit.id)
            else:
                model.edit(edit, check=False)

        apply(self.twin)
        self.announce()
        apply(self.model)
        self.made += 1

    def ask(self, seed: str) -> None:
        """Ask once."""
        rng = random.Random(seed)
        while not self.stop.is_set():
            probe = rng.choice(PROBES)
            first = self.made
            said = probe.of(self.model)
            right = [state[probe] for state in self.states[first:]]
            if not any(probe.same(said, each) for each in right):
                self.failures.append(f"{probe}: said {said!r}; right was one of {right!r}.")
            self.asked += 1

    def edit(self) -> None:
        """Change the model until it is stopped."""
        while not self.stop.is_set():
            self.change()

    def told(self, call: Callable[[], None]) -> None:
        """Run, and tell what went wrong."""
        try:
            call()
        except BaseException as error:
            self.failures.append(
                f"{threading.current_thread().name}: {type(error).__name__}: {error}"
            )
            self.stop.set()


def race(method: str, seconds: float, seed: int) -> Race:
    """Let the threads run for so long."""
    model = edit_model(FAMILY, method, EDITS[:2])
    now = Race(model, copy.deepcopy(model), random.Random(f"{seed} {method}"))
    now.announce()
    calls: list[Callable[[], None]] = [now.edit]
    calls += [lambda place=place: now.ask(f"{seed} {method} {place}") for place in range(ASKERS)]
    running = [threading.Thread(target=now.told, args=(call,), daemon=True) for call in calls]
    for thread in running:
        thread.start()
    now.stop.wait(seconds)
    now.stop.set()
    for thread in running:
        thread.join(120)
    if any(thread.is_alive() for thread in running):
        now.failures.append("a thread hangs.")
    return now


def threads(seconds: int, seed: int, methods: tuple[str, ...] = METHODS) -> list[str]:
    """Failures in words, none if all is well; each method gets its share of the seconds."""
    found = []
    for method in methods:
        done = race(method, seconds / len(methods), seed)
        found += [f"{method}, seed {seed}: {failure}" for failure in done.failures]
        if not done.asked:
            found.append(
                f"{method}, seed {seed}: nothing was asked in {seconds / len(methods):.0f} s."
            )
    return found


def main() -> None:
    """Print failures, and end with 1 if there are any."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=int, default=60, help="for all methods together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--methods", default=",".join(METHODS), help="separated by commas")
    given = parser.parse_args()
    torch.set_num_threads(1)
    failures = threads(given.seconds, given.seed, tuple(given.methods.split(",")))
    for failure in failures:
        print(failure[:400])
    print(f"{len(failures)} failures.")
    raise SystemExit(1 if failures else 0)


if __name__ == "__main__":
    main()
