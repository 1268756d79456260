"""SCR asks the model itself which fact a question is about, and holds it to the facts there are."""

from __future__ import annotations

import json
import math
import sys

import pytest
import torch
from edited import EDITS, edit_model
from families import tiny_tokenizer
from transformers import BertConfig, BertModel

import errata
from errata.errors import ConfigError
from errata.lm.encoding import Row
from errata.methods.recognition import scr
from errata.methods.recognition.scr import NONE, greedy_choice
from errata.retrieval.encoders import sentence_encoder


def rows(*targets):
    return [Row((7, *target), 1, len(target)) for target in targets]


def test_the_choice_is_what_greedy_decoding_writes_among_the_targets():
    targets = rows((1, 2, 3), (1, 4), (5,))
    # the first token decides for 1, the second for 4, however likely the third of 1 2 3 is
    assert greedy_choice(targets, [[-1.0, -3.0, 0.0], [-1.0, -2.0], [-1.5]]) == 1
    assert greedy_choice(targets, [[-2.0, 0.0, 0.0], [-2.0, 0.0], [-1.5]]) == 2
    assert greedy_choice(rows((1, 2), (1, 2)), [[-1.0, -1.0]] * 2) == 0
    assert greedy_choice(rows((1, 2), (1,)), [[-1.0, -1.0], [-1.0]]) == 1


def test_log_probabilities_are_those_of_each_row_alone():
    method = edit_model("llama", "scr").method
    lm = method.lm
    encoded = [lm.encode(edit.prompt, edit.target) for edit in EDITS[:4]]
    with torch.no_grad():
        together = method._target_log_probabilities(encoded)
        for row, got in zip(encoded, together, strict=True):
            logits = lm.model(torch.tensor([row.ids])).logits[0].log_softmax(-1)
            wanted = [
                logits[i - 1, row.ids[i]].item() for i in range(row.prompt_length, len(row.ids))
            ]
            assert got == pytest.approx(wanted, abs=1e-4)


@pytest.fixture
def short(monkeypatch):
    """Tiny models have room for 128 tokens."""
    monkeypatch.setattr(scr, "SELECTION", "{facts}\n{question}\n")


def test_what_the_model_says_decides(short, monkeypatch):
    method = edit_model("llama", "scr", EDITS[:3], min_score=-1.0).method
    method.patch.remove()
    said = {}

    def likeliest(encoded):
        texts = [method.lm.decode(row.ids[row.prompt_length :]) for row in encoded]
        said["asked"] = texts
        return [
            [0.0 if text == said["answer"] else -9.0] * row.target_length
            for text, row in zip(texts, encoded, strict=True)
        ]

    monkeypatch.setattr(method, "_target_log_probabilities", likeliest)
    said["answer"] = NONE
    assert method.contexts([EDITS[0].prompt]) == [()]
    assert len(said["asked"]) == 4 and said["asked"][-1] == NONE
    said["answer"] = f"{EDITS[1].prompt} {EDITS[1].target}."
    ((context,),) = method.contexts([EDITS[0].prompt])
    assert f"Fact: {EDITS[1].prompt} {EDITS[1].target}.\nQuestion: " in context


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
