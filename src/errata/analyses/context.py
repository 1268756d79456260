"""`AnalysisContext`: the input of an analysis, and where its figure and numbers are kept."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import errata
from errata.bench.provenance import provenance
from errata.bench.stream import write_whole
from errata.cases import Case
from errata.config import MethodConfig
from errata.methods import method_config
from errata.model import EditModel
from errata.progress import OnProgress
from errata.stream import edit_stream


@dataclass(frozen=True)
class AnalysisContext:
    """The input of an analysis.

    Attributes:
        model: a bundled name, a folder or a hub name.
        cases: edits with their probes, in order.
        folder: where what has been found is kept.
        method: the method to analyse; None: the one that the analysis is about, or the first.
        settings: of the method.
        dtype, device_map: how the model is loaded.
        progress: called during the analysis.
        trust_remote_code: names of models whose own code may run.
    """

    model: str
    cases: Sequence[Case]
    folder: Path
    method: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    device_map: str | None = None
    progress: OnProgress = lambda what, done, total: None
    trust_remote_code: tuple[str, ...] = ()

    def base(self) -> tuple[Any, Any]:
        """Load the model without edits, and its tokenizer."""
        return errata.load_base(self.model, self.dtype, self.device_map, self.trust_remote_code)

    def config(self) -> MethodConfig:
        """Return the settings of the method that is looked at.

        Raises:
            UnknownNameError, ConfigError: there is no such method or setting.
        """
        return method_config(self.method or errata.method_names()[0], **self.settings)

    def edited(self, config: MethodConfig, cases: Sequence[Case] | None = None) -> EditModel:
        """Load the model with the edits of cases (all by default) written into it, in one call."""
        base, tokenizer = self.base()
        model = errata.get_edit_model(base, config, tokenizer)
        wanted = [case.edit for case in (self.cases if cases is None else cases)]
        edit_stream(model, wanted, check=False, progress=self.progress)
        return model


def streamed(context: AnalysisContext, model: EditModel, points: int) -> Iterator[int]:
    """Write the edits in so many parts, where the method allows it; yield the number so far."""
    edits = [case.edit for case in context.cases]
    step = len(edits) if model.method.relearns_all else max(1, len(edits) // points)
    for start in range(0, len(edits), step):
        there = min(len(edits), start + step)
        edit_stream(model, edits[:there], check=False)
        context.progress("editing", there, len(edits))
        yield there


def measured(
    context: AnalysisContext, variants: Mapping[str, MethodConfig]
) -> dict[str, dict[str, Any]]:
    """Measure variants after all edits: score (of `measures.SCORES`) -> measure -> share.

    Each result is saved at once; called again for the same cases, only missing ones are measured.
    """
    path = context.folder / "measured.jsonl"
    known = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            scores = json.loads(line)
            known[scores.pop("key")] = scores
    found = {}
    for number, (label, config) in enumerate(variants.items(), start=1):
        ids = [case.edit.to_dict() for case in context.cases]
        key = json.dumps(
            [context.model, context.dtype, config.method, config.to_dict(), ids], sort_keys=True
        )
        if key not in known:
            context.progress(label, number, len(variants))
            model = context.edited(config)
            figures = errata.evaluate(model, context.cases)
            known[key] = figures.scores
            lines = [
                json.dumps({"key": k, **scores}, ensure_ascii=False) for k, scores in known.items()
            ]
            write_whole(path, "\n".join(lines) + "\n")
        found[label] = known[key]
    return found


def keep(
    context: AnalysisContext, name: str, found: Mapping[str, Any], figure: Any
) -> tuple[Path, Path]:
    """Write what was found and its figure: (`NAME.json`, `NAME.png`)."""
    about = {
        "analysis": name,
        "model": context.model,
        "edits": len(context.cases),
        "settings": dict(context.settings),
    }
    numbers, picture = context.folder / f"{name}.json", context.folder / f"{name}.png"
    write_whole(
        numbers,
        json.dumps({**about, "made": provenance(), "found": found}, ensure_ascii=False, indent=1)
        + "\n",
    )
    figure.savefig(picture, dpi=140)
    return numbers, picture
