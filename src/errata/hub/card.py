"""The card of a repository of edits: what it is, its ledger, what was measured, how to use it.

It says what the artifact says, and of figures only what is given. Prompts, targets and names are
texts of others, and stay text (see `markdown`); no template is filled in.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from errata.edit import Edit
from errata.errors import ConfigError, UnknownNameError, UsageError
from errata.hub.bases import Base, published_base
from errata.hub.figures import Figures
from errata.hub.markdown import code, escaped, table
from errata.methods import method_class, name_of
from errata.saving import LEDGER, Header

LISTED = 36
"""Edits that the card's table shows, at most."""
_TAGS = ("knowledge-editing", "model-editing")
_RELATION = "base_model_relation: adapter"
"""In the hub's words, where an adapter is anything that is loaded beside its base model."""
_ANY_QUESTION = "A question?"


@dataclass(frozen=True)
class About:
    """What a card says beyond what the artifact says.

    Attributes:
        base_model: the base model's name on the hub, where the artifact names a local folder.
        license: of the edits, as the hub abbreviates it, e.g. cc-by-4.0; None says nothing.
        figures: what was measured; None says that nothing was.
        tags: further tags.
    """

    base_model: str | None = None
    license: str | None = None
    figures: Figures | None = None
    tags: Sequence[str] = ()


def card_of(header: Header, repo: str, about: About) -> str:
    """Return the card of a repository, as the text of its README.md.

    Raises:
        UsageError: the figures are of other edits, or the base model is not the one given.
    """
    figures = about.figures
    if figures is not None and figures.generation not in (None, header.generation):
        raise UsageError(
            f"the report is of other edits than those of {header.path}, or of them before they "
            "were saved anew; measure these with `errata eval`."
        )
    base = published_base(header, about.base_model)
    parts = [
        f"# {escaped(repo)}",
        *_what_it_is(header, base),
        "## The edits",
        *_ledger(header.edits),
        "## What was measured",
        *(_measured(figures) if figures is not None else [_NOT_MEASURED]),
        "## How to load it",
        *_loading(header, repo, base),
        "## How to undo",
        *_undoing(header, repo),
    ]
    data = _metadata(header, base, about)
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n")
    return str(card)


def _metadata(header: Header, base: Base, about: About) -> Any:
    relation, _, kind = _RELATION.partition(": ")
    known = {"base_model": base.name, relation: kind}
    tags = dict.fromkeys((*_TAGS, name_of(header.method, header.settings), *about.tags))
    return ModelCardData(
        library_name="errata",
        license=about.license,
        pipeline_tag="text-generation",
        tags=list(tags),
        **(known if base.kind == "hub" else {}),
    )


def _what_it_is(header: Header, base: Base) -> Iterator[str]:
    name = escaped(base.name)
    what = {
        "hub": f"[{name}](https://huggingface.co/{base.name})",
        "bundled": f"{name}, which comes with errata",
        "file": f"the file {name} (SHA-256 {header.identity.file})",
        "local": f"{name}, as whoever edited it calls it" if name else "one without a name",
    }[base.kind]
    count = _counted(len(header.edits), "correction")
    yield (
        f"{count} of a language model, made with errata. Here are the edits alone, "
        "without the weights of the base model."
    )
    rows = [
        ("base model", what),
        ("kind of model", escaped(header.base_type)),
        ("its fingerprint", escaped(header.identity.fingerprint)),
        ("SHA-256 of its weights", escaped(header.identity.weights or "not known")),
        ("it was edited in", escaped(header.dtype)),
        ("method", escaped(name_of(header.method, header.settings))),
        ("edits", str(len(header.edits))),
    ]
    yield table(("", ""), rows)
    yield "The method's settings:"
    yield code(json.dumps(header.settings, indent=1), "json")


def _ledger(edits: Sequence[Edit]) -> Iterator[str]:
    if not edits:
        yield "There are none yet: the method is trained, and may be edited with from here."
        return
    shown = edits[:LISTED]
    cells = [(escaped(edit.prompt), escaped(edit.target), escaped(edit.id, 60)) for edit in shown]
    yield table(("prompt", "target", "id"), cells)
    if rest := len(edits) - len(shown):
        yield f"And {_counted(rest, 'more edit')}; all of them are in `{LEDGER}`, oldest first."


_NOT_MEASURED = (
    "No figures were given with these edits. `errata eval` measures them on cases of your own."
)


def _measured(figures: Figures) -> Iterator[str]:
    bound = (
        "on these very edits"
        if figures.generation is not None
        else "as whoever pushed them says; the report does not name the edits it is of"
    )
    yield (
        f"By `errata eval` on {_counted(figures.cases, 'case')}, {bound}. Free answers are greedy, "
        "and count when all of the answer is right; teacher-forced is the share of tokens, with "
        "the right answer already in the input. Locality compares with the base model."
    )
    names = dict.fromkeys((*figures.generated, *figures.teacher_forced))
    rows = [
        (name, _figure(figures.generated.get(name)), _figure(figures.teacher_forced.get(name)))
        for name in names
    ]
    yield table(("measure", "free answers", "teacher-forced"), rows)
    if figures.probes:
        yield "The sceptic's probes, kind by kind, in the ways to count an answer that errata has:"
        kinds = dict.fromkeys(kind for shares in figures.probes.values() for kind in shares)
        rows_of_probes = [
            (kind, *(_figure(shares.get(kind)) for shares in figures.probes.values()))
            for kind in kinds
        ]
        yield table(("probe", *map(escaped, figures.probes)), rows_of_probes)


def _figure(share: float | None) -> str:
    return "-" if share is None else f"{share:.3f}"


def _loading(header: Header, repo: str, base: Base) -> Iterator[str]:
    if base.kind == "file":
        yield (
            f"The base model is a file of which this repository has no copy: put `{base.name}` "
            "into the folder where you are. It is checked by its SHA-256."
        )
    elif base.kind == "local":
        yield (
            "The base model has no full name on the hub: have it where you are, as a folder of the "
            "name above; or load it yourself, and put the edits on it with "
            f'`errata.EditModel.from_pretrained(base, "{repo}", tokenizer)`.'
        )
    else:
        yield "The base model is loaded with the edits, and must be the one they were written for."
    question = _question(header.edits)
    yield code(f"errata ask {repo} {shlex.quote(question)}", "sh")
    lines = (
        "import errata",
        "",
        f'model = errata.load("{repo}")',
        f"print(model.ask({json.dumps(question)}))",
    )
    yield code("\n".join(lines), "python")


def _undoing(header: Header, repo: str) -> Iterator[str]:
    try:
        how = f" ({method_class(header.method).undo_is})"
    except (UnknownNameError, ConfigError):
        how = ""
    yield (
        "`with model.disable_edits():` is the base model. An edit is taken back by its id"
        f"{escaped(how)}, in a copy of your own:"
    )
    name = repo.rpartition("/")[2]
    lines = (
        f"hf download {repo} --local-dir {name}",
        f"errata list {name}",
        f"errata undo {name} ID",
    )
    yield code("\n".join(lines), "sh")
    yield code(f'model.undo("ID")\nmodel.save_pretrained("{name}")', "python")


def _question(edits: Sequence[Edit]) -> str:
    """Return an edit's prompt that can stand in any command line, or words for one."""
    for edit in edits[:LISTED]:
        plain = edit.prompt.isprintable() and not set(edit.prompt) & set("'\"\\`$!{}")
        if plain and len(edit.prompt) <= 100 and not edit.prompt.startswith("-"):
            return edit.prompt
    return _ANY_QUESTION


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"
