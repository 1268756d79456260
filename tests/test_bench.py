"""`errata bench`: figures, intervals, retention, differences, recipes, report, killed runs."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from edited import EDITS, edit_model
from typer.testing import CliRunner

import errata
from errata import Case, Edit
from errata.bench.conflicts import apply_policy
from errata.bench.drift import drift, fluency
from errata.bench.executors import measure
from errata.bench.judge import Judge, judge, right_answer
from errata.bench.plan import Plan, load_plan, read_recipe
from errata.bench.probe_tables import probes_tables
from errata.bench.report import html, markdown
from errata.bench.results import (
    Measured,
    differences,
    interval,
    read_folders,
    retention,
    retentions,
)
from errata.bench.runs import runs_of
from errata.bench.stream import UNEDITED, Result, Run, Stream
from errata.bench.tables import about, main_table, paper_tables, retention_table, scores_table
from errata.cases import cases_to_json_lines
from errata.cli import app
from errata.errors import UsageError
from errata.measures import Answer, summary
from errata.storage.cache import fingerprint


def answer(edit, right, measure="reliability", prompt="Who?", kind=None, tokens=None):
    tokens = float(right) if tokens is None else tokens
    return Answer(
        measure,
        edit,
        prompt,
        "Ana",
        "Old",
        "Ana" if right else "Bo",
        right,
        tokens,
        0.1,
        kind,
        right,
        right,
        right,
        right,
    )


def measured(folder, name, edits, answers, method="ft", **more):
    """A measurement on disk, of the answers given."""
    figures = summary(edits, answers).to_dict()
    metrics = ("reliability", "generalization", "locality")
    key, settings = f"key-{name}-{edits}", {"steps": 2}
    result = Result(
        key, name, method, settings, "atlas", "made up", edits, figures, metrics=metrics, **more
    )
    path = folder / "rows" / f"{name}-{edits}.jsonl"
    result.save(path, answers)
    return Measured(Result.read(path), path, name)


def test_a_measurement_is_read_back_as_it_was_written(tmp_path):
    answers = [answer("a", True), answer("a", False, "locality", kind="neighbour")]
    found = measured(tmp_path, "ft", 1, answers, drift={"perplexity": 2.0}, conflicts=(2, 5))
    assert found.answers == answers and found.result.figures == summary(1, answers).to_dict()
    lines = [json.loads(line) for line in found.path.read_text().splitlines()]
    assert [line["type"] for line in lines] == ["row", "answer", "answer"] and tuple(
        found.result.conflicts
    ) == (2, 5)
    found.path.write_text('{"type": "row", "broken')
    assert Result.read(found.path) is None and Result.read(tmp_path / "none") is None
    with pytest.raises(UsageError, match="no measurement in it"):
        read_folders([tmp_path / "elsewhere"])


def test_intervals_are_over_edits():
    """Ten questions about one edit, all answered alike, tell as much as one: the interval is that
    of the edits.
    """
    rng = random.Random(0)
    one_each = [(str(i), float(rng.random() < 0.5)) for i in range(200)]
    ten_each = [(name, value) for name, value in one_each for _ in range(10)]
    first, second = interval(one_each), interval(ten_each)
    assert (first.value, first.low, first.high, first.edits) == pytest.approx(
        (second.value, second.low, second.high, 200)
    )
    spread = 1.96 * math.sqrt(first.value * (1 - first.value) / 200)
    assert first.high - first.value == pytest.approx(spread, rel=0.15) and interval([]) is None
    assert interval([("a", 1.0), ("b", 1.0)]).low == 1.0


def test_retention_by_cohort(tmp_path):
    runs = [
        measured(tmp_path, "ft", 1, [answer("a", True)]),
        measured(tmp_path, "ft", 3, [answer("a", False), answer("b", True), answer("c", True)]),
        measured(
            tmp_path,
            "ft",
            4,
            [answer("a", True), answer("b", False), answer("c", True), answer("d", True)],
        ),
    ]
    found = retention(runs)
    assert found.checkpoints == (1, 3, 4)
    assert found.accuracy == ((1.0, 0.0, 1.0), (None, 1.0, 0.5), (None, None, 1.0))
    assert found.forgetting == pytest.approx(
        (0.0 + 0.5) / 2
    ) and found.backward_transfer == pytest.approx((0.0 - 0.5) / 2)
    assert retentions(runs[:1]) == {}
    also = [
        measured(tmp_path, "wise", edits, [answer(name, True) for name in "abc"[:edits]], "wise")
        for edits in (1, 3)
    ]
    table = retention_table([*runs, *also])
    assert table.head == (
        "method",
        "edits",
        "at 1",
        "at 3",
        "at 4",
        "forgetting",
        "backward transfer",
    )
    assert ("wise", "1–1", "1.000", "1.000", "", "0.000", "+0.000") in table.rows


def test_what_differs_beyond_noise(tmp_path):
    """Paired: 40 of 200 answers turn; unpaired, the same two shares among other questions."""

    def run(folder, right, prompt="Who?"):
        return [
            measured(
                tmp_path / folder,
                "ft",
                200,
                [answer(str(i), right(i), prompt=prompt) for i in range(200)],
            )
        ]

    one, same, more = (
        run("one", lambda i: i < 100),
        run("same", lambda i: i < 100),
        run("more", lambda i: i < 140),
    )
    (found,) = [each for each in differences(one, more) if each.score == "generated"]
    assert (
        (found.before, found.after, found.paired) == (0.5, 0.7, True)
        and found.beyond_noise
        and found.low > 0.13
    )
    assert not any(each.beyond_noise or each.low or each.high for each in differences(one, same))
    other = run("other", lambda i: i % 100 < 52, "And who?")
    (found,) = [each for each in differences(one, other) if each.score == "generated"]
    assert not found.paired and not found.beyond_noise and found.low < 0 < found.high
    assert (
        differences(
            one,
            [dataclasses.replace(more[0], result=dataclasses.replace(more[0].result, name="x"))],
        )
        == []
    )


def test_drift_and_fluency():
    model = edit_model("llama", "ft", EDITS[:1], steps=4, lr=0.05)
    texts = ["the king of Spain was born in Rome", "a", "one two three"]
    found = drift(model, texts)
    assert found["divergence"] > 0 and found["perplexity"] != found["base_perplexity"]
    with model.disable_edits():
        rows = [model.lm.encode_prompt(text) for text in texts]
        losses = []
        for ids in rows:
            if len(ids) > 1:
                logits = model.base(torch.tensor([ids])).logits[0, :-1]
                losses.append(
                    torch.nn.functional.cross_entropy(
                        logits, torch.tensor(ids[1:]), reduction="none"
                    )
                )
    assert found["base_perplexity"] == pytest.approx(
        torch.cat(losses).mean().exp().item(), rel=1e-4
    )
    untouched = edit_model("llama", "ft", [])
    assert drift(untouched, texts)["divergence"] == 0 and drift(untouched, [])["perplexity"] is None


def test_fluency_is_low_where_words_are_said_again():
    class Said:
        class lm:
            context_length = None
            encode_prompt = staticmethod(str.split)

        def __init__(self, text):
            self.ask = lambda prompts, **more: [text] * len(prompts)

    again, new = (
        fluency(Said("no " * 50), ["x"]),
        fluency(Said(" ".join(map(str, range(50)))), ["x"]),
    )
    bigrams, trigrams = math.log2(49), math.log2(48)
    assert again == 0 and new == pytest.approx((2 / 3 * bigrams + 4 / 3 * trigrams) / 2)


def test_the_page_and_its_tables(tmp_path):
    right = [answer(str(i), i < 8) for i in range(10)] + [
        answer(str(i), True, "locality", kind="neighbour") for i in range(10)
    ]
    few = [answer(str(i), i < 1) for i in range(2)]
    made = {"versions": {"errata": "0"}, "commit": "abc", "time": "2026-01-01"}
    measured(
        tmp_path,
        "unedited",
        10,
        right,
        method=None,
        task="zsre",
        conflicts=(4, 10),
        ceiling=0.9,
        made=made,
    )
    measured(tmp_path, "ft", 2, few, task="zsre", conflicts=(4, 10), made=made)
    measured(
        tmp_path,
        "ft",
        10,
        right,
        task="zsre",
        conflicts=(4, 10),
        ceiling=0.9,
        seconds_per_edit=0.5,
        made=made,
    )
    Result(
        "k", "wise", "wise", {}, "atlas", "made up", 10, skipped="would take | long", task="zsre"
    ).save(tmp_path / "rows" / "wise-10.jsonl")
    found = read_folders([tmp_path])
    assert [(each.result.edits, each.result.name) for each in found] == [
        (2, "ft"),
        (10, "unedited"),
        (10, "ft"),
        (10, "wise"),
    ]
    table = main_table(found)
    assert (
        table.rows[2][2].startswith("0.800\n0.")
        and table.rows[2][5] == "0.50"
        and table.rows[3][2] == "would take | long"
    )
    assert len(
        scores_table(found).rows
    ) == 3 * 2 and "4 of 10 records contradict another (40%)" in about(found[1].result)
    assert "cannot be above 0.900" in about(found[1].result)
    text = markdown(found)
    assert "would take \\| long" in text and "Published: WISE" in text and "| abc |" in text
    assert len(paper_tables("zsre")) == 3 and paper_tables("atlas") == []
    page = html(found)
    assert (
        page.count("<svg") == 2
        and "<script" not in page
        and "http://" not in page.replace("http://www.w3.org", "")
    )
    assert 'href="#s0-ft-10"' in page and 'id="s0-ft-10"' in page
    assert page == html(found), "the same page for the same figures"


@pytest.mark.parametrize("name", ["zsre", "counterfact", "hallucination", "temporal"])
def test_the_recipes_that_come_with_errata(name):
    (plan,) = read_recipe(Path(__file__).parent.parent / "benchmarks" / "recipes" / f"{name}.yaml")
    runs = runs_of(plan.methods, errata.load_base("atlas")[0].config, plan.settings)
    assert plan.task == name and len(runs) == 9 and plan.edits == plan.checkpoints[-1]
    assert next(each for each in runs if each.name == "alphaedit").settings["steps"] == 40


def test_flags_count_before_a_recipe(tmp_path, monkeypatch):
    """Those that are given; the others' defaults do not."""
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "task: zsre\nmodel: some\nmethods: [wise, ft-m]\n"
        "settings: {wise: {steps: 3}, ft-m: {steps: 4}}\n"
        "edits: 5\ncheckpoints: [1, 5]\nreading: [later, published]\nout: runs/x\n"
    )
    plans = []
    monkeypatch.setattr("errata.cli.bench._run", lambda plan, wait: plans.append(plan))
    call = CliRunner().invoke
    assert call(app, ["bench", str(path)]).exit_code == 0
    assert plans == read_recipe(path) and [plan.reading for plan in plans] == ["later", "published"]
    plans.clear()
    flags = [
        "--model",
        "other",
        "-m",
        "ft-m",
        "--set",
        "ft-m.lr=0.1",
        "--edits",
        "7",
        "--checkpoints",
        "2,7",
    ]
    assert (
        call(
            app, ["bench", str(path), *flags, "--reading", "published", "--data", "here"]
        ).exit_code
        == 0
    )
    (plan,) = plans
    assert (plan.model, plan.methods, plan.edits, plan.checkpoints) == (
        "other",
        ("ft-m",),
        7,
        (2, 7),
    )
    assert plan.settings == ("ft-m.steps=4", "ft-m.lr=0.1") and plan.reading == "published"
    assert plan.task == "zsre" and plan.data == Path("here") and plan.folder == Path("runs/x")
    plans.clear()
    assert call(app, ["bench", str(path), "-m", "all"]).exit_code == 0
    assert plans[0].settings == ("wise.steps=3", "ft-m.steps=4")


def test_recipes(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "task: [zsre, counterfact]\nmodel: atlas\nmethods: [wise, ft-m]\n"
        "settings: {wise: {steps: 3}}\nedits: 5\n"
        "checkpoints: [1, 5]\nreading: later\ndata: data\nout: runs/x\n"
    )
    first, second = read_recipe(path)
    assert (first.task, second.task, first.methods, first.settings) == (
        "zsre",
        "counterfact",
        ("wise", "ft-m"),
        ("wise.steps=3",),
    )
    assert (
        first.folder.as_posix() == "runs/x/zsre-atlas-later"
        and first.checkpoints == (1, 5)
        and first.reading == "later"
    )
    path.write_text("task: atlas\n")
    assert (
        read_recipe(path) == [Plan("atlas")]
        and Plan("atlas").folder.as_posix() == "runs/atlas-atlas"
    )
    for text, message in (
        ("task: atlas\nedit: 3", "unknown 'edit'. Did you mean 'edits'"),
        ("model: atlas", "at least a 'task'"),
        ("task: [a", "not YAML"),
        ("task: atlas\nedits: many", "edits is 'many'; expected int"),
        ("task: atlas\ncheckpoints: 1,2", "checkpoints is '1,2'; expected int"),
        ("task: atlas\nreading: late", "there is no reading 'late'"),
    ):
        path.write_text(text)
        with pytest.raises(UsageError, match=message):
            read_recipe(path)
    with pytest.raises(UsageError, match="cannot be read"):
        read_recipe(tmp_path / "none.yaml")


def test_drift_is_measured_on_a_tasks_irrelevant_texts(tmp_path):
    record = {
        "subject": "Kelor",
        "src": "Who leads Kelor?",
        "alt": "Ana",
        "rephrase": "Name Kelor's mayor.",
    }
    record |= {"answers": ["Ilo"], "loc": "nq question: who sings", "loc_ans": "Bo"}
    (tmp_path / "zsre_mend_edit.json").write_text(json.dumps([record]))
    (tmp_path / "loc_prompts.json").write_text(json.dumps([{"loc_prompt": "nq question: what"}]))
    assert load_plan(Plan("zsre", data=tmp_path)).stream.neutral == ("nq question: what",)
    assert load_plan(Plan("atlas", methods=(), edits=1)).stream.neutral == ()


def test_no_right_answer_is_cut_off(tmp_path):
    """A task cuts free answers at 24 tokens; where a right one is longer, that is what there is
    room for.
    """
    long = " ".join(["Kelor and Traren"] * 20)
    cases = [{"prompt": "Who is it?", "target": target} for target in ("Kelor", long)]
    (tmp_path / "cases.jsonl").write_text("".join(json.dumps(case) + "\n" for case in cases))
    plan = Plan("jsonl", data=tmp_path / "cases.jsonl", reading="published")
    room = load_plan(plan).stream.new_tokens
    lm = errata.LM(*errata.load_base("atlas"))
    assert room == len(lm.encode("Who is it?", long, ".").ids) - len(lm.encode_prompt("Who is it?"))
    assert load_plan(Plan("atlas", methods=(), edits=1)).stream.new_tokens == 24


CASES = errata.atlas.make_cases(4, seed=5)


def command(tmp_path, out):
    cases = tmp_path / "cases.jsonl"
    if not cases.exists():
        cases.write_text(
            cases_to_json_lines(CASES) + cases_to_json_lines([Case(Edit("long " * 4000, "Ana"))])
        )
    more = [
        "--set",
        "ft.steps=2",
        "-m",
        "ft",
        "--edits",
        "4",
        "--checkpoints",
        "1,2",
        "--threads",
        "1",
    ]
    return ["bench", "jsonl", "--data", str(cases), *more, "--out", str(out)]


def figures(folder):
    found = read_folders([folder])
    return [
        (each.result.name, each.result.edits, each.result.figures, each.result.drift, each.answers)
        for each in found
    ]


@pytest.mark.long  # one engine with errata compare, which test_compare kills
@pytest.mark.parametrize("times", [1, 3])
def test_killed_at_any_moment_and_called_again_it_gives_the_same_tables(tmp_path, times):
    """Killed at moments drawn by chance, then left alone; and once unbroken."""
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    rng, cut = random.Random(time.time_ns()), []
    for _ in range(times):
        process = subprocess.Popen(
            [sys.executable, "-m", "errata.cli", *command(tmp_path, broken)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        cut.append(rng.uniform(3, 15))
        time.sleep(cut[-1])
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for out in (broken, whole):
        found = CliRunner().invoke(app, command(tmp_path, out))
        assert found.exit_code == 0, (found.output, cut)
        assert "1 records are left out: they do not fit the model's context" in found.stderr
    assert figures(broken) == figures(whole) and len(figures(whole)) == 6, cut
    torch.set_num_threads(1)


@pytest.mark.long  # test_cluster kills a worker of Ray in the default run
def test_spread_by_ray_it_is_the_same_and_a_worker_that_is_killed_is_started_again(tmp_path):
    """Two nodes of one processor each; the first worker that has saved something is killed."""
    pytest.importorskip("ray")
    import ray
    from ray.cluster_utils import Cluster

    atlas = errata.load_base("atlas", "float32")
    reading = apply_policy("published", CASES)
    runs = [Run(UNEDITED, None), *(Run(f"ft{n}", "ft", {"steps": n, "lr": 0.01}) for n in (2,))]

    def stream(folder):
        shared = {"save_every": 1, "threads": 1}
        return Stream(
            "atlas", fingerprint(atlas[0]), "four", reading, [], (4,), tmp_path / folder, **shared
        )

    cluster = Cluster()
    killed = []

    def kill():
        until = time.monotonic() + 120
        while not killed and time.monotonic() < until:
            time.sleep(0.05)
            if not list((tmp_path / "spread" / "models").glob("*/edits.jsonl")):
                continue
            for number in filter(str.isdigit, os.listdir("/proc")):
                with contextlib.suppress(OSError):
                    if b"ray::_run_on_ray" in Path("/proc", number, "cmdline").read_bytes():
                        os.kill(int(number), signal.SIGKILL)
                        killed.append(number)
                        return

    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, log_to_driver=False)
        assert len([node for node in ray.nodes() if node["Alive"]]) == 2
        hunter = threading.Thread(target=kill)
        hunter.start()
        spread = measure(stream("spread"), runs, 1, lambda *_: None, executor="ray")
        hunter.join()
    finally:
        ray.shutdown()
        cluster.shutdown()
    alone = measure(stream("alone"), runs, 1, lambda *_: None)
    assert killed, "no worker was seen"
    assert [(row.name, row.edits, row.figures) for row in spread] == [
        (row.name, row.edits, row.figures) for row in alone
    ]
    assert len(alone) == 2 and figures(tmp_path / "spread") == figures(tmp_path / "alone")
    with pytest.raises(UsageError, match="there is no executor 'rey'"):
        measure(stream("alone"), runs, 1, lambda *_: None, executor="rey")


def test_report_and_diff_on_the_command_line(tmp_path):
    measured(tmp_path / "one", "ft", 2, [answer(str(i), i < 1) for i in range(2)])
    measured(tmp_path / "two", "ft", 2, [answer(str(i), True) for i in range(2)])
    page = tmp_path / "deep" / "page.html"
    found = CliRunner().invoke(
        app, ["report", str(tmp_path / "one"), str(tmp_path / "two"), "--out", str(page)]
    )
    assert (
        found.exit_code == 0
        and page.exists()
        and "| 2 | ft (one) |" in page.with_suffix(".md").read_text()
    )
    found = CliRunner().invoke(app, ["diff", str(tmp_path / "one"), str(tmp_path / "two"), "--all"])
    assert (
        found.exit_code == 0
        and "| 2 | ft | reliability | generated | 0.500 | 1.000 | +0.500 |" in found.stdout
    )
    measured(tmp_path / "three", "wise", 2, [answer("a", True)])
    found = CliRunner().invoke(app, ["diff", str(tmp_path / "one"), str(tmp_path / "three")])
    assert found.exit_code == 2 and "no method in common" in found.stderr
    assert "zsre" in CliRunner().invoke(app, ["tasks"]).stdout


class Opinions(BaseHTTPRequestHandler):
    """Says that every answer is right which has an "Ana" in it; the first time it is busy, and once
    it rambles.
    """

    asked: ClassVar[list[str]] = []

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        said = body["messages"][1]["content"].partition("\nAnswer: ")[2]
        self.asked.append(said)
        self.send_response(503 if len(self.asked) == 1 else 200)
        self.end_headers()
        text = (
            "Let me think."
            if len(self.asked) == 2
            else "CORRECT."
            if "Ana" in said
            else "incorrect"
        )
        self.wfile.write(json.dumps({"choices": [{"message": {"content": text}}]}).encode())

    def log_message(self, *_):
        pass


def test_a_judges_opinions_are_kept_and_stand_beside_the_scores(tmp_path):
    def said(edit, text):
        return dataclasses.replace(answer(edit, False, prompt=f"Who is {edit}?"), after=text)

    answers = [
        answer("a", True),
        said("b", "It is Ana now"),
        said("c", "Bo"),
        answer("d", False, "locality", kind="neighbour"),
    ]
    found = [measured(tmp_path, "ft", 3, answers)]
    server = ThreadingHTTPServer(("127.0.0.1", 0), Opinions)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/v1"
    call = ["judge", str(tmp_path), "--url", url, "--model", "wise-owl", "--at-once", "1"]
    assert CliRunner().invoke(app, call).stdout == "2 answers judged\n"
    assert Opinions.asked == ["It is Ana now", "It is Ana now", "It is Ana now", "Bo"]
    with (tmp_path / "judged.jsonl").open("a") as file:
        file.write('{"key": "cut o')
    assert CliRunner().invoke(app, call).stdout == "0 answers judged\n"
    table = scores_table(found)
    assert table.head[-1] == "judged" and "opinion of wise-owl" in table.note
    assert [row[-1] for row in table.rows] == ["0.667", "–"]
    server.shutdown()
    server.server_close()
    refused = CliRunner().invoke(app, [*call[:-3], "other", *call[-2:]])
    assert refused.exit_code == 2 and "gave no opinion, 3 times" in refused.stderr


def test_a_judge_reads_the_probes_that_are_answered_in_words(tmp_path):
    """Of any other answer it is told so; letters and what stays the base's it does not see."""
    probe = partial(answer, "a", False, "probes")
    answers = [
        answer("a", True),
        probe(kind="form", prompt="Her name?"),
        dataclasses.replace(probe(kind="former", prompt="Who was it?"), wanted="not Ana"),
        probe(kind="choice", prompt="A, B or C?"),
        dataclasses.replace(probe(kind="afterwards"), wanted="as the base"),
    ]
    found = measured(tmp_path, "ft", 1, answers)
    asked = []

    class Asked(Judge):
        def ask(self, answer):
            asked.append((answer.kind, right_answer(answer)))
            return answer.kind == "former"

    assert probes_tables([found])[-1].title.endswith("exact")
    assert judge(Asked("", "wise-owl"), tmp_path, [found]) == 2
    assert asked == [("form", "Ana"), ("former", "anything but Ana")]
    table = probes_tables([found])[-1]
    assert table.title.endswith("judged") and table.note.endswith("wise-owl.")
    cells = dict(zip(table.head, table.rows[0], strict=True))
    assert (cells["form"], cells["former"], cells["turns"]) == ("0.000", "1.000", "–")
    (row,) = [row for row in scores_table([found]).rows if row[2] == "reliability"]
    assert row[-1] == "1.000"


@pytest.mark.long
def test_only_what_is_trained_depends_on_the_training_cases(few_training_cases):
    then = "pipeline.then=mend training_steps=3"
    plan = Plan("atlas", methods=("ft", "mend", "pipeline"), edits=1, settings=(then,))
    loaded = load_plan(plan)
    fewer = dataclasses.replace(loaded.stream, training=loaded.stream.training[1:])
    changed = {run.name for run in loaded.runs if loaded.stream.key(run, 1) != fewer.key(run, 1)}
    assert changed == {"mend", "pipeline"}


def test_bad_input(tmp_path, few_training_cases):
    def complaint(*args):
        result = CliRunner().invoke(app, ["bench", *args, "--out", str(tmp_path / "out")])
        assert result.exit_code == 2, result.output
        return result.stderr

    assert "there is no task 'zrse'" in complaint("zrse")
    assert "give each method an -m of its own" in complaint("atlas", "-m", "wise,ft")
    assert "there is no reading 'late'" in complaint("atlas", "--reading", "late")
    assert "--checkpoints takes numbers" in complaint("atlas", "--checkpoints", "1,many")
    assert "about the bundled model" in complaint("atlas", "--model", str(tmp_path))
    assert "there is no zsre_mend_edit.json" in complaint("zsre", "--data", str(tmp_path))
    text = tmp_path / "text.txt"
    text.write_text("too short\n")
    assert "more than twenty words" in complaint(
        "atlas", "--edits", "1", "-m", "ft", "--text", str(text)
    )
