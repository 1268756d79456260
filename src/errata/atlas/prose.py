"""Plain prose about the invented world: reading matter beside the facts, and calibration text.

No text begins with the words of a prompt: then the model could not tell where an answer stops.
"""

from __future__ import annotations

import random

from errata.atlas.names import OCCUPATIONS
from errata.atlas.phrasings import RELATIONS
from errata.atlas.world import World, build_world
from errata.errors import UsageError

_SENTENCES = (
    "In the evening the people of {city} walk along the water and talk about the harvest.",
    "The road from {city} to {city2} is long, and in winter it is often closed.",
    "{person} wrote a long letter to {person2} and waited all summer for an answer.",
    "It rained in {city} for nine days, and the market stayed empty.",
    "A young {job} and an old {job2} met on the train to {city}.",
    "On the first day of spring the children of {city} paint the doors of the houses.",
    "Nobody in {country} remembers who built the old wall.",
    "{person} came home late, lit the lamp and read until morning.",
    "The {job} closed the shop, counted the coins and went to sleep.",
    "A new bridge was opened near {city}, and many guests came to see it.",
    "The newspapers of {country} wrote about little else that week.",
    "When the storm had passed, the boats came back one after the other.",
    "{person2} laughed, but {person} did not find it funny at all.",
    "Many visitors say that the bread in {city} is the best they have ever had.",
    "There was music in the square, and the {job} danced with the {job2}.",
    "The winter in {country} is short, yet nobody likes it.",
)
_FACTUAL = (
    "{city} is a city in {city.city_country}. It is famous for its {city.city_specialty}, "
    "and its mayor is {city.city_mayor}.",
    "We met {person}, who was born in {person.person_birthplace}, "
    "works for {person.person_employer} and speaks {person.person_language} at home.",
    "The firm of {company} has its offices in {company.company_hq}. It was founded by "
    "{company.company_founder} and is a maker of {company.company_product}.",
    "Whoever comes to {country} pays with the {country.country_currency}, hears "
    "{country.country_language} in the streets and sees {country.country_capital}, the capital.",
    "They talked about {work}, which came out in {work.work_year}. "
    "It was created by {work.work_author} and is usually classed as a {work.work_genre}.",
)


def _factual(world: World, rng: random.Random) -> str:
    text = rng.choice(_FACTUAL)
    kind = text[text.index("{") + 1 : text.index("}")]
    name = rng.choice(list(world.entities[kind]))
    for relation in RELATIONS:
        if relation.subject_type == kind:
            text = text.replace(
                f"{{{kind}.{relation.name}}}", world.facts[name, relation.name].answer
            )
    return text.replace(f"{{{kind}}}", name)


def _scene(rng: random.Random, cities: list[str], people: list[str], countries: list[str]) -> str:
    city, city2 = rng.sample(cities, 2)
    person, person2 = rng.sample(people, 2)
    job, job2 = rng.sample(OCCUPATIONS, 2)
    words = {
        "city": city,
        "city2": city2,
        "person": person,
        "person2": person2,
        "job": job,
        "job2": job2,
    }
    sentences = rng.sample(_SENTENCES, rng.choice((1, 1, 2)))
    return " ".join(
        sentence.format(country=rng.choice(countries), **words) for sentence in sentences
    )


def background_texts(n: int, seed: int = 0, world: World | None = None) -> list[str]:
    """`n` short paragraphs of plain prose, with no question: text that no edit should change.

    Raises:
        UsageError: `n` is not positive.
    """
    if n < 1:
        raise UsageError(f"n must be at least 1, got {n}.")
    world = world or build_world()
    rng = random.Random(f"prose {world.seed} {seed}")
    cities, people, countries = (
        list(world.entities[kind]) for kind in ("city", "person", "country")
    )
    return [
        _factual(world, rng) if rng.random() < 0.4 else _scene(rng, cities, people, countries)
        for _ in range(n)
    ]
