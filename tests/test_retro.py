"""RETRO: the facts found for a prompt, read by cross-attention from the prompt's last token on."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from edited import EDITS, EXAMPLES, PROMPTS, edit_model, edited_model, same_state
from families import HIDDEN, N_LAYERS, tiny_model, tiny_tokenizer

import errata
from errata import EditModel
from errata.errors import ConfigError, EditError
from errata.lm.hooks import capture_output
from errata.lm.self_attention import SelfAttention, self_attentions
from errata.methods.association.retro.patch import REACH, CrossAttention
from errata.patches.passages import Passage, Passages

ASKED = [PROMPTS[0], PROMPTS[7], PROMPTS[2], "x"]


def opened(model: EditModel, gate: float = 0.5) -> EditModel:
    """The model with gates wide open, as after a long training."""
    for name, parameter in model.method.network.named_parameters():
        if name.endswith("gate"):
            parameter.data.fill_(gate)
    return model


def found(model: EditModel, prompts: list[str]) -> list[tuple[str, ...]]:
    ids = [tuple(model.lm.encode_prompt(text)) for text in prompts]
    with model.disable_edits():
        return model.method.patch.chosen(model.lm, ids)


# the attention


def test_cross_attention_is_the_formula() -> None:
    draw = torch.Generator().manual_seed(0)
    drawn = [torch.randn(8, 8, generator=draw) for _ in range(4)]
    attention = CrossAttention(SelfAttention(2, *drawn))
    attention.distance.data.normal_(generator=draw)
    attention.gate.data.fill_(0.7)
    texts = [Passage(torch.randn(n, 8, generator=draw), answer) for n, answer in ((3, 2), (5, 1))]
    passages = Passages.of([texts[:1], texts], torch.device("cpu"))
    hidden, offsets = torch.randn(2, 4, 8, generator=draw), torch.tensor([[-1, 0, 1, 2]] * 2)
    got = attention(hidden, offsets, passages, attention.keys_and_values(passages.states))

    distance = attention.distance.view(2, -1)

    def normal(vector: torch.Tensor) -> torch.Tensor:
        return vector / (vector.square().mean() + 1e-6).sqrt()

    for row, own in ((0, texts[:1]), (1, texts)):
        read = [(state, i - each.answer) for each in own for i, state in enumerate(each.states)]
        for column in range(4):
            mixed = []
            for head in range(2):
                at = slice(4 * head, 4 * head + 4)
                query = attention.query[at] @ normal(hidden[row, column])
                scores = torch.stack([
                    query @ (attention.key[at] @ normal(state)) / math.sqrt(4)
                    + distance[head, int(offsets[row, column]) - offset + REACH]
                    for state, offset in read
                ])  # fmt: skip
                values = torch.stack([attention.value[at] @ normal(state) for state, _ in read])
                mixed.append(scores.softmax(0) @ values)
            wanted = math.tanh(0.7) * attention.output @ torch.cat(mixed)
            torch.testing.assert_close(got[row, column], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_it_begins_as_the_attention_of_the_block_behind_it(family: str) -> None:
    config = errata.RetroConfig(first_block=1, every=2)
    method = EditModel(tiny_model(family), config, tiny_tokenizer()).method
    assert method.layers == [1, 3] and method.encoder_layer == 2
    behind = self_attentions(method.lm, [2, 3])  # behind the last there is none
    for begins, attention in zip(behind, method.network, strict=True):
        for name in ("query", "key", "value", "output"):
            assert torch.equal(getattr(attention, name), getattr(begins, name))
        assert not attention.gate.any() and not attention.distance.any()


def test_a_gate_of_zero_is_the_base_model_bit_for_bit() -> None:
    model = opened(edited_model("llama", "retro", EDITS), gate=0.0)
    assert any(found(model, ASKED))
    batch = model.lm.prompt_batch(ASKED)
    with torch.no_grad():
        edited = model.lm.run(batch).logits
        with model.disable_edits():
            assert torch.equal(edited, model.lm.run(batch).logits)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_only_rows_with_a_fact_change_and_only_from_the_prompts_end_on(family: str) -> None:
    model = opened(edited_model(family, "retro", EDITS))
    lm, names = model.lm, found(model, ASKED)
    assert any(names) and not all(names)
    for side in ("left", "right"):
        batch = lm.batch([lm.encode(text, "two brothers") for text in ASKED], side)
        with torch.no_grad(), errata.lm.prompt_tokens(batch.prompt_mask):
            edited = lm.run(batch).logits
            with model.disable_edits():
                base = lm.run(batch).logits
        for row, name in enumerate(names):
            prompt, target = batch.prompt_mask[row].clone(), batch.target_mask[row]
            last = int(prompt.nonzero()[-1])
            prompt[last] = False
            assert torch.equal(edited[row, prompt], base[row, prompt])
            reads = [last, *target.nonzero()[:, 0].tolist()]
            same = [torch.equal(edited[row, at], base[row, at]) for at in reads]
            assert not any(same) if name else all(same)


def test_what_is_read_is_what_the_encoder_made_of_the_edit_alone() -> None:
    model = edited_model("llama", "retro", EDITS, first_block=2, encoder_layer=0, every=1)
    assert model.method.layers == [2, N_LAYERS - 1][: N_LAYERS - 2]
    lm, method = model.lm, model.method
    with model.disable_edits():
        row = method.encode(EDITS[1])
        with capture_output(lm.architecture.block(lm.model, 0)) as outputs, torch.no_grad():
            lm.model(input_ids=torch.tensor([row.ids]))
    passage = method.patch.passages[EDITS[1].id]
    torch.testing.assert_close(passage.states, outputs[0][0], rtol=1e-4, atol=1e-5)
    assert passage.answer == row.prompt_length and passage.states.shape[1] == HIDDEN


def test_the_order_of_several_facts_does_not_matter() -> None:
    model = opened(edited_model("llama", "retro", EDITS, passages=2))
    names = [each.id for each in EDITS[:2]]
    with torch.no_grad(), model.disable_edits(), model.method.patch.on(model.lm):
        one, other = (
            (model.method.patch.giving([tuple(order)]), order) for order in (names, names[::-1])
        )
        logits = []
        for giving, _ in (one, other):
            with giving:
                logits.append(model.lm.run(model.lm.prompt_batch(PROMPTS[0])).logits)
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-4, atol=1e-5)


# training


def untrained(**settings: object) -> EditModel:
    config = errata.RetroConfig.from_dict(
        {"training_steps": 3, "asked": 4, "background": 32, "passages": 2, **settings}
    )
    return EditModel(tiny_model("llama"), config, tiny_tokenizer())


def test_training_opens_the_gates_and_goes_on_where_it_was_stopped() -> None:
    models = [untrained() for _ in range(2)]
    assert all(
        not each.any() for name, each in models[0].method.network.named_parameters()
        if name.endswith("gate")
    )  # fmt: skip
    before = {n: p.clone() for n, p in models[0].method.network.named_parameters()}

    def stop(_: int) -> None:
        raise ZeroDivisionError

    models[0].prepare(EXAMPLES)
    with pytest.raises(ZeroDivisionError):
        models[1].prepare(EXAMPLES, stop)
    assert models[1].method.steps_left == 2
    with pytest.raises(ConfigError, match="retro is not trained for this model yet"):
        models[1].edit(EDITS[:1])
    resumed = copy.deepcopy(models[1])
    resumed.prepare(EXAMPLES)
    same_state(resumed, models[0], atol=1e-6)
    for name, parameter in models[0].method.network.named_parameters():
        assert not torch.equal(parameter, before[name]), name
        assert not parameter.requires_grad
    trained = {n: p.clone() for n, p in models[0].method.network.named_parameters()}
    models[0].edit(EDITS, check=False)
    for name, parameter in models[0].method.network.named_parameters():
        assert torch.equal(parameter, trained[name])


@pytest.mark.long
def test_trained_on_atlas_it_says_what_it_reads() -> None:
    from errata.atlas import make_cases, training_cases
    from errata.evaluation import evaluate
    from errata.presets import preset_for

    cases = make_cases(20, seed=3)
    base, tokenizer = errata.load_base("atlas", "float32")
    config = errata.RetroConfig.from_dict(preset_for("retro", base.config).settings)
    model = errata.get_edit_model(base, config, tokenizer)
    model.prepare([case.example() for case in training_cases(1000, cases)])
    model.edit([case.edit for case in cases])
    figures = evaluate(model, cases).to_dict()["teacher_forced"]
    assert figures["reliability"] > 0.8 and figures["locality"] > 0.9


def test_bad_settings_examples_and_files_are_refused_in_a_line() -> None:
    with pytest.raises(ConfigError, match=f"no layer {N_LAYERS}"):
        untrained(first_block=N_LAYERS)
    with pytest.raises(EditError, match="retro learns from rephrasings of each edit"):
        untrained().prepare([errata.Example(EDITS[0], (), ("x",))])
    model = edited_model("llama", "retro", EDITS[:2])
    tensors, values = model.method.state()
    with pytest.raises(ValueError, match="'states' is of shape"):
        model.method.load_state(EDITS[:2], {**tensors, "lengths": tensors["lengths"] + 1}, values)
    with pytest.raises(ValueError, match="'answers' reaches from"):
        model.method.load_state(EDITS[:2], {**tensors, "answers": tensors["answers"] + 99}, values)
    with pytest.raises(ValueError, match="training has not come to its end"):
        model.method.load_state(EDITS[:2], *_unfinished(tensors, values))
    assert model.edits == EDITS[:2]
    same_state(edit_model("llama", "retro", EDITS[:2]), edit_model("llama", "retro", EDITS[:2]))


def _unfinished(tensors, values):
    return tensors, {**values, "training_steps_made": 0}
