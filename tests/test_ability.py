"""General ability: lm-evaluation-harness on atlas, with tasks about its world."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lm_eval
import pytest
from edited import EDITS as TINY
from edited import PROMPTS, edit_model, edited_model
from families import chat_tokenizer, tiny_model
from grid import grid, patch_kind
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from typer.testing import CliRunner

import errata
from errata import EditModel, FolioConfig
from errata.atlas.cases import make_cases
from errata.bench.ability import ability
from errata.bench.harness import HarnessModel
from errata.cli import app
from errata.errors import PromptTooLongError, UnknownNameError, UsageError
from errata.lm import LM

CASES = make_cases(4, seed=3)
EDITS = [case.edit for case in CASES]
ELSEWHERE = [probe for case in CASES for probe in case.locality]
TASKS = ("edited_choices", "edited_words", "other_choices", "other_words", "other_text")


@pytest.fixture(autouse=True)
def no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness asks pip, the compiler and others for their versions, at each evaluation."""
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)


@pytest.fixture(scope="module")
def base() -> LM:
    return LM(*errata.load_base("atlas", "float32"))


@pytest.fixture(scope="module")
def folio() -> EditModel:
    return edited(FolioConfig())


def edited(config: Any) -> EditModel:
    base, tokenizer = errata.load_base("atlas", "float32")
    model = errata.get_edit_model(base, config, tokenizer)
    model.edit(EDITS, check=False)
    return model


@pytest.fixture(scope="module")
def tasks(base: LM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tasks: edited facts (the right answer is the new one) and others, to choose, to
    say, to read.
    """
    folder = tmp_path_factory.mktemp("tasks")
    old = base.generate([edit.prompt for edit in EDITS])
    changed = [
        (edit.prompt, edit.target, said.rstrip(".")) for edit, said in zip(EDITS, old, strict=True)
    ]
    others = [(probe.prompt, str(probe.answer), EDITS[0].target) for probe in ELSEWHERE]
    for name, facts in (("edited", changed), ("other", others)):
        docs = [
            {"prompt": p, "right": r, "choices": [w, r], "label": 1, "text": f"{p} {r}."}
            for p, r, w in facts
        ]
        write_task(folder, f"{name}_choices", docs, multiple_choice())
        write_task(folder, f"{name}_words", docs, words())
    answer = {
        "output_type": "loglikelihood",
        "doc_to_target": " {{right}}",
        "metric_list": [{"metric": "perplexity"}],
    }
    write_task(folder, "other_likelihoods", docs, answer)
    read = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "text"}
    write_task(folder, "other_text", docs, read)
    return folder


def write_task(
    folder: Path, name: str, docs: Iterable[dict[str, Any]], more: dict[str, Any]
) -> None:
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(doc) + "\n" for doc in docs), encoding="utf-8")
    config = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(folder / "cache")},
        "test_split": "test",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{right}}",
    }
    metric = (
        "word_perplexity"
        if "rolling" in str(more)
        else "exact_match"
        if "until" in str(more)
        else "acc"
    )
    mean = "weighted_perplexity" if metric == "word_perplexity" else "mean"
    measured = {
        "metric_list": [
            {"metric": metric, "aggregation": mean, "higher_is_better": metric != "word_perplexity"}
        ]
    }
    (folder / f"{name}.yaml").write_text(
        json.dumps({**config, **measured, **more}), encoding="utf-8"
    )  # JSON is YAML


def multiple_choice() -> dict[str, Any]:
    return {
        "output_type": "multiple_choice",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "label",
    }


def words() -> dict[str, Any]:
    stop = {"until": [".", "\n"], "max_gen_toks": 16, "do_sample": False}
    strip = [
        {"function": "regex", "regex_pattern": r"^\s*(.*?)\s*$", "group_select": 0},
        {"function": "take_first"},
    ]
    return {
        "output_type": "generate_until",
        "generation_kwargs": stop,
        "filter_list": [{"name": "stripped", "filter": strip}],
    }


def requests(*arguments: tuple[Any, ...]) -> list[Any]:
    return [SimpleNamespace(args=each, task_name="") for each in arguments]


@pytest.mark.long
def test_edits_show_where_they_are_asked_and_nowhere_else(folio: EditModel, tasks: Path) -> None:
    found = {
        figure.task: figure for figure in ability(folio, TASKS, include_path=tasks, batch_size=5)
    }
    for name in ("edited_choices", "edited_words"):
        figure = found[name]
        assert (figure.base, figure.edited, figure.difference) == (0.0, 1.0, 1.0), figure
        assert figure.moved == figure.questions == len(EDITS)
    for name in ("other_choices", "other_words", "other_text"):
        figure = found[name]
        assert figure.base == figure.edited and figure.difference == 0.0, figure
        assert figure.moved == 0 and figure.questions == len(ELSEWHERE)
    assert (
        found["other_words"].metric == "exact_match, stripped" and found["other_words"].base > 0.9
    )
    assert found["other_choices"].base_error == found["other_choices"].edited_error


@grid(
    "method",
    [
        (method,)
        for method in (
            "folio",
            "grace",
            "wise",
            "knn-lm",
            "lora",
            "prompt-tuning",
            "ike",
            "rag",
            "serac",
        )
    ],
    lambda method: {patch_kind(method)},
)
def test_it_is_asked_as_errata_asks(method: str) -> None:
    """Likelihoods are those of `LM.score`, texts those of `EditModel.ask`: in batches of unlike
    length.
    """
    model = edited_model("llama", method, TINY[:3])
    harness = HarnessModel(model, batch_size=4)
    prompts = PROMPTS[1:6]
    pairs = [(prompt, target) for prompt in prompts for target in ("Rome", "two brothers")]
    scores = model.lm.score(pairs)
    found = harness.loglikelihood(
        requests(*[(prompt, f" {target}") for prompt, target in pairs]), disable_tqdm=True
    )
    for (prompt, target), score, (likelihood, greedy) in zip(pairs, scores, found, strict=True):
        tokens = model.lm.encode(prompt, target).target_length
        assert (
            likelihood == pytest.approx(-score.loss * tokens, abs=1e-4) and greedy is score.exact
        ), prompt
    options = {"until": ["\n\n\n"], "max_gen_toks": 8, "do_sample": False}
    said = harness.generate_until(
        requests(*[(prompt, options) for prompt in prompts]), disable_tqdm=True
    )
    assert [text.strip() for text in said] == model.ask(prompts, max_new_tokens=8)


@pytest.mark.parametrize("method", ["wise", "folio", "rag"])
def test_the_end_of_a_chat_template_is_part_of_the_prompt(method: str) -> None:
    """The harness gives the template's last line break to the answer; of two answers, it falls out
    of the difference.
    """
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("assistant:{%", "assistant:\n{%")
    model = errata.get_edit_model(
        tiny_model("llama"), edit_model("llama", method).method.config, tokenizer
    )
    model.edit(TINY[:2], check=False)
    harness = HarnessModel(model, batch_size=4)
    for edit in TINY[:2]:
        context = model.lm.apply_chat_template(edit.prompt)
        assert context.endswith("assistant:\n")
        found = harness.loglikelihood(
            requests((context, "Rome"), (context, "two brothers")), disable_tqdm=True
        )
        pairs = [(edit.prompt, "Rome"), (edit.prompt, "two brothers")]
        wanted = [
            -s.loss * model.lm.encode(*p).target_length
            for p, s in zip(pairs, model.lm.score(pairs), strict=True)
        ]
        assert found[0][0] - found[1][0] == pytest.approx(wanted[0] - wanted[1], abs=1e-4)
        options = {"until": ["\n\n\n"], "max_gen_toks": 8, "do_sample": False}
        (said,) = harness.generate_until(requests((context, options)), disable_tqdm=True)
        assert said.strip() == model.ask([edit.prompt], max_new_tokens=8)[0]


@pytest.mark.long
def test_without_edits_it_is_the_harness_s_own_model(base: LM) -> None:
    ours = HarnessModel(base, batch_size=4)
    theirs = HFLM(
        pretrained=base.model, tokenizer=errata.load_base("atlas", "float32")[1], batch_size=4
    )
    long = " ".join(probe.prompt for probe in ELSEWHERE * 12)
    assert len(base.tokenizer(long)["input_ids"]) > base.context_length + 1
    pairs = [
        (probe.prompt, f" {answer}")
        for probe in ELSEWHERE
        for answer in (probe.answer, "No", "Yes")
    ]
    asked = requests(
        *pairs, pairs[0], ("", pairs[0][1]), (long, pairs[0][1]), (f"{pairs[0][0]} ", "in Osk")
    )
    for (one, best), (other, theirs_best) in zip(
        ours.loglikelihood(asked), theirs.loglikelihood(asked), strict=True
    ):
        assert one == pytest.approx(other, abs=1e-4) and best is theirs_best
    read = requests((ELSEWHERE[0].prompt,), (long,), (pairs[0][0] + pairs[0][1],))
    assert ours.loglikelihood_rolling(read) == pytest.approx(
        theirs.loglikelihood_rolling(read), abs=1e-3
    )
    with pytest.raises(PromptTooLongError, match=r"continuation takes .* context is 512"):
        ours.loglikelihood(requests((pairs[0][0], long)))


def test_choices_of_one_letter_are_one_pass(base: LM) -> None:
    harness, rows = HarnessModel(base, batch_size=64), []
    handle = base.model.register_forward_pre_hook(
        lambda _, args, given: rows.append(given["input_ids"].shape[0]), with_kwargs=True
    )
    try:
        harness.loglikelihood(
            requests(*[(probe.prompt, letter) for probe in ELSEWHERE[:3] for letter in "?!.,"])
        )
    finally:
        handle.remove()
    assert rows == [3]


def test_likelihoods_are_handed_to_the_harness_s_cache(base: LM) -> None:
    harness, kept = HarnessModel(base), {}
    harness.cache_hook = SimpleNamespace(
        add_partial=lambda kind, asked, said: kept.update({(kind, asked): said})
    )
    pair = (ELSEWHERE[0].prompt, " Yes")
    (said,) = harness.loglikelihood(requests(pair))
    assert kept == {("loglikelihood", pair): said}


def test_the_tokenizer_of_the_model_is_left_as_it_is() -> None:
    model = edit_model("llama", "wise")
    before = (model.tokenizer.pad_token, model.tokenizer.padding_side)
    harness = HarnessModel(model)
    harness.tokenizer.padding_side = "other"
    assert (
        harness.tokenizer.pad_token is not None
        and (model.tokenizer.pad_token, model.tokenizer.padding_side) == before
    )


@pytest.mark.long
def test_the_command(folio: EditModel, tasks: Path, tmp_path: Path) -> None:
    folio.save_pretrained(tmp_path / "edits")
    out, names = tmp_path / "new" / "ability.json", "edited_words,other_choices"
    words = [
        str(tmp_path / "edits"),
        "--tasks",
        names,
        "--include-path",
        str(tasks),
        "--limit",
        "4",
        "--out",
        str(out),
    ]
    found = CliRunner().invoke(app, ["ability", *words])
    assert found.exit_code == 0, found.output
    lines = {line.split()[0]: line for line in found.stdout.splitlines()}
    assert "+1.000" in lines["edited_words"] and "4 of 4" in lines["edited_words"]
    assert "+0.000" in lines["other_choices"] and "0 of 4" in lines["other_choices"]
    kept = json.loads(out.read_text(encoding="utf-8"))
    assert [figure["moved"] for figure in kept["figures"]] == [4, 0] and kept["limit"] == 4
    assert kept["made"]["harness"] == lm_eval.__version__
    assert list(out.parent.iterdir()) == [out]
    words[-1] = str(tasks)
    found = CliRunner().invoke(app, ["ability", *words])
    assert found.exit_code == 1 and f"{tasks}: cannot be written" in found.stderr


def test_a_base_model_is_measured_once(tasks: Path) -> None:
    """And stdout is the figures alone: where it bootstraps errors, of perplexities, the harness
    itself prints.
    """
    words = [
        "atlas",
        "--tasks",
        "other_likelihoods",
        "--include-path",
        str(tasks),
        "--limit",
        "4",
        "--json",
    ]
    found = CliRunner().invoke(app, ["ability", *words])
    assert found.exit_code == 0, found.output
    (figure,) = json.loads(found.stdout)["figures"]
    assert 1 < figure["base"] < 3 and figure["base_error"] > 0
    assert figure["edited"] is None and figure["moved"] is None and "bootstrapping" in found.stderr


@pytest.mark.long
def test_the_numbers_of_the_base_are_those_of_a_model_without_edits(
    base: LM, folio: EditModel, tasks: Path
) -> None:
    names = ["edited_choices", "edited_words"]
    alone, beside = (ability(model, names, include_path=tasks, limit=3) for model in (base, folio))
    assert [f.base for f in alone] == [f.base for f in beside] and {f.edited for f in beside} == {
        1.0
    }
    assert folio.method.patch.installed


@pytest.mark.long
def test_a_name_that_is_no_task_is_said_in_one_line(
    folio: EditModel, tasks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="no task is named"):
        ability(folio, [])
    with pytest.raises(UsageError, match="nowhere is not a folder"):
        ability(folio, ["other_words"], include_path="nowhere")
    monkeypatch.setattr("errata.bench.ability.TaskManager", few_tasks)
    with pytest.raises(
        UnknownNameError,
        match=r"'other_word'\. Did you mean 'other_words'\?.* has .*edited_choices",
    ):
        ability(folio, ["other_word"], include_path=tasks)
    with pytest.raises(UnknownNameError, match=r"'qqq'\. `lm_eval ls tasks` .*--include-path"):
        ability(folio, ["qqq"])


def few_tasks(include_path: str | None = None, include_defaults: bool = True) -> Any:
    """The harness's own tasks, but for the fourteen thousand that take half a minute to look
    through.
    """
    return TaskManager(include_path=include_path, include_defaults=False)


def test_without_the_harness_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*sys.modules]:
        if name.startswith(("lm_eval", "errata.bench.ability", "errata.bench.harness")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    done = CliRunner().invoke(app, ["ability", "atlas", "--tasks", "arc_easy"])
    assert done.exit_code == 2 and done.stdout == ""
    assert (
        done.stderr
        == "errata: general ability needs lm-evaluation-harness: pip install 'errata[ability]'.\n"
    )
