"""`errata compare`: one stream, every method, kept rows, and runs that resume."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import time
from multiprocessing.process import BaseProcess

import pytest
import torch
from started import fork_children, in_own_process, started
from typer.testing import CliRunner

import errata
from errata.atlas import make_cases, training_cases
from errata.bench import run
from errata.bench.comparison_tables import comparison_table
from errata.bench.conflicts import apply_policy
from errata.bench.executors import measure
from errata.bench.run import measure_run
from errata.bench.runs import runs_of
from errata.bench.stream import UNEDITED, Run, Stream
from errata.cases import cases_to_json_lines
from errata.cli import app
from errata.errors import ConfigError, UnknownNameError, UsageError
from errata.methods import variants
from errata.storage.cache import fingerprint

CASES = make_cases(3, seed=5)
READING = apply_policy("published", CASES)
FAST = Run("ft", "ft", {"steps": 2, "lr": 0.01})
FEW = {"NEUTRAL": 8, "NEUTRAL_TOKENS": 8, "FLUENT": 2, "NEW_TOKENS": 2, "ROUNDS": 1}


@pytest.fixture(scope="module")
def atlas():
    return errata.load_base("atlas", "float32")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Few texts for drift and fluency, and little to time."""
    for name, count in FEW.items():
        monkeypatch.setattr(run, name, count)


@pytest.fixture
def stream(atlas, tmp_path):
    return Stream(
        "atlas",
        fingerprint(atlas[0]),
        "three",
        READING,
        [],
        (1, 3),
        tmp_path,
        save_every=1,
        threads=1,
    )


def ignored(*_):
    pass


def read(stream, name, edits):
    return json.loads(stream.result_file(name, edits).read_text().splitlines()[0])


@pytest.mark.long
def test_a_row_is_what_evaluate_says_of_the_final_model(stream, atlas):
    measure_run(Run(UNEDITED, None), stream, ignored)
    measure_run(FAST, stream, ignored)
    model = errata.get_edit_model(atlas[0], errata.FineTuningConfig(steps=2, lr=0.01), atlas[1])
    for edits in (1, 3):
        model.edit([case.edit for case in CASES[:edits]], check=False)
        row = read(stream, "ft", edits)
        assert row["figures"] == errata.evaluate(model, CASES[:edits]).to_dict()
        assert (
            row["seconds_per_edit"] > 0
            and row["peak_memory"] > 50
            and set(row["overhead"] or ()) == ({"1", "8"} if edits == 3 else set())
        )
        assert (
            row["bytes_saved"] > 4 * 160 * 1152
            and row["edits"] == edits
            and row["settings"] == FAST.settings
        )
    model.unload()
    base = read(stream, UNEDITED, 3)
    assert (
        base["figures"]["generated"]["locality"] == 1
        and base["figures"]["generated"]["reliability"] == 0
    )
    assert base["seconds_per_edit"] is None and base["bytes_saved"] is None


@pytest.mark.long
def test_rows_are_kept_and_only_what_is_missing_is_measured(stream, monkeypatch):
    measure_run(FAST, stream, ignored)
    first = {n: read(stream, "ft", n) for n in (1, 3)}
    asked = []
    evaluate = errata.evaluate
    monkeypatch.setattr(
        errata,
        "evaluate",
        lambda model, cases, **more: (asked.append(len(cases)), evaluate(model, cases, **more))[1],
    )
    measure_run(FAST, stream, ignored)
    assert asked == []
    stream.result_file("ft", 1).unlink()  # the model that is saved has more edits by now
    measure_run(FAST, stream, ignored)
    assert asked == [1] and read(stream, "ft", 1)["figures"] == first[1]["figures"]
    stream.result_file("ft", 3).write_text('{"key": "broken off')
    other = dataclasses.replace(FAST, settings={"steps": 1, "lr": 0.01})
    assert stream.kept_result(FAST, 3) is None and stream.kept_result(other, 1) is None
    measure_run(FAST, stream, ignored)
    assert asked == [1, 3] and read(stream, "ft", 3)["figures"] == first[3]["figures"]
    assert [row.edits for row in stream.results([other])] == []


@pytest.mark.long
def test_what_takes_too_long_is_left_out_and_says_so(stream):
    """An estimate needs edits behind the first part, which also reads background text."""
    stream = dataclasses.replace(stream, checkpoints=(1, 2, 3))
    measure_run(FAST, dataclasses.replace(stream, limit=1e-9), ignored)
    one, two, three = (read(stream, "ft", edits) for edits in (1, 2, 3))
    assert one["figures"] and two["figures"] and three["figures"] is None
    assert "would take" in three["skipped"]
    text = comparison_table(stream.results([FAST]))
    assert text.count("\n") == 4 and "would take" in text.splitlines()[4]
    for limit, kept in ((1e-9, True), (1e-10, True), (1.0, False), (None, False)):
        assert (dataclasses.replace(stream, limit=limit).kept_result(FAST, 3) is not None) == kept
    measure_run(FAST, dataclasses.replace(stream, limit=600.0), ignored)
    assert read(stream, "ft", 3)["figures"], "there is more time now"


def test_a_method_that_refuses_has_rows_that_say_why(stream):
    measure_run(Run("ft", "ft", {"layer": 77}), stream, ignored)
    assert "no layer 77" in read(stream, "ft", 3)["failed"]
    assert stream.kept_result(Run("ft", "ft", {"layer": 77}), 3) is None, "a failure is tried again"


def test_without_memory_a_row_says_so(stream, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    monkeypatch.setattr(errata, "evaluate", full)
    measure_run(FAST, stream, ignored)
    failed = read(stream, "ft", 3)["failed"]
    assert failed.startswith("CUDA out of memory;") and "--jobs" in failed


@pytest.mark.long
def test_a_training_that_is_cut_off_goes_on_from_its_last_save(stream, tmp_path, monkeypatch):
    monkeypatch.setattr("errata.bench.run.SAVE_SECONDS", 0.0)
    stream = dataclasses.replace(stream, training=training_cases(6, CASES, 1), checkpoints=(1,))
    trained = Run("mend", "mend", {"layer": 5, "training_steps": 4, "batch": 2, "rank": 16})
    seen = []

    def cut(_, what, done, total):
        if what == "training":
            seen.append((done, total))
            if done == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_run(trained, stream, lambda *said: cut(None, *said))
    assert seen == [(1, 4), (2, 4), (3, 4)]
    seen.clear()
    measure_run(trained, stream, lambda *said: cut(None, *said))
    assert seen == [(1, 2), (2, 2)]  # two steps were saved; the third was being ignored of
    unbroken = dataclasses.replace(stream, folder=tmp_path / "unbroken")
    measure_run(trained, unbroken, ignored)
    assert read(stream, "mend", 1)["figures"] == read(unbroken, "mend", 1)["figures"]
    assert read(stream, "mend", 1)["training_seconds"] > 0


@pytest.mark.long
def test_processes(stream):
    """Each run in its own; one that dies takes no other with it."""
    stream = dataclasses.replace(stream, checkpoints=(1,))
    runs = [Run(UNEDITED, None), FAST, Run("dies", "no such method")]
    found, seen = in_own_process(measured_quickly, stream, runs)
    assert [(row.edits, row.name) for row in found] == [
        (1, name) for name in (UNEDITED, "ft", "dies")
    ]
    assert all(row.figures for row in found if row.name != "dies")
    assert "no such method" in found[-1].failed or "there is no method" in found[-1].failed
    assert {("ft", "editing"), ("ft", "asking"), (UNEDITED, "asking")} <= seen


def measured_quickly(stream, runs):
    fork_quickly()
    seen = set()
    found = measure(stream, runs, 2, lambda name, what, done, total: seen.add((name, what)))
    return found, seen


def test_names_and_settings(atlas):
    config = atlas[0].config
    every = runs_of(["all"], config)
    assert [run.name for run in every] == [UNEDITED, *variants()]
    assert {run.method for run in every[1:]} == set(errata.method_names())
    (_, made) = runs_of(["ft-m", UNEDITED], config, ["ft-m.steps=7"])
    assert (
        made.method == "ft"
        and made.settings["objective"] == "target_new"
        and made.settings["steps"] == 7
    )
    with pytest.raises(UnknownNameError, match="Did you mean 'wise'"):
        runs_of(["wisse"], config)
    with pytest.raises(ConfigError, match="no setting 'stepps'"):
        runs_of(["ft"], config, ["ft.stepps=7"])
    for wrong in ("steps=7", "wise.steps=7", "ft.steps", "ft="):
        with pytest.raises(UsageError, match=r"NAME\.setting=value"):
            runs_of(["ft"], config, [wrong])


def test_training_cases_ask_for_no_fact_of_the_stream():
    stream = make_cases(400, seed=0)
    training = training_cases(300, stream)
    assert len(training) == 300

    def facts(cases):
        return {(case.edit.subject, *sorted({case.edit.prompt, *case.rephrases})) for case in cases}

    asked = {prompt for case in stream for prompt in (case.edit.prompt, *case.rephrases)}
    taught = {prompt for case in training for prompt in (case.edit.prompt, *case.rephrases)}
    assert not asked & taught and facts(training)


def test_bad_input(tmp_path, few_training_cases):
    def complaint(*args):
        result = CliRunner().invoke(app, ["compare", *args, "--out", str(tmp_path / "out")])
        assert result.exit_code == 2, result.output
        return result.stderr

    few = tmp_path / "few.jsonl"
    few.write_text(cases_to_json_lines(CASES))
    assert "has 3 cases (published; 3 in the file); --edits 5 asks for more" in complaint(
        "atlas", "--cases", str(few), "--edits", "5"
    )
    assert "say with --cases FILE" in complaint(str(tmp_path))
    assert "--at takes numbers" in complaint("atlas", "--at", "1,many")
    assert "is trained on and in the stream" in complaint(
        "atlas", "--cases", str(few), "--train", str(few), "--edits", "2"
    )
    assert "there is no method 'foo'" in complaint("atlas", "--edits", "1", "--methods", "foo")


def fork_quickly() -> None:
    """Fork the processes that measure, and let them measure little, as all tests here."""
    fork_children()
    for name, value in FEW.items():
        setattr(run, name, value)


@pytest.mark.long  # as in test_resume.py
def test_killed_and_called_again_it_gives_the_same_figures(tmp_path):
    """The command, killed as soon as something is saved, then called again; and once unbroken."""
    cases = tmp_path / "cases.jsonl"
    cases.write_text(cases_to_json_lines(CASES[:2]))
    options = "--set ft.steps=2 --methods ft --edits 2 --at 1 --threads 1 --json".split()

    def begun(out: str) -> BaseProcess:
        words = ["compare", "atlas", "--cases", str(cases), *options, "--out", str(tmp_path / out)]
        return started(words, tmp_path / f"{out}.log", fork_quickly)

    row = tmp_path / "broken" / "rows" / "ft-1.jsonl"
    process = begun("broken")
    until = time.monotonic() + 120
    while not row.exists() and time.monotonic() < until:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.join()
    kept = row.read_bytes()
    found = []
    for out in ("broken", "whole"):
        process = begun(out)
        process.join()
        said = (tmp_path / f"{out}.log").read_text()
        assert process.exitcode == 0, said
        found.append(
            [
                (row["name"], row["edits"], row["figures"], row["bytes_saved"])
                for row in json.loads(said)
            ]
        )
    assert found[0] == found[1] and len(found[0]) == 4
    assert row.read_bytes() == kept
    assert (tmp_path / "whole" / "table.md").read_text().count("\n") == 6
    torch.set_num_threads(1)
