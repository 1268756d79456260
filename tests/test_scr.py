"""SCR asks the model itself which fact a question is about, and holds it to the facts there are."""

from __future__ import annotations

import json
import math
import sys

import pytest
import torch
from edited import EDITS, edit_model
from families import tiny_model, tiny_tokenizer
from transformers import BertConfig, BertModel

import errata
from errata.errors import ConfigError
from errata.lm import LM
from errata.methods.recognition import scr
from errata.methods.recognition.scr import NONE, greedy_choice
from errata.retrieval.encoders import sentence_encoder


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom"])
def test_the_choice_is_what_greedy_decoding_writes_among_the_targets(family):
    lm = LM(tiny_model(family), tiny_tokenizer())
    prompt = lm.encode_prompt("The capital of France is")

    def likeliest(front, tokens):
        with torch.no_grad():
            logits = lm.model(torch.tensor([[*prompt, *front]])).logits[0, -1]
        return max(tokens, key=lambda token: logits[token].item())

    generator = torch.Generator().manual_seed(0)
    for _ in range(12):
        targets = [
            tuple(row) for row in torch.randint(20, 23, (6, 4), generator=generator).tolist()
        ]
        wanted, left = (), set(targets)
        for step in range(4):
            token = likeliest(wanted, sorted({target[step] for target in left}))
            wanted = (*wanted, token)
            left = {target for target in left if target[: step + 1] == wanted}
        assert targets[greedy_choice(lm, prompt, targets)] == wanted
    assert greedy_choice(lm, prompt, [(20, 21), (20, 21)]) == 0
    assert greedy_choice(lm, prompt, [(20, 21), (20,)]) == 1
    assert greedy_choice(lm, prompt, [(20,)]) == 0


@pytest.fixture
def short(monkeypatch):
    """Tiny models have room for 128 tokens."""
    monkeypatch.setattr(scr, "SELECTION", "{facts}\n{question}\n")


def test_what_the_model_says_decides(short, monkeypatch):
    method = edit_model("llama", "scr", EDITS[:3], min_score=-1.0).method
    method.patch.remove()
    asked, answer = [], EDITS[1]

    def choose(lm, prompt, targets):
        asked[:] = [lm.decode(target) for target in targets]
        return asked.index(f"{answer.prompt} {answer.target}." if answer else NONE)

    monkeypatch.setattr(scr, "greedy_choice", choose)
    ((context,),) = method.contexts([EDITS[0].prompt])
    assert f"Fact: {EDITS[1].prompt} {EDITS[1].target}.\nQuestion: " in context
    assert len(asked) == 4 and asked[-1] == NONE
    assert asked[2] == f"{EDITS[0].prompt} {EDITS[0].target}."  # the best comes last of the facts
    answer = None
    assert method.contexts([EDITS[0].prompt]) == [()]


def test_asked_in_a_batch_or_alone_it_answers_the_same(short):
    model = edit_model("llama", "scr", EDITS[:4], min_score=-1.0)
    prompts = [edit.prompt for edit in EDITS[:4]]
    assert model.ask(prompts, max_new_tokens=6) == [
        model.ask([prompt], max_new_tokens=6)[0] for prompt in prompts
    ]


def test_a_fact_that_scores_too_low_is_not_shown(short):
    method = edit_model("llama", "scr", EDITS[:3], min_score=2.0).method
    method.patch.remove()
    assert method.contexts([EDITS[0].prompt]) == [()]


def test_settings():
    assert errata.method_config("scr").candidates == 5
    for settings, said in (({"candidates": 0}, "candidates"), ({"template": "x"}, "template")):
        with pytest.raises(ConfigError, match=said):
            errata.method_config("scr", **settings)


def encoder_folder(folder, pooling):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=320, intermediate_size=32, **sizes)).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    kinds = (("", "Transformer"), ("1_Pooling", "Pooling"))
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    modes = {f"pooling_mode_{mode}": mode == pooling for mode in ("cls_token", "mean_tokens")}
    config = {"word_embedding_dimension": 16, **modes}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))
    return str(folder)


def test_an_encoder_that_averages_needs_no_further_library(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    encode = sentence_encoder(encoder_folder(tmp_path / "mean", "mean_tokens"))
    together = encode(["The capital of France is", "x"])
    assert together.shape == (2, 16)
    torch.testing.assert_close(together[1:], encode(["x"]), rtol=1e-4, atol=1e-5)
    other = encoder_folder(tmp_path / "cls", "cls_token")
    with pytest.raises(ConfigError, match="pip install 'errata\\[encoders\\]'"):
        sentence_encoder(other)


@pytest.mark.long
def test_sentence_transformers_reads_the_others(tmp_path):
    library = pytest.importorskip(
        "sentence_transformers", reason="the extra 'encoders' is not installed"
    )
    texts = ["The capital of France is", "Who wrote the book?"]
    mean, first = (
        sentence_encoder(encoder_folder(tmp_path / name, name))
        for name in ("mean_tokens", "cls_token")
    )
    assert first(texts).shape == (2, 16) and not torch.allclose(first(texts), mean(texts))
    whole = library.SentenceTransformer(str(tmp_path / "mean_tokens"), device="cpu")
    vectors = whole.encode(texts, convert_to_tensor=True, show_progress_bar=False)
    torch.testing.assert_close(mean(texts), vectors, rtol=1e-4, atol=1e-5)


def test_every_retriever_finds_the_fact(tmp_path):
    folder = encoder_folder(tmp_path / "encoder", "mean_tokens")
    for settings in ({}, {"retriever": "bm25"}, {"encoder": folder}):
        method = edit_model("llama", "scr", EDITS[:3], min_score=-math.pi, **settings).method
        method.patch.remove()
        hits = method.retriever.find([edit.prompt for edit in EDITS[:3]], 5)
        assert [hit[0] for hit in hits] == [0, 1, 2], settings
