"""`FolioMemory`: an edit adds a vector to the input of the output head at each token of its answer.

A leaf is chosen at the prompt's last token, once per sequence (see `patches.routed`), by two
criteria:

1. The prompt mentions the edit's subject: words are compared, rare ones weigh most.
2. It asks what the edit's own prompt asks: what the base model makes of both in the middle of its
   blocks lies near each other in a space of questions, see `question_space.py`. That takes half a
   pass of the sentence that mentions the subject, and nothing where no subject is mentioned.

Other questions about the same subject fail the second, the same question about another subject
fails the first. Where the base model is sure of how it would begin either answer, that counts too:
beginning otherwise, it was asked other things.

The chosen leaf adds its first value at the prompt's last token and, behind a token of its answer,
the value of the next one (of several, that with the nearest key). Leaves are independent: to add
or remove one changes nothing about the others.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from errata.errors import ConfigError
from errata.lm import LM
from errata.lm.hooks import tensor_of, with_output
from errata.methods.association.folio.base_head import BaseHead
from errata.methods.association.folio.calibration import RouterCalibration
from errata.methods.association.folio.leaf import EncodedPrompt
from errata.methods.association.folio.leaves import PROMPT_END, Leaves
from errata.methods.association.folio.question_reader import QuestionReader
from errata.patches.routed import MAIN, ForwardState, RoutedPatch, last_token

NO_VALUE = -3
"""Stands for a token id that no value follows."""


class FolioMemory(RoutedPatch):
    """Leaves at the output head. Nothing below the head changes, so no cache depends on them.

    Args:
        lm: the base model; nothing is installed on it yet.
        min_subject_overlap: share of an edit's subject that a prompt must mention.
        edits_per_file: leaves in one folio.

    Attributes:
        base: the base model's head.
        reader: reads what prompts ask.
    """

    changes_cache = False

    def __init__(self, lm: LM, min_subject_overlap: float, edits_per_file: int) -> None:
        super().__init__()
        self.base = BaseHead(lm)
        self.reader = QuestionReader(self.base)
        self.min_subject_overlap, self.edits_per_file = min_subject_overlap, edits_per_file
        self._leaves: Leaves | None = None

    @property
    def empty(self) -> bool:
        """Whether there is no leaf."""
        return not self._leaves

    @property
    def calibrated(self) -> bool:
        """Whether there are statistics of background text."""
        return self._leaves is not None

    @property
    def leaves(self) -> Leaves:
        """The edits.

        Raises:
            RuntimeError: `reset` has not been called yet.
        """
        if self._leaves is None:
            raise RuntimeError("reset() comes before the first leaf.")
        return self._leaves

    @property
    def calibration(self) -> RouterCalibration:
        """Statistics of background text."""
        return self.leaves.calibration

    def reset(self, calibration: RouterCalibration) -> None:
        """Remove all leaves, and route by these statistics from now on."""
        self.base.logit_scale = calibration.logit_scale
        overlap, size = self.min_subject_overlap, self.edits_per_file
        self._leaves = Leaves(self.reader, overlap, calibration, size)

    def _register_hooks(self, lm: LM) -> list[RemovableHandle]:
        return [self.base.body.register_forward_hook(self._forward_hook)]

    def _forward_hook(self, body: nn.Module, _: tuple[Tensor, ...], output: object) -> object:
        state = self._pass
        if state is None or self.base.bypass:
            return None
        inputs = tensor_of(body, output)
        last: Tensor | None = None
        if state.route is None and state.mask is not None:
            last = last_token(state.mask.to(inputs.device))
            state.route = self._decide(inputs, state, last)
        if state.route is None or bool((state.route == MAIN).all()):
            return None
        rows = (state.route != MAIN).nonzero()[:, 0].to(inputs.device)
        numbers = tuple(state.route[rows].tolist())
        changed = inputs.clone()
        values = self._values(numbers, inputs[rows], _tokens_read(state, rows, last))
        changed[rows] = (inputs[rows].float() + values).to(inputs.dtype)
        return with_output(output, changed)

    def _decide(self, inputs: Tensor, state: ForwardState, last: Tensor) -> Tensor:
        """Return the number of the leaf that answers each row, or `MAIN`: (batch,)."""
        if state.ids is None:
            raise ConfigError(
                "with inputs_embeds it is not known what is asked, so no edit is found; "
                "give input_ids."
            )
        prompts = []
        for row, tokens in enumerate(state.ids):
            ids = tokens[state.prompt[row].to(tokens.device)].tolist()
            text, *earlier = self.base.lm.conversation(ids).questions
            prompts.append(EncodedPrompt(text, ids, tuple(earlier), inputs[row, last[row]]))
        return torch.tensor(self.leaves.choose(prompts), device=inputs.device)

    def _values(self, numbers: tuple[int, ...], inputs: Tensor, tokens: Tensor) -> Tensor:
        """Return what leaves add to the head's inputs.

        Args:
            numbers: n leaves, one for each row.
            inputs: (n, width, hidden), the head's inputs.
            tokens: (n, width), see `_tokens_read`.

        Returns:
            (n, width, hidden) in fp32; zero where no value follows the token.
        """
        before, keys, values = self.leaves.padded(numbers)
        cosines = self.calibration.whiten(inputs) @ keys.transpose(1, 2)  # (n, width, values)
        follows = tokens[..., None] == before[:, None]
        nearest, places = cosines.masked_fill(~follows, -torch.inf).max(-1)
        chosen = values.gather(1, places[..., None].expand(-1, -1, values.shape[-1]))
        return chosen * (nearest > -torch.inf)[..., None]


def _tokens_read(state: ForwardState, rows: Tensor, last: Tensor | None) -> Tensor:
    """Return the tokens that a forward call reads in some rows, (n, width).

    Args:
        state: the forward call.
        rows: (n,), the rows' places in the batch.
        last: (batch,), the column of the prompt's last token; it becomes `PROMPT_END` and those
            before it `NO_VALUE`. None: the prompt was in an earlier call.
    """
    width = state.size[1]
    tokens = torch.full((len(rows), width), NO_VALUE, device=rows.device)
    if state.ids is not None:
        tokens = state.ids[rows.to(state.ids.device), -width:].to(rows.device)
    if last is None:
        return tokens
    offsets = torch.arange(width, device=rows.device) - last[rows][:, None]
    return torch.where(offsets > 0, tokens, torch.where(offsets == 0, PROMPT_END, NO_VALUE))
