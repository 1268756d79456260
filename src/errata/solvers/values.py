"""Which value makes the model say a new fact: solve for it at the last token of the subject. It
changes no weight.

ROME's optimisation (arXiv 2202.05262, section 3.1): a vector delta is added to what the value
matrix says at that token, and Adam lowers the target's loss, behind the bare prompt and behind
prefixes of the model's own making, while what the model thinks of "{subject} is a" holds it back:
mean NLL + `kl` * KL(P_delta || P_0) + `weight_decay` * |delta| / |v|^2, with |delta| <= `clamp` *
|v|, until the whole is below `stop_loss`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from errata.config import MethodConfig, check_choice, check_range
from errata.edit import Edit
from errata.errors import PromptTooLongError
from errata.lm import LM
from errata.lm.subject import PLACES, Mention, Place, columns_of, mention
from errata.lm.tail import Tail

KL_PROMPT = "{} is a"


@dataclass(frozen=True)
class ValueConfig(MethodConfig):
    """What every method that solves for values can be told.

    Attributes:
        token: where the fact is looked up, the subject's last token or ("last") the prompt's.
        steps: Adam steps per edit, at most.
        lr: Adam's learning rate.
        weight_decay: weight of |delta| / |v|^2.
        clamp: |delta| stays below this many |v|.
        kl: weight of the divergence at "{subject} is a".
        stop_loss: a value is found when its whole loss is below.
        prefixes: texts of the model's own making to put before the prompt, beside none.
        prefix_length: their tokens.
        background: texts of the model's own making that the second moment of the keys is taken
            over.
        corpus: a text file to take it over instead, one text a line.
        ridge: added to the second moment before dividing by it, as a share of its mean eigenvalue
            (see `moments.py`).
    """

    token: Place = "subject_last"
    steps: int = 20
    lr: float = 0.5
    weight_decay: float = 0.5
    clamp: float = 4.0
    kl: float = 0.0625
    stop_loss: float = 0.05
    prefixes: int = 20
    prefix_length: int = 10
    background: int = 2048
    corpus: str | None = None
    ridge: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("token", self.token, PLACES)
        for name in ("steps", "background", "prefix_length"):
            check_range(name, getattr(self, name), 1, math.inf)
        for name in ("lr", "weight_decay", "clamp", "kl", "stop_loss", "prefixes", "ridge"):
            check_range(name, getattr(self, name), 0, math.inf)


@dataclass(frozen=True)
class ValueProblem:
    """What a value is solved on.

    Attributes:
        answers: the prompt with its target and ending, first bare, then behind each prefix that
            fits the context.
        kl_prompt: "{subject} is a", where what the model would say should stay; None where that
            does not fit.
    """

    answers: list[Mention]
    kl_prompt: Mention | None

    @classmethod
    def of(
        cls, lm: LM, edit: Edit, prefixes: Sequence[str], at: Place = "subject_last"
    ) -> ValueProblem:
        """The lesson of an edit that has a subject; made without patches: answers end as the base
        model's do.
        """
        subject = edit.subject or ""
        ending = lm.ending_of(edit.prompt, edit.target)
        prompts = [behind(prefix, edit.prompt) for prefix in prefixes]
        answers = [mention(lm, edit.prompt, subject, edit.target, ending, at)]
        answers += _fitting(lm, prompts, subject, edit.target, ending, at)
        kl_prompt = _fitting(lm, [KL_PROMPT.format(subject)], subject, None, None, at)
        return cls(answers, kl_prompt[0] if kl_prompt else None)


@dataclass(frozen=True)
class Value:
    """A value found, and what was seen at the subject's last token on the way.

    Attributes:
        delta: (d_out,), what is to be added to the value matrix' output.
        keys: (answers, d_in), the value matrix' inputs behind each answer's prompt, the bare one
            first.
        values: (answers, d_out), its outputs W k + b without delta.
        losses: the whole loss before each step, and after the last.
    """

    delta: Tensor
    keys: Tensor
    values: Tensor
    losses: list[float]


def solve_value(
    lm: LM, layer: int, lesson: ValueProblem, config: ValueConfig, size: float | None = None
) -> Value:
    """Solve for a value at `layer`, on the model as it is.

    Args:
        size: |v|, the length that delta is measured by; None: that of the value behind the bare
            prompt.
    """
    mentions = [*lesson.answers, *([lesson.kl_prompt] if lesson.kl_prompt else [])]
    batch = lm.batch([each.row for each in mentions])
    tail = Tail(lm, layer, batch)
    before, device = tail.values.float(), tail.values.device
    lines, places = (
        torch.arange(len(mentions), device=device),
        columns_of(batch, mentions).to(device),
    )
    at_subject = torch.zeros(before.shape[:2], device=device)
    at_subject[lines, places] = 1.0
    answers = len(lesson.answers)
    keys, values = tail.keys[lines, places][:answers].float(), before[lines, places][:answers]
    size = float(values[0].norm()) if size is None else size

    rows, columns, labels = batch.label_positions(batch.target_mask | batch.ending_mask)
    share = (
        1 / torch.bincount(rows, minlength=answers)[rows] / answers
    )  # mean over tokens, then over rows
    if lesson.kl_prompt:
        rows, columns = (
            torch.cat([rows, rows.new_tensor([answers])]),
            torch.cat([columns, columns.new_tensor([-1])]),
        )
    columns = (
        columns % batch.input_ids.shape[1]
    )  # rows are padded on the left, so the kl_prompt ends in the last column

    def loss_of(delta: Tensor, kl_prompt: Tensor | None) -> tuple[Tensor, Tensor | None]:
        logits = tail.logits(before + at_subject[..., None] * delta, rows, columns)
        said = logits[: len(labels)]
        loss = (
            F.cross_entropy(said, labels.to(said.device), reduction="none") * share.to(said.device)
        ).sum()
        if lesson.kl_prompt:
            now = logits[-1].log_softmax(-1)
            kl_prompt = now.detach() if kl_prompt is None else kl_prompt
            loss = loss + config.kl * (now.exp() * (now - kl_prompt)).sum()
        return loss + config.weight_decay * delta.norm().to(loss.device) / size**2, kl_prompt

    delta = torch.zeros(before.shape[-1], device=device, requires_grad=True)
    adam = torch.optim.Adam([delta], lr=config.lr)
    kl_prompt: Tensor | None = None
    losses: list[float] = []
    for _ in range(config.steps):
        loss, kl_prompt = loss_of(delta, kl_prompt)
        losses.append(loss.item())
        if losses[-1] < config.stop_loss:
            break
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
        with torch.no_grad():
            delta *= (config.clamp * size / delta.norm().clamp(min=1e-12)).clamp(max=1.0)
    else:
        with torch.no_grad():
            losses.append(loss_of(delta, kl_prompt)[0].item())
    return Value(delta.detach(), keys, values, losses)


def behind(prefix: str, prompt: str) -> str:
    """The prompt behind a prefix, as a sentence of its own."""
    prefix = prefix.strip()
    if not prefix:
        return prompt
    return f"{prefix}{'' if prefix[-1] in '.?!。' else '.'} {prompt}"


def _fitting(
    lm: LM, prompts: Sequence[str], subject: str, target: str | None, ending: str | None, at: Place
) -> list[Mention]:
    """Those of the prompts that fit the model's context."""
    found = []
    for prompt in prompts:
        try:
            found.append(mention(lm, prompt, subject, target, ending, at))
        except PromptTooLongError:
            continue
    return found
