"""`LanguageLearner`: a language model as a `Learner`; examples are rows of tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from errata.continual.config import LearningConfig
from errata.continual.forward import Forward
from errata.errors import ConfigError
from errata.lm import LM
from errata.lm.encoding import Batch, Row, in_batches, prompt_tokens
from errata.lm.hooks import capture_input
from errata.lm.weights import is_transposed
from errata.unlearning.passages import Passage

BATCH = 32
ENCODING = "encoding"


class LanguageLearner:
    """A language model that learns.

    Args:
        lm: the model; it is changed.
        config: says what is trained of it.

    Attributes:
        modules: the linear layers whose matrices are trained, by the names of the matrices.
        weights: these matrices.
        prefix: makes virtual tokens (batch, length, hidden) to stand before each row of a batch;
            None: there are none.

    Raises:
        ConfigError: there is no such layer.
    """

    def __init__(self, lm: LM, config: LearningConfig) -> None:
        self.lm = lm
        self.prefix: Callable[[Sequence[Row]], Tensor] | None = None
        for parameter in lm.model.parameters():
            parameter.requires_grad_(False)
        lm.model.eval()  # dropout would be no part of what is learned
        self.modules = _modules(lm, config)
        of = dict(lm.model.named_parameters())
        names = list(of) if config.trains == "all" else list(self.modules)
        self.weights: Mapping[str, Tensor] = {name: of[name] for name in self.modules}
        self.parameters: Mapping[str, Tensor] = {
            name: of[name].requires_grad_(True) for name in names
        }

    def rows(self, passages: Sequence[Passage]) -> list[Row]:
        """Return passages as tokens: answers with the ending that the model gives them, documents
        in parts that fit its context.

        Raises:
            PromptTooLongError: a question with its answer does not fit.
        """
        asked = [(each.prompt, each.text) for each in passages if each.prompt]
        endings = iter(self.lm.endings(asked))
        return [
            row
            for each in passages
            for row in (
                [self.lm.encode(each.prompt, each.text, next(endings))]
                if each.prompt
                else each.rows(self.lm)
            )
        ]

    def forward(self, items: Sequence[Row]) -> Forward:
        """Return the logits of the answers' and documents' tokens, (n, vocabulary) in fp32."""
        batch = self.lm.batch(items)
        places, columns, labels = batch.label_positions(batch.target_mask | batch.ending_mask)
        with prompt_tokens(batch.prompt_mask):
            logits = self._logits(items, batch)
        values = logits[places, columns].float()
        nll = F.cross_entropy(values, labels, reduction="none")
        lengths = torch.bincount(places, minlength=len(items)).clamp(min=1)
        summed = values.new_zeros(len(items)).index_add(0, places, nll)
        return Forward(values, summed / lengths, labels, places)

    def keys(self, items: Sequence[Row]) -> dict[str, Tensor]:
        """Return the inputs (n, d_in) of each matrix that is trained, at all tokens."""
        batch = self.lm.batch(items)
        mask = batch.attention_mask.bool()
        with ExitStack() as hooks, torch.no_grad():
            seen = {
                name: hooks.enter_context(capture_input(module))
                for name, module in self.modules.items()
            }
            self.lm.run(batch, keep=1, use_cache=False)
        return {name: each[0].reshape(*mask.shape, -1)[mask] for name, each in seen.items()}

    def transposed(self, name: str) -> bool:
        """Return whether a matrix is kept as (d_in, d_out)."""
        return is_transposed(self.modules[name])

    @torch.no_grad()
    def states(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Return what the body says at the last token of each prompt, (n, hidden) on the CPU."""

        def last(part: list[Sequence[int]]) -> list[Tensor]:
            batch = self.lm.batch([Row(tuple(ids), len(ids)) for ids in part])
            return list(self.lm.run_body(batch)[:, -1].float().cpu())

        return torch.stack(in_batches(list(prompts), last, BATCH, size=len))

    @torch.no_grad()
    def generate(self, prompts: Sequence[str], most: int) -> list[str]:
        """Generate an answer to each prompt, greedily, of at most so many tokens."""
        if self.prefix is None:
            return self.lm.generate(list(prompts), max_new_tokens=most)
        encoded = [self.lm.encode_prompt(prompt) for prompt in prompts]

        def answers(part: list[list[int]]) -> list[str]:
            rows = [Row(tuple(ids), len(ids)) for ids in part]
            embeds, mask, _ = self._prefixed(rows, self.lm.batch(rows))
            out = self.lm.greedy_model().generate(
                inputs_embeds=embeds, attention_mask=mask, max_new_tokens=most
            )
            return [self.lm.decode(ids.tolist()) for ids in out]

        return in_batches(encoded, answers, BATCH, size=len)

    def _logits(self, items: Sequence[Row], batch: Batch) -> Tensor:
        if self.prefix is None:
            logits: Tensor = self.lm.run(batch, use_cache=False).logits
            return logits
        embeds, mask, length = self._prefixed(items, batch)
        options = {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
        out = self.lm.model(
            inputs_embeds=embeds, attention_mask=mask, use_cache=False,
            **(options if self.lm.takes_position_ids else {}),
        )  # fmt: skip
        found: Tensor = out.logits[:, length:]
        return found

    def _prefixed(self, items: Sequence[Row], batch: Batch) -> tuple[Tensor, Tensor, int]:
        """Return embeddings and mask of a batch with the virtual tokens, and how many these are."""
        words = self.lm.model.get_input_embeddings()(batch.input_ids)
        virtual = self.prefix(items).to(words) if self.prefix else words[:, :0]
        ones = batch.attention_mask.new_ones(virtual.shape[:2])
        mask = torch.cat([ones, batch.attention_mask], dim=1)
        return torch.cat([virtual, words], dim=1), mask, virtual.shape[1]


def _modules(lm: LM, config: LearningConfig) -> dict[str, nn.Module]:
    """Return the linear layers of the settings' `trains`, by the names of their matrices."""
    blocks = lm.architecture.n_layers
    last = blocks - 1 if config.layer is None else config.layer
    if last >= blocks:
        raise ConfigError(f"layer is {last}, and the model has {blocks} blocks.")
    if config.trains == "values":
        first = max(0, last - config.blocks + 1)
        paths = [lm.architecture.value_path(each) for each in range(first, last + 1)]
        return {f"{path}.weight": lm.model.get_submodule(path) for path in paths}
    inside = {
        module
        for each in range(blocks)
        for module in lm.architecture.block(lm.model, each).modules()
    }
    return {
        f"{name}.weight": module
        for name, module in lm.model.named_modules()
        if module in inside and isinstance(module, (nn.Linear, Conv1D))
    }
