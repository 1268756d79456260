"""What the figures show."""

from __future__ import annotations

import json
import random

import pytest
import torch
from edited import EDITS, edit_model
from typer.testing import CliRunner

import errata
from errata.analyses import failures, layers, lens, tracing
from errata.analyses.context import AnalysisContext, measured
from errata.analyses.router import RouterView, auc, view_router
from errata.atlas import make_cases
from errata.bench.stream import Result
from errata.cases import Case, Probe
from errata.cli import app
from errata.errors import ConfigError
from errata.measures import Answer, summary

CASES = [
    Case(
        EDITS[0],
        rephrases=("France has the capital", "The capital of France, it is said, is"),
        locality=(
            Probe("Where is the tower?"),
            Probe("The capital of Italy is", "Rome", "neighbour"),
            Probe("The president of France is", kind="same_subject"),
        ),
    ),
    Case(
        EDITS[1],
        rephrases=("Who was it that wrote the book?",),
        locality=(Probe("x"), Probe("In the city of")),
    ),
]


@pytest.fixture(scope="module", params=["merge", "retrieve"])
def model(request):
    settings = {"variant": request.param, "edits_per_shard": 1, "shards_per_merge": 1, "steps": 30}
    settings |= {"background": 8, "false_route": 1.0}
    return edit_model("llama", "wise", EDITS[:2], **settings)


def test_activations_by_group(model):
    view = view_router(model, CASES)
    assert {name: len(values) for name, values in view.activations.items()} == {
        "edits": 2,
        "rephrasings": 3,
        "unrelated": 3,
        "neighbours": 1,
        "same subject": 1,
    }
    patch = model.method.patch
    for name, prompts in (
        ("edits", [c.edit.prompt for c in CASES]),
        ("neighbours", ["The capital of Italy is"]),
    ):
        found = patch.probe(model.lm, prompts)
        routes = patch.decide(found).tolist()
        for column, route, value in zip(found.T, routes, view.activations[name], strict=True):
            best = int(column.argmax())
            assert value == pytest.approx(column[best].item() / patch.memories[best].threshold)
            assert (value > 1) == (route == best)
        assert view.share_above(name) == sum(route >= 0 for route in routes) / len(routes)
    assert view.share_above("edits") == 1
    assert patch.installed, "looking takes the edits off"


def test_groups_without_prompts_are_left_out(model):
    assert list(view_router(model, [Case(EDITS[0])]).activations) == ["edits"]


def test_shares():
    view = RouterView({"edits": [1.5, 3.0, 1.0, 0.2], "unrelated": [0.1]})
    assert view.share_above("edits") == 0.5 and view.share_above("unrelated") == 0


@pytest.mark.parametrize(("method", "edits"), [("wise", None), ("ft", EDITS[:1])])
def test_there_must_be_a_router(method, edits):
    with pytest.raises(ConfigError, match="no router to look at"):
        view_router(edit_model("llama", method, edits), CASES)


def test_auc_is_the_chance_to_be_more_active():
    rng = random.Random(0)
    inside, outside = ([rng.choice(range(8)) + shift for _ in range(40)] for shift in (2, 0))
    pairs = [(a > b) + 0.5 * (a == b) for a in inside for b in outside]
    assert (
        auc(inside, outside) == pytest.approx(sum(pairs) / len(pairs)) and auc([2.0], [1.0]) == 1.0
    )


# each analysis, on atlas


ATLAS = make_cases(6, seed=4)
QUICK = {"steps": 2, "background": 8, "contrast": 2, "rewordings": 0, "scope_rows": 4}


@pytest.fixture(scope="module")
def measurements(tmp_path_factory):
    """Each analysis, asked for on the command line; its numbers."""
    pytest.importorskip("matplotlib")
    folder, found = tmp_path_factory.mktemp("analyses"), {}

    def run(name, *more, edits=6):
        if name not in found:
            out = folder / name
            result = CliRunner().invoke(
                app, ["analyze", name, "--edits", str(edits), "--out", str(out), *more]
            )
            assert result.exit_code == 0, result.output
            assert result.stdout.split() == [str(out / f"{name}.json"), str(out / f"{name}.png")]
            assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG\r\n")
            said = json.loads((out / f"{name}.json").read_text())
            assert (
                said["analysis"] == name
                and said["edits"] == edits
                and said["made"]["versions"]["torch"]
            )
            found[name] = said["found"]
        return found[name]

    return run


def quick(**more):
    return [
        part for name, value in {**QUICK, **more}.items() for part in ("--set", f"{name}={value}")
    ]


@pytest.mark.long
def test_router_over_the_stream(measurements):
    found = measurements("router", *quick(), edits=3)
    assert (
        found["edits"] == [1, 3]
        and len(found["activations"][1]["edits"]) == 3
        and 0 <= found["auc"][1] <= 1
    )
    assert (
        found["above"][1]["edits"]
        == sum(value > 1 for value in found["activations"][1]["edits"]) / 3
    )


@pytest.mark.long
def test_layers(measurements, monkeypatch):
    monkeypatch.setattr(layers, "MOST", 2)
    assert measurements("layers", *quick(layer=3), edits=1)["layers"] == [0, 5]


def test_an_unknown_analysis_is_refused_with_a_suggestion():
    result = CliRunner().invoke(app, ["analyze", "tracings"])
    assert result.exit_code == 2 and "Did you mean 'tracing'" in result.stderr


def test_what_is_measured_is_not_measured_again(monkeypatch, tmp_path):
    given_ = AnalysisContext("atlas", ATLAS[:1], tmp_path)
    config = errata.FineTuningConfig(steps=1)
    first = measured(given_, {"a": config})
    monkeypatch.setattr(AnalysisContext, "edited", lambda *_: pytest.fail("measured again"))
    assert measured(given_, {"b": config}) == {"b": first["a"]}


@pytest.mark.long
def test_tracing_puts_everything_back_where_it_was():
    """All blocks of the last token put back is the clean run; a state behind the subject's first
    block brings back much.
    """
    base, tokenizer = errata.load_base("atlas", "float32")
    lm = errata.LM(base, tokenizer)
    edit = min((case.edit for case in ATLAS), key=lambda edit: len(edit.prompt))
    (answer,) = lm.generate([edit.prompt], max_new_tokens=8)
    found = tracing.trace(lm, edit.prompt, edit.subject, answer)
    first, last = found["subject"]
    assert "".join(found["tokens"][first : last + 1]).strip().startswith(edit.subject[:3])
    assert found["clean"] > 0.9 and found["blurred"] < found["clean"] - 0.3
    assert len(found["states"]) == len(found["tokens"]) and {
        len(row) for row in found["states"]
    } == {6}
    assert found["states"][-1][-1] == pytest.approx(found["clean"] - found["blurred"], abs=1e-4)
    assert max(map(abs, found["states"][0])) < 1e-4 or first == 0, (
        "what is before the subject was never blurred"
    )
    assert tracing.trace(lm, edit.prompt, edit.subject, answer) == found


@pytest.mark.long
def test_tracing_and_lens(measurements):
    found = measurements("tracing", edits=1)
    assert (
        found["facts"] == 1
        and "last subject token" in found["parts"]
        and len(found["states"]) == len(found["parts"])
    )
    lens_ = measurements("lens", "-m", "ft", "--set", "steps=15", "--set", "lr=0.02", edits=2)
    assert lens_["base, old"][-1] > 0.9 and lens_["edited, new"][-1] > lens_["base, new"][-1] + 0.5


@pytest.mark.long
def test_neurons(measurements):
    quickly = [f"--set={each}" for each in ("steps=2", "layer=1", "threshold=0.3", "prefixes=0")]
    found = measurements("neurons", *quickly, edits=2)
    assert found["facts"] == len(found["by fact"]) == 2 and found["blocks"] == [0, 1]
    numbers = [len(fact["neurons"]) for fact in found["by fact"]]
    assert sum(found["by block"]) == sum(numbers) / 2
    assert found["by fact"][0]["prompts"] == 1 + len(ATLAS[0].rephrases)
    assert all(0 <= share <= 1 for share in found["overlap"].values())


def test_the_lens_ends_with_the_model_itself():
    base, tokenizer = errata.load_base("atlas", "float32")
    lm = errata.LM(base, tokenizer)
    batch = lm.prompt_batch(["Who is it?"])
    read = lens.lens(lm, "Who is it?")
    with torch.no_grad():
        states = base(batch.input_ids, output_hidden_states=True).hidden_states
        assert torch.allclose(
            read[-1], base(batch.input_ids).logits[0, -1].log_softmax(-1), atol=1e-5
        )
        second = base.get_output_embeddings()(lens.final_norm(lm)(states[2][0, -1])).log_softmax(-1)
    assert torch.allclose(read[1], second, atol=1e-4) and len(read) == 6


def wrong(before, after, wanted="Ana Brisk", edit="a", measure="reliability", right=False):
    return Answer(measure, edit, "Who?", wanted, before, after, right, 0.0)


@pytest.mark.long
def test_kinds_of_failure(tmp_path):
    assert failures.kind_of(wrong("Bo", "Ana Brisk", right=True)) is None
    said = {
        "": "nothing",
        "Bo": "as before",
        "Ana Brisk and so": "runs on",
        "Ana Brask": "partly wrong",
        "Cid": "wrong entity",
    }
    assert {after: failures.kind_of(wrong("Bo", after)) for after in said} == said
    answers = [
        wrong("Bo", "Cid"),
        wrong("Bo", "Ana Brisk", measure="generalization", right=True),
        wrong("Bo", "Bo", edit="b"),
    ]
    row = Result("k", "ft", "ft", {}, "atlas", "made up", 2, summary(2, answers).to_dict())
    row.save(tmp_path / "rows" / "ft-2.jsonl", answers)
    result = CliRunner().invoke(app, ["failures", str(tmp_path), "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "out" / "failures.json").read_text())["found"]["ft, 2"]
    assert (found["asked"], found["wrong"]) == (3, 2)
    assert {kind: count for kind, count in found["counts"].items() if count} == {
        "only the paraphrase": 1,
        "as before": 1,
    }
