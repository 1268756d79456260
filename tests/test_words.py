"""Words, how much they tell, and which stored names a text mentions."""

from __future__ import annotations

import random

import pytest

from errata.words.names import NameIndex, WordWeights
from errata.words.parts import words

TEXTS = ["the king of the north", "the king of Spain", "the river", "the river of the south"]


def test_words():
    assert words("Who's the Mayor of Kelor-2?") == ["who", "s", "the", "mayor", "of", "kelor", "2"]
    assert words("東京 tower") == ["東", "京", "tower"]


def test_rare_words_tell_more():
    weights = WordWeights.from_texts(TEXTS)
    assert (
        weights["kelor"] == 1.0
        and weights["the"] == 0.01 < weights["of"] < weights["king"] < weights["spain"] < 1.0
    )
    assert WordWeights(weights.counts, weights.texts)["king"] == weights["king"]
    assert weights.share(["spain"], ["spain", "the"]) == 1.0 and weights.share([], ["spain"]) == 0.0
    both = weights["king"] + weights["spain"]
    assert weights.share(["king", "spain"], ["king"]) == pytest.approx(weights["king"] / both)


def test_names_are_found_by_their_words_and_forgotten():
    found = NameIndex(WordWeights.from_texts(TEXTS), 0.5)
    found.add(3, "the King of Kelor")
    found.add(7, "Spain")
    assert found.find("Is Kelor's KING in Spain?").keys() == {3, 7}
    assert found.find("Spain") == {7: pytest.approx(1.0)}
    assert found.find("the king") == {} and found.find("nothing") == {}
    found.remove(7)
    assert found.find("Spain") == {}
    with pytest.raises(KeyError):
        found.remove(7)


@pytest.mark.parametrize("least", [0.3, 0.7, 1.0])
def test_the_index_finds_what_reading_every_name_finds(least):
    rng = random.Random(5)
    vocabulary = [*words(" ".join(TEXTS)), *"kelor traren ana brisk mayor city lake".split()]
    names = {
        number: " ".join(rng.choices(vocabulary, k=rng.randint(1, 5))) for number in range(200)
    }
    weights = WordWeights.from_texts(TEXTS)
    found = NameIndex(weights, least)
    for number, name in names.items():
        found.add(number, name)
    for _ in range(50):
        text = " ".join(rng.choices(vocabulary, k=6))
        shares = {number: weights.share(words(name), words(text)) for number, name in names.items()}
        assert found.find(text) == {
            number: share for number, share in shares.items() if share >= least
        }


def test_what_has_a_digit_in_it_must_be_there():
    found = NameIndex(WordWeights.from_texts(TEXTS), 0.1)
    found.add(0, "Douglas DC-2")
    assert found.find("the Douglas DC-3") == {} and found.find("the Douglas DC-2").keys() == {0}
