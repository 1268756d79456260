"""Damaged or malicious folders: refused in one line, or harmless; nothing else is touched."""

from __future__ import annotations

import copy
import json
import logging
import os
import random
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from edited import EDITS, IDS, PROMPTS, VARIANTS, edit_model, edited_model, logits_of
from families import chat_tokenizer, tiny_model, tiny_tokenizer
from grid import grid, patch_kind
from typer.testing import CliRunner

import errata
from errata import Edit, EditModel, saving
from errata.cli import app
from errata.errors import (
    ArtifactError,
    BaseMismatchError,
    StorageError,
    UnknownNameError,
    UsageError,
)
from errata.storage.identity import tokenizer_digest, weights_digest

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

from stress_mutations import Setting, mutations

OLD = Path(__file__).parent / "data" / "artifact-0.1"


def loaded(path, tokenizer=None):
    return EditModel.from_pretrained(tiny_model("llama"), path, tokenizer or tiny_tokenizer())


def contents(path):
    return {str(file): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def fails(*words):
    """A command that must fail, in one line: its exit code and that line."""
    done = CliRunner().invoke(app, [*map(str, words)])
    said = [line for line in done.stderr.splitlines() if line.startswith("errata: ")]
    assert (
        done.exit_code in (1, 2)
        and len(said) == 1
        and done.stdout == ""
        and "unexpected" not in said[0]
    ), done.output
    return done.exit_code, said[0]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A base model in a folder, and edits of it."""
    root = tmp_path_factory.mktemp("hostile")
    tiny_model("llama").save_pretrained(root / "base")
    tiny_tokenizer().save_pretrained(root / "base")
    base, tokenizer = errata.load_base(str(root / "base"))
    config = edit_model("llama", "folio", edits_per_file=2).method.config
    model = EditModel(base, config, tokenizer)
    model.edit(EDITS, check=False)
    model.save_pretrained(root / "edits")
    return root


@pytest.fixture
def setting(made, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "mine.txt").write_text("mine")
    (outside / "edits.jsonl").write_text("mine too")
    place = tmp_path / "spoiled" / "0"
    return Setting(
        shutil.copytree(made / "edits", place / "edits"),
        made / "base",
        outside,
        place,
        random.Random(0),
    )


# version 0.1


@pytest.mark.parametrize("name", ["folio", "wise"])
def test_what_version_0_1_wrote_opens_and_says_what_is_not_checked(name, tmp_path, caplog):
    folder = shutil.copytree(OLD / name, tmp_path / "a")
    with caplog.at_level(logging.WARNING, "errata.saving.artifact"):
        model = loaded(folder)
    assert "written by an older errata: its tokenizer" in caplog.text
    answers = json.loads((OLD / "answers.json").read_text())[name]
    if name == "folio":  # its values had taken three steps; what is said now needs none
        answers[: len(EDITS)] = [edit.target for edit in EDITS]
    assert model.edits == EDITS and model.ask(PROMPTS) == answers
    model.save_pretrained(folder)
    caplog.clear()
    again = loaded(folder)
    assert caplog.text == "" and torch.equal(logits_of(again, again.lm), logits_of(model, model.lm))
    with pytest.raises(BaseMismatchError, match="other tokens"):
        loaded(folder, chat_tokenizer())


# markers, links and pipes


@pytest.mark.parametrize("name", [name for name, _ in mutations() if name.startswith("marker")])
def test_a_marker_touches_nothing_but_the_artifact(setting, name):
    """Absolute names and `..` were removed, or overwritten, by a mere look at the folder."""
    dict(mutations())[name](setting)
    before = contents(setting.outside)
    for words in (["list", setting.folder], ["undo", setting.folder, EDITS[0].id]):
        done = CliRunner().invoke(app, [*map(str, words)])
        assert done.exit_code == (0 if name in ("marker: nothing", "marker: no files") else 1), (
            done.output
        )
    assert contents(setting.outside) == before


@pytest.mark.parametrize("kind", ["pipe", "zero", "link", "loop", "folder", "sparse"])
@pytest.mark.parametrize("name", [*saving.FILES, "folio-00001.safetensors"])
def test_only_regular_files_are_read(setting, kind, name):
    """A named pipe was waited for, and /dev/zero read, for ever."""
    setting.file = lambda: setting.folder / name
    dict(mutations())[f"file: {kind}"](setting)
    code, said = fails("list", setting.folder)
    assert code == 1 and name in said


def test_the_lock_is_no_way_out_either(setting):
    (setting.folder / ".edit_lock").symlink_to(setting.outside / "mine.txt")
    before = contents(setting.outside)
    assert "in the way" in fails("undo", setting.folder, EDITS[0].id)[1]
    assert contents(setting.outside) == before


# whose base, whose tokenizer


def test_weights_that_the_fingerprint_does_not_sample(made, tmp_path):
    """99.9 % of them were zeroed, and it passed."""
    setting = Setting(
        shutil.copytree(made / "edits", tmp_path / "x" / "edits"),
        made / "base",
        tmp_path,
        tmp_path / "x",
        None,
    )
    dict(mutations())["base: zeroed"](setting)
    base, _ = errata.load_base(str(tmp_path / "x" / "other"))
    assert errata.storage.cache.fingerprint(base) == errata.storage.cache.fingerprint(
        errata.load_base(str(made / "base"))[0]
    )
    with pytest.raises(
        BaseMismatchError, match=r"some of its weights are others .*Give that very model"
    ):
        errata.load(setting.folder)
    assert "some of its weights are others" in fails("ask", setting.folder, "Who?")[1]


def test_a_tokenizer_with_permuted_ids(made, tmp_path):
    setting = Setting(
        shutil.copytree(made / "edits", tmp_path / "x" / "edits"),
        made / "base",
        tmp_path,
        tmp_path / "x",
        None,
    )
    dict(mutations())["base: other tokens"](setting)
    with pytest.raises(BaseMismatchError, match=r"other tokens .*Give the model's own tokenizer"):
        errata.load(setting.folder)


def test_a_tokenizer_is_the_same_whatever_it_was_used_for():
    tokenizer = tiny_tokenizer()
    digest = tokenizer_digest(tokenizer)
    tokenizer(["one", "one and more"], padding=True, truncation=True, max_length=3)
    tokenizer.pad_token = tokenizer.eos_token
    assert tokenizer_digest(tokenizer) == digest != tokenizer_digest(chat_tokenizer())


def test_the_digest_of_all_weights_is_kept_while_the_files_are_the_same(
    made, tmp_path, monkeypatch
):
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path / "cache"))
    folder = shutil.copytree(made / "base", tmp_path / "base")
    digest = weights_digest(errata.load_base(str(folder))[0])
    (kept,) = (tmp_path / "cache").iterdir()
    assert kept.read_text() == digest == weights_digest(tiny_model("llama"))
    kept.write_text("0" * 64)
    assert weights_digest(errata.load_base(str(folder))[0]) == "0" * 64  # it is not read again
    changed, _ = errata.load_base(str(folder))
    with torch.no_grad():
        next(changed.parameters()).add_(1)
    assert weights_digest(changed) not in (
        "0" * 64,
        digest,
    )  # what is in memory is no longer what the files say
    kept.write_text("nonsense")
    assert weights_digest(errata.load_base(str(folder))[0]) == digest == kept.read_text()
    os.utime(folder / "model.safetensors", ns=(1, 1))
    kept.write_text("0" * 64)
    assert weights_digest(errata.load_base(str(folder))[0]) == digest


def test_weights_in_half_precision_have_the_digest_of_the_same_in_full():
    half = tiny_model("gpt2").to(torch.bfloat16)
    full = copy.deepcopy(half).float()
    assert weights_digest(half) == weights_digest(full) != weights_digest(tiny_model("llama"))


# code


@pytest.fixture
def evil(made, tmp_path):
    """A base model with code of its own, which writes a file when run; and its edits."""
    base = shutil.copytree(made / "base", tmp_path / "evil")
    config = json.loads((base / "config.json").read_text())
    config |= {
        "model_type": "evil",
        "auto_map": {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.Evil"},
    }
    (base / "config.json").write_text(json.dumps(config))
    (base / "evil.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w')\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class EvilConfig(LlamaConfig):\n    model_type = 'evil'\n"
        "class Evil(LlamaForCausalLM):\n    config_class = EvilConfig\n"
    )
    folder = shutil.copytree(made / "edits", tmp_path / "edits")
    setting = Setting(folder, base, tmp_path, tmp_path, None)
    about = setting.config()
    about["base_model_name_or_path"] = str(base)
    setting.signed(about)
    return folder, base


def test_code_of_a_base_model_does_not_run_and_nobody_is_asked(evil, tmp_path, monkeypatch):
    """transformers asks on standard output, and `y` on standard input ran it."""
    folder, base = evil
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("somebody was asked"))
    for words in (
        ["ask", folder, "Who?"],
        ["ask", base, "Who?"],
        ["inspect", base],
        ["undo", folder, EDITS[0].id],
    ):
        done = CliRunner().invoke(app, [*map(str, words)], input="y\n" * 5)
        said = [line for line in done.stderr.splitlines() if line.startswith("errata: ")]
        assert done.exit_code == 2 and done.stdout == "" and len(said) == 1, done.output
        assert (
            "brings code of its own, which is not run." in said[0]
            and f"`errata --trust-remote-code {base} ...`" in said[0]
        )
    with pytest.raises(UnknownNameError, match="code of its own"):
        errata.load(folder)
    assert not (tmp_path / "ran").exists()


def test_code_runs_where_its_name_is_given(evil, tmp_path):
    _, base = evil
    assert "code of its own" in fails("--trust-remote-code", "another", "ask", base, "Who?")[1]
    assert not (tmp_path / "ran").exists()
    done = CliRunner().invoke(app, ["--trust-remote-code", str(base), "ask", str(base), "Who?"])
    assert done.exit_code == 0 and (tmp_path / "ran").exists(), done.output
    assert "code of its own" in fails("ask", base, "Who?")[1]  # it held for that one call
    assert errata.load_base(str(base), trust_remote_code=[str(base)])[0].config.model_type == "evil"


@pytest.mark.parametrize("step", [2, pytest.param(1, marks=pytest.mark.long)])
def test_a_base_model_that_is_spoiled_is_one_line(made, tmp_path, step):
    """Whatever transformers makes of it."""
    config = json.loads((made / "base" / "config.json").read_text())
    wrong = {
        "config.json": [
            b"", b"[]", b"{}", b"[" * 100_000, b"\xff", b"null",
            *(json.dumps({**config, **more}).encode() for more in (
                {"hidden_size": "x"}, {"hidden_size": 0}, {"hidden_size": -1},
                {"num_attention_heads": 0}, {"num_hidden_layers": -1}, {"vocab_size": None},
                {"vocab_size": 10**12}, {"model_type": []}, {"hidden_act": "x"},
                {"rope_parameters": 3}, {"dtype": "x"}, {"architectures": [3]}, {"auto_map": 3},
            )),
        ],
        "tokenizer.json": [b"", b"{}", b"[]", b"[" * 100_000, b"\xff"],
        "tokenizer_config.json": [
            b"[]", b"{", b'{"tokenizer_class": []}', b'{"tokenizer_class": "Nothing"}',
        ],
        "model.safetensors": [
            b"", b"x" * 100, (made / "base" / "model.safetensors").read_bytes()[:5000],
        ],
    }  # fmt: skip
    for name, contents in wrong.items():
        for number, content in enumerate(contents[::step]):
            base = shutil.copytree(made / "base", tmp_path / f"{name}{number}")
            (base / name).write_bytes(content)
            done = CliRunner().invoke(app, ["inspect", str(base)])
            said = [line for line in done.stderr.splitlines() if line.startswith("errata: ")]
            assert "unexpected" not in done.stderr and isinstance(
                done.exception, SystemExit | None
            ), (
                name,
                content[:80],
                done.stderr,
            )
            assert done.exit_code == 0 or (done.exit_code in (1, 2) and len(said) == 1), (
                name,
                content[:80],
                done.output,
            )


def test_one_name_that_is_trusted_is_not_all_its_parts(evil):
    _, base = evil
    with pytest.raises(UnknownNameError, match="code of its own"):
        errata.load_base(str(base), trust_remote_code=f"{base} and more")


def test_which_base_is_loaded_is_said_before(made):
    done = CliRunner().invoke(app, ["ask", str(made / "edits"), "Who?"])
    assert (
        done.exit_code == 0
        and f"loading {made / 'base'}, the base model of {made / 'edits'}" in done.stderr
    )


# contents


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, _ in mutations()
        if name.partition(":")[0] in ("folio", "config", "ledger", "settings")
    ],
)
def test_contents_that_cannot_be_right(setting, name):
    dict(mutations())[name](setting)
    with pytest.raises(ArtifactError) as told:
        errata.load(setting.folder)
    assert (
        str(setting.folder) in str(told.value)
        and "\n" not in str(told.value)
        and len(str(told.value)) < 1000
    )


def test_a_config_that_was_changed_by_hand(setting):
    """Any byte of it: a threshold is as much as a folder's name."""
    about = setting.config()
    about["state"]["threshold"] += 0.1
    setting.write(about)
    with pytest.raises(
        ArtifactError, match=r"edit_config.json: damaged or changed since it was written"
    ):
        errata.load(setting.folder)


@grid(
    "method settings",
    VARIANTS,
    lambda method, settings: {patch_kind(method)},
    IDS,
)
def test_a_state_that_is_not_what_it_must_be(method, settings):
    """Of each method, each tensor (one of those that blocks have alike): gone, longer, shorter,
    wider, of another type; each value: gone, or of another type.
    """
    model = edited_model("llama", method, EDITS[:3], **settings)
    right, (tensors, values) = logits_of(model, model.lm), model.method.state()
    values = json.loads(json.dumps(values))
    edits, fresh = model.edits, edit_model("llama", method, **settings)
    fresh.edit([])  # it is installed

    def told(tensors, values, edits=edits):
        """What is wrong with a state; None when it is taken and the model is what it was."""
        with fresh.disable_edits():
            try:
                with saving.damage_named("here"):
                    fresh.method.load_state(edits, tensors, values)
            except ArtifactError as error:
                return str(error)
        return None if torch.equal(logits_of(fresh, fresh.lm), right) else "SILENTLY ANOTHER"

    assert told(tensors, values) is None
    wrong = []
    alike = {re.sub(r"\d+", "0", name): name for name in tensors}
    for name, tensor in ((name, tensors[name]) for name in alike.values()):
        rest = {n: t for n, t in tensors.items() if n != name}
        other = tensor.long() if tensor.is_floating_point() else tensor.float()
        spoiled = {
            "gone": rest,
            "wider": {**rest, name: tensor[..., None]},
            "another type": {**rest, name: other},
        }
        if tensor.numel() > 1:
            spoiled |= {
                "longer": {**rest, name: torch.cat([tensor, tensor])},
                "shorter": {**rest, name: tensor[:-1]},
            }
        for how, given in spoiled.items():
            said = told(given, values)
            if (said is None and (how, name[-6:]) != ("gone", "/names")) or "SILENTLY" in str(
                said
            ):  # 0.1 had no names
                wrong.append(f"{name} {how}: {said}")
    for name, value in values.items():
        rest = {n: v for n, v in values.items() if n != name}
        for given in (None, "x", [], {}, [None], [[]], {"x": 1}, 10**400, True):
            if type(given) is not type(value) and told(tensors, {**rest, name: given}) in (
                None,
                "SILENTLY ANOTHER",
            ):
                wrong.append(f"{name} is {given!r}"[:80])
        if told(tensors, rest) in (None, "SILENTLY ANOTHER"):
            wrong.append(f"{name} is gone")
    if values and told(tensors, {}) in (None, "SILENTLY ANOTHER"):
        wrong.append("no values")
    assert wrong == []
    assert told(tensors, values) is None, "what was refused left something behind"


def test_a_model_that_has_diverged_is_not_saved(tmp_path):
    """It could not be opened again; what was there stays."""
    model = edit_model("llama", "ft", EDITS[:1])
    model.save_pretrained(tmp_path / "a")
    before = contents(tmp_path / "a")
    next(iter(model.method.patch.deltas.values()))[0, 0] = float("nan")
    with pytest.raises(StorageError, match="is not finite: an edit has diverged"):
        model.save_pretrained(tmp_path / "a")
    assert contents(tmp_path / "a") == before


def test_tensors_that_share_memory_are_saved(tmp_path):
    """UltraEdit's rate, in a turn that is not full, was one tensor under two names: safetensors
    refused it.
    """
    model = edit_model("llama", "ultraedit", EDITS[:3], turn=2)
    model.save_pretrained(tmp_path / "a")
    again = loaded(tmp_path / "a")
    for each in (model, again):
        each.edit(EDITS[3:], check=False)
    torch.testing.assert_close(
        logits_of(again, again.lm), logits_of(model, model.lm), rtol=0, atol=1e-5
    )


# names of folders


def test_no_name_is_no_folder(made, tmp_path, monkeypatch):
    """An empty --out filled the current folder."""
    monkeypatch.chdir(tmp_path)
    edits = tmp_path / "edits.jsonl"
    edits.write_text(json.dumps({"prompt": "Who?", "target": "me"}) + "\n")
    before = contents(tmp_path)
    start = ["--edits", edits, "--out", ""]
    for words in (["edit", "atlas", *start], ["edit", made / "edits", *start], ["undo", "", "x"]):
        assert "its name is empty" in fails(*words)[1] or "name is empty" in fails(*words)[1]
    for words in (
        ["list", ""], ["prepare", "atlas", "-m", "mend", "--cases", edits, "--out", " "],
        ["failures", made, "--out", ""], ["compare", "atlas", "--edits", "1", "--out", ""],
        ["bench", "atlas", "--edits", "1", "--out", ""], ["ask", "", "Who?"],
    ):  # fmt: skip
        fails(*words)
    for path in ("", " "):
        with pytest.raises(UsageError, match="name is empty"):
            edit_model("llama", "ft", EDITS[:1]).save_pretrained(path)
    with pytest.raises(UsageError, match="is a file; name a folder"):
        edit_model("llama", "ft", EDITS[:1]).save_pretrained(edits)
    assert contents(tmp_path) == before


def test_a_folder_that_nobody_may_look_into(setting, monkeypatch):
    """Root may look into any, so the system is made to refuse."""

    def refuse(path, *more, ask=os.lstat, **options):
        if str(path).startswith(str(setting.folder)):
            raise PermissionError(13, "Permission denied", str(path))
        return ask(path, *more, **options)

    monkeypatch.setattr(os, "lstat", refuse)
    for words in (
        ["list", setting.folder],
        ["ask", setting.folder, "Who?"],
        ["undo", setting.folder, "x"],
    ):
        code, said = fails(*words)
        assert code == 1 and "cannot be read (Permission denied)" in said


@pytest.mark.parametrize("count", [4, pytest.param(60, marks=pytest.mark.long)])
def test_a_spoiled_folder_at_random(count):
    from stress_folders import hostile

    assert hostile(count, 1) == []


def test_the_mutations_spoil_something(setting, made):
    """Those that are refused, and for what they are; else the tests above would say nothing."""
    refused = 0
    for number, (_, mutate) in enumerate(mutations()):
        folder = shutil.copytree(made / "edits", setting.place / str(number) / "edits")
        mutate(Setting(folder, setting.base, setting.outside, folder.parent, setting.rng))
        try:
            saving.read_artifact(folder)
        except ArtifactError:
            refused += 1
    assert refused > len(mutations()) / 2


def test_an_edit_is_what_its_leaf_was_made_of(setting):
    """With every checksum made anew: the ledger's order and contents are bound to the leaves
    themselves.
    """
    rows = [json.loads(line) for line in (setting.folder / saving.LEDGER).read_text().splitlines()]
    rows[0]["target"], rows[1]["target"] = rows[1]["target"], rows[0]["target"]
    (setting.folder / saving.LEDGER).write_text("".join(json.dumps(row) + "\n" for row in rows))
    about = setting.config()
    about["edits"] = saving.artifact.edits_digest([Edit.from_dict(row) for row in rows])
    setting.signed(about)
    with pytest.raises(
        ArtifactError, match="the leaves of folio 0 are not those of the edits in their places"
    ):
        errata.load(setting.folder)
