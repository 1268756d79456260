"""Several threads on one model: who asks shares it, who changes it has it alone."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from edited import EDITS, PROMPTS, edit_model, edited_model, logits_of
from families import tiny_model, tiny_tokenizer

from errata import EditModel
from errata.errors import UsageError
from errata.lm import LM
from errata.model.lock import SharedLock

AT_ONCE = ("ft", "folio", "wise", "rag", "grace", "knn-lm", "prefix-tuning", "pipeline", "retro")
"""Methods of each kind of patch: weights, leaves, side memories, contexts, codebooks, stores,
virtual tokens, passages.
"""

ASKED = pytest.mark.parametrize(
    "method",
    [
        pytest.param(name, marks=() if name in ("ft", "folio", "wise", "rag") else pytest.mark.grid)
        for name in AT_ONCE
    ],
)


def together(*calls: Callable[[], Any], timeout: float = 120.0) -> list[Any]:
    """Each call in a thread of its own; what they return, or the first error."""
    results: list[Any] = [None] * len(calls)
    errors: list[BaseException] = []

    def run(place: int) -> None:
        try:
            results[place] = calls[place]()
        except BaseException as error:  # told by the thread that waits
            errors.append(error)

    threads = [
        threading.Thread(target=run, args=(place,), daemon=True) for place in range(len(calls))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout)
        assert not thread.is_alive(), "a thread hangs"
    if errors:
        raise errors[0]
    return results


# the lock


def test_readers_share_and_a_writer_is_alone():
    lock, inside, seen = SharedLock(), [], []
    meet = threading.Barrier(3, timeout=20)

    def read() -> None:
        with lock.shared("read"):
            meet.wait()  # all three are in at once

    together(read, read, read)

    def write() -> None:
        for _ in range(50):
            with lock.exclusive("write"):
                inside.append(1)
                seen.append(len(inside))
                time.sleep(0)
                inside.pop()

    def look() -> None:
        for _ in range(50):
            with lock.shared("read"):
                seen.append(1 + len(inside))

    together(write, write, look, look)
    assert set(seen) == {1}


def test_a_thread_may_take_it_again():
    lock = SharedLock()
    with (
        lock.exclusive("a"),
        lock.exclusive("b"),
        lock.shared("c"),
        lock.shared("d"),
        lock.exclusive("e"),
    ):
        pass
    with lock.shared("a"), lock.shared("b"):
        pass
    done = []
    with lock.shared("outer"):
        waits = threading.Thread(
            target=lambda: [done.append(1) for _ in [0] if not lock.exclusive("write").__enter__()]
        )
        waits.start()
        time.sleep(0.1)
        with lock.shared("inner"):  # though someone waits to write
            assert not done
    waits.join(10)
    assert done == [1]


def test_who_reads_cannot_begin_to_write():
    lock = SharedLock()
    refused = pytest.raises(UsageError, match="edit was called from within generate")
    with lock.shared("generate"), refused, lock.exclusive("edit"):
        pass
    with lock.exclusive("edit"):
        pass


def test_an_error_lets_go_of_it():
    lock = SharedLock()
    for side in (lock.shared, lock.exclusive):
        with pytest.raises(ZeroDivisionError), side("x"):
            raise ZeroDivisionError
    together(lambda: lock.exclusive("a").__enter__())


def test_readers_do_not_keep_a_writer_out_for_ever():
    lock, stop = SharedLock(), threading.Event()

    def read() -> None:
        while not stop.is_set():
            with lock.shared("read"):
                time.sleep(0.001)

    def write() -> None:
        try:
            for _ in range(20):
                with lock.exclusive("write"):
                    pass
        finally:
            stop.set()

    together(read, read, read, read, write)


def test_writers_do_not_keep_readers_out_for_ever():
    """A reader that waits for one writer comes before the next, which waits as well."""
    lock, order = SharedLock(), []

    def take(kind):
        with getattr(lock, kind)(kind):
            order.append(kind)

    with lock.exclusive("first"):
        threads = []
        for kind in ("exclusive", "shared", "shared"):
            threads.append(threading.Thread(target=take, args=(kind,)))
            threads[-1].start()
            while lock._waiting + lock._queued < len(threads):
                time.sleep(0.001)
    for thread in threads:
        thread.join()
    assert order == ["shared", "shared", "exclusive"]
    take("exclusive")
    take("shared")
    assert (lock._turn, lock._queued, lock._waiting) == (0, 0, 0)


def test_who_waits_long_is_told_for_whom(caplog, monkeypatch):
    monkeypatch.setattr("errata.model.lock.PATIENCE", 0.1)
    lock = SharedLock()

    def wait() -> None:
        with lock.shared("ask"):
            pass

    def release() -> None:
        time.sleep(0.5)
        done.set()

    done = threading.Event()

    def hold() -> None:
        with lock.exclusive("edit"):
            begun.set()
            done.wait(20)

    begun = threading.Event()
    with caplog.at_level(logging.WARNING, "errata.model.lock"):
        holder = threading.Thread(target=hold, name="editor")
        holder.start()
        begun.wait(20)
        together(wait, wait, release)
        holder.join(20)
    assert [record.message for record in caplog.records] == [
        "waiting for 0 s for a model that is held by editor (edit)."
    ] * 2


# the model


FEW = 3
"""New tokens of an answer."""


def answers_of(model: EditModel) -> dict[str, str]:
    return {prompt: model.ask(prompt, max_new_tokens=FEW) for prompt in PROMPTS[:4]}


@ASKED
def test_threads_that_ask_get_what_one_gets(method):
    model = edited_model("llama", method, EDITS[:2])
    alone, logits = model.ask(PROMPTS, max_new_tokens=FEW), logits_of(model, model.lm)

    def ask() -> None:
        for _ in range(4):
            assert model.ask(PROMPTS, max_new_tokens=FEW) == alone

    def ask_singly() -> None:
        for prompt, said in zip(PROMPTS, alone, strict=True):
            assert model.ask(prompt, max_new_tokens=FEW) == said

    def read() -> None:
        for _ in range(8):
            assert torch.equal(logits_of(model, model.lm), logits)

    together(ask, ask_singly, ask_singly, read)


@ASKED
def test_while_one_edits_others_get_what_was_or_what_is(method):
    model, twin = (edited_model("llama", method, EDITS[:2]) for _ in range(2))
    allowed = [answers_of(twin)]
    twin.edit(EDITS[2], check=False)
    allowed.append(answers_of(twin))
    stop = threading.Event()

    def change() -> None:
        try:
            model.edit(EDITS[2])
            with model.disable_edits():
                time.sleep(0.01)
            model.ask_base("x")
        finally:
            stop.set()

    def ask() -> None:
        while not stop.is_set():
            for prompt in PROMPTS[:4]:
                assert model.ask(prompt, max_new_tokens=FEW) in {each[prompt] for each in allowed}

    together(change, ask, ask)
    assert answers_of(model) == allowed[-1]


def test_disabled_edits_are_disabled_for_the_block_and_others_wait():
    model = edit_model("llama", "ft", EDITS[:3])
    base = LM(tiny_model("llama"), tiny_tokenizer())
    expected, edited = logits_of(base.model, base), logits_of(model, model.lm)
    begun, answered = threading.Event(), []

    def disable() -> None:
        with model.disable_edits():
            begun.set()
            time.sleep(0.3)
            assert not answered and torch.equal(logits_of(model, model.lm), expected)

    def ask() -> None:
        begun.wait(20)
        answered.append(model(model.lm.prompt_batch(PROMPTS[0]).input_ids).logits)

    together(disable, ask)
    assert len(answered) == 1 and torch.equal(logits_of(model, model.lm), edited)


def test_an_edit_from_within_generate_is_refused():
    model = edit_model("llama", "ft", EDITS[:1])

    def edits(ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        model.edit(EDITS[1])
        return torch.zeros(len(ids), dtype=torch.bool)

    with pytest.raises(UsageError, match="edit was called from within generate"):
        model.generate(model.lm.prompt_batch(PROMPTS[0]).input_ids, stopping_criteria=[edits])
    assert model.edit(EDITS[1], check=False).skipped == []


def test_saving_from_within_an_edit(tmp_path):
    """What `errata edit` does every so many edits."""
    model = edit_model("llama", "ft")
    model.edit(EDITS[:3], progress=lambda _: model.save_pretrained(tmp_path))
    loaded = EditModel.from_pretrained(tiny_model("llama"), tmp_path, tiny_tokenizer())
    assert loaded.edits == EDITS[:3] and torch.equal(
        logits_of(loaded, loaded.lm), logits_of(model, model.lm)
    )


def test_two_threads_that_edit_one_after_the_other():
    model = edit_model("llama", "folio")
    together(*(lambda edit=edit: model.edit(edit) for edit in EDITS))
    assert {edit.id for edit in model.edits} == {edit.id for edit in EDITS} and len(
        model.edits
    ) == len(EDITS)
    assert [model.explain(edit.prompt).edit_id for edit in EDITS] == [edit.id for edit in EDITS]
