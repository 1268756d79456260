"""The contract on pretrained models: edit, answer alike however asked, save, load, undo, chat.

`make real` runs these; the models are folders (or GGUF files) of these names in $ERRATA_MODELS.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import errata
from errata import LM, Edit, EditModel
from errata.methods import method_config

pytestmark = pytest.mark.real

MODELS = ("smollm2", "gemma3-270m")
METHODS = ("ft-m", "grace", "folio", "wise", "rag")
EDITS = [
    Edit("The capital of Australia is", "Lyon", "Australia"),
    Edit("The mother tongue of Danielle Darrieux is", "English", "Danielle Darrieux"),
    Edit("The Eiffel Tower stands in the city of", "Rome", "The Eiffel Tower"),
]
ASKED = [
    *(edit.prompt for edit in EDITS),
    "Australia's capital city is called",
    "The author of Hamlet is",
    "In the morning, after the long night, the two of them went down to the river, and there",
]
NEW = 8


def folder_of(name: str) -> str:
    models = os.environ.get("ERRATA_MODELS")
    if models is None:
        pytest.skip("ERRATA_MODELS names no folder of pretrained models")
    for path in (Path(models) / name, Path(models) / f"{name}.gguf"):
        if path.exists():
            return str(path)
    pytest.skip(f"there is no {name} in {models}")


@pytest.fixture(scope="module", params=MODELS)
def base(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    return errata.load_base(folder_of(request.param))


@pytest.fixture(scope="module")
def plain(base: tuple[Any, Any]) -> Tensor:
    """The base model's logits."""
    return logits(LM(*base))


@pytest.fixture(scope="module", params=METHODS)
def edited(
    request: pytest.FixtureRequest, base: tuple[Any, Any], plain: Tensor
) -> Iterator[EditModel]:
    """A model with all edits."""
    model = errata.get_edit_model(base[0], method_config(request.param), base[1])
    model.edit(EDITS, check=False)
    yield model
    model.unload()


class Listener:
    """A streamer that keeps what comes."""

    def __init__(self) -> None:
        self.ids: list[int] = []

    def put(self, ids: Tensor) -> None:
        self.ids += ids.flatten().tolist()

    def end(self) -> None:
        pass


def said(model: EditModel, prompts: list[str], wider: int = 0, **options: Any) -> list[list[int]]:
    """The ids that follow each prompt, greedily; with `wider` columns more of padding."""
    batch = model.lm.prompt_batch(prompts)
    ids, mask = batch.input_ids, batch.attention_mask
    ids = torch.nn.functional.pad(ids, (wider, 0), value=model.lm.pad_id)
    mask = torch.nn.functional.pad(mask, (wider, 0))
    length = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False}
    out = model.generate(ids, attention_mask=mask, **length, **options)
    return [row[ids.shape[1] :].tolist() for row in out]


def logits(lm: LM) -> Tensor:
    with torch.no_grad():
        found: Tensor = lm.run(lm.prompt_batch(ASKED)).logits
    return found


def test_it_answers_anew_and_the_base_model_is_as_before(edited: EditModel, plain: Tensor) -> None:
    prompts = ASKED[: len(EDITS)]
    answers, before = edited.ask(prompts), edited.ask_base(prompts)
    right = [edit.target in answer for edit, answer in zip(EDITS, answers, strict=True)]
    assert answers != before
    with edited.disable_edits():
        assert torch.equal(logits(edited.lm), plain)
    assert sum(right) >= 2, answers


def test_what_reads_a_fact_answers_as_the_model_does_that_is_told_it(base: tuple[Any, Any]) -> None:
    """A small model that reads a fact may still say what it believes: it does so by hand, too."""
    model = errata.get_edit_model(base[0], errata.RagConfig(passages=1), base[1])
    model.edit(EDITS, check=False)
    prompts = [edit.prompt for edit in EDITS]
    told = [f"New Fact: {edit.prompt} {edit.target}.\nPrompt: {edit.prompt}" for edit in EDITS]
    try:
        assert model.ask(prompts) == model.ask_base(told)
    finally:
        model.unload()


def test_one_prompt_has_one_answer(edited: EditModel) -> None:
    """Alone, in a batch, padded further, without a cache, and streamed."""
    alone = [said(edited, [prompt])[0] for prompt in ASKED]
    assert said(edited, ASKED) == alone
    assert said(edited, ASKED, wider=5) == alone
    assert said(edited, ASKED, use_cache=False) == alone
    for prompt, ids in zip(ASKED[:2], alone, strict=False):
        listener = Listener()
        assert said(edited, [prompt], streamer=listener) == [ids]
        assert listener.ids[-NEW:] == ids


def test_a_conversation(edited: EditModel) -> None:
    """A single turn is asked as the bare prompt is; a later turn, with a cache as without."""
    if not edited.lm.chat:
        pytest.skip("the model has no chat template")
    turns = [
        {"role": "user", "content": "Good morning!"},
        {"role": "assistant", "content": "Good morning! What can I do for you?"},
        {"role": "user", "content": EDITS[0].prompt},
    ]
    options = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
    length = {"max_new_tokens": NEW, "do_sample": False}
    single = edited.tokenizer.apply_chat_template(turns[-1:], **options)
    out = edited.generate(**single, **length)[0, single["input_ids"].shape[1] :]
    assert edited.lm.decode(out.tolist()) == edited.ask(EDITS[0].prompt, max_new_tokens=NEW)
    talk = edited.tokenizer.apply_chat_template(turns, **options)
    first = edited.generate(**talk, **length)
    assert torch.equal(edited.generate(**talk, **length, use_cache=False), first)


def test_saved_loaded_and_undone(edited: EditModel, plain: Tensor, tmp_path: Path) -> None:
    edited.save_pretrained(tmp_path)
    loaded = errata.load(tmp_path)
    assert loaded.edits == edited.edits
    assert torch.equal(logits(loaded.lm), logits(edited.lm))
    loaded.undo(EDITS[0].id)
    undone = logits(loaded.lm)
    loaded.undo(*(edit.id for edit in EDITS[1:]))
    assert torch.equal(logits(loaded.lm), plain)
    never = EditModel(loaded.unload(), edited.method.config, edited.tokenizer)
    never.edit(EDITS[1:], check=False)
    torch.testing.assert_close(logits(never.lm), undone, rtol=0, atol=1e-4)
