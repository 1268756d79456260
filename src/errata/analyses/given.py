"""What an analysis is given, and how its figure and its numbers are kept. It analyses nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import errata
from errata.bench.provenance import provenance
from errata.bench.stream import write_whole
from errata.cases import Case
from errata.config import MethodConfig
from errata.errors import UsageError
from errata.methods import method_config
from errata.model import EditModel

Tell = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Given:
    """What an analysis looks at.

    Attributes:
        model: a bundled name, a folder or a hub name.
        cases: edits with their probes, in order.
        folder: where what has been found is kept.
        method: that is looked at; None: the one that the analysis is about, or the first there is.
        settings: of it.
        dtype, device_map: how the model is loaded.
        tell: called with (what is being done, how much of it is done, out of how much).
        trust_remote_code: names of models whose own code may run.
    """

    model: str
    cases: Sequence[Case]
    folder: Path
    method: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    device_map: str | None = None
    tell: Tell = lambda what, done, total: None
    trust_remote_code: tuple[str, ...] = ()

    def base(self) -> tuple[Any, Any]:
        """(the model without edits, its tokenizer)."""
        return errata.load_base(self.model, self.dtype, self.device_map, self.trust_remote_code)

    def config(self) -> MethodConfig:
        """The settings of the method that is looked at.

        Raises:
            UnknownNameError, ConfigError: there is no such method or setting.
        """
        return method_config(self.method or errata.method_names()[0], **self.settings)

    def edited(self, config: MethodConfig, cases: Sequence[Case] | None = None) -> EditModel:
        """The model with the edits of cases (all by default) written into it, in one call."""
        base, tokenizer = self.base()
        model = errata.get_edit_model(base, config, tokenizer)
        wanted = [case.edit for case in (self.cases if cases is None else cases)]
        done = 0

        def wrote(count: int) -> None:
            nonlocal done
            done += count
            self.tell("editing", done, len(wanted))

        model.edit(wanted, check=False, progress=wrote)
        return model


def streamed(given: Given, model: EditModel, points: int) -> Iterator[int]:
    """Write the cases' edits in so many parts, where the method allows it; how many are in, after
    each.
    """
    cases = list(given.cases)
    step = len(cases) if model.method.relearns_all else max(1, len(cases) // points)
    for start in range(0, len(cases), step):
        part = cases[start : start + step]
        model.edit([case.edit for case in part], check=False)
        given.tell("editing", start + len(part), len(cases))
        yield start + len(part)


def measured(given: Given, variants: Mapping[str, MethodConfig]) -> dict[str, dict[str, Any]]:
    """For each variant, after all edits: how it is counted (see `evaluate.SCORES`) -> measure ->
    share.

    Each is kept as soon as it is there; called again for the same cases, only what is missing is
    measured.
    """
    path = given.folder / "measured.jsonl"
    known = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            said = json.loads(line)
            known[said.pop("key")] = said
    found = {}
    for number, (label, config) in enumerate(variants.items(), start=1):
        ids = [case.edit.to_dict() for case in given.cases]
        key = json.dumps(
            [given.model, given.dtype, config.method, config.to_dict(), ids], sort_keys=True
        )
        if key not in known:
            given.tell(label, number, len(variants))
            model = given.edited(config)
            figures = errata.evaluate(model, given.cases)
            known[key] = figures.scores
            lines = [
                json.dumps({"key": k, **said}, ensure_ascii=False) for k, said in known.items()
            ]
            write_whole(path, "\n".join(lines) + "\n")
        found[label] = known[key]
    return found


def keep(given: Given, name: str, found: Mapping[str, Any], figure: Any) -> tuple[Path, Path]:
    """Write what was found and its figure: (`NAME.json`, `NAME.png`)."""
    said = {
        "analysis": name,
        "model": given.model,
        "edits": len(given.cases),
        "settings": dict(given.settings),
    }
    numbers, picture = given.folder / f"{name}.json", given.folder / f"{name}.png"
    write_whole(
        numbers,
        json.dumps({**said, "made": provenance(), "found": found}, ensure_ascii=False, indent=1)
        + "\n",
    )
    figure.savefig(picture, dpi=140)
    return numbers, picture


def new_figure(width: float, height: float, columns: int = 1, rows: int = 1) -> tuple[Any, Any]:
    """(a figure, its axes [rows][columns]).

    Raises:
        UsageError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError("figures need matplotlib: pip install 'errata[figures]'.") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)
