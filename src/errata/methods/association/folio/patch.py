"""`FolioMemory`: a leaf for each edit, what the head should read besides at each token of the
answer. One leaf speaks.

The head's input is the last thing a prompt becomes, and nothing that is stored is read before it:
at the prompt's last token it says what the base model itself would answer. So a leaf is found by
two signs. The prompt mentions the edit's subject (by words, the rare ones counting most); and the
base model would go on from it as from the edit's own prompt (the overlap of the two next-token
distributions, sum_t sqrt(p_t q_t)). Other questions about the same subject fail by the second sign,
the same question about others by the first. It is decided once per sequence (see `routed.py`).

A model that begins every answer alike ("The answer is ...") tells nothing by its first token. A
leaf then has a *lead*, what the base model says before it tells, and the distributions behind the
lead are compared: one more pass, of prompts that mention the subject only.

The leaf that was chosen adds its first value at the prompt's last token, and behind it, where a
token of the answer has been said, the value that follows it (of several such, that whose key is
nearest). No leaf knows of another: one more or less changes nothing in the rest.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from errata.errors import ConfigError
from errata.lm import LM
from errata.lm.hooks import tensor_of, with_output
from errata.methods.association.folio.base_head import BaseHead
from errata.methods.association.folio.leaves import START, EncodedPrompt, Leaves, RouterCalibration
from errata.patches.routed import MAIN, ForwardState, RoutedPatch, last_token

NOTHING = -3
"""In the place of a token: what no value belongs to."""


class FolioMemory(RoutedPatch):
    """Leaves beside the head. Nothing below it changes, so no cache depends on them.

    Args:
        lm: the base model; nothing is installed on it yet.
        mentioned: the share of an edit's subject that a prompt must mention to be a candidate.
        size: leaves of a folio.

    Attributes:
        base: the base model, asked.
    """

    changes_cache = False

    def __init__(self, lm: LM, mentioned: float, size: int) -> None:
        super().__init__()
        self.base = BaseHead(lm)
        self.mentioned, self.size = mentioned, size
        self._leaves: Leaves | None = None

    @property
    def empty(self) -> bool:
        """There is no leaf."""
        return not self._leaves

    @property
    def calibrated(self) -> bool:
        """Whether it is known what text is like that no edit is about."""
        return self._leaves is not None

    @property
    def leaves(self) -> Leaves:
        """The edits. See `begin`."""
        if self._leaves is None:
            raise RuntimeError("begin() comes before the first leaf.")
        return self._leaves

    @property
    def signs(self) -> RouterCalibration:
        """What is known of text that no edit is about."""
        return self.leaves.signs

    def begin(self, signs: RouterCalibration) -> None:
        """Hold no leaf, and know this of text that no edit is about."""
        self.base.logit_scale = signs.logit_scale
        self._leaves = Leaves(self.base, self.mentioned, signs, self.size)

    def _register_hooks(self, lm: LM) -> list[RemovableHandle]:
        return [self.base.body.register_forward_hook(self._forward_hook)]

    def _forward_hook(self, body: nn.Module, _: tuple[Tensor, ...], output: object) -> object:
        now = self._pass
        if now is None or self.base.asking:
            return None
        read = tensor_of(body, output)
        last: Tensor | None = None
        if now.route is None and now.mask is not None:
            last = last_token(now.mask.to(read.device))
            now.route = self._decide(read, now, last)
        if now.route is None or bool((now.route == MAIN).all()):
            return None
        chosen = (now.route != MAIN).nonzero()[:, 0].to(read.device)
        before, keys, values = self.leaves.opened(tuple(now.route[chosen].tolist()))
        alike = self.signs.whiten(read[chosen]) @ keys.transpose(1, 2)  # (rows, width, values)
        said = torch.full(alike.shape[:2], NOTHING, device=read.device)
        if now.ids is not None:
            said = now.ids[chosen.to(now.ids.device), -now.size[1] :].to(read.device)
        if last is not None:
            columns = torch.arange(read.shape[1], device=read.device)[None] - last[chosen][:, None]
            said = torch.where(columns > 0, said, torch.where(columns == 0, START, NOTHING))
        near, which = alike.masked_fill(said[..., None] != before[:, None], -torch.inf).max(-1)
        speaks = near > -torch.inf
        added = (
            values.gather(1, which[..., None].expand(-1, -1, values.shape[-1])) * speaks[..., None]
        )
        spoken = read.clone()
        spoken[chosen] = (read[chosen].float() + added).to(read.dtype)
        return with_output(output, spoken)

    def _decide(self, read: Tensor, now: ForwardState, last: Tensor) -> Tensor:
        """The leaf's number or `MAIN` for each row, (batch,)."""
        if now.ids is None:
            raise ConfigError(
                "with inputs_embeds it is not known what is asked, so no edit is found; give input_ids."
            )
        prompts = []
        for row, ids in enumerate(now.ids):
            asked = ids[now.prompt[row].to(ids.device)].tolist()
            text, *earlier = self.base.lm.conversation(asked).questions
            prompts.append(EncodedPrompt(text, asked, read[row, last[row]], tuple(earlier)))
        return torch.tensor(self.leaves.choose(prompts), device=read.device)
