"""Times the prompt's and a token's forward pass as the stream grows: WISE, figures 6 and 13.

Medians of ten rounds, edited and base model by turns, so that whatever else the machine does falls
on both.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from command import run

import errata
from errata.analyses.context import AnalysisContext
from errata.bench.charts import new_figure
from errata.lm.cache import cache_in
from errata.model import EditModel
from errata.stream import edit_stream

ROUNDS, TOKENS = 10, 16


@torch.no_grad()
def passes(model: EditModel, prompts: Sequence[str]) -> tuple[float, float]:
    """Time (the prompt's pass, a token's pass as the mean of sixteen) in seconds."""
    batch = model.lm.prompt_batch(prompts)
    clock = time.perf_counter if model.lm.device.type != "cpu" else time.process_time

    def timed(**inputs: Any) -> tuple[Any, float]:
        began = clock()
        out = model.lm.model(**inputs, use_cache=True)
        if model.lm.device.type == "cuda":
            torch.cuda.synchronize()
        return out, clock() - began

    mask = batch.attention_mask
    out, first = timed(
        input_ids=batch.input_ids, attention_mask=mask, position_ids=batch.position_ids
    )
    position, later = batch.position_ids[:, -1:], 0.0
    for _ in range(TOKENS):
        token, position = out.logits[:, -1:].argmax(-1), position + 1
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        cache = {model.lm.cache_name: cache_in(out)}
        out, seconds = timed(input_ids=token, attention_mask=mask, position_ids=position, **cache)
        later += seconds
    return first, later / TOKENS


def find(context: AnalysisContext) -> dict[str, Any]:
    """Time edited and base model after several numbers of edits, on edited and other prompts."""
    base, tokenizer = context.base()
    model = errata.get_edit_model(base, context.config(), tokenizer)
    cases = list(context.cases)
    sizes = sorted({max(1, len(cases) // part) for part in (100, 10, 3, 1)})
    asked = {
        "edited prompts": [case.edit.prompt for case in cases[:8]],
        "other prompts": [probe.prompt for case in cases for probe in case.locality][:8],
    }
    found: dict[str, Any] = {"method": context.config().method, "edits": sizes, "asked": {}}
    for number, edits in enumerate(sizes, start=1):
        context.progress("timing", number, len(sizes))
        edit_stream(model, [case.edit for case in cases[:edits]], check=False)
        for name, prompts in asked.items():
            if not prompts:
                continue
            took: dict[str, list[tuple[float, float]]] = {"base": [], "edited": []}
            for round_ in range(ROUNDS + 1):
                with model.disable_edits():
                    alone = passes(model, prompts)
                edited = passes(model, prompts)
                if round_:  # the first round warms up
                    took["base"].append(alone)
                    took["edited"].append(edited)
            medians = {
                who: [statistics.median(part) for part in zip(*some, strict=True)]
                for who, some in took.items()
            }
            kept = found["asked"].setdefault(
                name, {"prompt": [], "token": [], "slower prompt": [], "slower token": []}
            )
            for place, part in enumerate(("prompt", "token")):
                kept[part].append(medians["edited"][place])
                kept[f"slower {part}"].append(medians["edited"][place] / medians["base"][place] - 1)
    return found


def draw(found: dict[str, Any]) -> Any:
    """Draw how much slower than the base model it is, over the edits."""
    figure, axes = new_figure(9, 3.4, columns=2)
    for axis, part in zip(axes[0], ("prompt", "token"), strict=True):
        for (name, said), colour, marker in zip(
            found["asked"].items(), ("#0072b2", "#d55e00"), "os", strict=False
        ):
            axis.plot(
                found["edits"],
                [100 * share for share in said[f"slower {part}"]],
                color=colour,
                marker=marker,
                label=name,
            )
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set_title(f"a {part}'s pass: % slower than the base model", fontsize=11)
        axis.set_xlabel("edits")
        axis.legend(fontsize=8)
    return figure


if __name__ == "__main__":
    run(find, draw)
