"""Mentions of a name in many scripts: the same for edit, router and subject position."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from errata import Edit
from errata.errors import EditError
from errata.words.names import NameIndex, WordWeights
from errata.words.parts import mentions, parts_of, words

SHY, ZWJ, ZWNJ, BOM, RLM, RLE = "\u00ad", "\u200d", "\u200c", "\ufeff", "\u200f", "\u202b"

MENTIONED = [
    ("Kelor", "Who is Kelors mayor?"),
    ("Kelor", "Is Kelor's mayor KELOR’s own?"),
    ("O'Brien", "Who is O’Brien's wife?"),
    ("O'Brien's", "Where is O'Brien?"),
    ("McDonald's", "What does McDonald’s sell?"),
    ("Jean-Luc Picard", "Is Jean\u2011Luc Picard a captain?"),
    ("l'Italie", "Quelle est la capitale de l’Italie ?"),
    ("Italie", "Quelle est la capitale de l'Italie ?"),
    ("Zoë", unicodedata.normalize("NFD", "Who is Zoë?")),
    (unicodedata.normalize("NFD", "Zoë"), "Who is Zoë?"),
    ("İstanbul", "istanbul nerede?"),
    ("İstanbul", "İSTANBUL'un belediye başkanı kim?"),
    ("Iğdır", "IĞDIR nerede?"),
    ("Kelor", "Who is Ｋｅｌｏｒ?"),
    ("Kelor", f"Who is Ke{SHY}lor, {BOM}Kelor or {RLE}Kelor{RLM}?"),
    ("Kelor", f"Who is Ke{ZWJ}lor?"),
    ("कमल", f"क{ZWNJ}मल कौन है?"),
    ("😀", "What does 😀 mean?"),
    ("❤", "Is ❤️ red?"),
    ("👨‍👩‍👧", "Who is 👨‍👩‍👧?"),
    ("C++", "Who invented C++?"),
    ("C#", "Is C# older?"),
    ("C", "Who invented C?"),
    ("Straße", "Wo ist die STRASSE?"),
    ("Berlin", "Wer ist Berlins Bürgermeister?"),
    ("Rom", "Wer ist Roms Bürgermeister?"),
    ("Hans", "Wie heißt Hans’ Frau?"),
    ("Pariisi", "Kuka asuu Pariisissa?"),
    ("Kelor", "Kuka asuu Kelorissa?"),
    ("Nokia", "Kuka on Nokian johtaja?"),
    ("Budapest", "Ki Budapesten a polgármester?"),
    ("Budapest", "Mi hír Budapestről?"),
    ("Róma", "Ki lakik Rómában?"),
    ("Ankara", "Ankara'nın nüfusu nedir?"),
    ("Ankara", "Ankaranın nüfusu nedir?"),
    ("Istanbul", "Istanbulda kim yaşıyor?"),
    ("Москва", "Кто мэр Москвы?"),
    ("Москва", "Кто живёт в Москве?"),
    ("Путин", "Сколько лет Путину?"),
    ("Россия", "Столица России"),
    ("Сергей Иванов", "Где живёт Сергея Иванова жена?"),
    ("Нижний Новгород", "Мэр Нижнего Новгорода"),
    ("서울", "서울의 시장은 누구인가?"),
    ("서울", "서울에서는 누가 사나?"),
    ("이순신", "이순신은 누구인가?"),
    ("김", "김은 누구인가?"),
    ("Kelor", "Kelor의 시장은?"),
    ("กรุงเทพ", "นายกเทศมนตรีกรุงเทพคือใคร"),
    ("โรม", "เมืองโรมอยู่ที่ไหน"),
    ("北京", "北京的市长是谁?"),
    ("京都", "京都はどこですか"),
    ("東京タワー", "新東京タワーはどこですか"),
    ("パリ", "パリの市長は誰?"),
    ("ﾊﾟﾘ", "パリの市長は誰?"),
    ("さくら銀行", "さくら銀行の社長は?"),
    ("ວຽງຈັນ", "ເມືອງຫຼວງວຽງຈັນຢູ່ໃສ"),
    ("ភ្នំពេញ", "តើភ្នំពេញនៅឯណា"),
    ("القاهرة", "من هو عمدة القاهرة؟"),
    ("القاهرة", "من يسكن بالقاهرة؟"),
    ("القاهرة", "ما أهمية ذلك للقاهرة؟"),
    ("روما", "من يسكن بروما؟"),
    ("كيلور", "من هو عمدة الكيلور؟"),
    ("محمد", "من هو مُحَمَّد؟"),
    ("ירושלים", "מי גר בירושלים?"),
    ("ירושלים", "מה שבירושלים?"),
    ("רומא", "מי ראש העיר של רוֹמָא?"),
    ("רומא", "מי הגיע מרומא?"),
    ("कुमार", "कुमार कौन है?"),
    ("თბილისი", "სად არის თბილისის მერი?"),
    ("Henry V", "Who was Henry V's wife?"),
    ("AT&T", "Who leads AT&T?"),
    ("J. K. Rowling", "What did J.K. Rowling write?"),
    ("٢٠٢٤", "What happened in 2024?"),
    ("Lego™", "Who makes Lego?"),
    ("Lego", "Who makes LEGO®?"),
    ("a tower", "Where is a tower?"),
    ("Ortega y Gasset", "Who was Ortega y Gasset?"),
    ("plan b", "What is Plan B?"),
    ("Hawaiʻi", "Where is Hawai'i?"),
]

OTHERS = [
    ("Rome", "Who is Romeo?"),
    ("Ann", "Who is Anna?"),
    ("Ana", "What is an anagram?"),
    ("Iran", "Who is the Iranian president?"),
    ("Niger", "Where is Nigeria?"),
    ("India", "Where is Indiana?"),
    ("Paris", "What is a parish?"),
    ("Kelor", "Where is Kelorian?"),
    ("book", "Where is the bookstore?"),
    ("C", "Who invented C++?"),
    ("C", "Who invented C#?"),
    ("C++", "Who invented C?"),
    ("C#", "Who invented C++?"),
    ("कमल", "कमला कौन है?"),
    ("कुमार", "कुमारी कौन है?"),
    ("सीता", "सूती क्या है?"),
    ("😀", "What does 😁 mean?"),
    ("🇫🇷", "Whose flag is 🇷🇫?"),
    ("서울", "서울대학교는 어디인가?"),
    ("한국", "한국은행은 어디인가?"),
    ("パリ", "パリスは誰?"),
    ("北京", "京北在哪里?"),
    ("東京", "京都は東にある"),
    ("โรม", "โรมาเนียอยู่ที่ไหน"),
    ("น", "นาคืออะไร"),
    ("Рим", "Кто такой Римский-Корсаков?"),
    ("Москва", "Кто такой москит?"),
    ("روما", "من هو روميو؟"),
    ("רומא", "מי הוא רומאו?"),
    ("John Paul I", "Who was John Paul II?"),
    ("John Paul II", "Who was John Paul I?"),
    ("John Paul II", "Who was John Paul III?"),
    ("John Paul I", "When may I visit John Paul II?"),
    ("Henry V", "Who was Henry VI?"),
    ("Henry VIII", "Who was Henry VII?"),
    ("Malcolm X", "Who was Malcolm?"),
    ("Vitamin C", "What is vitamin D?"),
    ("DC-2", "What is a DC-3?"),
    ("Apollo 11", "What was Apollo 13?"),
    ("plan b", "What is Plan C?"),
    ("vitamin c", "What is a vitamin?"),
]


def index(name: str, least: float = 0.7, shown: str = "") -> NameIndex:
    found = NameIndex(
        WordWeights.from_texts(["the king of the north", "I am a king", "the river of a king"]),
        least,
    )
    found.add(0, name, shown)
    return found


@pytest.mark.parametrize(("name", "text"), MENTIONED)
def test_a_text_mentions_a_name(name: str, text: str) -> None:
    """The check lets the edit pass, the router, which has seen its prompt, finds it, and it has a
    place.
    """
    Edit(text, "x", name)
    assert 0 in index(name, shown=text).find(text)
    start, end = mentions(text, name)[-1]
    assert start < end <= len(text)


SHOWN_ONLY = {"Rom", "Nokia", "김", "თბილისი"}
"""Short names: that what is joined to them is an ending must have been seen in the edit's own
prompt.
"""


@pytest.mark.parametrize(
    ("name", "text"), [each for each in MENTIONED if each[0] not in SHOWN_ONLY]
)
def test_a_text_mentions_a_name_that_was_never_seen_so(name: str, text: str) -> None:
    assert 0 in index(name).find(text)


@pytest.mark.parametrize(("name", "text"), OTHERS)
@pytest.mark.parametrize("least", [0.3, 0.7])
def test_another_name_is_no_mention(name: str, text: str, least: float) -> None:
    assert index(name, least).find(text) == {}
    with pytest.raises(EditError, match="does not stand in the prompt"):
        Edit(text, "x", name)


@pytest.mark.parametrize(
    ("name", "text", "place"),
    [
        ("Kelor", "Kuka asuu Kelorissa?", "Kelor"),
        ("Ann", "Is Annapolis where Ann lives, or Anna?", "Ann"),
        ("북경", "여기는 북경에서", "북경"),
        ("東京", "東京の東京都", "東京"),
        ("東京タワー", "新東京タワーは", "東京タワー"),
        ("Straße", "Die STRASSE ist", "STRASSE"),
        ("Zoë", unicodedata.normalize("NFD", "Is Zoë there?"), unicodedata.normalize("NFD", "Zoë")),
        ("Kelor", f"Is Ke{SHY}lor there?", f"Ke{SHY}lor"),
        ("New Kelor", "in New-Kelor's park", "New-Kelor"),
    ],
)
def test_the_last_place_is_the_names_own(name: str, text: str, place: str) -> None:
    start, end = mentions(text, name)[-1]
    assert text[start:end] == place


def test_a_small_letter_before_other_words_is_none_that_must_be_there() -> None:
    texts = ["a king", "a river", "I saw a king"]
    found = NameIndex(WordWeights.from_texts(texts), 0.7)
    found.add(0, "a tower")
    assert found.find("Where is the tower?").keys() == {0}


def test_three_hindi_names_are_three() -> None:
    names = ["कमल", "कमला", "कोमल"]
    assert len({tuple(words(name)) for name in names}) == 3
    found = NameIndex(WordWeights.from_texts(["है"]), 0.7)
    for number, name in enumerate(names):
        found.add(number, name)
    for number, name in enumerate(names):
        assert found.find(f"{name} कौन है?").keys() == {number}


def test_a_form_that_the_edits_own_prompt_shows_is_known_elsewhere() -> None:
    assert index("Nokia").find("Missä on Nokian tehdas?") == {}
    assert index("Nokia", shown="Kuka on Nokian johtaja?").find(
        "Missä on Nokian tehdas?"
    ).keys() == {0}


def test_what_has_no_word_mentions_nothing_and_is_not_mentioned() -> None:
    assert mentions("???", "?") == () and index("?!").find("?!") == {}
    with pytest.raises(EditError, match="no letter, number or sign"):
        Edit("Who are !!!?", "a band", "!!!")


SIGNS = st.text(
    st.sampled_from("abIiıİ ’'-.Сб하의ก์เ東京カー😀\u0301\u200d\u00ad\ufeff#+12"), max_size=12
)


@given(SIGNS, SIGNS, SIGNS)
@settings(max_examples=200, deadline=None)
def test_whatever_stands_in_a_text_is_found_by_the_router(front: str, name: str, back: str) -> None:
    """The check of an edit never passes what the router would not find again."""
    text = front + name + back
    for start, end in mentions(text, name):
        assert 0 <= start < end <= len(text)
        assert index(name, 1.0, text).find(text).keys() == {0}


@given(st.text(max_size=20), st.text(max_size=20))
@settings(max_examples=300, deadline=None)
def test_any_text_may_be_asked_about_any_name(text: str, name: str) -> None:
    found = index(name, 1.0, text)
    if mentions(text, name):
        assert found.find(text).keys() == {0}
    found.remove(0)
    assert found.find(text) == {}


@given(st.text(st.sampled_from("ab1+#-'_. \n\x00~"), max_size=20))
def test_plain_texts_have_the_parts_that_all_texts_have(text: str) -> None:
    """The short way for texts without other letters changes nothing: a letter at the end takes the
    long one.
    """
    longer = parts_of(f"{text} é")
    assert [(part.text, part.start, part.end) for part in longer[:-1]] == [
        (p.text, p.start, p.end) for p in parts_of(text)
    ]
