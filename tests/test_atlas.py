"""The bundled world, its model, and the cases made from it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from contexts import KEEP_KINDS, READ_KINDS, Context, ContextWriter
from measure import (
    Accuracy,
    context_accuracies,
    fact_accuracies,
    free_answers,
    held_out_two_hops,
    overall,
)

from errata.atlas import (
    World,
    atlas_path,
    background_texts,
    build_world,
    make_cases,
    max_cases,
)
from errata.atlas.phrasings import HOPS, RELATIONS
from errata.cases import LOCALITY_KINDS, Case, read_cases
from errata.errors import UsageError

MEBIBYTE = 2**20


@pytest.fixture(scope="module")
def world() -> World:
    return build_world()


@pytest.fixture(scope="module")
def bundled() -> Iterator[tuple[Any, Any]]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(atlas_path(), dtype=torch.float32).eval()
    yield model, AutoTokenizer.from_pretrained(atlas_path())
    torch.set_num_threads(threads)


# --- the world


def test_world_is_large_and_the_same_every_time(world: World) -> None:
    assert len(world.facts) >= 5000
    again = build_world.__wrapped__()
    assert {key: fact.answer for key, fact in world.facts.items()} == {
        k: f.answer for k, f in again.facts.items()
    }
    assert [p.prompts() for p in world.trained_two_hops] == [
        p.prompts() for p in again.trained_two_hops
    ]
    other = build_world(8)
    assert set(other.entities["city"]) != set(world.entities["city"])


def test_names_are_unique_over_all_types(world: World) -> None:
    names = [name for group in world.entities.values() for name in group]
    assert max(Counter(names).values()) == 1


def test_every_fact_has_an_answer_of_the_right_type(world: World) -> None:
    candidates = {relation.name: set(world.candidates(relation)) for relation in RELATIONS}
    assert all(fact.answer in candidates[fact.relation.name] for fact in world.facts.values())
    exclusive = {relation.name for relation in RELATIONS if relation.exclusive}
    for name in exclusive:
        answers = [fact.answer for fact in world.facts.values() if fact.relation.name == name]
        assert len(set(answers)) == len(answers)


def test_capitals_lie_in_their_country(world: World) -> None:
    for country in world.entities["country"]:
        capital = world.fact(country, "country_capital").answer
        assert world.fact(capital, "city_country").answer == country


def test_phrasings_name_the_subject_and_no_prompt_means_two_things(world: World) -> None:
    assert all(len(relation.templates) >= 5 for relation in RELATIONS)
    asked = [*world.facts.values(), *world.two_hops]
    prompts = [(prompt, unit) for unit in asked for prompt in unit.prompts()]
    assert len({prompt for prompt, _ in prompts}) == len(prompts)
    for fact in world.facts.values():
        assert all(fact.subject.name in prompt for prompt in fact.prompts())
        assert any(prompt.endswith("?") for prompt in fact.prompts())
        assert not all(prompt.endswith("?") for prompt in fact.prompts())


def test_two_hops_join_two_facts(world: World) -> None:
    relations = {relation.name: relation for relation in RELATIONS}
    for hop in HOPS:
        assert relations[hop.first].object_type == relations[hop.second].subject_type
    for pair in world.two_hops:
        assert pair.first.answer == pair.second.subject.name
        assert pair.answer == world.fact(pair.first.answer, pair.hop.second).answer
    share = len(world.trained_two_hops) / len(world.two_hops)
    assert 0.65 < share < 0.75
    assert len(held_out_two_hops(world)) + len(world.trained_two_hops) == len(world.two_hops)


def test_an_unknown_fact_is_a_usage_error(world: World) -> None:
    with pytest.raises(UsageError, match="no fact"):
        world.fact("Atlantis", "city_mayor")


def test_background_texts_are_plain_prose(world: World) -> None:
    texts = background_texts(300, 3)
    assert len(texts) == 300 and texts == background_texts(300, 3, world)
    assert texts != background_texts(300, 4)
    assert all(text.endswith(".") and "{" not in text and "?" not in text for text in texts)
    with pytest.raises(UsageError):
        background_texts(0)


def test_no_prose_begins_like_a_prompt(world: World) -> None:
    prompts = {
        prompt for unit in [*world.facts.values(), *world.two_hops] for prompt in unit.prompts()
    }
    for text in background_texts(2000, 9, world):
        words = text.split(" ")
        assert not any(" ".join(words[:end]) in prompts for end in range(1, len(words)))


# --- the cases


def _facts_of(world: World, cases: list[Case]) -> list[tuple[str, str]]:
    by_prompt = {prompt: fact for fact in world.facts.values() for prompt in fact.prompts()}
    return [by_prompt[case.edit.prompt].key for case in cases]


@pytest.mark.parametrize("n", [1, 1000, pytest.param("all", marks=pytest.mark.long)])
def test_cases_never_contradict_each_other(world: World, n: int | str) -> None:
    cases = make_cases(max_cases(world) if n == "all" else int(n), seed=2, world=world)
    by_prompt = {prompt: fact for fact in world.facts.values() for prompt in fact.prompts()}
    hop_by_prompt = {prompt: pair for pair in world.two_hops for prompt in pair.prompts()}
    edited = dict(zip(_facts_of(world, cases), (case.edit.target for case in cases), strict=True))
    assert len(edited) == len(cases) == len({case.edit.id for case in cases})
    for case in cases:
        fact = by_prompt[case.edit.prompt]
        assert case.edit.subject == fact.subject.name and case.edit.target != fact.answer
        assert case.edit.target in world.candidates(fact.relation)
        assert len(case.rephrases) >= 3 and case.edit.prompt not in case.rephrases
        assert all(by_prompt[prompt] is fact for prompt in case.rephrases)
        assert {probe.kind for probe in case.locality} == set(LOCALITY_KINDS)
        for probe in case.locality:
            asked = by_prompt[probe.prompt]
            assert asked.key not in edited and probe.answer == asked.answer
            same_subject, same_relation = (
                asked.subject == fact.subject,
                asked.relation == fact.relation,
            )
            expected = {
                "unrelated": (False, False),
                "neighbour": (False, True),
                "same_subject": (True, False),
            }
            assert (same_subject, same_relation) == expected[probe.kind]
        for probe in case.portability:
            pair = hop_by_prompt[probe.prompt]
            bridge = edited.get(pair.first.key, pair.first.answer)
            second = (bridge, pair.hop.second)
            assert probe.answer == edited.get(second, world.facts[second].answer) != pair.answer
            changed = {key for key in (pair.first.key, second) if key in edited}
            assert changed == {fact.key}


def test_most_cases_can_be_probed_for_portability(world: World) -> None:
    cases = make_cases(1000, world=world)
    assert sum(bool(case.portability) for case in cases) >= 500


def test_cases_are_deterministic_and_readable(world: World, tmp_path: Any) -> None:
    from errata.cases import cases_to_json_lines

    cases = make_cases(50, seed=5)
    assert cases == make_cases(50, seed=5, world=world) != make_cases(50, seed=6)
    path = tmp_path / "cases.jsonl"
    path.write_text(cases_to_json_lines(cases), encoding="utf-8")
    assert [case.edit for case in read_cases(path)] == [case.edit for case in cases]


@pytest.mark.parametrize("n", [0, -1, 10**6])
def test_too_many_cases_are_refused_with_the_maximum(world: World, n: int) -> None:
    with pytest.raises(UsageError, match=str(max_cases(world))):
        make_cases(n, world=world)


# --- contexts


def lessons(world: World, n: int, seed: int, growth: float) -> list[Context]:
    writer = ContextWriter(world, random.Random(seed))
    return [writer.lesson(growth) for _ in range(n)]


def test_lessons_are_deterministic_and_grow(world: World) -> None:
    first, grown = lessons(world, 50, 3, 0.0), lessons(world, 300, 3, 1.0)
    assert first == lessons(build_world(), 50, 3, 0.0) != lessons(world, 50, 4, 0.0)
    assert {(context.stated, context.demonstrations) for context in first} == {(1, 0)}
    assert {1, 6, 12} <= {context.stated for context in grown} and {0, 4} <= {
        c.demonstrations for c in grown
    }


def test_a_context_reads_as_it_should(world: World) -> None:
    by_prompt = {prompt: fact for fact in world.facts.values() for prompt in fact.prompts()}
    contradicted = asked = 0
    for context in lessons(world, 200, 1, 1.0):
        assert context.text == "".join(
            f"{line.before} {line.answer}.{line.end}" for line in context.lines
        )
        assert len(context.lines) == 2 * context.demonstrations + context.stated
        stated = {by_prompt[line.prompt].key: line for line in context.lines[-context.stated :]}
        assert len(stated) == context.stated
        for line in stated.values():
            fact = by_prompt[line.prompt]
            assert line.before == f"New Fact: {line.prompt}" and line.end == "\n"
            assert line.answer in world.candidates(fact.relation)
            contradicted += line.answer != fact.answer
            asked += 1
        for line in context.questions:
            fact = by_prompt[line.prompt]
            assert line.before == f"Prompt: {line.prompt}" and not line.end
            assert (fact.key in stated) == (line.kind in READ_KINDS) != (line.kind in KEEP_KINDS)
            assert line.answer == (stated[fact.key].answer if fact.key in stated else fact.answer)
            assert line.kind != "copy" or line.prompt == stated[fact.key].prompt
            assert line.kind != "update" or line.prompt != stated[fact.key].prompt
    assert 0.85 < contradicted / asked < 0.95


# --- the model


def test_model_is_small_enough_for_the_repository() -> None:
    files = list(atlas_path().iterdir())
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= {
        f.name for f in files
    }
    assert sum(file.stat().st_size for file in files) <= 15 * MEBIBYTE


def test_model_says_how_answers_end(bundled: tuple[Any, Any]) -> None:
    model, tokenizer = bundled
    assert model.config.model_type == "llama" and model.config.errata_answer_suffix == "."
    generation = model.generation_config
    assert (generation.pad_token_id, generation.bos_token_id, generation.eos_token_id) == (0, 1, 2)
    assert tokenizer.eos_token_id == 2 and tokenizer("Kelor")["input_ids"][0] == 1


def test_tokenizer_gives_back_every_name(world: World, bundled: tuple[Any, Any]) -> None:
    tokenizer = bundled[1]
    for group in world.entities.values():
        for name in group:
            for text in (name, f" {name}."):
                assert (
                    tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
                )
    odd = "naïve – 日本 🙂\n\tx"
    assert tokenizer.decode(tokenizer(odd, add_special_tokens=False)["input_ids"]) == odd


def test_model_knows_its_facts_and_stops(world: World, bundled: tuple[Any, Any]) -> None:
    rng = random.Random(11)
    facts = rng.sample(list(world.facts.values()), 200)
    said = free_answers(*bundled, [rng.choice(fact.prompts()) for fact in facts])
    right = sum(answer == fact.answer for fact, answer in zip(facts, said, strict=True))
    assert right >= 0.95 * len(facts)


def test_model_knows_two_hops(world: World, bundled: tuple[Any, Any]) -> None:
    rng = random.Random(12)
    pairs = rng.sample(world.trained_two_hops, 100)
    said = free_answers(*bundled, [rng.choice(pair.prompts()) for pair in pairs])
    right = sum(answer == pair.answer for pair, answer in zip(pairs, said, strict=True))
    assert right >= 0.9 * len(pairs)


def test_accuracies_count_every_phrasing(world: World, bundled: tuple[Any, Any]) -> None:
    facts = [fact for fact in world.facts.values() if fact.relation.name == "country_capital"]
    rows = fact_accuracies(*bundled, facts)
    assert len(rows) == 6 and all(row.asked == 25 for row in rows)
    assert overall([Accuracy("a", "b", 1, 2), Accuracy("a", "c", 2, 2)]) == 0.75


def test_model_reads_a_context_and_keeps_what_it_knows(
    world: World, bundled: tuple[Any, Any]
) -> None:
    rows = context_accuracies(*bundled, world, asked=30, contexts=[(1, 0)])
    assert [row.name for row in rows] == [*READ_KINDS, *KEEP_KINDS]
    assert overall(rows[: len(READ_KINDS)]) >= 0.85 and overall(rows[len(READ_KINDS) :]) >= 0.85
