"""Exported edits in llama.cpp, through llama-cpp-python, on a quantized GGUF file itself.

model = Llama("smollm2-135m.gguf")
edits = edits_for(model, "edits")
model.create_completion(prompt, logits_processor=logits_processor(edits))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from errata.engines.opening import open_edits
from errata.engines.processor import EditProcessor
from errata.engines.space import Array


def edits_for(model: Any, folder: str) -> EditProcessor:
    """Read exported edits for a model, and make sure that it has the tokens they were written in.

    Args:
        model: a `llama_cpp.Llama`.
        folder: written by `errata export`.

    Raises:
        ArtifactError: the folder cannot be read.
        BaseMismatchError: the model has other tokens.
    """

    def encode(text: str) -> list[int]:
        return list(model.tokenize(text.encode(), add_bos=False, special=False))

    return open_edits(folder, encode, "give a GGUF file of that model")


def logits_processor(edits: EditProcessor) -> Callable[[Any, Any], Any]:
    """Return what llama-cpp-python calls before each token of one completion; make one for each."""
    state: dict[str, Any] = {}

    def process(input_ids: Any, scores: Any) -> Any:
        ids = np.asarray(input_ids).tolist()
        if not state:
            state["length"], state["route"] = len(ids), edits.route(ids)
        said, logits = ids[state["length"] :], np.asarray(scores)
        changed: Array = edits.change(state["route"], said, logits)
        if changed is not logits:
            scores[:] = changed
        return scores

    return process
