"""How MemoryLLM learns to use its memory: it is asked for what it has just been told, and for more.

A round writes some examples' edits into a memory full of background text, drops what updates drop,
and asks for some of the edits in other words: the loss is NLL(target) on these, and KL(base || with
memory) at the end of prompts that none of the edits is about.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache

from errata.edit import Example
from errata.lm import LM
from errata.lm.encoding import Batch, Row
from errata.lm.hooks import capture_input
from errata.methods.association.memoryllm.network import MemoryNetwork
from errata.methods.association.memoryllm.pool import after_updates, picked
from errata.solvers.adapters import divergence


class Learning:
    """The loss of a training, and what it looks up once.

    Args:
        lm: the base model, without patches.
        network: what is trained.
        examples: all of the training.
    """

    def __init__(self, lm: LM, network: MemoryNetwork, examples: Sequence[Example]) -> None:
        self.lm, self.network, self.examples = lm, network, list(examples)
        self._endings: dict[tuple[str, str], str | None] = {}

    def loss(self, example: Example, rng: random.Random, pool: Tensor, progress: float) -> Tensor:
        """Return the loss of a round.

        Args:
            example: is among those written and asked for.
            rng: draws the others, their wordings, and what is dropped.
            pool: (layers, N, hidden), the memory before.
            progress: share of the training that is done.
        """
        config, lm = self.network.config, self.lm
        most = 1 + round(progress * (config.contexts - 1))
        count = 1 if rng.random() < 0.5 else rng.randint(1, most)
        told = [example, *rng.sample(self.examples, min(count - 1, len(self.examples)))]
        told = list({each.edit.prompt: each for each in told}.values())
        rng.shuffle(told)
        asked = sorted(rng.sample(range(len(told)), min(config.asked, len(told))))
        wordings = [rng.sample((each.edit.prompt, *each.rephrases), 2) for each in told]
        targets = [each.edit.target for each in told]
        texts = self._rows([w[0] for w in wordings], targets)
        questions = self._rows([wordings[i][1] for i in asked], [targets[i] for i in asked])
        others = self._others(told, asked, rng)

        new = self.network.write(lm.batch(texts), pool[:, -config.new_tokens :])
        draw = torch.Generator().manual_seed(rng.getrandbits(32))
        layers, size = pool.shape[:2]
        places = after_updates(layers, size, config.new_tokens, len(told), draw)
        everything = torch.cat([pool.to(new), new.flatten(1, 2)], dim=1)
        if config.recalled_tokens:
            places = torch.cat([self._recalled(places, everything.shape[1], size, draw), places], 1)
        memory = picked(everything, places)

        batch = lm.batch([*questions, *others], side="right")
        row, column, labels = batch.label_positions(batch.target_mask | batch.ending_mask)
        logits, inputs = self._logits(batch, memory)
        loss = F.cross_entropy(logits[row, column].float(), labels)
        if others:
            ends = torch.tensor([row.prompt_length - 1 for row in others], device=logits.device)
            rows = torch.arange(len(others), device=logits.device)
            with torch.no_grad():
                before = lm.run(lm.batch(others, side="right")).logits[rows, ends]
            after = logits[len(questions) + rows, ends]
            loss = loss + config.locality_weight * divergence(
                before.float().log_softmax(-1), after.float().log_softmax(-1)
            )
        if retriever := self.network.retriever:
            owners = torch.arange(len(told)).repeat_interleave(config.new_tokens)
            owners = torch.cat([torch.full((size,), -1), owners])
            relevant = (owners == torch.tensor(asked)[:, None]).to(new.device)
            keys = retriever.keys(everything.detach())
            prompt, n = batch.prompt_mask[: len(asked)], len(asked)
            parts = [
                retriever.loss(layer, hidden[:n], prompt, keys[layer], relevant)
                for layer, hidden in enumerate(inputs)
            ]
            loss = loss + torch.stack(parts).mean()
        return loss

    def _recalled(self, places: Tensor, end: int, size: int, draw: torch.Generator) -> Tensor:
        """Draw what a retriever might bring back: what was dropped, new vectors before old ones.

        Args:
            places: (layers, N), what is in the memory.
            end: the number of vectors there are, of which `size` are old.
            draw: draws among them.

        Returns:
            (layers, k) places that are not in the memory, in rising order.
        """
        layers = len(places)
        count = min(self.network.config.recalled_tokens, end - places.shape[1])
        order = torch.rand(layers, end, generator=draw)
        order[:, size:] += 1.0
        order = order.scatter(1, places, -1.0)
        return order.topk(count, dim=-1).indices.sort(-1).values

    def _others(
        self, told: Sequence[Example], asked: Sequence[int], rng: random.Random
    ) -> list[Row]:
        """Draw prompts that no text is about: others of what is asked, and prompts of the rest."""
        prompts = [rng.choice(told[i].others) for i in asked[::2]]
        about = {each.edit.prompt for each in told}
        strangers = rng.sample(self.examples, min(len(prompts), len(self.examples)))
        prompts += [each.edit.prompt for each in strangers if each.edit.prompt not in about]
        encoded = [self.lm.encode_prompt(prompt) for prompt in prompts]
        return [Row(tuple(ids), len(ids)) for ids in encoded]

    def _logits(self, batch: Batch, memory: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the logits (batch, width, vocabulary) of rows padded on the right, and what each
        block reads, (batch, width, hidden), detached.

        All read the same memory, (layers, N, hidden), so that it is read once, as are the tokens
        that all begin with, such as a chat's opening.
        """
        lm, size, width = self.lm, *batch.input_ids.shape
        patch = self.network.tokens(memory)
        cache = DynamicCache(config=lm.model.config)
        for layer, pair in enumerate(patch.keys_and_values(lm)):
            cache.update(*pair, layer)
        mask = F.pad(batch.attention_mask, (patch.count, 0), value=1)
        logits: list[Tensor] = []
        with contextlib.ExitStack() as hooks:
            hooks.enter_context(patch.adapters.on(lm))
            inputs = [
                hooks.enter_context(capture_input(lm.architecture.block(lm.model, layer)))
                for layer in range(lm.architecture.n_layers if self.network.retriever else 0)
            ]
            shared = _shared(batch)
            for rows, start, end in ((1, 0, shared), (size, shared, width)):
                if start == end:
                    continue
                cache.batch_repeat_interleave(rows)
                options: dict[str, Any] = {lm.cache_name: cache}
                if lm.takes_position_ids:
                    options["position_ids"] = batch.position_ids[:rows, start:end]
                output = lm.model(
                    input_ids=batch.input_ids[:rows, start:end],
                    attention_mask=mask[:rows, : patch.count + end],
                    **options,
                )
                logits.append(output.logits.expand(size, -1, -1))
        joined = [torch.cat([x.expand(size, -1, -1) for x in each], 1) for each in inputs]
        return torch.cat(logits, dim=1), [each.to(lm.device) for each in joined]

    def _rows(self, prompts: Sequence[str], targets: Sequence[str]) -> list[Row]:
        """Encode prompts with targets and endings, which are looked up once."""
        pairs = list(zip(prompts, targets, strict=True))
        if new := [pair for pair in dict.fromkeys(pairs) if pair not in self._endings]:
            self._endings |= dict(zip(new, self.lm.endings(new), strict=True))
        return [self.lm.encode(*pair, self._endings[pair]) for pair in pairs]


def _shared(batch: Batch) -> int:
    """Return how many tokens all rows, padded on the right, begin with; the last is left out."""
    alike = (batch.input_ids == batch.input_ids[:1]).all(0) & batch.attention_mask.bool().all(0)
    return int(alike[:-1].int().cumprod(0).sum())
