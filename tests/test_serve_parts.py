"""What a server is made of, without a model: growing text, choosing tokens, the ledger, keys."""

from __future__ import annotations

import json
import re
import sqlite3
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from errata.errors import ArtifactError, StorageError, UnknownNameError, UsageError
from errata.serve.keys import Role, digest_of, new_key, read_keys
from errata.serve.ledger import ACTIVATE, EDIT, UNDO, BehindError, Ledger
from errata.serve.policy import read_policy
from errata.serve.sampling import RowChoosers, Sampling, TokenChooser
from errata.serve.text import GrowingText

# the text of an answer


@settings(max_examples=200, deadline=None)
@example("a🙂a", ["🙂", "a🙂a"], 9)
@example("a🙂a", ["🙂", "a🙂"], 9)
@given(
    st.text(alphabet="abé漢🙂 ", max_size=30),
    st.lists(st.text("ab🙂", max_size=3), max_size=3),
    st.integers(1, 9),
)
def test_the_pieces_of_an_answer_are_its_text_up_to_the_stop_complete_first(text, stops, size):
    """However long the tokens are."""
    tokens = [text.encode()[begin : begin + size] for begin in range(0, len(text.encode()), size)]
    growing = GrowingText(
        lambda ids: b"".join(tokens[i] for i in ids).decode(errors="replace"), stops
    )
    pieces = []
    for token in range(len(tokens)):
        pieces.append(growing.add(token))
        if growing.stopped:
            break
    pieces.append(growing.end())
    met = [text[: text.index(stop) + len(stop)] for stop in filter(None, stops) if stop in text]
    expected = text
    if met:
        first = min(met, key=len)
        ending_there = [stop for stop in filter(None, stops) if first.endswith(stop)]
        expected = first.removesuffix(max(ending_there, key=len))
    assert "".join(pieces) == growing.text == expected
    assert growing.stopped == bool(met)
    assert not any("\ufffd" in piece for piece in pieces)


# the choice of tokens


LOGITS = torch.tensor([0.5, 2.0, 1.0, -1.0])


def chosen(count: int = 400, **options: object) -> list[int]:
    chooser = TokenChooser(Sampling(9, **{"seed": 1, **options}))
    return [chooser.choose(LOGITS) for _ in range(count)]


def test_tokens_are_drawn_as_the_settings_say():
    assert set(chosen(9)) == {1}, "greedy"
    drawn = chosen(4000, temperature=1.0)
    shares = torch.bincount(torch.tensor(drawn), minlength=4) / len(drawn)
    assert torch.allclose(shares, LOGITS.softmax(-1), atol=0.03)
    assert drawn == chosen(4000, temperature=1.0) != chosen(4000, temperature=1.0, seed=2)
    assert set(chosen(temperature=1.0, top_p=0.8)) == {1, 2}
    assert set(chosen(temperature=1.0, top_p=1e-9)) == {1}, "the likeliest always is there"
    assert chosen(1, logit_bias={3: 9.0}) == [3]
    assert chosen(3, presence_penalty=1.2) == [1, 2, 1], "once, however often it was said"
    assert set(chosen(30, frequency_penalty=1.0)) == {0, 1, 2, 3}


def test_log_probabilities_are_those_before_temperature_and_bias():
    chooser = TokenChooser(Sampling(9, temperature=0.5, seed=1, top_logprobs=2, logit_bias={3: 99}))
    assert chooser.choose(LOGITS) == 3
    (choice,) = chooser.choices
    wanted = LOGITS.log_softmax(-1)
    assert choice.logprob == pytest.approx(float(wanted[3]))
    assert choice.top == (
        (1, pytest.approx(float(wanted[1]))),
        (2, pytest.approx(float(wanted[2]))),
    )


def test_each_row_has_its_own_settings_and_one_that_has_ended_is_left_alone():
    rows = [TokenChooser(Sampling(9)), TokenChooser(Sampling(9, logit_bias={2: 9.0}))]
    ended = [False, False]
    chosen = RowChoosers(rows, ended)(torch.zeros(2, 1), LOGITS.repeat(2, 1))
    assert chosen.argmax(-1).tolist() == [1, 2] and (chosen > -torch.inf).sum() == 2
    ended[1] = True
    RowChoosers(rows, ended)(torch.zeros(2, 1), LOGITS.repeat(2, 1))
    assert [len(row.choices) for row in rows] == [2, 1]


# the ledger


def ledger_at(folder: Path) -> Ledger:
    return Ledger(f"sqlite:///{folder / 'edits.db'}")


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just(EDIT), st.sets(st.sampled_from("abcd"), min_size=1)),
        st.tuples(st.just(UNDO), st.sets(st.sampled_from("abcd"), min_size=1)),
        st.tuples(st.just(ACTIVATE), st.integers(1, 9)),
    ),
    max_size=9,
)


@pytest.fixture(scope="module")
def one_ledger(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ledger")
    ledger = ledger_at(folder)
    yield folder / "edits.db", ledger
    ledger.close()


@settings(max_examples=3, deadline=None)
@given(STEPS)
def test_the_edits_of_every_version_are_those_of_the_steps_up_to_it(one_ledger, steps):
    file, ledger = one_ledger
    with sqlite3.connect(file) as connection:
        connection.execute("delete from entries")
    ledger.append("errata", "begin", {}, after=0)
    there: list[str] = []
    states = [[], []]
    for action, what in steps:
        if action == EDIT:
            there = [*(name for name in there if name not in what), *sorted(what)]
            there = list(dict.fromkeys([*states[-1], *there]))
            body = {"edits": [{"id": name} for name in sorted(what)]}
        elif action == UNDO:
            there, body = [name for name in there if name not in what], {"ids": sorted(what)}
        else:
            version = min(what, len(states) - 1)
            there, body = states[version], {"version": version}
        ledger.append("ana", action, body, after=len(states) - 1)
        states.append(there)
    found = [[edit["id"] for edit in ledger.edits_at(v)] for v in range(len(states))]
    assert found == states and ledger.version == ledger.verify() == len(states) - 1
    with pytest.raises(UnknownNameError, match=f"no version {len(states)}"):
        ledger.edits_at(len(states))


@pytest.mark.parametrize(
    "forged",
    [
        "update entries set actor = 'bo' where version = 2",
        "update entries set body = '{}' where version = 2",
        "update entries set time = 'now' where version = 1",
        "delete from entries where version = 1",
        "delete from entries where version = 2",
        "update entries set hash = previous where version = 3",
    ],
)
def test_a_ledger_that_was_changed_by_another_hand_is_found_out(tmp_path, forged):
    ledger = ledger_at(tmp_path)
    for number in range(3):
        ledger.append("ana", EDIT, {"edits": [{"id": str(number), "prompt": "Wé?"}]}, after=number)
    assert ledger.verify() == 3
    with sqlite3.connect(tmp_path / "edits.db") as connection:
        connection.execute(forged)
    with pytest.raises(ArtifactError, match="of the ledger is not what was written"):
        ledger.verify()


def test_a_ledger_that_cannot_be_used_is_told_in_a_line(tmp_path):
    for url, error, says in (
        ("edits.db", UsageError, "is no database that can be opened"),
        ("oracel://x/y", UsageError, "is no database that can be opened"),
        (f"sqlite:///{tmp_path}/none/edits.db", StorageError, "cannot be used"),
    ):
        with pytest.raises(error, match=says):
            Ledger(url)
    (tmp_path / "text.db").write_text("no database at all, " * 99)
    with pytest.raises(StorageError, match="not a database"):
        Ledger(f"sqlite:///{tmp_path}/text.db")
    ledger = ledger_at(tmp_path)
    ledger.append("ana", EDIT, {"edits": []}, after=0)
    with pytest.raises(BehindError, match="has the version 1, and this was to follow 0"):
        ledger.append("ana", EDIT, {"edits": []}, after=0)
    with sqlite3.connect(tmp_path / "edits.db") as connection:
        connection.execute("drop table entries")
    with pytest.raises(StorageError, match=r"no such table.*nothing was changed"):
        ledger.append("ana", EDIT, {"edits": []}, after=1)


# keys


def test_a_key_is_known_by_its_hash_alone(tmp_path):
    made, path = new_key(), tmp_path / "keys.toml"
    path.write_text(f'[[key]]\nname = "ana"\nrole = "edit"\nsha256 = "{digest_of(made)}"\n')
    keys = read_keys(path)
    assert keys and keys.holder(made).name == "ana" and keys.holder(made).role is Role.EDIT
    assert keys.holder(made[:-1]) is None and keys.holder("") is None
    assert made not in path.read_text() and len({new_key() for _ in range(99)}) == 99


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", r"no \[\[key\]\]"),
        ("key = 1", r"no \[\[key\]\]"),
        ("[[key]", "cannot be read"),
        ('[[key]]\nname = "a"', "needs name, role and sha256"),
        ('[[key]]\nname = ""\nrole = "ask"\nsha256 = ""', "no name of 1 to 200"),
        ('[[key]]\nname = "a"\nrole = "king"\nsha256 = ""', "the role is ask, edit, admin"),
        ('[[key]]\nname = "a"\nrole = "ask"\nsha256 = "no"', "64 hex digits"),
        ((json.dumps({}) + "\n"), "cannot be read"),
        (('[[key]]\nname = "a"\nrole = "ask"\nsha256 = "' + "0" * 64 + '"\n') * 2, "one name"),
    ],
)
def test_a_file_of_keys_that_is_not_one_is_told_in_a_line(tmp_path, text, says):
    path = tmp_path / "keys.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=says):
        read_keys(path)


# the policy


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("blocked = 1", "'blocked' is a list of texts"),
        ('blocked = ["("]', "is no pattern"),
        ("longest = 0", "'longest' is a number"),
        ("longest = true", "'longest' is a number"),
        ('conflicts = "fight"', "allow or refuse"),
        ('warning = "allow"', "Did you mean 'warnings'"),
        ('plugins = ["none"]', "no plug-in is called 'none'"),
        ("[", "cannot be read"),
    ],
)
def test_a_policy_that_is_not_one_is_told_in_a_line(tmp_path, text, says):
    path = tmp_path / "policy.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=re.escape(says)):
        read_policy(path)


def test_a_policy_is_read_as_it_is_written(tmp_path):
    path = tmp_path / "policy.toml"
    path.write_text('blocked = ["(?i)secret"]\nconflicts = "refuse"\nwarnings = "allow"\n')
    policy = read_policy(path)
    assert policy.blocked[0].search("A SECRET") and (policy.conflicts, policy.warnings) == (
        False,
        True,
    )
