"""`EditLogits`: exported edits as a logits processor of transformers' `generate`."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LogitsProcessor

from errata.engines.processor import EditProcessor, Route


class EditLogits(LogitsProcessor):  # type: ignore[misc]
    """Says edits' answers in one call of `generate`; make a new one for each.

    Args:
        edits: the exported edits.
        pad_token_id: what stands before the shorter prompts of a batch.
    """

    def __init__(self, edits: EditProcessor, pad_token_id: int | None = None) -> None:
        self.edits, self.pad = edits, pad_token_id
        self._width = 0
        self._routes: dict[tuple[int, ...], Route] = {}

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the next tokens' logits (batch, vocabulary), changed where an edit answers.

        Args:
            input_ids: (batch, columns), prompts and what was said.
            scores: (batch, vocabulary).
        """
        self._width = self._width or input_ids.shape[1]
        changed = scores
        for row, ids in enumerate(input_ids.tolist()):
            prompt, said = tuple(ids[: self._width]), ids[self._width :]
            if prompt not in self._routes:  # beams change their rows, not their prompts
                start = next((at for at, token in enumerate(prompt) if token != self.pad), 0)
                self._routes[prompt] = self.edits.route(prompt[start:])
            route = self._routes[prompt]
            if route.next_token(said) is not None:
                found = self.edits.change(route, said, scores[row].float().cpu().numpy())
                changed = changed.clone() if changed is scores else changed
                changed[row] = torch.from_numpy(found).to(changed)
        return changed
