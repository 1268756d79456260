"""Exported edits in vLLM: a plug-in that it finds by itself wherever errata is installed.

    ERRATA_EDITS=my-export vllm serve MODEL

vLLM has two model runners, each with an interface of its own, and one place for the plug-ins of
both; so `EditLogits` is a processor for either. Without ERRATA_EDITS it does nothing. A request
with `"vllm_xargs": {"errata": false}` is answered without the edits.
"""

from __future__ import annotations

import os
from typing import Any

from vllm.tokenizers import cached_tokenizer_from_config
from vllm.v1.sample.logits_processor import LogitsProcessor

from errata.engines.opening import FOLDER, open_with
from errata.engines.processor import EditProcessor
from errata.engines.rows import EditRows, EditSlots
from errata.errors import ConfigError

try:
    from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as SlotProcessor
except ImportError:  # a release that has one runner only
    SlotProcessor = object

WANTED = "errata"
"""The request's argument that says whether edits answer."""


class EditLogits(LogitsProcessor, SlotProcessor):  # type: ignore[misc]
    """Says edits' answers; vLLM makes one for each worker.

    Args:
        vllm_config: vLLM's configuration.
        where: the newer runner's states of requests, or the older one's device.

    Raises:
        ArtifactError: the folder in ERRATA_EDITS cannot be read, or was written for other tokens.
        ConfigError: vLLM would not tell what was said so far, or has no tokenizer.
    """

    def __init__(self, vllm_config: Any, where: Any, is_pin_memory: bool = False) -> None:
        self._rows: EditRows | None = None
        self._slots: EditSlots | None = None
        edits = edits_for(vllm_config)
        if edits is None:
            return
        if hasattr(where, "all_token_ids"):
            self._slots = EditSlots(edits, where)
            return
        named = vllm_config.model_config.logits_processors
        if vllm_config.scheduler_config.async_scheduling and not named:
            raise ConfigError(
                "while it schedules ahead, vLLM's V1 model runner tells what was said only to the "
                "processors it is given by name; add --logits-processors "
                f"{__name__}:{type(self).__name__}, or --no-async-scheduling."
            )
        self._rows = EditRows(edits)

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Refuse a request whose argument `errata` is neither true nor false."""
        wanted(sampling_params)

    def is_argmax_invariant(self) -> bool:
        """Return False: an edit changes which token is likeliest."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Follow the older runner's batch: requests come, go, and change their rows."""
        if self._rows is None or batch_update is None:
            return
        for row in batch_update.removed:
            self._rows.remove(row)
        for row, params, prompt, said in batch_update.added:
            self._rows.add(row, prompt if wanted(params) else None, said)
        for row, to, direction in batch_update.moved:
            self._rows.move(row, to, swap=direction.name == "SWAP")

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """Take a request into a slot of the newer runner; return whether an edit may answer it."""
        if self._slots is None:
            return False
        if wanted(sampling_params):
            self._slots.add(req_idx)
            return True
        self._slots.remove(req_idx)
        return False

    def apply_staged_writes(self) -> None:
        """Read the prompts of the newer runner's new requests."""
        if self._slots is not None:
            self._slots.read()

    def apply(self, logits: Any, ctx: Any = None) -> Any:
        """Change logits (rows, vocabulary) in place where an edit answers; return them."""
        if self._slots is not None:
            return self._slots.change(logits, ctx)
        return logits if self._rows is None else self._rows.change(logits)


def edits_for(vllm_config: Any) -> EditProcessor | None:
    """Read the edits in the folder that ERRATA_EDITS names, for vLLM's model; None: it names none.

    Raises:
        ArtifactError: the folder cannot be read.
        BaseMismatchError: the model has other tokens.
        ConfigError: vLLM has no tokenizer, so that cannot be told.
    """
    folder = os.environ.get(FOLDER)
    if not folder:
        return None
    return open_with(cached_tokenizer_from_config(vllm_config.model_config), folder)


def wanted(sampling_params: Any) -> bool:
    """Tell whether a request is to be answered with the edits; by default it is.

    Raises:
        ConfigError: its argument is neither true nor false.
    """
    given = (sampling_params.extra_args or {}).get(WANTED, True)
    if given not in (True, False):
        raise ConfigError(f"{WANTED} is {given!r}; it is true or false: with the edits or without.")
    return bool(given)
