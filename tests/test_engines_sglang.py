"""Exported edits in SGLang: its custom logit processor's interface, and what that cannot do."""

from __future__ import annotations

import importlib
import sys
import weakref
from array import array
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from families import chat_tokenizer

import errata
from errata.atlas import make_cases
from errata.engines.exporting import export_edits
from errata.errors import BaseMismatchError, ConfigError

EDITS = [case.edit for case in make_cases(4)]
INTERFACE = "sglang.srt.sampling.custom_logit_processor"


class StandIn:
    """What SGLang 0.5 has as `CustomLogitProcessor`, without its serialization."""

    def __call__(self, logits: Any, custom_param_list: Any = None) -> Any:
        raise NotImplementedError


class Request:
    """What SGLang tells of a request: its tokens in arrays, and a tokenizer."""

    def __init__(self, prompt: list[int], tokenizer: Any) -> None:
        self.origin_input_ids, self.output_ids = array("q", prompt), array("q")
        self.tokenizer = tokenizer

    @property
    def params(self) -> dict[str, Any]:
        return {"__req__": weakref.proxy(self)}


def released() -> ModuleType:
    """The interface's file of the SGLang that is installed, without what the rest of it needs."""
    found = find_spec("sglang")
    if found is None or not found.submodule_search_locations:
        pytest.skip("SGLang is not installed")
    for needed in ("dill", "orjson"):
        pytest.importorskip(needed)
    file = Path(found.submodule_search_locations[0], *INTERFACE.split(".")[1:]).with_suffix(".py")
    spec = spec_from_file_location(INTERFACE, file)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=["stand-in", "installed"])
def module(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    given = released() if request.param == "installed" else ModuleType(INTERFACE)
    if request.param == "stand-in":
        given.CustomLogitProcessor = StandIn
    context = ModuleType("sglang.srt.runtime_context")
    context.schedule = SimpleNamespace(disable_overlap_schedule=True)
    context.get_schedule = lambda: context.schedule
    for name in ("sglang", "sglang.srt", "sglang.srt.sampling"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, context.__name__, context)
    monkeypatch.setitem(sys.modules, INTERFACE, given)
    monkeypatch.delitem(sys.modules, "errata.engines.sglang", raising=False)
    return importlib.import_module("errata.engines.sglang")


@pytest.fixture(scope="module")
def edited() -> errata.EditModel:
    base, tokenizer = errata.load_base("atlas", "float32")
    model = errata.get_edit_model(base, errata.FolioConfig(), tokenizer)
    model.edit(EDITS, check=False)
    return model


@pytest.fixture
def served(edited, tmp_path_factory, monkeypatch) -> errata.EditModel:
    folder = tmp_path_factory.mktemp("export") / "edits"
    export_edits(edited, folder)
    monkeypatch.setenv("ERRATA_EDITS", str(folder))
    return edited


def test_a_batch_says_what_the_edited_model_says(module, served):
    """Each token by a processor that is made anew, as SGLang does when requests come."""
    lm = served.lm
    asked = [*(edit.prompt for edit in EDITS), "Who wrote the book?"]
    requests = [Request(lm.encode_prompt(text), lm.tokenizer) for text in asked]
    running = list(requests)
    with torch.no_grad(), served.disable_edits():
        while running:
            rows = [torch.tensor([[*each.origin_input_ids, *each.output_ids]]) for each in running]
            logits = torch.stack([lm.model(row).logits[0, -1] for row in rows])
            shape = logits.shape
            logits = module.EditLogits()(logits, [each.params for each in running])
            assert logits.shape == shape
            for row, request in enumerate(running):
                request.output_ids.append(int(logits[row].argmax()))
            running = [
                each for each in running
                if each.output_ids[-1] not in lm.end_ids and len(each.output_ids) < 24
            ]  # fmt: skip
            running.reverse()
    said = [lm.decode(list(request.output_ids)) for request in requests]
    assert said == served.ask(asked)


def test_a_request_without_parameters_keeps_its_logits(module, served):
    logits = torch.zeros((1, 8))
    for given in (None, [], [None], [{}]):
        assert module.EditLogits()(logits, given) is logits
    assert not logits.any()


def test_what_sglang_would_not_tell_is_refused(module, served, monkeypatch):
    lm, logits = served.lm, torch.zeros((1, 8))
    request = Request(lm.encode_prompt(EDITS[0].prompt), lm.tokenizer)
    schedule = sys.modules["sglang.srt.runtime_context"].schedule
    schedule.disable_overlap_schedule = False
    with pytest.raises(ConfigError, match="add --disable-overlap-schedule"):
        module.EditLogits()(logits, [request.params])
    schedule.disable_overlap_schedule = True
    with pytest.raises(ConfigError, match="speculative decoding"):
        module.EditLogits()(torch.zeros((2, 8)), [request.params] * 2)
    request.tokenizer = chat_tokenizer()
    with pytest.raises(BaseMismatchError, match="whose tokens are not this model's"):
        module.EditLogits()(logits, [request.params])
    request.tokenizer = None
    with pytest.raises(ConfigError, match="without a tokenizer"):
        module.EditLogits()(logits, [request.params])
    monkeypatch.delenv("ERRATA_EDITS")
    with pytest.raises(ConfigError, match="names no folder"):
        module.EditLogits()(logits, [request.params])


def test_the_text_that_a_request_sends_makes_the_processor(module):
    if not hasattr(module.CustomLogitProcessor, "to_str"):
        pytest.skip("the stand-in has no serialization")
    text = module.EditLogits.to_str()
    assert len(text) < 300  # a name, not a program
    assert type(module.CustomLogitProcessor.from_str(text)) is module.EditLogits
