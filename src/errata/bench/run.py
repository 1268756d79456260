"""`measure_run` writes a stream of edits with one method, and measures at checkpoints.

`Result` holds what is measured. An interrupted run resumes from its last save, and earlier results
are kept. It prints nothing.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

import errata
from errata import EditModel, EditReport
from errata.bench.drift import drift, fluency
from errata.bench.references import Forced, Given, Unedited
from errata.bench.stream import (
    FORCED,
    GIVEN,
    UNEDITED,
    Run,
    Stream,
    blank_result,
    read_json,
    write_json,
)
from errata.cases import Case
from errata.errors import ErrataError
from errata.evaluation import Answering
from errata.lm.background import background_texts
from errata.lm.encoding import Row
from errata.progress import OnProgress, reported_to
from errata.saving import files_of, is_artifact
from errata.stream import edit_stream, prepare_and_save

NEUTRAL, NEUTRAL_TOKENS, FLUENT = 64, 48, 32
"""Self-generated texts for drift, tokens of each, and answers for fluency."""
BATCHES = (1, 8)
NEW_TOKENS, ROUNDS = 16, 5
PASS_TOKENS = 40
"""Tokens of the prompt whose forward pass is the unit of what editing costs."""
SAVE_SECONDS = 60.0
"""Seconds between two saves while a method is trained."""


def measure_run(run: Run, stream: Stream, progress: OnProgress) -> None:
    """Take a method through the stream; its results, or failure, go to the stream's folder."""
    if stream.threads is not None:
        torch.set_num_threads(stream.threads)
    try:
        with reported_to(progress):
            _Measuring(run, stream, progress).go()
    except ErrataError as error:
        save_failure(run, stream, str(error))
    except (MemoryError, torch.cuda.OutOfMemoryError) as error:
        why = str(error).split(". ")[0] or "no memory is left"
        save_failure(run, stream, f"{why}; measure fewer at a time (--jobs), or a shorter stream")


def save_failure(run: Run, stream: Stream, reason: str) -> None:
    """Save results with the reason for the failure at all checkpoints not yet measured."""
    for edits in stream.missing(run):
        blank_result(run, stream, edits, failed=reason).save(stream.result_file(run.name, edits))


class _Measuring:
    """A run in progress: the model, its folder, and the time spent on writing so far."""

    def __init__(self, run: Run, stream: Stream, progress: OnProgress) -> None:
        self.run, self.stream, self.progress = run, stream, progress
        self.folder = stream.folder / "models" / f"{run.name}-{stream.writing_key(run)}"
        self.clock = self.folder / "clock.json"
        times = ("writing", "training", "peak", "first", "beginning")
        self.times: dict[str, float] = dict.fromkeys(times, 0.0)
        progress("loading", 0, 1)
        base, tokenizer = errata.load_base(
            stream.model, stream.dtype, stream.device_map, stream.trust_remote_code
        )
        config = errata.method_class(run.method or errata.method_names()[0]).config_class.from_dict(
            run.settings
        )
        if run.method and is_artifact(self.folder):
            self.model = EditModel.from_pretrained(base, self.folder, tokenizer)
            self.times |= read_json(self.clock) or {}
        else:
            self.model = EditModel(base, config, tokenizer)
        self.model.base_answers.update(_read_answers(stream))

    def go(self) -> None:
        """Measure all checkpoints that are not measured yet."""
        missing = self.stream.missing(self.run)
        if self.run.method is None:
            for edits in missing:
                self._measure(edits)
            if self.run.name == UNEDITED:
                _write_answers(self.stream, self.model.base_answers)
            return
        if missing and not self.model.method.prepared:
            self._prepare()
        for edits in missing:
            if (reason := self._too_long(edits)) is not None:
                result = blank_result(
                    self.run, self.stream, edits, skipped=reason, limit=self.stream.limit
                )
                result.save(self.stream.result_file(self.run.name, edits))
                continue
            self._write(edits)
            self._measure(edits)

    def _prepare(self) -> None:
        def on_save(seconds: float) -> None:
            self.times["training"] += seconds
            write_json(self.clock, self.times)

        examples = [case.example() for case in self.stream.training]
        prepare_and_save(
            self.model,
            examples,
            self.folder,
            lambda _, seconds: seconds > SAVE_SECONDS,
            self.progress,
            on_save,
        )

    def _too_long(self, edits: int) -> str | None:
        """Return why so many edits would take too long to write; None if they would not.

        The first part also reads background text, so only what came after it is an estimate.
        """
        done, writing = len(self.model.edits), self.times["writing"]
        if self.stream.limit is None or edits <= done or done <= self.times["first"]:
            return None
        later = not self.model.method.relearns_all
        first, beginning = (self.times["first"], self.times["beginning"]) if later else (0.0, 0.0)
        expected = writing + (writing - beginning) / (done - first) * (edits - done)
        return (
            f"would take {expected / 60:.0f} min of writing"
            if expected > self.stream.limit
            else None
        )

    def _write(self, edits: int) -> None:
        """Write until the model holds so many edits."""
        model, times = self.model, self.times
        if len(model.edits) > edits:  # this result was lost, later ones were not
            model.undo(*(edit.id for edit in model.edits[edits:]))
        begins = not model.edits
        before = 0.0 if model.method.relearns_all else times["writing"]

        def progress(what: str, done: int, total: int) -> None:
            times["peak"] = max(times["peak"], peak_memory())
            self.progress(what, done, total)

        def on_save(report: EditReport) -> None:
            times["writing"] = before + report.seconds
            if begins and not times["first"]:
                times.update(first=float(len(report.written)), beginning=report.seconds)
            write_json(self.clock, times)

        wanted = [case.edit for case in self.stream.cases[:edits]]
        save_every = self.stream.save_every
        edit_stream(
            model, wanted, self.folder, save_every, check=False, progress=progress, on_save=on_save
        )

    def _measure(self, edits: int) -> None:
        """Measure everything that a result holds on the current model, and save it."""
        stream, run = self.stream, self.run
        cases = stream.policy.judged(edits)
        prompts = [case.edit.prompt for case in cases]
        peak = peak_memory() if run.method is None else self.times["peak"]
        found = errata.evaluate(
            self._answering(cases, edits),
            cases,
            max_new_tokens=stream.new_tokens,
            progress=partial(self.progress, "asking"),
            probes=stream.probes_at(edits),
        )
        moved, last = None, edits == stream.checkpoints[-1]
        if last and (run.name == UNEDITED or not run.is_reference):
            self.progress("reading", 0, 1)
            with self.model.disable_edits():
                texts = stream.neutral or background_texts(
                    self.model.lm, NEUTRAL, NEUTRAL_TOKENS, seed=1, shortest=2
                )
            self.progress("measuring drift", 0, 1)
            moved = drift(self.model, texts) | {"fluency": fluency(self.model, prompts[:FLUENT])}
        result = blank_result(
            run,
            stream,
            edits,
            figures=found.to_dict(),
            peak_memory=round(peak, 1),
            drift=moved,
        )
        result.made["forward_seconds"] = forward_seconds(self.model)
        if not run.is_reference:
            if last:
                self.progress("timing", 0, 1)
            result = dataclasses.replace(
                result,
                seconds_per_edit=self.times["writing"] / edits,
                bytes_saved=sum(
                    (self.folder / name).stat().st_size for name in files_of(self.folder)
                ),
                overhead={str(batch): overhead(self.model, prompts, batch) for batch in BATCHES}
                if last
                else None,
                training_seconds=self.times["training"] or None,
            )
        result.save(stream.result_file(self.run.name, edits), found.answers)

    def _answering(self, cases: Sequence[Case], edits: int) -> Answering:
        """Return what is asked: the edited model, or a reference in its place."""
        if self.run.name.startswith(FORCED):
            return Forced(self.model)
        if self.run.name == GIVEN:
            stream = self.stream
            return Given(self.model, cases, stream.probes_at(edits), stream.new_tokens)
        return Unedited(self.model) if self.run.method is None else self.model


@torch.no_grad()
def forward_seconds(model: EditModel) -> float:
    """Measure one forward pass of the base model on a prompt of 40 tokens; the median of some."""
    lm, times = model.lm, []
    ids = lm.encode_text("The train to the coast was late again this morning. " * 8)
    ids = ids[: min(PASS_TOKENS, lm.context_length or PASS_TOKENS)]
    batch = lm.batch([Row(tuple(ids), len(ids))])
    with model.disable_edits():
        for _ in range(ROUNDS + 1):
            began = time.perf_counter()
            lm.run(batch)
            if lm.device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def overhead(model: EditModel, prompts: Sequence[str], batch: int) -> float:
    """Measure how much longer the edited model takes for 16 new tokens than its base, as a share.

    Medians of alternating rounds.
    """
    inputs = model.lm.prompt_batch([prompts[i % len(prompts)] for i in range(batch)])
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

    base, edited = [], []
    for _ in range(ROUNDS + 1):
        with model.disable_edits():
            base.append(seconds())
        edited.append(seconds())
    # The first round warms up.
    return statistics.median(edited[1:]) / statistics.median(base[1:]) - 1


def peak_memory() -> float:
    """Return the most memory that this process has held, in MiB; on a GPU, of its memory."""
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
    """Read the base model's answers that an earlier run has found."""
    return {
        (kind, prompt): answer for kind, prompt, answer in read_json(_answers_file(stream)) or ()
    }


def _write_answers(stream: Stream, answers: Mapping[tuple[str, str], str]) -> None:
    write_json(_answers_file(stream), [[*key, answer] for key, answer in answers.items()])
