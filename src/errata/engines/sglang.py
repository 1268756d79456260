"""Exported edits in SGLang: a custom logit processor, named by each request that wants them.

    ERRATA_EDITS=my-export python -m sglang.launch_server --model-path MODEL \\
        --enable-custom-logit-processor --disable-overlap-schedule

A request gives `custom_logit_processor`, the text `EditLogits.to_str()`, and `custom_params`, a
dictionary, which may be empty: without one SGLang does not tell whose logits it shows.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from sglang.srt.runtime_context import get_schedule
from sglang.srt.sampling.custom_logit_processor import CustomLogitProcessor

from errata.engines.opening import FOLDER, open_with
from errata.engines.processor import EditProcessor, Route
from errata.engines.rows import Answering, change_rows
from errata.errors import ConfigError

PROMPTS = 1024
"""How many prompts' routes are kept: SGLang makes the processor anew whenever requests come."""


class EditLogits(CustomLogitProcessor):  # type: ignore[misc]
    """Says edits' answers."""

    def __call__(
        self, logits: Any, custom_param_list: Sequence[Mapping[str, Any] | None] | None = None
    ) -> Any:
        """Change logits (rows, vocabulary) in place where an edit answers; return them.

        Args:
            custom_param_list: of each row, its request's `custom_params`; SGLang adds the request.

        Raises:
            ArtifactError: the folder in ERRATA_EDITS cannot be read, or was written for other
                tokens.
            ConfigError: it names none, or SGLang would not tell what was said so far.
        """
        requests = [(params or {}).get("__req__") for params in custom_param_list or ()]
        asked = [(row, request) for row, request in enumerate(requests) if request is not None]
        if not asked:
            return logits
        if len({id(request) for _, request in asked}) < len(asked):
            raise ConfigError("with speculative decoding SGLang does not tell what it guessed.")
        edits = served_edits(os.environ.get(FOLDER, ""), asked[0][1].tokenizer)
        rows: list[Answering] = []
        for row, request in asked:
            route = route_of(edits, tuple(request.origin_input_ids))
            if route.tokens:
                rows.append((row, route, list(request.output_ids)))
        return change_rows(edits, logits, rows)


@lru_cache(maxsize=1)
def served_edits(folder: str, tokenizer: Any) -> EditProcessor:
    """Read the edits in the folder that ERRATA_EDITS names, for SGLang's model.

    Raises:
        ArtifactError: the folder cannot be read.
        BaseMismatchError: the model has other tokens.
        ConfigError: there is no folder or no tokenizer, or SGLang schedules ahead.
    """
    if not folder:
        raise ConfigError(f"{FOLDER} names no folder; set it to one that `errata export` wrote.")
    if not get_schedule().disable_overlap_schedule:
        raise ConfigError(
            "while it schedules ahead, SGLang does not tell the last token that was said; add "
            "--disable-overlap-schedule."
        )
    return open_with(tokenizer, folder)


@lru_cache(maxsize=PROMPTS)
def route_of(edits: EditProcessor, prompt: tuple[int, ...]) -> Route:
    """Decide what a prompt's token ids are answered with; once, as long as they are kept."""
    return edits.route(prompt)
