"""Knowledge neurons: the attribution against its definition, the search, and what is done."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from edited import EDITS, edit_model, logits_of
from families import tiny_model, tiny_tokenizer
from torch import Tensor

from errata import LM, Edit, KnowledgeNeuronsConfig
from errata.analyses import neurons as analysis
from errata.cases import Case, Probe
from errata.cli.edit_report import show_report
from errata.edit import REFUSAL
from errata.errors import ConfigError
from errata.lm.weights import read_weight
from errata.methods.mastery.knowledge_neurons.attribution import attributions, told
from errata.methods.mastery.knowledge_neurons.search import coarse, fitting, refined
from errata.words.telling import still_told

FAMILIES = ("llama", "gpt2")
ANSWER = " two brothers"
ERASE = Edit("Where is the tower?", subject="the tower", operation="erase")


def tiny(family: str) -> LM:
    return LM(tiny_model(family), tiny_tokenizer())


def rows_of(lm: LM, prompt: str = "Who wrote the book?", answer: str = ANSWER):
    return fitting(lm, [prompt], (), tuple(lm.encode_piece(answer)))[0]


@contextmanager
def scaled_input(lm: LM, layer: int, places: list[int], by: float):
    """The block's neurons at some tokens are multiplied, and kept, with their gradients."""
    kept: list[Tensor] = []

    def change(_, args):
        states = args[0].clone()
        flat = states.reshape(-1, states.shape[-1])
        part = (by * flat[places]).detach().requires_grad_()
        kept.append(part)
        flat = flat.index_copy(0, torch.tensor(places), part)
        return (flat.reshape(states.shape),)

    module = lm.architecture.value_module(lm.model, layer)
    handle = module.register_forward_pre_hook(change)
    try:
        yield kept
    finally:
        handle.remove()


def probability(lm: LM, row) -> Tensor:
    """Of the row's answer, to the power of one over its tokens."""
    logits = lm.model(torch.tensor([row.ids])).logits[0].float().log_softmax(-1)
    places = range(row.prompt_length, len(row.ids))
    return torch.stack([logits[i - 1, row.ids[i]] for i in places]).mean().exp()


def predicting(row) -> list[int]:
    return list(range(row.prompt_length - 1, len(row.ids) - 1))


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_the_sum_of_the_paper(family):
    lm, steps, layer = tiny(family), 4, 1
    row = rows_of(lm)
    assert row.target_length > 1
    wanted = torch.zeros(lm.architecture.d_in)
    for step in range(1, steps + 1):
        share = step / steps
        with scaled_input(lm, layer, predicting(row), share) as kept:
            (gradient,) = torch.autograd.grad(probability(lm, row), kept[0])
        wanted += (kept[0].detach() / share * gradient).sum(0) / steps
    got = attributions(lm, row, [layer, 3], steps)
    assert got.shape == (2, lm.architecture.d_in)
    torch.testing.assert_close(got[0], wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_blocks_attributions_add_up_to_what_the_block_does(family):
    lm, layers = tiny(family), [0, 2]
    row = rows_of(lm)
    many, few = (attributions(lm, row, layers, steps).sum(1) for steps in (400, 10))
    for place, layer in enumerate(layers):
        with torch.no_grad():
            whole = probability(lm, row)
            with scaled_input(lm, layer, predicting(row), 0.0):
                change = whole - probability(lm, row)
        off, far = (float((found[place] - change).abs()) for found in (many, few))
        assert off < 0.02 * float(change.abs()) + 1e-6
        assert off < far, "more steps come nearer"


def test_what_the_model_answers_ends_with_its_end_token_or_is_cut():
    lm = tiny("llama")
    for edit in EDITS:
        answer = told(lm, edit.prompt, 5)
        assert lm.decode(answer) == lm.generate(edit.prompt, max_new_tokens=5)
        assert len(answer) == 5 or answer[-1] in lm.end_ids
    assert len(told(lm, "zq" * 62, 50)) <= lm.context_length - len(lm.encode_prompt("zq" * 62))


def test_above_a_share_of_the_largest():
    scores = torch.tensor([[0.0, 1.0, 0.3], [-2.0, 0.31, 0.1]])
    assert coarse(scores, [2, 5], 0.3) == {(2, 1), (5, 1)}
    assert coarse(scores, [2, 5], 1.0) == set()
    assert coarse(-scores.abs(), [2, 5], 0.3) == set()


def test_what_most_prompts_find_and_no_negative():
    a, b, c = (0, 1), (1, 2), (3, 0)
    found = [{a, b}, {a, c}, {a, b}, {a}]
    assert refined(found, 0.0) == [a, b, c] and refined(found, 0.4) == [a, b]
    assert refined(found, 0.5) == [a], "more than the share"
    assert refined(found, 1.0) == [a] and refined([{b}], 1.0) == [b], "all of them are enough"
    assert refined(found, 0.4, [{a, c}]) == [b] and refined([], 0.5) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_erased_rows_are_zero_and_come_back_bit_for_bit(family):
    model = edit_model(family, "knowledge-neurons", layer=None)
    base = {name: weight.clone() for name, weight in model.base.state_dict().items()}
    before = logits_of(model, model.lm)
    report = model.edit([EDITS[0], ERASE])
    method = model.method
    for layer, path in method.paths.items():
        now, delta = read_weight(model.base.get_submodule(path)), method.patch.deltas[path]
        zero = [place for block, place in method.found[ERASE.id] if block == layer]
        moved = [place for block, place in method.found[EDITS[0].id] if block == layer]
        assert not now[:, zero].any()
        untouched = torch.ones(delta.shape[1], dtype=torch.bool)
        untouched[[*zero, *moved]] = False
        assert delta.shape == (32, 64) and not delta[:, untouched].any()
    assert method.found[ERASE.id] and method.found[EDITS[0].id]
    assert report.results[1].suppressed and not report.results[0].suppressed
    assert not torch.equal(logits_of(model, model.lm), before)
    model.undo(EDITS[0].id, ERASE.id)
    assert torch.equal(logits_of(model, model.lm), before)
    assert all(torch.equal(weight, base[name]) for name, weight in model.base.state_dict().items())


def test_what_is_erased_is_what_the_base_model_told_whatever_was_written_before():
    alone = edit_model("llama", "knowledge-neurons", [ERASE])
    behind = edit_model("llama", "knowledge-neurons", [EDITS[0], EDITS[3], ERASE])
    assert behind.method.found[ERASE.id] == alone.method.found[ERASE.id]


@pytest.mark.parametrize("family", FAMILIES)
def test_changed_rows_say_the_new_first_token_more_and_the_old_less(family):
    model = edit_model(family, "knowledge-neurons")
    prompt = EDITS[0].prompt
    with torch.no_grad():
        before = model.lm.run(model.lm.prompt_batch(prompt)).logits[0, -1].log_softmax(-1)
        model.edit(EDITS[0], check=False)
        after = model.lm.run(model.lm.prompt_batch(prompt)).logits[0, -1].log_softmax(-1)
    row = model.lm.encode(prompt, EDITS[0].target)
    new, old = row.ids[row.prompt_length], int(before.argmax())
    assert after[new] > before[new] + 1 and after[old] < before[old]


def test_an_answer_that_is_given_already_changes_nothing_and_is_told(monkeypatch):
    model = edit_model("llama", "knowledge-neurons")
    given = told(model.lm, EDITS[0].prompt, 16)
    monkeypatch.setattr(model.method, "_new", lambda edit: given)
    ((name, warning),) = model.edit(EDITS[0], check=False).warnings
    assert name == EDITS[0].id and "nothing was changed" in warning
    assert not any(delta.any() for delta in model.method.patch.deltas.values())


def test_a_fact_is_suppressed_without_a_refusal_and_the_report_says_so(capsys):
    model = edit_model("llama", "knowledge-neurons")
    report = model.edit(ERASE)
    (result,) = report.results
    assert not model.method.refuses and model.edits[0].target == REFUSAL
    before = model.ask_base(ERASE.prompt)
    assert result.success == (not still_told(result.answer, before, ERASE.prompt))
    ((name, warning),) = report.warnings
    assert name == ERASE.id and repr(REFUSAL) in warning and "\n" not in warning
    result = type(result)(ERASE, "north", False, True)
    show_report(type(report)([result], written=[ERASE], total=1), Path("here"))
    assert "not erased" in (said := capsys.readouterr().err) and REFUSAL not in said


@pytest.mark.parametrize(
    ("answer", "before", "told_still"),
    [
        ("Ana Brisk.", "Ana Brisk", True),
        ("It was Ana Brisk who", "Ana Brisk. She", True),
        ("Bo Lind.", "Ana Brisk.", False),
        ("The mayor of Kelor is", "Ana Brisk.", False),
        ("a kite", "kites", False),
        ("kites and boats", "kites", True),
        ("", "", True),
        ("Bo", "", False),
    ],
)
def test_whether_an_answer_still_tells(answer, before, told_still):
    assert still_told(answer, before, "Who is the mayor of Kelor?") is told_still


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": 0},
        {"threshold": 1.5},
        {"share": -0.1},
        {"scale": -1.0},
        {"tokens": 0},
        {"prefixes": -1},
        {"layer": 1, "layers": 3},
        {"layer": 4},
    ],
    ids=str,
)
def test_bad_settings_are_one_line(settings):
    with pytest.raises(ConfigError) as error:
        KnowledgeNeuronsConfig(**settings).blocks(tiny("llama"))
    assert "\n" not in str(error.value)


def test_the_blocks_that_are_searched():
    lm = tiny("llama")
    for settings, blocks in (
        ({}, [0, 1, 2, 3]),
        ({"layer": 2}, [0, 1, 2]),
        ({"layers": 2}, [2, 3]),
        ({"layer": 2, "layers": 1}, [2]),
    ):
        assert KnowledgeNeuronsConfig(**settings).blocks(lm) == blocks


def test_paraphrases_and_negatives_refine():
    lm, config = tiny("llama"), KnowledgeNeuronsConfig(steps=3, threshold=0.05)
    prompt, others = "Where is the tower?", ("The tower stands in", "The tower? Where is it?")
    alone, (coarse_set,) = analysis.neurons_of(lm, Case(Edit(prompt, "x")), config)
    assert {tuple(each) for each in alone["neurons"]} == coarse_set
    fact, found = analysis.neurons_of(lm, Case(Edit(prompt, "x"), others), config)
    assert found[0] == coarse_set and fact["prompts"] == 3 and fact["negatives"] == 0
    neurons = {tuple(each) for each in fact["neurons"]}
    assert neurons == {each for each in set().union(*found) if sum(each in s for s in found) > 1}
    negative = Probe("The tower is known for", kind="same_subject")
    less, _ = analysis.neurons_of(lm, Case(Edit(prompt, "x"), others, (negative,)), config)
    assert less["negatives"] == 1 and {tuple(each) for each in less["neurons"]} <= neurons
