"""Measures what tells what prompts ask, and in which way, on pretrained models.

    python benchmarks/same_question.py MODEL ... --data FOLDER [--records 0 100] [--record]

The table of signs, of CounterFact: the edit's prompt beside its paraphrases (the same is asked),
and beside the generation prompts that ask other things of the subject (`counterfact-nested` leaves
out those that ask what the edit answers). For each sign:

    AUC                  of the two
    false at 90 % found  other questions that pass where nine tenths of the paraphrases do
    found, false         at the boundary that was set without these records, where there is one
    form, zsRE form      the fact asked in the other form (question or sentence), in both files

The table of intents: of the sceptic's probes of both files, by kind, the share whose intent is told
right: `answer` for form and distractor, `verify` or `choose` for choice and verify, `former` or
`exclude` for former and negation, `describe` for long. No wording of a probe is one of those that
the router is fitted on.

With --record the tables go to docs/results/folio-signs.csv and folio-intents.csv; --picture FILE
draws the first model's router: what both views say of each pair, and the boundary.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import results
import torch
from torch import Tensor
from torch.nn import functional as F

import errata
from errata import Case
from errata.bench.charts import COLOURS, MARKERS
from errata.bench.task import find_task, load
from errata.lm.encoding import in_batches
from errata.methods.association.folio.base_head import BaseHead
from errata.methods.association.folio.config import FolioConfig
from errata.methods.association.folio.intents import INTENTS, IntentClassifier
from errata.methods.association.folio.question_reader import LAST, Question, QuestionReader
from errata.methods.association.folio.question_space import FORM, QuestionSpace
from errata.probes import make_probes
from errata.words.questions import asked_of, in_quotes, shared_form

BATCH, FOUND = 32, 0.9
TASKS = ("counterfact-nested", "zsre")
RIGHT = {
    "form": {"answer"}, "distractor": {"answer"}, "choice": {"verify", "choose"},
    "verify": {"verify", "choose"}, "former": {"former", "exclude"},
    "negation": {"former", "exclude"}, "long": {"describe"},
}  # fmt: skip
GROUPS = (
    "paraphrase behind a sentence", "another question of the subject", "the other form",
    "the other form (zsRE)",
)  # fmt: skip
Pair = tuple[str, str, str]
"""The edit's prompt, another prompt, and the subject of both."""


def pairs_of(cases: list[Case]) -> dict[str, list[Pair]]:
    """Return the pairs by kind: same, other, form."""
    found: dict[str, list[Pair]] = {"same": [], "other": [], "form": []}
    by_id = {case.edit.id: case.edit for case in cases}
    for case in cases:
        prompt, subject = case.edit.prompt, case.edit.subject or ""
        found["same"] += [(prompt, text, subject) for text in case.rephrases]
        probes = (probe for probe in case.locality if probe.kind == "same_subject")
        found["other"] += [(prompt, probe.prompt, subject) for probe in probes]
    for question in make_probes(cases, ("form",)).questions:
        edit = by_id[question.edit_id]
        found["form"].append((edit.prompt, question.turns[-1], edit.subject or ""))
    return found


def signs(
    reader: QuestionReader,
    space: QuestionSpace,
    cases: dict[str, list[Case]],
    picture: Path | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield a line for each sign."""
    hard, zsre = (pairs_of(cases[task]) for task in TASKS)
    groups = [hard["same"], hard["other"], hard["form"], zsre["form"]]
    pairs = [pair for group in groups for pair in group]
    sizes = [len(group) for group in groups]

    def line(sign: str, score: Tensor, boundary: float | None = None) -> dict[str, Any]:
        same, other, form, zsre_form = score.split(sizes)
        above = (same[:, None] > other[None]).float() + 0.5 * (same[:, None] == other[None]).float()
        row: dict[str, Any] = {
            "sign": sign,
            "AUC": float(above.mean()),
            "false at 90 % found": float((other >= same.quantile(1 - FOUND)).float().mean()),
        }
        if boundary is not None:
            named = {"found": same, "false": other, "form": form, "zsRE form": zsre_form}
            row |= {name: float((each >= boundary).float().mean()) for name, each in named.items()}
        return {**row, "pairs": f"{len(same)} and {len(other)}"}

    head = reader.base
    prompts = list(dict.fromkeys(text for pair in pairs for text in pair[:2]))
    ids = [reader.lm.encode_prompt(prompt) for prompt in prompts]
    read = in_batches(ids, lambda part: list(head.last_hidden_states(part)), BATCH, size=len)
    keys = dict(zip(prompts, read, strict=True))
    overlaps = [
        (0.5 * (head.log_probs(keys[one][None]) + head.log_probs(keys[two][None]))).exp().sum()
        for one, two, _ in pairs
    ]
    yield line("overlap of the next-token distributions", torch.stack(overlaps))

    def asked(text: str, subject: str) -> str:
        return in_quotes(text, subject) or asked_of(text, subject)

    texts = [
        [Question(asked(text, subject), subject) for text in (one, two)]
        for one, two, subject in pairs
    ]
    views = reader.read([text for pair in texts for text in pair])
    one, two = (torch.stack([views[pair[place]] for pair in texts]) for place in (0, 1))
    cosines = F.cosine_similarity(one[:, LAST], two[:, LAST])
    yield line("cosine of the states at the last token", cosines)
    first, second = space.vectors(one), space.vectors(two)
    ratios = space.ratios(first, second)
    forms = torch.tensor([
        shared_form(first.text, second.text, first.subject) for first, second in texts
    ])  # fmt: skip
    if picture:
        kinds = [kind for kind, size in zip(GROUPS, sizes, strict=True) for _ in range(size)]
        draw(ratios / space.spread, forms, kinds, space.boundary, picture)
    for view, name in enumerate(("last token", "second half", "words")):
        yield line(f"discriminant, {name}", ratios[:, view])
    yield line("the three (folio)", space.scores(first, second, forms), 0.5)


def draw(ratios: Tensor, forms: Tensor, kinds: list[str], boundary: float, file: Path) -> None:
    """Draw what the views say of pairs, (pairs, views), and where these ask one thing."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "errata", "font.size": 9})
    from matplotlib import pyplot

    ratios = torch.stack([ratios[:, :2].sum(1) - FORM * forms, ratios[:, 2]], 1)
    figure, axis = pyplot.subplots(figsize=(6, 4.6), layout="constrained")
    for place, kind in enumerate(GROUPS):
        mine = ratios[[each == kind for each in kinds]]
        axis.plot(
            *mine.T.tolist(), MARKERS[place], color=COLOURS[place], label=kind, alpha=0.6, ms=4
        )
    low, high = ratios.amin(0), ratios.amax(0)
    edge = torch.tensor([float(low[0]), float(high[0])])
    axis.plot(edge, boundary - edge, color="black", lw=1, label="boundary")
    axis.set(
        xlabel="states (last token and second half), less what two prompts of one form need more",
        ylabel="words",
        ylim=(float(low[1]), float(high[1]) + 0.5),
    )
    axis.set_title("log likelihood ratio that the same is asked, in standard deviations", size=9)
    axis.legend(frameon=False, fontsize=8)
    file.parent.mkdir(exist_ok=True, parents=True)
    figure.savefig(file, metadata={"Date": None})


def told_intents(
    reader: QuestionReader, intents: IntentClassifier, cases: dict[str, list[Case]]
) -> dict[str, float]:
    """Return the share of probes whose intent is told right, by kind."""
    questions = [q for task in TASKS for q in make_probes(cases[task], tuple(RIGHT)).questions]
    texts = [Question(question.turns[-1].strip()) for question in questions]
    views = reader.read(texts)
    states = torch.stack([views[text][LAST] for text in texts])
    told = [INTENTS[intent] for intent in intents.of(states)]
    right: dict[str, list[bool]] = {kind: [] for kind in RIGHT}
    for question, intent in zip(questions, told, strict=True):
        right[question.kind].append(intent in RIGHT[question.kind])
    return {kind: sum(each) / len(each) for kind, each in right.items()}


@torch.no_grad()
def main() -> None:
    """Print the tables, and record them if that is wanted."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--records", type=int, nargs=2, default=(0, 100))
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    first, last = options.records
    cases = {task: load(find_task(task), options.data).cases[first:last] for task in TASKS}
    for place, model in enumerate(options.models):
        name, picture = Path(model).name, None if place else options.picture
        base, tokenizer = errata.load_base(model, "float32")
        reader = QuestionReader(BaseHead(errata.LM(base, tokenizer)))
        space, intents = reader.fit(FolioConfig().false_route)
        rows = {
            "folio-intents": [told_intents(reader, intents, cases)],
            "folio-signs": list(signs(reader, space, cases, picture)),
        }
        command = f"python benchmarks/same_question.py {name} --records {first} {last}"
        for table, lines in rows.items():
            mine = [{"on": name, **line, "model": name, "command": command} for line in lines]
            for line in mine:
                print(table, line, flush=True)
            if options.record:
                kept = [row for row in results.read(table) if row["on"] != name]
                results.write(table, [*kept, *mine])


if __name__ == "__main__":
    main()
