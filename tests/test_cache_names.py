"""The key-value cache has two names in transformers: `cache` from 5.24 on, before another."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from families import FAMILIES_TINY, tiny_model
from torch import nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from errata.errors import ArchitectureError
from errata.lm.architecture import architecture_of
from errata.lm.cache import NAMES, cache_in, cache_name, name_cache

HERE = next(name for name in NAMES if hasattr(CausalLMOutputWithPast, name))
"""What the installed transformers calls it."""


class Before(nn.Module):
    def forward(self, input_ids: Any, past_key_values: Any = None, use_cache: Any = None) -> None:
        """As transformers calls it before 5.24."""


class Since(nn.Module):
    def forward(self, input_ids: Any, cache: Any = None, use_cache: Any = None) -> None:
        """As transformers calls it from 5.24 on."""


class Unknown(nn.Module):
    def forward(self, input_ids: Any, memory: Any = None, use_cache: Any = None) -> None:
        """As nobody calls it."""


class Without(nn.Module):
    def forward(self, input_ids: Any) -> None:
        """Keeps no cache."""


def test_a_module_says_what_it_calls_its_cache():
    assert cache_name(Before()) == "past_key_values"
    assert cache_name(Since()) == "cache"
    assert cache_name(Without()) in NAMES
    with pytest.raises(ArchitectureError, match="Unknown keeps a cache, but its forward calls it"):
        cache_name(Unknown())


@pytest.mark.parametrize("family", FAMILIES_TINY)
def test_each_familys_model_and_body_say_it(family):
    model = tiny_model(family)
    for module in (model, architecture_of(model).body_module(model)):
        assert cache_name(module) in inspect.signature(module.forward).parameters


@pytest.mark.parametrize("given", NAMES)
@pytest.mark.parametrize("wanted", NAMES)
def test_it_is_found_and_named_whichever_name_was_used(given, wanted):
    held = object()
    arguments = {"input_ids": 1, given: held}
    assert cache_in(arguments) is held
    name_cache(arguments, wanted)
    assert arguments == {"input_ids": 1, wanted: held}
    assert cache_in({"input_ids": 1, given: None}) is None


def test_an_output_without_a_cache_is_looked_at_without_a_word(monkeypatch):
    """transformers told whoever asked an edited model that a name is deprecated."""
    from transformers.utils import generic

    told = []
    monkeypatch.setattr(generic.logger, "warning_once", told.append)
    output = CausalLMOutputWithPast(logits=torch.zeros(1))
    assert cache_in(output) is None and not told
    held = object()
    assert cache_in(CausalLMOutputWithPast(logits=torch.zeros(1), **{HERE: held})) is held
    assert not told
