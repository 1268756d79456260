"""The sceptic's probes: what they ask, what counts as right, what they lack, and the references."""

from __future__ import annotations

from dataclasses import replace

import pytest
from edited import EDITS, edit_model
from families import tiny_model, tiny_tokenizer
from test_chat import TEMPLATES
from test_evaluation import Told

from errata import Case, Edit, Probe, evaluate
from errata.bench.references import Forced, Given, Unedited
from errata.errors import UnknownNameError
from errata.lm import LM
from errata.probes import KINDS, make_probes
from errata.probes.conversation import asked_probes, prompt_for
from errata.probes.forms import as_completion, as_question
from errata.probes.judging import judge
from errata.probes.question import Question

MAYOR = Case(
    Edit("Who is the mayor of Kelor?", "Ana Brisk", "Kelor", id="mayor"),
    locality=(
        Probe("How large is Kelor?", None, "same_subject"),
        Probe("The size of Kelor is", None, "same_subject"),
    ),
    portability=(Probe("Where was Kelor's mayor born?", "Tamis", "hop", ("Tamis Town",)),),
    truth=("Ilo Varn",),
)
BORN = Case(Edit("Ilo Varn was born in", "Osk", "Ilo Varn", id="born"), truth=("Vand",))
BARE = Case(Edit("Who?", "Ana", id="bare"))
CASES = [MAYOR, BORN, Case(Edit("Who is the mayor of Tamis?", "Bo Lind", "Tamis", id="other"))]


@pytest.mark.parametrize(
    ("question", "completion"),
    [
        ("Who is the mayor of Kelor?", "The mayor of Kelor is"),
        ("What was Kelor's capital?", "Kelor's capital was"),
        ("Which team does Kelor play for?", "The team Kelor plays for is"),
        ("What company produced Kelor?", "The company that produced Kelor is"),
        ("The genus Kelor is a part of what family?", "The genus Kelor is a part of the family"),
        ("Who developed Kelor?", "Kelor was developed by"),
        ("When did Kelor happen?", 'The answer to the question "When did Kelor happen?" is'),
    ],
)
def test_a_question_becomes_a_sentence_to_complete(question, completion):
    assert as_completion(question, "Kelor") == completion


@pytest.mark.parametrize(
    ("completion", "question"),
    [
        ("The mother tongue of Kelor is", "What is the mother tongue of Kelor?"),
        ("Kelor, who holds the position of", "Which position does Kelor hold?"),
        ("Kelor passed away in", "Where did Kelor pass away?"),
        ("Kelor is located in the continent of", "Which continent is Kelor located in?"),
        ("In Kelor, an official language is", "What is the official language in Kelor?"),
        ("Kelor, developed by", "Who was Kelor developed by?"),
        ("Kelor, the", 'How does this sentence go on: "Kelor, the ..."?'),
    ],
)
def test_a_sentence_to_complete_becomes_a_question(completion, question):
    assert as_question(completion, "Kelor") == question


def test_every_kind_asks_what_it_should_and_what_is_lacking_is_counted():
    probes = make_probes([MAYOR, BORN], pool=CASES)
    mine = {kind: [q for q in probes.questions if q.kind == kind] for kind in KINDS}
    by_edit = {kind: [q for q in some if q.edit_id == "mayor"] for kind, some in mine.items()}
    assert by_edit["form"][0].turns == ("The mayor of Kelor is",)
    aside, news = by_edit["distractor"]
    assert aside.turns[0].endswith(MAYOR.edit.prompt) and aside.turns[0].count("Kelor") == 1
    assert news.turns[0].endswith(MAYOR.edit.prompt) and news.turns[0].count("Kelor") == 2
    (turns,) = by_edit["turns"]
    assert "Kelor" in turns.turns[0] and turns.turns[-1] == "Who is the mayor of it?"
    assert [q.turns[:2] for q in by_edit["afterwards"]] == [(MAYOR.edit.prompt, "Ana Brisk.")] * 2
    (choice,) = by_edit["choice"]
    letter, target = choice.wanted
    assert target == "Ana Brisk" and f"{letter}) Ana Brisk" in choice.turns[0]
    assert "Ilo Varn" in choice.turns[0] and "Bo Lind" in choice.turns[0], "the likest question's"
    assert [(q.expects, q.wanted) for q in by_edit["verify"]] == [
        ("yes", ("yes",)),
        ("no", ("no",)),
    ]
    assert by_edit["hop"][0].wanted == ("Tamis", "Tamis Town")
    assert [q.turns[0] for q in by_edit["same_subject"]] == ["How large is Kelor?"], "in its form"
    assert {q.expects for kind in ("former", "negation") for q in mine[kind]} == {"not new"}
    assert mine["form"][1].turns == ("Where was Ilo Varn born?",)
    assert mine["turns"][1].turns[-1] == "This person was born in"
    assert probes.left_out == {"alias": 2, "hop": 1, "same_subject": 1}
    bare = make_probes([BARE])
    assert {q.kind for q in bare.questions} == {
        "form", "distractor", "afterwards", "former", "negation"
    }  # fmt: skip
    assert bare.left_out == dict.fromkeys(
        ["alias", "turns", "choice", "verify", "long", "hop", "same_subject"], 1
    )


def test_what_is_drawn_depends_on_seed_edit_and_kind_alone():
    many = [replace(MAYOR, edit=replace(MAYOR.edit, id=str(i))) for i in range(20)]
    drawn = make_probes(many, edits=5)
    assert len({q.edit_id for q in drawn.questions}) == 5 and drawn == make_probes(many, edits=5)
    assert drawn != make_probes(many, edits=5, seed=1)
    alone = make_probes(many, ["negation"])
    beside = [q for q in make_probes(many).questions if q.kind == "negation"]
    assert list(alone.questions) == beside and len({q.turns for q in beside}) == 3
    assert len(make_probes([MAYOR], ["former"], wordings=9).questions) == 3
    letters = {q.wanted[0] for q in make_probes(many, ["choice"], pool=CASES).questions}
    assert letters == set("ABCD")
    with pytest.raises(UnknownNameError, match=r"no probe 'forms'\. Did you mean 'form'"):
        make_probes(many, ["forms"])


def test_an_old_answer_that_cannot_be_told_from_the_new_one_is_none():
    case = replace(MAYOR, truth=("Ana Brisk", "the Ana Brisk family"))
    assert make_probes([case], ["verify", "choice"], pool=CASES).left_out == {
        "verify": 1, "choice": 1
    }  # fmt: skip


@pytest.mark.parametrize(
    ("expects", "said", "contains", "exact"),
    [
        ("new", "The mayor is ana brisk, since May.", True, False),
        ("new", "Ana Brisk.", True, True),
        ("new", "Ana Briskly", False, False),
        ("not new", "Ilo Varn", True, True),
        ("not new", "Not Ana Brisk", False, False),
        ("not new", " ", False, False),
        ("as the base", "said before.", True, False),
        ("as the base", "Said before.", True, True),
        ("as the base", "Ana Brisk", False, False),
        ("letter", "B", True, True),
        ("letter", "B) Ana Brisk", True, True),
        ("letter", "(B)", True, True),
        ("letter", "A) Ana Brisk", True, False),
        ("letter", "B) Ilo Varn", False, False),
        ("letter", "The answer is B, I think.", True, False),
        ("letter", "Ana Brisk", True, True),
        ("letter", "A) Ilo Varn\n\nThe answer is B", False, False),
        ("letter", "A singer", False, False),
        ("letter", "Ana Brisk or Ilo Varn", False, False),
        ("yes", "Yes.", True, True),
        ("yes", "Yes, it is.", True, False),
        ("yes", "Ana Brisk", False, False),
        ("no", "No, that is wrong.", True, False),
        ("no", "Yes", False, False),
        ("sentences", "Kelor is a town. Its mayor is Ana Brisk.", True, True),
        ("sentences", "Its mayor is Ana Brisk, and it lies by the sea.", True, True),
        ("sentences", "Its mayor is Ana Brisk.", False, False),
        ("sentences", "Ana Brisk", False, False),
        ("sentences", "Ilo Varn was mayor. Now Ana Brisk is mayor.", False, False),
    ],
)
def test_which_answers_are_right(expects, said, contains, exact):
    wanted = {"letter": ("B", "Ana Brisk"), "yes": ("yes",), "no": ("no",)}
    question = Question(
        "", "e", ("Q?",), expects, wanted.get(expects, ("Ana Brisk",)), ("Ilo Varn",)
    )
    assert judge(question, "Said before", said) == (contains, exact)


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_conversation_is_the_templates_own(template):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATES[template]
    lm = LM(tiny_model("llama"), tokenizer)
    lm.model.config.max_position_embeddings = 1000
    turns = ("Let us talk about Kelor.", "Gladly.", "Who is its mayor?")
    prompt = prompt_for(lm, Question("turns", "e", turns, "new"))
    if template == "one turn only":
        assert prompt is None
        return
    parts = template == "parts"
    messages = [
        {"role": role, "content": [{"type": "text", "text": turn}] if parts else turn}
        for role, turn in zip(("user", "assistant", "user"), turns, strict=True)
    ]
    wanted = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert lm.apply_chat_template(prompt.text) == wanted
    assert prompt.behind("Fact. ").endswith("Fact. Who is its mayor?")
    if len(lm.conversation(lm.encode_prompt(prompt.text)).questions) > 1:
        found = lm.conversation(lm.encode_prompt(prompt.text))
        assert found.questions == ("Who is its mayor?", "Let us talk about Kelor.")


def test_without_a_template_lines_ask_and_sentences_go_on():
    lm = LM(tiny_model("llama"), tiny_tokenizer())
    turns = ("Who is mayor?", "Ana.", "Who was it?")
    lines = prompt_for(lm, Question("turns", "e", turns, "new"))
    assert lines.text == "Question: Who is mayor?\nAnswer: Ana.\nQuestion: Who was it?\nAnswer:"
    assert lines.answer("Bo\nQuestion: and now?") == "Bo"
    turns = ("Kelor's mayor is", "Ana.", "The letter is")
    assert prompt_for(lm, Question("turns", "e", turns, "new", raw=True)).text == (
        "Kelor's mayor is Ana. The letter is"
    )
    turns = ("This is about Kelor.", "Go on.", "Its mayor is")
    assert prompt_for(lm, Question("turns", "e", turns, "new", raw=True)).text == (
        "This is about Kelor. Its mayor is"
    )
    endless = make_probes([replace(MAYOR, edit=replace(MAYOR.edit, prompt="Kelor? " * 500))])
    asked, left_out = asked_probes(lm, endless, 24)
    assert {each.question.kind for each in asked} == {"hop", "same_subject"}
    assert left_out["form"] == left_out["turns"] == 1


class ToldAnything(Told):
    """Says the same to everything; it has no chat template and takes any prompt."""

    template = None

    def ask(self, prompts, **options):
        self.asked += [(self.on, prompt, options["max_new_tokens"]) for prompt in prompts]
        return [self.tables[self.on] for _ in prompts]

    def encode_prompt(self, prompt):
        return [0]


def test_probes_are_asked_once_and_stand_apart_from_the_other_figures():
    model = ToldAnything("Ilo Varn", "Ana Brisk")
    cases = [replace(MAYOR, locality=MAYOR.locality[:1])]
    found = evaluate(model, cases, probes=make_probes(cases, pool=CASES))
    assert found.generated["reliability"] == 1.0 and found.generated["locality"] == 0.0
    assert found.probes["contains"] == {
        "form": 1.0, "distractor": 1.0, "turns": 1.0, "afterwards": 0.0, "choice": 1.0,
        "verify": 0.0, "former": 0.0, "negation": 0.0, "long": 0.0, "hop": 0.0,
        "same_subject": 0.0, "mean": pytest.approx(4 / 11)
    }  # fmt: skip
    assert found.probes_left_out == {"alias": 1}
    assert len(model.asked) == len(set(model.asked)), "hop and same_subject are asked already"
    lengths = {length for _, prompt, length in model.asked if "sentences" in prompt}
    assert lengths == {60} and {length for *_, length in model.asked} == {24, 60}
    nothing = evaluate(model, cases)
    assert nothing.probes == {} and nothing.scores == found.scores


def test_given_reads_the_fact_where_it_belongs():
    model = edit_model("llama", "ft")
    cases = [
        Case(EDITS[0], ("France's capital?",), (Probe("Where is Spain?"), Probe("Is France big?"))),
        Case(EDITS[1]),
    ]
    probes = make_probes(cases, ["form", "afterwards"])
    given = Given(model, cases, probes, 24)
    fact = "New Fact: The capital of France is Rome.\nPrompt: "
    assert given.with_facts["France's capital?"] == fact + "France's capital?"
    assert given.with_facts["Is France big?"].startswith(fact), "it mentions the subject"
    assert "Where is Spain?" not in given.with_facts
    asked, _ = asked_probes(model.lm, probes, 24)
    with_fact = {p.question.turns[-1]: p.prompt.text in given.with_facts for p in asked}
    assert [there for text, there in with_fact.items() if "France" in text] == [True, True]
    assert [there for text, there in with_fact.items() if "two plus" in text] in ([], [False])
    prompts = ["France's capital?", "Where is Spain?"]
    wanted = model.ask_base([fact + prompts[0], prompts[1]], max_new_tokens=4)
    assert given.ask(prompts, max_new_tokens=4) == wanted
    with given.disable_edits():
        assert given.score([("France's capital?", "Rome")]) == model.score(
            [("France's capital?", "Rome")]
        )


def test_forced_prints_the_target_that_the_router_finds():
    model = edit_model("llama", "folio", EDITS[:3])
    forced = Forced(model)
    prompts = [edit.prompt for edit in EDITS[:3]] + ["In the city of"]
    routes = [found.edit_id for found in model.explain(prompts)]
    base = model.ask_base(prompts, max_new_tokens=4)
    targets = {edit.id: edit.target for edit in EDITS}
    assert forced.ask(prompts, max_new_tokens=4) == [
        answer if route is None else targets[route]
        for route, answer in zip(routes, base, strict=True)
    ]
    assert routes[0] == EDITS[0].id and routes[3] is None
    exact, wrong, own = forced.score(
        [(prompts[0], "Rome"), (prompts[0], "York"), (prompts[3], "Rome")]
    )
    assert exact.exact and exact.loss == 0.0 and wrong.token_accuracy < 1 and wrong.loss > 10
    assert own == Unedited(model).score([(prompts[3], "Rome")])[0]
    cases = [Case(edit) for edit in EDITS[:3]]
    found = evaluate(forced, cases, max_new_tokens=4)
    routed = sum(route is not None for route in routes[:3]) / 3
    assert found.generated["reliability"] == found.teacher_forced["reliability"] == routed
