"""What is sent to the server and comes back, beside OpenAI's own: edits, versions, problems."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from errata.conflicts import OnConflict
from errata.edit import Edit
from errata.errors import EditError
from errata.report import EditResult
from errata.serve.preview import Kind, Preview
from errata.serve.service import Changed
from errata.serve.settling import Settling

PROBLEM = "application/problem+json"
"""The media type of problem details."""
Pair = Annotated[list[str], Field(min_length=2, max_length=2)]
"""Two texts: a list of two, since many tools that read a schema know no tuple."""
MOST_EDITS = 1000
"""Edits in one call."""
MOST_PROMPTS = 100
"""Prompts that a preview may ask."""


class Strict(BaseModel):
    """An object whose fields are all known."""

    model_config = ConfigDict(extra="forbid")


class EditIn(Strict):
    """A correction."""

    prompt: str = Field(description="The question, as it will be asked.")
    target: str = Field(
        "", description="The answer it should give; to `erase`, instead of the fact."
    )
    subject: str | None = Field(None, description="Who or what it is about, as in the prompt.")
    aliases: list[str] = Field([], description="Other names of the subject.")
    operation: Literal["insert", "modify", "erase"] = "modify"
    id: str = Field("", description="The name to undo it by; by default a hash of its contents.")
    source: str | None = Field(None, description="Where the fact is from.")

    def made(self) -> Edit:
        """Return the edit.

        Raises:
            EditError: a field is not valid.
        """
        return Edit.from_dict(self.model_dump(include=set(EditIn.model_fields)))


class EditsIn(EditIn):
    """One correction, or a list of them under `edits`."""

    prompt: str = ""
    target: str = ""
    edits: list[EditIn] | None = Field(None, max_length=MOST_EDITS)

    @model_validator(mode="after")
    def _one_or_many(self) -> Self:
        if self.edits is not None and self.model_fields_set != {"edits"}:
            raise ValueError("give the fields of one edit, or 'edits', not both")
        if self.edits == []:
            raise ValueError("'edits' is empty")
        return self

    def all(self) -> list[Edit]:
        """Return the edits.

        Raises:
            EditError: one is not valid; its place is named.
        """
        if self.edits is None:
            return [self.made()]
        found = []
        for place, edit in enumerate(self.edits):
            try:
                found.append(edit.made())
            except EditError as error:
                raise EditError(f"edits[{place}]: {error}") from error
        return found


class EditOut(EditIn):
    """An edit in the model."""

    id: str = Field(description="The name to undo it by.")
    time: str | None = Field(None, description="When it was written, in UTC.")

    @classmethod
    def of(cls, edit: Edit) -> Self:
        """Return an edit as it is sent."""
        return cls.model_validate(edit.to_dict())


class EditList(BaseModel):
    """A page of edits."""

    object: Literal["list"] = "list"
    data: list[EditOut]
    total: int = Field(description="Edits that match, on all pages.")
    next: str | None = Field(None, description="The id to give as `after` for the next page.")


class CheckOut(BaseModel):
    """The answer to an edit's prompt after the change."""

    id: str
    answer: str
    success: bool = Field(description="Whether it is the edit's target.")

    @classmethod
    def of(cls, result: EditResult) -> Self:
        """Return a result as it is sent."""
        return cls(id=result.edit.id, answer=result.answer, success=result.success)


class ChangeOut(BaseModel):
    """What became of a change."""

    version: int = Field(description="The model's version after it.")
    written: list[str] = Field([], description="Ids of edits that were written.")
    skipped: list[str] = Field([], description="Ids of edits that were there, or gave way.")
    conflicts: list[Pair] = Field([], description="(new id, older id) that disagree.")
    warnings: list[Pair] = Field([], description="(id, what to know).")
    results: list[CheckOut] = Field([], description="What is answered to the edits' prompts now.")

    @classmethod
    def of(cls, changed: Changed, results: list[EditResult] | None = None) -> Self:
        """Return a change as it is sent."""
        report = changed.report
        if report is None:
            return cls(version=changed.version)
        return cls(
            version=changed.version,
            written=[edit.id for edit in report.written],
            skipped=report.skipped,
            conflicts=[list(pair) for pair in report.conflicts],
            warnings=[list(pair) for pair in report.warnings],
            results=[CheckOut.of(result) for result in results or []],
        )


class JobOut(BaseModel):
    """A change that goes on while its caller does not wait."""

    id: str
    status: Literal["running", "done", "failed"]
    result: ChangeOut | None = None
    problem: Problem | None = None


class PreviewIn(Strict):
    """Edits that are tried, and what else is asked before and after."""

    edits: list[EditIn] = Field(min_length=1, max_length=MOST_PROMPTS)
    prompts: list[str] = Field([], max_length=MOST_PROMPTS, description="Your regression set.")
    on_conflict: OnConflict = "replace"


class PreviewRow(BaseModel):
    """One prompt before and after."""

    prompt: str
    kind: Kind = Field(
        description="The edit's own, one of yours, or that of a stored edit about its subject."
    )
    before: str
    after: str
    changed: bool
    wanted: str | None = Field(None, description="The edit's target.")


class PreviewOut(BaseModel):
    """What would change."""

    version: int = Field(description="The version that the edits were tried on.")
    rows: list[PreviewRow]
    conflicts: list[Pair]
    warnings: list[Pair]
    refused: str | None = Field(description="Why the policy would not keep them, if it would not.")

    @classmethod
    def of(cls, version: int, found: Preview) -> Self:
        """Return a preview as it is sent."""
        rows = [PreviewRow(**asdict(row), changed=row.before != row.after) for row in found.rows]
        return cls(
            version=version,
            rows=rows,
            conflicts=[list(pair) for pair in found.conflicts],
            warnings=[list(pair) for pair in found.warnings],
            refused=found.refused,
        )


class SettlingOut(BaseModel):
    """What became of edits that a server moves into weights in its idle time."""

    state: Literal["off", "waiting", "working", "settled", "refused", "failed"] = Field(
        "off", description="`settled`: a model with edits in its weights answers."
    )
    version: int = Field(0, description="Whose edits it is about.")
    doing: str = Field("", description="What goes on while `working`.")
    done: int = 0
    total: int = 0
    settled: list[str] = Field([], description="Ids of edits in the weights.")
    both: list[str] = Field([], description="Those of them that are beside the weights, too.")
    refused: list[Pair] = Field([], description="(id, what would get worse).")
    problem: str | None = Field(None, description="Why it failed.")

    @classmethod
    def of(cls, now: Settling | None) -> Self:
        """Return it as it is sent."""
        if now is None:
            return cls()
        found = now.found
        return cls(
            state=now.state,
            version=now.version,
            doing=now.what,
            done=now.done,
            total=now.total,
            settled=[edit.id for edit in found.settled],
            both=[edit.id for edit in found.both],
            refused=[[edit.id, why] for edit, why in found.refused],
            problem=now.problem,
        )


class VersionOut(BaseModel):
    """An entry of the ledger."""

    version: int
    time: str
    actor: str
    action: str
    edits: list[str]
    activates: int | None = None
    hash: str


class VersionList(BaseModel):
    """Versions of the model."""

    object: Literal["list"] = "list"
    active: int = Field(description="The version that answers.")
    data: list[VersionOut]


class Problem(BaseModel):
    """What went wrong (RFC 9457), with OpenAI's `error` beside it."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    error: dict[str, Any] = Field(description="As OpenAI's clients read it.")

    @classmethod
    def of(cls, status: int, title: str, detail: str) -> Self:
        """Return a problem in both forms."""
        error = {"message": detail, "type": title, "code": status, "param": None}
        return cls(title=title, status=status, detail=detail, error=error)


JobOut.model_rebuild()
