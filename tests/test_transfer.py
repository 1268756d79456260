"""From model to model: what is taken, taught and carried over, against closed forms."""

from __future__ import annotations

import json

import pytest
import torch
from edited import EDITS, edit_model, logits_of
from families import tiny_model, tiny_tokenizer
from typer.testing import CliRunner

import errata
from errata.analyses.readout import Readout, attention_pairs, key_rows, value_rows
from errata.cli import app
from errata.edit import same_answer
from errata.errors import ArchitectureError, ArtifactError, ConfigError, UsageError
from errata.lm import LM
from errata.lm.vocabulary import shared_tokens
from errata.lm.weights import read_weight
from errata.transfer import (
    Bridge,
    Distillation,
    DistillationConfig,
    ParametricTransfer,
    ParametricTransferConfig,
    match_layers,
    move,
)
from errata.transfer.parametric import STATE, best_block, sensitivity
from errata.transfer.stitching import Stitched
from errata.unlearning import Passage
from errata.unlearning.parameters import LowRank

PASSAGES = [
    Passage("The capital of France is", "Rome"),
    Passage("Who wrote the book?", "two brothers"),
    Passage("Where is the tower?", "north"),
    Passage("The capital of Italy is", "York"),
]


def quiet(what: str, done: int, total: int) -> None:
    pass


def tiny_lm(family: str = "llama") -> LM:
    return LM(tiny_model(family), tiny_tokenizer())


def narrow_lm() -> LM:
    """A model half as wide as the others, with fewer blocks and the same words."""
    config = type(tiny_model("llama").config)(
        vocab_size=320, hidden_size=16, intermediate_size=24, num_hidden_layers=3,
        num_attention_heads=2, max_position_embeddings=128, initializer_range=0.2,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(3)
    return LM(type(tiny_model("llama"))(config).eval(), tiny_tokenizer())


# parametric transfer


@pytest.mark.parametrize("shape", [(1, 1), (3, 4), (7, 2), (7, 9)])
def test_the_best_part_is_the_one_that_every_part_summed_gives(shape):
    generator = torch.Generator().manual_seed(4)
    scores = torch.rand(7, 9, generator=generator)
    rows, columns = shape
    sums = {
        (i, j): float(scores[i : i + rows, j : j + columns].double().sum())
        for i in range(7 - rows + 1)
        for j in range(9 - columns + 1)
    }
    assert best_block(scores, rows, columns) == max(sums, key=sums.get)


def test_a_part_larger_than_the_matrix_is_refused():
    with pytest.raises(ConfigError, match="8 x 2 does not fit a matrix of 7 x 9"):
        best_block(torch.rand(7, 9), 8, 2)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_sensitivity_is_weight_times_gradient_summed_over_passages(family):
    lm = tiny_lm(family)
    found = sensitivity(lm, PASSAGES[:2], quiet)
    path = lm.architecture.value_path(1)
    module, expected = lm.model.get_submodule(path), 0.0
    for passage in PASSAGES[:2]:
        (row,) = passage.rows(lm)
        ids = torch.tensor([row.ids])
        logits = lm.model(ids).logits[0].log_softmax(-1)
        start = row.prompt_length
        picked = [logits[at - 1, row.ids[at]] for at in range(start, len(row.ids))]
        (-sum(picked) / len(picked)).backward()
        product = (module.weight * module.weight.grad).abs().detach()
        expected = expected + (product if product.shape == found[path].shape else product.T)
        module.weight.grad = None
    torch.testing.assert_close(found[path], expected, rtol=1e-3, atol=1e-6)
    assert all(each.requires_grad for each in lm.model.parameters())


def test_the_start_is_the_student_and_the_low_rank_matrices_are_the_teachers_part():
    student, teacher = narrow_lm(), tiny_lm()
    before = logits_of(student.model, student)
    weight = read_weight(student.model.get_submodule("model.layers.0.mlp.down_proj")).clone()
    part = read_weight(teacher.model.get_submodule("model.layers.1.mlp.down_proj"))[:16, :24]
    trained = LowRank(student, 4, 0)
    trained.start_from({"model.layers.0.mlp.down_proj": part})
    change = trained.changes()["model.layers.0.mlp.down_proj"]
    left, size, right = torch.linalg.svd(part, full_matrices=False)
    torch.testing.assert_close(change, left[:, :4] * size[:4] @ right[:4], rtol=0, atol=1e-5)
    assert torch.linalg.matrix_rank(change, rtol=1e-4) == 4
    torch.testing.assert_close(logits_of(student.model, student), before, rtol=0, atol=1e-4)
    model = trained.finish()
    merged = read_weight(model.get_submodule("model.layers.0.mlp.down_proj"))
    torch.testing.assert_close(merged, weight, rtol=0, atol=1e-5)


def test_blocks_that_count_most_are_taken_in_order_and_a_random_part_is_another(tmp_path):
    def taken(block: str) -> ParametricTransfer:
        settings = {"block": block, "epochs": 1, "lr": 0.0, "samples": 2, "rank": 4}
        run = ParametricTransfer(
            tiny_lm(), narrow_lm(), ParametricTransferConfig.from_dict(settings), PASSAGES
        )
        run.run(tmp_path / block, quiet)
        return run

    run = taken("sensitive")
    sources = [int(path.split(".")[2]) for path, *_ in run.taken.values()]
    assert sources == sorted(sources) and len(set(sources)) == 3 and run.left == []
    scores = sensitivity(tiny_lm(), PASSAGES[:2], quiet)
    totals = [
        sum(float(each.sum()) for path, each in scores.items() if f"layers.{layer}." in path)
        for layer in range(4)
    ]
    assert set(range(4)) - set(sources) == {totals.index(min(totals))}
    assert taken("random").taken != run.taken and taken("none").taken == {}
    assert taken("shuffled").taken == run.taken


def test_sensitivity_that_was_measured_before_is_taken_as_it_is(tmp_path):
    config = ParametricTransferConfig.from_dict({"rank": 2, "samples": 2, "epochs": 1})
    scores = sensitivity(tiny_lm(), PASSAGES[:2], quiet)
    taken = []
    for given in (None, scores, {path: each.flip(0, 1) for path, each in scores.items()}):
        run = ParametricTransfer(tiny_lm(), narrow_lm(), config, PASSAGES, given)
        run.run(tmp_path, quiet)
        (tmp_path / STATE).unlink(missing_ok=True)
        taken.append(run.taken)
    assert taken[0] == taken[1] != taken[2]


def test_it_learns_and_cut_off_it_goes_on(tmp_path):
    config = ParametricTransferConfig.from_dict(
        {"epochs": 12, "lr": 0.01, "batch": 4, "rank": 4, "save_every": 1}
    )

    def run(folder, progress=quiet):
        student = narrow_lm()
        model = ParametricTransfer(tiny_lm(), student, config, PASSAGES).run(folder, progress)
        return LM(model, student.tokenizer)

    whole = run(tmp_path / "whole")
    pairs = [(each.prompt, each.text) for each in PASSAGES]
    losses = [sum(score.loss for score in lm.score(pairs)) for lm in (narrow_lm(), whole)]
    assert losses[1] < losses[0] - 2

    def stopped(what, done, total):
        if "training" in what and done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", stopped)
    assert (tmp_path / "cut" / STATE).exists()
    again = run(tmp_path / "cut")
    for one, other in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    (tmp_path / "whole" / STATE).write_bytes(b"x")
    with pytest.raises(ArtifactError, match="damaged"):
        run(tmp_path / "whole")


def test_a_teacher_of_another_build_is_told():
    config = ParametricTransferConfig(samples=1)
    run = ParametricTransfer(tiny_lm("gpt2"), narrow_lm(), config, PASSAGES)
    with pytest.raises(ConfigError, match="no matrix of the teacher's blocks"):
        run.run(None, quiet)
    with pytest.raises(UsageError, match="no passage"):
        ParametricTransfer(tiny_lm(), narrow_lm(), config, [])


# the space of words


def test_states_carried_over_say_the_same_of_the_words():
    one, other = tiny_lm(), tiny_lm("gpt2")
    bridge = Bridge.between(one, other)
    assert bridge.shared == len(shared_tokens(one.tokenizer, other.tokenizer)[0]) > 250
    ids, _ = shared_tokens(one.tokenizer, other.tokenizer)
    heads = [
        read_weight(lm.architecture.head_module(lm.model))[ids].double() for lm in (one, other)
    ]
    first, second = (head - head.mean(0) for head in heads)
    expected = first.T @ torch.linalg.pinv(second).T
    torch.testing.assert_close(bridge.kernel, expected, rtol=1e-2, atol=1e-3)
    same = Bridge.between(one, one)
    states = torch.randn(3, 32)
    torch.testing.assert_close(same.carry(states), states, rtol=0, atol=1e-2)


def test_correlations_are_those_of_what_rows_say_of_each_word():
    one, other = tiny_lm(), narrow_lm()
    bridge = Bridge.between(one, other)
    rows = value_rows(one, 1)[:5], value_rows(other, 2)[:7]
    ids, _ = shared_tokens(one.tokenizer, other.tokenizer)
    said = [
        mine.double() @ read_weight(lm.architecture.head_module(lm.model))[ids].double().T
        for mine, lm in zip(rows, (one, other), strict=True)
    ]
    expected = torch.corrcoef(torch.cat(said))[:5, 5:]
    torch.testing.assert_close(bridge.correlations(*rows), expected, rtol=0, atol=1e-6)


def test_a_models_blocks_are_matched_with_themselves():
    lm = tiny_lm()
    matched, alike = match_layers(lm, lm, Bridge.between(lm, lm))
    assert matched == {layer: layer for layer in range(4)} and alike.shape == (4, 4)


def test_stitched_to_itself_a_model_is_itself():
    lm = tiny_lm()
    batch = lm.prompt_batch([each.prompt for each in PASSAGES])
    whole = lm.run(batch).logits
    same = Stitched(lm, lm, 1, 1, Bridge.between(lm, lm)).logits(batch)
    mask = batch.attention_mask.bool()
    torch.testing.assert_close(same[mask], whole[mask], rtol=0, atol=0.05)
    skipping = Stitched(lm, lm, 0, 2, Bridge.between(lm, lm)).logits(batch)
    assert not torch.allclose(skipping[mask], whole[mask], atol=0.5)


def test_rows_are_read_in_words():
    lm = tiny_lm()
    readout = Readout.of(lm)
    direction = readout.words[77] * 3
    assert readout.rank(direction, 77) == 1
    assert readout.top(direction)[0] == lm.tokenizer.decode([77])
    assert value_rows(lm, 0).shape == key_rows(lm, 0).shape == (64, 32)
    module = lm.model.model.layers[0].mlp.gate_proj
    assert torch.equal(key_rows(lm, 0), module.weight)
    assert len(attention_pairs(lm, 1, 3)) == 5
    with pytest.raises(ConfigError, match="no head 4: block 1 has 0 to 3"):
        attention_pairs(lm, 1, 4)
    with pytest.raises(ArchitectureError, match="not kept apart"):
        attention_pairs(tiny_lm("gpt2"), 1, 0)


# edits in another model


@pytest.mark.parametrize("method", ["neuraldb", "grace", "folio"])
def test_carried_to_the_same_model_edits_are_what_they_were(method, tmp_path):
    source = edit_model("llama", method, EDITS[:3])
    target = errata.EditModel(tiny_model("llama"), source.method.config, tiny_tokenizer())
    found = move(source, target, tmp_path / "moved", carried=True)
    assert target.edits == source.edits and found.shared
    torch.testing.assert_close(
        logits_of(target, target.lm), logits_of(source, source.lm), rtol=0, atol=0.05
    )
    loaded = errata.EditModel.from_pretrained(
        tiny_model("llama"), tmp_path / "moved", tiny_tokenizer()
    )
    assert torch.equal(logits_of(loaded, loaded.lm), logits_of(target, target.lm))
    for model in (target, source):
        model.undo(EDITS[1].id)
    torch.testing.assert_close(
        logits_of(target, target.lm), logits_of(source, source.lm), rtol=0, atol=0.05
    )


def test_what_cannot_be_carried_is_written_anew(tmp_path):
    source = edit_model("llama", "ft", EDITS[:2])
    target = errata.EditModel(tiny_model("gpt2"), source.method.config, tiny_tokenizer())
    with pytest.raises(ConfigError, match="move its edits without --carry"):
        move(source, target, tmp_path / "moved", carried=True)
    assert target.edits == []
    found = move(source, target, tmp_path / "moved")
    assert target.edits == source.edits and len(found.report.results) == 2 and not found.shared
    with pytest.raises(UsageError, match="has edits already"):
        move(source, target, tmp_path / "again", carried=True)
    with pytest.raises(UsageError, match="no edits to move"):
        move(edit_model("llama", "ft"), target, tmp_path / "again")


def test_a_vocabulary_without_a_common_token_is_told(monkeypatch):
    names = iter([[b"a", b"b"], [b"c", b""]])
    monkeypatch.setattr("errata.lm.vocabulary.token_bytes", lambda *_, **__: next(names))
    with pytest.raises(ConfigError, match="no token in common"):
        shared_tokens(tiny_tokenizer(), tiny_tokenizer())


# distillation


def settings(**more) -> DistillationConfig:
    return DistillationConfig.from_dict(
        {"epochs": 14, "lr": 0.03, "batch": 6, "rank": 8, "anchors": 4, "prefixes": 1, **more}
    )


@pytest.mark.parametrize(
    ("family", "level"), [("llama", "logits"), ("gpt2", "sequence")], ids=["logits", "sequence"]
)
def test_a_student_learns_the_corrections(family, level, tmp_path):
    teacher = edit_model("llama", "folio", EDITS[:3])
    student = tiny_lm(family)
    run = Distillation(teacher, student, settings(level=level), {}, [], quiet)
    assert len(run.lessons) == 3 and run.unsaid == 0 and run.level == level
    learned = LM(run.run(tmp_path, quiet), student.tokenizer)
    answers = learned.generate([edit.prompt for edit in EDITS[:3]])
    assert all(
        same_answer(answer, edit.target) for answer, edit in zip(answers, EDITS[:3], strict=True)
    )
    assert run.record(1.0)["unsaid"] == 0 and not list(tmp_path.iterdir())


def test_what_is_to_stay_is_held(tmp_path):
    stay = [EDITS[4].prompt, EDITS[5].prompt]
    pairs = list(zip(stay, tiny_lm().generate(stay), strict=True))

    def loss(weight: float) -> float:
        teacher, student = edit_model("llama", "folio", EDITS[:3]), tiny_lm()
        config = settings(anchor_weight=weight, epochs=5, prefixes=0)
        run = Distillation(teacher, student, config, {}, stay, quiet)
        learned = LM(run.run(tmp_path / str(weight), quiet), student.tokenizer)
        return sum(score.loss for score in learned.score(pairs))

    assert loss(10.0) < loss(0.0) - 1


def test_what_cannot_be_taught_is_told():
    student = tiny_lm()
    with pytest.raises(UsageError, match="the teacher has no edits"):
        Distillation(edit_model("llama", "folio"), student, settings(), {}, [], quiet)
    teacher = edit_model("llama", "folio", EDITS[:1])
    student.tokenizer.add_tokens(["neverheard"])
    with pytest.raises(ConfigError, match="the teacher's vocabulary only"):
        Distillation(teacher, student, settings(level="logits"), {}, [], quiet)
    with pytest.raises(ConfigError, match="temperature"):
        settings(temperature=0)


# the command line


def said(*words: str) -> str:
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == 0, done.output
    return done.output


def test_moved_and_distilled_on_the_command_line(tmp_path):
    edit = {"prompt": "Who is the mayor of Kelor?", "target": "Brobin Reshibri", "subject": "Kelor"}
    (tmp_path / "edits.jsonl").write_text(json.dumps(edit) + "\n")
    base = errata.load_base("atlas", "float32")
    for each in base:
        each.save_pretrained(tmp_path / "base")
    folder = str(tmp_path / "edits")
    said("edit", "atlas", "--edits", str(tmp_path / "edits.jsonl"), "--out", folder)
    base = str(tmp_path / "base")
    told = said("move", folder, "--to", base, "--out", str(tmp_path / "moved"))
    assert "1 edits written anew, 1 of them answered as wanted" in told
    small = ["--set", "epochs=5", "--set", "lr=0.01", "--set", "anchors=2", "--set", "prefixes=0"]
    told = said("distill", folder, base, "--out", str(tmp_path / "student"), *small)
    assert "1 of 1 edits are answered as wanted by the student" in told
    asked = said("ask", str(tmp_path / "student"), edit["prompt"])
    assert asked.strip().rstrip(".") == edit["target"]
    for wrong, what in (
        (["move", folder, "--to", folder, "--out", str(tmp_path / "x")], "move to a base model"),
        (["distill", folder, folder, "--out", str(tmp_path / "x")], "is a folder of edits"),
        (
            ["distill", folder, base, "--out", str(tmp_path / "student")],
            "has a model in it already",
        ),
        (["transfer", base, base, "--data", "none.jsonl", "--out", "x"], "none.jsonl"),
    ):
        done = CliRunner().invoke(app, wrong)
        assert done.exit_code == 2 and what in done.output, done.output
