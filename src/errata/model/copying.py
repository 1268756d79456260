"""Independent copies of a `PatchedModel`, by `copy` and by pickle.

A copy has a base model of its own, and the method's state is loaded into it as from disk.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from errata.config import MethodConfig
from errata.edit import Edit


def contents(model: Any, memo: dict[int, Any]) -> tuple[Any, ...]:
    """Return the arguments of `rebuild` for an equal model, none of them shared with this one.

    Args:
        memo: of `__deepcopy__`; {} for pickle.
    """
    with model._base_alone("copying"):
        base, tokenizer = copy.deepcopy((model.base, model.tokenizer), memo)
        tensors, values = model.method.state()
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        return (
            type(model),
            (base, model.method.config, tokenizer),
            (model.edits, tensors, copy.deepcopy(values)),
            {"base_answers": dict(model.base_answers), "origin": copy.deepcopy(model.origin)},
        )


def rebuild(
    cls: type[Any],
    arguments: tuple[PreTrainedModel, MethodConfig, PreTrainedTokenizerBase],
    state: tuple[list[Edit], dict[str, Tensor], dict[str, Any]],
    attributes: dict[str, Any],
) -> Any:
    """Make a model from its class, the class's arguments, the method's state and attributes."""
    model = cls(*arguments)
    vars(model).update(attributes)
    with model._base_alone("copying"):
        model.method.load_state(*state)
    return model
