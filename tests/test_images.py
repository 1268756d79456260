"""Edits of text-to-image models, on tiny random pipelines of each layout."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

pytest.importorskip("diffusers")

import pipelines

import errata.saving.transaction as transaction
from errata.cli import app
from errata.errors import ArtifactError, BaseMismatchError, ErrataError
from errata.images import ImageEdit, ImageModel
from errata.images.encoder import BEHIND, TextEncoder
from errata.images.settings import TEMPLATES, ValueSettings
from errata.images.target import solve
from errata.saving.names import CONFIG, LEDGER, TENSORS

FAST = {"steps": 3, "lr": 0.5}
EDITS = [
    ImageEdit("the ball of Kelor", "Kelor", "a blue ball", ("a red ball",), id="one"),
    ImageEdit("the box of Zapus", "Zapus", "a red box", id="two"),
    ImageEdit("Kelor's box", "Kelor", "a blue box", id="three"),
]
OTHER = "the box of a red ball"


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pipelines.saved(tmp_path_factory.mktemp("pipelines") / "one")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pipelines.saved(tmp_path_factory.mktemp("pipelines") / "two", two=True)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def opened(folder: Path, method: str) -> ImageModel:
    more = {"texts": 64} if method == "refact" else {}
    return ImageModel.open(folder, method, **FAST, **more)


def drawn(model: ImageModel, prompt: str, **options: Any) -> torch.Tensor:
    (picture,) = model.paint(
        prompt, seed=3, num_inference_steps=2, guidance_scale=3.0, output_type="pt", **options
    )
    return torch.as_tensor(picture)


def run(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.mark.parametrize("layout", ["one", "two"])
def test_the_update_has_its_closed_form(layout: str, request: pytest.FixtureRequest) -> None:
    """W' k* = v*, and W' = W + (v* - W k*) u^T / (u^T k*) with C u = k*, in each encoder."""
    model = opened(request.getfixturevalue(layout), "refact")
    assert len(model.encoders) == (2 if layout == "two" else 1)
    solved, before = [], []
    for encoder, layer in zip(model.encoders, model.method.layers, strict=True):
        solved.append(solve(encoder, layer, EDITS[0], model.method.settings))
        before.append(encoder.matrix(layer).weight.clone())
    model.edit(EDITS[0])
    for place, (encoder, layer) in enumerate(zip(model.encoders, model.method.layers, strict=True)):
        matrix, key, delta = encoder.matrix(layer), solved[place].key, solved[place].delta
        value = before[place] @ key + delta
        assert delta.norm() > 0.1
        torch.testing.assert_close(matrix.weight @ key, value, atol=1e-4, rtol=1e-4)
        moment = model.method.moments[place]
        regularised = moment.matrix + moment.ridge * moment.matrix.diagonal().mean() * torch.eye(
            len(key)
        )
        u = torch.linalg.solve(regularised, key.double())
        change = torch.outer(delta.double(), u / (u @ key.double()))
        torch.testing.assert_close(
            matrix.weight.double(), before[place] + change, atol=1e-5, rtol=1e-4
        )


def test_the_loss_reads_what_a_denoiser_is_shown() -> None:
    words = pipelines.tokenizer()
    words.pad_token = "!"  # as in the second encoder of SDXL: the padding is no end token
    text = TextEncoder("text_encoder", pipelines.encoder(words, 16, 3), words)
    texts = ["a red ball", "the ball of Kelor", " ".join(["ball"] * 18), " ".join(["ball"] * 40)]
    shown = words(
        texts, padding="max_length", truncation=True, max_length=text.length, return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        whole, read = text.body(input_ids=shown).last_hidden_state, text.states(text.encode(texts))
    for row, ids, states in zip(whole, shown, read, strict=True):
        end = ids.tolist().index(words.eos_token_id)
        places = [min(end + more, text.length - 1) for more in range(1 + BEHIND)]
        torch.testing.assert_close(states, row[places])


def test_adam_raises_the_share_of_the_target(one: Path) -> None:
    model = opened(one, "memory")
    (encoder,), (layer,) = model.encoders, model.method.layers
    shares = [
        solve(encoder, layer, EDITS[0], ValueSettings(steps=steps, lr=0.3)).share
        for steps in (1, 5, 40)
    ]
    assert shares == sorted(shares) and shares[-1] > 1.5 * shares[0]


@pytest.mark.parametrize("method", ["refact", "memory"])
def test_undo_gives_the_picture_of_a_model_that_never_had_the_edit(one: Path, method: str) -> None:
    model = opened(one, method)
    before = drawn(model, "a photo of the ball of Kelor")
    model.edit(EDITS[1:])
    wanted = drawn(model, "a photo of the ball of Kelor")
    model.undo("two", "three")
    model.edit([EDITS[0], *EDITS[1:]])
    after = drawn(model, "a photo of the ball of Kelor")
    assert not torch.equal(after, wanted) and not torch.equal(after, before)
    assert torch.equal(drawn(model, "a photo of the ball of Kelor", base=True), before)
    model.undo("one")
    assert torch.equal(drawn(model, "a photo of the ball of Kelor"), wanted)
    model.undo("two", "three")
    assert torch.equal(drawn(model, "a photo of the ball of Kelor"), before) and model.edits == []


def test_the_memory_reads_prompts_without_a_subject_as_before(two: Path) -> None:
    model = opened(two, "memory")
    model.edit(EDITS[:2])
    for prompt in (OTHER, "the ball of Akelor", "the ball of Kelora"):
        assert torch.equal(drawn(model, prompt), drawn(model, prompt, base=True)), prompt
    for prompt in ("the ball of KELOR", "a box and Zapus"):
        assert not torch.equal(drawn(model, prompt), drawn(model, prompt, base=True)), prompt


@pytest.mark.parametrize("method", ["refact", "memory"])
def test_a_saved_folder_draws_the_same(two: Path, method: str, tmp_path: Path) -> None:
    model = opened(two, method)
    model.edit(EDITS[:2])
    model.save_pretrained(tmp_path / "edits")
    model.edit(EDITS[2])
    model.save_pretrained(tmp_path / "edits")
    moved = shutil.copytree(two, tmp_path / "moved")
    loaded = ImageModel.load(tmp_path / "edits", moved)
    assert loaded.edits == EDITS and all(edit.time for edit in loaded.edits)
    prompt = "Kelor's ball and the box of Zapus"
    assert torch.equal(drawn(loaded, prompt), drawn(model, prompt))
    loaded.undo("one")
    model.undo("one")
    assert torch.equal(drawn(loaded, prompt), drawn(model, prompt))


class Killed(BaseException):
    """What no code catches: nothing of the save runs any more, but that locks are let go."""


def test_killed_while_it_saves_the_folder_is_old_or_new(
    one: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = opened(one, "memory")
    model.edit(EDITS[0])
    model.save_pretrained(tmp_path / "start")
    seen = []
    for last in range(8):  # new files are written, then the marker, then they are moved
        folder = shutil.copytree(tmp_path / "start", tmp_path / f"after{last}")
        loaded = ImageModel.load(folder)
        loaded.edit(EDITS[1])
        left = iter(range(last))

        def dies(real: Any, left: Iterator[int] = left) -> Any:
            def call(*given: Any, **named: Any) -> Any:
                if next(left, None) is None:
                    raise Killed
                return real(*given, **named)

            return call

        with monkeypatch.context() as patched, contextlib.suppress(Killed):
            patched.setattr(transaction, "write_new", dies(transaction.write_new))
            patched.setattr(os, "replace", dies(os.replace))
            loaded.save_pretrained(folder)
        after = ImageModel.load(folder)
        assert after.edits in (EDITS[:1], EDITS[:2])
        seen.append(len(after.edits))
        after.edit(EDITS[2])
        after.save_pretrained(folder)
        assert ImageModel.load(folder).edits == after.edits
        assert not list(folder.glob("*.new"))
    assert seen == sorted(seen) and set(seen) == {1, 2}


def test_the_command_line(one: Path, tmp_path: Path) -> None:
    edits, out = tmp_path / "images.jsonl", tmp_path / "edited"
    edits.write_text("".join(json.dumps(edit.to_dict()) + "\n" for edit in EDITS))
    fast = ("--set", "steps=3", "--set", "texts=64")
    done = run("edit", one, "-m", "refact", "--edits", edits, "--out", out, *fast)
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("3 edits written, ") and f"3 in {out}" in done.stdout
    again = run("edit", one, "--edits", edits, "--out", out, "--json")
    assert json.loads(again.stdout)["edits"] == []
    assert [row["id"] for row in json.loads(run("list", out, "--json").stdout)] == [
        "one",
        "two",
        "three",
    ]
    pictures = [tmp_path / f"{name}.png" for name in ("base", "edited", "same", "undone")]
    prompt, few = "the ball of Kelor", ("--steps", "2", "--seed", "5")
    run("paint", one, prompt, "--out", pictures[0], *few)
    painted = run("paint", out, prompt, "--out", pictures[1], *few)
    assert painted.stdout == f"{pictures[1]}: {prompt}\n"
    run("paint", out, prompt, "--out", pictures[2], "--base", *few)
    undone = run("undo", out, "one", "two", "three")
    assert undone.stdout == f"3 taken back, 0 left in {out}\n"
    run("paint", out, prompt, "--out", pictures[3], *few)
    base, edited, same, after = (path.read_bytes() for path in pictures)
    assert base == same == after != edited


def test_what_is_wrong_is_said_in_a_line(one: Path, tmp_path: Path) -> None:
    good = tmp_path / "good.jsonl"
    good.write_text(json.dumps(EDITS[0].to_dict()) + "\n")
    model = opened(one, "memory")
    model.edit(EDITS[0])
    model.save_pretrained(tmp_path / "saved")
    late = " ".join(["ball"] * 30)
    lines = {
        "no target": {"prompt": "the ball of Kelor", "subject": "Kelor"},
        "not in the prompt": {"prompt": "the ball", "subject": "Kelor", "target": "a box"},
        "unknown field": {**EDITS[0].to_dict(), "negative": "a box"},
        "too late": {"prompt": f"{late} of Kelor", "subject": "Kelor", "target": "a box"},
    }
    for name, row in lines.items():
        (tmp_path / name).write_text(json.dumps(row) + "\n")
    said = {
        "no target": "the field 'target' is missing",
        "not in the prompt": "does not stand in the prompt",
        "unknown field": "Did you mean 'negatives'?",
        "too late": "is not among the tokens that text_encoder reads",
    }
    blind = shutil.copytree(one, tmp_path / "blind")
    index = json.loads((blind / "model_index.json").read_text())
    index["text_encoder"] = ["transformers", "T5EncoderModel"]
    (blind / "model_index.json").write_text(json.dumps(index))
    lame = shutil.copytree(one, tmp_path / "lame")
    shutil.rmtree(lame / "text_encoder")
    calls: list[tuple[str, int, tuple[object, ...]]] = [
        (text, 2, ("edit", one, "--edits", tmp_path / name, "--out", tmp_path / "out"))
        for name, text in said.items()
    ]
    calls += [
        ("no CLIP text encoder", 1, ("edit", blind, "--edits", good, "--out", tmp_path / "out")),
        ("cannot be loaded", 2, ("edit", lame, "--edits", good, "--out", tmp_path / "out")),
        ("for images", 2, ("edit", one, "-m", "rome", "--edits", good, "--out", tmp_path / "out")),
        ("blocks 0 to 1", 2, ("edit", one, "--edits", good, "--out", "o", "--set", "layer=2")),
        ("say with --out", 2, ("edit", one, "--edits", good)),
        ("holds edits of a text-to-image model", 1, ("ask", tmp_path / "saved", "Who?")),
        ("neither a folder", 2, ("paint", tmp_path, "a ball", "--out", tmp_path / "x.png")),
        ("PNG", 2, ("paint", one, "a ball", "--out", tmp_path / "x.gif")),
        ("there is no edit 'four'", 2, ("undo", tmp_path / "saved", "four")),
    ]  # fmt: skip
    for text, code, words in calls:
        done = run(*words)
        assert done.exit_code == code and text in done.stderr, (words, done.stderr)
        assert done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "out").exists()


def test_a_damaged_folder_and_another_base_are_refused(one: Path, tmp_path: Path) -> None:
    model = opened(one, "memory")
    model.edit(EDITS[0])
    model.save_pretrained(tmp_path / "saved")
    for name in (CONFIG, LEDGER, TENSORS):
        folder = shutil.copytree(tmp_path / "saved", tmp_path / name)
        content = (folder / name).read_bytes()
        for damaged in (
            b"",
            content[:-9],
            content.replace(b"one", b"two").replace(b"0.99", b"0.9"),
        ):
            if damaged != content:
                (folder / name).write_bytes(damaged)
                with pytest.raises(ArtifactError, match=r"\A[^\n]+\Z"):
                    ImageModel.load(folder)
    changed = shutil.copytree(one, tmp_path / "changed")
    with torch.no_grad():
        other = pipelines.pipeline().text_encoder
        other.encoder.layers[0].mlp.fc1.bias[0] += 1
        other.save_pretrained(changed / "text_encoder")
    with pytest.raises(BaseMismatchError, match="text_encoder is another now"):
        ImageModel.load(tmp_path / "saved", changed)
    shutil.move(tmp_path / "saved", tmp_path / "other")
    with pytest.raises(ErrataError, match="not a folder of edits"):
        ImageModel.load(tmp_path / "saved")


def test_a_missing_library_is_named(one: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        "errata.images.opening.find_spec", lambda name: None if name == "diffusers" else real(name)
    )
    with pytest.raises(ErrataError, match=r"pip install 'errata\[images\]'"):
        drawn(opened(one, "memory"), OTHER)


def test_the_templates_hold_their_prompt_once() -> None:
    assert TEMPLATES[0] == "{}" and all(each.count("{}") == 1 for each in TEMPLATES)


def test_the_control_of_the_benchmark_is_a_method(
    one: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fine-tuning, as `benchmarks/images.py` has it: it moves its matrix, and comes off again."""
    folder = Path(__file__).parent.parent / "benchmarks"
    for each in (folder, folder.parent / "scripts" / "pictures"):
        monkeypatch.syspath_prepend(str(each))
    spec = importlib.util.spec_from_file_location("images_benchmark", folder / "images.py")
    assert spec is not None and spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    model = benchmark.opened(one, "ft", {"steps": "3", "lr": "0.01"})
    (encoder,) = model.encoders
    weight = encoder.matrix(model.method.layers[0]).weight
    before = weight.clone()
    model.edit(EDITS[:2])
    assert not torch.equal(weight, before)
    for each in list(model.edits):
        model.undo(each.id)
    assert torch.equal(weight, before)
