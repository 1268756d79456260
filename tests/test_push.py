"""Edits on the hub: what is pushed, what the card says, and that the same model comes down."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import huggingface_hub.constants as settings
import pytest
import yaml
from edited import EDITS, PINNED_WISE, edit_model, logits_of, same_state
from fake_hub import Hub, fake_hub
from families import tiny_model, tiny_tokenizer
from typer.testing import CliRunner, Result

import errata
from errata import Edit, EditModel, saving
from errata.cli import app
from errata.errors import ArtifactError, BaseMismatchError, ErrataError, HubError, UsageError
from errata.hub import About, figures_of, preview, read
from errata.hub.bases import published_base
from errata.hub.card import card_of
from errata.hub.markdown import code, escaped
from errata.saving import CONFIG, FILES

REPO = "me/my-errata"


def run(*words: object) -> Result:
    return CliRunner().invoke(app, [*map(str, words)])


def fails(*words: object) -> str:
    """A command that must fail in one line: that line."""
    done = run(*words)
    said = [line for line in done.stderr.splitlines() if line.startswith("errata: ")]
    assert done.exit_code in (1, 2) and len(said) == 1 and "unexpected" not in said[0], done.output
    return said[0]


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir() if file.is_file()}


def metadata(card: str) -> dict[str, object]:
    found = re.match(r"---\n(.*?)\n---\n", card, flags=re.S)
    assert found is not None
    return dict(yaml.safe_load(found[1]))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model in a folder, and edits of it."""
    root = tmp_path_factory.mktemp("pushed")
    tiny_model("llama").save_pretrained(root / "base")
    tiny_tokenizer().save_pretrained(root / "base")
    base, tokenizer = errata.load_base(str(root / "base"))
    model = EditModel(base, errata.method_config("wise", **PINNED_WISE, layer=2), tokenizer)
    model.edit(EDITS[:3], check=False)
    model.save_pretrained(root / "edits")
    return root


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of their own with the edits, and the base model, found by its last name."""
    shutil.copytree(made / "edits", tmp_path / "edits")
    (tmp_path / "base").symlink_to(made / "base")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with fake_hub(tmp_path / "cache", monkeypatch) as running:
        yield running


def test_what_is_pushed_comes_down_as_the_same_model(here: Path, hub: Hub) -> None:
    (here / "edits" / "secret.txt").write_text("mine")
    (here / "edits" / "README.md").write_text("my own notes")
    done = run("push", "edits", REPO, "--private")
    assert done.exit_code == 0 and "/commit/" in done.stdout, done.output
    sent, own = hub.files(REPO), contents(here / "edits")
    assert sent.keys() - {".gitattributes"} == (own.keys() - {"secret.txt"}) | {"README.md"}
    assert all(sent[name] == own[name] for name in ("edit_model.safetensors", "edits.jsonl"))
    assert REPO in hub.private and hub.messages == ["3 edits by wise"]
    assert str(here.parent).encode() not in b"".join(sent.values()), "no path of the one who pushed"
    assert b"my own notes" not in sent["README.md"]

    before, after = errata.load("edits"), errata.load(REPO)
    same_state(before, after)
    assert [edit.to_dict() for edit in after.edits] == [edit.to_dict() for edit in before.edits]
    assert (logits_of(before, before.lm) == logits_of(after, after.lm)).all()
    for verb, *more in (["ask", EDITS[0].prompt], ["list"]):
        expected = run(verb, "edits", *more).stdout
        assert expected and run(verb, REPO, *more).stdout == expected
    settings.HF_HUB_OFFLINE = True  # once downloaded, it is there
    assert len(errata.load(REPO).edits) == 3


def test_a_second_push_takes_out_what_is_no_longer_of_the_edits(hub: Hub) -> None:
    model = edit_model("llama", "folio", EDITS[:3], edits_per_file=1)
    model.push_to_hub(REPO, commit_message="first", tags="mine", license="cc-by-4.0")
    hub.files(REPO)["notes.md"] = hub.files(REPO)["other-model.safetensors"] = b"of others"
    before = set(hub.files(REPO))
    assert metadata(hub.files(REPO)["README.md"].decode())["license"] == "cc-by-4.0"
    model.undo(EDITS[0].id, EDITS[2].id)
    model.push_to_hub(REPO, commit_message="second")
    assert hub.messages == ["first", "second"] and len(hub.commits[REPO]) == 3
    gone = before - set(hub.files(REPO))
    assert gone and all(name.startswith("folio-") for name in gone)
    after = EditModel.from_pretrained(tiny_model("llama"), REPO, tiny_tokenizer())
    same_state(model, after)
    first = read(REPO, revision=hub.commit(REPO, 1))
    assert [edit.id for edit in first.edits] == [edit.id for edit in EDITS[:3]]


def test_edits_of_the_hub_are_gone_on_with_in_a_folder(here: Path, hub: Hub) -> None:
    assert run("push", "edits", REPO).exit_code == 0
    more = here / "more.jsonl"
    more.write_text(json.dumps(EDITS[3].to_dict()))
    assert "on the hub" in fails("edit", REPO, "--edits", more)
    done = run("edit", REPO, "--edits", more, "--out", "more", "--no-check")
    assert done.exit_code == 0 and len(errata.load("more").edits) == 4, done.output
    assert fails("undo", REPO, EDITS[0].id) and not Path(REPO).exists(), "and no folder is made"


EVIL = (
    "a | b",
    "two\nlines\r\n\n# heading",
    "<script>alert(1)</script> &amp; <!-- x",
    "{{ 7 * 7 }} {% include 'x' %} ${x} {0} %s",
    "`code` **bold** _em_ [link](javascript:x) ![i](http://x.de/y.png) $a$ ~~s~~",
    "---\nlicense: mit\n---",
    "www.example.com a@b.c @you #1 :smile: \\| \u202e\x1b[31m",
    "``````",
    "x" * 5000,
)


def card_with(made: Path, edits: list[Edit]) -> str:
    """The card of a folder, if it had these edits."""
    header = saving.read_artifact(made / "edits")
    return card_of(dataclasses.replace(header, edits=edits), REPO, About())


def test_no_text_breaks_out_of_the_card(made: Path) -> None:
    card = card_with(made, [Edit(text, text, id=f"{n} {text}") for n, text in enumerate(EVIL)])
    plain, nasty = card.split("\n## The edits\n")[0], card.split("\n## The edits\n")[1]
    assert "license" not in metadata(card) and plain.count("\n---\n") == 1
    rows = [line for line in nasty.split("\n## ")[0].splitlines() if line.startswith("|")][2:]
    assert len(rows) == len(EVIL) and all(row.count("|") == 4 for row in rows)
    for row, text in zip(rows, EVIL, strict=True):
        shown = row.split("|")[1].strip()
        assert not set(shown) & set("<>|`*_[]{}$~\\@\n") and shown.isprintable()
        assert "www." not in shown and "http:" not in shown and len(unescape(shown)) <= 400
        if text.isprintable() and len(text) < 200:
            assert unescape(shown) == text.strip(), "it is read as it was written"
    assert nasty.count("\n## ") == 3 and "A question?" not in nasty.split("\n## ")[0]


def test_a_block_of_code_is_closed_by_its_own_fence_alone() -> None:
    text = "a\n```\nb\n`````"
    assert code(text, "json") == f"``````json\n{text}\n``````"
    assert escaped("U.S. law, 3.5 and 'so' (what?)") == "U&#46;S. law, 3&#46;5 and 'so' (what?)"


def test_a_card_says_what_the_edits_say(here: Path) -> None:
    done = run("push", "edits", REPO, "--dry-run", "--base", "org/small-model", "--license", "mit")
    assert done.exit_code == 0, done.output
    card, header = done.stdout, saving.read_artifact("edits")
    assert metadata(card) == {
        "base_model": "org/small-model",
        "base_model_relation": "adapter",
        "library_name": "errata",
        "license": "mit",
        "pipeline_tag": "text-generation",
        "tags": ["knowledge-editing", "model-editing", "wise-merge"],
    }
    assert header.identity.fingerprint in card and str(header.identity.weights) in card
    assert all(f"| {edit.prompt} | {edit.target} | {edit.id} |" in card for edit in EDITS[:3])
    assert '"edits_per_shard": ' in card and "No figures were given" in card
    assert f'errata.load("{REPO}")' in card and f"errata ask {REPO} '{EDITS[0].prompt}'" in card
    for name in (*FILES, "README.md"):
        assert f"{name}, " in done.stderr
    assert str(here) not in card + done.stderr
    local = metadata(run("push", "edits", REPO, "--dry-run").stdout)
    assert "base_model" not in local and "license" not in local


def test_a_long_ledger_is_counted_and_an_empty_one_said(made: Path) -> None:
    assert "There are none yet" in card_with(made, [])
    card = card_with(made, [Edit(f"Who is number {n}?", f"{n}") for n in range(1040)])
    assert card.count("| Who is number") == 36 and "And 1,004 more edits" in card
    assert len(card) < 20_000


def test_figures_are_those_of_these_edits_or_refused(here: Path) -> None:
    cases = here / "cases.jsonl"
    cases.write_text("".join(json.dumps(edit.to_dict()) + "\n" for edit in EDITS[:3]))
    report = here / "report.json"
    report.write_text(run("eval", "edits", "--cases", cases, "--json").stdout)
    found = json.loads(report.read_text())
    card = run("push", "edits", REPO, "--dry-run", "--report", report).stdout
    measured = card.split("## What was measured")[1].split("\n## ")[0]
    forced = found["teacher_forced"]["reliability"]
    right = found["generated"]["reliability"]
    assert f"| reliability | {right:.3f} | {forced:.3f} |" in measured
    assert "| portability | - | - |" in measured and "on 3 cases, on these very edits" in measured
    probes = {"contains": {"choice": 0.5, "mean": 0.5}, "exact": {"mean": 0}}
    more = figures_of({**found, "generation": None, "probes": probes})
    unbound = preview("edits", REPO, About(figures=more)).card
    assert "| choice | 0.500 | - |\n| mean | 0.500 | 0.000 |" in unbound
    assert "on these very edits" not in unbound and "as whoever pushed them says" in unbound
    model = errata.load("edits")
    model.undo(EDITS[0].id)
    model.save_pretrained("edits")
    assert "of other edits" in fails("push", "edits", REPO, "--dry-run", "--report", report)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"edits": true}', '{"edits": 1, "generated": {"a": 2}}',
     '{"edits": 1, "generated": {"a | b": 1}, "teacher_forced": {}}', "[" * 100_000,
     '{"edits": 1, "generated": {"a": NaN}, "teacher_forced": {}}'],
)  # fmt: skip
def test_a_report_that_is_none_is_one_line(here: Path, text: str) -> None:
    (here / "report.json").write_text(text)
    said = fails("push", "edits", REPO, "--dry-run", "--report", "report.json")
    assert "report.json" in said and "errata eval" in said


def test_what_the_hub_refuses_is_one_line(
    here: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "may not write there" in fails("push", "edits", "others/theirs")
    hub.commits["others/theirs"] = [{"config.json": b"{}"}]
    assert "holds a base model" in fails("push", "edits", "others/theirs")
    hub.commits["others/theirs"] = [{}]
    assert "may not write there" in fails("push", "edits", "others/theirs")
    hub.commits[REPO] = [{}]
    assert "is there and public" in fails("push", "edits", REPO, "--private")
    assert "no name of a repository" in fails("push", "edits", "me/../x")
    assert "not a folder of edits" in fails("push", "base", REPO)
    assert "main branch" in fails("push", "edits", REPO, "--create-pr", "--revision", "x")
    assert "no name of a model" in fails("push", "edits", REPO, "--base", "/root/x")
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    assert "not valid" in fails("push", "edits", REPO)
    assert hub.messages == []
    with monkeypatch.context() as patch:
        patch.setattr(settings, "HF_HUB_OFFLINE", True)
        assert "no network" in fails("push", "edits", REPO)
    asked = len(hub.asked)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("errata.hub.upload.get_token", lambda: None)
    assert "hf auth login" in fails("push", "edits", REPO)
    with pytest.raises(HubError, match="no token"):
        errata.load("edits").push_to_hub(REPO)
    assert len(hub.asked) == asked


def test_a_name_that_is_no_repository_of_edits(here: Path, hub: Hub) -> None:
    hub.commits["others/model"] = [{"config.json": b"{}"}]
    for name in ("others/none", "others/model"):
        with pytest.raises(ArtifactError, match=r"not a folder of edits .* the hub"):
            errata.load(name)
        assert f"model '{name}' cannot be loaded" in fails("ask", name, "Who?")
    asked = len(hub.asked)
    for path in (Path("others/none"), "./others/none", "none"):
        with pytest.raises(ArtifactError, match="not a folder of edits"):
            errata.load(path)
    assert len(hub.asked) == asked, "a path, or a word alone, is no name of a repository"


def test_a_base_model_is_named_as_others_find_it(made: Path) -> None:
    header = saving.read_artifact(made / "edits")

    def base(name: str, given: str | None = None, file: str | None = None) -> tuple[str, str]:
        identity = dataclasses.replace(header.identity, file=file)
        edited = dataclasses.replace(header, base_name=name, identity=identity)
        found = published_base(edited, given)
        assert escaped(found.name) in card_of(edited, REPO, About(given))
        return found.kind, found.name

    assert base("org/model") == base("org/model", "org/model") == ("hub", "org/model")
    assert base("atlas") == ("bundled", "atlas")
    assert base("/home/me/models/small/") == base(r"C:\models\small") == ("local", "small")
    assert base("/home/me/small", "org/small") == base("small", "org/small") == ("hub", "org/small")
    assert base("/home/me/small-q4.gguf", file="0" * 64) == ("file", "small-q4.gguf")
    for name, file in (("org/model", None), ("atlas", None), ("/home/me/small.gguf", "0" * 64)):
        with pytest.raises(UsageError, match="another name is for"):
            base(name, "org/other", file)


def test_a_hostile_repository_is_refused(here: Path, hub: Hub) -> None:
    assert run("push", "edits", REPO).exit_code == 0
    good = hub.files(REPO)
    config = json.loads(good[CONFIG])

    def pushed(**files: bytes) -> str:
        hub.commits["others/evil"] = [{**good, **files}]
        shutil.rmtree(here / "cache", ignore_errors=True)
        with pytest.raises(ErrataError) as told:
            errata.load("others/evil")
        assert "\n" not in str(told.value)
        return str(told.value)

    names = {**config, "sha256": {**config["sha256"], "../../../../outside": "0" * 64}}
    assert "no file of an artifact" in pushed(**{CONFIG: json.dumps(names).encode()})
    assert not any("outside" in path for _, path in hub.asked)
    assert "checksum differs" in pushed(**{"edits.jsonl": good["edits.jsonl"] + b"\n"})
    for broken in (b"", b"[]", b'{"sha256": 1}', b"[" * 100_000):
        assert CONFIG in pushed(**{CONFIG: broken})
    missing = {**config, "sha256": {**config["sha256"], "folio-00009.safetensors": "0" * 64}}
    assert "no such file" in pushed(**{CONFIG: json.dumps(missing).encode()})
    pushed(**{CONFIG: b"", "evil.py": b"1", "model.pkl": b"2"})
    assert not any(name in path for _, path in hub.asked for name in ("evil.py", "model.pkl"))
    other = {**config, "base_weights": "0" * 64}
    assert pushed(**{CONFIG: json.dumps(other).encode()})


def test_only_links_of_the_hubs_cache_are_followed(here: Path, made: Path) -> None:
    commit, blobs = here / "models--a--b/snapshots/c0", here / "models--a--b/blobs"
    commit.mkdir(parents=True)
    blobs.mkdir()
    for number, (name, content) in enumerate(contents(made / "edits").items()):
        (blobs / f"{number:040x}").write_bytes(content)
        (commit / name).symlink_to(f"../../blobs/{number:040x}")
    assert len(errata.load(commit).edits) == 3
    (here / "models--a--b/blobs/passwd").write_bytes((made / "edits/edits.jsonl").read_bytes())
    for target in (
        "../../blobs/passwd",
        str(made / "edits/edits.jsonl"),
        "../../../edits/edits.jsonl",
    ):
        (commit / "edits.jsonl").unlink()
        (commit / "edits.jsonl").symlink_to(target)
        with pytest.raises(ArtifactError, match="a link, not a file"):
            errata.load(commit)
    (blobs / f"{99:040x}").symlink_to(made / "edits/edits.jsonl")
    (commit / "edits.jsonl").unlink()
    (commit / "edits.jsonl").symlink_to(f"../../blobs/{99:040x}")
    with pytest.raises(ArtifactError, match="a link, not a file"):
        errata.load(commit)


def test_another_base_model_in_its_place_is_refused(here: Path, hub: Hub) -> None:
    assert run("push", "edits", REPO).exit_code == 0
    (here / "base").unlink()
    tiny_model("gpt2").save_pretrained(here / "base")
    tiny_tokenizer().save_pretrained(here / "base")
    with pytest.raises(BaseMismatchError):
        errata.load(REPO)
