"""`push_to_hub` of an `EditModel`: the edits and their card; the base model stays where it is."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers.utils import PushToHubMixin

from errata import hub


class Pushable(PushToHubMixin):  # type: ignore[misc]
    """What `save_pretrained` saves can be pushed to a repository of the hub."""

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        max_shard_size: int | str | None = None,
        tags: Sequence[str] | str | None = None,
        base_model: str | None = None,
        license: str | None = None,
        report: str | Path | Mapping[str, Any] | None = None,
    ) -> str:
        """Push the edits to a repository of the hub, with a model card, in one commit.

        The arguments are those of transformers' `push_to_hub`, and what the card says besides.
        `errata.load(repo_id)` loads what was pushed.

        Args:
            repo_id: `user/name`; it is made if there is none.
            private: make a new repository private; of one that is there, make sure that it is.
            max_shard_size: ignored; the files are those of `save_pretrained`.
            tags: further tags of the card.
            base_model: the base model's name on the hub, where it was loaded from a local folder.
            license: of the edits, as the hub abbreviates it; None says nothing.
            report: figures for the card: `evaluate(...).to_dict()`, or the file that `errata eval
                --json` has written. Without them it says that nothing was measured.

        Returns:
            the address of the commit, or of the pull request.

        Raises:
            UsageError: the name is none, the repository holds a base model or is public and should
                not be, or what is said about the edits is not right.
            HubError: there is no token, the hub refuses, or it cannot be reached.
        """
        if report is None:
            figures = None
        elif isinstance(report, Mapping):
            figures = hub.figures_of(report)
        else:
            figures = hub.read_figures(Path(report))
        more = (tags,) if isinstance(tags, str) else tuple(tags or ())
        options = hub.CommitOptions(
            private, token, revision, create_pr, commit_message, commit_description
        )
        about = hub.About(base_model, license, figures, more)
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            self.save_pretrained(folder)
            return hub.push(folder, repo_id, about, options)
