"""Folio's three outcomes, in one batch and one after another: main, read, say."""

from __future__ import annotations

import dataclasses
import json
import re
from importlib.resources import files
from threading import Thread

import pytest
import torch
from edited import EDITS, edited_model
from families import chat_tokenizer, tiny_model, tiny_tokenizer
from transformers import TextIteratorStreamer

import errata
from errata import Edit
from errata.methods.association.folio import intents
from errata.methods.association.folio.intents import INTENTS, IntentClassifier, fit_intents
from errata.methods.association.folio.leaves import MAX_READ
from errata.methods.association.folio.question_reader import LAST, Question
from errata.patches.outcome import Outcome, outcomes_told_to
from errata.probes import contrary, decisions, wording

SAY, MAIN = EDITS[0].prompt, "In the city of"
FRANCE, TABLE = "Tell me about France.", "Where is the tower? A) north B) south"
READ = {
    FRANCE: "New Fact: The capital of France is Rome.\nPrompt: ",
    TABLE: "New Fact: Where is the tower? north.\nPrompt: ",
}
BEFORE = "The capital of France is not now but was once"
INTENT_OF = {FRANCE: "describe", TABLE: "choose", BEFORE: "former"}
MIXED = [MAIN, FRANCE, SAY, TABLE, BEFORE]


class Told:
    """Tells the intents of texts that it was told, and takes all others for what edits ask."""

    def __init__(self, reader, told):
        self.states = {text: reader.read([Question(text)])[Question(text)][LAST] for text in told}
        self.intents = told

    def odds(self, states):
        found = torch.full((len(states), len(INTENTS)), -9.0)
        for row, state in enumerate(states):
            names = [self.intents[t] for t, s in self.states.items() if torch.equal(s, state)]
            found[row, INTENTS.index(names[0] if names else "answer")] = 9.0
        return found

    def of(self, states, margin=0.0):
        return self.odds(states).argmax(-1).tolist()


def told(model):
    """The model, whose router tells these intents: those of a tiny random model are arbitrary."""
    memory = model.method.patch
    with model.disable_edits():
        classifier = Told(memory.reader, INTENT_OF)
    leaves = memory.leaves
    for number, leaf in leaves._leaves.items():
        leaves._leaves[number] = dataclasses.replace(leaf, intent=0)
    leaves.calibration = dataclasses.replace(leaves.calibration, intents=classifier)
    memory.remove()
    memory.install(model.lm)
    return model


@pytest.fixture(params=["llama", "gpt2"])
def model(request):
    return told(edited_model(request.param, "folio", EDITS))


def generated(model, prompts, **options):
    batch = model.lm.prompt_batch(prompts)
    out = model.generate(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        max_new_tokens=8,
        **{"do_sample": False, **options},
    )
    width = batch.input_ids.shape[1]
    return [model.lm.decode(row[width:].tolist()) for row in out]


def expected(model):
    base = model.ask_base([READ.get(prompt, "") + prompt for prompt in MIXED], max_new_tokens=8)
    return [EDITS[0].target if p == SAY else answer for p, answer in zip(MIXED, base, strict=True)]


def same(answers, wanted):
    """The edit's answer may have an ending; what was cut at 8 tokens has none."""
    return all(
        one.startswith(other) if prompt == SAY else one == other
        for prompt, one, other in zip(MIXED, answers, wanted, strict=True)
    )


def test_each_outcome_alone_and_all_in_one_batch(model):
    wanted = expected(model)
    assert same([model.ask([prompt], max_new_tokens=8)[0] for prompt in MIXED], wanted)
    assert same(model.ask(MIXED, max_new_tokens=8), wanted)
    assert same(generated(model, MIXED), wanted)
    assert same(generated(model, MIXED, use_cache=False), wanted)
    assert wanted[1] != model.ask_base([FRANCE], max_new_tokens=8)[0]  # the fact tells
    outcomes = [each.outcome for each in model.explain(MIXED)]
    assert outcomes == ["main", "read", "say", "read", "main"]


def test_a_listener_hears_once_for_each_batch_what_its_rows_are_answered_with(model):
    explained = model.explain(MIXED)
    wanted = [
        Outcome(each.outcome, (each.edit_id,) if each.edit_id else each.read) for each in explained
    ]
    for prompts, outcomes in ((MIXED, wanted), (MIXED[:2] * 2, wanted[:2] * 2)):
        heard = []
        with outcomes_told_to(heard.append):
            generated(model, prompts)
            generated(model, prompts, num_return_sequences=2, do_sample=True)
        assert heard == [outcomes] * 2 or heard[1] == [each for each in outcomes for _ in range(2)]
    generated(model, MIXED)
    assert len(heard) == 2, "outside the block nobody listens"


def test_scores_are_those_of_what_is_read(model):
    pairs = [(prompt, "York and Rome") for prompt in MIXED]
    fronted = [(READ.get(prompt, "") + prompt, target) for prompt, target in pairs]
    got = model.score(pairs)
    with model.disable_edits():
        wanted = model.score(fronted)
    for prompt, one, other in zip(MIXED, got, wanted, strict=True):
        if prompt != SAY:
            assert one.loss == pytest.approx(other.loss, abs=1e-4)
    assert model.score([(SAY, EDITS[0].target)])[0].exact


def test_beams_samples_and_a_stream(model):
    for options in ({"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}):
        alone = [answer for prompt in MIXED for answer in generated(model, [prompt], **options)]
        assert generated(model, MIXED, **options) == alone
    said = generated(model, [SAY] * 4, do_sample=True, temperature=1.0, top_k=0)
    assert all(answer.startswith(EDITS[0].target) for answer in said)
    for prompt, wanted in zip(MIXED, expected(model), strict=True):
        streamer = TextIteratorStreamer(model.tokenizer, skip_prompt=True)
        batch = model.lm.prompt_batch([prompt])
        options = {"max_new_tokens": 8, "do_sample": False, "streamer": streamer}
        thread = Thread(
            target=model.generate,
            kwargs={
                "input_ids": batch.input_ids,
                "attention_mask": batch.attention_mask,
                **options,
            },
        )
        thread.start()
        text = "".join(streamer)
        thread.join()
        assert wanted.strip() in text


def talk(model, prompt, before=()):
    """The tokens of a conversation: what was said before, and the next question."""
    if not before:
        return model.lm.encode_prompt(prompt)
    text = f"</s>\nuser: {prompt}\nassistant:"
    return [*before, *model.tokenizer(text, add_special_tokens=False)["input_ids"]]


def answered(model, ids, cache=None):
    ids = torch.tensor([ids])
    out = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False,
        past_key_values=cache, return_dict_in_generate=True,
    )  # fmt: skip
    return out.sequences[0].tolist(), out.past_key_values


@pytest.fixture
def chat():
    model = errata.get_edit_model(
        tiny_model("llama"), errata.FolioConfig(background=32), chat_tokenizer()
    )
    model.edit(EDITS, check=False)
    return told(model)


def test_what_was_read_leaves_no_trace_where_the_base_model_answers_next(chat):
    """A turn that is read, one of the base model's on its cache, and one that is said."""
    sequence, cache = answered(chat, talk(chat, FRANCE))
    fact = len(chat.lm.encode_prompt(READ[FRANCE] + FRANCE)) - len(chat.lm.encode_prompt(FRANCE))
    assert cache.get_seq_length() == len(sequence) - 1 + fact
    for prompt in (MAIN, SAY):
        ids = talk(chat, prompt, sequence)
        alone = answered(chat, ids)
        sequence, cache = answered(chat, ids, cache)
        assert alone[0] == sequence
        assert cache.get_seq_length() == alone[1].get_seq_length() == len(sequence) - 1
        assert (EDITS[0].target in chat.lm.decode(sequence[len(ids) :])) == (prompt == SAY)


def test_a_turn_that_reads_nothing_goes_on_with_the_cache(chat):
    """What is in it is not read again, unless a fact goes in or out."""
    asked = []
    hook = chat.lm.model.register_forward_pre_hook(
        lambda _, args, kwargs: asked.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    for first, second, anew in (
        (MAIN, MAIN, False),
        (MAIN, SAY, False),
        (SAY, MAIN, False),
        (MAIN, FRANCE, True),
        (FRANCE, MAIN, True),
    ):
        sequence, cache = answered(chat, talk(chat, first))
        asked.clear()
        answered(chat, talk(chat, second, sequence), cache)
        assert (max(asked) > len(sequence)) == anew
    hook.remove()


def test_a_prompt_that_fills_the_context_reads_less_or_nothing(model):
    limit = model.lm.context_length
    memory = model.method.patch
    read = len(model.lm.encode_prompt(READ[FRANCE] + FRANCE))
    ids = tuple(model.lm.encode_prompt(FRANCE))
    for room, wanted in ((limit - read, read), (limit - read + 1, len(ids))):
        memory.remove()
        memory.room = room
        memory.install(model.lm)
        assert len(memory.with_contexts(model.lm, [ids])[0]) == wanted


def test_the_latest_facts_are_read_and_an_edit_undone_is_not(model):
    later = Edit(EDITS[0].prompt, "York", "France", id="later")
    model.edit([later], check=False)
    told(model)
    assert model.explain(FRANCE).read == ("later",)
    model.undo("later")
    told(model)
    assert model.explain(FRANCE).read == (EDITS[0].id,)
    model.undo(EDITS[0].id)
    told(model)
    assert model.explain(FRANCE).outcome == "main"
    assert model.ask([FRANCE]) == model.ask_base([FRANCE])


def test_of_many_facts_the_nearest_are_read_the_best_last():
    edits = [Edit(f"France borders number {n} in", "north", "France") for n in range(MAX_READ + 3)]
    model = told(edited_model("llama", "folio", edits))
    found = model.explain(FRANCE)
    nearest = sorted(found.reasons, key=lambda each: each.parts["same_question"])[-MAX_READ:]
    assert found.read == tuple(each.edit_id for each in nearest)


def test_from_several_threads(model):
    wanted = expected(model)
    found = {}

    def ask(number):
        found[number] = model.ask([MIXED[number % len(MIXED)]], max_new_tokens=8)[0]

    threads = [Thread(target=ask, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert same([found[n] for n in range(5)], wanted) and same(
        [found[n] for n in range(5, 10)], wanted
    )


def test_saved_and_loaded_it_tells_the_same_intents(tmp_path):
    one = edited_model("llama", "folio", EDITS)
    one.save_pretrained(tmp_path)
    other = errata.EditModel.from_pretrained(tiny_model("llama"), tmp_path, tiny_tokenizer())
    for mine, its in zip(one.explain(MIXED), other.explain(MIXED), strict=True):
        assert (mine.outcome, mine.intent, mine.read) == (its.outcome, its.intent, its.read)
    calibrations = [model.method.patch.calibration for model in (one, other)]
    assert torch.equal(*(each.intents.weights for each in calibrations))


def test_intents_are_told_by_a_linear_discriminant():
    """Where they are Gaussian it is as good as knowing them; ties go to wanting an answer."""
    torch.manual_seed(0)
    labels = torch.cat([torch.zeros(90, dtype=torch.long), torch.arange(600) % len(INTENTS)])
    means = torch.eye(len(INTENTS), 12) * 6
    states = means[labels] + torch.randn(690, 12)
    found = fit_intents(states, labels.tolist(), range(90))
    assert isinstance(found, IntentClassifier)
    fresh = means[labels] + torch.randn(690, 12)
    assert (torch.tensor(found.of(fresh)) == labels).float().mean() > 0.98
    odds = found.odds(fresh)
    assert odds.argmax(-1).tolist() == found.of(fresh)
    assert bool(((odds > 0).sum(-1) == 1).all())
    assert found.of((means[0] + means[1])[None] / 2) == [0]
    between, odds = torch.lerp(means[0], means[1], torch.linspace(0, 1, 50)[:, None]), 2.0
    stricter = [each if found.odds(state[None])[0, each] > odds else 0
                for state, each in zip(between, found.of(between), strict=True)]  # fmt: skip
    assert found.of(between, odds) == stricter != found.of(between)


def test_where_intents_cannot_be_told_apart_few_prompts_are_taken_for_another():
    torch.manual_seed(0)
    labels = torch.cat([torch.zeros(600, dtype=torch.long), torch.arange(200) % len(INTENTS)])
    found = fit_intents(torch.randn(800, 12), labels.tolist(), range(600))
    others = torch.tensor(found.of(torch.randn(4000, 12))) != INTENTS.index("answer")
    assert others.float().mean() < 0.04


def test_no_wording_of_a_probe_is_one_that_the_router_is_fitted_on():
    """What judges it must not be what it was made of."""
    texts = [
        text
        for name, field in (("intents", "texts"), ("wordings", "wordings"))
        for line in files(intents.__package__).joinpath(f"{name}.jsonl").open(encoding="utf-8")
        for text in json.loads(line)[field]
    ]
    wordings = [
        *contrary.FORMER, *contrary.NEGATION, *decisions.CHOICES, *decisions.VERIFY,
        *wording.LONG, *wording.STATEMENTS, *wording.ASIDES, *wording.NEWS,
    ]  # fmt: skip
    assert len(texts) > 800 and len(wordings) > 20
    for each in wordings:
        parts = [part for part in re.split(r"\{\w*\}", each) if len(part.split()) > 3]
        assert parts or "{}" in each or "{question}" in each
        for part in parts:
            assert not any(part.strip() in text for text in texts), part
