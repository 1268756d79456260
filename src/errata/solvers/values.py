"""Solve for a value that makes a model answer anew: ROME's optimisation. No weight changes.

ROME (Meng et al., arXiv 2202.05262, section 3.1) adds a vector delta to the output of a value
matrix at the last token of the subject. Adam minimises, over the prompt alone and after
self-generated prefixes, mean NLL(target) + `kl` * KL(P_delta || P_0) + `weight_decay` * |delta| /
|v|^2, subject to |delta| <= `clamp` * |v|, until the loss is below `stop_loss`. The divergence is
taken at the prompt "{subject} is a", so that the model's idea of the subject is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from errata.config import MethodConfig, NonNegativeFloat, NonNegativeInt, PositiveInt
from errata.edit import Edit
from errata.errors import PromptTooLongError
from errata.lm import LM
from errata.lm.subject import Mention, Place, columns_of, mention
from errata.lm.suffix_tail import SuffixTail

KL_PROMPT = "{} is a"


@dataclass(frozen=True)
class ValueConfig(MethodConfig):
    """Settings of every method that solves for values.

    Attributes:
        token: where the fact is looked up, the subject's last token or ("last") the prompt's.
        steps: Adam steps per edit, at most.
        lr: Adam's learning rate.
        weight_decay: weight of |delta| / |v|^2.
        clamp: the largest |delta|, in multiples of |v|.
        kl: weight of the divergence at "{subject} is a".
        stop_loss: Adam stops when the whole loss is below this.
        prefixes: self-generated texts put before the prompt, in addition to the bare prompt.
        prefix_length: tokens of a prefix.
        background: self-generated texts for the second moment of the keys.
        corpus: a text file for the second moment instead, one text a line.
        ridge: added to the second moment before it is inverted, as a share of its mean eigenvalue
            (see `moments.py`).
    """

    token: Place = "subject_last"
    steps: PositiveInt = 20
    lr: NonNegativeFloat = 0.5
    weight_decay: NonNegativeFloat = 0.5
    clamp: NonNegativeFloat = 4.0
    kl: NonNegativeFloat = 0.0625
    stop_loss: NonNegativeFloat = 0.05
    prefixes: NonNegativeInt = 20
    prefix_length: PositiveInt = 10
    background: PositiveInt = 2048
    corpus: str | None = None
    ridge: NonNegativeFloat = 1e-4


@dataclass(frozen=True)
class ValueProblem:
    """The prompts that the value of one edit is solved on.

    Attributes:
        prompts: the prompt with its target and ending; first bare, then after each prefix that
            fits the model's context.
        kl_prompt: "{subject} is a", where the model's predictions should stay; None where it does
            not fit.
    """

    prompts: list[Mention]
    kl_prompt: Mention | None

    @classmethod
    def of(
        cls, lm: LM, edit: Edit, prefixes: Sequence[str], at: Place = "subject_last"
    ) -> ValueProblem:
        """Encode the problem of an edit that has a subject.

        The model must carry no patch, since the answer should end as the base model's do.
        """
        subject = edit.subject or ""
        ending = lm.ending_of(edit.prompt, edit.target)
        prefixed = [with_prefix(prefix, edit.prompt) for prefix in prefixes]
        bare = mention(lm, edit.prompt, subject, edit.target, ending, at)
        kl_prompt = _fitting(lm, [KL_PROMPT.format(subject)], subject, None, None, at)
        return cls(
            [bare, *_fitting(lm, prefixed, subject, edit.target, ending, at)],
            kl_prompt[0] if kl_prompt else None,
        )


@dataclass(frozen=True)
class ValueSolution:
    """The value of one edit, with keys and values at the subject's last token.

    Attributes:
        delta: (d_out,), to be added to the value matrix's output.
        keys: (prompts, d_in), the value matrix's inputs in each prompt, the bare one first.
        values: (prompts, d_out), its outputs W k + b without delta.
        losses: the whole loss before each step, and after the last.
    """

    delta: Tensor
    keys: Tensor
    values: Tensor
    losses: list[float]


def solve_value(
    lm: LM, layer: int, problem: ValueProblem, config: ValueConfig, size: float | None = None
) -> ValueSolution:
    """Solve for a value at `layer`, on the model with the patches it carries.

    Args:
        size: |v|, the length that delta is measured by; None: the length of the value in the bare
            prompt.
    """
    objective = _Objective(lm, layer, problem, config, size)
    delta = torch.zeros_like(objective.values[0], requires_grad=True)
    adam = torch.optim.Adam([delta], lr=config.lr)
    losses: list[float] = []
    for _ in range(config.steps):
        loss = objective.loss(delta)
        losses.append(loss.item())
        if losses[-1] < config.stop_loss:
            break
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
        with torch.no_grad():
            longest = config.clamp * objective.size
            delta *= (longest / delta.norm().clamp(min=1e-12)).clamp(max=1.0)
    else:
        with torch.no_grad():
            losses.append(objective.loss(delta).item())
    return ValueSolution(delta.detach(), objective.keys, objective.values, losses)


class _Objective:
    """ROME's loss as a function of delta; what does not depend on delta is computed once.

    Attributes:
        keys: (prompts, d_in), the value matrix's inputs where delta is added.
        values: (prompts, d_out), its outputs there.
        size: |v|.
    """

    def __init__(
        self, lm: LM, layer: int, problem: ValueProblem, config: ValueConfig, size: float | None
    ) -> None:
        self._config, self._kl_prompt = config, problem.kl_prompt
        count, mentions = len(problem.prompts), list(problem.prompts)
        if problem.kl_prompt:
            mentions.append(problem.kl_prompt)
        batch = lm.batch([each.row for each in mentions])
        subjects = columns_of(batch, mentions)
        self._tail = SuffixTail(lm, layer, batch, int(subjects.min()))
        batch = self._tail.batch
        self._outputs = self._tail.values.float()
        device = self._outputs.device
        places = torch.arange(len(mentions), device=device)
        subject = places, (subjects - self._tail.first).to(device)
        self._at_subject = torch.zeros(self._outputs.shape[:2], device=device)
        self._at_subject[subject] = 1.0
        self.keys = self._tail.keys[subject][:count].float()
        self.values = self._outputs[subject][:count]
        self.size = float(self.values[0].norm()) if size is None else size

        rows, columns, self._labels = batch.label_positions(batch.target_mask | batch.ending_mask)
        # the mean over the tokens of a prompt, then over the prompts
        self._shares = 1 / torch.bincount(rows, minlength=count)[rows] / count
        if problem.kl_prompt:  # padded on the left, it ends in the last column
            rows = torch.cat([rows, rows.new_tensor([count])])
            columns = torch.cat([columns, columns.new_tensor([batch.input_ids.shape[1] - 1])])
        self._rows, self._columns = rows, columns
        self._kl_reference: Tensor | None = None

    def loss(self, delta: Tensor) -> Tensor:
        """Return the whole loss, a scalar.

        The first call, with delta = 0, sets the reference of the KL divergence.
        """
        logits = self._tail.logits(
            self._outputs + self._at_subject[..., None] * delta, self._rows, self._columns
        )
        answer = logits[: len(self._labels)]
        nll = F.cross_entropy(answer, self._labels.to(answer.device), reduction="none")
        loss = (nll * self._shares.to(answer.device)).sum()
        if self._kl_prompt:
            log_probs = logits[-1].log_softmax(-1)
            if self._kl_reference is None:
                self._kl_reference = log_probs.detach()
            divergence = (log_probs.exp() * (log_probs - self._kl_reference)).sum()
            loss = loss + self._config.kl * divergence
        decay = self._config.weight_decay * delta.norm().to(loss.device) / self.size**2
        total: Tensor = loss + decay
        return total


def with_prefix(prefix: str, prompt: str) -> str:
    """Put a prefix before a prompt, as a sentence of its own."""
    prefix = prefix.strip()
    if not prefix:
        return prompt
    return f"{prefix}{'' if prefix[-1] in '.?!。' else '.'} {prompt}"


def _fitting(
    lm: LM, prompts: Sequence[str], subject: str, target: str | None, ending: str | None, at: Place
) -> list[Mention]:
    """Encode those of the prompts that fit the model's context."""
    mentions = []
    for prompt in prompts:
        try:
            mentions.append(mention(lm, prompt, subject, target, ending, at))
        except PromptTooLongError:
            continue
    return mentions
