"""One method taken through a stream of edits and measured at every checkpoint. It knows no other
method and prints nothing.

What is measured stands in `Row`. A run goes on from its last save when it was cut off, and rows
that are there are kept.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

import errata
from errata import EditModel
from errata.bench.drift import drift, fluency
from errata.bench.stream import Contender, Stream, blank_row, read_json, write_json
from errata.errors import ErrataError
from errata.lm.background import background_texts
from errata.saving import files_of, is_artifact

NEUTRAL, NEUTRAL_TOKENS, FLUENT = 64, 48, 32
"""Texts of the model's own making on which drift is measured, tokens of each, and answers whose
fluency is.
"""
BATCHES = (1, 8)
NEW_TOKENS, ROUNDS = 16, 5
SAVE_SECONDS = 60.0
"""Between two saves while a method is trained."""
Tell = Callable[[str, int, int], None]
"""Called with (what is being done, how much of it is done, out of how much)."""


def run(contender: Contender, stream: Stream, tell: Tell) -> None:
    """Take a contender through the stream; its rows are in the stream's folder then, failures too."""
    if stream.threads is not None:
        torch.set_num_threads(stream.threads)
    try:
        _Run(contender, stream, tell).go()
    except ErrataError as error:
        for edits in stream.checkpoints:
            if stream.kept_row(contender, edits) is None:
                blank_row(contender, stream, edits, failed=str(error)).save(
                    stream.row_file(contender.name, edits)
                )


class _Run:
    def __init__(self, contender: Contender, stream: Stream, tell: Tell) -> None:
        self.contender, self.stream, self.tell = contender, stream, tell
        name = contender.name + "-" + stream.key(contender, max(stream.checkpoints))
        self.saved = stream.folder / "models" / name
        self.clock = self.saved / "clock.json"
        self.times: dict[str, float] = {
            "writing": 0.0,
            "training": 0.0,
            "peak": 0.0,
            "first": 0.0,
            "beginning": 0.0,
        }
        self.tell("loading", 0, 1)
        base, tokenizer = errata.load_base(
            stream.model, stream.dtype, stream.device_map, stream.trust_remote_code
        )
        method = contender.method or errata.method_names()[0]
        config = errata.method_class(method).config_class.from_dict(contender.settings)
        if contender.method and is_artifact(self.saved):
            self.model = EditModel.from_pretrained(base, self.saved, tokenizer)
            self.times |= read_json(self.clock) or {}
        else:
            self.model = EditModel(base, config, tokenizer)
        self.model.base_answers.update(_read_answers(stream))

    def go(self) -> None:
        """All checkpoints that are not measured yet."""
        missing = [
            n for n in self.stream.checkpoints if self.stream.kept_row(self.contender, n) is None
        ]
        if not missing:
            return
        if self.contender.method is None:
            for edits in missing:
                self._measure(edits)
            _write_answers(self.stream, self.model.base_answers)
            return
        self._prepare()
        for edits in missing:
            if (reason := self._too_long(edits)) is not None:
                row = blank_row(
                    self.contender, self.stream, edits, skipped=reason, limit=self.stream.limit
                )
                row.save(self.stream.row_file(self.contender.name, edits))
                continue
            self._write(edits)
            self._measure(edits)

    def _prepare(self) -> None:
        method = self.model.method
        if method.prepared:
            return
        total, done, began = method.steps_left, 0, time.perf_counter()

        def save() -> None:
            nonlocal began
            self.times["training"] += time.perf_counter() - began
            self._save()
            began = time.perf_counter()

        def step(count: int) -> None:
            nonlocal done
            done += count
            self.tell("training", done, total)
            if time.perf_counter() - began > SAVE_SECONDS:
                save()

        self.model.prepare([case.example() for case in self.stream.training], step)
        save()

    def _too_long(self, edits: int) -> str | None:
        """Why so many edits are not written. The first call reads background, so later ones tell
        more, if there are any.
        """
        done, writing = len(self.model.edits), self.times["writing"]
        if self.stream.limit is None or not done or edits <= done:
            return None
        later = done > self.times["first"] and not self.model.method.relearns_all
        first, beginning = (self.times["first"], self.times["beginning"]) if later else (0.0, 0.0)
        expected = writing + (writing - beginning) / (done - first) * (edits - done)
        return (
            f"would take {expected / 60:.0f} min of writing"
            if expected > self.stream.limit
            else None
        )

    def _write(self, edits: int) -> None:
        """Write until there are so many edits in the model."""
        wanted = [case.edit for case in self.stream.cases[:edits]]
        if len(self.model.edits) > edits:  # this row was lost, later ones were not
            self.model.undo(*(edit.id for edit in self.model.edits[edits:]))
        step = edits if self.model.method.relearns_all else self.stream.save_every
        while (done := len(self.model.edits)) < edits:
            part = wanted[done : min(edits, done + step)]
            written = done

            def wrote(count: int) -> None:
                nonlocal written
                written += count
                self.tell("editing", written, edits)

            began = time.perf_counter()
            self.model.edit(part, check=False, progress=wrote)
            if self.model.method.relearns_all:
                self.times["writing"] = 0.0
            self.times["writing"] += time.perf_counter() - began
            if not done:
                self.times |= {"first": float(len(part)), "beginning": self.times["writing"]}
            self.times["peak"] = max(self.times["peak"], peak_memory())
            self._save()

    def _save(self) -> None:
        self.model.save_pretrained(self.saved)
        write_json(self.clock, self.times)

    def _measure(self, edits: int) -> None:
        """Everything that a row holds, of the model as it is."""
        stream = self.stream
        cases = stream.reading.judged(edits)
        peak = max(self.times["peak"], 0.0 if self.contender.method else peak_memory())
        found = errata.evaluate(
            self.model,
            cases,
            max_new_tokens=stream.new_tokens,
            progress=lambda done, total: self.tell("asking", done, total),
        )
        self.tell("reading", 0, 1)
        with self.model.disable_edits():
            texts = stream.neutral or background_texts(
                self.model.lm, NEUTRAL, NEUTRAL_TOKENS, seed=1, shortest=2
            )
        told = drift(self.model, texts) | {
            "fluency": fluency(self.model, [case.edit.prompt for case in cases[:FLUENT]])
        }
        row = blank_row(
            self.contender,
            stream,
            edits,
            figures=found.to_dict(),
            peak_memory=round(peak, 1),
            drift=told,
        )
        if self.contender.method is not None:
            self.tell("timing", 0, 1)
            row = dataclasses.replace(
                row,
                seconds_per_edit=self.times["writing"] / edits,
                bytes_saved=sum(
                    (self.saved / name).stat().st_size for name in files_of(self.saved)
                ),
                overhead={
                    str(n): overhead(self.model, [case.edit.prompt for case in cases], n)
                    for n in BATCHES
                },
                training_seconds=self.times["training"] or None,
            )
        row.save(stream.row_file(self.contender.name, edits), found.answers)


def overhead(model: EditModel, prompts: Sequence[str], batch: int) -> float:
    """How much longer the edited model takes for 16 new tokens than its base, as a share; medians
    of alternating rounds.
    """
    chosen = [prompts[i % len(prompts)] for i in range(batch)]
    inputs = model.lm.prompt_batch(chosen)
    options = {
        "do_sample": False,
        "max_new_tokens": NEW_TOKENS,
        "min_new_tokens": NEW_TOKENS,
        "pad_token_id": model.lm.pad_id,
    }

    def seconds() -> float:
        clock = time.perf_counter if model.lm.device.type != "cpu" else time.process_time
        began = clock()
        model.generate(inputs.input_ids, attention_mask=inputs.attention_mask, **options)
        if model.lm.device.type == "cuda":
            torch.cuda.synchronize()
        return clock() - began

    took: dict[bool, list[float]] = {True: [], False: []}
    for turn in range(ROUNDS + 1):
        with model.disable_edits():
            base = seconds()
        edited = seconds()
        if turn:  # the first round warms up
            took[True].append(edited)
            took[False].append(base)
    return statistics.median(took[True]) / statistics.median(took[False]) - 1


def peak_memory() -> float:
    """The most memory that this process has held, in MiB; on a GPU, of its memory."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 2**20
    try:
        import resource
    except ImportError:  # not a Unix
        return 0.0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 2**20 if os.uname().sysname == "Darwin" else most / 2**10


def _answers_file(stream: Stream) -> Path:
    return stream.folder / f"base_answers-{stream.fingerprint}-{stream.dtype}.json"


def _read_answers(stream: Stream) -> dict[tuple[str, str], str]:
    """What the base model said, as an earlier contender found."""
    return {(kind, prompt): said for kind, prompt, said in read_json(_answers_file(stream)) or ()}


def _write_answers(stream: Stream, answers: Mapping[tuple[str, str], str]) -> None:
    write_json(_answers_file(stream), [[*key, said] for key, said in answers.items()])
