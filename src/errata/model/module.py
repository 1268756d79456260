"""`EditedModule`: an edited model as others hold an `nn.Module`: looked into, moved, converted,
copied.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, Self

from torch import Tensor
from transformers import (
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from errata.config import MethodConfig
from errata.edit import Edit
from errata.errors import ConfigError
from errata.model.delegation import passed_on
from errata.model.patched import PatchedModel, plain_torch
from errata.saving import Origin


class EditedModule(PatchedModel):
    """A `PatchedModel` with the verbs of `nn.Module`; see `EditModel`."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            base = self.__dict__.get("_modules", {}).get("base")
            if base is None:
                raise
            return passed_on(base, name)

    @property
    def config(self) -> PreTrainedConfig:
        """The base model's."""
        return self.base.config

    @property
    def generation_config(self) -> GenerationConfig:
        """The base model's; `generate` goes by it, `ask` does not."""
        return self.base.generation_config

    @generation_config.setter
    def generation_config(self, settings: GenerationConfig) -> None:
        self.base.generation_config = settings

    def train(self, mode: bool = True) -> Self:
        """Nothing, for an edited model is always in evaluation mode: dropout would change its
        answers.

        Raises:
            ConfigError: it is to be trained.
        """
        if mode:
            raise ConfigError(
                "train() is not possible on an edited model, which stays in evaluation mode; train the base model before it "
                "is edited, or what merge_and_unload gives back."
            )
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Nothing, for the base model's parameters are frozen.

        Raises:
            ConfigError: they are to be trained.
        """
        return self.train(requires_grad)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What `to`, `half`, `cuda` and their like do: move or convert the base model and what the
        method holds.

        The edits are then those of an artifact that was loaded onto such a base model.
        """
        places = getattr(self.base, "hf_device_map", None) or {}
        if len(set(places.values())) > 1:
            raise ConfigError(
                "this base model is spread over several devices and cannot be moved; load it where it shall be."
            )
        with self._lock.exclusive("to"):
            self._check_usable()
            with plain_torch(self.base.device), self._patch_off():
                held = self.method.edits, *self.method.state()
                super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
                self._place = self._found()
                self._take(*held)
        return self

    def _take(
        self, edits: list[Edit], tensors: Mapping[str, Tensor], values: Mapping[str, Any]
    ) -> None:
        """Put in a new method that is what `Method.state` described; the patch is off."""
        method = type(self.method)(self.config_of_method, self.lm)
        method.load_state(edits, tensors, values)
        self.method = method

    def extra_repr(self) -> str:
        """The method and the number of edits, for `repr`."""
        return f"method={self.config_of_method.method}, edits={len(self.edits)}"

    def to_empty(self, **_: Any) -> Self:
        """Refused: the weights would be lost.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("to_empty would lose the weights; call to() with a device.")

    def state_dict(  # type: ignore[override]
        self,
        *,
        destination: dict[str, Any] | None = None,
        prefix: str = "",
        keep_vars: bool = False,
    ) -> dict[str, Any]:
        """The edits' own tensors, on the CPU, as they are saved; the base model's are
        `get_base_model().state_dict()`.
        """
        with self._base_alone("state_dict"):
            tensors, _ = self.method.state()
        found: dict[str, Any] = {} if destination is None else destination
        found.update((prefix + name, tensor) for name, tensor in tensors.items())
        return found

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: tensors alone do not tell which edits they are.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "edits are more than their tensors; use save_pretrained and from_pretrained (or pickle)."
        )

    # copies

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        copied: Self = _remade(*self._parts(memo))
        return copied

    def __reduce__(self) -> tuple[Any, ...]:
        return _remade, self._parts({})

    def _parts(self, memo: dict[int, Any]) -> tuple[Any, ...]:
        """What `_remade` makes an equal model of; nothing in it is shared with this one."""
        with self._base_alone("copying"):
            tensors, values = self.method.state()
            return (
                type(self),
                copy.deepcopy(self.base, memo),
                self.config_of_method,
                copy.deepcopy(self.tokenizer, memo),
                self.method.edits,
                {name: tensor.clone() for name, tensor in tensors.items()},
                copy.deepcopy(values),
                dict(self.base_answers),
                copy.deepcopy(self.origin),
            )


def _remade(
    kind: type[Any],
    base: PreTrainedModel,
    config: MethodConfig,
    tokenizer: PreTrainedTokenizerBase,
    edits: list[Edit],
    tensors: dict[str, Tensor],
    values: dict[str, Any],
    base_answers: dict[tuple[str, str], str],
    origin: Origin,
) -> Any:
    model = kind(base, config, tokenizer)
    model.base_answers.update(base_answers)
    model.origin = origin
    with model._base_alone("copying"):
        model.method.load_state(edits, tensors, values)
    return model
