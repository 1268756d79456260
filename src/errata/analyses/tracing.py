"""Causal tracing: finds the hidden states that carry a fact (ROME, arXiv 2202.05262, section 2).

The subject's embeddings are blurred until the model forgets the answer; then one state at a time,
of one token at one block, is restored. How much of the answer's probability comes back is that
state's indirect effect. The same is done with the outputs of the blocks' MLPs, over a window of
blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from errata.analyses.context import AnalysisContext
from errata.bench.charts import new_figure
from errata.errors import UsageError
from errata.lm import LM
from errata.lm.hooks import replace_output
from errata.lm.subject import subject_token

NOISES = 10
"""Blurred copies of a prompt; the probability is their mean."""
SPREAD = 3.0
"""The noise, in standard deviations of the embeddings."""
WINDOW = 0.25
"""Of the blocks, around the one that is put back, whose MLPs are."""
FACTS = 50
PARTS = (
    "first subject token",
    "last subject token",
    "first token after",
    "tokens between",
    "last token",
)


@torch.no_grad()
def trace(lm: LM, prompt: str, subject: str, answer: str, seed: int = 0) -> dict[str, Any]:
    """Measure the indirect effects of a prompt's states.

    Returns:
        "tokens" of the prompt, "subject" (first and last place), "clean" and "blurred": the
        answer's probability; "states" and "mlps": [token][block] indirect effects.

    Raises:
        UsageError: the prompt does not name the subject.
    """
    ids = lm.encode_prompt(prompt)
    last = subject_token(lm, prompt, subject)
    before = prompt[: prompt.index(subject)].rstrip() if subject in prompt else ""
    first = min(
        last,
        max(
            0,
            len(lm.encode_prompt(before))
            if before.strip()
            else int(ids[0] in lm.tokenizer.all_special_ids),
        ),
    )
    wanted = lm.encode(prompt, answer).ids[len(ids)]
    batch = torch.tensor([ids] * (NOISES + 1), device=lm.device)
    embedding = lm.model.get_input_embeddings()
    spread = SPREAD * float(embedding.weight.float().std())
    noise = torch.randn(
        NOISES,
        last - first + 1,
        embedding.weight.shape[1],
        generator=torch.Generator().manual_seed(seed),
    )
    noise = (spread * noise).to(embedding.weight)

    def blurred(embedded: Tensor) -> Tensor:
        embedded = embedded.clone()
        embedded[1:, first : last + 1] += noise
        return embedded

    def probability() -> Tensor:
        logits: Tensor = lm.model(batch, use_cache=False).logits[:, -1]
        return logits.float().softmax(-1)[:, wanted]

    with replace_output(embedding, blurred):
        both = probability()
        effects = {}
        blocks = [
            lm.architecture.block(lm.model, layer) for layer in range(lm.architecture.n_layers)
        ]
        mlps = [
            lm.architecture.value_module(lm.model, layer)
            for layer in range(lm.architecture.n_layers)
        ]
        near = max(1, round(WINDOW * len(blocks)))
        for name, modules, reach in (("states", blocks, 1), ("mlps", mlps, near)):
            effects[name] = [
                [
                    float(
                        _put_back(modules, _around(layer, reach, len(modules)), token, probability)
                        - both[1:].mean()
                    )
                    for layer in range(len(modules))
                ]
                for token in range(len(ids))
            ]
    tokens = [str(lm.tokenizer.decode([token])) for token in ids]
    return {
        "tokens": tokens,
        "subject": [first, last],
        "clean": float(both[0]),
        "blurred": float(both[1:].mean()),
        **effects,
    }


def _around(layer: int, reach: int, count: int) -> range:
    start = max(0, min(layer - reach // 2, count - reach))
    return range(start, min(count, start + reach))


def _put_back(
    modules: Sequence[nn.Module], layers: Sequence[int], token: int, probability: Any
) -> Tensor:
    """The answer's mean probability with the modules' clean outputs restored at one token."""

    def clean(output: Tensor) -> Tensor:
        rows = output.reshape(NOISES + 1, -1, output.shape[-1]).clone()
        rows[1:, token] = rows[0, token]
        return rows.reshape(output.shape)

    with ExitStack() as stack:
        for layer in layers:
            stack.enter_context(replace_output(modules[layer], clean))
        found: Tensor = probability()[1:].mean()
    return found


def find(context: AnalysisContext) -> dict[str, Any]:
    """Average the indirect effects by part of the prompt and block, over facts the model knows.

    Raises:
        UsageError: no case names its subject, or the model knows none of them.
    """
    lm = _lm(context)
    named = [case.edit for case in context.cases if case.edit.subject]
    answers = lm.generate([edit.prompt for edit in named], max_new_tokens=8) if named else []
    known = [(edit, answer) for edit, answer in zip(named, answers, strict=True) if answer][:FACTS]
    if not known:
        raise UsageError(
            "causal tracing needs edits that name their subject, "
            "and prompts that the model answers."
        )
    sums = {name: torch.zeros(len(PARTS), lm.architecture.n_layers) for name in ("states", "mlps")}
    counts = torch.zeros(len(PARTS))
    clean, blurred = [], []
    example: dict[str, Any] = {}
    for number, (edit, answer) in enumerate(known, start=1):
        context.progress("tracing", number, len(known))
        found = trace(lm, edit.prompt, str(edit.subject), answer, seed=number)
        example = example or found
        clean.append(found["clean"])
        blurred.append(found["blurred"])
        places = list(_parts(found))
        for place, part in enumerate(places):
            if part is not None:
                counts[part] += 1
                for name in sums:
                    sums[name][part] += torch.tensor(found[name][place])
    seen = [part for part in range(len(PARTS)) if counts[part]]
    return {
        "facts": len(known),
        "clean": sum(clean) / len(clean),
        "blurred": sum(blurred) / len(blurred),
        "parts": [PARTS[part] for part in seen],
        **{name: [(sums[name][part] / counts[part]).tolist() for part in seen] for name in sums},
        "example": example,
    }


def _lm(context: AnalysisContext) -> LM:
    base, tokenizer = context.base()
    return LM(base, tokenizer)


def _parts(found: dict[str, Any]) -> Iterator[int | None]:
    """The index in `PARTS` of each token of a prompt; None before the subject."""
    first, last = found["subject"]
    end = len(found["tokens"]) - 1
    for place in range(end + 1):
        if place == end:
            yield 4
        elif place < first:
            yield None
        elif place == last:
            yield 1
        elif place < last:
            yield 0 if place == first else None
        else:
            yield 2 if place == last + 1 else 3


def draw(found: dict[str, Any]) -> Any:
    """Draw two heat maps: states, and MLPs in a window."""
    figure, axes = new_figure(10, 3.4, columns=2)
    top = max(max(map(max, found[name])) for name in ("states", "mlps"))
    for axis, (name, title) in zip(
        axes[0], (("states", "one state"), ("mlps", "MLPs of a window")), strict=True
    ):
        shown = axis.imshow(found[name], vmin=0, vmax=top, cmap="cividis", aspect="auto")
        axis.set_yticks(range(len(found["parts"])), found["parts"])
        axis.set_xlabel("block")
        axis.set_title(f"put back: {title}", fontsize=11)
        figure.colorbar(shown, ax=axis, label="indirect effect")
    figure.suptitle(
        f"{found['facts']} facts: probability {found['clean']:.2f}, blurred {found['blurred']:.2f}",
        fontsize=11,
    )
    return figure
