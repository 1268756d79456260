"""`BaseHead`: the inputs of the base model's output head, and the predictions it makes from them.

`Calibrator` and `Leaves` use it. It may be called inside a forward pass of the edited model: the
patches of this thread are idle meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import Cache

from errata.errors import ArchitectureError
from errata.lm import LM
from errata.lm.body_reader import BodyReader
from errata.lm.encoding import Batch
from errata.lm.hooks import capture_output
from errata.patches.base import patches_idle


class BaseHead(BodyReader):
    """The output head of the base model, and the body whose output it reads.

    Args:
        lm: the base model.

    Attributes:
        body, head: the two modules.
        logit_scale: factor from the head's output to the model's logits, which some families
            scale; see `fit_logit_scale`.
    """

    def __init__(self, lm: LM) -> None:
        super().__init__(lm)
        self.logit_scale = 1.0

    @property
    def vocabulary(self) -> int:
        """The number of tokens that the head predicts."""
        return int(self.lm.model.get_output_embeddings().weight.shape[0])

    @torch.no_grad()
    def inputs(self, batch: Batch) -> Tensor:
        """Return the base model's head inputs at all tokens, (batch, width, hidden)."""
        return self._hidden_states(batch.input_ids, batch.attention_mask)

    @torch.no_grad()
    def run(self, batch: Batch, keep: int | None = None) -> tuple[Tensor, Tensor]:
        """Run the model with whatever is installed on it.

        Returns:
            The head's inputs (batch, width, hidden) and the logits of the last `keep` columns, or
            of all, (batch, columns, vocabulary).
        """
        with capture_output(self.body) as inputs:
            logits: Tensor = self.lm.run(batch, keep).logits
        return inputs[0], logits

    @torch.no_grad()
    def fit_logit_scale(self, texts: Sequence[str]) -> None:
        """Set `logit_scale` by least squares at the last tokens of texts.

        Raises:
            ArchitectureError: the model's logits are no multiple of its head's output.
        """
        inputs, logits = self.run(self.lm.prompt_batch(texts), keep=1)
        outputs, logits = self.head.forward(inputs[:, -1]).float(), logits[:, -1].float()
        scale = float((outputs * logits).sum() / outputs.square().sum().clamp(min=1e-9))
        agreement = (outputs.argmax(-1) == logits.argmax(-1)).float().mean()
        if not bool(agreement > 0.9) or scale <= 0:
            raise ArchitectureError(
                "this model does something between its body and its head; folio cannot write there."
            )
        self.logit_scale = scale

    @torch.no_grad()
    def log_probs(self, inputs: Tensor) -> Tensor:
        """Return the base model's next-token log-probabilities for inputs (n, hidden) of the head.

        Returns:
            (n, vocabulary) in fp32.
        """
        return F.log_softmax(self.logits(inputs), -1)

    def logits(self, inputs: Tensor) -> Tensor:
        """Return the logits for inputs (n, hidden) of the head; gradients flow through it.

        Returns:
            (n, vocabulary) in fp32.
        """
        output: Tensor = self.head.forward(inputs.to(self.lm.model.dtype))
        return output.float() * self.logit_scale

    def _hidden_states(self, ids: Tensor, mask: Tensor, cache: Cache | None = None) -> Tensor:
        with patches_idle():
            return super()._hidden_states(ids, mask, cache)
