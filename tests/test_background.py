"""Background text and what is read from it: names, open prompts, scales."""

from __future__ import annotations

import pytest
import torch
from families import chat_tokenizer, tiny_model, tiny_tokenizer

from errata.lm import LM
from errata.lm.background import background_texts, open_prompt, prompt_about, value_scale
from errata.lm.hooks import capture_input, capture_output
from errata.storage.cache import cache_folder
from errata.words.names import names_in


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", []),
        ("nothing here has a name.", []),
        ("The capital of France is Paris.", ["France", "Paris"]),
        ("Paris is large. London too.", []),  # one word at a sentence's start may be any word
        ("Anna Bell lives in New Haven.", ["Anna Bell", "New Haven"]),
        ("Who is Anna Bell? Carl", ["Anna Bell"]),
        ("Is Rome old: Rome is.", ["Rome"]),
        ("In London Bridge Street", ["London Bridge Street"]),
        ("we met Anna, Carl, and Anna", ["Anna", "Carl"]),
        ("we met Jean-Paul O'Neill and Zoé", ["Jean-Paul O'Neill", "Zoé"]),
        ("so I said to Al", []),  # two letters and fewer are not told from other words
        ("法国的首都是巴黎。", []),
        ("عاصمة فرنسا هي باريس", []),
    ],
)
def test_names(text, names):
    assert names_in(text) == names


@pytest.mark.parametrize(
    ("text", "name"), [("the mayor of Évry", "Évry"), ("мэр города Москва", "Москва")]
)
def test_names_with_other_capital_letters(text, name):
    assert names_in(text) == [name]


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("The capital of France is Paris.", "The capital of France is"),
        ("Who is the mayor of Rome? Anna Bell", "Who is the mayor of Rome?"),
        ("we met Anna near Rome, and Rome again", "we met Anna near Rome, and"),
        ("The capital of France is old", "The capital of France is old"),
        ("no name", "no name"),
        ("法国的首都是巴黎。", "法国的首都是巴黎。"),
        ("", ""),
    ],
)
def test_open_prompts(text, prompt):
    assert open_prompt(text) == prompt


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("The capital of France is Paris.", "The capital of Kelor is"),
        ("Who is the mayor of Rome? Anna Bell", "Who is the mayor of Kelor?"),
        ("we met Anna, and Anna saw Rome", "we met Kelor, and Kelor saw"),
        ("The capital of France is old", None),
        ("no name", None),
        ("法国的首都是巴黎。", None),
        ("", None),
    ],
)
def test_about_another_subject(text, prompt):
    assert prompt_about(text, "Kelor") == prompt


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom"])
def test_background_is_seeded_and_leaves_the_generator_alone(
    family, tmp_path, monkeypatch, own_cache
):
    lm = LM(tiny_model(family), tiny_tokenizer())
    torch.manual_seed(7)
    state = torch.get_rng_state()
    texts = background_texts(lm, 6, 10, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(8)
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path / "another"))
    assert background_texts(lm, 6, 10, seed=3) == texts and len(texts) == 6
    other = background_texts(lm, 6, 10, seed=4)
    assert other != texts and len(set(texts + other)) > 6


def test_background_is_sampled_once_for_a_model_and_its_tokenizer(monkeypatch, own_cache):
    def lm_of(family="llama", tokenizer=None, **config):
        model = tiny_model(family)
        model.config.update(config)
        return LM(model, tokenizer or tiny_tokenizer())

    changed = lm_of()
    with torch.no_grad():
        changed.model.get_input_embeddings().weight.mul_(2)
    asked = [
        (lm_of(), 3, 6, 0),
        (changed, 3, 6, 0),
        (lm_of("gpt2"), 3, 6, 0),
        (lm_of(rms_norm_eps=0.1), 3, 6, 0),
    ]
    asked += [
        (lm_of(tokenizer=tiny_tokenizer("bos")), 3, 6, 0),
        (lm_of(), 4, 6, 0),
        (lm_of(), 3, 7, 0),
        (lm_of(), 3, 6, 1),
    ]
    asked += [
        (lm_of(), 3, 6, 0, 6),
        (LM(lm_of().model.to(torch.bfloat16), tiny_tokenizer()), 3, 6, 0),
    ]
    texts = [background_texts(*each) for each in asked]
    assert len(list(cache_folder().iterdir())) == len(asked)
    monkeypatch.setattr(
        type(tiny_model("llama")), "generate", lambda *_, **__: pytest.fail("it is there")
    )
    assert [background_texts(*each) for each in asked[:2] + asked[4:]] == texts[:2] + texts[4:]
    assert background_texts(lm_of(_name_or_path="elsewhere"), 3, 6, 0) == texts[0]


def test_background_has_the_length_asked_for(monkeypatch, own_cache):
    lm = LM(tiny_model("llama"), tiny_tokenizer())
    shapes = []
    decode = LM.decode
    monkeypatch.setattr(
        LM, "decode", lambda self, ids: shapes.append(len(ids)) or decode(self, ids)
    )
    background_texts(lm, 4, 10, seed=0, shortest=10)
    assert shapes == [10] * 4
    background_texts(lm, 1, 10_000, seed=0, shortest=10_000)
    assert shapes[4] == lm.context_length - 2


def test_background_without_a_first_token_and_with_a_chat_template():
    bare = tiny_tokenizer()
    bare.bos_token = None
    for tokenizer in (bare, chat_tokenizer()):
        texts = background_texts(LM(tiny_model("gpt2"), tokenizer), 3, 6, seed=0, shortest=6)
        assert len(texts) == 3 and any(texts)


def norms_by_hand(lm: LM, text: str) -> tuple[torch.Tensor, torch.Tensor]:
    module = lm.architecture.value_module(lm.model, 2)
    with torch.no_grad(), capture_input(module) as keys, capture_output(module) as values:
        lm.model(input_ids=torch.tensor([lm.encode_prompt(text)]))
    return tuple(seen[0].flatten(0, -2).norm(dim=-1) for seen in (keys, values))


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "bloom", "mpt"])
def test_scale_is_the_median_over_tokens_whatever_the_padding(family):
    lm = LM(tiny_model(family), tiny_tokenizer())
    texts = [
        "The capital",
        "x",
        "The president of the United States lives in Washington, and the tower stands.",
    ]
    for chosen in ([texts[2]], texts[:2], texts):
        keys, values = (
            torch.cat(parts)
            for parts in zip(*(norms_by_hand(lm, text) for text in chosen), strict=True)
        )
        scale = value_scale(lm, 2, chosen)
        assert scale.key_norm == pytest.approx(keys.median().item(), rel=1e-4)
        assert scale.value_norm == pytest.approx(values.median().item(), rel=1e-4)


def test_scale_of_a_known_matrix():
    """W = 3 I on the first 32 of 64 dimensions, so each value is three times the first half of its
    key.
    """
    lm = LM(tiny_model("llama"), tiny_tokenizer())
    module = lm.architecture.value_module(lm.model, 2)
    keys, _ = norms_by_hand(lm, "The capital of France")
    with torch.no_grad(), capture_input(module) as seen:
        module.weight.copy_(3 * torch.eye(32, 64))
        lm.model(input_ids=torch.tensor([lm.encode_prompt("The capital of France")]))
    scale = value_scale(lm, 2, ["The capital of France"])
    assert scale.value_norm == pytest.approx(
        3 * seen[0][0, :, :32].norm(dim=-1).median().item(), rel=1e-5
    )
    assert scale.key_norm == pytest.approx(keys.median().item(), rel=1e-5)


def test_a_name_keeps_the_marks_of_its_letters():
    """Letters with their marks apart, and in scripts whose vowels are marks."""
    for name in ("Zoe\u0308 Brisk", "Ān Brisk", "Çelik"):
        assert names_in(f"Who is {name}?") == [name]
