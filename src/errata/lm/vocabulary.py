"""The tokens of a vocabulary as bytes, and those that two vocabularies share."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from errata.errors import ConfigError


def token_bytes(tokenizer: PreTrainedTokenizerBase, special: bool) -> list[bytes]:
    """Return the bytes of each token of a vocabulary, in the order of their ids.

    Args:
        special: whether special tokens are text (the marks of a chat template), or none.

    Raises:
        ConfigError: joined, they do not give the text that the tokenizer decodes.
    """
    by_letter = {letter: byte for byte, letter in _byte_letters().items()}
    specials = set(tokenizer.all_special_ids)
    added = tokenizer.added_tokens_decoder
    names = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    is_bytes = any(name is not None and name.startswith("Ġ") for name in names)
    found = []
    for token, name in enumerate(names):
        if (token in specials and not special) or name is None:
            found.append(b"")
        elif token in added:
            found.append(str(added[token].content).encode())
        elif is_bytes:
            found.append(bytes(by_letter[letter] for letter in name if letter in by_letter))
        elif len(name) == 6 and name.startswith("<0x"):
            found.append(bytes([int(name[3:5], 16)]))
        else:
            found.append(name.replace("▁", " ").encode())
    sample = "Who led Traren's Café — 漢字 — in 1984?\nIt's 🙂."
    ids = tokenizer(sample, add_special_tokens=False)["input_ids"]
    joined = b"".join(found[token] for token in ids).decode("utf-8", "replace")
    if joined.strip() != str(tokenizer.decode(ids, skip_special_tokens=not special)).strip():
        raise ConfigError(
            "this tokenizer's tokens are no pieces of text that can be joined, so other engines "
            "cannot be told what a prompt says; edits can be exported for byte-level and "
            "SentencePiece vocabularies."
        )
    return found


def shared_tokens(
    one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase
) -> tuple[Tensor, Tensor]:
    """Return the ids of the tokens that both vocabularies have, (n,) int64 in each.

    Tokens are the same if their bytes are; special tokens are left out. Of several tokens with the
    same bytes the first counts.

    Raises:
        ConfigError: they have no token in common, or a vocabulary is not of pieces of text.
    """
    found: tuple[dict[bytes, int], dict[bytes, int]] = ({}, {})
    for tokenizer, ids in zip((one, other), found, strict=True):
        for token, piece in enumerate(token_bytes(tokenizer, special=False)):
            if piece:
                ids.setdefault(piece, token)
    both = [piece for piece in found[0] if piece in found[1]]
    if not both:
        raise ConfigError(
            "the two models have no token in common, so nothing of one can be read in the other; "
            "take two whose vocabularies overlap."
        )
    first, second = (torch.tensor([ids[piece] for piece in both]) for ids in found)
    return first, second


def _byte_letters() -> dict[int, str]:
    """Return the letter that byte-level vocabularies write for each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in plain}
    others = (byte for byte in range(256) if byte not in letters)
    return letters | {byte: chr(256 + place) for place, byte in enumerate(others)}
