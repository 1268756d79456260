"""SISA: shards and slices, what is taken out and what it costs, kills, answers, the command."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from families import tiny_model, tiny_tokenizer
from typer.testing import CliRunner

import errata
from errata.cli import app
from errata.errors import (
    ArtifactError,
    BaseMismatchError,
    ConfigError,
    EditError,
    PromptTooLongError,
    UsageError,
)
from errata.lm import LM
from errata.lm.hooks import capture_input
from errata.unlearning import Passage, ShardFolder, Sisa, SisaConfig, answers, merged
from errata.unlearning.records import spread

NAMES = "Anna Bert Cora Dora Emil Fred Gina Hugo Iris Jack Kurt Lena".split()
PASSAGES = [Passage(f"Who wrote book {n}?", name) for n, name in enumerate(NAMES)]
CONFIG = SisaConfig(shards=2, slices=3, epochs=2, batch=2, lr=0.01, rank=2)


class KilledError(Exception):
    """A process that ends where it is."""


def quiet(what: str, done: int, total: int) -> None:
    pass


def tiny_lm() -> LM:
    torch.set_num_threads(1)
    return LM(tiny_model("llama"), tiny_tokenizer())


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(each.relative_to(folder)): each.read_bytes()
        for each in sorted(folder.rglob("*"))
        if each.is_file()
    }


def dies_at(step: int):
    def progress(_: str, done: int, __: int) -> None:
        if done == step:
            raise KilledError

    return progress


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sisa") / "all"
    Sisa.begin(tiny_lm(), folder, PASSAGES, CONFIG).train(quiet)
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "folder"))


def lies_in(folder: Path, shard: int, slice_: int) -> Passage:
    """A record of a shard and a slice."""
    records = ShardFolder.open(folder).records
    return next(r.passage for r in records if (r.shard, r.slice) == (shard, slice_))


def from_nothing(folder: Path, new: Path) -> dict[str, bytes]:
    """What comes out where the records of a folder, as they lie, are learned from nothing."""
    new.mkdir()
    for name in ("sisa.json", "records.jsonl"):
        shutil.copy(folder / name, new)
    Sisa(tiny_lm(), ShardFolder.open(new)).train(quiet)
    return files(new)


def test_records_are_dealt_evenly_and_always_in_the_same_way() -> None:
    config = SisaConfig(shards=3, slices=2)
    records = spread(PASSAGES[:11], config)
    assert spread(PASSAGES[:11][::-1], config) == records
    assert spread(PASSAGES[:11], SisaConfig(shards=3, slices=2, seed=1)) != records
    shards = Counter(each.shard for each in records)
    slices = Counter((each.shard, each.slice) for each in records)
    assert sorted(shards.values()) == [3, 4, 4] and set(slices.values()) == {1, 2}
    assert {each.passage for each in records} == set(PASSAGES[:11])


def test_a_record_taken_out_is_as_if_it_had_never_been(folder: Path, tmp_path: Path) -> None:
    before, gone = files(folder), lies_in(folder, 1, 1)
    cost = Sisa(tiny_lm(), ShardFolder.open(folder)).forget([gone], quiet)
    after = files(folder)
    for name in before:
        stays = name.startswith("shard-0/") or name in ("shard-1/slice-0.safetensors", "sisa.json")
        assert (after[name] == before[name]) == stays, name
    assert after == from_nothing(folder, tmp_path / "never")
    assert not any(gone.prompt.encode() in content for content in after.values())
    assert len(ShardFolder.open(folder).records) == len(PASSAGES) - 1
    # a slice's turn sees what is there so far once; 6 records a shard, one less, two at a step
    assert (cost.shards, cost.steps, cost.steps_of_all) == ((1,), 2 + 3, 6 + 1 + 2 + 3)
    assert cost.seconds_of_all == pytest.approx(cost.seconds * 2.4)


@pytest.mark.long
def test_several_records_and_all_of_a_shard(folder: Path, tmp_path: Path) -> None:
    records = ShardFolder.open(folder).records
    gone = [each.passage for each in records if each.shard == 0]
    gone.append(lies_in(folder, 1, 2))
    cost = Sisa(tiny_lm(), ShardFolder.open(folder)).forget(gone, quiet)
    assert cost.shards == (0, 1) and cost.steps == 3
    assert files(folder) == from_nothing(folder, tmp_path / "never")
    sisa = Sisa(tiny_lm(), ShardFolder.open(folder))
    sisa.forget([each.passage for each in sisa.folder.records], quiet)
    assert ShardFolder.open(folder).records == []
    base, batch = tiny_lm(), tiny_lm().prompt_batch(["Who wrote book 1?"])
    with torch.no_grad():
        model = LM(merged(sisa, quiet), base.tokenizer)
        torch.testing.assert_close(model.run(batch).logits, base.run(batch).logits)


@pytest.mark.parametrize("step", [0, 4])
def test_killed_and_run_again_it_is_as_if_it_had_not_been(
    step: int, trained: Path, tmp_path: Path
) -> None:
    lm = tiny_lm()
    base = {name: each.clone() for name, each in lm.model.state_dict().items()}
    with pytest.raises(KilledError):
        asked = [replace(each, paraphrase="it was", wrong=("Olga",)) for each in PASSAGES]
        Sisa.begin(lm, tmp_path / "cut", asked, CONFIG).train(dies_at(step))
    for name, each in lm.model.state_dict().items():
        assert torch.equal(each, base[name])
    half = tmp_path / "cut" / "records.jsonl.0.new"
    half.write_text("half")
    again = Sisa.begin(lm, tmp_path / "cut", PASSAGES[::-1], CONFIG).train(quiet)
    assert (again.steps < again.steps_of_all) == (step > 0) and not half.exists()
    assert files(tmp_path / "cut") == files(trained)


@pytest.mark.long
def test_a_kill_never_leaves_the_record_in_use(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the process ends after the records are written: what was trained with the one that
    is gone is not read, and the next run makes what a run to the end would have made.
    """
    gone = lies_in(folder, 1, 0)
    whole = Path(shutil.copytree(folder, tmp_path / "whole"))
    Sisa(tiny_lm(), ShardFolder.open(whole)).forget([gone], quiet)
    wanted = files(whole)

    def killed(*_: object) -> None:
        raise KilledError

    for number, patched in enumerate(("tidy", "save", None)):
        cut = Path(shutil.copytree(folder, tmp_path / f"cut-{number}"))
        (cut / "shard-1" / "slice-2.safetensors.0.new").write_bytes(b"of an earlier kill")
        with monkeypatch.context() as patch:
            if patched is not None:
                patch.setattr(ShardFolder, patched, killed)
            with pytest.raises(KilledError):
                sisa = Sisa(tiny_lm(), ShardFolder.open(cut))
                sisa.forget([gone], quiet if patched else dies_at(2))
        found = ShardFolder.open(cut)
        assert gone not in [each.passage for each in found.records]
        assert found.learned(1) == (0 if patched else 1)
        with pytest.raises(ArtifactError), Sisa(tiny_lm(), found).lora(1):
            pass
        Sisa(tiny_lm(), found).train(quiet)
        assert files(cut) == wanted


def test_before_the_records_are_written_nothing_has_happened(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files(folder)

    def refuses(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("errata.unlearning.shard_folder.write_whole", refuses)
    sisa = Sisa(tiny_lm(), ShardFolder.open(folder))
    with pytest.raises(errata.errors.StorageError, match="No space left"):
        sisa.forget([lies_in(folder, 0, 0)], quiet)
    assert files(folder) == before
    assert Sisa(tiny_lm(), ShardFolder.open(folder)).train(quiet).steps == 0


@pytest.mark.long
def test_the_surest_shard_answers_and_merging_is_least_squares(folder: Path) -> None:
    sisa = Sisa(tiny_lm(), ShardFolder.open(folder))
    prompts = [each.prompt for each in PASSAGES[:3]]
    found = answers(sisa, prompts, quiet, tokens=4)
    for place, each in enumerate(found):
        for shard in range(2):
            with sisa.lora(shard):
                text = sisa.lm.generate(prompts, max_new_tokens=4)[place]
                (score,) = sisa.lm.score([(prompts[place], text or " ")])
            surest = each.probability >= float(torch.tensor(-score.loss).exp()) - 1e-6
            assert surest and (each.shard != shard or each.text == text)
    one = "model.layers.0.self_attn.q_proj"  # its inputs are those of the model without a LoRA
    module = sisa.lm.model.get_submodule(one)
    before, moments, moved = module.weight.clone(), torch.zeros(32, 32), torch.zeros(32, 32)
    for shard in range(2):
        with sisa.lora(shard) as lora, torch.no_grad():
            change = lora.changes()[one]
            for row in sisa.rows(shard, 9):
                with capture_input(sisa.lm.model.get_submodule(one)) as seen:
                    sisa.lm.run(sisa.lm.batch([row]))
                gram = seen[0][0].T @ seen[0][0]
                moments, moved = moments + gram, moved + change @ gram
    merged(sisa, quiet, ridge=0.1, scale=2.0)
    ridged = moments + 0.1 * moments.diagonal().mean() * torch.eye(32)
    wanted = before + 2 * moved @ torch.linalg.inv(ridged)
    torch.testing.assert_close(module.weight, wanted, rtol=1e-3, atol=1e-4)


def test_one_shard_merged_is_that_shard(tmp_path: Path) -> None:
    """In a model whose matrices lie the other way round."""
    lm = LM(tiny_model("gpt2"), tiny_tokenizer())
    config = SisaConfig(shards=1, slices=1, epochs=3, lr=0.01, rank=2)
    sisa = Sisa.begin(lm, tmp_path / "one", PASSAGES, config)
    sisa.train(quiet)
    batch = lm.batch(sisa.rows(0, 0))
    mask = batch.attention_mask.bool()
    with torch.no_grad():
        base = lm.run(batch).logits[mask]
        with sisa.lora(0):
            learned = lm.run(batch).logits[mask]
        merged(sisa, quiet, ridge=1e-6, scale=1.0)
        found = lm.run(batch).logits[mask]
    assert (found - learned).norm() < 0.05 * (learned - base).norm()


def test_what_is_wrong_is_told(folder: Path, tmp_path: Path) -> None:
    lm = tiny_lm()
    with pytest.raises(UsageError, match="2 shards of 3 slices need 6 records, and there are 5"):
        Sisa.begin(lm, tmp_path / "new", PASSAGES[:5], CONFIG)
    with pytest.raises(EditError, match="'Who wrote book 0\\? Anna' is there twice"):
        Sisa.begin(lm, tmp_path / "new", [*PASSAGES, PASSAGES[0]], CONFIG)
    with pytest.raises(PromptTooLongError):
        Sisa.begin(lm, tmp_path / "new", [*PASSAGES, Passage("Who? " * 500, "I")], CONFIG)
    assert not (tmp_path / "new").exists()
    with pytest.raises(ConfigError, match=r"no setting 'shard'\. Did you mean 'shards'"):
        SisaConfig.from_dict({"shard": "3"})
    for passages, config in ((PASSAGES[1:], CONFIG), (PASSAGES, SisaConfig(shards=3, slices=3))):
        with pytest.raises(UsageError, match="begun with other records, settings"):
            Sisa.begin(lm, folder, passages, config)
    with pytest.raises(ArtifactError, match="is no folder of SISA"):
        ShardFolder.open(tmp_path)
    sisa = Sisa(lm, ShardFolder.open(folder))
    with pytest.raises(UsageError, match="nothing to forget"):
        sisa.forget([], quiet)
    with pytest.raises(EditError, match="has no record 'Who\\? Nobody'"):
        sisa.forget([PASSAGES[0], Passage("Who?", "Nobody")], quiet)
    with pytest.raises(EditError, match="there twice"):
        sisa.forget([PASSAGES[0], PASSAGES[0]], quiet)
    with pytest.raises(BaseMismatchError, match="whose weights had the SHA-256"):
        Sisa(LM(tiny_model("qwen2"), tiny_tokenizer()), ShardFolder.open(folder))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="has files in it already"):
        Sisa.begin(lm, tmp_path / "other", PASSAGES, CONFIG)


def test_damage_is_told(folder: Path) -> None:
    records, header = folder / "records.jsonl", folder / "sisa.json"
    text, settings = records.read_text(), header.read_text()
    lines = text.splitlines()
    for damaged, said in (
        ("{", "records.jsonl:1: not JSON"),
        (text.replace('"shard": 1', '"shard": 7', 1), "'shard' has '7' in it"),
        (text.replace('"slice": ', '"part": ', 1), "'slice' has 'None' in it"),
        (f"{text}{lines[0]}\n", "is there twice"),
    ):
        records.write_text(damaged)
        with pytest.raises(ArtifactError, match=said) as error:
            ShardFolder.open(folder)
        assert "put a copy back" in str(error.value)
    records.unlink()
    with pytest.raises(ArtifactError, match="cannot be read"):
        ShardFolder.open(folder)
    records.write_text(text)
    for damaged in ("", "[]", "{}", settings.replace('"version": 1', '"version": 9')):
        header.write_text(damaged)
        with pytest.raises(ArtifactError, match=r"sisa\.json: it cannot be read"):
            ShardFolder.open(folder)
    header.write_text(settings)
    path = folder / "shard-1" / "slice-2.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ArtifactError, match="it is damaged; delete it"):
        answers(Sisa(tiny_lm(), ShardFolder.open(folder)), ["Who?"], quiet)
    path.write_bytes(whole[:100])
    Sisa(tiny_lm(), ShardFolder.open(folder)).train(quiet)
    assert path.read_bytes() == whole


def run(*words: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["sisa", *map(str, words)])
    return done.exit_code, done.output


@pytest.mark.long
def test_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("errata.unlearning.answers", partial(answers, tokens=3))
    base, out = tmp_path / "base", tmp_path / "out"
    tiny_model("llama").save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    data, gone = tmp_path / "data.jsonl", tmp_path / "gone.jsonl"
    lines = [json.dumps({"question": each.prompt, "answer": each.text}) for each in PASSAGES]
    data.write_text("\n".join(lines))
    gone.write_text(lines[3])
    settings = [w for name in ("shards", "slices", "rank") for w in ("--set", f"{name}=2")]
    begun = ("--data", data, "--out", out, *settings, "--set", "epochs=1")
    code, said = run(base, *begun)
    assert code == 0 and "12 records learned in 2 shards of 2 slices: 4 steps now" in said
    assert "0 steps now" in run(base, *begun)[1]
    code, said = run(out, "--forget", gone, "--json")
    found = json.loads(said)
    assert code == 0 and found["forgotten"] == 1 and len(found["shards"]) == 1
    assert found["steps"] in (1, 2) and found["steps_of_all"] == 4
    gone.write_text(lines[4])
    code, said = run(out, "--forget", gone)
    assert "1 of 11 records taken out; shards trained again from before them:" in said
    assert "all shards from nothing would take 4 steps, about" in said and "% of them" in said
    assert not any(PASSAGES[4].prompt.encode() in content for content in files(out).values())
    rows = json.loads(run(out, "--ask", "Who?", "--ask", "Where?", "--json")[1])
    assert [each["prompt"] for each in rows] == ["Who?", "Where?"] and rows[0]["shard"] in (0, 1)
    assert len(run(out, "--ask", "Who?")[1].splitlines()) == 1
    assert run(out, "--to", tmp_path / "one")[0] == 0
    model, _ = errata.load_base(str(tmp_path / "one"), "float32")
    matrix = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(model.state_dict()[matrix], tiny_lm().model.state_dict()[matrix])
    for words, wrong in (
        ((out, "--forget", gone), "has no record 'Who wrote book 4? Emil'"),
        ((out, "--forget", tmp_path / "none"), "cannot be read"),
        ((out, "--to", tmp_path / "one"), "has files in it already"),
        ((out, "--to", out / "one"), "where a model would keep what is taken out"),
        ((out, "--forget", gone, "--to", "x"), "--forget and --to do not go together"),
        ((base, "--data", data), "--data and --out go together"),
        ((out, "--set", "rank=3"), "are for --data alone"),
        ((base,), "is no folder of SISA"),
        (("nowhere",), "is no folder of SISA"),
        ((out, "--data", data, "--out", tmp_path / "two"), "is no base model"),
        ((base, "--data", data, "--out", tmp_path / "two"), "need 50 records, and there are 12"),
        ((base, *begun, "--set", "lr=1"), "begun with other records"),
    ):
        code, said = run(*words)
        assert code in (1, 2) and wrong in said and len(said.splitlines()) == 1, (words, said)
    assert not (tmp_path / "two").exists() and not Path("nowhere").exists()
