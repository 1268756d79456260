"""GGUF files as base models: opened, edited, found again, told from others, refused if damaged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from edited import EDITS, PROMPTS, edit_model, logits_of
from families import tiny_model, tiny_tokenizer
from typer.testing import CliRunner

import errata
from errata.cli import app
from errata.errors import BaseMismatchError, ConfigError, UnknownNameError
from errata.progress import reported_to
from errata.saving import gguf_files

gguf = pytest.importorskip("gguf", reason="gguf is not installed")
F32, Q8 = gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.Q8_0


def write_gguf(
    path: Path,
    kind: Any = F32,
    without: str = "",
    more: str = "",
    begins: bool = False,
    **fields: Any,
) -> Path:
    """Write the tiny llama and its tokenizer as llama.cpp does.

    Args:
        kind: how the matrices are stored.
        without: a tensor that is left out.
        more: a tensor that is added.
        begins: it says that every text begins with a token of its own.
        fields: `arch`, and values of metadata.
    """
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    config, arch = model.config, fields.pop("arch", "llama")
    file = gguf.GGUFWriter(path, arch)
    file.add_context_length(config.max_position_embeddings)
    file.add_embedding_length(config.hidden_size)
    file.add_block_count(config.num_hidden_layers)
    file.add_feed_forward_length(config.intermediate_size)
    file.add_head_count(config.num_attention_heads)
    file.add_head_count_kv(config.num_key_value_heads)
    file.add_layer_norm_rms_eps(config.rms_norm_eps)
    file.add_rope_freq_base(config.rope_parameters["rope_theta"])
    file.add_vocab_size(config.vocab_size)
    tokens = tokenizer.convert_ids_to_tokens(range(config.vocab_size))
    file.add_tokenizer_model("gpt2")
    file.add_tokenizer_pre("gpt-2")
    file.add_token_list(tokens)
    file.add_token_types([3 if i < 4 else 1 for i in range(len(tokens))])
    file.add_token_merges([" ".join(pair) for pair in _merges(tokenizer)])
    file.add_pad_token_id(0)
    file.add_bos_token_id(1)
    file.add_add_bos_token(begins)
    file.add_eos_token_id(2)
    file.add_unk_token_id(3)
    for name, value in fields.items():
        file.add_uint16(name.replace("_", "."), value)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        stem, _, ending = name.rpartition(".")
        if name == without:
            continue
        values = tensor.numpy()
        if stem.endswith(("q_proj", "k_proj")):  # llama.cpp has them in another order
            heads = config.num_attention_heads if "q_proj" in stem else config.num_key_value_heads
            width = values.shape[0] // heads // 2
            values = values.reshape(heads, 2, width, -1).swapaxes(1, 2).reshape(values.shape)
        stored = kind if values.ndim == 2 else F32
        data = gguf.quants.quantize(values, stored)
        file.add_tensor(f"{names.get_name(stem)}.{ending}", data, raw_dtype=stored)
    if more:
        file.add_tensor(more, torch.ones(4).numpy())
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    return path


def _merges(tokenizer: Any) -> list[list[str]]:
    found: list[list[str]] = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    return found


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def opened(path: Path, **options: Any) -> Any:
    return errata.load_base(str(path), **options)


def refused(path: Path) -> str:
    with pytest.raises(UnknownNameError) as error:
        opened(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    return str(error.value)


def test_it_is_the_model_that_was_written(file: Path) -> None:
    base, tokenizer = opened(file)
    plain = tiny_model("llama")
    for name, tensor in plain.state_dict().items():
        assert torch.equal(base.state_dict()[name], tensor), name
    for text in PROMPTS:
        assert tokenizer(text)["input_ids"] == tiny_tokenizer()(text)["input_ids"]
    assert (tokenizer.eos_token_id, base.dtype) == (2, torch.float32)
    assert not getattr(base, "is_quantized", False)
    assert not hasattr(base.config, "quantization_config")
    assert base.config._name_or_path == tokenizer.name_or_path == str(file)
    half = opened(file, dtype="bfloat16")[0]
    assert half.dtype == torch.bfloat16 == next(half.parameters()).dtype


def test_quantized_it_is_dequantized_and_can_be_written_into_and_kept(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "q8", Q8)  # a name without a suffix does, too
    base, tokenizer = opened(path)
    plain = tiny_model("llama").state_dict()
    for name, tensor in base.state_dict().items():
        torch.testing.assert_close(tensor, plain[name], rtol=0, atol=0.02)
    config = edit_model("llama", "ft").method.config
    model = errata.get_edit_model(base, config, tokenizer)
    model.edit(EDITS[:2], check=False)
    merged = model.merge_and_unload()
    merged.save_pretrained(tmp_path / "folder")
    tokenizer.save_pretrained(tmp_path / "folder")
    again, _ = errata.load_base(str(tmp_path / "folder"))
    weights = again.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in merged.state_dict().items())


def test_edits_find_their_file_again_and_know_another(file: Path, tmp_path: Path) -> None:
    path = shutil.copy(file, tmp_path / "model.gguf")
    base, tokenizer = opened(path)
    model = errata.get_edit_model(base, edit_model("llama", "grace").method.config, tokenizer)
    model.edit(EDITS[:3], check=False)
    model.save_pretrained(tmp_path / "edits")
    loaded = errata.load(tmp_path / "edits")
    assert torch.equal(logits_of(loaded, loaded.lm), logits_of(model, model.lm))
    loaded.undo(EDITS[1].id)
    loaded.save_pretrained(tmp_path / "edits")

    # the same weights from elsewhere are the same base model
    other = errata.EditModel.from_pretrained(tiny_model("llama"), tmp_path / "edits", tokenizer)
    assert [edit.id for edit in other.edits] == [EDITS[0].id, EDITS[2].id]

    # one number of the weights is another
    content = bytearray(path.read_bytes())
    content[-40] ^= 1
    path.write_bytes(content)
    with pytest.raises(BaseMismatchError, match="Put that file back") as error:
        errata.load(tmp_path / "edits")
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    path.unlink()
    with pytest.raises(UnknownNameError, match="there is no such file"):
        errata.load(tmp_path / "edits")
    shutil.copy(file, path)
    assert len(errata.load(tmp_path / "edits").edits) == 2


def test_read_by_transformers_itself_it_has_the_same_name(file: Path) -> None:
    where = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    base = transformers.AutoModelForCausalLM.from_pretrained(**where)
    assert errata.saving.base_models.name_of(base) == str(file)


def test_other_files_of_its_folder_are_none_of_its_own(file: Path, tmp_path: Path) -> None:
    path = shutil.copy(file, tmp_path / "tiny.gguf")
    for name in ("tokenizer_config.json", "config.json", "adapter_config.json"):
        (tmp_path / name).write_text("{")
    (tmp_path / "chat_template.jinja").write_text("nonsense")
    assert opened(path)[1].chat_template is None


def test_the_command_line_edits_and_asks_a_file(file: Path, tmp_path: Path) -> None:
    edits = tmp_path / "edits.jsonl"
    edits.write_text('{"prompt": "Where is the tower?", "target": "Rome", "subject": "the tower"}')
    said = []
    for words in (
        ["edit", file, "-m", "ft", "--edits", edits, "--out", tmp_path / "a", "--no-check"],
        ["ask", tmp_path / "a", "Where is the tower?"],
        ["ask", file, "Where is the tower?"],
    ):
        done = CliRunner().invoke(app, [*map(str, words)])
        assert done.exit_code == 0, done.output
        assert all(line.startswith("loading ") for line in done.stderr.splitlines())
        said.append(done.stdout)
    assert "1 edit written" in said[0] and said[1] != said[2]


def test_reading_reports_how_far_it_is(file: Path) -> None:
    heard: list[tuple[str, int, int]] = []
    with reported_to(lambda *said: heard.append(said)):
        opened(file)
    steps = list(dict.fromkeys(what for what, _, _ in heard))
    assert steps == [
        "reading tiny.gguf", "reading the tokenizer", "reading the weights",
        "dequantizing tiny.gguf",
    ]  # fmt: skip
    count = len(tiny_model("llama").state_dict())
    assert heard[-1] == ("dequantizing tiny.gguf", count, count)
    assert gguf.GGUFReader.__module__ == "gguf.gguf_reader"  # all is as it was


def test_what_transformers_leaves_out_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    opened(write_gguf(tmp_path / "long.gguf", more="rope_freqs.weight"))
    (said,) = [record.getMessage() for record in caplog.records]
    assert "long.gguf holds rescaled positions" in said


def damaged(file: Path, folder: Path) -> Iterator[tuple[Path, str]]:
    content = file.read_bytes()
    for length in (5, 30, 500, len(content) // 3, len(content) - 1):
        (path := folder / f"{length}.gguf").write_bytes(content[:length])
        yield path, "it is cut off or damaged"
    (path := folder / "flipped.gguf").write_bytes(content[:16] + b"\xff" * 8 + content[24:])
    yield path, "it is cut off or damaged"
    for name, other in (("empty", b""), ("text", b"Hello, world"), ("old", b"ggml" + content[4:])):
        (path := folder / f"{name}.gguf").write_bytes(other)
        yield path, "it is no GGUF file"
    yield folder / "nowhere.gguf", "there is no such file"
    yield write_gguf(folder / "part.gguf", split_count=3), "it is one of 3 parts"
    yield write_gguf(folder / "other.gguf", arch="rwkv7"), "rwkv7 is not supported"
    lacking = write_gguf(folder / "lacking.gguf", without="model.layers.2.mlp.up_proj.weight")
    yield lacking, "1 of its weights are missing (model.layers.2.mlp.up_proj.weight)"


def test_a_file_that_is_damaged_or_no_model_is_one_line(file: Path, tmp_path: Path) -> None:
    for path, said in damaged(file, tmp_path):
        assert said in refused(path), path
    path = tmp_path / "30.gguf"
    told = CliRunner().invoke(app, ["ask", str(path), "Who?"])
    assert told.exit_code == 2 and told.stderr.count("\n") == 1
    assert f"model '{path}' cannot be loaded: it is cut off or damaged" in told.stderr


def test_a_tokenizer_that_lacks_the_first_token_is_refused(tmp_path: Path) -> None:
    path, tokenizer = write_gguf(tmp_path / "begins.gguf", begins=True), tiny_tokenizer()
    tokenizer.bos_token = tokenizer.convert_ids_to_tokens(1)
    with pytest.raises(ConfigError, match="no text begins with the token"):
        gguf_files.check_tokenizer(path, tokenizer)


class Letters:
    """A tokenizer of whole words that reads letter by letter, as Gemma's did."""

    bos_token_id = None

    def __len__(self) -> int:
        return 40

    def convert_ids_to_tokens(self, ids: range) -> list[str]:
        return ["\u2581" + "word" * (id + 1) for id in ids]

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": list(range(len(text)))}


def test_a_tokenizer_that_takes_words_apart_is_refused(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"words are taken apart.*pip install -U transformers"):
        gguf_files.check_tokenizer(file, Letters())


def test_without_its_library_it_says_what_to_install(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for missing in ("gguf", "accelerate"):
        monkeypatch.setattr(
            gguf_files, "find_spec", lambda name, missing=missing: name != missing or None
        )
        with pytest.raises(ConfigError, match=r"pip install 'errata\[gguf\]'"):
            opened(file)
    assert find_spec("gguf") is not None
