"""`Plan`: what is asked for, by flags or by a recipe, and the stream that follows from it. It
measures nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, get_type_hints

import errata
from errata.atlas import make_cases, training_cases
from errata.bench.readings import READINGS, read_as
from errata.bench.recipe import read_fields
from errata.bench.stream import Stream
from errata.bench.task import GENERATED, Task, TaskData, find_task, load
from errata.cases import Case
from errata.config import LARGEST, check_device, check_dtype, check_range, check_seed
from errata.errors import PromptTooLongError, UsageError, quoted, suggest
from errata.lm import LM
from errata.saving import BUNDLED
from errata.storage.cache import fingerprint

TRAINING = 1000
"""Cases about the bundled model that methods are trained on."""
TEXTS = 256
"""On which drift is measured, at most."""
MOST_AT_ONCE = 4096
"""Processes, or threads of one."""
SEVERAL = ("task", "model", "reading")
"""What a recipe may give a list of, for a plan each."""


@dataclass(frozen=True)
class Plan:
    """One task, one model, some methods.

    Attributes:
        task: its name, or a TOML file.
        model: a bundled name, a folder or a hub name.
        methods: names as `errata compare` takes them.
        settings: `NAME.setting=value`.
        edits: the stream's length; None for all there are.
        checkpoints: numbers of edits after which everything is measured; the stream's length is
            added.
        reading: of `READINGS`.
        data: the task's file, or a folder that it lies under; None takes it from the hub.
        train: a file of other records, for methods that are trained; None takes the task's own.
        text: a file of plain text on which drift is measured; None: the task's irrelevant texts,
            else the model's own.
        out: the folder for measurements and saves.
        minutes: a method that would write for longer is left out.
        save_every: edits written in one call, and between two saves.
        executor: `local`, processes of this machine; `ray`, the cluster of $RAY_ADDRESS.
        jobs: methods at a time, on this machine.
        threads: processor threads of each.
        seed: which cases, where they are made.
        dtype: of the model.
        device_map: as in transformers.
        trust_remote_code: names of models whose own code may run; no recipe says that.
    """

    task: str
    model: str = "atlas"
    methods: tuple[str, ...] = ("all",)
    settings: tuple[str, ...] = ()
    edits: int | None = None
    checkpoints: tuple[int, ...] = (1, 10, 100, 1000)
    reading: str = "conflict-free"
    data: Path | None = None
    train: Path | None = None
    text: Path | None = None
    out: Path | None = None
    minutes: float | None = 60
    save_every: int = 50
    executor: str = "local"
    jobs: int = 1
    threads: int | None = None
    seed: int = 0
    dtype: str = "float32"
    device_map: str | None = None
    trust_remote_code: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.reading not in READINGS:
            raise UsageError(
                f"there is no reading {quoted(self.reading)}.{suggest(self.reading, READINGS)}"
            )
        if not self.checkpoints or min(self.checkpoints) < 1:
            raise UsageError(
                f"checkpoints are numbers of edits, from 1; got {quoted(self.checkpoints)}."
            )
        if self.edits is not None:
            check_range("edits", self.edits, 1, LARGEST)
        check_seed(self.seed)
        check_dtype(self.dtype)
        check_device(self.device_map)
        for name, most in (
            ("save_every", LARGEST),
            ("jobs", MOST_AT_ONCE),
            ("threads", MOST_AT_ONCE),
        ):
            if getattr(self, name) is not None:
                check_range(name, getattr(self, name), 1, most)
        if self.minutes is not None:
            check_range("minutes", self.minutes, 0, LARGEST)

    @property
    def folder(self) -> Path:
        """Where measurements and saves go."""
        return self.out or Path("runs") / f"{Path(self.task).stem}-{Path(self.model).name}"


def read_recipe(path: Path, given: Mapping[str, Any] | None = None) -> list[Plan]:
    """The plans of a YAML recipe: a `Plan`'s fields, of which `task`, `model` and `reading` may be
    lists.

    With more than one plan, each has a folder of its own under `out`. What is given besides counts
    instead of what the recipe says; settings come behind its own, and where methods are given, its
    own of other methods are passed over.

    Raises:
        UsageError: the file cannot be read, or says something unknown, or what a field cannot be.
    """
    hints = {
        name: hint for name, hint in get_type_hints(Plan).items() if name != "trust_remote_code"
    }  # a flag's alone
    said = read_fields(path, hints, SEVERAL)
    more = dict(given or {})
    settings = said.get("settings", ())
    if "all" not in more.get("methods", ["all"]):
        settings = tuple(each for each in settings if each.partition(".")[0] in more["methods"])
    said = {**said, **more, "settings": (*settings, *more.get("settings", ()))}
    several = {
        name: said[name] if isinstance(said[name], list) else [said[name]]
        for name in SEVERAL
        if name in said
    }
    rest = {name: value for name, value in said.items() if name not in several}
    plans = []
    try:
        for chosen in product(*several.values()):
            named: dict[str, Any] = dict(zip(several, chosen, strict=True))
            plans.append(Plan(**named, **rest))
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    if len(plans) == 1:
        return plans
    root = plans[0].out or Path("runs") / path.stem
    return [
        replace(plan, out=root / f"{Path(plan.task).stem}-{Path(plan.model).name}-{plan.reading}")
        for plan in plans
    ]


@dataclass(frozen=True)
class Planned:
    """What came of a plan.

    Attributes:
        stream: what is measured.
        config: the model's configuration.
        task: what the plan named.
        too_long: cases of the file that do not fit the model's context, and are left out.
        empty: records of the file that want nothing, and are left out.
    """

    stream: Stream
    config: Any
    task: Task
    too_long: int
    empty: int


def stream_of(plan: Plan) -> Planned:
    """Read a plan's task and model.

    Raises:
        UsageError: there are no cases for this model, too few, or some of them are trained on.
        EditError: the task's file is not what it should be.
    """
    task = find_task(plan.task)
    if task.name == GENERATED and plan.data is None and plan.model not in BUNDLED:
        raise UsageError(
            f"the cases of {GENERATED} are about the bundled model; give {plan.model} another task."
        )
    data = _generated(plan) if task.name == GENERATED else load(task, plan.data, plan.train)
    base, tokenizer = errata.load_base(
        plan.model, plan.dtype, plan.device_map, plan.trust_remote_code
    )
    lm = LM(base, tokenizer)
    fits = [_fits(lm, case) for case in data.cases]
    cases = [case for case, good in zip(data.cases, fits, strict=True) if good]
    truths = [truth for truth, good in zip(data.truths, fits, strict=True) if good]
    reading = read_as(plan.reading, cases, truths)
    edits = plan.edits or len(reading.cases)
    if not reading.cases or len(reading.cases) < edits:
        left = f", {len(fits) - len(cases)} do not fit the model" if len(cases) < len(fits) else ""
        there = f"{len(reading.cases)} cases ({plan.reading}; {len(fits)} in the file{left})"
        raise UsageError(f"{data.source or plan.task} has {there}; --edits {edits} asks for more.")
    asked = {prompt for case in reading.cases for prompt in (case.edit.prompt, *case.rephrases)}
    training = [case for case in data.training if _fits(lm, case)]
    both = next((case for case in training if {case.edit.prompt, *case.rephrases} & asked), None)
    if both is not None:
        raise UsageError(
            f"{plan.train}: {both.edit.prompt!r} is trained on and in the stream; take it out of one of them."
        )
    stream = Stream(
        plan.model,
        fingerprint(base),
        data.source,
        reading,
        training,
        tuple(sorted({n for n in plan.checkpoints if n < edits} | {edits})),
        plan.folder,
        limit=None if plan.minutes is None else plan.minutes * 60,
        save_every=plan.save_every,
        threads=plan.threads,
        dtype=plan.dtype,
        device_map=plan.device_map,
        trust_remote_code=plan.trust_remote_code,
        new_tokens=max(task.new_tokens, _longest(lm, reading.cases)),
        neutral=tuple(_neutral(plan.text)) if plan.text else tuple(data.irrelevant[:TEXTS]),
        metrics=task.metrics,
        task=task.name,
    )
    return Planned(stream, base.config, task, len(fits) - len(cases), data.empty)


def _generated(plan: Plan) -> TaskData:
    cases = make_cases(plan.edits or 1000, plan.seed)
    training = training_cases(TRAINING, cases, plan.seed + 1)
    return TaskData(
        cases, [frozenset()] * len(cases), training, [], f"{GENERATED} seed {plan.seed}"
    )


def _fits(lm: LM, case: Case) -> bool:
    """Whether all that a case asks fits the model's context, with its answers."""
    edit = case.edit
    probes = [
        (probe.prompt, probe.answer or ".")
        for probe in (*case.locality, *case.portability, *case.ood)
    ]
    try:
        for prompt, target in [
            (edit.prompt, edit.target),
            *((text, edit.target) for text in case.rephrases),
            *probes,
        ]:
            lm.encode(prompt, target, "")
    except PromptTooLongError:
        return False
    return True


def _longest(lm: LM, cases: Sequence[Case]) -> int:
    """Tokens of the longest right answer, a full stop and its end included: none is cut off before
    it could be right.
    """
    wanted = [(case.edit.prompt, case.edit.target) for case in cases]
    wanted += [
        (probe.prompt, probe.answer) for case in cases for probe in case.portability if probe.answer
    ]
    rows = (lm.encode(prompt, answer, "") for prompt, answer in wanted)
    return 1 + max(len(row.ids) - row.prompt_length for row in rows)


def _neutral(path: Path) -> Iterator[str]:
    """The paragraphs of a file of plain text, the first that are longer than a heading."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})."
        ) from error
    found: Sequence[str] = [line.strip() for line in lines if len(line.split()) > 20]
    if not found:
        raise UsageError(
            f"{path}: no line of it has more than twenty words; drift is measured on such."
        )
    yield from found[:TEXTS]
