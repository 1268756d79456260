"""Probes and references in a benchmark: runs, tables with intervals, and the files of the docs."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

import errata
from errata import EditModel
from errata.atlas import make_cases
from errata.bench.conflicts import apply_policy
from errata.bench.plan import Plan, read_recipe
from errata.bench.probe_tables import probes_mean, probes_tables
from errata.bench.report import html, markdown
from errata.bench.results import Estimate, read_folders
from errata.bench.run import measure_run
from errata.bench.runs import runs_of
from errata.bench.stream import UNEDITED, Run, Stream
from errata.bench.tables import main_table, passes
from errata.cases import cases_to_json_lines
from errata.cli import app
from errata.errors import UnknownNameError
from errata.probes import make_probes

ROOT = Path(__file__).resolve().parent.parent
KINDS = ("form", "verify", "former")
CASES = [replace(case, truth=("Nobody Atall",)) for case in make_cases(3)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three edits of atlas: the base model, the fact given, and fine-tuning, with probes of two."""
    out = tmp_path_factory.mktemp("probes") / "real-atlas-made"
    base, _ = errata.load_base("atlas", "float32")
    stream = Stream(
        "atlas", errata.storage.cache.fingerprint(base), "made.json 0",
        apply_policy("published", CASES), [], (1, 3), out, new_tokens=6,
        neutral=("Once upon a time there was a town by the sea.",),
        task="atlas", probes=make_probes(CASES, KINDS, edits=2),
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:  # what is measured elsewhere takes most of the time
        patch.setattr("errata.bench.run.BATCHES", ())
        patch.setattr("errata.bench.run.fluency", lambda *_: None)
        for run in (Run(UNEDITED, None), Run("given", None), Run("ft", "ft", {"steps": 2})):
            measure_run(run, stream, lambda *_: None)
            assert not stream.missing(run)
    return out


def test_probes_are_asked_at_the_last_checkpoint_of_the_same_edits(folder):
    found = {(each.label, each.result.edits): each for each in read_folders([folder])}
    assert set(found) == {(name, edits) for name in (UNEDITED, "given", "ft") for edits in (1, 3)}
    asked = {
        name: [a for a in found[name, 3].answers if a.measure == "probes"]
        for name in (UNEDITED, "given", "ft")
    }
    assert [len(some) for some in asked.values()] == [8] * 3
    prompts = [[answer.prompt for answer in some] for some in asked.values()]
    assert prompts[0] == prompts[1] == prompts[2]
    assert len({answer.edit_id for answer in asked["ft"]}) == 2
    assert all(a.before == a.after for a in asked[UNEDITED])
    assert any(a.before != a.after for a in asked["given"])
    assert found["ft", 1].result.figures["probes"] == {}
    former = found[UNEDITED, 3].result.figures["probes"]["contains"]["former"]
    assert former == 1.0, "the base model never says the new answer"
    assert passes(found["ft", 3].result) > 0 and passes(found["given", 3].result) is None


def test_tables_show_each_kind_the_mean_and_passes(folder):
    measured = read_folders([folder])
    contains, exact = probes_tables(measured)
    assert contains.head == ("T", "method", "form", "verify", "former", "mean")
    assert [row[:2] for row in contains.rows] == [("3", UNEDITED), ("3", "given"), ("3", "ft")]
    assert contains.rows[0][4] == "1.000\n0.34–1.00", "two edits, all alike: Wilson's"
    assert exact.title.endswith("exact") and "*former*: what was it before? (not new)" in exact.note
    mean = probes_mean(next(each for each in measured if each.label == "given"), "contains")
    assert mean is None, "of one edit nothing is asked"
    mean = probes_mean(measured[-1], "contains")
    shares = measured[-1].result.figures["probes"]["contains"]
    assert mean.value == pytest.approx(shares["mean"]) and mean.low <= mean.value <= mean.high
    assert "passes/edit" in main_table(measured).head
    assert "The sceptic's probes, exact" in markdown(measured)
    assert "sceptic&#x27;s probes, contains" in html(measured)
    assert Estimate(0.5, 0.5, 0.5, 3).widened().low == 0.5


def test_the_docs_show_shares_with_intervals_and_exact_ones(folder, tmp_path, monkeypatch):
    for name in ("benchmarks", "scripts"):
        monkeypatch.syspath_prepend(str(ROOT / name))
    import docs
    import record
    import results

    for module, name in ((results, "FOLDER"), (docs, "RESULTS")):
        monkeypatch.setattr(module, name, tmp_path)
    monkeypatch.setattr(sys, "argv", ["record.py", f"real-atlas-made={folder}"])
    record.main()
    lines = {name: results.read(name) for name in ("real-atlas-made", "real-atlas-made-probes")}
    for name, kept in lines.items():
        another = [{**line, "method": "wise"} for line in kept if line["method"] == "ft"]
        results.write(name, another)
    record.main()  # what the folder lacks stays
    for name, kept in lines.items():
        assert [line for line in results.read(name) if line["method"] != "wise"] == kept
        methods = [line["method"] for line in results.read(name)]
        assert methods.count("wise") == methods.count("ft") > 0
    results.write("real-atlas-made", lines["real-atlas-made"])
    rows = [docs.measured(row) for row in docs.read("real-atlas-made")]
    assert [(row["T"], row["method"]) for row in rows][:3] == [
        ("3", UNEDITED), ("3", "given"), ("3", "ft")
    ]  # fmt: skip
    assert rows[0]["reliability"] == "**0.00** 0.00–0.56 (0.00)"
    assert rows[0]["neighbour unchanged"].startswith("**1.00** ") and rows[2]["passes/edit"]
    rows = [docs.measured(row) for row in docs.read("real-atlas-made-probes")]
    assert rows[0]["former"] == "**1.00** 0.34–1.00 (1.00)"
    tables = {name for page, name, _ in docs.real_tables()}
    assert tables == {"atlas-made", "atlas-made-probes"}


def test_every_recipe_of_the_page_is_there_and_reads():
    page = (ROOT / "docs" / "real.md").read_text(encoding="utf-8")
    for path in sorted((ROOT / "benchmarks" / "recipes").glob("real-*.yaml")):
        (plan,) = read_recipe(path, {"model": "atlas"})
        assert plan.probes == ("all",) and plan.out == Path("runs") / path.stem
        name = path.stem.removeprefix("real-")
        assert f"<!-- {name} -->" in page and f"<!-- {name}-probes -->" in page


def test_names_of_references(folder):
    base, _ = errata.load_base("atlas", "float32")
    runs = runs_of(["given", "ft", "forced-ft"], base.config, ["ft.steps=7"])
    assert [(run.name, run.method, run.is_reference) for run in runs] == [
        (UNEDITED, None, True), ("given", None, True), ("ft", "ft", False),
        ("forced-ft", "ft", True),
    ]  # fmt: skip
    assert runs[2].settings["steps"] == runs[3].settings["steps"] == 7
    with pytest.raises(UnknownNameError, match="no method 'forced-flio'"):
        runs_of(["forced-flio"], base.config)
    with pytest.raises(UnknownNameError, match=r"no probe 'frm'\. Did you mean 'form'"):
        Plan("atlas", probes=("frm",))


def test_eval_asks_them_on_the_command_line(tmp_path):
    base, tokenizer = errata.load_base("atlas", "float32")
    model = EditModel(base, errata.method_class("ft").config_class(steps=1), tokenizer)
    model.edit([case.edit for case in CASES], check=False)
    model.save_pretrained(tmp_path / "edited")
    (tmp_path / "cases.jsonl").write_text(cases_to_json_lines(CASES[:1]))
    call = ["eval", str(tmp_path / "edited"), "--cases", str(tmp_path / "cases.jsonl")]
    found = CliRunner().invoke(app, [*call, "--probes", "verify,former,alias"])
    assert found.exit_code == 0, found.output
    assert "verify" in found.stdout and "over the kinds" in found.stdout
    assert "left out: alias of 1" in found.stderr
    refused = CliRunner().invoke(app, [*call, "--probes", "verfy"])
    assert refused.exit_code == 2 and "Did you mean 'verify'" in refused.stderr
