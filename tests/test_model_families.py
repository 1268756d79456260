"""Every method on twelve families: it edits, answers consistently, comes off, or says why not."""

from __future__ import annotations

import pytest
import torch
from edited import EDITS, edit_model, logits_of
from families import TWELVE
from grid import grid, patch_kind, token_places

import errata
from errata.errors import ArchitectureError

REFUSED: set[tuple[str, str]] = {("memit", "gemma2"), ("alphaedit", "gemma2")}
"""(method, family) where the method's own mathematics does not fit; it says so before anything is
written.
"""
SETTINGS = {"wise": {"steps": 10}}
"""Where three steps, which suffice for all else, leave a random GPT-J's edits unrouted."""
ASKED = [EDITS[0].prompt, "x"]
NEW = 3


def generated(model, prompts, **options):
    batch = model.lm.prompt_batch(prompts)
    options = {
        "max_new_tokens": NEW,
        "min_new_tokens": NEW,
        "do_sample": False,
        "pad_token_id": 0,
        **options,
    }
    out = model.generate(batch.input_ids, attention_mask=batch.attention_mask, **options)
    return out[:, batch.input_ids.shape[1] :].tolist()


def what_matters(method: str, family: str) -> set[object]:
    """Each way in which tokens are placed, each kind of patch, and all families."""
    return {token_places(family), patch_kind(method), family}


@grid(
    "method family",
    [(method, family) for method in errata.method_names() for family in TWELVE],
    what_matters,
)
def test_it_works_or_says_why_not(method, family):
    if (method, family) in REFUSED:
        with pytest.raises(ArchitectureError, match=family):
            edit_model(family, method, EDITS[:1])
        return
    model = edit_model(family, method, **SETTINGS.get(method, {}))
    base = logits_of(model, model.lm)
    model.edit(EDITS[:3], check=False)
    edited = logits_of(model, model.lm)
    assert edited.isfinite().all() and not torch.equal(edited, base)

    alone = [generated(model, [prompt])[0] for prompt in ASKED]
    assert generated(model, ASKED) == alone, "in a batch"
    assert generated(model, ASKED, use_cache=False) == alone, "without a cache"
    wide = generated(model, ASKED, num_beams=2, num_return_sequences=2)
    assert wide == [
        ids
        for prompt in ASKED
        for ids in generated(model, [prompt], num_beams=2, num_return_sequences=2)
    ], "beams"

    for side in ("left", "right"):
        pairs = [(prompt, "two brothers in London") for prompt in ASKED]
        together = [score.loss for score in model.lm.score(pairs, side=side)]
        apart = [model.lm.score([pair])[0].loss for pair in pairs]
        assert together == pytest.approx(apart, abs=1e-4), f"padded on the {side}"
    for prompt, ids in zip(
        ASKED, alone, strict=True
    ):  # with its own answer as labels, it says the same again
        front = model.lm.encode_prompt(prompt)
        row = torch.tensor([front + ids])
        labels = torch.tensor([[-100] * len(front) + ids])
        with torch.no_grad():
            logits = model(input_ids=row, labels=labels).logits[0, len(front) - 1 : -1]
        logits[:, list(model.lm.end_ids)] = -torch.inf  # it had to go on
        chosen = logits.gather(-1, torch.tensor(ids)[:, None])[:, 0]
        torch.testing.assert_close(chosen, logits.amax(-1), rtol=0, atol=1e-4)

    model.undo(*(edit.id for edit in EDITS[:3]))
    assert torch.equal(logits_of(model, model.lm), base)
