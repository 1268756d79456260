"""Unlearning: the losses, what is trained, what is kept of a run that was cut off, the command."""

from __future__ import annotations

import json
import math
from collections.abc import Hashable
from pathlib import Path

import pytest
import torch
from families import tiny_model, tiny_tokenizer
from grid import grid
from typer.testing import CliRunner

import errata
from errata.atlas import make_cases
from errata.cli import app
from errata.errors import ArtifactError, ConfigError, EditError, PromptTooLongError, UsageError
from errata.lm import LM
from errata.unlearning import Passage, Unlearning, config_of, read_passages
from errata.unlearning.objectives import OBJECTIVES, kl, nll
from errata.unlearning.parameters import trained_of
from errata.unlearning.scored import Side
from errata.unlearning.subnetwork import FILE, Subnetwork
from errata.unlearning.training import STATE

FORGET = [
    Passage("The capital of France is", "Rome"),
    Passage("Who wrote the book?", "two brothers"),
    Passage("Where is the tower?", "north"),
]
RETAIN = [
    Passage("The capital of Italy is", "York"),
    Passage("The company was founded by", "the author"),
    Passage("In the city of", "London"),
    Passage("The author of the book was", "Anna"),
]


def quiet(what: str, done: int, total: int) -> None:
    pass


def tiny_lm(family: str = "llama") -> LM:
    torch.set_num_threads(1)
    return LM(tiny_model(family), tiny_tokenizer())


def taught(steps: int = 60) -> LM:
    """A tiny model that has learned what is to be forgotten and what is to be kept."""
    lm = tiny_lm()
    rows = [row for each in (*FORGET, *RETAIN) for row in each.rows(lm)]
    adam = torch.optim.Adam(lm.model.parameters(), lr=1e-2)
    trained = trained_of(lm, config_of("ascent", {"trains": "all"}), 0)
    for _ in range(steps):
        loss = nll(Side(lm, trained, rows))
        adam.zero_grad()
        loss.backward()
        adam.step()
    trained.finish()
    return lm


@pytest.fixture(scope="module")
def known() -> dict[str, torch.Tensor]:
    return {name: each.clone() for name, each in taught().model.state_dict().items()}


@pytest.fixture
def lm(known) -> LM:
    fresh = tiny_lm()
    fresh.model.load_state_dict(known)
    return fresh


def kinds(name: str) -> set[Hashable]:
    """What tells an objective from others: what it raises or lowers, and on which passages."""
    way = OBJECTIVES[name]
    refuses = "dpo" if name == "dpo" else way.refuses
    told = {"refuses": refuses, "negates": way.negates, "retains": way.retains}
    return {*told.items(), ("steers", way.loss is None), ("trains", way.own.get("trains"))}


def losses(lm: LM, passages: list[Passage]) -> float:
    """The mean NLL of a token of passages."""
    pairs = [(each.prompt, each.text) for each in passages]
    return sum(score.loss for score in lm.score(pairs)) / len(pairs)


@grid("objective", [(each,) for each in OBJECTIVES], kinds)
def test_what_is_forgotten_becomes_unlikely_and_what_is_kept_does_not(objective, lm, tmp_path):
    before, kept_before = losses(lm, FORGET), losses(lm, RETAIN)
    given = {"epochs": "15", "lr": "0.003", "steering": "30", "batch": "4"}
    if objective == "subnetwork":
        given |= {"lr": "0.2", "sparsity": "1"}
    config = config_of(objective, given)
    model = Unlearning(lm, objective, config, FORGET, RETAIN).run(tmp_path, quiet)
    after = LM(model, lm.tokenizer)
    assert losses(after, FORGET) > before + (0.02 if objective in ("rmu", "negation") else 0.3)
    if OBJECTIVES[objective].retains:
        rise = losses(after, RETAIN) - kept_before
        assert rise < (losses(after, FORGET) - before) / 2 + 0.05
    assert not any(each.requires_grad and each.grad is not None for each in model.parameters())
    assert not (tmp_path / STATE).exists()


def test_the_losses_are_those_of_the_papers(lm):
    """Each against its formula, computed a token at a time."""
    config = config_of("ascent", {"trains": "all", "beta": "0.7", "delta": "0.2"})
    trained = trained_of(lm, config, 0)
    forget, refused = (
        [row for each in passages for row in each.rows(lm)]
        for passages in (FORGET, [Passage(each.prompt, "unknown") for each in FORGET])
    )
    with torch.no_grad():
        for each in lm.model.parameters():
            each.add_(0.02 * torch.randn(each.shape, generator=torch.Generator().manual_seed(1)))
    gone, refusal = Side(lm, trained, forget), Side(lm, trained, refused)

    def summed(side: Side, scored) -> list[float]:
        """Negative log-probabilities of the passages, one forward for each."""
        return [
            -sum(
                float(scored.logits[i].log_softmax(-1)[scored.labels[i]])
                for i in range(len(scored.labels))
                if scored.rows[i] == row
            )
            for row in range(3)
        ]

    now, before = summed(gone, gone.now), summed(gone, gone.before)
    lengths = [len(row.ids) - row.prompt_length for row in forget]
    tokens = sum(lengths)
    sigmoid = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    beta, delta = 0.7, 0.2
    no, no_before = summed(refusal, refusal.now), summed(refusal, refusal.before)
    wanted = {
        "ascent": -sum(now) / tokens,
        "graddiff": -sum(now) / tokens,
        "negation": sum(now) / tokens,
        "npo": sum(
            -2 / beta * math.log(sigmoid(-beta * (old - new)))
            for new, old in zip(now, before, strict=True)
        )
        / 3,
        "simnpo": sum(
            -2 / beta * math.log(sigmoid(beta * (new / n - delta)))
            for new, n in zip(now, lengths, strict=True)
        )
        / 3,
        "idk": sum(no) / sum(len(row.ids) - row.prompt_length for row in refused),
        "dpo": sum(
            -2 / beta * math.log(sigmoid(beta * ((rb - r) - (fb - f))))
            for r, rb, f, fb in zip(no, no_before, now, before, strict=True)
        )
        / 3,
        "wga": sum(float(p.exp() ** beta * p) for p in gone.now.log_probs.detach()) / tokens,
    }
    lowered = gone.before.logits.clone()
    for i, label in enumerate(gone.before.labels.tolist()):
        lowered[i, label] -= beta
    teacher = lowered.softmax(-1)
    wanted["undial"] = -float((teacher * gone.now.logits.log_softmax(-1)).sum(-1).mean().detach())
    likely, size = gone.now.logits.softmax(-1).detach(), gone.now.logits.shape[-1]
    wanted["subnetwork"] = float((1 / size * (1 / size / likely).log()).sum(-1).mean())
    for name, value in wanted.items():
        found = OBJECTIVES[name].loss(gone, refusal, config)
        assert float(found.detach()) == pytest.approx(value, rel=1e-4), name
    assert set(wanted) == {name for name, each in OBJECTIVES.items() if each.loss is not None}
    old, new = gone.before.logits.log_softmax(-1), gone.now.logits.log_softmax(-1)
    by_hand = (old.exp() * (old - new)).sum(-1).mean()
    torch.testing.assert_close(kl(gone), by_hand, rtol=1e-4, atol=1e-6)


def test_ascent_weighted_counts_what_is_forgotten_little(lm):
    """The weight is no way around: its gradient does not count."""
    config = config_of("wga", {"trains": "all", "beta": "1"})
    side = Side(lm, trained_of(lm, config, 0), FORGET[0].rows(lm))
    OBJECTIVES["wga"].loss(side, None, config).backward()
    head = lm.model.get_output_embeddings().weight
    weighted, p = head.grad.clone(), side.now.log_probs.detach().exp()
    head.grad = None
    side = Side(lm, side.trained, FORGET[0].rows(lm))
    ((p * side.now.log_probs).mean()).backward()
    torch.testing.assert_close(head.grad, weighted)


@pytest.mark.parametrize("trains", ["low-rank", "values", "all"])
def test_what_is_trained_comes_off_for_a_while_and_scales(trains, lm):
    config = config_of("npo", {"trains": trains, "rank": "4", "blocks": "2"})
    batch = lm.prompt_batch([each.prompt for each in FORGET])
    with torch.no_grad():
        base = lm.run(batch).logits
    trained = trained_of(lm, config, 2)
    names = list(trained.parameters)
    assert len(names) > 1 and (trains != "values" or len(names) == 2)
    with torch.no_grad():
        for each in trained.parameters.values():
            each.add_(0.05)
        learned = lm.run(batch).logits
        with trained.set_back():
            torch.testing.assert_close(lm.run(batch).logits, base, rtol=0, atol=0)
        torch.testing.assert_close(lm.run(batch).logits, learned, rtol=0, atol=0)
        assert not torch.allclose(learned, base)
        trained.scale(-1.0)
        trained.scale(-0.5)
        trained.scale(2.0)
        torch.testing.assert_close(lm.run(batch).logits, learned, rtol=1e-4, atol=1e-4)
        merged = trained.finish()
        torch.testing.assert_close(
            LM(merged, lm.tokenizer).run(batch).logits, learned, rtol=1e-4, atol=1e-4
        )


def test_a_subnetwork_comes_off_to_the_bit_and_is_a_bit_a_weight(lm, tmp_path, known):
    batch = lm.prompt_batch([each.prompt for each in FORGET])

    def said(asked: LM = lm) -> torch.Tensor:
        with torch.no_grad():
            return asked.run(batch).logits

    base = said()
    trained = trained_of(lm, config_of("subnetwork", {}), 0)
    assert len(trained.parameters) == 14  # all linear layers of two of four blocks
    for place, each in enumerate(trained.parameters.values()):
        with torch.no_grad():
            each.copy_(torch.randn(each.shape, generator=torch.Generator().manual_seed(place)))
    found, learned = trained.subnetwork, said()
    with trained.set_back():
        assert torch.equal(said(), base)
    assert not torch.allclose(learned, base)
    with pytest.raises(UsageError, match="zero or it is not"):
        trained.scale(2.0)
    forgot = trained.finish()
    torch.testing.assert_close(said(LM(forgot, lm.tokenizer)), learned, rtol=1e-4, atol=1e-5)
    weights = forgot.state_dict()
    zero = sum(int((weights[name] == 0).sum()) for name in found.masks)
    assert found.size == zero and 0.45 < found.size / found.among < 0.55
    found.save(tmp_path)
    assert (tmp_path / FILE).stat().st_size < found.among / 8 + 4000
    again, fresh = Subnetwork.load(tmp_path), tiny_lm()
    fresh.model.load_state_dict(known)
    assert again.overlap(found)[0] == 1.0 and again.overlap(found)[1] == pytest.approx(
        0.5, abs=0.05
    )
    with again.removed(fresh):
        assert torch.equal(said(fresh), said(LM(forgot, lm.tokenizer)))
    assert all(torch.equal(known[name], each) for name, each in fresh.model.state_dict().items())
    with pytest.raises(ArtifactError, match="of another model"), again.removed(tiny_lm("gpt2")):
        pass
    for damaged in (b"nothing", (tmp_path / FILE).read_bytes()[:-5]):
        (tmp_path / FILE).write_bytes(damaged)
        with pytest.raises(ArtifactError, match="no subnetwork can be read"):
            Subnetwork.load(tmp_path)


def test_a_mask_has_nothing_to_take_away(lm):
    with pytest.raises(ConfigError, match="negation takes away what was learned"):
        Unlearning(lm, "negation", config_of("negation", {"trains": "masks"}), FORGET)


def test_a_second_request_steers_no_farther(lm, tmp_path):
    """It steered by lengths that the first had made: twice as far each time, until all was lost."""
    given = {"trains": "all", "epochs": "20", "lr": "0.01", "steering": "6", "save_every": "0"}
    layer, lengths = lm.architecture.n_layers // 2, []
    for _ in range(2):
        config = config_of("rmu", {**given, "layer": str(layer), "retain_weight": "30"})
        run = Unlearning(lm, "rmu", config, FORGET[:1], RETAIN)
        run.run(tmp_path, quiet)
        side = Side(lm, trained_of(lm, config, 0), FORGET[0].rows(lm))
        lengths.append(float(side.states(layer).norm(dim=-1).mean()))
    assert lengths[1] < 2 * lengths[0], lengths


def test_negation_goes_the_other_way(lm, known, tmp_path):
    given = {"trains": "all", "epochs": "3", "lr": "0.001", "scale": "0.5"}
    config = config_of("negation", given)
    gone = Unlearning(lm, "negation", config, FORGET).run(tmp_path, quiet).state_dict()
    one = tiny_lm()
    one.model.load_state_dict(known)
    learned = Unlearning(one, "negation", config_of("negation", {**given, "scale": "0"}), FORGET)
    learned.objective = type(learned.objective)(learned.objective.loss, "", retains=False)
    learned = learned.run(tmp_path, quiet).state_dict()
    for name, each in known.items():
        if each.is_floating_point():
            wanted = each - 0.5 * (learned[name] - each)
            torch.testing.assert_close(gone[name], wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "trains",
    [
        "masks",
        *(pytest.param(name, marks=pytest.mark.long) for name in ("low-rank", "values")),
    ],
)
def test_cut_off_and_run_again_it_is_as_if_it_had_not_been(trains, lm, known, tmp_path):
    config = config_of("npo", {"trains": trains, "epochs": "6", "lr": "0.01", "save_every": "2"})
    whole = Unlearning(lm, "npo", config, FORGET, RETAIN).run(tmp_path / "whole", quiet)

    class StopError(Exception):
        pass

    def stops(_: str, done: int, __: int) -> None:
        if done == 5:
            raise StopError

    def again() -> Unlearning:
        fresh = tiny_lm()
        fresh.model.load_state_dict(known)
        return Unlearning(fresh, "npo", config, FORGET, RETAIN)

    with pytest.raises(StopError):
        again().run(tmp_path / "cut", stops)
    made: list[int] = []
    model = again().run(tmp_path / "cut", lambda _, done, __: made.append(done))
    assert made[0] == 4
    for name, each in whole.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], each, rtol=0, atol=0)
    assert (tmp_path / "cut" / STATE).exists(), "what was learned is nowhere else yet"
    other = again()
    other.forget = FORGET[:1]
    with pytest.raises(ArtifactError, match="of another run"):
        other.run(tmp_path / "cut", quiet)
    (tmp_path / "cut" / STATE).write_bytes(b"nothing")
    with pytest.raises(ArtifactError, match="damaged"):
        again().run(tmp_path / "cut", quiet)


def test_documents_are_read_in_parts_and_forgotten(lm, tmp_path):
    text = "The capital of France is Rome, and the author of the book was Anna. " * 8
    document = Passage("", text)
    rows = document.rows(lm)
    assert len(rows) > 1 and max(len(row.ids) for row in rows) <= lm.context_length
    assert [i for row in rows for i in row.ids] == lm.encode_text(text)

    def loss() -> float:
        trained = trained_of(lm, config_of("ascent", {"trains": "all"}), 0)
        with torch.no_grad():
            return float(nll(Side(lm, trained, rows)))

    before = loss()
    config = config_of("ascent", {"trains": "all", "lr": "0.003"})
    Unlearning(lm, "ascent", config, [document]).run(tmp_path, quiet)
    assert loss() > before + 0.3
    with pytest.raises(UsageError, match="documents ask none"):
        Unlearning(lm, "idk", config_of("idk", {}), [document], RETAIN)


def test_what_is_wrong_is_told(lm, tmp_path):
    with pytest.raises(ConfigError, match="called 'npu'"):
        config_of("npu", {})
    with pytest.raises(ConfigError, match="no setting 'epoch'"):
        config_of("npo", {"epoch": "3"})
    with pytest.raises(UsageError, match="also trains on what is to be kept"):
        Unlearning(lm, "npo", config_of("npo", {}), FORGET)
    with pytest.raises(UsageError, match="nothing to forget"):
        Unlearning(lm, "npo", config_of("npo", {}), [], RETAIN)
    with pytest.raises(EditError, match="1 passages are to be forgotten and kept, like 'Where"):
        Unlearning(lm, "npo", config_of("npo", {}), FORGET, [*RETAIN, FORGET[2]])
    with pytest.raises(ConfigError, match="layer is 99, and the model has"):
        Unlearning(lm, "rmu", config_of("rmu", {"layer": "99"}), FORGET, RETAIN)
    with pytest.raises(PromptTooLongError):
        Unlearning(lm, "ascent", config_of("ascent", {}), [Passage("Who? " * 500, "I")])
    with pytest.raises(PromptTooLongError, match="one token"):
        Passage("", "x").rows(lm)
    file = tmp_path / "f.jsonl"
    for line, said in (
        ('{"question": "Who?"}', "a passage has"),
        ('{"question": "Who?", "answer": ""}', "'answer' is empty"),
        ('{"text": 3}', "must be text"),
        ("[]", "one JSON object"),
        ("", "nothing in it"),
    ):
        file.write_text(line + "\n")
        with pytest.raises(EditError, match=said):
            read_passages(file)


def test_a_subnetwork_on_the_command_line(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    tiny_model("llama").save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    for name, part in (("f", FORGET), ("r", RETAIN)):
        lines = [json.dumps({"question": each.prompt, "answer": each.text}) for each in part]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    files = ["--forget", str(tmp_path / "f.jsonl"), "--retain", str(tmp_path / "r.jsonl")]
    words = ["unlearn", str(tmp_path / "base"), "-m", "subnetwork", "--set", "epochs=20", *files]
    out = tmp_path / "out"
    done = CliRunner().invoke(app, [*words, "--set", "sparsity=1", "--out", str(out)])
    assert done.exit_code == 0, done.output
    zero = json.loads((out / "unlearning.json").read_text())["zero"]
    assert f"{zero['weights']:,} of {zero['of']:,} weights are zero" in done.output
    model, _ = errata.load_base(str(out), "float32")
    found, weights = Subnetwork.load(out), model.state_dict()
    assert found.size == zero["weights"] > 0
    assert all(bool((weights[name][mask] == 0).all()) for name, mask in found.masks.items())


@pytest.mark.long
def test_on_the_command_line(tmp_path: Path) -> None:
    """Facts of atlas: forgotten as asked and otherwise, the others kept; what it writes says so."""
    torch.set_num_threads(1)
    cases = make_cases(10, seed=2)
    base, tokenizer = errata.load_base("atlas", "float32")
    prompts = [case.edit.prompt for case in cases]
    old = [answer.rstrip(".") for answer in LM(base, tokenizer).generate(prompts)]
    for name, part in (("f", slice(0, 4)), ("r", slice(4, 10))):
        lines = [
            json.dumps({"question": prompt, "answer": answer})
            for prompt, answer in zip(prompts[part], old[part], strict=True)
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    words = ["unlearn", "atlas", "-m", "undial", "--set", "lr=0.002", "--set", "epochs=25"]
    files = ["--forget", str(tmp_path / "f.jsonl"), "--retain", str(tmp_path / "r.jsonl")]
    out = str(tmp_path / "out")
    done = CliRunner().invoke(app, [*words, *files, "--out", out])
    assert done.exit_code == 0 and "4 passages unlearned by undial in 25 steps" in done.output
    record = json.loads((tmp_path / "out" / "unlearning.json").read_text())
    assert record["forget"]["passages"] == 4 and len(record["forget"]["sha256"]) == 64
    assert record["settings"]["beta"] == 10.0 and record["paper"].startswith("UNDIAL")
    model, tokenizer = errata.load_base(out, "float32")
    lm = LM(model, tokenizer)
    answers = lm.generate(prompts)
    assert not any(each in said for each, said in zip(old[:4], answers[:4], strict=True))
    assert sum(each in said for each, said in zip(old[4:], answers[4:], strict=True)) >= 5
    rephrased = lm.generate([case.rephrases[0] for case in cases[:4]])
    assert sum(each in said for each, said in zip(old[:4], rephrased, strict=True)) <= 1
    again = CliRunner().invoke(app, [*words, *files, "--out", out])
    assert again.exit_code == 2 and "has a model in it already" in again.output
