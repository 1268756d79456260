"""Rows that begin alike are read as each alone is: states, and the tokens that follow."""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES_TINY, tiny_model, tiny_tokenizer
from grid import grid, token_places

from errata import LM
from errata.lm import body_reader
from errata.lm.body_reader import BodyReader
from errata.lm.encoding import Row
from errata.lm.tail import Tail

START = [7, 3, 9, 11, 4, 8, 15, 6, 21, 5]
ROWS = [[*START, *rest] for rest in ([30], [31, 32, 33, 34, 35], [36, 37], [30, 41, 42])]


@grid("family", [(family,) for family in FAMILIES_TINY], lambda family: {token_places(family)})
def test_states_and_tokens_are_those_of_each_row_alone(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = LM(tiny_model(family), tiny_tokenizer())
    reader, layer = BodyReader(lm), 2
    module = lm.architecture.value_module(lm.model, layer)
    keys, values = reader.last_states(module, ROWS)
    hidden, said = reader.last_hidden_states(ROWS), reader.continue_greedily(ROWS, 5)
    monkeypatch.setattr(body_reader, "SHARED_TOKENS", 10_000)
    assert reader.continue_greedily(ROWS, 5) == said
    for place, row in enumerate(ROWS):
        batch = lm.batch([Row(tuple(row), len(row))])
        tail = Tail(lm, layer, batch)
        torch.testing.assert_close(keys[place], tail.keys[0, -1], atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(values[place], tail.values[0, -1], atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(hidden[place], lm.run_body(batch)[0, -1], atol=2e-5, rtol=1e-4)
        options = {"max_new_tokens": 5, "attention_mask": batch.attention_mask}
        made = lm.greedy_model().generate(input_ids=batch.input_ids, **options)
        whole = made[0, len(row) :].tolist()
        ended = next((i for i, token in enumerate(whole) if token in lm.end_ids), len(whole))
        assert said[place] == whole[: ended + 1]


def test_an_answer_ends_where_the_context_does() -> None:
    lm = LM(tiny_model("gpt2"), tiny_tokenizer())
    assert lm.context_length
    row = ([5, 6, 7, 8] * lm.context_length)[: lm.context_length - 2]
    lm.model.generation_config.eos_token_id = None
    (said,) = BodyReader(lm).continue_greedily([row], 9)
    assert len(said) <= 3 and said


def test_what_begins_alike_is_read_once() -> None:
    lm = LM(tiny_model("llama"), tiny_tokenizer())
    read = []
    embedded = lm.model.get_input_embeddings().register_forward_hook(
        lambda _, args, __: read.append(args[0].numel())
    )
    BodyReader(lm).prefill(ROWS)
    embedded.remove()
    assert read == [len(START), 5 * len(ROWS)]
