"""A folio on disk: its leaves as tensors, each bound to its edit by a fingerprint.

What is read back is checked: shapes, ranges, and that each leaf is that of the edit in its place.
The names of tensors and values are those of version 0.1.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from errata.edit import Edit
from errata.lm import LM
from errata.methods.association.folio.calibration import RouterCalibration
from errata.methods.association.folio.intents import INTENTS, IntentClassifier
from errata.methods.association.folio.leaf import Leaf
from errata.methods.association.folio.leaves import Leaves
from errata.methods.association.folio.question_reader import VIEWS, WORDINGS
from errata.methods.association.folio.question_space import QuestionSpace
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
        "question_center": calibration.space.center.cpu(),
        "question_projection": calibration.space.projection.cpu().contiguous(),
        "question_shared": calibration.space.shared.cpu(),
        "question_spread": calibration.space.spread.cpu(),
        "intent_weights": calibration.intents.weights.cpu().contiguous(),
        "intent_bias": calibration.intents.bias.cpu(),
        **_folio_tensors(leaves),
    }
    places = {numbers[edit.id]: place for place, edit in enumerate(edits)}
    return tensors, {
        "counts": calibration.weights.counts,
        "texts": calibration.weights.texts,
        "sharpness": calibration.logit_scale,
        "threshold": calibration.threshold,
        "boundary": calibration.space.boundary,
        "intents": list(INTENTS),
        "wordings": WORDINGS,
        "generic": sorted(calibration.generic),
        "subjects": [leaves[number].subject for number in places],
        **({"withheld": withheld} if any(withheld := _withheld(leaves, places)) else {}),
        "later": [
            [places[number], [places[each] for each in later]]
            for number, later in leaves.superseded_by().items()
        ],
    }


def is_older(values: Mapping[str, Any]) -> bool:
    """Whether what is asked was told by other wordings or views, so that prompts are read anew.

    Raises:
        KeyError, ValueError: it does not say.
    """
    return _is_of_version_0_1(values) or state.number(values, "wordings") != WORDINGS


def _is_of_version_0_1(values: Mapping[str, Any]) -> bool:
    return "intents" not in values


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
    first = _is_of_version_0_1(values)
    withheld: list[Any] = [[]] * len(edits)
    if "withheld" in values:  # where an edit erases
        withheld = state.rows(values, "withheld", len(edits))
        if not all(isinstance(text, str) for texts in withheld for text in texts):
            raise ValueError("'withheld' is not texts for each edit")
    place = 0
    for folio in sorted(
        {int(name[len(FOLIO) :].partition("/")[0]) for name in tensors if name.startswith(FOLIO)}
    ):
        folder = f"{FOLIO}{folio:05d}/"
        rows = state.numbers(tensors, folder + "rows", None, 1, 2**31)
        count, starts = len(rows), [0, *accumulate(rows)]
        shape = (None,) if first else tuple(tensors["question_shared"].shape)
        questions = state.tensor(tensors, folder + "signs", (count, *shape))
        tokens = state.numbers(tensors, folder + "tokens", sum(rows), 0, vocabulary - 1)
        if first:  # with a key for each token, and no intents
            keys = state.tensor(tensors, folder + "keys", (sum(rows), hidden))[starts[:-1]]
            intents = [0] * count
        else:
            keys = state.tensor(tensors, folder + "keys", (count, hidden))
            intents = state.numbers(tensors, folder + "intents", count, 0, len(INTENTS) - 1)
        part = edits[place : place + len(rows)]
        if len(part) < len(rows):
            raise ValueError(f"there are more leaves than the {len(edits)} edits of the ledger")
        if folder + "names" in tensors:  # version 0.1 wrote none
            stored = state.tensor(tensors, folder + "names", (len(rows), FINGERPRINT), "bits")
            if not torch.equal(stored, _fingerprints(part)):
                raise ValueError(
                    f"the leaves of folio {folio} are not those of the edits in their places"
                )
        parts = zip(part, questions, intents, pairwise(starts), keys, strict=True)
        for edit, question, intent, (start, stop), key in parts:
            answer = tuple(tokens[start:stop])
            texts = tuple(withheld[place])
            yield folio, Leaf(edit, subjects[place], question, intent, answer, key, texts)
            place += 1
    if place < len(edits):
        raise ValueError(f"there are {place} leaves for {len(edits)} edits")


def read_fitted(
    tensors: Mapping[str, Tensor], values: Mapping[str, Any], lm: LM
) -> tuple[QuestionSpace, IntentClassifier]:
    """Return what tells questions and ways of asking apart, on the model's device.

    Raises:
        KeyError, ValueError: something is missing or of the wrong shape or range.
    """
    hidden = lm.architecture.hidden_size
    if tensors["question_shared"].dim() != 2:
        raise ValueError("'question_shared' is not (views, dimensions)")
    views, count = tensors["question_shared"].shape
    center, projection, shared, spread, weights, bias = (
        state.tensor(tensors, name, shape).to(lm.device)
        for name, shape in (
            ("question_center", (views, hidden)),
            ("question_projection", (views, hidden, count)),
            ("question_shared", (views, count)),
            ("question_spread", (views,)),
            ("intent_weights", (hidden, len(INTENTS))),
            ("intent_bias", (len(INTENTS),)),
        )
    )
    if views != VIEWS or not count or not bool(((shared > 0) & (shared < 1)).all()):
        raise ValueError(f"'question_shared' is not of {VIEWS} views, between 0 and 1 everywhere")
    if not bool((spread > 0).all()):
        raise ValueError("'question_spread' is not above 0 everywhere")
    state.same(values, "intents", list(INTENTS))
    boundary = state.number(values, "boundary")
    space = QuestionSpace(center, projection, shared, spread, boundary)
    return space, IntentClassifier(weights, bias)


def read_calibration(
    values: Mapping[str, Any], lm: LM, space: QuestionSpace, intents: IntentClassifier
) -> RouterCalibration:
    """Return the statistics of background text, with what tells prompts apart.

    Raises:
        KeyError, ValueError: something is missing or of the wrong range.
    """
    counts = state.value(values, "counts", dict)
    texts = state.whole(state.value(values, "texts", int), "texts", 0, 2**31)
    weights = WordWeights(
        {word: state.whole(count, "counts", 0, texts) for word, count in counts.items()}, texts
    )
    logit_scale, threshold = (state.number(values, name, 0) for name in ("sharpness", "threshold"))
    vocabulary = int(lm.model.get_input_embeddings().weight.shape[0])
    generic = frozenset(  # version 0.1 knew none
        state.whole(token, "generic", 0, vocabulary - 1)
        for token in ([] if "leads" in values else state.value(values, "generic", list))
    )
    return RouterCalibration(weights, logit_scale, space, intents, threshold, generic)


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


def _folio_tensors(leaves: Leaves) -> dict[str, Tensor]:
    """Return the tensors of each folio, named `folio-NUMBER/NAME`.

    A leaf has a key, `keys` (leaves, hidden); `signs` (leaves, views, dimensions), what its prompt
    asks, and `intents` (leaves,), in which way; `names` (leaves, 16), its fingerprint; and its
    answer in `tokens`, which follow one another; `rows` (leaves,) says how many each has.
    """
    tensors: dict[str, Tensor] = {}
    for folio, numbers in leaves.folios.items():
        group = [leaves[number] for number in numbers]
        parts = {
            "keys": torch.stack([leaf.key for leaf in group]),
            "signs": torch.stack([leaf.question for leaf in group]),
            "intents": torch.tensor([leaf.intent for leaf in group]),
            "tokens": torch.tensor([token for leaf in group for token in leaf.tokens]),
            "rows": torch.tensor([len(leaf.tokens) for leaf in group]),
            "names": _fingerprints([leaf.edit for leaf in group]),
        }
        tensors |= {f"{FOLIO}{folio:05d}/{name}": tensor for name, tensor in parts.items()}
    return tensors


def _withheld(leaves: Leaves, numbers: Iterable[int]) -> list[list[str]]:
    return [list(leaves[number].withheld) for number in numbers]


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
