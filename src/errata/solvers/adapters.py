"""Teach parameters beside a frozen model an answer, and hold what the model says of everything
else.

The loss is that of an editor, not of a fine-tuner: NLL(target and its end | prompt) + `kl` *
KL(base || edited) on texts of the model's own making, by Adam, until the answer is learned. What
the parameters are is the affair of the patch they are in.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from errata.edit import Edit
from errata.errors import PromptTooLongError
from errata.lm import LM
from errata.lm.background import background_texts
from errata.lm.encoding import Batch, Row
from errata.patches import Patch


def divergence(base: Tensor, edited: Tensor) -> Tensor:
    """KL(base || edited), the mean over tokens; both are log-probabilities (n, vocabulary)."""
    return F.kl_div(edited, base, reduction="none", log_target=True).sum(-1).mean()


class AdapterTrainer:
    """Teaches edits to the parameters of a patch, one after another. It remembers nothing of what
    it taught.

    Args:
        lm: the base model, without patches.
        steps: Adam steps per edit, at most.
        lr: Adam's learning rate.
        kl: weight of KL(base || edited) on background.
        stop_loss: an edit is learned when its loss is below, and every token of the answer is the
            model's choice.
        prefixes, prefix_length: texts of the model's own making put before the prompt while
            learning.
        rehearse: earlier edits seen again at each step, drawn for each edit.
        background: texts of the model's own making.
        batch: so many of them are held, drawn for each edit.
        seed: texts and draws follow from it.
        room: tokens of the context that the patch takes for itself.
    """

    def __init__(
        self,
        lm: LM,
        *,
        steps: int,
        lr: float,
        kl: float,
        stop_loss: float,
        prefixes: int,
        prefix_length: int,
        rehearse: int,
        background: int,
        batch: int,
        seed: int,
        room: int = 0,
    ) -> None:
        self.lm = lm
        self.steps, self.lr, self.kl, self.stop_loss = steps, lr, kl, stop_loss
        self.prefixes, self.prefix_length, self.rehearse = prefixes, prefix_length, rehearse
        self.background, self.batch, self.seed, self.room = background, batch, seed, room
        self._texts: tuple[list[str], list[str]] | None = None
        self._endings: dict[tuple[str, str], str | None] = {}

    def teach(
        self, patch: Patch, parameters: Sequence[Tensor], edit: Edit, earlier: Sequence[Edit]
    ) -> float:
        """Change the parameters in place until the edit is learned; the base model must carry no
        patch.

        Args:
            patch: what holds the parameters; it is put on the model meanwhile.
            parameters: leaves; they need no gradient before and after.
            edit: what to learn.
            earlier: edits that were taught before; how many they are decides the draws.

        Returns:
            The loss of the edit's answer when it stopped.
        """
        texts, prefixes = self.texts()
        draw = torch.Generator().manual_seed(self.seed * 1_000_003 + len(earlier))
        own = self._rows(edit, prefixes)
        again = [self._rows(earlier[i], [])[0] for i in _drawn(len(earlier), self.rehearse, draw)]
        held = [
            self._held(texts[i]) for i in _drawn(len(texts), self.batch if self.kl else 0, draw)
        ]
        lesson = self.lm.batch([*own, *again])
        where, columns, labels = lesson.label_positions(lesson.target_mask | lesson.ending_mask)
        mine = where < len(own)
        background = self.lm.batch(held) if held else None
        base = None if background is None else self._said(background).detach()
        for parameter in parameters:
            parameter.requires_grad_(True)
        adam = torch.optim.Adam(list(parameters), lr=self.lr)
        loss = torch.inf
        try:
            with patch.on(self.lm):
                for step in range(self.steps + 1):
                    picked = self._logits(lesson)[where, columns].float()
                    nll = F.cross_entropy(picked[mine], labels[mine])
                    loss = nll.item()
                    learned = loss < self.stop_loss and bool(
                        (picked[mine].argmax(-1) == labels[mine]).all()
                    )
                    if learned or step == self.steps:
                        break
                    if again:
                        nll = nll + F.cross_entropy(picked[~mine], labels[~mine])
                    if background is not None and base is not None:
                        nll = nll + self.kl * divergence(base, self._said(background))
                    adam.zero_grad()
                    nll.backward()  # type: ignore[no-untyped-call]
                    adam.step()
        finally:
            for parameter in parameters:
                parameter.requires_grad_(False)
                parameter.grad = None
        return loss

    def texts(self) -> tuple[list[str], list[str]]:
        """(background, prefixes), made once."""
        if self._texts is None:
            texts = background_texts(self.lm, self.background, 2 * self.prefix_length, self.seed)
            prefixes = []
            if self.prefixes:
                prefixes = background_texts(
                    self.lm, self.prefixes, self.prefix_length, self.seed + 1, self.prefix_length
                )
            self._texts = texts, prefixes
        return self._texts

    @torch.no_grad()
    def embeddings(self, count: int) -> Tensor:
        """(count, hidden) in fp32: the embeddings of the tokens of a text of the model's own
        making.
        """
        (text,) = background_texts(self.lm, 1, count, self.seed + 2, count)
        ids = (
            self.lm.encode_prompt(text) * count
        )  # read again, it may have fewer tokens than when it was made
        embedded: Tensor = self.lm.model.get_input_embeddings()(
            torch.tensor([ids[:count]], device=self.lm.device)
        )[0]
        return embedded.float().clone()

    def _logits(self, batch: Batch) -> Tensor:
        logits: Tensor = self.lm.run(batch, use_cache=False).logits
        return logits

    def _said(self, batch: Batch) -> Tensor:
        """(n, vocabulary): log-probabilities at every token."""
        return F.log_softmax(self._logits(batch)[batch.attention_mask.bool()].float(), -1)

    def _rows(self, edit: Edit, prefixes: Sequence[str]) -> list[Row]:
        """The edit's answer behind its prompt, and behind the prompt with each prefix that fits
        before it.
        """
        asked = edit.prompt, edit.target
        if asked not in self._endings:
            self._endings[asked] = self.lm.ending_of(*asked)
        ending = self._endings[asked]
        rows = [self.lm.encode(edit.prompt, edit.target, ending)]
        for prefix in prefixes:
            try:
                row = self.lm.encode(f"{prefix} {edit.prompt}", edit.target, ending)
            except PromptTooLongError:
                continue
            if not self.lm.context_length or len(row.ids) + self.room <= self.lm.context_length:
                rows.append(row)
        return rows

    def _held(self, text: str) -> Row:
        ids = self.lm.encode_prompt(text)
        return Row(tuple(ids), len(ids))


def _drawn(size: int, count: int, draw: torch.Generator) -> list[int]:
    """So many different numbers below `size`, in rising order; all of them when there are not so
    many.
    """
    return sorted(torch.randperm(size, generator=draw)[:count].tolist())
