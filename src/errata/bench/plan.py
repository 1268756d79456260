"""`Plan`: what a user wants measured, by flags or a recipe, and the stream and runs that follow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, get_type_hints

import errata
from errata.atlas import make_cases, training_cases
from errata.bench.conflicts import POLICIES, apply_policy
from errata.bench.lengths import fits, longest_answer
from errata.bench.published import read_text
from errata.bench.recipe import read_fields
from errata.bench.runs import ALL, runs_of
from errata.bench.stream import FORCED, Run, Stream
from errata.bench.task import GENERATED, TaskData, find_task, load
from errata.cases import Case, Probe
from errata.config import LARGEST, check_device, check_dtype, check_range, check_seed
from errata.errors import UsageError, quoted, suggest
from errata.lm import LM
from errata.probes import check_kinds, make_probes
from errata.saving import BUNDLED
from errata.storage.cache import fingerprint

TRAINING = 1000
"""Cases about the bundled model that methods are trained on."""
TEXTS = 256
"""The most texts on which drift is measured."""
MOST_AT_ONCE = 4096
"""The most processes, or threads of a process."""
SEVERAL = ("task", "model", "reading")
"""Fields of which a recipe may give a list, with one plan for each element."""


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
        reading: the policy for records that contradict each other, of `POLICIES`.
        data: the task's file, or a folder that it lies under; None takes it from the hub.
        train: a file of other records, for methods that are trained; None takes the task's own.
        text: a file of plain text on which drift is measured; None: the task's irrelevant texts,
            else self-generated text.
        probes: kinds of the sceptic's probes (`probes.KINDS`) or `all`, asked after the last edit.
        probe_edits: they are asked about so many of the edits, drawn by the seed.
        probe_wordings: wordings of each kind.
        locality_probes: at most so many locality probes of a kind for an edit; None for all.
        out: the folder for measurements and saves.
        minutes: a method that would write for longer is left out.
        save_every: edits written in one call, and between two saves.
        executor: `local`, processes of this machine; `ray`, the cluster of $RAY_ADDRESS.
        jobs: methods at a time, on this machine.
        threads: processor threads of each.
        seed: which cases, where they are made; and which probes.
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
    probes: tuple[str, ...] = ()
    probe_edits: int = 50
    probe_wordings: int = 1
    locality_probes: int | None = None
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
        if self.reading not in POLICIES:
            raise UsageError(
                f"there is no reading {quoted(self.reading)}.{suggest(self.reading, POLICIES)}"
            )
        if not self.checkpoints or min(self.checkpoints) < 1:
            raise UsageError(
                f"checkpoints are numbers of edits, from 1; got {quoted(self.checkpoints)}."
            )
        if self.edits is not None:
            check_range("edits", self.edits, 1, LARGEST)
        check_kinds(self.probes)
        check_seed(self.seed)
        check_dtype(self.dtype)
        check_device(self.device_map)
        for name, most in (
            ("save_every", LARGEST),
            ("probe_edits", LARGEST),
            ("probe_wordings", LARGEST),
            ("locality_probes", LARGEST),
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
    """Read the plans of a YAML recipe; `task`, `model` and `reading` may be lists.

    With more than one plan, each has a folder of its own under `out`.

    Args:
        path: the recipe.
        given: fields that replace the recipe's; but settings are appended to its own, and if
            methods are given, the recipe's settings of other methods are ignored.

    Raises:
        UsageError: the file cannot be read, or a field is unknown or not valid.
    """
    hints = get_type_hints(Plan)
    del hints["trust_remote_code"]  # only a flag may say that
    fields, flags = read_fields(path, hints, SEVERAL), dict(given or {})
    settings = fields.get("settings", ())
    if ALL not in flags.get("methods", [ALL]):
        named = [name.removeprefix(FORCED) for name in flags["methods"]]
        settings = tuple(each for each in settings if each.partition(".")[0] in named)
    fields |= {**flags, "settings": (*settings, *flags.get("settings", ()))}
    several = {
        name: value if isinstance(value := fields.pop(name), list) else [value]
        for name in SEVERAL
        if name in fields
    }
    try:
        plans = [
            Plan(**dict(zip(several, chosen, strict=True)), **fields)
            for chosen in product(*several.values())
        ]
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
class LoadedPlan:
    """A plan with its task and model loaded.

    Attributes:
        stream: the stream of edits.
        runs: the methods and their settings.
        too_long: cases of the file that do not fit the model's context, and are left out.
        empty: records of the file with an empty target, which are left out.
        contradicted: probes of the file that rest on what another record edits, which are left out.
    """

    stream: Stream
    runs: list[Run]
    too_long: int
    empty: int
    contradicted: int = 0


def load_plan(plan: Plan) -> LoadedPlan:
    """Read a plan's task and model.

    Raises:
        UsageError: there are no cases for this model, too few, or some of them are trained on.
        EditError: the task's file is not valid.
        UnknownNameError, ConfigError: as `runs_of`.
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
    fitting = [_cut(case, plan.locality_probes) for case in data.cases if fits(lm, case)]
    too_long = len(data.cases) - len(fitting)
    policy = apply_policy(plan.reading, fitting)
    edits = plan.edits or len(policy.cases)
    if not policy.cases or len(policy.cases) < edits:
        left = f", {too_long} do not fit the model" if too_long else ""
        there = f"{len(policy.cases)} cases ({plan.reading}; {len(data.cases)} in the file{left})"
        raise UsageError(f"{data.source or plan.task} has {there}; --edits {edits} asks for more.")
    training = [case for case in data.training if fits(lm, case)]
    prompts = {prompt for case in policy.cases for prompt in (case.edit.prompt, *case.rephrases)}
    both = next((case for case in training if {case.edit.prompt, *case.rephrases} & prompts), None)
    if both is not None:
        raise UsageError(
            f"{plan.train}: {both.edit.prompt!r} is trained on and in the stream; "
            "take it out of one of them."
        )
    judged, pool = policy.judged(edits), policy.cases
    probes = make_probes(
        judged, plan.probes, plan.probe_edits, plan.probe_wordings, plan.seed, pool
    )
    stream = Stream(
        plan.model,
        fingerprint(base),
        data.source,
        policy,
        training,
        tuple(sorted({n for n in plan.checkpoints if n < edits} | {edits})),
        plan.folder,
        limit=None if plan.minutes is None else plan.minutes * 60,
        save_every=plan.save_every,
        threads=plan.threads,
        dtype=plan.dtype,
        device_map=plan.device_map,
        trust_remote_code=plan.trust_remote_code,
        new_tokens=max(task.new_tokens, longest_answer(lm, policy.cases)),
        neutral=_neutral(plan.text) if plan.text else tuple(data.irrelevant[:TEXTS]),
        metrics=task.metrics,
        task=task.name,
        probes=probes,
    )
    return LoadedPlan(
        stream,
        runs_of(plan.methods, base.config, plan.settings),
        too_long,
        data.empty,
        data.contradicted,
    )


def _generated(plan: Plan) -> TaskData:
    cases = make_cases(plan.edits or 1000, plan.seed)
    training = training_cases(TRAINING, cases, plan.seed + 1) if plan.methods else []
    return TaskData(cases, training, [], f"{GENERATED} seed {plan.seed}")


def _cut(case: Case, most: int | None) -> Case:
    """Return a case with at most so many locality probes of each kind."""
    if most is None:
        return case
    by_kind: dict[str, list[Probe]] = {}
    for probe in case.locality:
        by_kind.setdefault(probe.kind, []).append(probe)
    kept = {probe for some in by_kind.values() for probe in some[:most]}
    return replace(case, locality=tuple(probe for probe in case.locality if probe in kept))


def _neutral(path: Path) -> tuple[str, ...]:
    """Read the paragraphs of a file of plain text, the first that are longer than a heading."""
    found = tuple(line.strip() for line in read_text(path).splitlines() if len(line.split()) > 20)
    if not found:
        raise UsageError(
            f"{path}: no line of it has more than twenty words; drift is measured on such."
        )
    return found[:TEXTS]
