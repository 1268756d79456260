"""The figures of `evaluate`, against what a hand would count."""

from __future__ import annotations

import math
from contextlib import contextmanager

import pytest
import torch
from edited import EDITS, PROMPTS, edit_model

from errata import Case, Edit, Probe, evaluate
from errata.edit import same_answer
from errata.lm import Score
from errata.lm.encoding import Row
from errata.measures import MEANINGS, MEASURES, OOD_LOSS, SCORES


class Told:
    """Stands in for an edited model: its answers and scores are written in tables."""

    def __init__(self, base, edited, scores=None, base_scores=None):
        self.lm, self.device = self, torch.device("cpu")
        self.tables = {True: edited, False: base}
        self.scores = {True: scores or {}, False: base_scores or {}}
        self.on = True
        self.asked = []

    def ask(self, prompts, **options):
        self.asked += [(self.on, prompt) for prompt in prompts]
        return [self.tables[self.on][prompt] for prompt in prompts]

    def ask_base(self, prompts, **options):
        with self.disable_edits():
            return self.ask(prompts, **options)

    def score(self, pairs, batch_size=32, whole=False):
        self.pairs = getattr(self, "pairs", []) + [(self.on, *pair) for pair in pairs]
        return [
            self.scores[self.on].get(prompt, Score(0.0, False, 5.0, (1, 2))) for prompt, _ in pairs
        ]

    def encode(self, prompt, target):
        """Each word is a token."""
        words = tuple(target.split())
        return Row(words, 0, len(words))

    def decode(self, ids):
        return " ".join(ids)

    @contextmanager
    def disable_edits(self):
        self.on, was = False, self.on
        try:
            yield
        finally:
            self.on = was


CASES = [
    Case(
        Edit("Who is mayor?", "Ana Brisk", id="m"),
        rephrases=("Name the mayor.", "The mayor is"),
        locality=(
            Probe("Who was mayor?", "Ilo Varn", "neighbour"),
            Probe("Where is it?", None, "same_subject"),
            Probe("What is 2 + 2?", "4", "unrelated"),
            Probe("What is 2 + 3?", "5", "unrelated"),
        ),
        portability=(Probe("Where was the mayor born?", "Tamis"),),
    ),
    Case(Edit("Who is king?", "Bo", id="k"), rephrases=("Name the king.",)),
]
BASE = {
    "Who is mayor?": "Old", "Name the mayor.": "Old", "The mayor is": "Old",
    "Who was mayor?": "wrong, but his own", "Where is it?": "North", "What is 2 + 2?": "4",
    "What is 2 + 3?": "5", "Where was the mayor born?": "Kelor", "Who is king?": "Al",
    "Name the king.": "Al",
}  # fmt: skip
EDITED = BASE | {
    "Who is mayor?": " Ana  Brisk. ", "Name the mayor.": "Ana Brisk and more",
    "The mayor is": "Ana Brisk", "What is 2 + 2?": "Ana Brisk",
    "Where was the mayor born?": "Tamis", "Who is king?": "Bob", "Name the king.": "Bo",
}  # fmt: skip


def test_figures_by_hand():
    scores = {
        "Who is mayor?": Score(1.0, True, 0.1, (5, 6)),
        "Who is king?": Score(0.5, False, 0.5, (5, 6)),
        "Name the mayor.": Score(0.5, False, OOD_LOSS + 1e-3, (5, 6)),
        "The mayor is": Score(1.0, True, OOD_LOSS - 1e-3, (5, 6)),
        "Name the king.": Score(0.0, False, 3.0, (5,)),
        "Where is it?": Score(0.0, False, 3.0, (1, 2, 3, 9)),
        "Where was the mayor born?": Score(0.75, False, 3.0, (1, 2, 3, 9)),
    }
    model = Told(BASE, EDITED, scores, {"Where is it?": Score(1.0, True, 0.0, (1, 2, 3, 4))})
    seen = []
    found = evaluate(
        model, CASES, batch_size=1, progress=lambda done, total: seen.append((done, total))
    )
    assert found.edits == 2
    assert found.generated == {
        "reliability": 1 / 2,
        "generalization": 2 / 3,
        "locality": 3 / 4,
        "portability": 1.0,
    }
    assert found.teacher_forced == {
        "reliability": 0.75,
        "generalization": 0.5,
        "locality": pytest.approx((1 + 0.75 + 1 + 1) / 4),
        "portability": 0.75,
    }
    assert found.locality_by_kind == {"neighbour": 1.0, "same_subject": 1.0, "unrelated": 0.5}
    assert found.perplexity == pytest.approx(math.exp(0.3))
    assert found.ood == pytest.approx(1 / 3)
    assert seen == [(done, 20) for done in range(1, 21)], "each batch is told as it is answered"

    by = {answer.prompt: answer for answer in found.answers}
    assert len(found.answers) == 10 and [a.prompt for a in found.answers] == list(by)
    told = by["Who was mayor?"]
    assert (told.before, told.after, told.wanted, told.right) == ("wrong, but his own",) * 3 + (
        True,
    )
    assert (
        by["Who is mayor?"].right
        and by["Who is mayor?"].wanted == "Ana Brisk"
        and by["Who is mayor?"].edit_id == "m"
    )
    assert (
        not by["Who is king?"].right
        and by["Who is king?"].after == "Bob"
        and by["Who is king?"].before == "Al"
    )
    assert not by["What is 2 + 2?"].right and by["What is 2 + 2?"].kind == "unrelated"
    assert set(found.to_dict()) == {
        "edits", "generated", "teacher_forced", "locality_by_kind", "perplexity", "ood", "scores",
        "divergence_by_kind", "portability_by_kind", "probes", "probes_left_out",
    }  # fmt: skip
    # with no answer known, locality scores the base model's own words
    assert (True, "Where is it?", "North") in model.pairs and (
        False,
        "Where is it?",
        "North",
    ) in model.pairs
    assert {on for on, prompt, _ in model.pairs if prompt == "Who is mayor?"} == {True}


def test_other_ways_to_count():
    """Of the six: in other letters, among other words, cut off where the wanted one ends, all
    tokens, further answers.
    """
    base = {"Who?": "Old", "Who is it?": "Old", "And now?": "Old", "Where?": "West", "Born?": "Old"}
    edited = base | {
        "Who?": "The ana brisk!", "Who is it?": "Ana Brisk, the mayor",
        "And now?": "It is Ana Brisk", "Born?": "New Tamis",
    }  # fmt: skip
    case = Case(
        Edit("Who?", "Ana Brisk", id="m"),
        ("Who is it?", "And now?"),
        (Probe("Where?", "East", "neighbour"),),
        (Probe("Born?", "Tamis", "alias", ("New Tamis",)),),
    )
    scores = {"Who?": Score(0.5, False, 1.0, (1, 2)), "Who is it?": Score(1.0, True, 0.1, (1, 2))}
    found = evaluate(Told(base, edited, scores, {}), [case])
    reliability = {score: figures["reliability"] for score, figures in found.scores.items()}
    assert reliability == {
        "generated": 0.0, "normalised": 1.0, "contains": 1.0, "cut": 0.0, "forced_exact": 0.0,
        "teacher_forced": 0.5
    }  # fmt: skip
    general = {score: figures["generalization"] for score, figures in found.scores.items()}
    assert general == {
        "generated": 0.0, "normalised": 0.0, "contains": 1.0, "cut": 0.0, "forced_exact": 0.5,
        "teacher_forced": 0.5
    }  # fmt: skip
    assert found.scores["cut"]["portability"] == found.generated["portability"] == 1.0
    assert found.portability_by_kind == {"hop": None, "alias": 1.0, "inverse": None}
    assert set(found.scores) == set(SCORES)
    cut = evaluate(Told(base, edited | {"Who?": "Ana Brisk the mayor"}, scores, {}), [case])
    assert cut.scores["cut"]["reliability"] == 1.0 and cut.generated["reliability"] == 0.0


def test_text_that_became_likely_is_read_and_not_asked_for():
    case = Case(
        Edit("Ana", "is mayor", id="m"),
        ood=(Probe("Ana", "was chosen", "ood"), Probe("Ana B", "won", "ood")),
    )
    scores = {"Ana B": Score(0.0, False, OOD_LOSS - 1e-3, (1,))}
    model = Told({"Ana": "sings"}, {"Ana": "is mayor"}, scores)
    found = evaluate(model, [case])
    assert found.ood == 0.5 and {prompt for _, prompt in model.asked} == {"Ana"}
    assert [(a.measure, a.after, a.right) for a in found.answers[1:]] == [
        ("ood", "", False),
        ("ood", "", True),
    ]


def test_divergence_is_that_of_what_is_expected_at_the_bases_answer():
    base, edited = (
        torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]),
        torch.tensor([[0.25, 0.5, 0.25], [0.1, 0.8, 0.1]]),
    )
    told = [{"Where?": Score(1.0, True, 0.1, (0, 1), probs.log())} for probs in (edited, base)]
    model = Told({"Where?": "West", "Who?": "Old"}, {"Where?": "West", "Who?": "Ana"}, *told)
    case = Case(Edit("Who?", "Ana"), (), (Probe("Where?", None, "neighbour"),))
    found = evaluate(model, [case])
    wanted = (0.5 * math.log(2) + 0.25 * math.log(0.5)) / 2
    assert (
        found.divergence_by_kind["neighbour"] == pytest.approx(wanted)
        and found.divergence_by_kind["unrelated"] is None
    )


def test_no_probes_no_figures():
    found = evaluate(Told({"Q": "a"}, {"Q": "b"}), [Case(Edit("Q", "b"))])
    assert found.generated == {
        "reliability": 1.0,
        "generalization": None,
        "locality": None,
        "portability": None,
    }
    assert found.teacher_forced["locality"] is None and found.ood is None
    assert set(found.locality_by_kind.values()) == {None}
    nothing = evaluate(Told({}, {}), [])
    assert (
        nothing.edits == 0
        and nothing.perplexity is None
        and set(nothing.generated.values()) == {None}
    )
    assert set(MEANINGS) == set(MEASURES)


def test_an_answer_that_is_empty_or_hopeless_breaks_nothing():
    case = Case(Edit("Q", "b"), locality=(Probe("P"),))
    hopeless = {"Q": Score(0.0, False, 1e9, (1,))}
    found = evaluate(Told({"Q": "", "P": ""}, {"Q": "", "P": ""}, hopeless), [case])
    assert found.generated["reliability"] == 0 and found.generated["locality"] == 1
    assert found.perplexity is not None and math.isfinite(found.perplexity)


@pytest.mark.parametrize(
    ("said", "wanted", "same"),
    [
        ("Ana Brisk", "Ana Brisk", True),
        (" Ana\n Brisk. ", "Ana Brisk", True),
        ("Ana Brisk .", "Ana Brisk.", True),
        ("Ana Briskly", "Ana Brisk", False),
        ("ana brisk", "Ana Brisk", False),
        ("Ana Brisk is it", "Ana Brisk", False),
        ("", "Ana Brisk", False),
    ],
)
def test_when_two_answers_are_the_same(said, wanted, same):
    assert same_answer(said, wanted) is same


def cases():
    return [
        Case(
            EDITS[0],
            (PROMPTS[6],),
            (Probe(PROMPTS[7]), Probe(PROMPTS[8], "x", "neighbour")),
            (Probe("Q?", "a"),),
        ),
        Case(EDITS[1], (PROMPTS[6],)),
    ]


def test_on_a_real_model_the_base_is_asked_once():
    model = edit_model("llama", "wise", EDITS[:2])
    rounds = []
    generate = model.base.generate

    def counted(**inputs):
        rounds.append(len(inputs["input_ids"]))
        return generate(**inputs)

    model.base.generate = counted
    first = evaluate(model, cases(), max_new_tokens=4)
    asked = sum(rounds)
    assert asked == 6 + 6, "six different prompts, each put to both models once"
    rounds.clear()
    second = evaluate(model, cases(), max_new_tokens=4)
    assert sum(rounds) == 6 and second == first
    model.edit(EDITS[2:3], check=False)
    rounds.clear()
    evaluate(model, cases(), max_new_tokens=4)
    assert sum(rounds) == 6, "a base model does not change its mind when edits come"
    assert model.method.patch.installed


def test_on_a_real_model_the_figures_are_the_models_own():
    model = edit_model("llama", "ft", EDITS[:2], steps=60, lr=0.02, objective="target_new")
    found = evaluate(model, cases(), max_new_tokens=6)
    after, before = (ask(PROMPTS, max_new_tokens=6) for ask in (model.ask, model.ask_base))
    by = {(a.measure, a.prompt): a for a in found.answers}
    for i, edit in enumerate(EDITS[:2]):
        answer = by["reliability", edit.prompt]
        assert (answer.after, answer.before) == (after[i], before[i])
        score = model.lm.score([(edit.prompt, edit.target)])[0]
        assert answer.token_accuracy == score.token_accuracy and answer.loss == pytest.approx(
            score.loss, abs=1e-4
        )
    assert found.generated["locality"] == sum(after[i] == before[i] for i in (7, 8)) / 2
    losses = [s.loss for s in model.lm.score([(e.prompt, e.target) for e in EDITS[:2]])]
    assert found.perplexity == pytest.approx(math.exp(sum(losses) / 2), rel=1e-3)

    untouched = edit_model("llama", "ft")
    same = evaluate(untouched, cases(), max_new_tokens=4)
    assert same.generated["locality"] == same.teacher_forced["locality"] == 1
