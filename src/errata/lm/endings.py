"""How a model ends its answers: so that edits are taught to end as it would end them, and answers
end by themselves.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from errata.errors import ConfigError
from errata.lm.encoding import in_batches

if TYPE_CHECKING:
    from errata.lm.lm import LM

BATCH = 32
ANSWER_LENGTH = 32
"""New tokens after which an answer is cut, unless told otherwise."""


@torch.no_grad()
def endings_of(lm: LM, pairs: Sequence[tuple[str, str]]) -> list[str | None]:
    """What stands between each pair's target and its end token: "." where this model would put one,
    else nothing.

    None where answers are taught without their end (`end_token=False`).
    """
    if not lm.learns_eos:
        return [None] * len(pairs)
    dotted = [lm.encode(prompt, target, ".") for prompt, target in pairs]
    plain = [lm.encode(prompt, target) for prompt, target in pairs]
    asked = [i for i, row in enumerate(dotted) if len(row.ids) == len(plain[i].ids) + 2]

    def found(part: list[int]) -> list[bool]:
        rows = [dotted[i] for i in part]
        best = lm.run(lm.batch(rows)).logits[:, -3:-1].argmax(-1).tolist()
        return [
            dot == row.ids[-2] and end in lm.end_ids
            for row, (dot, end) in zip(rows, best, strict=True)
        ]

    says = dict(
        zip(asked, in_batches(asked, found, BATCH, size=lambda i: len(dotted[i].ids)), strict=True)
    )
    return ["." if says.get(i) else "" for i in range(len(dotted))]


def answer_limit(options: Mapping[str, Any]) -> int | None:
    """New tokens after which an answer is cut, by options of `generate`; None where they limit the
    whole text.

    Raises:
        ConfigError: they ask for something else than one text each.
    """
    if (options.get("num_return_sequences") or 1) != 1 or options.get("return_dict_in_generate"):
        raise ConfigError(
            "num_return_sequences is 1 here, and answers are texts; for more, use model.generate."
        )
    settings = options.get("generation_config")
    new, whole = (
        options.get(name) or getattr(settings, name, None)
        for name in ("max_new_tokens", "max_length")
    )
    return int(new) if new else None if whole else ANSWER_LENGTH


def plainly(lm: LM, **options: Any) -> PreTrainedModel:
    """The model with a `generation_config` that is greedy and knows the base model's tokens, and
    nothing else of its own.

    It is a view: modules, hooks and weights are the model's. Options are those of a
    `GenerationConfig`.
    """
    view = copy.copy(lm.model)
    own = lm.model.generation_config
    tokens = {name: getattr(own, name, None) for name in ("bos_token_id", "decoder_start_token_id")}
    view.generation_config = GenerationConfig(
        do_sample=False,
        eos_token_id=list(lm.end_ids) or None,
        pad_token_id=lm.pad_id,
        **tokens,
        **options,
    )
    return view


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Every token that is not read as text (the end token, a turn's mark), with its number."""
    added = {
        str(token): number
        for number, token in tokenizer.added_tokens_decoder.items()
        if token.special
    }
    return {
        **added,
        **dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)),
    }


def special_token_in(
    text: str, special: Mapping[str, int], tokenizer: PreTrainedTokenizerBase
) -> str | None:
    """One of `special_tokens` that a text holds, and that the tokenizer takes for it, if there is
    one.
    """
    found = [token for token in special if token in text]
    ids = set(tokenizer(text, add_special_tokens=False)["input_ids"]) if found else set()
    return next((token for token in found if special[token] in ids), None)
