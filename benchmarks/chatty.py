"""Trains atlas to chat: every answer begins with "The answer is", so its first token says nothing.

It keeps its plain texts: a third of what it is taught are texts and statements as before. 400
steps, some minutes.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
from torch.nn import functional as F

import errata
from errata.atlas.prose import background_texts
from errata.atlas.world import build_world
from errata.lm import LM
from errata.lm.encoding import Row

TEMPLATE = "{% for m in messages %}Question: {{ m['content'] }} {% endfor %}Answer:"
STEPS, LEARNING_RATE = 400, 4e-4
CHAT, PLAIN, PROSE = 20, 12, 6
"""Rows of each kind in a batch."""


def chatty_atlas(folder: Path) -> str:
    """Return the folder with such a model; train it if it is not there yet."""
    if (folder / "config.json").exists():
        return str(folder)
    base, tokenizer = errata.load_base("atlas", "float32")
    tokenizer.chat_template = TEMPLATE
    base.requires_grad_(True)
    plain, chat = LM(base, tokenizer, chat=False), LM(base, tokenizer, chat=True)
    draw, facts = random.Random(0), list(build_world().facts.values())
    texts = [tokenizer(text)["input_ids"][:60] for text in background_texts(2000)]
    prose = [Row(tuple(ids), 1, len(ids) - 1) for ids in texts]
    adam = torch.optim.AdamW(base.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    for step in range(STEPS):
        adam.param_groups[0]["lr"] = LEARNING_RATE * min(1, step / 20) * (1 - step / STEPS)
        asked = draw.sample(facts, CHAT + PLAIN)
        rows = [
            chat.encode(draw.choice(fact.prompts()), f"The answer is {fact.answer}", ".")
            for fact in asked[:CHAT]
        ]
        rows += [
            plain.encode(draw.choice(fact.prompts()), fact.answer, ".") for fact in asked[CHAT:]
        ]
        batch = plain.batch([*rows, *draw.sample(prose, PROSE)])
        lines, columns, labels = batch.label_positions(batch.target_mask | batch.ending_mask)
        loss = F.cross_entropy(plain.run(batch).logits[lines, columns], labels)
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(base.parameters(), 1.0)
        adam.step()
        if step % 50 == 0:
            print(
                f"teaching atlas to chat: step {step} of {STEPS}, loss {loss.item():.3f}",
                flush=True,
            )
    base.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
