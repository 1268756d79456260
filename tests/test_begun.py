"""Rows whose prompts are read once: what is predicted behind them is what whole rows predict."""

from __future__ import annotations

import pytest
import torch
from edited import EDITS, PROMPTS, edited_model
from families import FAMILIES_TINY, tiny_model, tiny_tokenizer
from grid import grid, token_places

from errata.lm import LM
from errata.lm.begun import BegunRows
from errata.lm.encoding import Row, prompt_tokens

LOOK_BACK = ("gemma2", "gemma3_text", "gpt_neo")
"""Families of which some blocks look back over so many tokens only."""
OPENING = "The following is what a reader of the old atlas was told: "


def rows_of(lm: LM) -> list[Row]:
    """Rows of several lengths that begin alike, targets of several lengths, one of one token."""
    asked = [lm.encode(OPENING + edit.prompt, edit.target, ".") for edit in EDITS[:3]]
    plain = [lm.encode(PROMPTS[7], EDITS[1].target + " and more", "")]
    first = lm.encode(EDITS[0].prompt, EDITS[0].target, "")
    return [*asked, *plain, Row(first.ids[first.prompt_length - 1 :], 1, first.target_length)]


def whole(lm: LM, rows: list[Row]) -> torch.Tensor:
    batch = lm.batch(rows)
    row, column, _ = batch.label_positions(batch.target_mask | batch.ending_mask)
    with prompt_tokens(batch.prompt_mask):
        return lm.run(batch, use_cache=False).logits[row, column].float()


@grid(
    "family",
    [(family,) for family in FAMILIES_TINY],
    lambda family: {token_places(family), "window" if family in LOOK_BACK else "all"},
)
def test_what_is_predicted_is_what_whole_rows_predict(family: str) -> None:
    lm = LM(tiny_model(family), tiny_tokenizer())
    for rows in (rows_of(lm), rows_of(lm)[:3]):
        begun = BegunRows(lm, rows)
        with torch.no_grad():
            torch.testing.assert_close(begun.logits(), whole(lm, rows), rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(begun.logits(), begun.logits(), rtol=0, atol=0)


@pytest.mark.parametrize("method", ["retro", "memorizing", "memoria"])
def test_passages_are_read_behind_what_was_read(method: str) -> None:
    model = edited_model("llama", method, EDITS)
    for name, parameter in model.method.network.named_parameters():
        if name.endswith("gate"):
            parameter.data.fill_(0.5)
    lm, patch = model.lm, model.method.patch
    names = [(name,) for name in list(patch.passages)[:4]] + [()]
    with model.disable_edits():
        rows = rows_of(lm)
        begun = BegunRows(lm, rows)
        base = begun.logits()
        with patch.on(lm), patch.giving(names):
            patch.begin(begun)
            got, wanted = begun.logits(), whole(lm, rows)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    reading = begun.rows < 4
    assert (got[reading] - base[reading]).abs().max() > 1e-3
    torch.testing.assert_close(got[~reading], base[~reading], rtol=0, atol=0)


def test_gradients_flow_into_what_reads() -> None:
    model = edited_model("llama", "retro", EDITS)
    lm, patch = model.lm, model.method.patch
    with model.disable_edits():
        begun = BegunRows(lm, rows_of(lm))
        model.method.network.requires_grad_(True)
        with patch.on(lm), patch.giving([tuple(patch.passages)[:1]] * 5):
            patch.begin(begun)
            begun.logits().square().mean().backward()
    gates = [p for name, p in model.method.network.named_parameters() if name.endswith("gate")]
    assert all(gate.grad is not None and float(gate.grad.abs()) > 0 for gate in gates)
