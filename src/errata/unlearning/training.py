"""`Unlearning`: trains a model to forget some passages and to keep others."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from errata.edit import REFUSAL
from errata.errors import ConfigError, UsageError, quoted, suggest
from errata.lm import LM
from errata.lm.encoding import Row
from errata.progress import OnProgress
from errata.solvers.descent import Descent, paired
from errata.storage.cache import fingerprint
from errata.unlearning.config import UnlearningConfig
from errata.unlearning.masks import Masks
from errata.unlearning.objectives import OBJECTIVES, Objective, kl, nll
from errata.unlearning.parameters import trained_of
from errata.unlearning.passages import Passage, check_apart, digest
from errata.unlearning.scored import Side
from errata.unlearning.subnetwork import Subnetwork
from errata.unlearning.trained import Trained

TRAINING = "unlearning"
STATE = "unlearning-state.pt"
"""The file from which an interrupted run goes on. Whoever has saved what was learned removes it."""


def objective_of(name: str, among: Mapping[str, Objective] = OBJECTIVES) -> Objective:
    """Return an objective.

    Raises:
        ConfigError: there is none of this name.
    """
    if name not in among:
        raise ConfigError(f"there is no way called {quoted(name)}.{suggest(name, among)}")
    return among[name]


def config_of(
    objective: str, given: Mapping[str, Any], among: Mapping[str, Objective] = OBJECTIVES
) -> UnlearningConfig:
    """Return an objective's settings, with those that are given.

    Raises:
        ConfigError: the objective or a setting is unknown or not valid.
    """
    return UnlearningConfig.from_dict({**objective_of(objective, among).own, **given})


def record_of(
    name: str,
    objective: Objective,
    settings: Mapping[str, Any],
    base: str,
    passages: Mapping[str, Sequence[Passage]],
    steps: int,
    seconds: float,
) -> dict[str, Any]:
    """Return what was asked for and done, ready for JSON.

    Args:
        name: of the objective.
        objective: what was minimised.
        settings: of the run.
        base: the base model's fingerprint.
        passages: what each set is for -> the passages, of which number and hash are kept.
        steps: of training.
        seconds: that it took.
    """
    hashes = {
        what: {"passages": len(part), "sha256": digest(part)} for what, part in passages.items()
    }
    return {
        "objective": name,
        "paper": objective.paper,
        "settings": dict(settings),
        "base": base,
        **hashes,
        "steps": steps,
        "seconds": round(seconds, 1),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


class Unlearning:
    """A run of unlearning.

    Args:
        lm: the model; it is changed.
        objective: how it forgets, see `OBJECTIVES`.
        config: the settings, see `config_of`.
        forget: what is to be forgotten.
        retain: what is to be kept.
        instead: what is to be said instead, one for each of `forget`; empty: a refusal.
        among: the objectives.

    Attributes:
        subnetwork: which weights are zero now, where that was learned (`trains=masks`).

    Raises:
        ConfigError: the objective is unknown, it cannot be had so, or there is no such layer.
        EditError: something is to be forgotten and kept.
        UsageError: the objective needs something to keep, or cannot forget documents.
        PromptTooLongError: a question with its answer does not fit the model's context.
    """

    def __init__(
        self,
        lm: LM,
        objective: str,
        config: UnlearningConfig,
        forget: Sequence[Passage],
        retain: Sequence[Passage] = (),
        instead: Sequence[Passage] = (),
        among: Mapping[str, Objective] = OBJECTIVES,
    ) -> None:
        self.name, self.objective, self.config = objective, objective_of(objective, among), config
        self.lm, self.forget, self.retain = lm, list(forget), list(retain)
        check_apart(forget, retain)
        if not forget:
            raise UsageError("there is nothing to forget.")
        if self.objective.retains and not retain:
            raise UsageError(
                f"{objective} also trains on what is to be kept; give some, of the same kind."
            )
        self.instead = list(instead)
        if self.objective.refuses and not (instead or all(each.prompt for each in forget)):
            raise UsageError(f"{objective} learns refusals to questions; documents ask none.")
        self._rows, self._kept = ([each.rows(lm) for each in part] for part in (forget, retain))
        refused = self.instead or [Passage(each.prompt, REFUSAL) for each in forget]
        self._refused = [each.rows(lm) for each in refused] if self.objective.refuses else []
        layers = lm.architecture.n_layers
        self.layer = min(layers - 1, max(2, layers * 7 // 32))
        if config.layer is not None:
            self.layer = config.layer
        if self.layer >= layers:
            raise ConfigError(f"layer is {self.layer}, and the model has {layers} blocks.")
        if self.objective.negates and config.trains == "masks":
            raise ConfigError(
                f"{objective} takes away what was learned; trains=masks learns nothing that could "
                "be taken away."
            )
        self.subnetwork: Subnetwork | None = None
        self._base = fingerprint(lm.model)

    def run(self, folder: Path, progress: OnProgress) -> PreTrainedModel:
        """Train; return the model, with what it has learned in its weights.

        Args:
            folder: where the state is kept, see `STATE`.
                A subnetwork is saved there.
            progress: called with (what, steps made, steps).

        Raises:
            ArtifactError: the state there is that of another run.
            StorageError: the folder cannot be written.
        """
        config = self.config
        trained = trained_of(self.lm, config, self.layer)
        steps = self._steps()
        descent = Descent(
            trained.parameters,
            config.learning_rate,
            len(steps),
            folder / STATE,
            self._identity(),
            config.save_every,
        )
        self.lm.model.eval()  # dropout would be no part of what is forgotten

        def loss(step: int) -> Tensor:
            trained.begin(step)
            return self._loss(trained, *steps[step]) + config.sparsity * trained.penalty()

        descent.run(loss, TRAINING, progress)
        if self.objective.negates:
            trained.scale(-config.scale)
        if isinstance(trained, Masks):
            self.subnetwork = trained.subnetwork
            self.subnetwork.save(folder)
        return trained.finish()

    def record(self, seconds: float) -> dict[str, Any]:
        """Return what was asked for and done, ready for JSON."""
        passages = {"forget": self.forget, "retain": self.retain}
        if self.instead:
            passages["instead"] = self.instead
        settings = {**self.config.to_dict(), "layer": self.layer}
        made = record_of(
            self.name, self.objective, settings, self._base, passages, len(self._steps()), seconds
        )
        if self.subnetwork is not None:
            made["zero"] = {"weights": self.subnetwork.size, "of": self.subnetwork.among}
        return made

    def _steps(self) -> list[tuple[list[int], list[int]]]:
        """Return, for each step, the passages to forget and those to keep, by their numbers."""
        kept = len(self.retain) if self.objective.retains else 0
        config = self.config
        return paired(len(self.forget), kept, config.batch, config.epochs, config.seed)

    def _loss(self, trained: Trained, forget: Sequence[int], retain: Sequence[int]) -> Tensor:
        config = self.config

        def side(rows: Sequence[Sequence[Row]], numbers: Sequence[int]) -> Side:
            return Side(self.lm, trained, [row for number in numbers for row in rows[number]])

        gone = side(self._rows, forget)
        if self.objective.loss is None:
            return self._steered(gone, side(self._kept, retain))
        kept = side(self._kept, retain) if self.objective.retains else None
        refused = side(self._refused, forget) if self.objective.refuses else None
        loss: Tensor = config.forget_weight * self.objective.loss(gone, refused, config)
        if kept is not None:
            loss = loss + config.retain_weight * (nll(kept) if config.retain == "nll" else kl(kept))
        return loss

    def _steered(self, gone: Side, kept: Side) -> Tensor:
        """Return RMU's loss: states of what is forgotten go to one random vector, others stay.

        Lengths are those of what is kept: what was steered by an earlier request is longer, and
        would be steered farther each time, and less and less would be held.
        """
        config, states, held = self.config, gone.states(self.layer), kept.states_before(self.layer)
        generator = torch.Generator().manual_seed(config.seed)
        direction = torch.rand(states.shape[-1], generator=generator).to(states.device)
        length = held.norm(dim=-1).mean()
        target = config.steering * length * direction / direction.norm()
        unit = length.square() / states.shape[-1]  # so that the weights mean the same in any model
        away = F.mse_loss(states, target.expand_as(states)) / unit
        stays = F.mse_loss(kept.states(self.layer), held) / unit
        loss: Tensor = config.forget_weight * away + config.retain_weight * stays
        return loss

    def _identity(self) -> str:
        """Return what tells this run from others."""
        parts = [self.name, self.config.to_dict(), self._base, digest(self.forget)]
        parts += [
            digest(each) for each in (self.retain, self.instead) if each or each is self.retain
        ]
        return json.dumps(parts, sort_keys=True)
