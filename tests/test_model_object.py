"""`EditModel` as an `nn.Module` that others hold, copy, move and call like the model it edits."""

from __future__ import annotations

import copy
import inspect
import pickle
from functools import cache
from itertools import product

import pytest
import torch
from edited import (
    EDITS,
    KINDS,
    LIKE_ANOTHER,
    PROMPTS,
    edit_model,
    edited_model,
    logits_of,
    same_state,
)
from families import tiny_model, tiny_tokenizer
from grid import grid, patch_kind
from torch import nn
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel, pipeline
from transformers.utils import PushToHubMixin

import errata
from errata import EditModel, FineTuningConfig
from errata.errors import ConfigError, UsageError
from errata.lm import LM
from errata.methods import METHODS as REGISTERED
from errata.methods import method_class
from errata.methods.base import Method
from errata.model.delegation import HARMLESS, INSTEAD

METHODS = grid(
    "method settings",
    KINDS,
    lambda method, settings: {method} - LIKE_ANOTHER,
    [name for name, _ in KINDS],
)
HOOKED = grid(
    "method settings",
    KINDS,
    lambda method, settings: {patch_kind(method)},
    [name for name, _ in KINDS],
)
"""A method for each way in which patches hook a model."""
AROUND = grid(
    "method settings",
    KINDS,
    lambda method, settings: {method_class(method).phase},
    [name for name, _ in KINDS],
)
"""A method for each place where the knowledge ends up."""
SOME_METHODS = ("ft", "folio", "wise", "rag", "adapter", "prefix-tuning")
SOME = grid("method", [(each,) for each in SOME_METHODS], lambda each: {method_class(each).phase})


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    said = str(error.value)
    assert said and "\n" not in said
    return said


# it is a module


@SOME
def test_it_is_a_module_around_the_base_model(method):
    model = edited_model("llama", method, EDITS[:3])
    assert isinstance(model, nn.Module) and isinstance(model, PushToHubMixin)
    assert model.get_submodule("base") is model.base is model.get_base_model()
    assert next(model.parameters()).device == model.device == torch.device("cpu")
    assert {name for name, _ in model.named_parameters()} == {
        f"base.{name}" for name, _ in model.base.named_parameters()
    }
    edited = logits_of(model, model.lm)
    for verb in ("eval", "cpu", "float"):
        assert getattr(model, verb)() is model
    assert (
        model.to("cpu") is model
        and model.train(False) is model
        and model.requires_grad_(False) is model
    )
    assert (
        torch.equal(logits_of(model, model.lm), edited)
        and not model.training
        and not model.base.training
    )


@pytest.mark.parametrize("verb", ["train", "requires_grad_"])
def test_it_is_not_trained(verb):
    model = edited_model("llama", "ft", EDITS[:1])
    with pytest.raises(ConfigError, match="merge_and_unload") as error:
        getattr(model, verb)()
    one_line(error)
    assert (
        not model.training
        and not model.base.training
        and not any(p.requires_grad for p in model.parameters())
    )


@SOME
def test_forward_goes_through_the_edits(method):
    """Called as `model.forward(...)` it skipped what hangs on the base model's own call."""
    model = edited_model("llama", method, EDITS[:3])
    batch = model.lm.prompt_batch(PROMPTS[:2])
    given = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    with torch.no_grad():
        said, called = model.forward(**given).logits, model(**given).logits
        assert torch.equal(said, called) and not torch.equal(
            called, tiny_model("llama")(**given).logits
        )
    seen = []
    handle = model.register_forward_hook(lambda *_: seen.append(1))
    with torch.no_grad():
        model(**given)
    handle.remove()
    assert seen == [1]


@SOME
def test_a_pipeline_gives_the_edited_answers(method):
    model = edited_model("llama", method, EDITS[:3])
    say = pipeline("text-generation", model=model, tokenizer=tiny_tokenizer(), device="cpu")
    for prompt in PROMPTS[:3]:
        (said,) = say(prompt, max_new_tokens=6, do_sample=False, return_full_text=False)
        assert said["generated_text"].strip() == model.ask(prompt, max_new_tokens=6)


@METHODS
def test_moved_to_another_type_it_is_as_if_loaded_there(method, settings, tmp_path):
    model = edited_model("llama", method, EDITS[:3], **settings)
    model.save_pretrained(tmp_path)
    loaded = EditModel.from_pretrained(
        tiny_model("llama").to(torch.bfloat16), tmp_path, tiny_tokenizer()
    )
    assert model.to(torch.bfloat16) is model and model.dtype == torch.bfloat16
    assert torch.equal(logits_of(model, model.lm), logits_of(loaded, loaded.lm))
    same_state(model, loaded)
    model.edit(EDITS[3:4], check=False)
    loaded.edit(EDITS[3:4], check=False)
    same_state(model, loaded)
    with model.disable_edits():
        weights = tiny_model("llama").to(torch.bfloat16).state_dict()
        assert all(
            torch.equal(tensor, weights[name]) for name, tensor in model.base.state_dict().items()
        )


@SOME
def test_a_base_model_that_was_moved_away_from_its_edits_is_told(method):
    model = edited_model("llama", method, EDITS[:3])
    model.base.to(torch.bfloat16)
    for call in (
        lambda: model.ask("x"),
        lambda: model.edit(EDITS[3]),
        lambda: model(torch.tensor([[5]])),
        lambda: model.to(torch.bfloat16),
    ):
        with pytest.raises(
            ConfigError, match=r"was float32 on cpu and is now bfloat16 on cpu.*its own to\(\)"
        ) as error:
            call()
        one_line(error)
    lm = LM(tiny_model("llama").to(torch.bfloat16), tiny_tokenizer())
    assert torch.equal(logits_of(model.unload(), lm), logits_of(lm.model, lm))


def test_the_verbs_of_peft():
    model = edited_model("llama", "folio", EDITS[:2])
    tensors, _ = model.method.state()
    found = model.state_dict()
    assert found.keys() == tensors.keys() and all(
        torch.equal(found[name], tensors[name]) for name in tensors
    )
    parent = nn.ModuleDict({"edited": model})
    assert set(parent.state_dict()) == {f"edited.{name}" for name in tensors}
    with pytest.raises(ConfigError, match="from_pretrained"):
        model.load_state_dict(found)


@METHODS
def test_merged_for_good_or_told_why_not(method, settings):
    model = edited_model("llama", method, EDITS[:3], **settings)
    with torch.no_grad():
        edited = logits_of(model, model.lm)
    if method_class(method).weight_changes is Method.weight_changes:
        with pytest.raises(ConfigError, match="save_pretrained") as error:
            model.merge_and_unload()
        one_line(error)
        assert torch.equal(logits_of(model, model.lm), edited), "it goes on"
        return
    base = model.merge_and_unload()
    assert base is model.base and type(base) is type(tiny_model("llama"))
    torch.testing.assert_close(
        logits_of(base, model.lm), edited, rtol=0, atol=0 if method != "lora" else 1e-4
    )
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in base.modules())
    with pytest.raises(ConfigError, match="unloaded"):
        model.ask("x")


def test_dora_is_no_sum():
    pytest.importorskip("peft")
    model = edit_model("llama", "lora", EDITS[:1], kind="dora")
    with pytest.raises(ConfigError, match="dora is no sum"):
        model.merge_and_unload()


# what is the base model's


def general_methods() -> list[str]:
    """Every public method that all models of transformers have and that are not plain
    `nn.Module`s'.
    """
    found = {
        name
        for kind in (PreTrainedModel, GenerationMixin)
        for name, member in inspect.getmembers(kind, callable)
        if not name.startswith("_") and not inspect.isclass(member) and not hasattr(nn.Module, name)
    }
    return sorted(found)


@pytest.fixture(scope="module")
def model():
    return edited_model("llama", "ft", EDITS[:1])


@pytest.mark.parametrize("name", general_methods())
def test_what_every_model_can_do_is_ours_or_harmless_or_refused(model, name):
    found = getattr(model, name)
    if name in HARMLESS:
        assert found == getattr(model.base, name) or name == "loss_function"
    elif hasattr(EditModel, name):
        assert getattr(found, "__self__", None) in (model, EditModel)
    else:
        with pytest.raises(
            ConfigError, match=f"^{name} is not possible on an edited model: .+"
        ) as error:
            found()
        one_line(error)


def test_what_is_named_exists():
    known = dir(PreTrainedModel) + dir(GenerationMixin)
    assert (
        set(HARMLESS) <= {*known}
        and set(INSTEAD) <= {*known, "set_use_kernels"}
        and not HARMLESS & set(INSTEAD)
    )


def test_data_of_the_base_model_is_passed_on():
    model = edited_model("llama", "ft", EDITS[:1])
    assert model.config is model.base.config and model.dtype == torch.float32
    assert (
        model.lm_head is model.base.lm_head
        and model.get_input_embeddings() is model.base.get_input_embeddings()
    )
    assert model.num_parameters() == model.base.num_parameters() and model.can_generate()
    model.generation_config = GenerationConfig(max_new_tokens=3, eos_token_id=2, pad_token_id=0)
    assert model.base.generation_config is model.generation_config
    ids = model.lm.prompt_batch(PROMPTS[0]).input_ids
    assert model.generate(ids).shape[1] <= ids.shape[1] + 3
    assert not hasattr(model, "no_such_thing")


@HOOKED
def test_embeddings_instead_of_ids_are_right_or_refused(method, settings):
    model = edited_model("llama", method, EDITS[:3], **settings)
    batch = model.lm.prompt_batch(PROMPTS[:3])
    embedded = model.get_input_embeddings()(batch.input_ids)
    given = {"inputs_embeds": embedded, "attention_mask": batch.attention_mask}
    if model.method.reads_text:
        for call in (model, model.forward, model.generate):
            with pytest.raises(ConfigError, match="give input_ids") as error:
                call(**given)
            one_line(error)
        return
    places = {"position_ids": batch.position_ids}
    with torch.no_grad():
        wanted = model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, **places
        ).logits[:, -1]
        torch.testing.assert_close(
            model(**given, **places).logits[:, -1], wanted, rtol=0, atol=1e-4
        )


def test_weights_that_are_not_in_memory_are_told():
    accelerate = pytest.importorskip("accelerate")
    base = tiny_model("llama")
    accelerate.cpu_offload(base, execution_device=torch.device("cpu"))
    with pytest.raises(ConfigError, match=r"not in memory.*device_map") as error:
        EditModel(base, FineTuningConfig(), tiny_tokenizer())
    one_line(error)


def test_a_base_model_made_in_inference_mode_is_told():
    with torch.inference_mode():
        base = type(tiny_model("llama"))(tiny_model("llama").config)
    with pytest.raises(ConfigError, match="inference_mode") as error:
        EditModel(base, FineTuningConfig(), tiny_tokenizer())
    one_line(error)


def test_what_is_no_base_model_is_told():
    model, config, tokenizer = (
        edited_model("llama", "ft", EDITS[:1]),
        FineTuningConfig(),
        tiny_tokenizer(),
    )
    calls = [
        (model, config, tokenizer, "base: expected a PreTrainedModel, got EditModel"),
        (None, config, tokenizer, "base: expected a PreTrainedModel, got NoneType"),
        (nn.Sequential(), config, tokenizer, "base: expected a PreTrainedModel, got Sequential"),
        (tiny_model("llama"), tokenizer, config, "config: expected a MethodConfig"),
        (tiny_model("llama"), config, None, "tokenizer: expected"),
    ]
    for *given, said in calls:
        with pytest.raises(UsageError, match=said) as error:
            EditModel(*given)
        one_line(error)
    assert model.ask(PROMPTS) == model.ask(PROMPTS)


@pytest.mark.long
def test_a_compiled_model_is_no_base_model():
    compiled = torch.compile(tiny_model("llama"))
    with pytest.raises(UsageError, match="expected a PreTrainedModel, got OptimizedModule"):
        EditModel(compiled, FineTuningConfig(), tiny_tokenizer())


# copies


@HOOKED
def test_a_copy_answers_the_same_and_is_its_own(method, settings):
    model = edited_model("llama", method, EDITS[:3], **settings)
    edited, answers = logits_of(model, model.lm), model.ask(PROMPTS, max_new_tokens=6)
    copied, unpickled = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    for other, change in (
        (copied, lambda: copied.edit(EDITS[3], check=False)),
        (unpickled, lambda: unpickled.undo(EDITS[0].id)),
    ):
        assert isinstance(other, EditModel) and other.base is not model.base
        assert torch.equal(logits_of(model, model.lm), edited), "copying changed the model"
        assert (
            torch.equal(logits_of(other, other.lm), edited)
            and other.ask(PROMPTS, max_new_tokens=6) == answers
        )
        same_state(other, model)
        change()
        assert torch.equal(logits_of(model, model.lm), edited) and model.edits == EDITS[:3], (
            "the copy changed the original"
        )
        with other.disable_edits():
            base = tiny_model("llama").state_dict()
            assert all(
                torch.equal(tensor, base[name]) for name, tensor in other.base.state_dict().items()
            )


def test_saved_by_torch_and_copied_while_disabled(tmp_path):
    model = edited_model("llama", "rag", EDITS[:3])
    edited = logits_of(model, model.lm)
    torch.save(model, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    assert torch.equal(logits_of(loaded, loaded.lm), edited)
    with model.disable_edits():
        other = copy.deepcopy(model)
        assert not torch.equal(logits_of(model, model.lm), edited)
    assert torch.equal(logits_of(other, other.lm), edited)
    assert copy.copy(model).base is not model.base, "two models on one base would edit each other"


# one text is one prompt


def test_one_where_several_are_expected():
    model = edit_model("llama", "folio")
    assert model.edit(EDITS[0]).results[0].edit == EDITS[0]
    model.edit(iter(EDITS[1:3]), check=False)
    assert model.ask(PROMPTS[0]) == model.ask([PROMPTS[0]])[0] and isinstance(
        model.ask(PROMPTS[0]), str
    )
    assert model.ask_base(PROMPTS[0]) == model.ask_base((PROMPTS[0],))[0]
    assert model.explain(PROMPTS[0]) == model.explain([PROMPTS[0]])[0]
    assert model.lm.generate(PROMPTS[0]) == model.lm.generate([PROMPTS[0]])[0]
    assert model.lm.prompt_batch(PROMPTS[0]).input_ids.shape[0] == 1
    assert model.conflicts(errata.Edit(EDITS[0].prompt, "York", "France")) == model.conflicts(
        [errata.Edit(EDITS[0].prompt, "York", "France")]
    )
    case = errata.Case(EDITS[0])
    assert errata.evaluate(model, case).edits == 1 == errata.evaluate(model, [case]).edits
    model.undo([EDITS[0].id, EDITS[1].id])
    model.undo(EDITS[2].id)
    assert model.edits == []


@pytest.mark.parametrize(
    "call",
    [
        lambda model: model.ask(["x", 3]),
        lambda model: model.ask(None),
        lambda model: model.ask_base(7),
        lambda model: model.explain([None]),
        lambda model: model.lm.generate(b"x"),
        lambda model: model.lm.score([("a", "b"), "ab"]),
        lambda model: model.lm.score(("a", "b")),
        lambda model: model.lm.prompt_batch([["x"]]),
        lambda model: model.edit("The capital of France is"),
        lambda model: model.edit([{"prompt": "x", "target": "y"}]),
        lambda model: model.conflicts(["x"]),
        lambda model: model.prepare(["x"]),
        lambda model: model.undo(3),
        lambda model: model.undo([3]),
        lambda model: errata.evaluate(model, EDITS[0]),
        lambda model: errata.evaluate(model, EDITS),
    ],
)
def test_what_is_neither_one_nor_several_is_told(call):
    with pytest.raises(UsageError, match="expected") as error:
        call(edit_model("llama", "folio"))
    one_line(error)


# every config is at hand


def test_every_config_is_a_public_name():
    wanted = {method_class(name).config_class.__name__ for name in REGISTERED}
    assert wanted <= set(errata.__all__) and wanted <= set(dir(errata))
    for name in REGISTERED:
        config = method_class(name).config_class
        assert getattr(errata, config.__name__) is config


# answers do not hang on what generation_config says


HOSTILE = [
    {"num_return_sequences": 2, "do_sample": True},
    {"return_dict_in_generate": True, "output_scores": True},
    {"num_beams": 3},
    {"num_beams": 2, "num_return_sequences": 2},
    {"do_sample": True, "temperature": 5.0},
    {"max_length": 8},
    {"min_new_tokens": 12},
    {"repetition_penalty": 9.0, "no_repeat_ngram_size": 1},
    {"forced_eos_token_id": 2, "suppress_tokens": [5, 6, 7]},
    {"cache_implementation": "static"},
]


@cache
def undisturbed(method):
    """(report, answers, base answers, figures) of a model whose generation_config says nothing."""
    return told_by(edit_model("llama", method))


def told_by(model: EditModel) -> tuple[object, ...]:
    report = model.edit(EDITS[:1])
    case = errata.Case(EDITS[0], rephrases=("France's capital?",))
    return (
        report,
        model.ask(PROMPTS[:3], max_new_tokens=6),
        model.ask_base(PROMPTS[:3], max_new_tokens=6),
        errata.evaluate(model, case, max_new_tokens=6).to_dict(),
    )


@grid(
    "method settings",
    [*product(("ft", "folio"), HOSTILE)],
    lambda method, settings: {*settings},
    [f"{method}-{' '.join(settings)}" for method, settings in product(("ft", "folio"), HOSTILE)],
)
def test_ask_and_edit_do_not_go_by_the_generation_config(method, settings):
    model = edit_model("llama", method)
    for name, value in settings.items():
        setattr(model.base.generation_config, name, value)
    assert told_by(model) == undisturbed(method)
    assert model.edits == EDITS[:1]
    assert all(
        getattr(model.base.generation_config, name) == value for name, value in settings.items()
    )


def test_generate_honours_the_generation_config():
    model = edited_model("llama", "folio", EDITS[:2])
    model.generation_config.num_return_sequences, model.generation_config.do_sample = 3, True
    assert (
        model.generate(model.lm.prompt_batch(PROMPTS[0]).input_ids, max_new_tokens=2).shape[0] == 3
    )
    for option in ({"num_return_sequences": 2}, {"return_dict_in_generate": True}):
        with pytest.raises(ConfigError, match=r"use model\.generate"):
            model.ask("x", **option)


def test_options_of_ask_count():
    model = edited_model("llama", "folio", EDITS[:2])
    ids = model.lm.prompt_batch(PROMPTS[-1]).input_ids
    long = model.ask(PROMPTS[-1], max_new_tokens=12)
    assert long.startswith(model.ask(PROMPTS[-1], max_new_tokens=4)) and long != model.ask(
        PROMPTS[-1], max_new_tokens=4
    )
    assert model.ask(PROMPTS[-1], max_length=ids.shape[1] + 4) == model.ask(
        PROMPTS[-1], max_new_tokens=4
    )
    assert model.ask(PROMPTS[-1], generation_config=GenerationConfig(max_new_tokens=12)) == long
    assert len(model.ask(PROMPTS[-1], max_new_tokens=1000)) > len(long), (
        "as much as the context has room for"
    )
    sampled = GenerationConfig(do_sample=True, temperature=50.0, max_new_tokens=12)
    torch.manual_seed(0)
    assert model.ask(PROMPTS[-1], generation_config=sampled) != long


def test_a_long_target_is_checked_whole():
    target = "the author of the book was born in London in the north of the country " * 2
    long = errata.Edit("Who?", target.strip(), "Who")
    model = edit_model("llama", "folio")
    assert len(model.lm.encode(long.prompt, long.target).ids) > 40
    report = model.edit([long, EDITS[0]])
    assert [each.success for each in report.results] == [True, True]
    assert report.results[0].answer == long.target


@grid(
    "token method",
    [*product(("</s>", "<s>", "<pad>", "<|im_end|>"), SOME_METHODS)],
    lambda token, method: {token, method},
)
def test_special_tokens_are_refused_before_anything_is_written(token, method):
    model = edited_model("llama", method, EDITS[:3])
    model.tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    before = logits_of(model, model.lm)
    for wrong in (
        errata.Edit("x is", f"one{token} two", "x"),
        errata.Edit(f"x {token}is", "one", "x"),
    ):
        with pytest.raises(errata.errors.EditError, match=r"holds the special token") as error:
            model.edit([EDITS[3], wrong])
        assert repr(token) in one_line(error)
    assert model.edits == EDITS[:3] and torch.equal(logits_of(model, model.lm), before)
    model.edit(errata.Edit("y is", "a < b and s> é 中", "y"), check=False)


# edits that are switched off stay off


@SOME
def test_nothing_switches_disabled_edits_on(method, tmp_path):
    model = edited_model("llama", method, EDITS[:3])
    base = LM(tiny_model("llama"), tiny_tokenizer())
    expected, edited = logits_of(base.model, base), logits_of(model, model.lm)
    calls = [
        lambda: model.explain("x"),
        lambda: model.conflicts(EDITS[3]),
        lambda: model.ask_base("In the city of"),
        lambda: model.save_pretrained(tmp_path / "a"),
        lambda: copy.deepcopy(model),
        lambda: model.state_dict(),
        lambda: model.to("cpu"),
    ]
    with model.disable_edits():
        for call in calls:
            try:
                call()
            except ConfigError as error:
                assert "nothing to explain" in str(error)
            assert torch.equal(logits_of(model, model.lm), expected)
        with model.disable_edits():
            pass
        assert torch.equal(logits_of(model, model.lm), expected)
        for wrong in (
            lambda: model.edit(EDITS[3]),
            lambda: model.undo(EDITS[0].id),
            lambda: model.prepare([errata.Example(EDITS[0])]),
        ):
            with pytest.raises(ConfigError, match="leave the block") as error:
                wrong()
            one_line(error)
            assert torch.equal(logits_of(model, model.lm), expected)
    assert torch.equal(logits_of(model, model.lm), edited) and model.edits == EDITS[:3]


@SOME
def test_after_unload_everything_is_refused_and_the_base_model_is_left_alone(method, tmp_path):
    model = edited_model("llama", method, EDITS[:3])
    base = model.unload()
    lm = LM(tiny_model("llama"), tiny_tokenizer())
    expected, ids = logits_of(lm.model, lm), torch.tensor([[5, 6]])
    calls = [
        lambda: model.ask("x"),
        lambda: model.ask_base("x"),
        lambda: model(ids),
        lambda: model.forward(ids),
        lambda: model.generate(ids),
        lambda: model.edit(EDITS[3]),
        lambda: model.undo(EDITS[0].id),
        lambda: model.explain("x"),
        lambda: model.conflicts(EDITS[3]),
        lambda: model.prepare([]),
        lambda: model.save_pretrained(tmp_path),
        lambda: model.disable_edits().__enter__(),
        lambda: model.to(torch.bfloat16),
        lambda: model.state_dict(),
        lambda: copy.deepcopy(model),
        lambda: pickle.dumps(model),
        lambda: model.merge_and_unload(),
        lambda: model.unload(),
        lambda: errata.evaluate(model, errata.Case(EDITS[0])),
    ]
    for call in calls:
        with pytest.raises(ConfigError, match="unloaded") as error:
            call()
        one_line(error)
        assert torch.equal(logits_of(base, lm), expected)
    assert model.edits == EDITS[:3], "what it held can be read, and written anew"


def test_unloaded_inside_a_block_it_stays_unloaded():
    model = edited_model("llama", "folio", EDITS[:2])
    with model.disable_edits():
        base = model.unload()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in base.modules())


# what the caller has around


@AROUND
def test_inference_mode_around_it_changes_nothing(method, settings, tmp_path):
    nothing_changes(torch.inference_mode(), method, settings, tmp_path)


@grid("method", [(method,) for method in SOME_METHODS], lambda method: {method_class(method).phase})
def test_no_grad_around_it_changes_nothing(method, tmp_path):
    nothing_changes(torch.no_grad(), method, {}, tmp_path)


def nothing_changes(around, method, settings, folder) -> None:
    """Edited, asked, loaded and copied within it, a model is what it is without."""
    plain = edited_model("llama", method, EDITS[:3], **settings)
    plain.save_pretrained(folder)
    wanted, answers = logits_of(plain, plain.lm), plain.ask(PROMPTS, max_new_tokens=6)
    model, other = edit_model("llama", method, **settings), tiny_model("llama")
    with around:
        model.edit(EDITS[:3])
        assert model.ask(PROMPTS, max_new_tokens=6) == answers
        batch = model.lm.prompt_batch(PROMPTS)
        model(batch.input_ids, attention_mask=batch.attention_mask)
        loaded = EditModel.from_pretrained(other, folder, tiny_tokenizer())
        assert loaded.ask(PROMPTS, max_new_tokens=6) == answers
        loaded = copy.deepcopy(loaded)
    assert torch.equal(logits_of(model, model.lm), wanted)
    for each in (model, loaded, plain):
        each.edit(EDITS[3], check=False)
        each.undo(EDITS[0].id)
    same_state(model, plain, 1e-5)
    same_state(loaded, plain, 1e-5)


@AROUND
def test_autocast_around_it(method, settings):
    """What is written is the same; what is asked goes through the model as the caller wants it."""
    plain = edited_model("llama", method, EDITS[:3], **settings)
    model = edit_model("llama", method, **settings)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model.edit(EDITS[:3])
        said = model.ask(PROMPTS, max_new_tokens=6)
        logits = logits_of(model, model.lm)
    same_state(model, plain)
    assert logits.isfinite().all() and len(said) == len(PROMPTS)
    assert torch.equal(logits_of(model, model.lm), logits_of(plain, plain.lm))


@SOME
def test_compiled_it_says_the_same(method):
    model = edited_model("llama", method, EDITS[:3])
    batch = model.lm.prompt_batch(PROMPTS)
    given = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    with torch.no_grad():
        wanted = model(**given).logits
        compiled = torch.compile(model, backend="eager")
        assert torch.equal(compiled(**given).logits, wanted)
        model.edit(EDITS[3], check=False)
        later = model(**given).logits
        assert torch.equal(compiled(**given).logits, later) and not torch.equal(later, wanted)
        model.compile(backend="eager")
        assert torch.equal(model(**given).logits, later)


# cut off half-way


class Stop(BaseException):
    """Not an `Exception`: as from the keyboard."""


def stop_at(count: int):
    """A `progress` that stops at so many edits."""
    done = 0

    def progress(more: int) -> None:
        nonlocal done
        done += more
        if done >= count:
            raise Stop

    return progress


def is_whole(model: EditModel, method: str, settings: dict) -> None:
    """The model is one that was given its ledger, and nothing else."""
    same = edited_model("llama", method, model.edits, **settings)
    same_state(model, same, 1e-5)
    torch.testing.assert_close(
        logits_of(model, model.lm), logits_of(same, same.lm), rtol=0, atol=1e-4
    )


@HOOKED
def test_an_edit_cut_off_by_progress_leaves_whole_edits(method, settings):
    model = edited_model("llama", method, EDITS[:3], **settings)
    with pytest.raises(Stop):
        model.edit(EDITS[3:], progress=stop_at(1), check=False)
    assert model.edits[:3] == EDITS[:3] and model.edits == EDITS[: len(model.edits)]
    is_whole(model, method, settings)
    model.edit(EDITS[:5], check=False)
    assert model.edits[:5] == EDITS[:5]


@grid(
    "method settings verb",
    [(*kind, verb) for kind in KINDS for verb in ("edit", "undo")],
    lambda method, settings, verb: {(patch_kind(method), verb)},
    [f"{name}-{verb}" for name, _ in KINDS for verb in ("edit", "undo")],
)
def test_cut_off_in_the_middle_it_holds_what_it_says(method, settings, verb, monkeypatch):
    """A block of the model itself stops at its n-th call."""
    for at in (0, 20):
        model = edited_model("llama", method, EDITS[:3], **settings)
        calls = 0

        def stops(*_, at=at):
            nonlocal calls
            calls += 1
            if calls > at:
                raise Stop

        handles = [
            model.base.register_forward_pre_hook(stops),
            model.lm.architecture.block(model.base, 3).register_forward_pre_hook(stops),
        ]
        try:
            model.edit(EDITS[3:5], check=False) if verb == "edit" else model.undo(EDITS[1].id)
            finished = True
        except Stop:
            finished = False
        for handle in handles:
            handle.remove()
        if finished:
            break
        assert model.edits[:3] == EDITS[:3] and model.edits == EDITS[: len(model.edits)], at
        is_whole(model, method, settings)
    model.undo(EDITS[0].id)
