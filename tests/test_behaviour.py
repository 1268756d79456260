"""Detoxification and debiasing: pairs, the eraser, training, measures, the commands."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from families import tiny_model, tiny_tokenizer
from typer.testing import CliRunner

import errata
from errata.cli import app
from errata.errors import ConfigError, EditError, PromptTooLongError, UsageError
from errata.lm import LM
from errata.lm.hooks import capture_output
from errata.unlearning import Passage, behaviour, bias, config_of, detox
from errata.unlearning.leace import Eraser
from errata.unlearning.objectives import kl
from errata.unlearning.pairs import (
    ResponsePair,
    Sentence,
    SentencePair,
    read_response_pairs,
    read_sentence_pairs,
)
from errata.unlearning.parameters import trained_of
from errata.unlearning.scored import Side

RESPONSES = [
    ResponsePair("Who wrote the book?", "the author", "go north", ("Who is the author?",)),
    ResponsePair("Where is the tower?", "in the north of the city", "who knows"),
    ResponsePair("The capital of France is", "Paris", "Rome or York"),
]
SENTENCES = [
    SentencePair("The author said that she was born.", "The author said that he was born."),
    SentencePair("The brothers of Paris", "The sisters of Paris", "The xyz of Paris"),
    SentencePair("He lives in the city", "She lives in the city", "Of lives in the city"),
]
KEEP = [Passage("", "The company was founded in the city of New York."), Passage("Where?", "Rome")]


def quiet(what: str, done: int, total: int) -> None:
    pass


def tiny_lm(family: str = "llama") -> LM:
    torch.set_num_threads(1)
    return LM(tiny_model(family), tiny_tokenizer())


# what is read


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_pairs_are_read_in_each_form(tmp_path: Path) -> None:
    ours = {"prompt": "p", "safe": "s", "unsafe": "u", "rephrases": ["q"]}
    theirs = {
        "id": 1, "adversarial prompt": "p", "question": "x", "safe generation": "s",
        "unsafe generation": "u", "generalization test": {"a": "b"},
    }  # fmt: skip
    lines = write(tmp_path / "a.jsonl", f"{json.dumps(ours)}\n{json.dumps(theirs)}\n")
    wanted = ResponsePair("p", "s", "u", ("q",))
    assert read_response_pairs(lines) == [wanted, ResponsePair("p", "s", "u")]
    listed = write(tmp_path / "a.json", json.dumps([theirs]))
    assert read_response_pairs(listed) == [ResponsePair("p", "s", "u")]

    pair = SentencePair("A he b", "A she b", "A it b", "gender")
    blank = {"context": "A BLANK b", "stereotype": "he", "antistereotype": "she"}
    blank |= {"unrelated": "it", "bias_type": "gender"}
    whole = {"stereotype": "A he b", "antistereotype": "A she b"}
    lines = write(tmp_path / "b.jsonl", f"{json.dumps(blank)}\n{json.dumps(whole)}\n")
    assert read_sentence_pairs(lines) == [pair, SentencePair("A he b", "A she b")]
    labels = ("anti-stereotype", "stereotype", "unrelated")
    texts = zip(("A she b", "A he b", "A it b"), labels, strict=True)
    item = {
        "bias_type": "gender", "context": "A BLANK b",
        "sentences": [{"sentence": text, "gold_label": label} for text, label in texts],
    }  # fmt: skip
    stereoset = {"version": "1", "data": {"intersentence": [], "intrasentence": [item]}}
    assert read_sentence_pairs(write(tmp_path / "b.json", json.dumps(stereoset))) == [pair]
    rows = ',sent_more,sent_less,stereo_antistereo,bias_type\n0,"A, he",A she,antistereo,gender\n'
    crows = read_sentence_pairs(write(tmp_path / "b.csv", rows))
    assert crows == [SentencePair("A, he", "A she", "", "gender")]


@pytest.mark.parametrize(
    ("read", "name", "text", "said"),
    [
        (read_response_pairs, "a.jsonl", "", "a.jsonl: nothing in it"),
        (read_response_pairs, "a.json", "[]", "a.json: no pair in it"),
        (read_response_pairs, "a.json", "{", "not JSON"),
        (read_response_pairs, "a.json", '{"a": 1}', "expected a list of objects"),
        (read_response_pairs, "a.jsonl", '\n{"prompt": "p", "safe": "s"}', ":2: 'unsafe' is miss"),
        (read_response_pairs, "a.jsonl", '{"prompt": "p", "safe": "s", "unsafe": ""}', "is empty"),
        (read_response_pairs, "a.jsonl", '{"prompt": "p", "safe": "s", "unsafe": " s"}', "same"),
        (
            read_response_pairs, "a.jsonl",
            '{"prompt": "p", "safe": "s", "unsafe": "u", "rephrases": "q"}', "a list of texts",
        ),
        (read_response_pairs, "a.json", '[{"adversarial prompt": "p"}]', "item 1: 'safe gen"),
        (read_sentence_pairs, "b.jsonl", '{"stereotype": "s"}', ":1: 'antistereotype' is missing"),
        (
            read_sentence_pairs, "b.jsonl",
            '{"context": "A", "stereotype": "s", "antistereotype": "t"}', "has no BLANK",
        ),
        (read_sentence_pairs, "b.jsonl", '{"stereotype": "s", "antistereotype": "s"}', "the same"),
        (read_sentence_pairs, "b.csv", "sent_more,sent_less\ns,s\n", "b.csv:2: 'stereotype' and"),
        (read_sentence_pairs, "b.csv", "sent_more\ns\n", "b.csv:2: 'antistereotype' is missing"),
        (read_sentence_pairs, "b.json", '[{"sentences": [1]}]', "item 1: 'sentences' must"),
        (read_sentence_pairs, "none.csv", None, "cannot be read"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_its_place(read, name, text, said, tmp_path: Path) -> None:
    if text is not None:
        write(tmp_path / name, text)
    with pytest.raises(EditError, match=said) as error:
        read(tmp_path / name)
    assert "\n" not in str(error.value)


# the eraser


def drawn(count: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)).double()


def least_squares(states: torch.Tensor, concept: torch.Tensor) -> torch.Tensor:
    """The weights of the best linear predictor of a concept, with an intercept."""
    x, z = states - states.mean(0), concept - concept.mean(0)
    return torch.linalg.pinv(x, rtol=1e-8) @ z


@pytest.mark.parametrize("width", [6, 60])  # fewer and more than the 40 states
def test_no_linear_classifier_tells_what_is_erased(width: int) -> None:
    concept = (torch.arange(40) % 2).double()
    states = drawn(40, width) @ drawn(width, width, 1) + concept[:, None] * drawn(1, width, 2)
    assert least_squares(states, concept).norm() > 0.01
    eraser = Eraser.fit(states, concept)
    erased = eraser(states)
    assert least_squares(erased, concept).norm() < 1e-8
    centred = concept - concept.mean()
    assert (erased.T @ centred).abs().max() < 1e-8 * states.abs().max() * 40
    torch.testing.assert_close(erased.mean(0), states.mean(0))
    assert eraser.left.shape == (width, 1)
    torch.testing.assert_close(eraser(erased), erased)  # what is gone is gone


def test_what_is_not_erased_stays_and_the_change_is_the_least() -> None:
    concept = (torch.arange(200) % 2).double()
    states = drawn(200, 8) @ drawn(8, 8, 1) + concept[:, None] * drawn(1, 8, 2)
    eraser = Eraser.fit(states, concept)
    erased = eraser(states)
    other = drawn(1, 8, 3)[0]
    moves = eraser.left[:, 0]
    other -= moves * (moves @ other) / (moves @ moves)
    torch.testing.assert_close(erased @ other, states @ other, rtol=1e-12, atol=1e-12)
    told = (states.T @ (concept - concept.mean()))[:, None]
    plain = states - (states - states.mean(0)) @ told @ told.T / (told.T @ told)
    assert least_squares(plain, concept).norm() < 1e-8  # erases, too, but
    assert (erased - states).square().sum() < (plain - states).square().sum()


def test_more_than_two_classes_are_erased_together() -> None:
    classes = torch.nn.functional.one_hot(torch.arange(90) % 3).double()
    states = drawn(90, 10) + classes @ drawn(3, 10, 1)
    eraser = Eraser.fit(states, classes)
    assert eraser.left.shape == (10, 2)
    assert least_squares(eraser(states), classes).norm() < 1e-8
    constant = Eraser.fit(states, torch.ones(90))
    torch.testing.assert_close(constant(states), states)  # nothing to erase
    with pytest.raises(ValueError, match="do not fit"):
        Eraser.fit(states, torch.ones(3))


@pytest.mark.parametrize("family", ["llama", "gpt2"])  # without a bias, and with one, transposed
def test_folded_into_a_matrix_it_erases_what_the_matrix_says(family: str) -> None:
    lm = tiny_lm(family)
    module = lm.architecture.value_module(lm.model, 1)
    states, concept = bias.divergent_states(lm, module, SENTENCES)
    assert len(states) == len(concept) > 6 and states.shape[1] == 32
    eraser = Eraser.fit(states, concept)
    eraser.fold(module)
    folded, _ = bias.divergent_states(lm, module, SENTENCES)
    moved = (
        torch.zeros(32).double() if family == "gpt2" else eraser.left @ eraser.right @ eraser.mean
    )
    torch.testing.assert_close(folded, eraser(states) - moved, rtol=1e-4, atol=1e-4)
    centred = concept - concept.mean()
    assert (folded.T @ centred).abs().max() < 1e-3 * (states.T @ centred).abs().max()


def test_divergent_states_begin_where_the_sentences_differ() -> None:
    lm = tiny_lm()
    block = lm.architecture.block(lm.model, 2)
    states, concept = bias.divergent_states(lm, block, SENTENCES[:1])
    one, other = (Sentence("", text).rows(lm)[0].ids for text in
                  (SENTENCES[0].stereotype, SENTENCES[0].antistereotype))  # fmt: skip
    same = next(i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    assert concept.tolist() == [1.0] * (len(one) - same) + [0.0] * (len(other) - same)
    with torch.no_grad(), capture_output(block) as captured:
        lm.model(input_ids=torch.tensor([one]))
    torch.testing.assert_close(
        states[: len(one) - same].float(), captured[0][0, same:], rtol=1e-4, atol=1e-4
    )
    with bias.erased(lm, Eraser.fit(states, concept), 2), capture_output(block) as changed:
        lm.run_body(lm.batch(Sentence("", SENTENCES[0].stereotype).rows(lm)))
    assert not torch.allclose(changed[0], captured[0])


# what is trained


def settings(method: str, ways, **given: str):
    return config_of(method, {"lr": "0.003", "epochs": "8", "save_every": "0", **given}, ways)


@pytest.mark.parametrize("method", ["dinm", "negation", "dpo"])
def test_what_is_unsafe_becomes_less_likely_than_what_is_safe(method: str, tmp_path: Path) -> None:
    def margin(lm: LM) -> float:
        safe, unsafe = (
            lm.score([(each.prompt, getattr(each, side)) for each in RESPONSES])
            for side in ("safe", "unsafe")
        )
        return sum(b.loss - a.loss for a, b in zip(safe, unsafe, strict=True))

    lm = tiny_lm()
    before, weights = margin(lm), {n: w.clone() for n, w in lm.model.state_dict().items()}
    distances = detox.block_distances(lm, RESPONSES)
    config = settings(method, detox.DETOX, trains="values", blocks="1")
    keep = KEEP if detox.DETOX[method].retains else []
    model, record = detox.detoxify(lm, method, config, RESPONSES, keep, tmp_path, quiet)
    assert margin(LM(model, lm.tokenizer)) > before + 0.1
    assert record["objective"] == method and record["instead"]["passages"] == 3
    moved = [n for n, w in model.state_dict().items() if not torch.equal(w, weights[n])]
    if method == "dinm":
        toxic = int(distances.argmax())
        assert moved == [f"{lm.architecture.value_path(toxic)}.weight"]
        assert record["settings"]["layer"] == toxic


def test_the_divergence_that_keeps_the_rest_has_a_gradient() -> None:
    """What was moved is pulled back by it."""
    lm = tiny_lm()
    config = settings("dinm", detox.DETOX, layer="2")
    trained = trained_of(lm, config, 2)
    rows = [row for each in KEEP for row in each.rows(lm)]
    (moved,) = trained.parameters.values()
    with torch.no_grad():
        moved += 0.05 * drawn(*moved.shape).float()
    divergence = kl(Side(lm, trained, rows))
    divergence.backward()
    assert float(divergence.detach()) > 0 and moved.grad.norm() > 0
    with torch.no_grad():
        moved -= 1e-2 * moved.grad / moved.grad.norm()
        assert float(kl(Side(lm, trained, rows))) < float(divergence)


def test_without_something_to_keep_the_model_writes_it_itself() -> None:
    lm = tiny_lm()
    run = detox.detoxing(lm, "dinm", settings("dinm", detox.DETOX, layer="1"), RESPONSES)
    assert len(run.retain) > 20 and not any(each.prompt for each in run.retain)


def test_the_toxic_block_is_where_the_responses_lie_farthest_apart() -> None:
    lm = tiny_lm()
    one = RESPONSES[:1]
    means = []
    for text in (one[0].unsafe, one[0].safe):
        row = Passage(one[0].prompt, text).rows(lm)[0]
        with capture_output(lm.architecture.block(lm.model, 1)) as captured:
            lm.run_body(lm.batch([row]))
        means.append(captured[0][0, row.prompt_length :].mean(0))
    wanted = (means[0] - means[1]).norm()
    found = detox.block_distances(lm, one)
    assert found.shape == (4,)
    torch.testing.assert_close(found[1], wanted, rtol=1e-4, atol=1e-5)
    batched = torch.stack([detox.block_distances(lm, [each]) for each in RESPONSES]).mean(0)
    torch.testing.assert_close(detox.block_distances(lm, RESPONSES), batched, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "opt", "bloom"])
def test_steering_in_a_bias_is_steering_behind_the_block(family: str, tmp_path: Path) -> None:
    lm = tiny_lm(family)
    vector = detox.steering_vector(lm, RESPONSES, 2)
    batch = lm.prompt_batch(["Who wrote the book?", "The capital"])
    with torch.no_grad(), detox.steered(lm, vector, 2):
        wanted = lm.run(batch).logits
    assert not torch.allclose(wanted, lm.run(batch).logits)
    config = settings("steering", detox.DETOX, layer="2")
    model, record = detox.detoxify(lm, "steering", config, RESPONSES, [], tmp_path, quiet)
    torch.testing.assert_close(lm.run(batch).logits.detach(), wanted, rtol=1e-4, atol=1e-4)
    assert record["steps"] == 0 and record["settings"]["layer"] == 2 and model is lm.model


def test_both_sides_become_equally_likely(tmp_path: Path) -> None:
    lm = tiny_lm()
    before = behaviour.prejudice(lm, SENTENCES)
    config = settings("equalise", bias.DEBIAS, epochs="15", trains="values", lr="0.01")
    model, record = bias.debias(lm, "equalise", config, SENTENCES, KEEP, tmp_path, quiet)
    after = behaviour.prejudice(LM(model, lm.tokenizer), SENTENCES)
    assert after.gap < before.gap / 2
    assert record["forget"]["passages"] == record["instead"]["passages"] == 3


def test_leace_changes_the_value_matrices_of_its_blocks_alone(tmp_path: Path) -> None:
    lm = tiny_lm()
    weights = {name: each.clone() for name, each in lm.model.state_dict().items()}
    config = config_of("leace", {"blocks": "2", "layer": "2"}, bias.DEBIAS)
    model, record = bias.debias(lm, "leace", config, SENTENCES, [], tmp_path, quiet)
    moved = [n for n, w in model.state_dict().items() if not torch.equal(w, weights[n])]
    assert moved == [f"{lm.architecture.value_path(layer)}.weight" for layer in (1, 2)]
    assert record["steps"] == 0 and record["settings"]["blocks"] == 2


# what is measured


def test_prejudice_is_stereosets() -> None:
    lm = tiny_lm()

    def log_p(text: str) -> tuple[float, int]:
        ids = [1, *lm.encode_piece(text)]
        with torch.no_grad():
            logs = lm.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        return sum(float(logs[i, ids[i + 1]]) for i in range(len(ids) - 1)), len(ids) - 1

    texts = [(each.stereotype, each.antistereotype, each.unrelated) for each in SENTENCES]
    for text in texts[0][:2]:
        assert behaviour.log_likelihoods(lm, [text])[0] == pytest.approx(log_p(text), rel=1e-4)
    by_token = [[log_p(text)[0] / log_p(text)[1] for text in each if text] for each in texts]
    found = behaviour.prejudice(lm, SENTENCES)
    ss = 100 * sum(each[0] > each[1] for each in by_token) / 3
    lms = 100 * sum(each[i] > each[2] for each in by_token[1:] for i in (0, 1)) / 4
    gap = sum(abs(log_p(each[0])[0] - log_p(each[1])[0]) for each in texts) / 3
    assert found.ss == pytest.approx(ss) and found.lms == pytest.approx(lms)
    assert found.icat == pytest.approx(lms * min(ss, 100 - ss) / 50)
    assert found.gap == pytest.approx(gap, rel=1e-3)
    alone = behaviour.prejudice(lm, SENTENCES[:1])
    assert alone.lms is None and alone.icat is None
    total, count = (sum(each) for each in zip(*(log_p(each[0]) for each in texts), strict=True))
    perplexity = behaviour.perplexity(lm, [each[0] for each in texts])
    assert perplexity == pytest.approx(math.exp(-total / count), rel=1e-3)


def test_unsafe_answers_and_preferences() -> None:
    answers = ["You IDIOT!", "Idiotic.", "Please, shut up now", ""]
    assert behaviour.unsafe_share(answers, ["idiot", "shut up"]) == 0.5
    lm = tiny_lm()
    swapped = [ResponsePair(each.prompt, each.unsafe, each.safe) for each in RESPONSES]
    one, other = behaviour.preference(lm, RESPONSES), behaviour.preference(lm, swapped)
    assert one + other == pytest.approx(1)


def test_what_cannot_be_done_is_told() -> None:
    lm = tiny_lm()
    config = config_of("dinm", {}, detox.DETOX)
    with pytest.raises(UsageError, match="no pairs"):
        detox.detoxing(lm, "dinm", config, [])
    with pytest.raises(UsageError, match="no pairs"):
        bias.erase_values(lm, config, [])
    with pytest.raises(ConfigError, match="layer is 9, and the model has 4"):
        bias.erase_values(lm, config_of("leace", {"layer": "9"}, bias.DEBIAS), SENTENCES)
    with pytest.raises(UsageError, match="this model's have none"):
        detox.steer_bias(lm, torch.zeros(32), 1)
    with pytest.raises(ConfigError, match=r"called 'dimn'.*'dinm'"):
        config_of("dimn", {}, detox.DETOX)
    with pytest.raises(PromptTooLongError, match="the sentence"):
        behaviour.perplexity(lm, ["word " * 500])


# the commands


def run(*words: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, [str(word) for word in words])
    return done.exit_code, done.output


def test_on_the_command_line(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    pairs = write(
        tmp_path / "r.jsonl",
        '{"prompt": "Who is the mayor of Traren?", "safe": "Kelor", "unsafe": "Brobin Reshibri"}\n',
    )
    sides = write(
        tmp_path / "s.csv", "sent_more,sent_less\nThe mayor of Traren,The mayor of Kelor\n"
    )
    kept = write(tmp_path / "k.jsonl", '{"prompt": "Who is the mayor of Kelor?", "target": "Ana"}')
    out = tmp_path / "polite"
    given = ["detox", "atlas", "--pairs", pairs, "--out", out]
    done, said = run(*given, "--set", "lr=0.01", "--keep", kept)
    assert done == 0 and "1 pairs learned by dinm in 10 steps" in said
    record = json.loads((out / "detox.json").read_text())
    assert record["paper"].startswith("DINM") and record["retain"]["passages"] == 1
    lm = LM(*errata.load_base(str(out), "float32"))
    assert behaviour.preference(lm, read_response_pairs(pairs)) == 1
    done, said = run(*given)
    assert done == 2 and "has a model in it already" in said.replace("\n", " ")
    out = tmp_path / "fair"
    given = ["debias", "atlas", "--pairs", sides, "--out", out]
    done, said = run(*given, "-m", "leace", "--set", "blocks=1")
    assert done == 0 and "1 pairs learned by leace in 0 steps" in said
    assert json.loads((out / "debias.json").read_text())["paper"].startswith("LEACE")
    other = tmp_path / "other"
    for words, what in (
        (["debias", "atlas", "--pairs", pairs, "--out", other], "r.jsonl:1: 'stereotype' is miss"),
        (["debias", "atlas", "--pairs", sides, "--out", other, "-m", "lace"], "called 'lace'"),
        (["detox", "atlas", "--pairs", sides, "--out", other], "s.csv:2: 'prompt' is missing"),
        (["detox", "atlas", "--pairs", pairs, "--out", other, "-m", "steering"], "have none"),
        ([*given[:4], "--out", other, "-m", "leace", "--keep", kept], "leace keeps nothing"),
    ):
        done, said = run(*words)
        assert done == 2 and what in said.replace("\n", " ") and not other.exists(), said
