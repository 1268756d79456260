"""The logit lens: what each block's state predicts, before and after an edit.

nostalgebraist, "interpreting GPT: the logit lens", 2020. Each block's state at the prompt's last
token goes through the final norm and the head. It shows where the old answer arises, and where an
edit overrules it.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from errata.analyses.context import AnalysisContext
from errata.bench.charts import new_figure
from errata.errors import UsageError
from errata.lm import LM
from errata.lm.hooks import capture_output
from errata.model import EditModel

SHOWN = 50
"""Edits, at most."""


@torch.no_grad()
def lens(lm: LM, prompt: str) -> Tensor:
    """Next-token log-probabilities of blocks and model: (blocks + 1, vocabulary)."""
    batch = lm.prompt_batch([prompt])
    architecture = lm.architecture
    blocks = [architecture.block(lm.model, layer) for layer in range(architecture.n_layers)]
    with ExitStack() as stack:
        seen = [stack.enter_context(capture_output(block)) for block in blocks]
        logits = lm.run(batch).logits[0, -1]
    norm = final_norm(lm)
    head = architecture.head_module(lm.model)
    states = torch.stack([found[0].reshape(-1, found[0].shape[-1])[-1] for found in seen])
    read = torch.cat(
        [head.forward(norm(states[:-1].to(lm.model.dtype))), logits[None].to(lm.model.dtype)]
    )
    return read.float().log_softmax(-1)


def final_norm(lm: LM) -> Any:
    """Find the norm between the last block and the head.

    Raises:
        UsageError: between the last block and the head lies something other than one module.
    """
    body = lm.architecture.body_module(lm.model)
    last = [module for module in body.children() if "norm" in type(module).__name__.lower()]
    if len(last) != 1:
        raise UsageError(
            "this model has no single norm between its blocks and its head; "
            "the logit lens cannot read it."
        )
    return last[0]


def find(context: AnalysisContext) -> dict[str, Any]:
    """Measure the old and the new answer's probability after each block, base and edited."""
    config = context.config()
    cases = list(context.cases)[:SHOWN]
    model: EditModel = context.edited(config)
    found: dict[str, list[Tensor]] = {
        f"{who}, {what}": [] for who in ("base", "edited") for what in ("old", "new")
    }
    with model.disable_edits():
        old = model.lm.generate([case.edit.prompt for case in cases], max_new_tokens=8)
    for number, (case, answer) in enumerate(zip(cases, old, strict=True), start=1):
        context.progress("reading", number, len(cases))
        prompt = case.edit.prompt
        length = len(model.lm.encode_prompt(prompt))
        tokens = {
            what: model.lm.encode(prompt, text or ".").ids[length]
            for what, text in (("old", answer), ("new", case.edit.target))
        }
        with model.disable_edits():
            base = lens(model.lm, prompt).exp()
        edited = lens(model.lm, prompt).exp()
        for what, token in tokens.items():
            found[f"base, {what}"].append(base[:, token].cpu())
            found[f"edited, {what}"].append(edited[:, token].cpu())
    return {
        "facts": len(cases),
        "method": config.method,
        **{name: torch.stack(rows).mean(0).tolist() for name, rows in found.items()},
    }


def draw(found: dict[str, Any]) -> Any:
    """Draw the old and the new answer's probability, block by block."""
    figure, axes = new_figure(9, 3.4, columns=2)
    for axis, what in zip(axes[0], ("old", "new"), strict=True):
        for who, colour, marker in (("base", "#0072b2", "o"), ("edited", "#d55e00", "s")):
            values = found[f"{who}, {what}"]
            axis.plot(
                range(len(values)), values, color=colour, marker=marker, markersize=4, label=who
            )
        axis.set_xticks(range(len(values)), [*map(str, range(len(values) - 1)), "out"])
        axis.set_ylim(-0.03, 1.03)
        axis.set_xlabel("block")
        axis.set_ylabel("probability")
        axis.set_title(f"the {what} answer's first token", fontsize=11)
        axis.legend(fontsize=8)
    return figure
