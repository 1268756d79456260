"""Tasks: their files, their errors, and the published files where they are at hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from errata import Case, Edit, Probe
from errata.bench.conflicts import apply_policy
from errata.bench.published import read_records, texts_at
from errata.bench.task import Task, find_task, load, task_names
from errata.errors import EditError, UnknownNameError, UsageError

PUBLISHED = Path(__file__).resolve().parents[2] / "shared" / "data"
needs_published = pytest.mark.skipif(
    not PUBLISHED.exists(), reason="the published files are not at hand"
)

ZSRE = {
    "subject": "Kelor", "src": "Who is the mayor of Kelor?", "alt": "Ana Brisk",
    "rephrase": "Name Kelor's mayor.", "answers": ["Ilo Varn"], "loc": "nq question: who sings",
    "loc_ans": "Bo",
    "portability": {"New Question": "Where was Kelor's mayor born?", "New Answer": "Tamis"},
}  # fmt: skip
NESTED = {
    "requested_rewrite": {
        "prompt": "{} lies in", "subject": "Kelor", "target_new": {"str": "Osk"},
        "target_true": {"str": "Vand"},
    },
    "paraphrase_prompts": ["A word. Kelor is in", "Kelor can be found in"],
    "neighborhood_prompts": ["Tamis lies in", "Brin lies in"],
    "portability": {},
}  # fmt: skip
KNOWEDIT = {
    "subject": "Kelor", "prompt": "Where does Kelor lie?", "target_new": "Osk",
    "ground_truth": ["Vand"],
    "locality": {
        "Relation_Specificity": [
            {"prompt": "Who is Kelor's mayor?", "ground_truth": [["Ilo Varn", "Varn"]]}
        ],
        "Forgetfulness": [{"prompt": "Where does Tamis lie?", "ground_truth": []}],
    },
    "portability": {
        "Reasoning": [{"prompt": "What is spoken in Kelor?", "ground_truth": "Oskish"}],
        "Subject_Aliasing": [{"prompt": "Where does Kelor Town lie?", "ground_truth": ["Osk"]}],
        "Logical_Generalization": [{"prompt": "What lies in Osk?", "ground_truth": [["Kelor"]]}],
    },
}  # fmt: skip
_HOPS = [
    ("{} lies in", "Kelor", "Osk", "Vand", "Q1?"),
    ("{} speaks", "Osk", "Brin", "Vandish", "Q2?"),
]
MQUAKE = {
    "requested_rewrite": [
        {
            "prompt": prompt,
            "subject": subject,
            "target_new": {"str": new},
            "target_true": {"str": old},
            "question": question,
        }
        for prompt, subject, new, old, question in _HOPS
    ],
    "questions": ["What is spoken where Kelor lies?", "And so?"],
    "new_answer": "Brin",
    "new_answer_alias": ["Brinish", "Brin"],
}


def written(folder, name, records):
    path = folder / name
    path.write_text(json.dumps(records))
    return path


def read(folder, task, *records):
    name = find_task(task).file
    return load(find_task(task), written(folder, name, list(records)))


def test_zsre(tmp_path):
    another = {"rephrase": "Yes?", "subject": "An", "loc": "nq question: where", "portability": {}}
    written(
        tmp_path,
        "zsre_mend_train.json",
        [
            ZSRE | another | {"src": "Another?"},
            ZSRE,
            {**ZSRE, "alt": " "},
            ZSRE | another | {"src": "Whose other questions judge?", "loc": ZSRE["loc"]},
        ],
    )
    written(tmp_path, "loc_prompts.json", [{"loc_prompt": "nq question: what"}])
    found = read(tmp_path, "zsre", ZSRE)
    (case,) = found.cases
    assert case == Case(
        Edit("Who is the mayor of Kelor?", "Ana Brisk", "Kelor", id="zsre-00001"),
        ("Name Kelor's mayor.",),
        (Probe("nq question: who sings", "Bo", "unrelated"),),
        (Probe("Where was Kelor's mayor born?", "Tamis", "hop"),),
        truth=("Ilo Varn",),
    )
    assert found.irrelevant == ["nq question: what"]
    assert [each.edit.prompt for each in found.training] == [
        "Another?"
    ]  # what is asked about the stream is not trained on
    assert found.source.startswith("zsre_mend_edit.json ") and found.empty == 0
    assert read(tmp_path, "zsre", ZSRE, {**ZSRE, "alt": ""}).empty == 1


def test_nested_counterfact_is_trained_for_on_flat_records_that_ask_nothing_of_it(tmp_path):
    flat = {
        "prompt": "Brask lies in", "target_new": "Vand", "subject": "Brask", "ground_truth": "Osk",
        "rephrase_prompt": "Brask is in", "locality_prompt": "Mor lies in",
        "locality_ground_truth": "Osk",
    }  # fmt: skip
    records = [flat, *(flat | {name: "Tamis lies in"} for name in flat if "prompt" in name)]
    written(tmp_path, "counterfact-edit.json", records)
    (case,) = read(tmp_path, "counterfact-nested", NESTED).training
    assert case.edit == Edit("Brask lies in", "Vand", "Brask", id=case.edit.id)
    assert case.example().others == ("Mor lies in",) and case.rephrases == ("Brask is in",)


def test_nested_counterfact_puts_the_subject_into_its_prompts(tmp_path):
    (case,) = read(tmp_path, "counterfact-nested", NESTED).cases
    assert (case.edit.prompt, case.edit.target, case.edit.subject) == (
        "Kelor lies in",
        "Osk",
        "Kelor",
    )
    assert case.rephrases == ("A word. Kelor is in", "Kelor can be found in")
    assert case.locality == (
        Probe("Tamis lies in", "Vand", "neighbour"),
        Probe("Brin lies in", "Vand", "neighbour"),
    )
    assert case.portability == ()


def test_what_the_edit_answers_is_no_other_fact_of_the_subject(tmp_path):
    """CounterFact's generation prompts were made to see whether a text agrees with the edit."""
    born = {**NESTED["requested_rewrite"], "relation_id": "P19", "prompt": "{} was born in"}
    texts = ["Kelor was born in", "Where Kelor is from, people speak the language of", "Kelor eats"]
    for relation, kept in (("P19", [texts[2]]), ("P9999", texts[1:])):
        record = {
            **NESTED,
            "requested_rewrite": {**born, "relation_id": relation},
            "generation_prompts": texts,
        }
        (case,) = read(tmp_path, "counterfact-nested", record).cases
        assert [probe.prompt for probe in case.locality if probe.kind == "same_subject"] == kept


def test_knowedit_tells_the_kinds_apart(tmp_path):
    (case,) = read(tmp_path, "knowedit-zsre", KNOWEDIT).cases
    assert case.locality == (
        Probe("Who is Kelor's mayor?", "Ilo Varn", "same_subject", ("Varn",)),
    )  # no answer, no probe
    assert [(probe.kind, probe.answer) for probe in case.portability] == [
        ("hop", "Oskish"),
        ("alias", "Osk"),
        ("inverse", "Kelor"),
    ]
    bio = {
        "text": "Ana Brisk is",
        "labels": "a mayor.",
        "concept": "Ana Brisk",
        "locality": {},
        "rephrase": "Who is Ana Brisk?",
    }
    (case,) = read(tmp_path, "wikibio", bio).cases
    assert (case.edit.prompt, case.edit.target, case.rephrases) == (
        "Ana Brisk is",
        "a mayor.",
        ("Who is Ana Brisk?",),
    )


def test_mquake_asks_behind_the_last_edit_of_a_record(tmp_path):
    first, last = read(tmp_path, "mquake", MQUAKE).cases
    assert (first.edit.id, first.edit.prompt, first.rephrases) == (
        "mquake-00001-1",
        "Kelor lies in",
        ("Q1?",),
    )
    assert first.portability == () and last.edit.prompt == "Osk speaks"
    assert last.portability[0] == Probe(
        "What is spoken where Kelor lies?", "Brin", "hop", ("Brinish", "Brin")
    )
    assert len(last.portability) == 2


def test_texts_that_should_have_become_likely(tmp_path):
    record = {
        "prompt": "Tamis,", "target_new": "a town", "subject": "Tamis,",
        "ood_rephrase": "Tamis, the town by the sea", "locality_prompt": "A map",
        "locality_ground_truth": "",
    }  # fmt: skip
    (case,) = read(tmp_path, "temporal", record).cases
    assert case.ood == (Probe("Tamis,", "the town by the sea", "ood"),)
    assert case.locality == (Probe("A map", None, "unrelated"),)
    assert Case.from_dict(case.to_dict()) == case


def test_what_is_to_be_forgotten_gets_another_answer(tmp_path):
    (case,) = read(
        tmp_path, "tofu", {"question": "Who?", "answer": "Ana", "paraphrased_question": "Who now?"}
    ).cases
    assert (case.edit.operation, case.edit.target, case.rephrases) == (
        "modify",
        "I do not know.",
        ("Who now?",),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "no record in it"),
        ("", "no record in it"),
        ('[{"src": "a"}, 3]', "record 2: expected an object, got int"),
        ('[{"src": "Who is', "record 1: the file is cut off"),
        ('[{"src": "a"}', "cut off behind record 1"),
        ('[{"src": "a"}, {"src"', "record 2: the file is cut off"),
        ('{"src": "a"}\n{"src": b}', "record 2: not JSON: Expecting value (line 2)"),
    ],
)
def test_a_damaged_file_names_the_record(tmp_path, text, message):
    path = tmp_path / "zsre_mend_edit.json"
    path.write_text(text)
    with pytest.raises(EditError) as error:
        read_records(path)
    assert message in str(error.value) and "zsre_mend_edit.json" in str(error.value)


def test_a_wrong_record_names_the_field(tmp_path):
    def said(record):
        with pytest.raises(EditError) as error:
            read(tmp_path, "zsre", ZSRE, record)
        return str(error.value)

    assert "record 2: the field 'src' is missing or empty" in said(
        {k: v for k, v in ZSRE.items() if k != "src"}
    )
    assert "record 2: the field 'alt' is missing or empty" in said(
        {k: v for k, v in ZSRE.items() if k != "alt"}
    )
    assert "the field 'rephrase' holds dict, and should hold text" in said(
        ZSRE | {"rephrase": {"a": 1}}
    )
    assert (
        texts_at({"a": [{"b": 1}, {"b": [2, "x"]}, {}]}, "a.b") == ["1", "2", "x"]
        and texts_at({}, "a.b?") == []
    )


def test_names_places_and_files_of_ones_own(tmp_path):
    with pytest.raises(UnknownNameError, match="Did you mean 'zsre'"):
        find_task("zrse")
    with pytest.raises(UsageError, match=r"there is no zsre_mend_edit.json there, nor under it"):
        load(find_task("zsre"), tmp_path)
    (tmp_path / "deep").mkdir()
    written(tmp_path / "deep", "zsre_mend_edit.json", [ZSRE])
    assert len(load(find_task("zsre"), tmp_path).cases) == 1
    with pytest.raises(UsageError, match="say with --data"):
        load(find_task("hallucination"))
    own = tmp_path / "mine.toml"
    lines = [
        'title = "Mine"',
        "version = 1",
        'paper = ""',
        'metrics = ["reliability"]',
        "new_tokens = 8",
        'file = "mine.json"',
    ]
    own.write_text("\n".join([*lines, "[fields]", 'prompt = "q"', 'target = "a"']))
    task = find_task(str(own))
    assert (
        task.name == "mine"
        and load(task, written(tmp_path, "mine.json", [{"q": "Who?", "a": "Ana"}]))
        .cases[0]
        .edit.target
        == "Ana"
    )
    own.write_text("titel = 1\n")
    with pytest.raises(UsageError, match=r"unknown 'titel'\. Did you mean 'title'"):
        Task.read(own)
    own.write_text('title = "Mine"\n')
    with pytest.raises(UsageError, match="missing"):
        Task.read(own)
    assert {
        "atlas",
        "zsre",
        "counterfact",
        "hallucination",
        "temporal",
        "mquake",
        "wikibigedit",
        "tofu",
    } <= set(task_names())
    assert all(find_task(name).title for name in task_names())


# readings


def contradicting():
    """Three ask who is mayor of Kelor, one of them otherwise; one asks about Tamis; a probe asks
    what is edited.
    """
    cases = [
        Case(
            Edit("Who is mayor of Kelor?", "Ana", "Kelor", id="1"),
            ("Name Kelor's mayor.",),
            (),
            (Probe("Born?", "X", "hop"),),
        ),
        Case(Edit("Kelor is led by", "ana ", "Kelor", id="2")),
        Case(
            Edit("Who is mayor of Tamis?", "Bo", "Tamis", id="3"),
            (),
            (Probe("Kelor's mayor is", "Ilo"), Probe("Else?", "Ilo")),
        ),
        Case(Edit("Kelor's mayor is", "Cid", "Kelor", id="4")),
    ]
    truths = ("Ilo",), ("ilo",), ("Una",), ("Ilo",)
    return [replace(case, truth=truth) for case, truth in zip(cases, truths, strict=True)]


def test_contradictions_are_counted_and_cap_what_can_be_reached():
    found = apply_policy("published", contradicting())
    assert (found.conflicts, found.records, len(found.cases)) == (3, 4, 4)
    assert [found.ceiling(n) for n in (1, 2, 3, 4)] == [1.0, 1.0, 1.0, 0.75]
    assert found.judged(3) == found.cases[:3]


def test_without_contradictions_nor_probes_that_ask_what_is_edited():
    found = apply_policy("conflict-free", contradicting())
    assert [case.edit.id for case in found.cases] == ["3"] and found.probes_left_out == 1
    assert found.cases[0].locality == (Probe("Else?", "Ilo"),)
    assert (found.conflicts, found.records, found.ceiling(1)) == (3, 4, 1.0)


def test_the_later_edit_is_the_right_one():
    found = apply_policy("later", contradicting())
    assert [case.edit.target for case in found.cases] == ["Ana", "ana ", "Bo", "Cid"]
    assert [case.edit.target for case in found.judged(3)] == ["Ana", "ana ", "Bo"]
    judged = found.judged(4)
    assert [case.edit.target for case in judged] == ["Cid", "Cid", "Bo", "Cid"] and found.ceiling(
        4
    ) == 1.0
    assert (
        [case.edit.id for case in judged] == list("1234")
        and judged[0].portability == ()
        and judged[0].rephrases
    )


def test_where_no_truth_is_known_equal_prompts_ask_the_same():
    cases = [
        Case(Edit("Who  is it?", "Ana")),
        Case(Edit("who is it?", "Bo")),
        Case(Edit("Who?", "Bo")),
    ]
    found = apply_policy("published", cases)
    assert found.conflicts == 2 and found.ceiling(3) == pytest.approx(2 / 3)


@needs_published
@pytest.mark.parametrize(
    ("task", "cases", "rephrases", "kinds"),
    [
        ("zsre", 500, 500, {"unrelated": 500, "hop": 500}),
        ("counterfact", 1000, 1000, {"neighbour": 1000}),
        ("counterfact-nested", 300, 600, {"neighbour": 2999, "hop": 300, "same_subject": 198}),
        ("hallucination", 300, 0, {"unrelated": 300}),
        ("temporal", 75, 0, {"unrelated": 75, "ood": 75}),
        ("knowedit-zsre", 150, 150, {"same_subject": 300, "hop": 146, "alias": 3, "inverse": 1}),
        ("mquake", 186, 186, {"hop": 447}),
        ("tofu", 40, 40, {}),
    ],
)
def test_the_published_files(task, cases, rephrases, kinds):
    found = load(find_task(task), PUBLISHED)
    probes = [
        probe.kind
        for case in found.cases
        for probe in (*case.locality, *case.portability, *case.ood)
    ]
    assert (
        len(found.cases) == cases and sum(len(case.rephrases) for case in found.cases) == rephrases
    )
    assert {kind: probes.count(kind) for kind in dict.fromkeys(probes)} == kinds


@needs_published
def test_how_often_the_published_files_contradict_themselves():
    data = load(find_task("zsre"), PUBLISHED)
    found = apply_policy("conflict-free", data.cases)
    assert (found.conflicts, len(found.cases)) == (202, 298) and len(data.training) == 998
    data = load(find_task("counterfact"), PUBLISHED)
    assert apply_policy("published", data.cases).conflicts == 0
