"""Exported edits in vLLM: requests come, go and change their rows; each is answered as alone."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import vllm_interface as interface
from families import chat_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm_interface import Batch, Request

import errata
from errata.atlas import make_cases
from errata.engines.exporting import export_edits
from errata.engines.processor import EditProcessor, Route
from errata.engines.rows import EditSlots
from errata.errors import ArtifactError, BaseMismatchError, ConfigError

VOCABULARY = 12
EDITS = [case.edit for case in make_cases(6)]


class Known(EditProcessor):
    """Edits that are found by a prompt's first token, and say the numbers from there on."""

    def __init__(self) -> None:
        self.confidence = 0.9

    def route(self, prompt: Sequence[int]) -> Route:
        first = prompt[0] if prompt else VOCABULARY
        return Route("edit", tuple(range(first, first + 4))) if first < 6 else Route()


def alone(edits: EditProcessor, prompt: Sequence[int], said: list[int], logits: Any) -> Any:
    """A request's logits as an engine that serves one at a time would have them changed."""
    return torch.from_numpy(edits.change(edits.route(prompt), said, logits.numpy()))


def params(**extra: object) -> Any:
    return SimpleNamespace(extra_args=extra or None)


def config(tokenizer: Any, ahead: bool = False, named: Any = None) -> Any:
    return SimpleNamespace(
        model_config=SimpleNamespace(tokenizer=tokenizer, logits_processors=named),
        scheduler_config=SimpleNamespace(async_scheduling=ahead),
    )


@pytest.fixture(params=["stand-in", "installed"])
def module(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    if request.param == "stand-in":
        if interface.INSTALLED:
            pytest.skip("vLLM is installed; nothing needs to stand in for it")
        return interface.stand_in(monkeypatch)
    if not interface.INSTALLED:
        pytest.skip("vLLM is not installed")
    return importlib.import_module("errata.engines.vllm")


@pytest.fixture(scope="module")
def edited() -> errata.EditModel:
    base, tokenizer = errata.load_base("atlas", "float32")
    model = errata.get_edit_model(base, errata.FolioConfig(), tokenizer)
    model.edit(EDITS, check=False)
    return model


@pytest.fixture(scope="module")
def folder(edited: errata.EditModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "edits"
    export_edits(edited, path)
    return path


# the runner whose rows are renumbered

numbers = st.integers(0, VOCABULARY - 1)
prompts = st.one_of(st.none(), st.lists(numbers, min_size=1, max_size=3))
steps = st.lists(
    st.tuples(
        st.sets(st.integers(0, 5)),
        st.lists(st.tuples(prompts, st.booleans(), st.lists(numbers, max_size=2)), max_size=3),
        st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=3),
        st.integers(0, 2**32 - 1),
    ),
    max_size=12,
)


def test_rows_that_move_swap_and_go_are_answered_as_one_at_a_time(module, monkeypatch):
    monkeypatch.setattr(module, "edits_for", lambda config: Known())

    @settings(max_examples=100, deadline=None)
    @given(steps=steps)
    def holds(steps):
        edits, batch = Known(), Batch()
        process = module.EditLogits(config(None), torch.device("cpu"), False)
        for done, new, swaps, seed in steps:
            rng = np.random.default_rng(seed)
            requests = [
                Request(prompt, params(errata=edited), list(said)) for prompt, edited, said in new
            ]
            gone = [row for row in sorted(done) if row < len(batch.rows)]
            process.update_state(batch.step(gone, requests, swaps))
            logits = torch.from_numpy(rng.normal(size=(len(batch.rows), VOCABULARY)))
            wanted = [
                alone(edits, request.prompt or [], request.said, row)
                if request.params.extra_args["errata"]
                else row
                for request, row in zip(batch.rows, logits, strict=True)
            ]
            found = process.apply(logits.clone())
            assert len(found) == len(wanted)
            for request, row, own in zip(batch.rows, found, wanted, strict=True):
                torch.testing.assert_close(row, own, rtol=1e-5, atol=1e-5)
                other = int(rng.integers(VOCABULARY))
                request.said.append(int(row.argmax()) if rng.random() < 0.8 else other)

    holds()


def test_a_batch_says_what_the_edited_model_says(edited, folder, monkeypatch):
    """Three rows, into which requests come as others end; with the edits and without."""
    module = interface.stand_in(monkeypatch)
    monkeypatch.setenv("ERRATA_EDITS", str(folder))
    lm, batch = edited.lm, Batch()
    process = module.EditLogits(config(lm.tokenizer), torch.device("cpu"), False)
    asked = [*(edit.prompt for edit in EDITS), "Who wrote the book?", EDITS[0].prompt]
    requests = [Request(lm.encode_prompt(text), params()) for text in asked]
    requests[-1].params = params(errata=False)
    waiting, done = list(requests), list[int]()
    with torch.no_grad(), edited.disable_edits():
        while waiting or len(batch.rows) > len(done):
            free = 3 - len(batch.rows) + len(done)
            new, waiting = waiting[:free], waiting[free:]
            process.update_state(batch.step(done, new, [(0, 2)]))
            rows = [torch.tensor([[*each.prompt, *each.said]]) for each in batch.rows]
            logits = process.apply(torch.stack([lm.model(row).logits[0, -1] for row in rows]))
            done = []
            for row, request in enumerate(batch.rows):
                request.said.append(int(logits[row].argmax()))
                if request.said[-1] in lm.end_ids or len(request.said) == 24:
                    done.append(row)
    said = [lm.decode(request.said) for request in requests]
    assert said[:-1] == edited.ask(asked[:-1])
    assert said[-1] == edited.ask_base(asked[-1], max_new_tokens=24) != said[0]


# the runner whose requests have slots

asked_in_slots = st.lists(
    st.tuples(st.lists(numbers, min_size=1, max_size=3), st.booleans(), st.integers(0, 2)),
    min_size=1, max_size=4,
)  # fmt: skip


def test_slots_are_answered_as_one_at_a_time_guessed_tokens_too(module, monkeypatch):
    monkeypatch.setattr(module, "edits_for", lambda config: Known())

    @settings(max_examples=60, deadline=None)
    @given(waves=st.lists(asked_in_slots, min_size=1, max_size=4), seed=st.integers(0, 2**32 - 1))
    def holds(waves, seed):
        edits, rng = Known(), np.random.default_rng(seed)
        tokens = torch.zeros((6, 32), dtype=torch.int32)
        lengths = np.zeros(6, np.int32)
        states = SimpleNamespace(
            all_token_ids=SimpleNamespace(gpu=tokens), prompt_len=SimpleNamespace(np=lengths)
        )
        process = module.EditLogits(config(None, ahead=True), states)
        for wave in waves:  # each takes slots that others had
            slots = rng.permutation(6)[: len(wave)]
            said: dict[int, list[int]] = {int(slot): [] for slot in slots}
            for slot, (prompt, wanted, _) in zip(slots, wave, strict=True):
                lengths[slot] = len(prompt)
                assert process.add_request(int(slot), params(errata=wanted)) is wanted
                tokens[slot, : len(prompt)] = torch.tensor(prompt)
            process.apply_staged_writes()
            for _ in range(4):
                order = rng.permutation(len(wave))
                rows = []
                for at in order:
                    prompt, wanted, guesses = wave[at]
                    slot = int(slots[at])
                    true = [*prompt, *said[slot]]
                    route = edits.route(prompt).tokens
                    guessed = [
                        route[len(said[slot]) + k] if len(said[slot]) + k < len(route)
                        and rng.random() < 0.7 else int(rng.integers(VOCABULARY))
                        for k in range(guesses)
                    ]  # fmt: skip
                    for k in range(guesses + 1):
                        fed = ([true[-1], *guessed])[k]
                        rows.append((slot, k, fed, len(true) - 1 + k, said[slot] + guessed[:k]))
                context = SimpleNamespace(
                    expanded_idx_mapping=torch.tensor([row[0] for row in rows]),
                    expanded_local_pos=torch.tensor([row[1] for row in rows]),
                    input_ids=torch.tensor([row[2] for row in rows]),
                    pos=torch.tensor([row[3] for row in rows]),
                    idx_mapping_np=slots[order],
                )
                logits = torch.from_numpy(rng.normal(size=(len(rows), VOCABULARY)))
                found = process.apply(logits.clone(), context)
                by_slot = {int(slot): each for slot, each in zip(slots, wave, strict=True)}
                for row, own, (slot, k, *_, before) in zip(found, logits, rows, strict=True):
                    prompt, wanted, _ = by_slot[slot]
                    right = alone(edits, prompt, before, own) if wanted else own
                    torch.testing.assert_close(row, right, rtol=1e-5, atol=1e-5)
                    if k == 0:
                        token = int(row.argmax())
                        tokens[slot, lengths[slot] + len(before)] = token
                        said[slot] = [*before, token]

    holds()


def test_a_prompt_that_is_read_in_parts_is_not_answered_before_its_end():
    tokens = torch.tensor([[1, 2, 3, 0]], dtype=torch.int32)
    states = SimpleNamespace(
        all_token_ids=SimpleNamespace(gpu=tokens),
        prompt_len=SimpleNamespace(np=np.array([3], np.int32)),
    )
    slots = EditSlots(Known(), states)
    slots.add(0)
    slots.read()
    logits = torch.zeros((1, VOCABULARY))
    for last, changed in ((1, False), (2, True)):
        row = torch.tensor([0])
        context = SimpleNamespace(
            expanded_idx_mapping=row, expanded_local_pos=row, input_ids=row,
            pos=torch.tensor([last]), idx_mapping_np=row.numpy(),
        )  # fmt: skip
        assert bool(slots.change(logits.clone(), context).any()) is changed


def test_what_the_newer_runner_shows_is_what_is_read():
    if not interface.INSTALLED:
        pytest.skip("vLLM is not installed")
    from dataclasses import fields

    shown = importlib.import_module(interface.V2)
    names = {each.name for each in fields(shown.LogitsContext)}
    wanted = {"expanded_idx_mapping", "expanded_local_pos", "input_ids", "pos", "idx_mapping_np"}
    assert wanted <= names
    kept = {each.name for each in fields(shown.LogitsProcRequestState)}
    assert {"all_token_ids", "prompt_len"} <= kept


# what is refused, and what is left alone


def test_without_a_folder_vllm_is_left_alone(module, monkeypatch):
    monkeypatch.delenv("ERRATA_EDITS", raising=False)
    logits = torch.zeros((1, VOCABULARY))
    process = module.EditLogits(config(None, ahead=True), torch.device("cpu"), False)
    process.update_state(Batch().step([], [Request([1], params())], []))
    process.apply_staged_writes()
    assert process.apply(logits) is logits and not process.is_argmax_invariant()
    assert not process.add_request(0, params())


def test_other_tokens_and_what_vllm_would_not_tell_are_refused(
    edited, folder, tmp_path, monkeypatch
):
    module = interface.stand_in(monkeypatch)
    own, device = edited.lm.tokenizer, torch.device("cpu")
    monkeypatch.setenv("ERRATA_EDITS", str(folder))
    with pytest.raises(BaseMismatchError, match="whose tokens are not this model's; serve that"):
        module.EditLogits(config(chat_tokenizer()), device, False)
    with pytest.raises(ConfigError, match="leave --skip-tokenizer-init out"):
        module.EditLogits(config(None), device, False)
    with pytest.raises(ConfigError, match="add --logits-processors errata"):
        module.EditLogits(config(own, ahead=True), device, False)
    module.EditLogits(config(own, ahead=True, named=["..."]), device, False)
    monkeypatch.setenv("ERRATA_EDITS", str(tmp_path / "none"))
    with pytest.raises(ArtifactError, match="no export that can be read"):
        module.EditLogits(config(own), device, False)


def test_a_request_says_whether_it_wants_the_edits(module):
    for value in (True, False, 1, 0, 0.0):
        module.EditLogits.validate_params(params(errata=value))
    for value in ("no", 2, None, [0]):
        with pytest.raises(ValueError, match="it is true or false"):
            module.EditLogits.validate_params(params(errata=value))


def test_a_release_with_one_runner_gets_a_processor_too(monkeypatch):
    module = interface.stand_in(monkeypatch, slots=False)
    monkeypatch.setattr(module, "edits_for", lambda config: Known())
    process = module.EditLogits(config(None), torch.device("cpu"), False)
    process.update_state(Batch().step([], [Request([1], params())], []))
    assert int(process.apply(torch.zeros((1, VOCABULARY)))[0].argmax()) == 1


def test_what_the_engine_forbids_stays_forbidden():
    edits, logits = Known(), np.zeros(VOCABULARY, np.float32)
    logits[1] = -np.inf
    assert edits.change(edits.route([1]), [], logits) is logits
    only = np.full(VOCABULARY, -np.inf, np.float32)
    only[1] = 0
    assert edits.change(edits.route([1]), [], only) is only
