"""SERAC: what training teaches, which model answers, and a small model in the host's place."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from edited import EDITS, EXAMPLES, edit_model, logits_of
from families import tiny_model, tiny_tokenizer

import errata
from errata import Edit, EditModel
from errata.atlas import make_cases, training_cases
from errata.errors import ConfigError, EditError
from errata.lm import LM, prompt_tokens
from errata.methods.recognition.serac.scope_classifier import ScopeClassifier
from errata.methods.recognition.serac.small_model import SmallModelPatch

PROMPTS = [
    "Where is the tower?",
    "x",
    "The author of the book was",
    "In the city of London stands the",
]
CONTEXTS = {
    PROMPTS[0]: ("The tower is north. ",),
    PROMPTS[2]: ("New Fact: she wrote. ", "The end. "),
}


def test_the_classifiers_loss_is_balanced_cross_entropy():
    torch.manual_seed(0)
    scope = ScopeClassifier(6, 4, seed=1).double()
    edit, near, far = (
        torch.randn(6).double(),
        torch.randn(3, 6).double(),
        torch.randn(5, 6).double(),
    )

    def similarity(row):
        return torch.exp(
            -scope.log_sharpness.exp() * (scope.weight @ row - scope.weight @ edit).square().sum()
        )

    inside = torch.stack([-similarity(row).log() for row in near]).mean()
    outside = torch.stack([-(1 - similarity(row)).log() for row in far]).mean()
    torch.testing.assert_close(scope.loss(edit, near, far), inside + outside, rtol=1e-9, atol=1e-9)


@pytest.mark.long
def test_training_lowers_both_losses_and_tells_scopes_apart_on_held_out_cases():
    """On the bundled model: cases it was not trained on, before and after."""
    held_out = make_cases(8, seed=3)
    examples = [case.example() for case in training_cases(60, held_out)]
    base, tokenizer = errata.load_base("atlas", "float32")
    config = errata.method_class("serac").config_class(
        layer=3, training_steps=20, batch=4, lr=1e-2, scope_lr=1e-2
    )
    model = EditModel(base, config, tokenizer)

    def losses():
        judged = [case.example() for case in held_out]
        with torch.no_grad():
            scope = sum(float(model.method.scope_loss(e)) for e in judged) / len(judged)
            return scope, sum(
                float(model.method.edit_loss(e, e.rephrases[0])) for e in judged
            ) / len(judged)

    def right():
        """Shares: a rephrase is in its own edit's scope; another prompt is in nobody's."""
        model.edit([case.edit for case in held_out], check=False)
        with model.disable_edits():
            own = model.method.similarities([case.rephrases[0] for case in held_out])
            others = model.method.similarities(
                [probe.prompt for case in held_out for probe in case.locality]
            )
        model.undo(*(case.edit.id for case in held_out))
        best, which = own.max(1)
        inside = (best >= 0.5) & (which == torch.arange(len(held_out)))
        return inside.float().mean().item(), (others.amax(1) < 0.5).float().mean().item()

    untrained = losses()
    model.method.training.steps_made = config.training_steps  # so that it may write untrained
    before = right()
    model.method.training.steps_made = 0
    model.prepare(examples)
    trained, after = losses(), right()
    assert trained[0] < 0.8 * untrained[0] and trained[1] < 0.9 * untrained[1], (untrained, trained)
    assert sum(after) >= sum(before) and min(after) > 0.85, (
        before,
        after,
    )  # the host's states tell much by themselves


def in_scope(model, prompts):
    with model.disable_edits():
        return (
            model.method.similarities(prompts).amax(1) >= model.method.config.threshold
        ).tolist()


def test_in_scope_the_counterfactual_model_answers_out_of_scope_the_host_bit_for_bit():
    model = edit_model("llama", "serac", EDITS[:3], threshold=0.99999)
    asked = [EDITS[0].prompt, "x", EDITS[1].prompt, "In the city of"]
    assert in_scope(model, asked) == [True, False, True, False]
    base = LM(tiny_model("llama"), tiny_tokenizer())
    for adapter in model.method.counterfactual.adapters.values():
        assert adapter[1].any(), "trained"
    for prompt, inside in zip(asked, in_scope(model, asked), strict=True):
        with torch.no_grad():
            edited = model.lm.run(model.lm.prompt_batch([prompt])).logits[0, -1]
            plain = base.run(base.prompt_batch([prompt])).logits[0, -1]
        if not inside:
            assert torch.equal(edited, plain)
            continue
        edit = next(edit for edit in EDITS if edit.prompt == prompt)
        merged = tiny_model("llama")  # the adapters worked into the weights, the edit read as text
        for path, (down, up) in model.method.counterfactual.adapters.items():
            merged.get_submodule(path).weight.data += (up @ down).detach()
        reader = LM(merged, tiny_tokenizer())
        with torch.no_grad():
            expected = reader.run(
                reader.prompt_batch([f"New Fact: {edit.prompt} {edit.target}.\nPrompt: {prompt}"])
            ).logits[0, -1]
        torch.testing.assert_close(edited, expected, rtol=0, atol=1e-4)


def test_the_later_of_two_edits_of_one_prompt_is_read():
    model = edit_model("llama", "serac")
    model.edit([EDITS[0], Edit(EDITS[0].prompt, "York", "France", id="later")], check=False)
    with model.disable_edits():
        ((context,),) = model.method._contexts([EDITS[0].prompt])
    assert "York" in context
    model.undo("later")
    with model.disable_edits():
        ((context,),) = model.method._contexts([EDITS[0].prompt])
    assert "Rome" in context


def small_model():
    small = tiny_model("gpt2")
    for parameter in small.parameters():
        parameter.data *= 1.5
    return small


def oracle(small, prompt, new):
    """The small model asked with the context in front, greedily; the host where there is none."""
    text = "".join(CONTEXTS.get(prompt, ())) + prompt
    model = small if prompt in CONTEXTS else tiny_model("llama")
    lm = LM(model, tiny_tokenizer())
    ids = lm.encode_prompt(text)
    front = len(ids)
    for _ in range(new):
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1].clone()
        logits[list(lm.end_ids)] = -torch.inf
        ids = [*ids, int(logits.argmax())]
    return ids[front:]


@pytest.fixture
def stand_in():
    lm = LM(tiny_model("llama"), tiny_tokenizer())
    patch = SmallModelPatch(
        small_model(), lambda prompts: [CONTEXTS.get(prompt, ()) for prompt in prompts]
    )
    patch.install(lm)
    yield lm, patch
    patch.remove()


def generated(lm, prompts, **options):
    """Six new ids each."""
    batch = lm.prompt_batch(prompts)
    options = {
        "max_new_tokens": 6,
        "min_new_tokens": 6,
        "pad_token_id": 0,
        "do_sample": False,
        **options,
    }
    with prompt_tokens(batch.prompt_mask):
        out = lm.model.generate(batch.input_ids, attention_mask=batch.attention_mask, **options)
    return out[:, batch.input_ids.shape[1] :].tolist()


@pytest.mark.parametrize("options", [{}, {"use_cache": False}], ids=["cache", "no cache"])
def test_a_stand_in_answers_token_for_token(stand_in, options):
    lm, patch = stand_in
    said = generated(lm, PROMPTS, **options)
    small = patch.small
    for prompt, ids in zip(PROMPTS, said, strict=True):
        assert ids == oracle(small, prompt, 6), prompt


def test_a_stand_in_with_beams_is_the_same_alone_and_in_a_batch(stand_in):
    lm, _ = stand_in
    options = {"num_beams": 3, "num_return_sequences": 2}
    found = []
    for prompts in (PROMPTS, *([prompt] for prompt in PROMPTS)):
        found += [generated(lm, prompts, use_cache=cached, **options) for cached in (True, False)]
    assert (
        found[0]
        == found[1]
        == [ids for alone in found[2::2] for ids in alone]
        == [ids for alone in found[3::2] for ids in alone]
    )


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_stand_ins_scores_are_the_small_models(stand_in, side):
    lm, patch = stand_in
    small = LM(patch.small, lm.tokenizer)
    scores = lm.score([(prompt, "two brothers in London") for prompt in PROMPTS], side=side)
    host = LM(tiny_model("llama"), lm.tokenizer)
    for prompt, score in zip(PROMPTS, scores, strict=True):
        reader = small if prompt in CONTEXTS else host
        (expected,) = reader.score(
            [("".join(CONTEXTS.get(prompt, ())) + prompt, "two brothers in London")]
        )
        assert score.loss == pytest.approx(expected.loss, abs=1e-4)


def test_a_stand_in_gives_the_loss_of_its_own_logits(stand_in):
    lm, _ = stand_in
    front = lm.encode_prompt(PROMPTS[0])
    row = lm.encode(PROMPTS[0], "north")
    ids = torch.tensor([row.ids])
    labels = torch.tensor([[-100] * len(front) + list(row.ids[len(front) :])])
    with torch.no_grad():
        loss = float(lm.model(input_ids=ids, labels=labels).loss)
    assert loss == pytest.approx(
        lm.score([(PROMPTS[0], "north")])[0].loss, abs=1e-4
    ) and math.isfinite(loss)


def test_named_small_models_are_trained_saved_and_loaded(tmp_path):
    """The classifier reads with one small model, another answers; what was learned is in the
    artifact.
    """
    tokenizer = tiny_tokenizer()
    for name, model in (("encoder", tiny_model("opt")), ("answers", small_model())):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    settings = {
        "classifier": str(tmp_path / "encoder"),
        "counterfactual": str(tmp_path / "answers"),
        "threshold": 0.999,
    }
    model = edit_model("llama", "serac", EDITS[:2], **settings)
    trained = model.method.counterfactual.model.state_dict()
    assert any(
        not torch.equal(trained[name], tensor)
        for name, tensor in small_model().state_dict().items()
    )
    before = logits_of(model, model.lm)
    model.save_pretrained(tmp_path / "edited")
    loaded = EditModel.from_pretrained(tiny_model("llama"), tmp_path / "edited", tokenizer)
    assert torch.equal(logits_of(loaded, loaded.lm), before)
    small = LM(copy.deepcopy(loaded.method.counterfactual.model), tokenizer)
    said = loaded.lm.score([(EDITS[0].prompt, "Rome")])[0].loss
    read = f"New Fact: {EDITS[0].prompt} {EDITS[0].target}.\nPrompt: {EDITS[0].prompt}"
    assert said == pytest.approx(small.score([(read, "Rome")])[0].loss, abs=1e-4)


def test_bad_input(tmp_path):
    with pytest.raises(ConfigError, match=r"classifier is .*no such model is at hand"):
        edit_model("llama", "serac", classifier=str(tmp_path / "nothing"))
    tiny_model("gpt2").save_pretrained(tmp_path / "other")
    tiny_tokenizer("sentencepiece").save_pretrained(tmp_path / "other")
    with pytest.raises(ConfigError, match="vocabulary is another"):
        edit_model("llama", "serac", counterfactual=str(tmp_path / "other"))
    with pytest.raises(ConfigError, match="threshold is 2"):
        edit_model("llama", "serac", threshold=2)
    config = errata.method_class("serac").config_class(training_steps=2)
    model = EditModel(tiny_model("llama"), config, tiny_tokenizer())
    with pytest.raises(ConfigError, match="errata prepare"):
        model.edit(EDITS[:1])
    with pytest.raises(EditError, match="rephrases"):
        model.prepare([errata.Example(EXAMPLES[0].edit)])
