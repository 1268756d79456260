"""What a model still knows: each measure against its definition, and the command."""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path

import pytest
import torch
from families import tiny_model, tiny_tokenizer
from typer.testing import CliRunner

import errata
from errata.atlas import make_cases
from errata.cli import app
from errata.cli.forgetting import show_forgetting
from errata.lm import LM
from errata.unlearning import Passage
from errata.unlearning.attacks import attack_success, attacks, likelihoods
from errata.unlearning.config import UnlearningConfig
from errata.unlearning.measures import (
    Memory,
    forget_quality,
    is_broken,
    remembered,
    rouge_recalls,
    share_said,
    utility,
)
from errata.unlearning.tampering import quantised, relearning, rounded

ASKED = [
    Passage("The capital of France is", "Rome", "It is Rome", ("York", "the north")),
    Passage("Who wrote the book?", "two brothers", "", ("Anna", "the author")),
]


def quiet(what: str, done: int, total: int) -> None:
    pass


@pytest.fixture(scope="module")
def lm() -> LM:
    torch.set_num_threads(1)
    return LM(tiny_model("llama"), tiny_tokenizer())


@pytest.fixture(scope="module")
def atlas() -> LM:
    torch.set_num_threads(1)
    return LM(*errata.load_base("atlas", "float32"))


def by_hand(lm: LM, prompt: str, text: str, ending: str | None) -> list[dict[str, float]]:
    """Of each token of an answer: what is said of it, read alone."""
    row = lm.encode(prompt, text, ending)
    with torch.no_grad():
        logits = lm.model(torch.tensor([row.ids])).logits[0].double().log_softmax(-1)
    found = []
    for place in range(row.prompt_length, len(row.ids)):
        here, token = logits[place - 1], row.ids[place]
        mean = float((here.exp() * here).sum())
        spread = math.sqrt(float((here.exp() * (here - mean) ** 2).sum()))
        log = float(here[token])
        found.append(
            {"log": log, "hit": int(here.argmax()) == token, "normed": (log - mean) / spread}
        )
    return found


def test_each_measure_is_what_it_says(lm):
    found = remembered(lm, ASKED, quiet)
    for i, each in enumerate(ASKED):
        tokens = by_hand(lm, each.prompt, each.text, lm.ending_of(each.prompt, each.text))
        logs = [token["log"] for token in tokens]
        mean = sum(logs) / len(logs)
        assert found.probability[i] == pytest.approx(math.exp(mean), rel=1e-4)
        assert found.exact[i] == pytest.approx(sum(t["hit"] for t in tokens) / len(tokens))
        wrong = [place for place, token in enumerate(tokens) if not token["hit"]]
        longest = len(tokens) - (wrong[-1] + 1 if wrong else 0)
        assert found.extraction[i] == pytest.approx(longest / len(tokens))
        least = max(1, round(0.2 * len(tokens)))
        assert found.attacks["loss"][i] == pytest.approx(mean, rel=1e-4)
        assert found.attacks["min_k"][i] == pytest.approx(sum(sorted(logs)[:least]) / least)
        normed = sorted(token["normed"] for token in tokens)[:least]
        assert found.attacks["min_k++"][i] == pytest.approx(sum(normed) / least, rel=1e-3)
        packed = len(zlib.compress(each.text.encode()))
        assert found.attacks["zlib"][i] == pytest.approx(sum(logs) / packed, rel=1e-4)

        def likely(text: str, prompt: str = each.prompt) -> float:
            tokens = by_hand(lm, prompt, text, None)
            return math.exp(sum(token["log"] for token in tokens) / len(tokens))

        wrongs = sum(likely(text) for text in each.wrong) / len(each.wrong)
        assert found.truth_ratio[i] == pytest.approx(
            wrongs / likely(each.paraphrase or each.text), rel=1e-4
        )


def test_what_a_model_knows_it_says_and_goes_on_with(atlas):
    """Facts of its world, and a text that it wrote itself."""
    prompts = [case.edit.prompt for case in make_cases(6, seed=4)]
    truth = [
        Passage(p, a.rstrip(".")) for p, a in zip(prompts, atlas.generate(prompts), strict=True)
    ]
    other = [Passage(p, truth[i - 1].text) for i, p in enumerate(prompts)]
    knows, not_so = remembered(atlas, truth, quiet), remembered(atlas, other, quiet)
    assert attacks(atlas, truth, likelihoods(atlas, truth, quiet)) == knows.attacks
    assert share_said(atlas, [*truth, *other[:2]], quiet) == 6 / 8
    assert knows.said == [1.0] * 6 == knows.rouge and min(knows.probability) > 0.9
    assert min(knows.exact) == 1 == min(knows.extraction)
    assert sum(not_so.said) == 0 and max(not_so.probability) < 0.1
    assert attack_success(knows.attacks["min_k"], not_so.attacks["min_k"]) == 1
    with torch.no_grad():
        out = atlas.greedy_model().generate(
            torch.tensor([atlas.encode_text("The river")]), max_new_tokens=30
        )
    text = atlas.decode(out[0].tolist())
    document = remembered(atlas, [Passage("", text)], quiet)
    assert document.extraction[0] > 0.7 and document.rouge[0] > 0.7 and not document.truth_ratio


def test_sums_and_tests():
    assert attack_success([1.0, 2.0], [0.0, 1.0]) == 0.875
    same = Memory([], [], [], [], [0.1, 0.2, 0.3, 0.4], [], [], [], {})
    far = Memory([], [], [], [], [5.0, 6.0, 7.0, 8.0], [], [], [], {})
    none = Memory([], [], [], [], [], [], [], [], {})
    assert forget_quality(same, same) == 1 and forget_quality(same, far) < 0.05
    assert forget_quality(same, none) is None
    known = Memory([], [], [0.5], [0.25], [0.5, 3.0], [], [], [], {})
    assert utility([known]) == pytest.approx(3 / (1 / 0.25 + 1 / 0.5 + 1 / 0.25))
    assert utility([known, Memory([], [], [0.0], [0.25], [], [], [], [], {})]) == 0
    assert rouge_recalls(["the red mill stands"], ["red mill stood standing"])[0] == 0.75
    assert known.means()["said"] is None and known.means()["rouge"] == 0.5


@pytest.mark.parametrize(
    ("answer", "broken"),
    [
        ("", True),
        (" .,!", True),
        ("of of of of mayor mayor of", True),
        ("Rome Rome Rome", True),
        ("Ana Brisk", False),
        ("She was born in Osk, and she lives in Osk.", False),
    ],
)
def test_an_answer_that_is_no_language(answer, broken):
    assert is_broken(answer) == broken


def test_weights_are_rounded_for_a_while(lm):
    weight = torch.tensor([[0.1, -0.7, 0.33, 0.0]])
    found = rounded(weight, 4)
    torch.testing.assert_close(found, torch.tensor([[0.1, -0.7, 0.3, 0.0]]))
    wide = torch.randn(3, 300, generator=torch.Generator().manual_seed(0))
    for bits in (8, 4):
        errors = (rounded(wide, bits) - wide).abs()
        for part, own in zip(errors.split(128, 1), wide.split(128, 1), strict=True):
            assert (part <= own.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1) / 1.99).all()
    prompts = lm.prompt_batch([each.prompt for each in ASKED])
    with torch.no_grad():
        before = lm.run(prompts).logits
        with quantised(lm, 4):
            assert not torch.equal(lm.run(prompts).logits, before)
        assert torch.equal(lm.run(prompts).logits, before)


@pytest.mark.long
@pytest.mark.parametrize("trains", ["low-rank", "values"])
def test_what_was_forgotten_is_relearned_and_the_model_is_what_it_was(lm, trains, monkeypatch):
    """A tiny model learns answers; those that are asked are among those taught, for once."""
    same = [Passage(each.prompt, "Rome") for each in ASKED for _ in range(2)]
    monkeypatch.setattr(
        "errata.unlearning.tampering.UnlearningConfig",
        lambda **_: UnlearningConfig(trains=trains, lr=0.01, blocks=4),
    )
    prompts = lm.prompt_batch([each.prompt for each in ASKED])
    with torch.no_grad():
        before = lm.run(prompts).logits
    found = relearning(lm, same, quiet, (0, 40))
    assert found[0] == 0 and found[40] == 1
    with torch.no_grad():
        assert torch.equal(lm.run(prompts).logits, before)


@pytest.mark.long
def test_on_the_command_line(tmp_path: Path, atlas, capsys) -> None:
    prompts = [case.edit.prompt for case in make_cases(12, seed=8)]
    answers = [answer.rstrip(".") for answer in atlas.generate(prompts)]
    for name, part in (("f", slice(0, 4)), ("r", slice(4, 8)), ("o", slice(8, 12))):
        (tmp_path / f"{name}.jsonl").write_text(
            "\n".join(
                json.dumps({"question": p, "answer": a, "perturbed_answer": ["Nobody", "Osk"]})
                for p, a in zip(prompts[part], answers[part], strict=True)
            )
        )
    files = {name: str(tmp_path / f"{name}.jsonl") for name in "fro"}

    def run(*words: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["eval", "atlas", *words])
        return done.exit_code, done.output

    words = ["--forget", files["f"], "--retain", files["r"], "--others", files["o"]]
    code, told = run(*words, "--retrained", "atlas", "--json", "--tamper")
    found = json.loads(told[told.index("{") :])
    assert code == 0 and found["forget"]["said"] == 1 == found["retain"]["said"]
    assert found["forget_quality"] == 1 and found["attacks"]["reference"] == 0.5
    assert found["retrained"]["forget"] == found["forget"] and found["privacy_leak"] == 0
    assert found["quantised"]["8"] == 1 and found["relearned"]["0"] == 1
    assert found["utility"] > 0.9 and found["forget"]["broken"] == 0
    show_forgetting(found)
    told = capsys.readouterr().out
    assert "relearned: said 1.000 at 0 steps" in told and "quantised: said" in told
    assert "utility" in told and "attack by min_k" in told
    for wrong, said in (
        (["--forget", files["f"]], "--forget needs --retain"),
        (["--forget", files["f"], "--cases", files["f"]], "give either --cases"),
        ([], "give either --cases"),
        (["--forget", str(tmp_path / "none"), "--retain", files["r"]], "cannot be read"),
    ):
        code, told = run(*wrong)
        assert code == 2 and said in " ".join(told.split())
