"""Compares ways to write an edit with Folio: gains, values and places, with the right leaf given.

A rephrasing counts when every token of the answer, its end included, is the model's choice with the
leaf's values added at the tokens that predict it: then, and only then, free generation says it.
Beside it stands what a wrong route would do: of the probes (other questions about the subject where
there are such, else the file's own) the share whose first token stays.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from errata import Case
from errata.lm import LM
from errata.lm.background import background_texts
from errata.lm.encoding import Batch
from errata.lm.hooks import replace_output
from errata.methods.association.folio.method import Folio
from errata.methods.association.folio.values import solve_values
from errata.methods.association.wise.config import WiseConfig
from errata.methods.association.wise.training_examples import TrainingExamples
from errata.solvers.values import with_prefix

if TYPE_CHECKING:
    from folio import Bench

Rows = Iterator[dict[str, Any]]
GAINS = (1.0, 1.5, 2.0, 3.0, 4.0)
PREFIXES = REWORDINGS = 4
SOME = 30
"""Edits of a stream that places are compared on: a value below the head costs a second and more."""


@dataclass
class Written:
    """An edit's head inputs behind its prompt and the values solved there, (n, hidden) each.

    Values are without gain. The same stands behind prefixes and in rewordings, (n, hidden) each.
    """

    keys: Tensor
    values: Tensor
    prefixed: list[Tensor]
    reworded: list[tuple[Tensor, Tensor]]


Adding = Callable[[Folio, Written, Tensor], Tensor]
"""(method, an edit's rows, the head's inputs (m, hidden) of another wording) -> what is added
there.
"""


def writes_table(bench: Bench) -> Rows:
    """Compare ways to add values that are solved alike."""
    ways: dict[str, Adding] = {f"gain {gain:g}": _fixed(gain) for gain in GAINS}
    ways |= {
        "gain 1 / cosine of the keys": _adaptive(1.0),
        "gain 2 / cosine of the keys": _adaptive(2.0),
        "gain 2, the value of the nearest key": _nearest_everywhere,
        f"gain 2, values averaged over {PREFIXES} prefixes": _averaged,
        f"gain 1, nearest of {REWORDINGS} self-generated rewordings": _reworded(1.0),
        f"gain 2, nearest of {REWORDINGS} self-generated rewordings": _reworded(2.0),
    }
    for name, model, cases in bench.streams(counterfact=200, atlas=200):
        method = bench.open(model).method
        method.patch.remove()
        texts = background_texts(method.lm, 512, 24, 0, shortest=4)
        planner = TrainingExamples(
            method.lm,
            WiseConfig(contrast=0, rewordings=REWORDINGS),
            {"texts": texts, "prefixes": []},
        )
        written = [_written(method, case, planner, texts) for case in cases[:200]]
        for way, adding in ways.items():
            yield {
                "stream": name,
                "write": way,
                **_tried(method, list(zip(cases, written, strict=False)), adding),
            }


def _solve(method: Folio, keys: Tensor, labels: Tensor) -> Tensor:
    scale = float(method.patch.calibration.scale.median())
    return solve_values(method.patch.base, keys, labels, scale, method.config)


def _written(method: Folio, case: Case, planner: TrainingExamples, texts: Sequence[str]) -> Written:
    edit = case.edit

    def rows(prompt: str) -> tuple[Tensor, Tensor]:
        keys, labels = _read(method, _answer(method.lm, prompt, case))
        return keys, _solve(method, keys, labels)

    keys, values = rows(edit.prompt)
    prefixed = [rows(with_prefix(text, edit.prompt))[1] for text in texts[:PREFIXES]]
    reworded = [
        rows(prompt) for prompt in (planner.contrast_set(edit).rewordings if edit.subject else ())
    ]
    return Written(
        keys, values, [each for each in prefixed if each.shape == values.shape], reworded
    )


def _read(method: Folio, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return (head inputs (n, hidden), tokens (n,)) of the answer in a batch of one."""
    _, columns, labels = batch.label_positions(batch.target_mask | batch.ending_mask)
    return method.patch.base.run(batch)[0][0, columns].float(), labels


@torch.no_grad()
def _tried(
    method: Folio, written: Sequence[tuple[Case, Written]], adding: Adding
) -> dict[str, float]:
    patch = method.patch
    right, stayed = [], []
    for case, rows in written:
        for text in case.rephrases:
            keys, labels = _read(method, _answer(method.lm, text, case))
            right.append(
                bool(
                    (
                        patch.base.logits(keys + adding(method, rows, keys)).argmax(-1) == labels
                    ).all()
                )
            )
        probes = _misrouted(case)
        for asked in method.calibrator.encode(probes) if probes else ():
            key = asked.key[None]
            moved = patch.base.logits(key + adding(method, rows, key))
            stayed.append(bool(moved.argmax() == patch.base.logits(key).argmax()))
    return {
        "rephrasings": sum(right) / len(right),
        "misrouted probes that stay": sum(stayed) / len(stayed),
    }


def _misrouted(case: Case) -> list[str]:
    """Return prompts that a wrong route would change: about the subject, else all."""
    return [
        probe.prompt
        for probe in [p for p in case.locality if p.kind == "same_subject"] or case.locality
    ]


def _near(method: Folio, keys: Tensor, stored: Tensor) -> tuple[Tensor, Tensor]:
    return (method.patch.calibration.whiten(keys) @ method.patch.calibration.whiten(stored).T).max(
        -1
    )


def _added(keys: Tensor, values: Tensor) -> Tensor:
    """Each token its own value: another wording says the same answer."""
    return (
        values[: len(keys)]
        if len(keys) <= len(values)
        else F.pad(values, (0, 0, 0, len(keys) - len(values)))
    )


def _fixed(gain: float) -> Adding:
    return lambda method, rows, keys: gain * _added(keys, rows.values)


def _adaptive(gain: float) -> Adding:
    def adding(method: Folio, rows: Written, keys: Tensor) -> Tensor:
        cosine = (
            (method.patch.calibration.whiten(keys) @ method.patch.calibration.whiten(rows.keys).T)
            .amax(-1)
            .clamp(min=0.25)
        )
        return gain * _added(keys, rows.values) / cosine[:, None]

    return adding


def _nearest_everywhere(method: Folio, rows: Written, keys: Tensor) -> Tensor:
    return 2.0 * rows.values[_near(method, keys, rows.keys)[1]]


def _averaged(method: Folio, rows: Written, keys: Tensor) -> Tensor:
    return 2.0 * _added(keys, torch.stack([rows.values, *rows.prefixed]).mean(0))


def _reworded(gain: float) -> Adding:
    def adding(method: Folio, rows: Written, keys: Tensor) -> Tensor:
        each = [(rows.keys, rows.values), *rows.reworded]
        firsts = torch.stack([stored[0] for stored, _ in each])
        nearest = int(_near(method, keys[:1], firsts)[1])
        return gain * _added(keys, each[nearest][1])

    return adding


def places_table(bench: Bench) -> Rows:
    """Compare values added behind a block's value matrix with values at the head's input."""
    for name, model, cases in bench.streams(counterfact=SOME, atlas=SOME):
        method = bench.open(model).method
        method.patch.remove()
        lm, some = method.lm, cases[:SOME]
        last = lm.architecture.n_layers - 1
        places: dict[str, tuple[int, ...]] = {
            f"block {layer}": (layer,) for layer in sorted({1, last // 2, last - 1, last})
        }
        places[f"blocks {last - 3} to {last}"] = tuple(range(last - 3, last + 1))
        for label, layers in places.items():
            begun = time.process_time()
            solved = [_solved_below(lm, case, layers) for case in some]
            seconds = (time.process_time() - begun) / len(some)
            for gain in (1.0, 2.0):
                found = _tried_below(lm, some, solved, layers, gain)
                yield {
                    "stream": name,
                    "place": label,
                    "gain": gain,
                    **found,
                    "seconds per edit": seconds,
                }
        begun = time.process_time()
        read = [_read(method, _answer(lm, case.edit.prompt, case)) for case in some]
        written = [
            (case, Written(keys, _solve(method, keys, labels), [], []))
            for case, (keys, labels) in zip(some, read, strict=True)
        ]
        seconds = (time.process_time() - begun) / len(some)
        for gain in (1.0, 2.0):
            found = _tried(method, written, _fixed(gain))
            yield {
                "stream": name,
                "place": "the head's input",
                "gain": gain,
                **found,
                "seconds per edit": seconds,
            }


def _answer(lm: LM, prompt: str, case: Case) -> Batch:
    ending = lm.ending_of(case.edit.prompt, case.edit.target)
    return lm.batch([lm.encode(prompt, case.edit.target, ending)])


@contextlib.contextmanager
def _adding(lm: LM, layers: Sequence[int], columns: Tensor, values: Tensor) -> Iterator[None]:
    """Add values (layers, n, hidden) to the value matrices' outputs at columns (n,)."""

    def change(value: Tensor) -> Callable[[Tensor], Tensor]:
        def changed(said: Tensor) -> Tensor:
            moved = said.reshape(-1, said.shape[-1])
            return moved.index_add(0, columns, value.to(said.dtype)).reshape(said.shape)

        return changed

    with contextlib.ExitStack() as stack:
        for layer, value in zip(layers, values, strict=True):
            stack.enter_context(
                replace_output(lm.architecture.value_module(lm.model, layer), change(value))
            )
        yield


def _solved_below(lm: LM, case: Case, layers: Sequence[int]) -> Tensor:
    """Solve for values (layers, n, hidden) that make the answer certain, by Adam on one loss."""
    batch = _answer(lm, case.edit.prompt, case)
    _, columns, labels = batch.label_positions(batch.target_mask | batch.ending_mask)
    values = torch.zeros(len(layers), len(columns), lm.architecture.hidden_size, requires_grad=True)
    adam = torch.optim.Adam([values], lr=0.05)
    for _ in range(60):
        with _adding(lm, layers, columns, values):
            logits = lm.run(batch).logits[0, columns]
        losses = F.cross_entropy(logits.float(), labels, reduction="none")
        if bool((losses < 0.01).all()):
            break
        adam.zero_grad()
        losses.sum().backward()
        adam.step()
    return values.detach()


@torch.no_grad()
def _tried_below(
    lm: LM, cases: Sequence[Case], solved: Sequence[Tensor], layers: Sequence[int], gain: float
) -> dict[str, float]:
    right, stayed = [], []
    for case, values in zip(cases, solved, strict=True):
        for text in case.rephrases:
            batch = _answer(lm, text, case)
            _, columns, labels = batch.label_positions(batch.target_mask | batch.ending_mask)
            with _adding(lm, layers, columns, gain * values[:, : len(columns)]):
                right.append(bool((lm.run(batch).logits[0, columns].argmax(-1) == labels).all()))
        for prompt in _misrouted(case):
            batch = lm.prompt_batch([prompt])
            before = lm.run(batch).logits[0, -1].argmax()
            with _adding(
                lm, layers, torch.tensor([batch.input_ids.shape[1] - 1]), gain * values[:, :1]
            ):
                stayed.append(bool(lm.run(batch).logits[0, -1].argmax() == before))
    return {
        "rephrasings": sum(right) / len(right),
        "misrouted probes that stay": sum(stayed) / len(stayed),
    }
