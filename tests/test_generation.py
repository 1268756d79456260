"""Every option and entry point of transformers' generation: right with edits, or refused.

`docs/generation.md` is the table; it must name every option that the installed transformers has.
What is called right there is held against oracles: for WISE a plain model with the change in its
weights, for retrieval a plain model that is given the context and the prompt as one text.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Hashable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from edited import EDITS, edited_model
from families import tiny_model
from grid import grid
from routed import PROMPTS
from test_routing import generated, setting
from transformers import (
    GenerationConfig,
    GenerationMixin,
    LogitsProcessorList,
    StoppingCriteriaList,
)
from transformers.generation import MinNewTokensLengthLogitsProcessor

from errata.errors import ConfigError
from errata.model.generation import REFUSED

FAMILY, NEW = "llama", 4
PAGE = Path(__file__).resolve().parent.parent / "docs" / "generation.md"


class Words:
    """A streamer that counts."""

    def __init__(self) -> None:
        self.tokens = 0

    def put(self, value: Any) -> None:
        self.tokens += value.numel()

    def end(self) -> None:
        pass


RIGHT: dict[str, dict[str, Any]] = {
    "max_length": {"max_length": 40, "max_new_tokens": None, "min_new_tokens": None},
    "max_new_tokens": {"max_new_tokens": 3, "min_new_tokens": 3},
    "min_length": {"min_length": 20},
    "min_new_tokens": {"min_new_tokens": 2, "max_new_tokens": 3},
    "max_time": {"max_time": 60.0},
    "do_sample": {"do_sample": True},
    "temperature": {"do_sample": True, "temperature": 0.7},
    "top_k": {"do_sample": True, "top_k": 5},
    "top_p": {"do_sample": True, "top_p": 0.8},
    "min_p": {"do_sample": True, "min_p": 0.1},
    "top_h": {"do_sample": True, "top_h": 0.5},
    "typical_p": {"do_sample": True, "typical_p": 0.7},
    "epsilon_cutoff": {"do_sample": True, "epsilon_cutoff": 0.001},
    "eta_cutoff": {"do_sample": True, "eta_cutoff": 0.001},
    "num_beams": {"num_beams": 3},
    "early_stopping": {"num_beams": 3, "early_stopping": True},
    "length_penalty": {"num_beams": 3, "length_penalty": 2.0},
    "num_return_sequences": {"num_beams": 3, "num_return_sequences": 2},
    "repetition_penalty": {"repetition_penalty": 1.5},
    "encoder_repetition_penalty": {"encoder_repetition_penalty": 1.5},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 2},
    "encoder_no_repeat_ngram_size": {"encoder_no_repeat_ngram_size": 1},
    "bad_words_ids": {"bad_words_ids": [[50], [60, 61]]},
    "renormalize_logits": {"renormalize_logits": True, "num_beams": 2},
    "forced_eos_token_id": {"forced_eos_token_id": 2},
    "remove_invalid_values": {"remove_invalid_values": True},
    "exponential_decay_length_penalty": {"exponential_decay_length_penalty": (2, 1.5)},
    "suppress_tokens": {"suppress_tokens": list(range(40, 60))},
    "begin_suppress_tokens": {"begin_suppress_tokens": list(range(40, 90))},
    "sequence_bias": {"sequence_bias": [[[50], 5.0]]},
    "use_cache": {"use_cache": False},
    "cache_implementation": {"cache_implementation": "static"},
    "max_cache_len": {"cache_implementation": "static", "max_cache_len": 100},
    "disable_compile": {"disable_compile": False},
    "prompt_lookup_num_tokens": {"prompt_lookup_num_tokens": 4},
    "max_matching_ngram_size": {"prompt_lookup_num_tokens": 4, "max_matching_ngram_size": 1},
    "logits_processor": {
        "logits_processor": LogitsProcessorList([MinNewTokensLengthLogitsProcessor(1, 2, 2)])
    },
    "stopping_criteria": {"stopping_criteria": StoppingCriteriaList()},
    "prefix_allowed_tokens_fn": {
        "prefix_allowed_tokens_fn": lambda batch, ids: list(range(30, 300))
    },
    "generation_config": {
        "generation_config": GenerationConfig(
            repetition_penalty=1.3, pad_token_id=0, eos_token_id=2
        )
    },
}
"""What each is tried with; the answers of the routed model must be those of the oracles."""
ALONE = {
    "prompt_lookup_num_tokens", "max_matching_ngram_size", "min_length", "max_length",
    "encoder_repetition_penalty",
}  # fmt: skip
"""Options that transformers takes for one prompt at a time, or that count or look at padding."""
LOOKS_AT_PROMPT = {
    "max_length", "min_length", "repetition_penalty", "encoder_repetition_penalty",
    "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "prompt_lookup_num_tokens",
    "max_matching_ngram_size", "generation_config",
}  # fmt: skip
"""Options that count or look at the prompt's tokens as they were given, without what is put in
front of them.
"""
REFUSALS: dict[str, dict[str, Any]] = {
    "prefill_chunk_size": {"prefill_chunk_size": 4},
    "token_healing": {"token_healing": True},
    "guidance_scale": {"guidance_scale": 1.5},
    "negative_prompt_ids": {"negative_prompt_ids": torch.tensor([[50]]), "guidance_scale": 1.0},
    "assistant_early_exit": {"assistant_early_exit": 1},
    "use_mtp": {"use_mtp": True},
    "custom_generate": {"custom_generate": "somebody/some-loop"},
    "penalty_alpha": {"penalty_alpha": 0.6, "top_k": 4},
    "dola_layers": {"dola_layers": "low"},
    "num_beam_groups": {"num_beam_groups": 2, "num_beams": 4},
    "constraints": {"constraints": [object()]},
    "force_words_ids": {"force_words_ids": [[50]]},
    "compile_config": {"compile_config": object()},
    "cache_implementation=paged": {"cache_implementation": "paged"},
}


@cache
def page() -> dict[str, str]:
    """Of docs/generation.md: option -> what is said of it."""
    rows = re.findall(r"^\| (`[^|]+) \| ([^|]+) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return {
        name: verdict.strip() for names, verdict in rows for name in re.findall(r"`([^`]+)`", names)
    }


def test_the_page_names_every_option():
    options = {
        name
        for name in GenerationConfig().to_dict()
        if not name.startswith("_") and name != "transformers_version"
    }
    arguments = set(inspect.signature(GenerationMixin.generate).parameters) - {"self", "kwargs"}
    missing = sorted((options | arguments) - set(page()))
    assert not missing, f"transformers has options that docs/generation.md lacks: {missing}"


def test_the_page_says_what_the_code_does():
    said = page()
    assert {name for name, verdict in said.items() if verdict.startswith("refused")} >= set(REFUSED)
    assert set(REFUSED) == {name for name in REFUSALS if "=" not in name}
    assert all(said[name].startswith("right") for name in RIGHT), [
        n for n in RIGHT if not said[n].startswith("right")
    ]
    tried = {*RIGHT, *REFUSED, *ELSEWHERE}
    untried = sorted(
        name for name, verdict in said.items() if verdict.startswith("right") and name not in tried
    )
    assert not untried, f"nothing shows that these are right: {untried}"


ELSEWHERE = {
    "inputs", "input_ids", "attention_mask", "past_key_values", "cache", "assistant_model",
    "streamer", "stop_strings", "return_dict_in_generate", "output_scores", "output_logits",
    "output_hidden_states", "output_attentions", "pad_token_id", "eos_token_id", "bos_token_id",
    "generate", "forward", "pipeline", "ask", "position_ids", "num_assistant_tokens",
    "num_assistant_tokens_schedule", "assistant_confidence_threshold", "watermarking_config",
    "model(...)", "inputs_embeds",
}  # fmt: skip
"""Shown to be right by other tests: below, and in test_routing*.py, test_context.py, test_turns.py,
test_model_object.py.
"""


def loop_of(option: str) -> set[Hashable]:
    """Which of the library's loops an option meets, and with which cache: what others are tried
    with lies behind them.
    """
    loops = {"do_sample", "num_beams", "use_cache", "cache_implementation"}
    return {frozenset(RIGHT[option]) & loops, option in ALONE}


@grid("option", [(option,) for option in RIGHT], loop_of)
def test_right_where_a_router_chooses_weights(option):
    at = setting(FAMILY, 1)
    lm, options = (
        at.model.lm,
        {"top_k": 0, **RIGHT[option]} if RIGHT[option].get("do_sample") else RIGHT[option],
    )
    wanted, prompts = (
        [],
        [
            next(p for p in PROMPTS if at.routes_of([p]) == [route])
            for route in sorted(set(at.routes))
        ],
    )
    for prompt in prompts:
        torch.manual_seed(3)
        wanted.append(generated(at.oracle(prompt).model, lm, [prompt], NEW, **options))
        torch.manual_seed(3)
        assert generated(at.model, lm, [prompt], NEW, **options) == wanted[-1]
    if not options.get("do_sample") and option not in ALONE:
        assert generated(at.model, lm, prompts, NEW, **options) == [
            row for rows in wanted for row in rows
        ]


@grid("option", [(option,) for option in RIGHT if option not in LOOKS_AT_PROMPT], loop_of)
def test_right_where_facts_are_put_in_front(option):
    model = edited_model(FAMILY, "rag", EDITS[:4])
    lm, options = model.lm, RIGHT[option]
    if options.get("cache_implementation") == "static":
        with pytest.raises(ConfigError, match="cache of fixed size"):
            generated(model, lm, [EDITS[0].prompt], NEW, **options)
        return
    for edit in EDITS[:2]:
        (ids,) = model.method.patch.with_contexts(lm, [tuple(lm.encode_prompt(edit.prompt))])
        assert len(ids) > len(lm.encode_prompt(edit.prompt))
        torch.manual_seed(3)
        got = generated(model, lm, [edit.prompt], NEW, **options)
        given = torch.tensor([ids])
        settings = {
            "do_sample": False,
            "max_new_tokens": NEW,
            "min_new_tokens": NEW,
            "pad_token_id": 0,
        } | options
        torch.manual_seed(3)
        out = tiny_model(FAMILY).generate(given, attention_mask=torch.ones_like(given), **settings)
        assert got == out[:, len(ids) :].tolist()


@pytest.mark.parametrize("option", REFUSALS)
@pytest.mark.parametrize("method", ["wise", "folio", "rag", "knn-lm", "prefix-tuning"])
def test_what_hides_the_prompt_is_refused(option, method):
    model = refusing(method)
    with pytest.raises(ConfigError) as error:
        generated(model, model.lm, [EDITS[0].prompt], NEW, **REFUSALS[option])
    said = str(error.value)
    assert option in said and "not possible with edits" in said and "\n" not in said


@cache
def refusing(method: str) -> Any:
    return edited_model(FAMILY, method, EDITS[:4])


@pytest.mark.parametrize("option", ["prefill_chunk_size", "token_healing", "guidance_scale"])
def test_the_models_own_generation_config_is_looked_at_too(option):
    model = edited_model(FAMILY, "wise", EDITS[:4])
    for name, value in REFUSALS[option].items():
        setattr(model.base.generation_config, name, value)
    with pytest.raises(ConfigError, match=option):
        model.generate(torch.tensor([model.lm.encode_prompt("x")]))


def test_a_generation_config_is_taken_as_it_is_and_nothing_is_given_beside_it(monkeypatch):
    """transformers warns where there are a config and options beside it."""
    model = edited_model(FAMILY, "wise", EDITS[:4])
    config = GenerationConfig(do_sample=False, max_new_tokens=NEW, pad_token_id=0)
    own, seen = model.base.generate, []

    def generate(**options):
        seen.append(options)
        return own(**options)

    monkeypatch.setattr(model.base, "generate", generate)
    ids = torch.tensor([model.lm.encode_prompt(EDITS[0].prompt)])
    out = model.generate(ids, generation_config=config)
    assert torch.equal(out, model.generate(ids, **config.to_diff_dict()))
    given, plain = seen
    assert set(given) <= {"generation_config", "input_ids", "attention_mask"}
    assert given["generation_config"].disable_compile and plain["disable_compile"]
    assert not config.disable_compile, "the caller's own is left alone"


def test_weights_refuse_nothing():
    model = edited_model(FAMILY, "ft", EDITS[:4])
    ids = torch.tensor([model.lm.encode_prompt(EDITS[0].prompt)])
    out = model.generate(
        ids, prefill_chunk_size=4, do_sample=False, max_new_tokens=NEW, pad_token_id=0
    )
    assert torch.equal(
        out, model.generate(ids, do_sample=False, max_new_tokens=NEW, pad_token_id=0)
    )


@pytest.mark.parametrize("method", ["wise", "folio", "rag", "grace", "knn-lm", "prefix-tuning"])
def test_what_comes_beside_the_answer(method):
    model = edited_model(FAMILY, method, EDITS[:4])
    lm, streamer = model.lm, Words()
    ids = torch.tensor([lm.encode_prompt(EDITS[0].prompt)])
    settings: dict[str, Any] = {
        "do_sample": False,
        "max_new_tokens": NEW,
        "min_new_tokens": NEW,
        "pad_token_id": 0,
    }
    plain = model.generate(ids, **settings)
    assert torch.equal(model.generate(inputs=ids, streamer=streamer, **settings), plain)
    assert streamer.tokens == plain.numel()
    whole = model.generate(
        ids,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
        output_hidden_states=True,
        **settings,
    )
    assert torch.equal(whole.sequences, plain) and len(whole.scores) == NEW
    with torch.no_grad():
        again = model(plain[:, : ids.shape[1]]).logits[:, -1]
    torch.testing.assert_close(whole.logits[0], again, rtol=0, atol=1e-4)
    stop = lm.tokenizer.decode(plain[0, ids.shape[1] + 2 : ids.shape[1] + 3].tolist())
    if stop.strip():
        stopped = model.generate(
            ids, stop_strings=[stop], tokenizer=lm.tokenizer, **{**settings, "min_new_tokens": None}
        )
        assert torch.equal(plain[:, : stopped.shape[1]], stopped)
    assisted = model.generate(
        ids, assistant_model=tiny_model(FAMILY), num_assistant_tokens=3, **settings
    )
    assert torch.equal(assisted, plain)
