"""Edits in other engines: found by words and tokens, said in logits; or taken along in weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from families import chat_tokenizer, tiny_model, tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import errata
from errata import Edit, EditModel
from errata.atlas import make_cases
from errata.cli import app
from errata.engines.exporting import export_edits
from errata.engines.llama_cpp import edits_for, logits_processor
from errata.engines.processor import EditProcessor, Route
from errata.engines.tokens import TokenTexts
from errata.engines.transformers import EditLogits
from errata.engines.weights import export_lora
from errata.errors import ArtifactError, BaseMismatchError, ConfigError
from errata.lm import LM
from errata.lm.vocabulary import token_bytes

CASES = make_cases(12)
EDITS = [case.edit for case in CASES]


@pytest.fixture(scope="module")
def edited() -> EditModel:
    base, tokenizer = errata.load_base("atlas", "float32")
    model = errata.get_edit_model(base, errata.FolioConfig(), tokenizer)
    model.edit(EDITS, check=False)
    return model


@pytest.fixture(scope="module")
def folder(edited: EditModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "edits"
    assert export_edits(edited, path) == len(EDITS)
    return path


@pytest.fixture(scope="module")
def edits(folder: Path) -> EditProcessor:
    return EditProcessor.load(folder)


def generated(lm: LM, edits: EditProcessor, prompts: list[str], **options: object) -> list[str]:
    """What the base model says with the processor on its logits."""
    inputs = lm.prompt_batch(prompts)
    out = lm.model.generate(
        inputs.input_ids, attention_mask=inputs.attention_mask, max_new_tokens=24,
        do_sample=False, pad_token_id=lm.pad_id,
        logits_processor=[EditLogits(edits, lm.pad_id)], **options,
    )  # fmt: skip
    return [lm.decode(row[inputs.input_ids.shape[1] :].tolist()) for row in out]


def test_each_edit_is_found_and_said_and_nothing_else_is_touched(edited, edits):
    """In a batch, with beams, and alone: as the edited model answers."""
    prompts = [edit.prompt for edit in EDITS]
    others = [probe.prompt for case in CASES[:6] for probe in case.locality]
    with edited.disable_edits():
        own = generated(edited.lm, edits, prompts)
        beams = generated(edited.lm, edits, prompts, num_beams=3)
        elsewhere = generated(edited.lm, edits, others)
        before = edited.lm.generate(others, max_new_tokens=24)
    assert own == beams == edited.ask(prompts)
    silent = [edits.route(edited.lm.encode_prompt(prompt)).edit_id is None for prompt in others]
    assert sum(silent) >= 0.9 * len(others)
    for answer, base, is_silent in zip(elsewhere, before, silent, strict=True):
        assert not is_silent or answer == base


def test_rewordings_are_found_and_other_questions_about_the_subject_are_not(edited, edits):
    """By the tokens alone: fewer than Folio finds, but most."""
    reworded = [(case.edit.id, text) for case in CASES for text in case.rephrases]
    found = [edits.route(edited.lm.encode_prompt(text)).edit_id for _, text in reworded]
    right = [one == other for one, (other, _) in zip(found, reworded, strict=True)]
    assert sum(right) / len(right) >= 0.5
    route = edits.route(edited.lm.encode_prompt(EDITS[0].prompt))
    assert route.edit_id == EDITS[0].id and route.signs[EDITS[0].id][1] == 1.0
    assert edits.route(edited.lm.encode_prompt("Who wrote the book?")) == Route()
    others = [f"Apart from {edit.target}, {edit.prompt}" for edit in EDITS]
    assert {edits.route(edited.lm.encode_prompt(text)).edit_id for text in others} == {None}


def test_the_probability_is_the_confidence_and_the_others_keep_their_proportions(edited, edits):
    route = edits.route(edited.lm.encode_prompt(EDITS[0].prompt))
    logits = np.random.default_rng(0).normal(size=len(edits.texts)).astype(np.float32)
    for count, token in enumerate(route.tokens):
        changed = edits.change(route, route.tokens[:count], logits)
        share = np.exp(changed - changed.max()) / np.exp(changed - changed.max()).sum()
        assert share[token] == pytest.approx(edits.confidence, abs=1e-5)
        same = np.delete(changed, token) == np.delete(logits, token)
        assert same.all() and changed is not logits
    begun = [*route.tokens[:1], route.tokens[0] + 1]
    assert edits.change(route, begun, logits) is logits, (
        "what has begun otherwise goes on by itself"
    )
    assert edits.change(route, route.tokens, logits) is logits
    assert edits.change(Route(), [], logits) is logits


def test_a_conversation_is_read_turn_by_turn(tmp_path):
    config = errata.FolioConfig(background=16)
    model = errata.get_edit_model(tiny_model("llama"), config, chat_tokenizer())
    edit = Edit("The capital of France is", "Rome", "France")
    model.edit([edit], check=False)
    export_edits(model, tmp_path / "edits")
    processor = EditProcessor.load(tmp_path / "edits")
    assert processor.chat and model.lm.template is not None
    asked = model.lm.template.render_turns(
        ("user", "Where is the tower?"), ("assistant", "north"), ("user", edit.prompt)
    )
    assert processor.route(model.lm.encode_text(asked)).edit_id == edit.id
    other = model.lm.template.render_turns(
        ("user", edit.prompt), ("assistant", "Rome"), ("user", "Where is the tower of London?")
    )
    assert processor.route(model.lm.encode_text(other)).edit_id is None


def test_a_later_edit_answers_in_the_place_of_the_one_it_contradicts(tmp_path):
    base, tokenizer = errata.load_base("atlas", "float32")
    model = errata.get_edit_model(base, errata.FolioConfig(), tokenizer)
    first = EDITS[0]
    later = Edit(first.prompt, "Bo Lix", first.subject)
    model.edit([first], check=False)
    model.edit([later], check=False)
    export_edits(model, tmp_path)
    route = EditProcessor.load(tmp_path).route(model.lm.encode_prompt(first.prompt))
    assert route.edit_id == later.id
    assert model.lm.decode(route.tokens).strip(" .") == "Bo Lix"


# tokens as text


@pytest.mark.parametrize("kind", ["bytelevel", "sentencepiece"])
@settings(max_examples=100, deadline=None)
@given(text=st.text(alphabet="abc Zé漢🙂.\n", max_size=20))
def test_tokens_are_the_text_they_stand_for(kind, text):
    tokenizer = tiny_tokenizer(kind)
    texts = TokenTexts.of(token_bytes(tokenizer, special=False))
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    found, spans = texts.read(ids)
    wanted = tokenizer.decode(ids, skip_special_tokens=True)
    assert found.strip() == wanted.strip()
    assert all(0 <= start <= end <= len(found) for start, end in spans)
    assert not spans or spans[-1][1] == len(found)
    assert texts.read([10**6, -1])[0] == ""


# llama.cpp


class Llama:
    """What this uses of `llama_cpp.Llama`, with the same arguments: a tokenizer, and a completion
    that calls the processor with all tokens so far and the logits of the next one.
    """

    def __init__(self, lm: LM) -> None:
        self.lm = lm

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        return self.lm.tokenizer(text.decode(), add_special_tokens=add_bos)["input_ids"]

    @torch.no_grad()
    def complete(self, prompt: str, process) -> str:
        ids = self.lm.encode_prompt(prompt)
        said: list[int] = []
        while len(said) < 24 and not (said and said[-1] in self.lm.end_ids):
            row = torch.tensor([[*ids, *said]])
            logits = self.lm.model(row).logits[0, -1].numpy().astype(np.single)
            said.append(int(process(np.array([*ids, *said], np.intc), logits).argmax()))
        return self.lm.decode(said)


def test_llama_cpp_says_what_the_edited_model_says(edited, folder):
    with edited.disable_edits():
        llama = Llama(edited.lm)
        read = edits_for(llama, str(folder))
        said = [llama.complete(edit.prompt, logits_processor(read)) for edit in EDITS[:4]]
        other = llama.complete("Who wrote the book?", logits_processor(read))
    assert said == edited.ask([edit.prompt for edit in EDITS[:4]])
    assert other == edited.ask_base("Who wrote the book?", max_new_tokens=24)


def test_a_model_with_other_tokens_is_refused(folder):
    llama = Llama(LM(tiny_model("llama"), tiny_tokenizer()))
    with pytest.raises(BaseMismatchError, match="whose tokens are not this model's"):
        edits_for(llama, str(folder))


# weights


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("method", ["memit", "ft"])
def test_peft_and_the_edited_model_give_the_same_logits(family, method, tmp_path):
    peft = pytest.importorskip("peft")
    from edited import EDITS as TINY
    from edited import edited_model, logits_of

    model = edited_model(family, method, TINY[:3])
    wanted = logits_of(model, model.lm)
    found = export_lora(model, tmp_path)
    assert found.error == 0 and found.ranks
    loaded = peft.PeftModel.from_pretrained(tiny_model(family), tmp_path).eval()
    lm = LM(loaded.get_base_model(), tiny_tokenizer())
    torch.testing.assert_close(logits_of(loaded, lm), wanted, rtol=1e-3, atol=1e-3)
    if max(found.ranks.values()) > 1:
        cut = export_lora(model, tmp_path / "cut", rank=1)
        assert 0 < cut.error < 1 and set(cut.ranks.values()) == {1}


def test_a_lora_is_whole_or_not_there(tmp_path, monkeypatch):
    """Its files were written one by one where a loader finds them."""
    pytest.importorskip("peft")
    from edited import EDITS as TINY
    from edited import edited_model

    model, replace = edited_model("llama", "ft", TINY[:1]), os.replace

    def stopped(one, other):
        if Path(other).name == "adapter_config.json":
            raise KeyboardInterrupt
        replace(one, other)

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", stopped)
        with pytest.raises(KeyboardInterrupt):
            export_lora(model, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter_model.safetensors"]
    export_lora(model, tmp_path)
    assert (tmp_path / "adapter_config.json").exists()


# the command line, and what cannot be


def test_from_a_folder_of_edits_to_another_engine_in_two_commands(edited, tmp_path):
    edited.save_pretrained(tmp_path / "mine")
    words = ["export", str(tmp_path / "mine"), "--to", "llama.cpp", "--out", str(tmp_path / "out")]
    found = CliRunner().invoke(app, words)
    assert found.exit_code == 0 and f"{len(EDITS)} edits for llama.cpp" in found.stdout
    code = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "from errata.engines.processor import EditProcessor\n"
        f"edits = EditProcessor.load({str(tmp_path / 'out')!r})\n"
        f"print(edits.route({edited.lm.encode_prompt(EDITS[3].prompt)}).edit_id)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == EDITS[3].id, done.stderr
    again = CliRunner().invoke(app, words)
    assert again.exit_code == 2 and "is there already" in again.stderr
    for wrong, says in (
        (["--to", "onnx"], "it is one of transformers, llama.cpp, vllm, sglang, peft"),
        (["--to", "peft"], "are beside the weights"),
        (["--to", "llama.cpp", "--rank", "2"], "--rank is of --to peft alone"),
    ):
        found = CliRunner().invoke(
            app, ["export", str(tmp_path / "mine"), "--out", str(tmp_path / "no"), *wrong]
        )
        assert found.exit_code in (1, 2) and says in found.stderr, found.stderr
    assert not (tmp_path / "no").exists()


def test_a_folder_that_is_no_export_is_told_in_a_line(folder, tmp_path):
    with pytest.raises(ArtifactError, match="no export that can be read"):
        EditProcessor.load(tmp_path / "none")
    for name, content in (
        ("export.json", "{"), ("export.json", "[]"), ("edits.jsonl", "{}\n"), ("arrays.npz", "no"),
    ):  # fmt: skip
        broken = tmp_path / name.replace(".", "") / str(len(content))
        broken.mkdir(parents=True)
        for file in folder.iterdir():
            (broken / file.name).write_bytes(file.read_bytes())
        (broken / name).write_text(content)
        with pytest.raises(ArtifactError):
            EditProcessor.load(broken)
    settings_of = json.loads((folder / "export.json").read_text())
    (tmp_path / "newer").mkdir()
    (tmp_path / "newer" / "export.json").write_text(json.dumps({**settings_of, "format": 99}))
    with pytest.raises(ArtifactError, match="format is 99"):
        EditProcessor.load(tmp_path / "newer")


def test_what_has_no_edits_to_say_is_refused():
    base, tokenizer = errata.load_base("atlas", "float32")
    model = errata.get_edit_model(base, errata.RagConfig(), tokenizer)
    with pytest.raises(ConfigError, match="export edits of folio"):
        export_edits(model, "nowhere")
    assert not Path("nowhere").exists()
