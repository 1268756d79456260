"""Folio: what is said and how surely, router scores, order, splits and undo, conflicts."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter

import pytest
import torch
from edited import EDITS, edit_model, edited_model, logits_of, same_state
from families import tiny_model, tiny_tokenizer
from torch.nn import functional as F
from typer.testing import CliRunner

import errata
from errata import Edit
from errata.atlas import make_cases
from errata.cli import app
from errata.errors import ConfigError, EditError
from errata.lm.encoding import Row
from errata.methods.association.folio.calibrator import Calibrator
from errata.methods.association.folio.config import FolioConfig
from errata.methods.association.folio.leaf import EncodedPrompt
from errata.methods.association.folio.method import Folio
from errata.methods.association.folio.patch import FolioMemory
from errata.methods.association.folio.question_reader import QuestionReader, wordings
from errata.methods.association.folio.saying import with_said
from errata.methods.association.folio.warnings import warnings_of
from errata.patches.routed import MAIN
from errata.words.questions import (
    asked_of,
    last_question,
    names_answer,
    question_in,
    shared_form,
    without_subject,
)

CASES = make_cases(12, seed=3)
ANOTHER = CASES[5].edit.target
"""What atlas can say: its head has no direction for words that it never met."""


@pytest.fixture(scope="module")
def written():
    """Atlas with the cases' edits in."""
    base, tokenizer = errata.load_base("atlas", "float32")
    model = errata.get_edit_model(base, FolioConfig(), tokenizer)
    model.edit([case.edit for case in CASES], check=False)
    return model


def leaves(model):
    return {leaf.edit.id: leaf for leaf in model.method.patch.leaves}


def test_all_three_at_once(written):
    found = errata.evaluate(written, CASES)
    free = found.generated
    assert (
        free["reliability"] == 1.0 and free["generalization"] >= 0.95 and free["locality"] >= 0.99
    )


def test_what_is_said_has_the_probability_asked_for_and_the_rest_keeps_its_proportions():
    logits = torch.randn(2, 3, 50).double()
    places = [(0, 0, 7), (0, 2, 9), (1, 1, 0), (1, 2, 1)]
    logits[0, 2, 9] = 40.0  # surer than asked for
    for scale in (1.0, 0.25):
        said = with_said(logits, places, 0.9, scale)
        before, after = ((each.float() * scale).double().softmax(-1) for each in (logits, said))
        assert torch.equal(said[0, 1], logits[0, 1]) and torch.equal(said[1, 0], logits[1, 0])
        for row, column, token in (places[0], *places[2:]):
            assert after[row, column, token] == pytest.approx(0.9, abs=1e-5)
            others = torch.arange(50) != token
            torch.testing.assert_close(
                after[row, column, others] / 0.1,
                before[row, column, others] / (1 - before[row, column, token]),
                atol=1e-5,
                rtol=1e-4,
            )
        assert torch.equal(said[0, 2], logits[0, 2])


def test_the_second_sign_is_how_surely_the_same_is_asked(written):
    """Of the states in the middle of the base model's blocks, from its own hidden states, and of
    the words around the subject, from its input embeddings.
    """
    case, space = CASES[1], written.method.patch.calibration.space
    prompt, lm = case.rephrases[0], written.lm
    table = written.base.get_input_embeddings().weight.detach()

    def outside(text, subject):
        return lm.encode_piece(f" {' '.join(text.replace(subject, '').split())}")

    common = Counter(token for each in wordings() for token in outside(*each.question))
    states, texts = [], (case.edit.prompt, prompt)
    with written.disable_edits(), torch.no_grad():
        for text in texts:
            ids = torch.tensor([written.lm.encode_text(text)])
            read = written.base(ids, output_hidden_states=True)
            each = read.hidden_states[written.lm.architecture.n_layers // 2][0]
            words = outside(text, case.edit.subject)
            weights = torch.tensor([1e-3 / (1e-3 + common[w] / common.total()) for w in words])
            mean = (weights[:, None] * table[words]).sum(0) / weights.sum()
            states.append(torch.stack([each[-1], each[len(each) // 2 :].mean(0), mean]))
    told = written.explain([prompt])[0]
    assert told.edit_id == case.edit.id and told.reasons[0].edit_id == case.edit.id
    assert told.reasons[0].parts["same_question"] == pytest.approx(
        float(space.scores(*map(space.vectors, states), shared_form(*texts, case.edit.subject))),
        abs=1e-4,
    )
    assert told.reasons[0].score >= told.threshold
    assert written.explain([case.edit.prompt])[0].reasons[0].score == 1.0


@pytest.mark.parametrize(
    ("one", "other", "share"),
    [
        ("The mother of Ana Bo is", "The age of Ana Bo is", 3 / 4),
        ("The place of birth of Ana Bo is", "It rained. The age of Ana Bo is", 1 / 2),
        ("Who leads Ana Bo?", "Where does Ana Bo live?", 0),
        ("Ana Bo, in", "Ana Bo, in the town of", 1 / 4),
        ("Who leads Ana Bo?", "By whom is Ana Bo led?", 0),
        ("Who leads Ana Bo?", "who leads Ana Bo", 0),  # nothing else is asked
        ("Ana Bo", "Ana Bo is", 0),
        ("Ana Bo", "Ana Bo", 0),
    ],
)
def test_how_much_of_their_form_two_prompts_have_in_common(one, other, share):
    assert shared_form(one, other, "Ana Bo") == pytest.approx(share)
    assert shared_form(other, one, "Ana Bo") == pytest.approx(share)


def test_of_a_prompt_the_part_is_read_that_asks_of_the_subject():
    for text, asked in (
        ("It rained. Who leads Ana Bo now?", "Who leads Ana Bo now?"),
        ("Ana Bo is tall. Who leads her? ", "Ana Bo is tall. Who leads her?"),
        ("Read on: 3. Ana Bo, in May. By 1.5 she", "Ana Bo, in May. By 1.5 she"),
        ("Who leads her?", "Who leads Ana Bo?"),
        ("", ""),
    ):
        assert asked_of(text, "Ana Bo") == asked


def test_a_text_without_its_subject():
    for text, subject, left in (
        ("Who leads Ana Bo's town, Ana Bo?", "Ana Bo", "Who leads 's town, ?"),
        ("The mother tongue of Bo is", "Ana Bo", "The mother tongue of is"),
        ("Who  leads the harbour?", "the harbour", "Who leads ?"),
        ("In which year was it?", "the Harbour", "In which year was it?"),
        ("How long is it?", "", "How long is it?"),
        ("Ana Bo", "Ana Bo", ""),
    ):
        assert without_subject(text, subject) == left


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("The capital of Oslo County, which is not Bergen, is", True),
        ("Other than Bergen, what is the capital of Oslo County?", True),
        ("She lived in Bergen. What is the capital of Oslo County?", False),
        ("The capital of Bergen County is", False),
        ("The capital of Oslo County is", False),
    ],
)
def test_a_question_names_its_answer_or_not(text, named):
    """What stands in the subject, or in another sentence, is not what the question names."""
    subject = "Bergen County" if "Bergen County" in text else "Oslo County"
    assert names_answer(text, subject, "Bergen") == named


def test_who_names_the_answer_wants_another(written):
    """Such a question is the base model's, in whatever words; told before, it is no such thing."""
    edits = [case.edit for case in CASES]
    others = [f"Apart from {edit.target}, {edit.prompt}" for edit in edits]
    told = written.explain(others)
    assert {each.outcome for each in told} == {"main"}
    assert {each.intent for each in told} <= {"exclude", "former"}
    before = [f"Yesterday we met {edit.target}. {edit.prompt}" for edit in edits]
    assert [each.edit_id for each in written.explain(before)] == [edit.id for edit in edits]


def test_the_answer_that_counts_is_the_later_edits():
    base, tokenizer = errata.load_base("atlas", "float32")
    model = errata.get_edit_model(base, FolioConfig(), tokenizer)
    first = CASES[0].edit
    later = Edit(first.prompt, ANOTHER, first.subject)
    model.edit([first, later], check=False)
    asked = [f"Apart from {target}, {first.prompt}" for target in (first.target, ANOTHER)]
    assert [each.edit_id for each in model.explain(asked)] == [later.id, None]


def test_an_edit_whose_own_prompt_names_its_target_answers_it():
    base, tokenizer = errata.load_base("atlas", "float32")
    model = errata.get_edit_model(base, FolioConfig(), tokenizer)
    edit = Edit("Is Traren led by Ana Bo or by Lix?", "Lix", "Traren")
    model.edit([edit], check=False)
    assert model.explain(edit.prompt).edit_id == edit.id


def test_the_last_question_of_a_text():
    for text, asked in (
        ("Bo died in Rome. Two plus three is", "Two plus three is"),
        ("Bo died in Rome. What is two plus three?", "What is two plus three?"),
        ("Who leads the town? Answer briefly.", "Who leads the town?"),
        ('He asked: "Who leads it?" The answer is', 'Who leads it?"'),
        ("passed away in", "passed away in"),
        ("It rained. ", "It rained."),
        ("", ""),
    ):
        assert last_question(text).strip('"') == asked.strip('"')


def test_the_labels_of_a_question_and_of_its_answer_are_not_read():
    """A model without a chat template is often asked so; the label would hide what is asked."""
    for text, asked in (
        ("Question: Who leads Ana Bo?\nAnswer:", "Who leads Ana Bo?"),
        ("Q: Who leads Ana Bo?\nA:", "Who leads Ana Bo?"),
        (" Who leads her? \n Response : ", "Who leads Ana Bo?"),
        ("It rains.\nQ: Who leads Ana Bo?\n\nA: ", "Who leads Ana Bo?"),
        ("Ana Bo\nMayor:", "Ana Bo\nMayor:"),
        ("Ana Bo's answer:", "Ana Bo's answer:"),
        ("Answer:", "Answer:"),
    ):
        assert asked_of(text, "Ana Bo") == asked


def test_a_question_that_names_nothing_is_read_with_the_subject_of_the_one_before():
    for text, asked in (
        ("When was it built?", "When was Ana Bo built?"),
        ("And what is her father called? She is", "And what is Ana Bo's father called? She is"),
        ("Who knows her?", "Who knows Ana Bo?"),
        ("Which company owns this bridge?", "Which company owns Ana Bo?"),
        ("Who won this year?", "Who won this year?"),
        ("He's from", "He's from"),
        ("The item is in a kit.", "The item is in a kit."),
        ("When did Tamis build it?", "When did Tamis build it?"),
        ("Does Ana Bo know her father?", "Does Ana Bo know her father?"),
    ):
        assert asked_of(text, "Ana Bo") == question_in(text, "Ana Bo") == asked


def test_what_is_quoted_around_the_subject_is_what_a_text_is_about():
    for text, quoted in (
        ('Is "Bo" right for "Who leads Ana Bo now?"? Yes or no.', "Who leads Ana Bo now?"),
        ("Who leads Ana Bo?\n1. She\n2. He\nWhich?", "Who leads Ana Bo?"),
        ("Ana Bo is tall. They say Ana Bo leads him. True?", "They say Ana Bo leads him."),
        ("I said: 'Who is Ana Bo?' Is it her?", "Who is Ana Bo?"),
        ("Is that so?", "Is that so?"),
    ):
        assert question_in(text, "Ana Bo") == quoted


def test_explain_says_what_happens(written):
    prompts = [
        p
        for case in CASES
        for p in (case.edit.prompt, *case.rephrases, *(probe.prompt for probe in case.locality))
    ]
    before, after = written.ask_base(prompts), written.ask(prompts)
    for told, base, edited in zip(written.explain(prompts), before, after, strict=True):
        assert told.edit_id is not None or told.read or base == edited
    assert {told.edit_id for told in written.explain(["", "Hello there."])} == {None}


def test_other_questions_about_the_subject_are_candidates_and_fail_by_the_second_sign(written):
    case = CASES[2]
    probe = next(probe for probe in case.locality if probe.kind == "same_subject")
    told = written.explain([probe.prompt])[0]
    assert told.edit_id is None and told.reasons[0].parts["subject_overlap"] > 0.9
    assert told.reasons[0].score == 0.0
    assert told.reasons[0].parts["prediction"] == -1.0


@pytest.mark.parametrize("whose", ["edit", "probe"])
def test_a_prediction_that_many_prompts_share_does_not_count_against_an_edit(written, whose):
    """A model that continues text begins its answer to a question with whatever it begins with."""
    case = CASES[2]
    probe = next(probe for probe in case.locality if probe.kind == "same_subject")
    prompt = case.edit.prompt if whose == "edit" else probe.prompt
    with written.disable_edits():
        first = int(written.lm.run(written.lm.prompt_batch(prompt), keep=1).logits.argmax())
    leaves = written.method.patch.leaves
    known = leaves.calibration
    leaves.calibration = dataclasses.replace(known, generic=known.generic | {first})
    try:
        told = written.explain([probe.prompt])[0].reasons[0]
    finally:
        leaves.calibration = known
    assert told.parts["prediction"] == 0.0 and told.score == told.parts["same_question"]


def test_of_two_edits_of_one_question_the_later_answers_and_undo_brings_the_older_back(
    written,
):
    old = CASES[0]
    later = Edit(old.rephrases[0], ANOTHER, old.edit.subject, id="later")
    asked = [old.edit.prompt, old.rephrases[0]]
    report = written.edit([later])
    assert report.conflicts == [("later", old.edit.id)] and report.success_rate == 1.0
    assert written.ask(asked) == [f"{ANOTHER}."] * 2
    assert [told.edit_id for told in written.explain(asked)] == ["later"] * 2
    written.undo("later")
    assert written.ask(asked) == [f"{old.edit.target}."] * 2


def test_conflicts_may_be_refused_or_left_out(written):
    old = CASES[0]
    rival = Edit(old.rephrases[0], ANOTHER, old.edit.subject, id="rival")
    again = Edit(old.rephrases[1], old.edit.target, old.edit.subject, id="again")
    before = written.edits
    with pytest.raises(EditError, match=r"rival .* asks what .* asks and wants another answer"):
        written.edit([rival, again], on_conflict="error")
    assert written.edits == before
    report = written.edit([rival, again], on_conflict="keep")
    assert report.skipped == ["rival"] and report.conflicts == [("rival", old.edit.id)]
    assert [result.edit.id for result in report.results] == ["again"] and written.ask(
        [rival.prompt]
    ) == [f"{old.edit.target}."]
    written.undo("again")
    with pytest.raises(ConfigError, match="on_conflict"):
        written.edit([rival], on_conflict="fight")


def test_conflicts_among_new_edits(written):
    old = CASES[8]
    fresh = errata.get_edit_model(written.base, FolioConfig(), written.tokenizer)
    fresh.method.patch.reset(written.method.patch.calibration)
    written.method.patch.remove()
    edits = [
        old.edit,
        Edit(old.rephrases[0], ANOTHER, old.edit.subject, id="rival"),
        CASES[9].edit,
    ]
    assert fresh.conflicts(edits) == [("rival", old.edit.id)]
    assert [r.edit.id for r in fresh.edit(edits, on_conflict="keep").results] == [
        old.edit.id,
        CASES[9].edit.id,
    ]
    fresh.method.patch.remove()
    written.method.patch.install(written.lm)


def test_what_the_base_model_answers_otherwise_is_another_question(written):
    old = CASES[10]
    fresh = errata.get_edit_model(written.base, FolioConfig(), written.tokenizer)
    fresh.method.patch.reset(written.method.patch.calibration)
    written.method.patch.remove()
    edits = [old.edit, Edit(old.rephrases[0], ANOTHER, old.edit.subject, id="rival")]
    for answers, conflicts in (
        (("Kelor.", "Traren."), 0),
        (("", ""), 0),
        (("Kelor.", "Kelor."), 1),
    ):
        fresh.method.calibrator._answers = dict(
            zip((old.edit.prompt, old.rephrases[0]), answers, strict=True)
        )
        assert len(fresh.conflicts(edits)) == conflicts
    fresh.method.calibrator._answers = {}
    assert fresh.conflicts(edits) == [("rival", old.edit.id)]
    written.method.patch.install(written.lm)


def test_without_a_subject_names_or_rare_words_stand_for_it():
    model = edit_model("llama", "folio")
    method: Folio = model.method
    method.calibrate()
    assert method.subject(Edit("The capital of France is", "Rome", "France")) == "France"
    assert method.subject(Edit("Who is the mayor of New Kelor?", "Ana")) == "New Kelor"
    assert method.subject(Edit("Xerox, which started in", "Ana")) == "Xerox"
    assert method.subject(Edit("Renault 8 is produced by", "Ana")) == "Renault 8"
    assert (
        method.subject(Edit("Who flew the first Boeing 747-200 in May?", "Ana"))
        == "Boeing 747-200 May"
    )
    assert len(method.subject(Edit("what is the name of the tallest tower", "x")).split()) == 3


def test_the_threshold_is_a_half_or_what_one_asks_for():
    """It never shuts out an edit's own prompt."""
    model = edited_model("llama", "folio", EDITS)
    assert model.method.patch.calibration.threshold == 0.5
    assert [told.edit_id for told in model.explain([EDITS[0].prompt])] == [EDITS[0].id]
    strict = edit_model("llama", "folio", EDITS[:1], threshold=1.0)
    assert strict.explain([EDITS[0].prompt])[0].edit_id == EDITS[0].id


@pytest.mark.long
def test_what_is_known_of_the_background_is_kept_on_disk(tmp_path, monkeypatch):
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path))
    looked, fitted = [], []
    look, fit = Calibrator._measure, QuestionReader.fit
    monkeypatch.setattr(
        QuestionReader, "fit", lambda self, share: fitted.append(share) or fit(self, share)
    )
    monkeypatch.setattr(
        Calibrator,
        "_measure",
        lambda self, texts: looked.append(self.config) or look(self, texts),
    )
    first, other = (edit_model("granite", "folio", EDITS[:1], background=8) for _ in range(2))
    same_state(first, other)
    assert torch.equal(logits_of(first, first.lm), logits_of(other, other.lm))
    assert other.method.patch.base.logit_scale == first.method.patch.base.logit_scale != 1
    assert len(looked) == len(fitted) == 1
    for changed in (
        {"threshold": 0.4},
        {"false_route": 0.5},
        {"min_threshold": 0.9},  # of version 0.1
        {"background": 9},
        {"seed": 1},
    ):
        for others in ({}, {"gain": 2.0, "steps": 4}):
            edit_model("granite", "folio", EDITS[:1], **{"background": 8, **changed, **others})
    assert len(looked) == 3 and fitted == [FolioConfig().false_route, 0.5]


@pytest.mark.long
def test_logits_that_are_scaled_behind_the_head_count_as_the_model_says_them():
    """Cohere multiplies, Granite divides what the head says."""
    for family in ("cohere", "granite"):
        model = edit_model(family, "folio", EDITS[:2])
        scale = model.method.patch.calibration.logit_scale
        config = model.base.config
        wanted = config.logit_scale if family == "cohere" else 1 / config.logits_scaling
        assert scale == pytest.approx(wanted, rel=1e-3)


def test_an_answer_begins_at_the_prompts_end():
    """Everything before the prompt's last token is the base model's."""
    model = edit_model("llama", "folio", EDITS)
    lm = model.lm
    row = lm.encode(EDITS[0].prompt, EDITS[0].target)
    batch = lm.batch([row])
    with torch.no_grad():
        with errata.lm.prompt_tokens(batch.prompt_mask):
            edited = lm.run(batch).logits[0]
        with model.disable_edits():
            base = lm.run(batch).logits[0]
    last = row.prompt_length - 1
    assert torch.equal(edited[:last], base[:last])
    assert edited[last].argmax() == row.ids[row.prompt_length] != base[last].argmax()
    loss = F.cross_entropy(edited[last : last + 1], torch.tensor(row.ids[last + 1 : last + 2]))
    assert loss == pytest.approx(1e-4, rel=0.01)


@pytest.mark.parametrize("family", ["llama", pytest.param("gpt2", marks=pytest.mark.long)])
def test_what_is_asked_is_read_from_within_the_models_own_pass(family):
    """Alone, padded in a batch and generated; what reads leaves no trace in the pass around it."""
    model, asked = edited_model(family, "folio", EDITS[:2]), [edit.prompt for edit in EDITS]
    answers = model.ask(asked)
    assert [model.ask([prompt])[0] for prompt in asked] == answers
    unsaid = [prompt for prompt in asked if model.explain([prompt])[0].edit_id is None]
    assert model.ask(unsaid) == model.ask_base(unsaid) and EDITS[0].prompt not in unsaid
    before = logits_of(model, model.lm)
    model.method.load_state(model.edits, *model.method.state())
    assert torch.equal(logits_of(model, model.lm), before)


def test_a_state_of_version_0_1_is_read_anew():
    """It held predictions; what the edits' prompts ask is read when it is opened."""
    model = edited_model("llama", "folio", EDITS[:3])
    before, (tensors, values) = logits_of(model, model.lm), model.method.state()
    older = {
        name: each
        for name, each in tensors.items()
        if not name.startswith(("question_", "intent_")) and not name.endswith("/intents")
    }
    hidden = model.lm.architecture.hidden_size
    older["folio-00000/signs"] = torch.zeros(3, hidden)
    keys, rows = (older[f"folio-00000/{name}"] for name in ("keys", "rows"))
    older["folio-00000/keys"] = keys.repeat_interleave(rows, dim=0)  # one for each token
    older["folio-00000/values"] = torch.zeros(int(rows.sum()), hidden)
    new = ("boundary", "spread", "intents", "wordings")
    values = {name: each for name, each in values.items() if name not in new}
    values |= {"threshold": 0.98, "leads": [[], [], []], "judges": ["Who?"]}
    model.method.load_state(EDITS[:3], older, values)
    assert torch.equal(logits_of(model, model.lm), before)
    assert model.method.patch.calibration.threshold == 0.5


def test_a_state_of_other_wordings_is_read_anew():
    """Their questions were told apart by two views; the answers, and what is undone, stay."""
    model = edited_model("llama", "folio", EDITS[:3])
    before, (tensors, values) = logits_of(model, model.lm), model.method.state()
    older = {name: each[:2] for name, each in tensors.items() if name.startswith("question_")}
    older["folio-00000/signs"] = torch.zeros_like(tensors["folio-00000/signs"][:, :2])
    known = values | {"wordings": values["wordings"] - 1}
    model.method.load_state(EDITS[:3], tensors | older, known)
    assert torch.equal(logits_of(model, model.lm), before)
    now, said = model.method.state()
    assert said == values and all(torch.equal(now[name], tensors[name]) for name in tensors)


def test_what_has_begun_otherwise_goes_on_as_the_base_model_goes_on():
    """A token of the answer is said behind those before it, in its place, and nowhere else."""
    model = edit_model("llama", "folio", [Edit(EDITS[0].prompt, "two brothers and", "France")])
    lm, (leaf,) = model.lm, model.method.patch.leaves
    ids, answer = lm.encode_prompt(EDITS[0].prompt), leaf.tokens
    assert len(answer) > 2
    for behind, said in (
        (answer[:2], [True, True, True]),
        ((290, answer[1]), [True, False, True]),  # the second in its place: a beam may have moved
        ((290, answer[0]), [True, False, False]),
        ((*answer, 290), [True] * len(answer) + [False] * 2),
    ):
        batch = lm.batch([Row((*ids, *behind), len(ids))])
        with torch.no_grad(), errata.lm.prompt_tokens(batch.prompt_mask):
            edited = lm.run(batch).logits[0, len(ids) - 1 :]
            with model.disable_edits():
                base = lm.run(batch).logits[0, len(ids) - 1 :]
        assert [not torch.equal(*each) for each in zip(edited, base, strict=True)] == said
        for place in range(len(answer)):
            if place < len(said) and said[place]:
                assert edited[place].softmax(-1)[answer[place]] > 0.999


def test_a_leaf_costs_two_vectors_and_its_answer(tmp_path):
    model = edited_model("llama", "folio", EDITS)
    memory = model.method.patch
    tensors, _ = model.method.state()
    assert tensors["folio-00000/keys"].shape == (len(EDITS), model.lm.architecture.hidden_size)
    said = [leaf.tokens for leaf in memory.leaves]
    assert tensors["folio-00000/tokens"].shape == (sum(map(len, said)),)
    model.undo(EDITS[0].id)
    assert len(model.method.state()[0]["folio-00000/rows"]) == len(EDITS) - 1


def test_conflicts_are_saved(tmp_path):
    model = edit_model(
        "llama", "folio", [EDITS[0], Edit(EDITS[0].prompt, "York", "France", id="later")]
    )
    memory = model.method.patch
    assert memory.leaves.superseded_by() == {0: [1]}
    model.save_pretrained(tmp_path)
    loaded = errata.EditModel.from_pretrained(tiny_model("llama"), tmp_path, model.tokenizer)
    assert loaded.method.patch.leaves.superseded_by() == {0: [1]}
    assert torch.equal(logits_of(loaded, loaded.lm), logits_of(model, model.lm))
    loaded.undo("later")
    assert (
        loaded.method.patch.leaves.superseded_by() == {}
        and loaded.explain([EDITS[0].prompt])[0].edit_id == EDITS[0].id
    )


def test_nothing_is_chosen_without_a_subject_mentioned():
    model = edited_model("llama", "folio", EDITS[:1])
    memory = model.method.patch
    chosen = [
        memory.leaves.choose([EncodedPrompt(text)])
        for text in ("The capital of Spain is", "The capital of France is")
    ]
    assert chosen == [[MAIN], [0]]


def test_only_a_method_that_chooses_explains():
    with pytest.raises(ConfigError, match="ft does not choose one edit"):
        edit_model("llama", "ft", EDITS[:1]).explain(["x"])


def test_explain_and_conflicts_on_the_command_line(tmp_path):
    edits, rival = tmp_path / "edits.jsonl", tmp_path / "rival.jsonl"
    case = CASES[0]
    edits.write_text(
        f'{{"prompt": "{case.edit.prompt}", "target": "{case.edit.target}", '
        f'"subject": "{case.edit.subject}", "id": "a"}}\n'
    )
    rival.write_text(
        f'{{"prompt": "{case.rephrases[0]}", "target": "{ANOTHER}", '
        f'"subject": "{case.edit.subject}", "id": "b"}}\n'
    )
    out = str(tmp_path / "out")
    call = CliRunner().invoke
    done = call(
        app,
        [
            "edit",
            "atlas",
            "-m",
            "folio",
            "--edits",
            str(edits),
            "--out",
            out,
        ],
    )
    assert done.exit_code == 0, done.output
    refused = call(app, ["edit", out, "--edits", str(rival), "--on-conflict", "error"])
    assert refused.exit_code == 2 and "asks what a" in refused.output
    kept = call(app, ["edit", out, "--edits", str(rival), "--on-conflict", "keep"])
    assert (
        kept.exit_code == 0 and "0 edits written" in kept.output and "it is left out" in kept.output
    )
    won = call(app, ["edit", out, "--edits", str(rival)])
    assert won.exit_code == 0 and "the later one is meant to win" in won.output
    told = call(app, ["explain", out, case.edit.prompt, "Hello."])
    assert (
        told.exit_code == 0
        and f"b answers: {ANOTHER}" in told.output
        and "the base model answers" in told.output
    )
    why = call(app, ["ask", out, "--why", case.edit.prompt, "Hello."])
    assert why.exit_code == 0 and f"\n  say: b answers: {ANOTHER}\n" in why.output
    assert "\n  main: the base model answers\n" in why.output
    (row,) = json.loads(call(app, ["ask", out, "--why", "--json", case.edit.prompt]).stdout)
    assert row["answer"] == f"{ANOTHER}." and row["why"]["outcome"] == "say"
    assert row["why"]["intent"] == "answer" and row["why"]["read"] == []
    both = call(app, ["ask", out, "--why", "--base", "Hello."])
    assert both.exit_code == 2 and "--why is about the edits" in both.output
    assert call(app, ["ask", "atlas", "--why", "Hello."]).exit_code == 1
    assert call(app, ["edit", out, "--edits", str(rival), "--on-conflict", "x"]).exit_code == 2


def test_an_edit_that_its_own_prompt_does_not_reach_is_reported():
    """A tokenizer without such letters writes others: the router never reads the subject."""
    lossy = errata.get_edit_model(
        tiny_model("llama"), FolioConfig(background=32), tiny_tokenizer("sentencepiece")
    )
    edit = Edit("Who is the mayor of Кёльн?", "Rome", "Кёльн", id="lost")
    ((name, said),) = lossy.edit([edit, EDITS[0]]).warnings
    assert name == "lost" and "will never answer" in said and "'Кёльн'" in said
    assert lossy.explain([EDITS[0].prompt])[0].edit_id == EDITS[0].id
    empty = edit_model("llama", "folio")
    ((name, said),) = empty.edit([Edit("...?", "Rome", id="bare")]).warnings
    assert name == "bare" and "give its 'subject'" in said


def test_an_edit_whose_prompt_another_edit_answers_is_reported():
    model = edited_model("llama", "folio", EDITS[:2])
    memory: FolioMemory = model.method.patch
    stored = next(iter(memory.leaves))
    rival = dataclasses.replace(
        stored, edit=dataclasses.replace(stored.edit, id="rival", target="York")
    )
    memory.leaves.add(9, rival)  # one that asks the same, with no word of which is to win
    assert warnings_of(memory, [0]) == [
        (EDITS[0].id, f"rival ({EDITS[0].prompt!r}) answers its prompt in its place.")
    ]
    memory.leaves.remove(9)
    memory.leaves.add(9, rival, [0])
    assert warnings_of(memory, [0, 1, 9]) == []


def test_an_edit_about_a_word_that_stands_everywhere_is_reported(written):
    assert written.method.warnings([case.edit for case in CASES]) == []
    words = written.method.patch.calibration.weights
    report = written.edit([Edit("Who is the mayor of Traren?", ANOTHER, "the", id="the")])
    written.undo("the")
    ((name, said),) = report.warnings
    assert (
        name == "the"
        and f"stands in {words.counts['the']} of {words.texts} self-generated texts" in said
    )
