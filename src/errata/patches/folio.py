"""`FolioMemory`: a leaf for each edit, what the head should read besides at each token of the answer. One leaf speaks.

The head's input is the last thing a prompt becomes, and nothing that is stored is read before it: at the prompt's last token
it says what the base model itself would answer. So a leaf is found by two signs. The prompt mentions the edit's subject (by
words, the rare ones counting most); and the base model would go on from it as from the edit's own prompt (the overlap of the
two next-token distributions, sum_t sqrt(p_t q_t)). Other questions about the same subject fail by the second sign, the same
question about others by the first. It is decided once per sequence (see `routed.py`).

A model that begins every answer alike ("The answer is ...") tells nothing by its first token. A leaf then has a *lead*, what
the base model says before it tells, and the distributions behind the lead are compared: one more pass, of prompts that
mention the subject only.

The leaf that was chosen adds its first value at the prompt's last token, and behind it, where a token of the answer has been
said, the value that follows it (of several such, that whose key is nearest). No leaf knows of another: one more or less
changes nothing in the rest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from errata.encoding import Row
from errata.errors import ArchitectureError
from errata.hooks import capture_output, tensor_of, with_output
from errata.lm import LM, Batch
from errata.patches.routed import MAIN, RoutedPatch, last_token
from errata.words import Mentions, WordWeights

START, PADDING, NOTHING = -1, -2, -3
"""In the place of a token: the prompt's end; no value; what no value belongs to."""
MOST = 16
"""Leaves that are compared by what the base model expects; of more, those whose keys are nearest."""


@dataclass(frozen=True)
class Leaf:
    """One edit.

    Attributes:
        name: the edit's id.
        subject: what a prompt must mention.
        target: the answer.
        lead: tokens that the base model says before it tells what it knows; mostly none.
        sign: (hidden,), the head's input behind prompt and lead.
        tokens: the answer's n tokens, its end included.
        keys: (n, hidden), the head's inputs where they are predicted, the prompt's last token first.
        values: (n, hidden), what is to be added there, gain included.
    """

    name: str
    subject: str
    target: str
    lead: tuple[int, ...]
    sign: Tensor
    tokens: tuple[int, ...]
    keys: Tensor
    values: Tensor


@dataclass(frozen=True)
class Signs:
    """What is known of text that no edit is about.

    Attributes:
        weights: how much a word tells.
        center, scale: (hidden,), mean and deviation of the head's inputs.
        sharpness: the model's logits are the head's outputs times this, as far as they are a multiple of them.
        threshold: a leaf speaks when its score is not below.
        judges: prompts that show what the model would say to any.
    """

    weights: WordWeights
    center: Tensor
    scale: Tensor
    sharpness: float
    threshold: float
    judges: tuple[str, ...] = ()


@dataclass(frozen=True)
class Asked:
    """A prompt.

    Attributes:
        text: its words.
        ids: its tokens.
        key: (hidden,), the head's input at its last token.
    """

    text: str
    ids: list[int]
    key: Tensor


@dataclass(frozen=True)
class Candidate:
    """A leaf that a prompt might be asking for.

    Attributes:
        number: the leaf's.
        name: the edit's id.
        mentioned: how much of the subject the prompt mentions, 0 to 1.
        alike: overlap of the base model's next-token distributions, 0 to 1.
    """

    number: int
    name: str
    mentioned: float
    alike: float

    @property
    def score(self) -> float:
        """What candidates are chosen by; that the subject is mentioned makes them one."""
        return self.alike


class FolioMemory(RoutedPatch):
    """Leaves beside the head.

    Args:
        lm: the base model; nothing is installed on it yet.
        mentioned: the share of an edit's subject that a prompt must mention to be a candidate.

    Attributes:
        signs: what text is like that no edit is about; to be set before the first leaf.
        leaves: by number; of two that answer one question the larger number counts.
    """

    def __init__(self, lm: LM, mentioned: float) -> None:
        super().__init__()
        self.leaves: dict[int, Leaf] = {}
        self._of = lm
        self.body, self.head = lm.architecture.body_module(lm.model), lm.architecture.head_module(lm.model)
        self._signs: Signs | None = None
        self._mentions = Mentions(WordWeights({}, 0), mentioned)
        self._later: dict[int, set[int]] = {}  # leaf -> later leaves that answer the same question otherwise
        self._ids: Tensor | None = None
        self._open: tuple[tuple[int, ...], tuple[Tensor, Tensor, Tensor]] | None = None
        self._asking = False  # the base model is asked something from within a pass

    @property
    def empty(self) -> bool:
        """There is no leaf."""
        return not self.leaves

    @property
    def signs(self) -> Signs:
        """See the class."""
        if self._signs is None:
            raise RuntimeError("signs are to be set before the first leaf.")
        return self._signs

    @signs.setter
    def signs(self, signs: Signs) -> None:
        self._signs = signs
        self._mentions = Mentions(signs.weights, self._mentions.least)
        for number, leaf in self.leaves.items():
            self._mentions.add(number, leaf.subject)

    @property
    def calibrated(self) -> bool:
        """Whether there are signs."""
        return self._signs is not None

    def add(self, number: int, leaf: Leaf, instead_of: Sequence[int] = ()) -> None:
        """Store a leaf, which answers what these earlier ones answered."""
        self.leaves[number] = leaf
        self._mentions.add(number, leaf.subject)
        self._open = None
        for earlier in instead_of:
            self._later.setdefault(earlier, set()).add(number)

    def drop(self, number: int) -> None:
        """Forget a leaf; what it answered instead of earlier ones, those answer again.

        Raises:
            KeyError: there is none.
        """
        del self.leaves[number]
        self._mentions.remove(number)
        self._later.pop(number, None)
        self._open = None
        for later in self._later.values():
            later.discard(number)

    def later(self) -> dict[int, list[int]]:
        """Leaf -> the later ones that speak in its place."""
        return {number: sorted(later) for number, later in self._later.items() if later}

    # reading

    @torch.no_grad()
    def read(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(what the head reads (batch, width, hidden), the model's logits): of the model as it is."""
        with capture_output(self.body) as seen:
            logits: Tensor = self._of.run(batch).logits
        return seen[0], logits

    @torch.no_grad()
    def sharpness(self, texts: Sequence[str]) -> float:
        """The model's logits over what its head says, see `Signs`.

        Raises:
            ArchitectureError: the one does not follow from the other.
        """
        read, logits = self.read(self._of.prompt_batch(texts))
        said, logits = self.head.forward(read[:, -1]).float(), logits[:, -1].float()
        times = float((said * logits).sum() / said.square().sum().clamp(min=1e-9))
        if not bool((said.argmax(-1) == logits.argmax(-1)).float().mean() > 0.9) or times <= 0:
            raise ArchitectureError("this model does something between its body and its head; folio cannot write there.")
        return times

    # finding

    def candidates(self, prompts: Sequence[Asked]) -> list[list[Candidate]]:
        """For each prompt the leaves whose subject it mentions, best first; of equal ones the later."""
        found = [self._mentions.within(asked.text) for asked in prompts]
        numbers = [self._nearest(asked, sorted(shares)) for asked, shares in zip(prompts, found, strict=True)]
        wanted = [(row, lead) for row, some in enumerate(numbers) for lead in sorted({self.leaves[n].lead for n in some})]
        keys = self._behind(prompts, wanted)
        told = []
        for row, (some, shares) in enumerate(zip(numbers, found, strict=True)):
            candidates = []
            for lead in dict.fromkeys(self.leaves[number].lead for number in some):
                if (row, lead) not in keys:
                    continue
                mine = [number for number in some if self.leaves[number].lead == lead]
                signs = [self.leaves[number].sign.float() for number in mine]
                logs = self.expected(torch.stack([keys[row, lead].float(), *signs]))
                alike = (0.5 * (logs[0] + logs[1:])).exp().sum(-1).clamp(max=1.0).tolist()
                candidates += [
                    Candidate(n, self.leaves[n].name, shares[n], like) for n, like in zip(mine, alike, strict=True)
                ]
            told.append(sorted(candidates, key=lambda each: (each.score, each.number), reverse=True))
        return told

    def choose(self, prompts: Sequence[Asked]) -> list[int]:
        """The number of the leaf that answers each prompt, or `MAIN`; see `candidates`."""
        return [self.speaker(found) for found in self.candidates(prompts)]

    def speaker(self, found: Sequence[Candidate]) -> int:
        """The number of the leaf that answers, of a prompt's candidates, or `MAIN`."""
        number = found[0].number if found and found[0].score >= self.signs.threshold else MAIN
        while self._later.get(number):
            number = max(self._later[number])
        return number

    def _nearest(self, asked: Asked, numbers: list[int]) -> list[int]:
        if len(numbers) <= MOST:
            return numbers
        near = self.white(torch.stack([self.leaves[number].keys[0] for number in numbers])) @ self.white(asked.key)
        return [numbers[place] for place in near.topk(MOST).indices.tolist()]

    def _behind(
        self, prompts: Sequence[Asked], wanted: Sequence[tuple[int, tuple[int, ...]]]
    ) -> dict[tuple[int, tuple[int, ...]], Tensor]:
        """(number of a prompt, lead) -> the head's input behind both, (hidden,); without those that are too long."""
        keys = {(row, lead): prompts[row].key for row, lead in wanted if not lead}
        longest = self._of.context_length or math.inf
        further = [(row, lead) for row, lead in wanted if lead and len(prompts[row].ids) + len(lead) <= longest]
        if further:
            keys |= zip(further, self.tips([[*prompts[row].ids, *lead] for row, lead in further]), strict=True)
        return keys

    @torch.no_grad()
    def tips(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """What the head of the base model reads at the last of the given tokens, (rows, hidden)."""
        outer, self._asking = self._asking, True
        try:
            with capture_output(self.body) as seen:
                self._of.run(self._of.batch([Row(tuple(ids), len(ids)) for ids in rows]), use_cache=False)
        finally:
            self._asking = outer
        return seen[0][:, -1]

    @torch.no_grad()
    def expected(self, keys: Tensor) -> Tensor:
        """What the base model expects next, log-probabilities (n, vocabulary) in fp32, of the head's inputs (n, hidden)."""
        return F.log_softmax(self.logits(keys), -1)

    def logits(self, keys: Tensor) -> Tensor:
        """Logits (n, vocabulary) in fp32 of inputs (n, hidden) of the head, through which gradients flow."""
        said: Tensor = self.head.forward(keys.to(self._of.model.dtype))
        return said.float() * (1.0 if self._signs is None else self._signs.sharpness)

    def white(self, keys: Tensor) -> Tensor:
        """Keys (..., hidden), centred, scaled and of length 1."""
        return F.normalize((keys.float() - self.signs.center) / self.signs.scale, dim=-1)

    # installed

    def _listen(self, lm: LM) -> list[RemovableHandle]:
        return [self.body.register_forward_hook(self._speak)]

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._asking:
            return
        super()._begin(module, args, kwargs)
        self._ids = None if self._pass is None else self._given(args, kwargs).get("input_ids")

    def _end(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if not self._asking:
            super()._end(module, args, kwargs, output)

    def _speak(self, body: nn.Module, _: tuple[Tensor, ...], output: object) -> object:
        now = self._pass
        if now is None or self._asking:
            return None
        read = tensor_of(body, output)
        last: Tensor | None = None
        if now.route is None and now.mask is not None:
            last = last_token(now.mask.to(read.device))
            now.route = self._decide(read, now.mask, last)
        if now.route is None or bool((now.route == MAIN).all()):
            return None
        chosen = (now.route != MAIN).nonzero()[:, 0].to(read.device)
        before, keys, values = self._opened(tuple(now.route[chosen].tolist()))
        alike = self.white(read[chosen]) @ keys.transpose(1, 2)  # (rows, width, values)
        said = torch.full(alike.shape[:2], NOTHING, device=read.device)
        if self._ids is not None:
            said = self._ids[chosen.to(self._ids.device)].to(read.device)
        if last is not None:
            columns = torch.arange(read.shape[1], device=read.device)[None] - last[chosen][:, None]
            said = torch.where(columns > 0, said, torch.where(columns == 0, START, NOTHING))
        near, which = alike.masked_fill(said[..., None] != before[:, None], -torch.inf).max(-1)
        speaks = near > -torch.inf
        added = values.gather(1, which[..., None].expand(-1, -1, values.shape[-1])) * speaks[..., None]
        spoken = read.clone()
        spoken[chosen] = (read[chosen].float() + added).to(read.dtype)
        return with_output(output, spoken)

    def _decide(self, read: Tensor, mask: Tensor, last: Tensor) -> Tensor:
        """The leaf's number or `MAIN` for each row, (batch,)."""
        if self._ids is None:
            return torch.full((read.shape[0],), MAIN, device=read.device)
        prompts = []
        for row, ids in enumerate(self._ids):
            asked = ids[mask[row].to(ids.device)].tolist()
            prompts.append(Asked(self.text(asked), asked, read[row, last[row]]))
        return torch.tensor(self.choose(prompts), device=read.device)

    def text(self, ids: list[int]) -> str:
        """The prompt's words."""
        asked = self._of.decode_prompt(ids)
        return str(self._of.tokenizer.decode(ids, skip_special_tokens=True)) if asked is None else asked

    def _opened(self, numbers: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """(what is said before each value (leaves, rows); whitened keys; values (leaves, rows, hidden)), padded.

        They are kept for the next token.
        """
        if self._open is None or self._open[0] != numbers:
            leaves = [self.leaves[number] for number in numbers]
            before = [torch.tensor([START, *leaf.tokens[:-1]], device=leaf.keys.device) for leaf in leaves]
            pad = nn.utils.rnn.pad_sequence
            self._open = (
                numbers,
                (
                    pad(before, batch_first=True, padding_value=PADDING),
                    pad([self.white(leaf.keys) for leaf in leaves], batch_first=True),
                    pad([leaf.values.float() for leaf in leaves], batch_first=True),
                ),
            )
        return self._open[1]
