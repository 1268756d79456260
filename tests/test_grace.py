"""GRACE against its paper in float64: radius rules, the value's training, and its place."""

from __future__ import annotations

import copy

import pytest
import torch
from edited import EDITS, edit_model, logits_of, same_state
from families import tiny_model
from torch.nn import functional as F

import errata
from errata import Edit
from errata.atlas import make_cases
from errata.errors import ConfigError
from errata.methods.association.grace.method import GraceConfig
from errata.patches.routed import MAIN
from errata.presets import preset

LAYER = 2
WIDTH = 64


class Paper:
    """The published rules, in plain float64: lists of keys, radii and labels."""

    def __init__(self, radius: float, expansion: str) -> None:
        self.radius, self.expansion = radius, expansion
        self.keys: list[torch.Tensor] = []
        self.radii: list[float] = []
        self.labels: list[tuple[int, ...]] = []
        self.did: list[str] = []

    def edit(self, query: torch.Tensor, label: tuple[int, ...]) -> None:
        distances = [float((key - query).norm()) for key in self.keys]
        j = min(range(len(distances)), key=distances.__getitem__) if distances else -1
        if j < 0 or distances[j] > self.radius + self.radii[j]:
            self.did.append("add")
            self._add(query, self.radius, label)
        elif self.labels[j] == label:
            self.did.append("expand" if distances[j] > self.radii[j] else "keep")
            if distances[j] > self.radii[j]:
                if self.expansion == "moving_average":
                    self.keys[j] = (self.keys[j] + query) / 2
                self.radii[j] = distances[j]
        else:
            self.did.append("split")
            self._add(query, distances[j] / 2, label)
            self.radii[j] = distances[j] / 2 - 1e-5

    def _add(self, query: torch.Tensor, radius: float, label: tuple[int, ...]) -> None:
        self.keys.append(query)
        self.radii.append(radius)
        self.labels.append(label)

    def decide(self, query: torch.Tensor) -> int:
        distances = torch.stack([(key - query).norm() for key in self.keys])
        j = int(distances.argmin())
        return j if distances[j] <= self.radii[j] else MAIN


@pytest.mark.parametrize("expansion", ["coverage", "moving_average"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_life_of_keys_is_ruled_as_in_the_paper(expansion, seed):
    draw = torch.Generator().manual_seed(seed)
    paper, method = Paper(1.0, expansion), edit_model("llama", "grace", expansion=expansion).method
    for step in range(60):
        query = torch.zeros(WIDTH, dtype=torch.float64)
        query[:2] = torch.rand(2, generator=draw, dtype=torch.float64) * 12
        label = ((1, 2), (2, 1))[int(torch.randint(2, (1,), generator=draw))]
        paper.edit(query, label)
        method.place(str(step), query.float(), label, query.new_zeros(32).float())
    assert set(paper.did) == {"add", "expand", "keep", "split"}
    book = method.patch
    assert list(book.entries) == list(range(len(paper.keys)))
    keys = book.index.keys_of(list(book.entries)).double()
    torch.testing.assert_close(keys, torch.stack(paper.keys), rtol=0, atol=1e-4)
    assert [entry.radius for entry in book.entries.values()] == pytest.approx(paper.radii, abs=1e-4)
    assert [entry.label for entry in book.entries.values()] == paper.labels
    queries = torch.zeros(200, WIDTH, dtype=torch.float64)
    queries[:, :2] = torch.rand(200, 2, generator=draw, dtype=torch.float64) * 12
    answers = [paper.decide(query) for query in queries]
    assert MAIN in answers and book.decide(queries.float()).tolist() == answers


def test_targets_are_the_same_when_their_tokens_are_not_when_their_means_are():
    method = edit_model("llama", "grace").method
    value, key = torch.zeros(32), torch.zeros(WIDTH)
    for name, label in zip("abcd", ((1, 3), (3, 1), (2, 2), (2,)), strict=True):
        key = key + 0.3
        method.place(name, key.clone(), label, value)
    assert [entry.edits for entry in method.patch.entries.values()] == [["a"], ["b"], ["c"], ["d"]]
    method.place("e", key + 0.01, (2,), value)
    assert method.patch.entries[3].edits == ["d", "e"]


def spoken(base, row, places, value):
    """The plain model's logits (n, vocabulary) that predict the answer, with `value` at some
    places.
    """
    path = base.get_submodule(f"model.layers.{LAYER}.mlp.down_proj")
    hook = path.register_forward_hook(
        lambda _, args, out: torch.where(places[None, :, None], value, out)
    )
    try:
        return base(torch.tensor([row.ids])).logits[0, row.prompt_length - 1 : -1]
    finally:
        hook.remove()


def marked(row, replacement):
    columns = torch.arange(len(row.ids))
    return {
        "replace_last": columns == row.prompt_length - 1,
        "replace_prompt": columns < row.prompt_length,
        "replace_all": columns >= 0,
    }[replacement]


@pytest.mark.parametrize("start", ["cold", "warm"])
@pytest.mark.parametrize("replacement", ["replace_last", "replace_prompt", "replace_all"])
def test_a_value_is_what_adam_makes_of_the_edits_loss(replacement, start):
    edit, lr, steps = EDITS[1], 0.05, 5
    model = edit_model(
        "llama", "grace", replacement=replacement, start=start, lr=lr, steps=steps, stop_loss=0.0
    )
    lm, base = model.lm, copy.deepcopy(model.base).double()
    row = lm.encode(edit.prompt, edit.target, lm.ending_of(edit.prompt, edit.target))
    places, labels = marked(row, replacement), torch.tensor(row.ids[row.prompt_length :])
    said = []
    hook = base.get_submodule(f"model.layers.{LAYER}.mlp.down_proj").register_forward_hook(
        lambda _, a, out: said.append(out)
    )
    base(torch.tensor([row.ids]))
    hook.remove()
    value = model.method._start(edit, said[0][0, row.prompt_length - 1].float()).double()
    if start == "warm":
        torch.testing.assert_close(value, said[0][0, row.prompt_length - 1], rtol=1e-5, atol=1e-6)
    else:
        assert value.min() >= 0 and value.max() < 1 and value.std() > 0.2
        assert not torch.equal(value, model.method._start(EDITS[0], value))
    begun, mean, square = value, torch.zeros_like(value), torch.zeros_like(value)
    losses = []
    for step in range(1, steps + 1):
        value = value.detach().requires_grad_()
        loss = F.cross_entropy(spoken(base, row, places, value), labels)
        losses.append(loss.item())
        (gradient,) = torch.autograd.grad(loss, value)
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient.square()
        value = value - lr * (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
    model.edit([edit], check=False)
    (entry,) = model.method.patch.entries.values()
    assert (entry.value.double() - value).norm() < 1e-3 * (value - begun).norm()
    assert losses == sorted(losses, reverse=True)
    mine = torch.tensor(lm.score([(edit.prompt, edit.target)])[0].loss)
    with torch.no_grad():
        n = row.target_length
        theirs = F.cross_entropy(spoken(base, row, places, value)[:n], labels[:n])
    torch.testing.assert_close(mine.double(), theirs, rtol=0, atol=1e-4)


def on_atlas(edits, **settings):
    base, tokenizer = errata.load_base("atlas", "float32")
    config = GraceConfig.from_dict({**preset("grace", "atlas").settings, **settings})
    model = errata.get_edit_model(base, config, tokenizer)
    return model, model.edit(edits)


def test_it_is_trained_until_the_loss_is_low_and_then_says_the_target_near_its_key():
    """On a model that is not random, which a single value cannot make say anything."""
    cases = make_cases(3, 1)
    edits = [case.edit for case in cases]
    model, report = on_atlas(edits)
    assert report.success_rate == 1
    assert all(
        score.loss < 0.03
        for score in model.lm.score([(edit.prompt, edit.target) for edit in edits])
    )
    probes = [probe.prompt for case in cases for probe in case.locality]
    assert model.ask(probes) == model.ask_base(probes)
    narrow, report = on_atlas(edits, radius=1.0)
    assert report.success_rate == 1
    rephrased = [text for case in cases for text in case.rephrases]
    assert narrow.ask(rephrased) == model.ask_base(rephrased) != model.ask(rephrased)


@pytest.mark.parametrize("replacement", ["replace_last", "replace_prompt", "replace_all"])
def test_generated_token_by_token_the_value_stands_where_it_was_trained(replacement):
    """Against a plain model, without cache, that has the value at the same places of the text so
    far.
    """
    model = edit_model("llama", "grace", EDITS[:2], replacement=replacement)
    prompt = EDITS[1].prompt
    (number,) = [n for n, e in model.method.patch.entries.items() if EDITS[1].id in e.edits]
    value, plain = model.method.patch.entries[number].value, tiny_model("llama")
    batch = model.lm.prompt_batch([prompt, "x"])
    new = model.generate(
        batch.input_ids,
        attention_mask=batch.attention_mask,
        max_new_tokens=6,
        min_new_tokens=6,
        pad_token_id=0,
    )
    got = new[0, batch.input_ids.shape[1] :].tolist()
    front = model.lm.encode_prompt(prompt)
    ids = list(front)
    for token in got:
        at = torch.arange(len(ids))
        places = {
            "replace_last": at == len(front) - 1,
            "replace_prompt": at < len(front),
            "replace_all": at >= 0,
        }[replacement]
        hook = plain.get_submodule(f"model.layers.{LAYER}.mlp.down_proj").register_forward_hook(
            lambda _, args, out, places=places: torch.where(places[None, :, None], value, out)
        )
        with torch.no_grad():
            logits = plain(torch.tensor([ids])).logits[0, -1]
        hook.remove()
        logits[list(model.lm.end_ids)] = -torch.inf
        assert int(logits.argmax()) == token
        ids.append(token)


def test_a_later_answer_to_the_same_question_takes_the_earlier_ones_place():
    edits = [case.edit for case in make_cases(2, 1)]
    rival = Edit(edits[0].prompt, edits[1].target, id="rival")
    model, report = on_atlas([*edits, rival])
    assert [result.success for result in report.results] == [False, True, True]
    assert model.method.patch.number_of(edits[0].id) is None
    model.undo("rival")
    assert [said.rstrip(".") for said in model.ask([edit.prompt for edit in edits])] == [
        edit.target for edit in edits
    ]
    same_state(model, on_atlas(edits)[0])


def test_undo_trains_only_what_the_edit_had_a_part_in(monkeypatch):
    wide = {"radius": 1e6, "steps": 2}  # all are near each other
    joining = Edit("The president of Italy lives in", EDITS[2].target, id="joining")
    for edits, gone, settings, trained in (
        (
            EDITS[:4],
            "home",
            {"radius": 1e-3, "steps": 2},
            0,
        ),  # all stand alone: one row of the index goes
        ([*EDITS[:4], joining], EDITS[0].id, {"radius": 1e-3, "steps": 2}, 0),
        (
            [EDITS[2], joining, EDITS[0]],
            "joining",
            wide,
            0,
        ),  # the value before it joined is still known
        ([EDITS[2], joining, EDITS[0]], "home", wide, 1),
        ([EDITS[2], joining, EDITS[0]], EDITS[0].id, wide, 0),
    ):
        model, never = (
            edit_model("llama", "grace", edits, **settings),
            edit_model("llama", "grace", **settings),
        )
        never.edit([edit for edit in edits if edit.id != gone], check=False)
        calls: list[str] = []
        train = model.method._train
        monkeypatch.setattr(
            model.method, "_train", lambda e, v, c=calls, t=train: c.append(e.id) or t(e, v)
        )
        model.undo(gone)
        assert len(calls) == trained
        same_state(model, never)
        assert model.method.state()[1] == never.method.state()[1]
        assert torch.equal(logits_of(model, model.lm), logits_of(never, never.lm))


def test_an_entry_can_be_dropped_by_itself():
    model = edit_model("llama", "grace", EDITS[:3], radius=1e-3, steps=30)
    pairs = [(edit.prompt, edit.target) for edit in EDITS[:3]]
    before = model.lm.score(pairs)
    number = model.method.patch.number_of("home")
    model.method.patch.drop(number)
    after = model.lm.score(pairs)
    assert after[:2] == before[:2] and after[2] != before[2]
    with model.disable_edits():
        assert model.lm.score(pairs)[2] == after[2]


def test_cut_off_in_the_middle_of_an_edit_it_holds_what_was_finished(monkeypatch):
    model = edit_model("llama", "grace", EDITS[:1], radius=1e6)
    train = model.method._train

    def stopped(edit, value):
        if edit.id == "home":
            raise KeyboardInterrupt
        return train(edit, value)

    monkeypatch.setattr(model.method, "_train", stopped)
    with pytest.raises(KeyboardInterrupt):
        model.edit(EDITS[1:4], check=False)
    same_state(model, edit_model("llama", "grace", EDITS[:2], radius=1e6))


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"radius": -1.0}, "radius is -1.0"),
        ({"steps": 0}, "steps is 0"),
        ({"replacement": "replace_first"}, "it is one of replace_last"),
        ({"start": "hot"}, "cold, warm"),
        ({"expansion": "cover"}, "Did you mean 'coverage'"),
    ],
)
def test_bad_settings_are_said(setting, reason):
    with pytest.raises(ConfigError, match=reason):
        GraceConfig(**setting)
