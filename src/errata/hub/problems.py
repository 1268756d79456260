"""What goes wrong with the hub, as one line each."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from huggingface_hub import errors

from errata.errors import ErrataError, HubError

_BY_STATUS = {
    401: "the token is missing or not valid; `hf auth login` takes one, or $HF_TOKEN",
    403: "the token may not write there; it needs the right to write to this repository",
    404: "there is no such repository, or the token may not see it",
    409: "somebody else has written there meanwhile; push again",
    412: "somebody else has written there meanwhile; push again",
}


@contextlib.contextmanager
def named(repo: str) -> Iterator[None]:
    """Raise a `HubError` that names the repository for anything that the hub's library raises."""
    try:
        yield
    except ErrataError:
        raise
    except (errors.HTTPError, errors.EntryNotFoundError, OSError, ValueError) as error:
        raise HubError(f"{repo}: {reason(error)}.") from error


def reason(error: BaseException) -> str:
    """Say in a few words why the hub could not be used."""
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "the hub cannot be reached: no network, or $HF_HUB_OFFLINE is set"
    if isinstance(error, errors.LocalTokenNotFoundError):
        return _BY_STATUS[401]
    if isinstance(error, errors.GatedRepoError):
        return "the repository is gated; ask for access on its page, then `hf auth login`"
    if isinstance(error, errors.RevisionNotFoundError):
        return "the repository has no such revision"
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return "the repository has no such file"
    if isinstance(error, errors.LocalEntryNotFoundError):
        return "it is not in the hub's cache, and the hub cannot be reached"
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        return _BY_STATUS.get(status) or f"the hub answered {status}: {_in_one_line(error)}"
    if isinstance(error, errors.HTTPError):
        return f"the hub cannot be reached ({_in_one_line(error)})"
    return _in_one_line(error)


def _in_one_line(error: BaseException) -> str:
    said = " ".join(str(error).split()) or type(error).__name__
    return said[:200].rstrip(".")
