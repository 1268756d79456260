"""A folio on disk: its leaves as tensors, each bound to its edit; and back, believing nothing that
can be checked.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from errata.edit import Edit
from errata.lm import LM
from errata.methods.association.folio.leaves import Leaf, Leaves, RouterCalibration
from errata.storage import state
from errata.words.names import WordWeights

FOLIO = "folio-"
"""What a folio's file is called, its number behind it."""
NAME = 16
"""Bytes of a leaf's name."""


def tensors_of(leaves: Leaves, edits: Sequence[Edit]) -> dict[str, Tensor]:
    """Of each folio, one leaf's rows behind another's, its keys, values, tokens and how many rows
    each leaf has.

    `keys` and `values` are (rows, hidden), `tokens` (rows,), `rows` (leaves,), `signs` (leaves,
    hidden), and `names`, which bind each leaf to its edit, (leaves, 16).
    """
    by_id = {edit.id: edit for edit in edits}
    tensors: dict[str, Tensor] = {}
    for folio, numbers in leaves.folios.items():
        mine = [leaves[number] for number in numbers]
        held = {
            "keys": torch.cat([leaf.keys for leaf in mine]),
            "values": torch.cat([leaf.values for leaf in mine]),
            "signs": torch.stack([leaf.sign for leaf in mine]),
            "tokens": torch.tensor([token for leaf in mine for token in leaf.tokens]),
            "rows": torch.tensor([len(leaf.keys) for leaf in mine]),
            "names": _names([by_id[leaf.name] for leaf in mine]),
        }
        tensors |= {f"{FOLIO}{folio:05d}/{name}": tensor for name, tensor in held.items()}
    return tensors


def leaves_in(
    tensors: Mapping[str, Tensor], values: Mapping[str, Any], edits: Sequence[Edit], lm: LM
) -> Iterator[tuple[int, Leaf]]:
    """(folio, leaf) of each edit, in their order; the tensors are not copied.

    Raises:
        KeyError, ValueError: something is missing, or not what it must be.
    """
    width, most = lm.architecture.hidden_size, int(lm.model.get_input_embeddings().weight.shape[0])
    subjects = state.texts(values, "subjects", len(edits))
    leads = [
        tuple(state.whole(each, "leads", 0, most - 1) for each in lead)
        for lead in state.rows(values, "leads", len(edits))
    ]
    place = 0
    for folio in sorted(
        {int(name[len(FOLIO) :].partition("/")[0]) for name in tensors if name.startswith(FOLIO)}
    ):
        mine = f"{FOLIO}{folio:05d}/"
        rows = state.numbers(tensors, mine + "rows", None, 1, 2**31)
        signs = state.tensor(tensors, mine + "signs", (len(rows), width))
        tokens = state.numbers(tensors, mine + "tokens", sum(rows), 0, most - 1)
        keys, added = (
            state.tensor(tensors, mine + name, (sum(rows), width)) for name in ("keys", "values")
        )
        here = edits[place : place + len(rows)]
        if len(here) < len(rows):
            raise ValueError(f"there are more leaves than the {len(edits)} edits of the ledger")
        if mine + "names" in tensors:  # version 0.1 wrote none
            names = state.tensor(tensors, mine + "names", (len(rows), NAME), "bits")
            if not torch.equal(names, _names(here)):
                raise ValueError(
                    f"the leaves of folio {folio} are not those of the edits in their places"
                )
        bounds = pairwise([0, *accumulate(rows)])
        for edit, sign, (start, stop) in zip(here, signs, bounds, strict=True):
            said = edit.id, edit.prompt, subjects[place], edit.target, leads[place]
            yield (
                folio,
                Leaf(*said, sign, tuple(tokens[start:stop]), keys[start:stop], added[start:stop]),
            )
            place += 1
    if place < len(edits):
        raise ValueError(f"there are {place} leaves for {len(edits)} edits")


def signs_in(tensors: Mapping[str, Tensor], values: Mapping[str, Any], lm: LM) -> RouterCalibration:
    """What is known of the background.

    Raises:
        KeyError, ValueError: something is missing, or not what it must be.
    """
    width, counts = (lm.architecture.hidden_size,), state.value(values, "counts", dict)
    texts = state.whole(state.value(values, "texts", int), "texts", 0, 2**31)
    weights = WordWeights(
        {word: state.whole(count, "counts", 0, texts) for word, count in counts.items()}, texts
    )
    center, scale = (
        state.tensor(tensors, name, width).to(lm.device) for name in ("center", "scale")
    )
    if not bool((scale > 0).all()):
        raise ValueError("'scale' is not above 0 everywhere")
    logit_scale, threshold = (state.number(values, name, 0) for name in ("sharpness", "threshold"))
    return RouterCalibration(
        weights, center, scale, logit_scale, threshold, tuple(state.texts(values, "judges"))
    )


def superseded(values: Mapping[str, Any], count: int) -> dict[int, list[int]]:
    """Leaf -> the earlier ones in whose place it speaks.

    Raises:
        KeyError, ValueError: that is not said, or one speaks in the place of a later one.
    """
    instead: dict[int, list[int]] = {}
    for number, after in state.rows(values, "later"):
        earlier = state.whole(number, "later", 0, count - 1)
        for each in after:
            instead.setdefault(state.whole(each, "later", earlier + 1, count - 1), []).append(
                earlier
            )
    return instead


def _names(edits: Sequence[Edit]) -> Tensor:
    """What binds leaves to their edits, (edits, 16) bytes."""
    said = (json.dumps([edit.id, edit.prompt, edit.target], ensure_ascii=False) for edit in edits)
    digests = b"".join(
        hashlib.sha256(each.encode("utf-8", "surrogatepass")).digest()[:NAME] for each in said
    )
    return (
        torch.frombuffer(bytearray(digests), dtype=torch.uint8).view(-1, NAME)
        if digests
        else torch.zeros(0, NAME).byte()
    )
