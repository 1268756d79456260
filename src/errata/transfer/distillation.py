"""`Distillation`: another model learns an edited model's corrections, and nothing else.

The teacher is asked each edit's prompt, and its rewordings; where it says the edit's answer, the
student learns that answer. *Sequences* (Kim & Rush, arXiv 1606.07947) are what it says freely,
and serve any student; *logits* (Hinton et al., arXiv 1503.02531) are its distribution over the
answer's tokens, alpha CE + (1 - alpha) T^2 KL(teacher_T || student_T), and want one vocabulary.
What the student says otherwise is held where it was: on text that a model writes itself, and on
prompts that are given to stay, by KL(before || now).

What departs: on neutral text the student is held to itself, not to the teacher. A teacher that is
another model has other things to say there, which are no corrections (`anchor=teacher` teaches
them all the same).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from errata.config import (
    Fraction,
    MethodConfig,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    Range,
)
from errata.edit import same_answer
from errata.errors import ConfigError, PromptTooLongError, UsageError
from errata.lm import LM
from errata.lm.background import background_texts
from errata.lm.encoding import Row
from errata.model import EditModel
from errata.progress import OnProgress
from errata.solvers.descent import Descent, paired
from errata.solvers.values import with_prefix
from errata.storage.cache import fingerprint
from errata.unlearning.objectives import kl, nll
from errata.unlearning.parameters import LowRank
from errata.unlearning.scored import Side, scored

STATE = "distillation-state.pt"
"""The file from which an interrupted run goes on. Whoever has saved what was learned removes it."""
ASKING, TRAINING = "asking the teacher", "teaching the student"
ASKED = 64
"""Prompts that the teacher is asked together."""
PREFIX_LENGTH = 10
"""Tokens of a text that is put before a prompt, and of one on which the student stays."""


@dataclass(frozen=True)
class DistillationConfig(MethodConfig):
    """Settings of distillation.

    Attributes:
        level: what is taught of an answer, see the module's docstring. None: its logits where both
            models have one vocabulary, else the sequence.
        alpha: weight of the answer's tokens against that of the teacher's distribution.
        temperature: T.
        prefixes: texts of the student's own making, behind each of which a prompt is asked, too.
        anchor: whose words are taught on neutral text.
        anchor_weight: of the divergence on neutral text and on prompts that are to stay.
        anchors: neutral texts.
        rank: of the low-rank matrices that are trained; they count twice.
        epochs: times that each answer is seen.
        batch: answers, and as many texts that stay, at a step.
        lr: AdamW's learning rate.
        save_every: steps between two saves, from which an interrupted run goes on.
    """

    method: ClassVar[str] = "distillation"

    level: Literal["logits", "sequence"] | None = None
    alpha: Fraction = 0.5
    temperature: Annotated[float, Range(0.1)] = 2.0
    prefixes: NonNegativeInt = 2
    anchor: Literal["student", "teacher"] = "student"
    anchor_weight: NonNegativeFloat = 1.0
    anchors: PositiveInt = 256
    rank: PositiveInt = 16
    epochs: PositiveInt = 20
    batch: PositiveInt = 8
    lr: NonNegativeFloat = 1e-3
    save_every: NonNegativeInt = 50


class Distillation:
    """A run of distillation.

    Args:
        teacher: the edited model.
        student: the model that learns; it is changed.
        config: the settings.
        rewordings: edit id -> prompts that ask what the edit's own asks.
        stay: prompts whose answers are to stay the student's.
        progress: called while the teacher is asked.

    Attributes:
        lessons: (prompt, answer) that the student learns.
        unsaid: how many prompts the teacher did not answer with the edit's target.

    Raises:
        ConfigError: logits are asked for, and the vocabularies differ.
        UsageError: the teacher has no edits, or answers none of their prompts with its target.
        PromptTooLongError: a prompt with its answer does not fit the student's context.
    """

    def __init__(
        self,
        teacher: EditModel,
        student: LM,
        config: DistillationConfig,
        rewordings: Mapping[str, Sequence[str]],
        stay: Sequence[str],
        progress: OnProgress,
    ) -> None:
        self.teacher, self.lm, self.config = teacher, student, config
        same = teacher.tokenizer.get_vocab() == student.tokenizer.get_vocab()
        if config.level == "logits" and not same:
            raise ConfigError(
                "logits can be taught to a model with the teacher's vocabulary only, and this "
                "student has another; leave level out, or set level=sequence."
            )
        self.level = config.level or ("logits" if same else "sequence")
        if not teacher.edits:
            raise UsageError("the teacher has no edits, so there is nothing to teach.")
        self._base = fingerprint(student.model)
        self.lessons, self.unsaid = self._asked(rewordings, progress)
        if not self.lessons:
            raise UsageError(
                "the teacher answers no prompt of its edits with the target, so there is nothing "
                "to teach; `errata eval` says what it answers."
            )
        prefixes = background_texts(
            student, config.prefixes, PREFIX_LENGTH, config.seed + 1, PREFIX_LENGTH
        )
        endings = student.endings(self.lessons)
        self._taught = [
            pair
            for (prompt, answer), ending in zip(self.lessons, endings, strict=True)
            for pair in self._rows(prompt, answer, ending, prefixes)
        ]
        self.stay = list(dict.fromkeys(stay))
        self._anchors = self._held()

    def run(self, folder: Path, progress: OnProgress) -> PreTrainedModel:
        """Teach; return the student, with what it has learned in its weights.

        Args:
            folder: where the state is kept, see `STATE`.
            progress: called with (what, steps made, steps).

        Raises:
            ArtifactError: the state there is that of another run.
            UsageError: PEFT is not installed.
        """
        config, steps = self.config, self._steps()
        trained = LowRank(self.lm, config.rank, config.seed)
        path, identity = folder / STATE, self._identity()
        descent = Descent(
            trained.parameters, config.lr, len(steps), path, identity, config.save_every
        )
        self.lm.model.eval()

        def loss(step: int) -> Tensor:
            taught, held = steps[step]
            rows, asked = zip(*(self._taught[i] for i in taught), strict=True)
            found = self._taught_loss(Side(self.lm, trained, rows), asked)
            stays = Side(self.lm, trained, [self._anchors[i] for i in held])
            held_loss = nll(stays) if config.anchor == "teacher" else kl(stays)
            return found + config.anchor_weight * held_loss

        descent.run(loss, TRAINING, progress)
        return trained.finish()

    def record(self, seconds: float) -> dict[str, Any]:
        """Return what was asked for and done, ready for JSON."""
        return {
            "teacher": self.teacher.lm.name,
            "edits": len(self.teacher.edits),
            "lessons": len(self.lessons),
            "unsaid": self.unsaid,
            "level": self.level,
            "settings": self.config.to_dict(),
            "student": self._base,
            "steps": len(self._steps()),
            "seconds": round(seconds, 1),
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }

    # what is taught

    def _asked(
        self, rewordings: Mapping[str, Sequence[str]], progress: OnProgress
    ) -> tuple[list[tuple[str, str]], int]:
        """Ask the teacher; return (prompt, answer) where it says the target; and how many else."""
        wanted = {
            prompt: edit.target
            for edit in self.teacher.edits
            for prompt in (edit.prompt, *rewordings.get(edit.id, ()))
        }
        prompts, lessons = list(wanted), list[tuple[str, str]]()
        for start in range(0, len(prompts), ASKED):
            progress(ASKING, start, len(prompts))
            part = prompts[start : start + ASKED]
            answers = zip(part, self.teacher.ask(part), strict=True)
            lessons += [
                (prompt, wanted[prompt])
                for prompt, answer in answers
                if same_answer(answer, wanted[prompt])
            ]
        return lessons, len(prompts) - len(lessons)

    def _rows(
        self, prompt: str, answer: str, ending: str | None, prefixes: Sequence[str]
    ) -> list[tuple[Row, Row]]:
        """Return (what the student reads, what the teacher is asked): without any prefix."""
        asked = self.lm.encode(prompt, answer, ending)
        rows = [asked]
        for prefix in prefixes:
            try:
                rows.append(self.lm.encode(with_prefix(prefix, prompt), answer, ending))
            except PromptTooLongError:
                continue
        return [(row, asked) for row in rows]

    def _held(self) -> list[Row]:
        """Return texts, and answers to prompts, that are to stay as they are."""
        config, lm = self.config, self.lm
        writer = self.teacher.lm if config.anchor == "teacher" else lm
        with self.teacher.disable_edits():
            texts = background_texts(writer, config.anchors, 2 * PREFIX_LENGTH, config.seed)
        tokens = [tuple(lm.encode_text(text)) for text in texts]
        rows = [Row(ids, 1, len(ids) - 1) for ids in tokens if len(ids) > 1]
        answers = lm.generate(self.stay) if self.stay else []
        pairs = [pair for pair in zip(self.stay, answers, strict=True) if pair[1].strip()]
        return rows + [
            lm.encode(*pair, ending) for pair, ending in zip(pairs, lm.endings(pairs), strict=True)
        ]

    def _taught_loss(self, side: Side, asked: Sequence[Row]) -> Tensor:
        """Return the loss on answers: by their tokens, and by the teacher's distribution."""
        if self.level == "sequence":
            return nll(side)
        config, student = self.config, side.now.logits
        heat = config.temperature
        with torch.no_grad():
            teacher = scored(self.teacher.lm, asked).logits.to(student.device)
        distance = F.kl_div(
            (student / heat).log_softmax(-1),
            (teacher / heat).log_softmax(-1),
            reduction="none",
            log_target=True,
        )
        return config.alpha * nll(side) + (1 - config.alpha) * heat**2 * distance.sum(-1).mean()

    def _steps(self) -> list[tuple[list[int], list[int]]]:
        """Return, for each step, which answers are taught and which texts stay, by number."""
        config, counts = self.config, (len(self._taught), len(self._anchors))
        return paired(*counts, config.batch, config.epochs, config.seed)

    def _identity(self) -> str:
        parts = [self._base, self.config.to_dict(), self.level, self.lessons, self.stay]
        text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
