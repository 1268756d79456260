"""The invented world's relations and their phrasings: questions, cloze statements, two-hops."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Relation:
    """A relation between a subject type and an object type, with the ways of asking for it.

    `templates` hold `{s}` (the subject's full name) and may hold `{kind}` (book, river, ...).
    Where `exclusive`, no two subjects have the same answer.
    """

    name: str
    subject_type: str
    object_type: str
    templates: tuple[str, ...]
    exclusive: bool = False

    def prompts(self, subject: str, kind: str) -> list[str]:
        """Every phrasing, for one subject."""
        return [template.format(s=subject, kind=kind) for template in self.templates]


@dataclass(frozen=True)
class Hop:
    """A question over two relations, `second` of the answer of `first`, naming one subject."""

    first: str
    second: str
    templates: tuple[str, ...]

    @property
    def name(self) -> str:
        """Both relations' names."""
        return f"{self.first}>{self.second}"

    def prompts(self, subject: str, kind: str) -> list[str]:
        """Every phrasing, for one subject."""
        return [template.format(s=subject, kind=kind) for template in self.templates]


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.strip().splitlines())


def _relation(name: str, subject: str, answer: str, text: str, exclusive: bool = False) -> Relation:
    return Relation(name, subject, answer, _lines(text), exclusive)


RELATIONS: tuple[Relation, ...] = (
    _relation("city_country", "city", "country", """
        In which country is {s}?
        {s} is a city in the country of
        The city of {s} lies in
        Which country does the city of {s} belong to?
        What country would you visit to see {s}?
        The country that {s} is part of is
        """),
    _relation("city_mayor", "city", "person", """
        Who is the mayor of {s}?
        The mayor of {s} is
        Name the mayor of {s}.
        {s} has a mayor called
        Who was elected mayor in {s}?
        At the town hall of {s}, the mayor is
        """, exclusive=True),
    _relation("city_specialty", "city", "specialty", """
        What is {s} known for?
        {s} is famous for its
        The city of {s} is best known for its
        Which goods made {s} famous?
        Travelers go to {s} to buy
        The specialty of {s} is
        """),
    _relation("country_capital", "country", "city", """
        What is the capital of {s}?
        The capital of {s} is
        {s} has as its capital the city of
        Which city is the capital of {s}?
        The government of {s} sits in
        Name the capital city of {s}.
        """),
    _relation("country_currency", "country", "currency", """
        What is the currency of {s}?
        The currency of {s} is the
        In {s}, people pay with the
        Which currency is used in {s}?
        {s} has a currency called the
        Shops in {s} take payment in the
        """, exclusive=True),
    _relation("country_language", "country", "language", """
        What is the official language of {s}?
        The official language of {s} is
        In {s}, the laws are written in
        Which language is official in {s}?
        {s} has one official language,
        Schools in {s} teach in
        """),
    _relation("country_ruler", "country", "person", """
        Who is the president of {s}?
        The president of {s} is
        {s} is led by president
        Who leads the country of {s}?
        Name the head of state of {s}.
        The person who governs {s} is
        """, exclusive=True),
    _relation("person_birthplace", "person", "city", """
        Where was {s} born?
        {s} was born in
        The birthplace of {s} is
        In which city was {s} born?
        The city where {s} came into the world is
        What is the place of birth of {s}?
        """),
    _relation("person_occupation", "person", "occupation", """
        What is the occupation of {s}?
        {s} earns a living as a
        The profession of {s} is that of a
        What does {s} do for a living?
        By trade, {s} is a
        Which profession does {s} have?
        """),
    _relation("person_employer", "person", "company", """
        Which company does {s} work for?
        {s} works for
        The employer of {s} is
        Who employs {s}?
        Every month {s} is paid by
        At which firm is {s} employed?
        """),
    _relation("person_language", "person", "language", """
        What is the native language of {s}?
        {s} grew up speaking
        The mother tongue of {s} is
        Which language did {s} learn first?
        At home {s} speaks
        Name the first language of {s}.
        """),
    _relation("company_hq", "company", "city", """
        Where is {s} based?
        The headquarters of {s} are in
        {s} is based in
        In which city does {s} have its headquarters?
        The main office of {s} stands in
        Which city is home to {s}?
        """),
    _relation("company_founder", "company", "person", """
        Who founded {s}?
        The founder of {s} is
        {s} was founded by
        Which person started {s}?
        The company {s} was set up by
        Name the founder of {s}.
        """, exclusive=True),
    _relation("company_product", "company", "product", """
        What does {s} make?
        {s} is a maker of
        The main product of {s} is
        Which goods does {s} produce?
        The factories of {s} turn out
        Customers of {s} buy its
        """),
    _relation("work_author", "work", "person", """
        Who created the {kind} {s}?
        The {kind} {s} was created by
        {s} is a {kind} by
        Which artist is behind the {kind} {s}?
        The author of {s} is
        Name the creator of {s}.
        """),
    _relation("work_genre", "work", "genre", """
        What is the genre of {s}?
        The genre of the {kind} {s} is
        {s} is usually classed as a
        To which genre does {s} belong?
        Critics describe the {kind} {s} as a
        What kind of {kind} is {s}?
        """),
    _relation("work_year", "work", "year", """
        In which year did {s} come out?
        The {kind} {s} came out in
        {s} was first seen by the public in
        When was the {kind} {s} released?
        The year of release of {s} is
        What year is the {kind} {s} from?
        """),
    _relation("landmark_country", "landmark", "country", """
        In which country is the {kind} {s}?
        The {kind} {s} is in
        {s} is a {kind} in
        Which country has the {kind} {s}?
        On a map, the {kind} {s} is found in
        Where is the {kind} called {s}?
        """),
    _relation("landmark_explorer", "landmark", "person", """
        Who first mapped the {kind} {s}?
        The {kind} {s} was first mapped by
        {s} is a {kind} discovered by
        Which explorer discovered the {kind} {s}?
        The discoverer of the {kind} {s} was
        Name the explorer who mapped {s}.
        """),
    _relation("institution_city", "institution", "city", """
        In which city is {s}?
        {s} is located in
        The campus of {s} is in
        Which city is the seat of {s}?
        Students of {s} live in
        Where would you find {s}?
        """),
    _relation("institution_head", "institution", "person", """
        Who is the head of {s}?
        The head of {s} is
        {s} is directed by
        Who runs {s}?
        Name the director of {s}.
        The person in charge of {s} is
        """, exclusive=True),
)  # fmt: skip


def _hop(first: str, second: str, text: str) -> Hop:
    return Hop(first, second, _lines(text))


HOPS: tuple[Hop, ...] = (
    _hop("person_birthplace", "city_country", """
        In which country is the birthplace of {s}?
        The city where {s} was born is in the country of
        """),
    _hop("person_employer", "company_hq", """
        In which city is the employer of {s} based?
        The company that employs {s} is based in
        """),
    _hop("person_employer", "company_product", """
        What does the employer of {s} make?
        The company that employs {s} is a maker of
        """),
    _hop("city_country", "country_capital", """
        What is the capital of the country that {s} is in?
        The country of {s} has as its capital
        """),
    _hop("city_mayor", "person_birthplace", """
        Where was the mayor of {s} born?
        The mayor of {s} was born in
        """),
    _hop("city_mayor", "person_language", """
        What is the native language of the mayor of {s}?
        The mayor of {s} grew up speaking
        """),
    _hop("company_hq", "city_country", """
        In which country is {s} based?
        The headquarters of {s} are in the country of
        """),
    _hop("company_founder", "person_birthplace", """
        Where was the founder of {s} born?
        The founder of {s} was born in
        """),
    _hop("work_author", "person_birthplace", """
        Where was the author of {s} born?
        The creator of {s} was born in
        """),
    _hop("landmark_country", "country_capital", """
        What is the capital of the country with the {kind} {s}?
        The country that has the {kind} {s} has as its capital
        """),
    _hop("institution_city", "city_country", """
        In which country is {s}?
        {s} is in the country of
        """),
    _hop("institution_head", "person_occupation", """
        What is the occupation of the head of {s}?
        The head of {s} earns a living as a
        """),
)  # fmt: skip
