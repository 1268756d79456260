"""Train parameters beside a frozen model on an edit, and keep everything else as it was.

The loss is NLL(target and its end | prompt) + `kl` * KL(base || edited) on self-generated texts,
minimised by Adam until the answer is learned. What the parameters are is up to their patch, see
`patches/adapter.py` and `patches/virtual_tokens.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor
from torch.nn import functional as F

from errata.config import MethodConfig, NonNegativeFloat, NonNegativeInt, PositiveInt
from errata.edit import Edit
from errata.errors import PromptTooLongError
from errata.lm import LM
from errata.lm.background import background_texts
from errata.lm.encoding import Batch, Row
from errata.lm.logits import logits_at
from errata.patches import Patch


@dataclass(frozen=True)
class AdapterTrainerConfig(MethodConfig):
    """Settings of every method that trains parameters beside a frozen model.

    Attributes:
        steps: Adam steps per edit, at most.
        lr: Adam's learning rate.
        kl: weight of KL(base || edited) on background texts; 0 for none.
        stop_loss: an edit is learned when its loss is below this and every token of its answer is
            the model's top choice.
        prefixes, prefix_length: self-generated texts put before the prompt in training, and their
            tokens.
        rehearse: earlier edits trained on again at each step.
        background: self-generated texts for the divergence.
        batch: background texts per edit, drawn at random.
    """

    steps: PositiveInt = 70
    lr: NonNegativeFloat = 5e-3
    kl: NonNegativeFloat = 1.0
    stop_loss: NonNegativeFloat = 0.05
    prefixes: NonNegativeInt = 2
    prefix_length: PositiveInt = 10
    rehearse: NonNegativeInt = 0
    background: PositiveInt = 256
    batch: PositiveInt = 16


def divergence(base: Tensor, edited: Tensor) -> Tensor:
    """Return the mean KL(base || edited) over tokens, of log-probabilities (n, vocabulary)."""
    return F.kl_div(edited, base, reduction="none", log_target=True).sum(-1).mean()


class AdapterTrainer:
    """Trains the parameters of a patch on one edit after another; it keeps no record of them.

    Args:
        lm: the base model, without patches.
        config: how to train; texts and draws follow from its seed.
        room: tokens of the context that the patch takes for itself.
    """

    def __init__(self, lm: LM, config: AdapterTrainerConfig, room: int = 0) -> None:
        self.lm, self.config, self.room = lm, config, room
        self._texts: tuple[list[str], list[str]] | None = None
        self._endings: dict[tuple[str, str], str | None] = {}

    def train(
        self, patch: Patch, parameters: Sequence[Tensor], edit: Edit, earlier: Sequence[Edit]
    ) -> None:
        """Change the parameters in place until the edit is learned; the base model has no patch on.

        Args:
            patch: holds the parameters; it is installed for the training.
            parameters: leaf tensors; they require no gradient before and after.
            edit: what to learn.
            earlier: edits trained before; their number decides the random draws.
        """
        config = self.config
        texts, prefixes = self.texts()
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + len(earlier))
        edit_rows = self._rows(edit, prefixes)
        rehearsed = [
            self._rows(earlier[i], [])[0] for i in _sample(len(earlier), config.rehearse, generator)
        ]
        drawn = _sample(len(texts), config.batch if config.kl else 0, generator)
        background = self._background([texts[i] for i in drawn]) if drawn else None
        with torch.no_grad():
            base = None if background is None else self._log_probabilities(*background)
        batch = self.lm.batch([*edit_rows, *rehearsed])
        rows, columns, labels = batch.label_positions(batch.target_mask | batch.ending_mask)
        of_edit = rows < len(edit_rows)
        for parameter in parameters:
            parameter.requires_grad_(True)
        adam = torch.optim.Adam(list(parameters), lr=config.lr)
        try:
            with patch.on(self.lm):
                for step in range(config.steps + 1):
                    logits = logits_at(self.lm, batch, rows, columns)
                    loss = F.cross_entropy(logits[of_edit], labels[of_edit])
                    learned = loss.item() < config.stop_loss and bool(
                        (logits[of_edit].argmax(-1) == labels[of_edit]).all()
                    )
                    if learned or step == config.steps:
                        break
                    if rehearsed:
                        loss = loss + F.cross_entropy(logits[~of_edit], labels[~of_edit])
                    if background is not None and base is not None:
                        edited = self._log_probabilities(*background)
                        loss = loss + config.kl * divergence(base, edited)
                    adam.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]
                    adam.step()
        finally:
            for parameter in parameters:
                parameter.requires_grad_(False)
                parameter.grad = None

    def texts(self) -> tuple[list[str], list[str]]:
        """Return (background texts, prefixes), generated once."""
        if self._texts is None:
            config = self.config
            length, seed = config.prefix_length, config.seed
            texts = background_texts(self.lm, config.background, 2 * length, seed)
            prefixes = background_texts(self.lm, config.prefixes, length, seed + 1, length)
            self._texts = texts, prefixes
        return self._texts

    @torch.no_grad()
    def embeddings(self, count: int) -> Tensor:
        """Return the token embeddings (count, hidden) of a self-generated text, in fp32."""
        (text,) = background_texts(self.lm, 1, count, self.config.seed + 2, count)
        ids = self.lm.encode_prompt(text) * count  # encoded again, it may have fewer tokens
        tokens = torch.tensor([ids[:count]], device=self.lm.device)
        embedded: Tensor = self.lm.model.get_input_embeddings()(tokens)[0]
        return embedded.float().clone()

    def _background(self, texts: Sequence[str]) -> tuple[Batch, Tensor]:
        """Return texts as a batch, and a mask (batch, width) of the tokens that are compared.

        Left out are tokens with which all texts begin alike, as in a chat template, but the last.
        """
        ids = [self.lm.encode_prompt(text) for text in texts]
        batch = self.lm.batch([Row(tuple(row), len(row)) for row in ids])
        same = takewhile(lambda tokens: len(set(tokens)) == 1, zip(*ids, strict=False))
        alike = len(list(same)) if len(ids) > 1 else 1
        return batch, batch.attention_mask.bool() & (batch.position_ids >= alike - 1)

    def _log_probabilities(self, batch: Batch, mask: Tensor) -> Tensor:
        """Return the log-probabilities (n, vocabulary) at the tokens in a mask."""
        rows, columns = mask.nonzero(as_tuple=True)
        return F.log_softmax(logits_at(self.lm, batch, rows, columns), -1)

    def _rows(self, edit: Edit, prefixes: Sequence[str]) -> list[Row]:
        """Encode the edit with its ending: its prompt alone, then behind each prefix that fits."""
        key = edit.prompt, edit.target
        if key not in self._endings:
            self._endings[key] = self.lm.ending_of(*key)
        ending = self._endings[key]
        rows = [self.lm.encode(edit.prompt, edit.target, ending)]
        for prefix in prefixes:
            try:
                row = self.lm.encode(f"{prefix} {edit.prompt}", edit.target, ending)
            except PromptTooLongError:
                continue
            if not self.lm.context_length or len(row.ids) + self.room <= self.lm.context_length:
                rows.append(row)
        return rows


def _sample(size: int, count: int, generator: torch.Generator) -> list[int]:
    """Draw at most `count` distinct numbers below `size`; return them in rising order."""
    return sorted(torch.randperm(size, generator=generator)[:count].tolist())
