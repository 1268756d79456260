"""`move`: the edits of one model, in another.

Written anew, edits are facts, and any model takes them. *Carried over*, what the first model
learned for them goes along: nothing is trained on the second. Keys are read there, since a key is
how a model reads a prompt; values are carried through the words that both models have (see
`Bridge`, arXiv 2209.02535). What a method can have carried over says `Method.take`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from errata.errors import UsageError
from errata.lm import LM
from errata.lm.background import SCALE_TEXTS, background_texts, value_scale
from errata.model import EditModel
from errata.progress import OnProgress
from errata.report import EditReport
from errata.stream import edit_stream
from errata.transfer.spaces import Bridge

MOVING = "moving edits"
SHORTEST = 1e-12
"""The least length that is divided by."""


@dataclass(frozen=True)
class Moved:
    """What became of the edits.

    Attributes:
        report: what the second model answers to each of them.
        shared: tokens that both vocabularies have; None where nothing was carried over.
    """

    report: EditReport
    shared: int | None


def move(
    source: EditModel,
    target: EditModel,
    folder: str | Path,
    carried: bool = False,
    save_every: int | None = None,
    progress: OnProgress = lambda what, done, total: None,
) -> Moved:
    """Put the edits of one model into another.

    Args:
        source: has the edits; it is not changed.
        target: another base model, without edits, with the same method where they are carried.
        folder: where the second model's edits are saved.
        carried: whether what was learned for them is carried over, or they are written anew.
        save_every: edits between two saves, where they are written anew; cut off, it goes on.
        progress: called with what is done.

    Raises:
        UsageError: the source has no edits; or the target has, and they are to be carried.
        StorageError: the folder cannot be written.
        ConfigError: the method's edits cannot be carried, or the models have no token in common.
        EditError, PromptTooLongError: an edit does not fit the second model, see `EditModel.edit`.
    """
    edits = source.edits
    if not edits:
        raise UsageError("there are no edits to move.")
    if not carried:
        return Moved(edit_stream(target, edits, folder, save_every, progress=progress), None)
    if target.edits:
        raise UsageError("the model has edits already; edits are carried to one without.")
    progress(MOVING, 0, len(edits))
    bridge = Bridge.between(source.lm, target.lm)
    carry = partial(carried_values, source.lm, target.lm, bridge)
    target.edit([])  # whatever has to be there before the first
    with source.disable_edits(), target.disable_edits():
        target.method.take(source.method, carry)
    target.save_pretrained(folder)
    progress(MOVING, len(edits), len(edits))
    report = EditReport(target.check_edits(edits), written=edits, total=len(edits))
    return Moved(report, bridge.shared)


def carried_values(
    source: LM, target: LM, bridge: Bridge, values: Tensor, there: int, here: int
) -> Tensor:
    """Return values (..., d_out) of a block of one model as those of a block of another, in fp32.

    They say the same of the words, and are as long as there, measured by the values that either
    block has on text that its model writes.
    """
    before, after = (
        value_scale(lm, layer, background_texts(lm, SCALE_TEXTS)).value_norm
        for lm, layer in ((source, there), (target, here))
    )
    found = bridge.carry(values)
    length = values.detach().cpu().float().norm(dim=-1, keepdim=True) * (after / before)
    scaled: Tensor = found * length / found.norm(dim=-1, keepdim=True).clamp(min=SHORTEST)
    return scaled
