"""Text retrieval finds what is relevant to a prompt and nothing else, within its bound."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from families import tiny_model, tiny_tokenizer
from transformers import BertConfig, BertModel

import errata
from errata.atlas import make_cases
from errata.errors import ConfigError
from errata.lm import LM
from errata.retrieval import BM25, Dense, RetrievalConfig, retriever
from errata.words.parts import words

TEXTS = [
    "The capital of France is",
    "Who wrote the book?",
    "Where is the tower?",
    "The company was founded by",
]


def tiny(kind, **settings):
    lm = LM(tiny_model("llama"), tiny_tokenizer())
    return retriever(
        lm,
        RetrievalConfig(
            retriever=kind, background=24, **({"layer": 2} if kind == "dense" else {}), **settings
        ),
    )


@pytest.mark.parametrize("kind", ["dense", "bm25"])
def test_a_text_is_found_by_its_own_words(kind):
    found = tiny(kind, min_score=-1.0)
    found.calibrate()
    found.index(TEXTS)
    assert [places[0] for places in found.find(TEXTS, 2)] == [0, 1, 2, 3]
    assert all(len(places) == 2 for places in found.find(TEXTS, 2))
    found.index(TEXTS[2:])
    assert found.texts == TEXTS[2:] and found.find([TEXTS[3]], 1) == [[1]]
    found.index([])
    assert found.find(TEXTS, 3) == [[]] * 4 and found.find([], 3) == []


@pytest.mark.parametrize("kind", ["dense", "bm25"])
def test_its_state_is_all_there_is_to_it(kind):
    one, other = tiny(kind), tiny(kind)
    one.calibrate()
    one.index(TEXTS)
    scores = one.scores(["The capital of Italy is"])
    other.load_state(TEXTS, *one.state())
    assert other.calibrated and torch.equal(other.scores(["The capital of Italy is"]), scores)
    assert other.min_score == one.min_score
    beside = one.empty_copy()
    assert beside.calibrated and beside.texts == [] and one.texts == TEXTS


def test_dense_is_the_centred_cosine_of_last_tokens():
    found = tiny("dense")
    found.calibrate()
    found.index(TEXTS)

    def state(text):
        with torch.no_grad():
            ids = torch.tensor([found.lm.encode_prompt(text)])
            return found.lm.model(ids, output_hidden_states=True).hidden_states[3][0, -1].double()

    query = "The capital of Italy is"
    keys = [state(text) - found.mean.double() for text in (query, *TEXTS)]
    wanted = [torch.cosine_similarity(keys[0], key, dim=0).item() for key in keys[1:]]
    assert found.scores([query])[0].tolist() == pytest.approx(wanted, abs=1e-4)
    prompts, next_tokens, _ = found._background(2)
    background = torch.stack([state(prompt) for prompt in prompts])
    torch.testing.assert_close(found.mean.double(), background.mean(0), rtol=0, atol=1e-4)
    keys = torch.nn.functional.normalize(background - background.mean(0), dim=-1)
    nearest = [
        max(
            (
                float(keys[i] @ keys[j])
                for j in range(len(prompts))
                if next_tokens[i] != next_tokens[j]
            ),
            default=None,
        )
        for i in range(len(prompts))
    ]
    bound = torch.tensor([near for near in nearest if near is not None]).quantile(0.99).item()
    assert found.min_score == pytest.approx(min(0.999, bound), abs=1e-4)


def test_bm25_counts_rare_words_and_one_text_is_enough():
    found = tiny("bm25", min_score=0.0)
    found._prompts = ["the river of the city", "the city of the king", "who is the king", "x"] * 4
    found._next_tokens = torch.arange(16)
    found.index(["Who is the mayor of Kelor?"])
    assert found.scores(["nothing shared"]).tolist() == [[0.0]] == found.scores(["?!"]).tolist()
    common, rare = found.scores(["the of the", "Kelor"])[:, 0].tolist()
    assert 0 < common < rare
    assert found.find(["Kelor's mayor", "nothing shared"], 4) == [[0], []]
    n, holds, length, mean = 17, 1, 6, (16 * 3.75 + 6) / 17  # by the formula
    k1, b = 1.5, 0.75
    idf = math.log(1 + (n - holds + 0.5) / (holds + 0.5))
    assert rare == pytest.approx(idf / (1 + k1 * (1 - b + b * length / mean)), rel=1e-4)


def test_words_of_any_script():
    assert words("Who's Ana-Brisk? 12!") == ["who", "s", "ana", "brisk", "12"]
    assert words("東京は Tokyo") == ["東", "京", "は", "tokyo"] and words("?!") == []


def test_a_sentence_encoder_from_a_folder(tmp_path):
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    BertModel(BertConfig(vocab_size=320, **sizes)).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    found = tiny("dense", encoder=str(tmp_path), min_score=-1.0)
    found.calibrate()
    found.index(TEXTS)
    assert found.keys.shape == (4, 16) and [p[0] for p in found.find(TEXTS, 1)] == [0, 1, 2, 3]
    with pytest.raises(ConfigError, match="nothing is downloaded"):
        tiny("dense", encoder=str(tmp_path / "none"))


def test_bad_settings_and_a_missing_library(monkeypatch):
    for settings, said in (
        ({"retriever": "bm52"}, "Did you mean 'bm25'"),
        ({"false_route": 2}, "false_route"),
        ({"background": 1}, "background"),
        ({"room": 0}, "room"),
        ({"retriever": "bm25", "encoder": "x"}, "belongs to retriever=dense"),
    ):
        with pytest.raises(ConfigError, match=said):
            RetrievalConfig(**settings)
    with pytest.raises(ConfigError, match="no layer 9"):
        Dense(LM(tiny_model("llama"), tiny_tokenizer()), RetrievalConfig(layer=9))
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(ConfigError, match="pip install 'errata\\[retrieval\\]'"):
        BM25(LM(tiny_model("llama"), tiny_tokenizer()), RetrievalConfig(retriever="bm25"))


@pytest.fixture(scope="module")
def atlas():
    return LM(*errata.load_base("atlas", "float32"))


@pytest.mark.long
def test_on_atlas_rewordings_find_their_fact_and_other_questions_find_none(atlas):
    cases = make_cases(30, seed=3)
    found = Dense(atlas, RetrievalConfig(background=256))
    found.calibrate()
    found.index([case.edit.prompt for case in cases])
    asked = [
        (prompt, i)
        for i, case in enumerate(cases)
        for prompt in (case.edit.prompt, *case.rephrases)
    ]
    places = found.find([prompt for prompt, _ in asked], 1)
    assert sum(place == [i] for place, (_, i) in zip(places, asked, strict=True)) > 0.85 * len(
        asked
    )
    others = [probe.prompt for case in cases for probe in case.locality]
    assert sum(map(bool, found.find(others, 1))) < 0.05 * len(others)
