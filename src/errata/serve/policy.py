"""What a server refuses to write, whoever asks: a `Policy` of its own, and those of plug-ins.

A policy is asked when the edits are in the model and before anyone is answered by them, so it may
look at the conflicts and warnings that writing them has found; what it refuses is taken out again.
A plug-in is a function of a `Proposal` under the entry point `errata.policies`, named in the file
of `--policy`. The file is TOML, and everything in it may be left out::

    blocked = ["(?i)password"]      # patterns that prompt, target and subject must not match
    longest = 2000                  # characters of a prompt or a target
    conflicts = "refuse"            # or "allow": edits that contradict one in the model
    warnings = "refuse"             # or "allow": e.g. a subject that stands in most texts
    plugins = ["my-company"]
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

from errata.edit import Edit
from errata.errors import UsageError, quoted, suggest
from errata.report import EditReport

GROUP = "errata.policies"
CHOICES = ("allow", "refuse")


class RefusedError(UsageError):
    """A policy does not allow an edit; nothing was written."""


@dataclass(frozen=True)
class Proposal:
    """Edits that are about to be kept.

    Attributes:
        edits: those that would be written.
        actor: who wants it.
        held: the edits in the model before.
        report: what writing them has found.
    """

    edits: Sequence[Edit]
    actor: str
    held: Sequence[Edit]
    report: EditReport


Plugin = Callable[[Proposal], str | None]
"""Returns why a proposal is refused, or None."""


@dataclass(frozen=True)
class Policy:
    """What is refused.

    Attributes:
        blocked: patterns that an edit's texts must not match.
        longest: characters of a prompt or a target, at most.
        conflicts: whether edits that contradict one in the model are allowed.
        warnings: whether edits that may do something else than meant are allowed: their own prompt
            does not reach them, or their subject stands in most texts.
        plugins: asked after all that.
    """

    blocked: tuple[re.Pattern[str], ...] = ()
    longest: int = 10_000
    conflicts: bool = True
    warnings: bool = False
    plugins: tuple[Plugin, ...] = ()

    def refusal(self, actor: str, held: Sequence[Edit], report: EditReport) -> str | None:
        """Return why what was written would be refused, or None; see `Proposal`."""
        try:
            self.check(Proposal(report.written, actor, held, report))
        except RefusedError as error:
            return str(error)
        return None

    def check(self, proposal: Proposal) -> None:
        """Make sure that a proposal is allowed.

        Raises:
            RefusedError: it is not; why is said.
        """
        for edit in proposal.edits:
            if (length := max(len(edit.prompt), len(edit.target))) > self.longest:
                raise RefusedError(
                    f"the edit {edit.id} has a text of {length} characters; the policy allows "
                    f"{self.longest}."
                )
            texts = (edit.prompt, edit.target, edit.subject or "", *edit.aliases)
            for pattern in self.blocked:
                if any(pattern.search(text) for text in texts):
                    raise RefusedError(
                        f"the edit {edit.id} matches the blocked pattern {quoted(pattern.pattern)}."
                    )
        report = proposal.report
        if report.conflicts and not self.conflicts:
            new, old = report.conflicts[0]
            raise RefusedError(
                f"the edit {new} contradicts {old}, which the policy does not allow: undo that one "
                "first."
            )
        if report.warnings and not self.warnings:
            edit_id, warning = report.warnings[0]
            raise RefusedError(f"the edit {edit_id} is refused by the policy: {warning}")
        for plugin in self.plugins:
            if why := plugin(proposal):
                raise RefusedError(f"refused by the policy: {why}")


def read_policy(path: Path) -> Policy:
    """Read a file of a policy.

    Raises:
        UsageError: it cannot be read, or what it says is not valid.
    """
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: the policy cannot be read ({error}).") from error
    known = ("blocked", "longest", "conflicts", "warnings", "plugins")
    for name in given:
        if name not in known:
            raise UsageError(f"{path}: unknown field {quoted(name)}.{suggest(name, known)}")
    default = Policy()
    longest = given.get("longest", default.longest)
    if not isinstance(longest, int) or isinstance(longest, bool) or longest < 1:
        raise UsageError(f"{path}: 'longest' is a number of characters, got {quoted(longest)}.")
    return Policy(
        tuple(_pattern(path, each) for each in _texts(path, given, "blocked")),
        longest,
        _allowed(path, given, "conflicts", default.conflicts),
        _allowed(path, given, "warnings", default.warnings),
        tuple(_plugin(path, each) for each in _texts(path, given, "plugins")),
    )


def _texts(path: Path, given: dict[str, object], name: str) -> list[str]:
    found = given.get(name, [])
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise UsageError(f"{path}: {name!r} is a list of texts, got {quoted(found)}.")
    return found


def _allowed(path: Path, given: dict[str, object], name: str, default: bool) -> bool:
    found = given.get(name, CHOICES[not default])
    if found not in CHOICES:
        raise UsageError(f"{path}: {name!r} is {quoted(found)}; it is allow or refuse.")
    return found == "allow"


def _pattern(path: Path, text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise UsageError(f"{path}: {quoted(text)} is no pattern ({error}).") from error


def _plugin(path: Path, name: str) -> Plugin:
    known = {point.name: point for point in entry_points(group=GROUP)}
    if name not in known:
        raise UsageError(f"{path}: no plug-in is called {quoted(name)}.{suggest(name, known)}")
    try:
        plugin = known[name].load()
    except Exception as error:
        raise UsageError(f"{path}: the plug-in {quoted(name)} cannot be loaded: {error}") from error
    if not callable(plugin):
        raise UsageError(f"{path}: the plug-in {quoted(name)} is no function.")
    return plugin  # type: ignore[no-any-return]
