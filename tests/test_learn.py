"""Tasks one after another on a language model: kills, tasks kept apart, files, the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from families import tiny_model, tiny_tokenizer
from typer.testing import CliRunner

import errata
from errata.cli import app
from errata.continual import PLUGINS, Continual, Task, config_of, read_tasks, write
from errata.continual.architecture.low_rank import SCALE
from errata.continual.run import STATE
from errata.continual.trainer import learn
from errata.edit import same_answer
from errata.errors import (
    ArtifactError,
    ConfigError,
    EditError,
    UnknownNameError,
    UsageError,
)
from errata.lm import LM
from errata.unlearning import Passage

NAMES = "Anna Bert Cora Dora Emil Fred".split()
LABELS = [
    Task(name, "labels", examples, examples[1:3])
    for name, examples in (
        ("ab", tuple(Passage(f"Who wrote {n}?", "book" if n % 2 else "city") for n in range(4))),
        ("cd", tuple(Passage(f"Where is {n}?", "north" if n % 2 else "Rome") for n in range(4))),
    )
]
QUESTIONS = [
    Task(name, "questions", examples, examples)
    for name, examples in (
        ("books", tuple(Passage(f"Who wrote book {n}?", NAMES[n]) for n in range(3))),
        ("towns", tuple(Passage(f"Where does {NAMES[n]} live?", NAMES[n + 1]) for n in range(3))),
    )
]
QUICK = {"epochs": 2, "batch": 2, "lr": 0.01}
TEXTS = ["The capital of France is Paris.", "Who wrote the book?", "In the city of Rome."]


class KilledError(Exception):
    """A process that ends where it is."""


def quiet(what: str, done: int, total: int) -> None:
    pass


def dies(what: str, done: int, total: int) -> None:
    if what.startswith("learning") and "2 of 2" in what and done == 1:
        raise KilledError


def tiny_lm(family: str = "llama") -> LM:
    torch.set_num_threads(1)
    return LM(tiny_model(family), tiny_tokenizer())


def begun(name: str, tasks: list[Task], family: str = "llama", **settings: Any) -> Continual:
    quick = {**QUICK, **settings}
    return Continual(tiny_lm(family), name, config_of(name, quick), tasks)


def logits(lm: LM) -> torch.Tensor:
    with torch.no_grad():
        return lm.run(lm.prompt_batch(TEXTS)).logits


OFTEN = ("ewc", "derpp", "packnet", "prompt-pool")
"""Plug-ins that are killed each time; what the others keep is made like theirs."""


@pytest.mark.parametrize(
    "name",
    [name if name in OFTEN else pytest.param(name, marks=pytest.mark.long) for name in PLUGINS],
)
def test_killed_and_run_again_it_is_as_if_it_had_not_been(name: str, tmp_path: Path) -> None:
    few = {"trains": "values", "blocks": 2, "epochs": 1}
    whole = begun(name, LABELS, **few)
    whole.run(tmp_path / "whole", quiet)
    cut = begun(name, LABELS, **few)
    if name != "nearest-mean":  # which takes no steps
        with pytest.raises(KilledError):
            cut.run(tmp_path / "cut", dies)
        assert len(cut.matrix) == 1
    again = begun(name, LABELS, **few)
    again.run(tmp_path / "cut", quiet)
    one, other = (
        torch.load(tmp_path / each / STATE, weights_only=True) for each in ("whole", "cut")
    )
    assert again.matrix == whole.matrix and again.before == whole.before
    one.pop("seconds"), other.pop("seconds")
    assert same(one, other)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@pytest.mark.parametrize(
    ("name", "family"), [("packnet", "gpt2"), ("lora", "gpt2"), ("progressive", "llama")]
)
def test_what_is_kept_apart_is_never_forgotten_to_the_bit(name: str, family: str) -> None:
    run = begun(name, QUESTIONS, family)
    base, plugin = logits(run.learner.lm), run.plugin
    after = []
    for number, rows in enumerate(run._rows):
        learn(plugin, rows, lambda *_: None)
        with plugin.at(number):
            after.append(logits(run.learner.lm))
    assert not torch.equal(after[0], base) and not torch.equal(after[0], after[1])
    for number, wanted in enumerate(after):
        with plugin.at(number):
            assert torch.equal(logits(run.learner.lm), wanted)
    with plugin.at(None):
        assert torch.equal(logits(run.learner.lm), base)


def test_packnet_gives_each_task_its_share() -> None:
    run = begun("packnet", QUESTIONS, keep=0.25, retrain=1)
    for rows in run._rows:
        learn(run.plugin, rows, lambda *_: None)
    for name, owner in run.plugin.owner.items():
        size = owner.numel()
        assert [int((owner == task).sum()) for task in (0, 1)] == [
            size // 4,
            round(0.75 * size / 4),
        ]
        changed = run.learner.parameters[name] != run.plugin.base[name]
        assert not bool((changed & (owner == 255)).any())


def test_o_lora_adds_up_and_pays_for_reading_what_is_read() -> None:
    run = begun("o-lora", QUESTIONS, rank=2)
    base = {name: each.detach().clone() for name, each in run.learner.weights.items()}
    for rows in run._rows:
        learn(run.plugin, rows, lambda *_: None)
    first, second = run.plugin.pairs
    with run.plugin.at(1):
        for name, weight in run.learner.weights.items():
            expected = base[name] + SCALE * sum(p[name].up @ p[name].down for p in (first, second))
            torch.testing.assert_close(weight, expected)
    overlaps = [(first[n].down @ second[n].down.T).square().sum().item() for n in base]
    assert run.plugin.penalty().item() == pytest.approx(0.5 * sum(overlaps) / len(base), rel=1e-5)
    assert all(torch.equal(run.learner.weights[name], each) for name, each in base.items())


def test_a_task_is_found_by_its_prompts() -> None:
    run = begun("lora", QUESTIONS, task="found")
    for rows in run._rows:
        learn(run.plugin, rows, lambda *_: None)
    asked = [run.learner.lm.encode_prompt(task.tests[0].prompt) for task in QUESTIONS]
    assert run.plugin.asked(asked, 1) == [(0, [0]), (1, [1])]
    assert begun("lora", QUESTIONS).plugin.asked(asked, 1) == [(1, [0, 1])]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_gpm_leaves_the_inputs_of_earlier_tasks(family: str) -> None:
    run = begun("gpm", QUESTIONS, family, energy=0.9)
    learn(run.plugin, run._rows[0], lambda *_: None)
    before = {name: each.detach().clone() for name, each in run.learner.weights.items()}
    learn(run.plugin, run._rows[1], lambda *_: None)
    # the directions of the first task alone: a run that stops there
    first = begun("gpm", QUESTIONS, family, energy=0.9)
    learn(first.plugin, first._rows[0], lambda *_: None)
    moved = 0
    for name, each in run.learner.weights.items():
        change = (each.detach() - before[name]).double()
        change = change.T if run.learner.transposed(name) else change
        kept = first.plugin.projectors[name].preserved
        left = change @ kept
        torch.testing.assert_close(left, torch.zeros_like(left), atol=1e-6, rtol=0)
        moved += float(change.norm()) > 1e-3
    assert moved == len(before)


def test_prompts_of_the_pool_stand_before_the_row_and_are_found_by_their_keys() -> None:
    run = begun("prompt-pool", QUESTIONS, count=2, length=3, epochs=3)
    learner, plugin = run.learner, run.plugin
    rows = [*run._rows[0], *run._rows[1]]
    assert len({len(row.ids) for row in rows}) > 1  # so that some are padded
    plain = learner.forward(rows)
    learner.prefix = lambda part: torch.zeros(len(part), 0, 32)
    torch.testing.assert_close(learner.forward(rows).losses, plain.losses)
    learner.prefix = None
    for task in run._rows:
        learn(plugin, task, lambda *_: None)
    with plugin.at(1):
        together = learner.forward(rows).losses
        alone = torch.cat([learner.forward([row]).losses for row in rows])
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(together, plain.losses)
        asked = [task.tests[0].prompt for task in QUESTIONS]
        assert learner.generate(asked, 4) == [learner.generate([each], 4)[0] for each in asked]
    torch.testing.assert_close(learner.forward(rows).losses, plain.losses)


def test_the_nearest_mean_is_the_nearest_mean() -> None:
    run = begun("nearest-mean", LABELS)
    learn(run.plugin, run._rows[0], lambda *_: None)
    lm = run.learner.lm
    states = run.learner.states([lm.encode_prompt(each.prompt) for each in LABELS[0].examples])
    means = {label: states[place::2].mean(0) for place, label in enumerate(("city", "book"))}
    texts = ["Who wrote 7?", "Where is 2?"]
    found = run.plugin.classify(texts, ["city", "book", "north"])
    for text, label in zip(texts, found, strict=True):
        state = run.learner.states([lm.encode_prompt(text)])[0]
        assert label == min(means, key=lambda name: float((state - means[name]).norm()))
    with pytest.raises(UsageError, match="nearest-mean learns labels only"):
        begun("nearest-mean", QUESTIONS)


# files and the command


def written(path: Path, *objects: dict[str, str]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in objects), encoding="utf-8")
    return path


def test_files_of_tasks(tmp_path: Path) -> None:
    one = written(tmp_path / "a.jsonl", {"prompt": "Who?", "target": "Anna", "subject": "x"})
    two = written(tmp_path / "b.jsonl", {"text": "Who?", "label": "city"})
    three = written(tmp_path / "c.jsonl", {"text": "The book."})
    tasks = read_tasks([one, two, three])
    assert [(each.name, each.kind) for each in tasks] == [
        ("a", "questions"), ("b", "labels"), ("c", "documents")
    ]  # fmt: skip
    mixed = written(tmp_path / "d.jsonl", {"text": "A."}, {"text": "B.", "label": "c"})
    for paths, tests, said in (
        ([mixed], [], "d.jsonl:2: it is of labels"),
        ([one, one], [], "two tasks are called 'a'"),
        ([one, two], [one], "2 tasks and 1 files of tests"),
        ([one], [two], "has labels, and its task has questions"),
        ([tmp_path / "no.jsonl"], [], "cannot be read"),
    ):
        with pytest.raises((UsageError, EditError), match=said):
            read_tasks(paths, tests)
    with pytest.raises(UnknownNameError, match="Did you mean 'ewc'"):
        config_of("ewcc", {})
    with pytest.raises(ConfigError, match="strength"):
        config_of("ewc", {"strenght": 1})


def learned(*words: object) -> Any:
    return CliRunner().invoke(app, ["learn", *map(str, words)])


def test_the_command_learns_and_writes_an_ordinary_model(tmp_path: Path) -> None:
    base = tmp_path / "base"
    tiny_model("llama").save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    one = written(tmp_path / "a.jsonl", *({"prompt": f"Who wrote {n}?", "target": NAMES[n]}
                                          for n in range(2)))  # fmt: skip
    two = written(tmp_path / "b.jsonl", {"prompt": "Where is the tower?", "target": "north"})
    three = written(tmp_path / "c.jsonl", {"text": TEXTS[0]})
    out = tmp_path / "out"
    common = [base, "--tasks", one, two, three, "--with", "er", "--set", "lr=0.01"]
    done = learned(*common, "--set", "epochs=25", "--out", out)
    assert done.exit_code == 0, done.output
    record = json.loads((out / "learn.json").read_text())
    assert f"in {out}" in done.output and "after c" in done.output and not list(out.glob(".*.new"))
    assert len(record["accuracy"]) == 3 and len(record["before"]) == 3
    assert record["plasticity"] > 0.9 and (out / "accuracy.png").stat().st_size > 1000
    lm = LM(*errata.load_base(str(out)))
    said = lm.generate("Where is the tower?")
    assert float(same_answer(said, "north")) == record["accuracy"][2][1]
    again = learned(*common, "--out", out)
    assert again.exit_code == 2 and "has a model in it already" in again.output
    for words, said in (
        ([base, "--tasks", one, "--with", "magic", "--out", tmp_path / "x"], "no plug-in called"),
        ([base, "--tasks", one, "--set", "lr=-1", "--out", tmp_path / "x"], "lr is"),
        ([base, "--tasks", tmp_path / "no", "--out", tmp_path / "x"], "cannot be read"),
        (
            [base, "--tasks", three, "--with", "nearest-mean", "--out", tmp_path / "x"],
            "labels only",
        ),
    ):
        failed = learned(*words)
        assert failed.exit_code == 2 and said in failed.output
        assert (
            len(failed.output.strip().splitlines()) == 1
            and not (tmp_path / "x/learn.json").exists()
        )


@pytest.mark.long
def test_tasks_kept_apart_have_a_model_each_and_another_runs_state_is_refused(
    tmp_path: Path,
) -> None:
    run = begun("lora", QUESTIONS)
    run.run(tmp_path / "out", quiet)
    with pytest.raises(ArtifactError, match="of another run"):
        begun("lora", QUESTIONS, rank=3).run(tmp_path / "out", quiet)
    places = write(run, tmp_path / "out")
    assert [place.name for place in places] == ["books", "towns"]
    assert not (tmp_path / "out" / STATE).exists()
    for number, place in enumerate(places):
        with run.plugin.at(number):
            wanted = logits(run.learner.lm)
        torch.testing.assert_close(logits(LM(*errata.load_base(str(place), "float32"))), wanted)
    (tmp_path / "out" / STATE).write_bytes(b"half")
    with pytest.raises(ArtifactError, match="damaged"):
        begun("lora", QUESTIONS).run(tmp_path / "out", quiet)
