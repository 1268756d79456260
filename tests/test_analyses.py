"""What the figures show."""

from __future__ import annotations

import pytest
from edited import EDITS, edit_model

from errata.analyses.router import RouterView, draw_router, view_router
from errata.cases import Case, Probe
from errata.errors import ConfigError

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
    Case(EDITS[1], rephrases=("Who was it that wrote the book?",), locality=(Probe("x"), Probe("In the city of"))),
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
    for name, prompts in (("edits", [c.edit.prompt for c in CASES]), ("neighbours", ["The capital of Italy is"])):
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


def test_the_figure_is_written(model, tmp_path):
    pytest.importorskip("matplotlib")
    path = draw_router(view_router(model, CASES), tmp_path / "new" / "router.png", title="two edits")
    assert path == tmp_path / "new" / "router.png"
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n") and len(content) > 5000
