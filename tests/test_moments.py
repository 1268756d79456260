"""The keys' second moment against a direct computation; its cache; the null space; a corpus."""

from __future__ import annotations

import pytest
import torch
from edited import EDITS, edit_model
from families import chat_tokenizer, tiny_model, tiny_tokenizer

from errata.errors import ConfigError
from errata.lm import LM
from errata.lm.hooks import capture_input
from errata.solvers import moments
from errata.solvers.moments import (
    KeyStatistics,
    SecondMoment,
    read_corpus,
    second_moment,
    second_moments,
)
from errata.solvers.projector import Projector
from errata.storage.cache import cache_folder

TEXTS = [
    "The capital of France is Paris.",
    "x",
    "Who wrote the book? The author of the book was born in London." * 4,
    "Rome.",
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path / "cache"))


def lm_of(family: str = "llama") -> LM:
    return LM(tiny_model(family), tiny_tokenizer())


def by_hand(lm: LM, layer: int, texts: list[str]) -> torch.Tensor:
    keys = []
    for text in texts:
        with torch.no_grad(), capture_input(lm.architecture.value_module(lm.model, layer)) as seen:
            lm.model(input_ids=torch.tensor([lm.tokenizer(text)["input_ids"][: lm.context_length]]))
        keys.append(seen[0].flatten(0, -2).double())
    flat = torch.cat(keys)
    return flat.T @ flat / len(flat)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "bloom", "mpt"])
@pytest.mark.parametrize("at_once", [1, 60, 4096])
def test_it_is_the_mean_over_all_tokens(family, at_once, monkeypatch):
    monkeypatch.setattr(moments, "TOKENS_PER_BATCH", at_once)
    lm = lm_of(family)
    expected = by_hand(lm, 1, TEXTS)
    torch.testing.assert_close(
        second_moment(lm, 1, TEXTS).double(), expected, rtol=1e-4, atol=1e-4 * expected.max().item()
    )


def test_texts_longer_than_the_context_are_cut_and_no_template_is_put_around_them():
    lm = LM(tiny_model("llama"), chat_tokenizer())
    texts = [" ".join(TEXTS) * 5]
    assert len(lm.tokenizer(texts[0])["input_ids"]) > lm.context_length
    torch.testing.assert_close(
        second_moment(lm, 1, texts).double(), by_hand(lm, 1, texts), rtol=1e-3, atol=1e-4
    )


def test_several_layers_are_measured_in_one_pass_that_goes_no_higher(monkeypatch):
    lm, ran = lm_of(), []
    for layer in range(lm.architecture.n_layers):
        block = lm.architecture.block(lm.model, layer)
        block.register_forward_hook(lambda *_, layer=layer: ran.append(layer))
    both = second_moments(lm, [0, 2], TEXTS)
    assert set(ran) <= {0, 1} and ran.count(0) == ran.count(1) == 1
    for layer, moment in both.items():
        expected = by_hand(lm_of(), layer, TEXTS)
        torch.testing.assert_close(moment.double(), expected, rtol=1e-4, atol=1e-4)


def test_it_is_kept_on_disk_and_a_damaged_file_is_made_anew(monkeypatch):
    measured = []
    measure = moments._measure
    monkeypatch.setattr(
        moments, "_measure", lambda *args: measured.extend(args[1]) or measure(*args)
    )
    first = second_moment(lm_of(), 1, TEXTS)
    (file,) = cache_folder().iterdir()
    assert torch.equal(second_moment(lm_of(), 1, TEXTS), first) and measured == [1]

    whole = file.read_bytes()
    for damaged in (whole[:-40], b"", b"nonsense", whole[:-5] + b"\x00\x01\x02\x03\x04"):
        file.write_bytes(damaged)
        assert torch.equal(second_moment(lm_of(), 1, TEXTS), first)
        assert file.read_bytes() == whole
    assert len(measured) == 5

    second_moment(lm_of(), 2, TEXTS)
    second_moment(lm_of(), 1, TEXTS[1:])
    second_moment(lm_of("gpt2"), 1, TEXTS)
    other = lm_of()
    with torch.no_grad():
        other.model.get_input_embeddings().weight.mul_(2)
    assert not torch.equal(second_moment(other, 1, TEXTS), first)
    assert measured == [1] * 5 + [2, 1, 1, 1] and len(list(cache_folder().iterdir())) == 5


def test_a_disk_that_refuses_stops_nothing(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path / "file"))
    assert second_moment(lm_of(), 1, TEXTS).isfinite().all()


def test_dividing_by_it():
    root = torch.randn(12, 5, generator=torch.Generator().manual_seed(0)).double()
    singular, keys = root @ root.T, torch.eye(12).double()[:, :3]
    with pytest.raises(ConfigError, match="ridge is 0"):
        SecondMoment(singular).solve(keys)
    ridge = 0.1 * singular.trace() / 12
    expected = torch.linalg.inv(singular + ridge * torch.eye(12)) @ keys
    torch.testing.assert_close(SecondMoment(singular, 0.1).solve(keys), expected)


@pytest.mark.parametrize("threshold", [None, 0.5, 2.0])
def test_the_null_space_is_a_projector_that_does_not_see_what_is_to_stay(threshold):
    generator = torch.Generator().manual_seed(0)
    axes = torch.linalg.qr(torch.randn(12, 12, generator=generator, dtype=torch.float64))[0]
    scales = torch.tensor([9, 5, 3, 1, 1e-1, 1e-2, 1e-3] + [0.0] * 5, dtype=torch.float64)
    space = Projector(12)
    space.fit_moment(axes @ scales.diag() @ axes.T, threshold)
    assert space.rank == {None: 8, 0.5: 8, 2.0: 9}[threshold]
    projection = space.free @ space.free.T
    torch.testing.assert_close(space.project(torch.eye(12).double()), projection)
    torch.testing.assert_close(projection @ projection, projection)
    torch.testing.assert_close(projection @ axes[:, :3], torch.zeros(12, 3).double())
    torch.testing.assert_close(projection @ axes[:, -5:], axes[:, -5:])


def test_texts_are_the_models_own_or_a_files(tmp_path):
    lm = lm_of()
    own = KeyStatistics(lm, [1], None, 6, seed=3)
    assert (
        own.texts
        == KeyStatistics(lm_of(), [1], None, 6, seed=3).texts
        != KeyStatistics(lm_of(), [1], None, 6, seed=4).texts
    )
    assert torch.equal(own[1].matrix, second_moment(lm, 1, own.texts).double())
    (tmp_path / "corpus.txt").write_text("\n\n".join(TEXTS), encoding="utf-8")
    assert KeyStatistics(lm, [1], str(tmp_path / "corpus.txt"), 6, seed=3).texts == TEXTS


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read"),
        (b"", "holds 0 tokens"),
        (b"x\n", "holds 1 tokens"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
@pytest.mark.parametrize("method", ["rome", "memit", "alphaedit"])
def test_a_bad_corpus_is_said_in_a_line_and_nothing_is_written(method, content, reason, tmp_path):
    file = tmp_path / "corpus.txt"
    if content is not None:
        file.write_bytes(content)
    model = edit_model("llama", method, corpus=str(file))
    with pytest.raises(ConfigError, match=f"^corpus .*{reason}") as caught:
        model.edit(EDITS[:1])
    assert "\n" not in str(caught.value) and model.edits == []
    with pytest.raises(ConfigError, match="corpus"):
        read_corpus(model.lm, str(file))
