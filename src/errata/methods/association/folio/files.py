"""A folio on disk: its leaves as tensors, each bound to its edit by a fingerprint.

What is read back is checked: shapes, ranges, and that each leaf is that of the edit in its place.
The names of tensors and values are those of version 0.1.
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
from errata.methods.association.folio.calibration import RouterCalibration
from errata.methods.association.folio.leaf import Leaf
from errata.methods.association.folio.leaves import Leaves
from errata.storage import state
from errata.words.names import WordWeights

FOLIO = "folio-"
"""A folio's file is named by this and its number."""
FINGERPRINT = 16
"""Bytes of the fingerprint that binds a leaf to its edit."""


def state_of(
    leaves: Leaves, edits: Sequence[Edit], numbers: Mapping[str, int]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return (tensors, plain values) of leaves and their calibration.

    Args:
        leaves: the leaves.
        edits: the ledger; leaves are known by their places in it.
        numbers: edit id -> the number of its leaf.
    """
    calibration = leaves.calibration
    tensors = {
        "center": calibration.center.cpu(),
        "scale": calibration.scale.cpu(),
        **_folio_tensors(leaves, edits),
    }
    places = {numbers[edit.id]: place for place, edit in enumerate(edits)}
    return tensors, {
        "counts": calibration.weights.counts,
        "texts": calibration.weights.texts,
        "sharpness": calibration.logit_scale,
        "threshold": calibration.threshold,
        "judges": calibration.reference_prompts,
        "leads": [list(leaves[number].answer_prefix) for number in places],
        "subjects": [leaves[number].subject for number in places],
        "later": [
            [places[number], [places[each] for each in later]]
            for number, later in leaves.superseded_by().items()
        ],
    }


def read_leaves(
    tensors: Mapping[str, Tensor], values: Mapping[str, Any], edits: Sequence[Edit], lm: LM
) -> Iterator[tuple[int, Leaf]]:
    """Yield (folio, leaf) for each edit, in their order; the tensors are not copied.

    Raises:
        KeyError, ValueError: something is missing or of the wrong shape, range or order.
    """
    hidden = lm.architecture.hidden_size
    vocabulary = int(lm.model.get_input_embeddings().weight.shape[0])
    subjects = state.texts(values, "subjects", len(edits))
    prefixes = [
        tuple(state.whole(token, "leads", 0, vocabulary - 1) for token in prefix)
        for prefix in state.rows(values, "leads", len(edits))
    ]
    place = 0
    for folio in sorted(
        {int(name[len(FOLIO) :].partition("/")[0]) for name in tensors if name.startswith(FOLIO)}
    ):
        folder = f"{FOLIO}{folio:05d}/"
        rows = state.numbers(tensors, folder + "rows", None, 1, 2**31)
        query_states = state.tensor(tensors, folder + "signs", (len(rows), hidden))
        tokens = state.numbers(tensors, folder + "tokens", sum(rows), 0, vocabulary - 1)
        keys, added = (
            state.tensor(tensors, folder + name, (sum(rows), hidden)) for name in ("keys", "values")
        )
        part = edits[place : place + len(rows)]
        if len(part) < len(rows):
            raise ValueError(f"there are more leaves than the {len(edits)} edits of the ledger")
        if folder + "names" in tensors:  # version 0.1 wrote none
            stored = state.tensor(tensors, folder + "names", (len(rows), FINGERPRINT), "bits")
            if not torch.equal(stored, _fingerprints(part)):
                raise ValueError(
                    f"the leaves of folio {folio} are not those of the edits in their places"
                )
        bounds = pairwise([0, *accumulate(rows)])
        for edit, query_state, (start, stop) in zip(part, query_states, bounds, strict=True):
            leaf = Leaf(
                edit.id,
                edit.prompt,
                subjects[place],
                edit.target,
                prefixes[place],
                query_state,
                tuple(tokens[start:stop]),
                keys[start:stop],
                added[start:stop],
            )
            yield folio, leaf
            place += 1
    if place < len(edits):
        raise ValueError(f"there are {place} leaves for {len(edits)} edits")


def read_calibration(
    tensors: Mapping[str, Tensor], values: Mapping[str, Any], lm: LM
) -> RouterCalibration:
    """Return the statistics of background text, on the model's device.

    Raises:
        KeyError, ValueError: something is missing or of the wrong shape or range.
    """
    hidden, counts = (lm.architecture.hidden_size,), state.value(values, "counts", dict)
    texts = state.whole(state.value(values, "texts", int), "texts", 0, 2**31)
    weights = WordWeights(
        {word: state.whole(count, "counts", 0, texts) for word, count in counts.items()}, texts
    )
    center, scale = (
        state.tensor(tensors, name, hidden).to(lm.device) for name in ("center", "scale")
    )
    if not bool((scale > 0).all()):
        raise ValueError("'scale' is not above 0 everywhere")
    logit_scale, threshold = (state.number(values, name, 0) for name in ("sharpness", "threshold"))
    reference_prompts = tuple(state.texts(values, "judges"))
    return RouterCalibration(weights, center, scale, logit_scale, threshold, reference_prompts)


def read_supersedes(values: Mapping[str, Any], count: int) -> dict[int, list[int]]:
    """Return, for each of `count` leaves that supersedes others, the earlier leaves.

    Raises:
        KeyError, ValueError: the entry is missing, or a leaf supersedes a later one.
    """
    supersedes: dict[int, list[int]] = {}
    for number, later in state.rows(values, "later"):
        earlier = state.whole(number, "later", 0, count - 1)
        for each in later:
            place = state.whole(each, "later", earlier + 1, count - 1)
            supersedes.setdefault(place, []).append(earlier)
    return supersedes


def _folio_tensors(leaves: Leaves, edits: Sequence[Edit]) -> dict[str, Tensor]:
    """Return the tensors of each folio, named `folio-NUMBER/NAME`.

    Leaves follow one another: `keys` and `values` are (rows, hidden) and `tokens` (rows,); `rows`
    (leaves,) says how many of these each leaf has. `signs` (leaves, hidden) are the query states,
    and `names` (leaves, 16) the fingerprints.
    """
    edit_by_id = {edit.id: edit for edit in edits}
    tensors: dict[str, Tensor] = {}
    for folio, numbers in leaves.folios.items():
        group = [leaves[number] for number in numbers]
        parts = {
            "keys": torch.cat([leaf.keys for leaf in group]),
            "values": torch.cat([leaf.values for leaf in group]),
            "signs": torch.stack([leaf.query_state for leaf in group]),
            "tokens": torch.tensor([token for leaf in group for token in leaf.tokens]),
            "rows": torch.tensor([len(leaf.keys) for leaf in group]),
            "names": _fingerprints([edit_by_id[leaf.edit_id] for leaf in group]),
        }
        tensors |= {f"{FOLIO}{folio:05d}/{name}": tensor for name, tensor in parts.items()}
    return tensors


def _fingerprints(edits: Sequence[Edit]) -> Tensor:
    """Return a digest of each edit's id, prompt and target, (edits, 16) bytes."""
    texts = (json.dumps([edit.id, edit.prompt, edit.target], ensure_ascii=False) for edit in edits)
    digests = b"".join(
        hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:FINGERPRINT]
        for text in texts
    )
    if not digests:
        return torch.zeros(0, FINGERPRINT).byte()
    return torch.frombuffer(bytearray(digests), dtype=torch.uint8).view(-1, FINGERPRINT)
