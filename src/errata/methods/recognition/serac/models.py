"""SERAC's two models: what tells whether a prompt is in an edit's scope, and what answers it then.
Each is built from the host, or stands on a small model that is named. They are trained by
`serac.py`, and know no edit.
"""

from __future__ import annotations

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from errata.errors import ConfigError
from errata.lm import LM
from errata.lm.encoding import Batch, in_batches
from errata.lm.hooks import add_to_output, capture_output
from errata.methods.recognition.serac.counterfactual import CounterfactualPatch, adapter_output
from errata.methods.recognition.serac.stand_in import StandIn
from errata.patches.context import ContextFor, ContextPatch
from errata.patches.routed import last_token

BATCH = 32
"""Prompts that are read together."""


class HostReader:
    """What the host's own states say of prompts: those of one block, at the last token and on
    average, each of length 1.

    Args:
        lm: the base model, without patches whenever it is asked.
        layer: the block.
    """

    def __init__(self, lm: LM, layer: int) -> None:
        self.lm = lm
        self.block = lm.architecture.block(lm.model, layer)
        self.width = 2 * lm.architecture.hidden_size

    @torch.no_grad()
    def read(self, prompts: Sequence[str]) -> Tensor:
        """(prompts, width)."""

        def states(part: list[str]) -> list[Tensor]:
            batch = self.lm.prompt_batch(part)
            with capture_output(self.block) as seen:
                self.lm.run(batch, use_cache=False)
            mask = batch.prompt_mask.to(seen[0].device)
            return list(_pooled(seen[0].reshape(*mask.shape, -1), mask).to(self.lm.device))

        return torch.stack(in_batches(prompts, states, BATCH, size=len))


class EncoderReader:
    """What a named encoder says of prompts: its last states, at the last token and on average, each
    of length 1.

    Args:
        name: a folder or a hub name.
        device: where it is to run.

    Raises:
        ConfigError: there is no such model.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        from transformers import AutoModel, AutoTokenizer

        with _named("classifier", name):
            self.model = (
                AutoModel.from_pretrained(name, trust_remote_code=False)
                .float()
                .eval()
                .requires_grad_(False)
                .to(device)
            )
            self.tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        self.device = device
        self.width = 2 * int(self.model.config.hidden_size)

    @torch.no_grad()
    def read(self, prompts: Sequence[str]) -> Tensor:
        """(prompts, width)."""

        def states(part: list[str]) -> list[Tensor]:
            rows = [self.tokenizer(prompt, truncation=True)["input_ids"] or [0] for prompt in part]
            wide = max(map(len, rows))
            ids = torch.tensor([row + [0] * (wide - len(row)) for row in rows], device=self.device)
            mask = torch.tensor(
                [[1] * len(row) + [0] * (wide - len(row)) for row in rows], device=self.device
            )
            found = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
            return list(_pooled(found, mask.bool()))

        return torch.stack(in_batches(prompts, states, BATCH, size=len))


class Scope(nn.Module):
    """The classifier's trained part: what is read of a prompt -> its embedding, and how sharp the
    edge of a scope is.

    Args:
        features: numbers that are read of a prompt.
        width: of the embedding.
        seed: the weights (width, features) are drawn with it.
    """

    def __init__(self, features: int, width: int, seed: int) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(width, features, generator=draw) / math.sqrt(width))
        self.log_sharpness = nn.Parameter(torch.zeros(()))

    def forward(self, features: Tensor) -> Tensor:
        """(n, features) -> (n, width)."""
        return F.linear(features, self.weight)

    def log_similarity(self, distances: Tensor) -> Tensor:
        """log of exp(-s d^2), of distances d."""
        return -self.log_sharpness.exp() * distances.square()

    def loss(self, edit: Tensor, inside: Tensor, outside: Tensor) -> Tensor:
        """Binary cross-entropy of similarities with an edit (features,), of prompts (n, features)
        in its scope or not.
        """
        near, far = (
            self.log_similarity((self(rows) - self(edit)).norm(dim=-1))
            for rows in (inside, outside)
        )
        return -near.mean() - torch.log(-torch.expm1(far.clamp(max=-1e-6))).mean()


class Counterfactual(ABC):
    """Answers prompts in scope. `parameters` is what is trained of it, by name."""

    parameters: dict[str, nn.Parameter]

    @abstractmethod
    def logits(self, batch: Batch) -> Tensor:
        """(batch, width, vocabulary); gradients flow into the parameters."""

    @abstractmethod
    def patch(self, context_for: ContextFor | None) -> ContextPatch:
        """What lets it answer prompts that get a context."""


class AdaptedHost(Counterfactual):
    """The host behind low-rank adapters on every block's value matrix; B is zero at first, so that
    it begins as the host.

    Args:
        lm: the host.
        rank: of the adapters.
        seed: A is drawn with it.
    """

    def __init__(self, lm: LM, rank: int, seed: int) -> None:
        self.lm = lm
        self.adapters: dict[str, tuple[nn.Parameter, nn.Parameter]] = {}
        places, draw = lm.architecture, torch.Generator().manual_seed(seed)
        for layer in range(places.n_layers):
            down = torch.randn(rank, places.d_in, generator=draw) / math.sqrt(places.d_in)
            up = torch.zeros(places.d_out, rank)
            device = next(places.value_module(lm.model, layer).parameters()).device
            self.adapters[places.value_path(layer)] = (
                nn.Parameter(down.to(device)),
                nn.Parameter(up.to(device)),
            )
        sides = {"down": 0, "up": 1}
        self.parameters = {
            f"{path}.{side}": pair[i]
            for path, pair in self.adapters.items()
            for side, i in sides.items()
        }

    def logits(self, batch: Batch) -> Tensor:
        """The adapted host's."""

        def adapted(adapter: tuple[Tensor, Tensor]) -> Any:
            return lambda keys: adapter_output(adapter, keys)

        with contextlib.ExitStack() as stack:
            for path, adapter in self.adapters.items():
                stack.enter_context(
                    add_to_output(self.lm.model.get_submodule(path), adapted(adapter))
                )
            logits: Tensor = self.lm.run(batch, use_cache=False).logits
            return logits

    def patch(self, context_for: ContextFor | None) -> ContextPatch:
        """Contexts and adapters, in the rows in scope."""
        return CounterfactualPatch(self.adapters, context_for)


class SmallModel(Counterfactual):
    """A small model that is named; all of it is trained.

    Args:
        lm: the host.
        name: a folder or a hub name.

    Raises:
        ConfigError: there is no such model, or it has another vocabulary.
    """

    def __init__(self, lm: LM, name: str) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        with _named("counterfactual", name):
            model = (
                AutoModelForCausalLM.from_pretrained(name, trust_remote_code=False)
                .float()
                .eval()
                .to(lm.device)
            )
            vocabulary = AutoTokenizer.from_pretrained(name, trust_remote_code=False).get_vocab()
        if vocabulary != lm.tokenizer.get_vocab():
            raise ConfigError(
                f"counterfactual is {name!r}, whose vocabulary is another than the edited model's; name a small model "
                "of the same family, or leave the setting out."
            )
        self.model = model
        self.parameters = dict(model.named_parameters())

    def logits(self, batch: Batch) -> Tensor:
        """The small model's."""
        logits: Tensor = self.model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
        ).logits
        return logits

    def patch(self, context_for: ContextFor | None) -> ContextPatch:
        """The small model's answers, in the rows in scope."""
        return StandIn(self.model, context_for)


def _pooled(states: Tensor, mask: Tensor) -> Tensor:
    """States (batch, width, d) under mask (batch, width) -> (batch, 2 d)."""
    states = states.float()
    last = states[torch.arange(len(states), device=states.device), last_token(mask)]
    mean = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
    return torch.cat([F.normalize(last, dim=-1), F.normalize(mean, dim=-1)], dim=1)


@contextlib.contextmanager
def _named(setting: str, name: str) -> Any:
    try:
        yield
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{setting} is {name!r}, and no such model is at hand: {str(error).splitlines()[0]}"
        ) from error
