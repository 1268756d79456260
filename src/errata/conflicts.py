"""Which edits contradict others, and what becomes of them: found and decided once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from errata.config import check_choice
from errata.edit import Edit, same_answer
from errata.errors import EditError

OnConflict = Literal["replace", "keep", "error"]
"""What becomes of an edit that contradicts an older one: it is written and meant to win, left out,
or refused.
"""
Conflict = tuple[str, str]
"""(id of the new edit, id of the older one): both ask the same and want different answers."""


@dataclass(frozen=True)
class Accepted:
    """The edits of a list that are to be written.

    Attributes:
        edits: these.
        conflicts: what they, and those left out, contradict.
        left_out: ids of the edits that gave way to older ones.
    """

    edits: list[Edit]
    conflicts: list[Conflict]
    left_out: list[str] = field(default_factory=list)


def new_among(edits: Iterable[Edit], held: Iterable[Edit]) -> tuple[list[Edit], list[str]]:
    """Split edits into (those that are new, the ids of those that are held, or come twice).

    Raises:
        EditError: two different edits carry the same id.
    """
    known = {edit.id: edit for edit in held}
    new, present = [], []
    for edit in edits:
        if edit.id not in known:
            known[edit.id] = edit
            new.append(edit)
        elif known[edit.id] == edit:
            present.append(edit.id)
        else:
            raise EditError(
                f"the id {edit.id!r} already belongs to another edit: {known[edit.id].prompt!r}."
            )
    return new, present


def same_prompt_conflicts(edits: Iterable[Edit], held: Iterable[Edit]) -> list[Conflict]:
    """Find edits with an older edit's prompt, held or earlier in the list, and another answer."""
    older = defaultdict(list)
    for edit in held:
        older[edit.prompt].append(edit)
    found = []
    for edit in edits:
        found += [
            (edit.id, each.id)
            for each in older[edit.prompt]
            if not same_answer(each.target, edit.target)
        ]
        older[edit.prompt].append(edit)
    return found


def accept(
    edits: Sequence[Edit],
    conflicts: Sequence[Conflict],
    on_conflict: OnConflict,
    held: Iterable[Edit],
) -> Accepted:
    """Decide which edits are written.

    Args:
        edits: all new ones.
        conflicts: all that there are among them, and between them and held ones.
        on_conflict: what becomes of an edit that contradicts an older one.
        held: the edits that are in the model.

    Raises:
        EditError: there are conflicts, and `on_conflict` is `error`.
        ConfigError: `on_conflict` is none of its choices.
    """
    check_choice("on_conflict", on_conflict, get_args(OnConflict))
    if on_conflict == "error" and conflicts:
        raise _refusal(conflicts, {edit.id: edit for edit in (*held, *edits)})
    if on_conflict != "keep":
        return Accepted(list(edits), list(conflicts))
    left_out: dict[str, None] = {}
    decisive = []
    for new, older in conflicts:
        if older not in left_out:
            left_out[new] = None
            decisive.append((new, older))
    kept = [edit for edit in edits if edit.id not in left_out]
    return Accepted(kept, decisive, list(left_out))


def _refusal(conflicts: Sequence[Conflict], known: dict[str, Edit]) -> EditError:
    new, old = (known[name] for name in conflicts[0])
    more = f" ({len(conflicts) - 1} more)" if len(conflicts) > 1 else ""
    return EditError(
        f"{new.id} ({new.prompt!r}, {new.target!r}) asks what {old.id} ({old.prompt!r}, "
        f"{old.target!r}) asks and wants another answer{more}; nothing was written. Take one out, "
        "or let the later one win (replace) or the older one stay (keep)."
    )
