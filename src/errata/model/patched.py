"""`PatchedModel`: a base model with a patch on it, and who may use it when. It writes no edit.

Whoever asks shares the model with others who ask; whoever changes it has it alone. What is called
on `base`, `lm` or `method` directly is not seen here: it waits for nobody.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from errata.arguments import check_type
from errata.config import MethodConfig
from errata.edit import Edit
from errata.errors import ConfigError
from errata.lm import LM
from errata.methods import method_class
from errata.model.lock import SharedLock
from errata.saving import Origin


class PatchedModel(nn.Module):
    """A base model and what a method put on it; see `EditModel`.

    Args:
        base: a causal language model of transformers.
        config: the method's settings; its class chooses the method.
        tokenizer: the base model's tokenizer.

    Raises:
        UsageError: one of the arguments is something else.
        ArchitectureError: the base model has no place for edits.
        ConfigError: a setting does not fit this model, or its weights cannot be edited where they
            are.
    """

    def __init__(
        self, base: PreTrainedModel, config: MethodConfig, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        super().__init__()
        check_type(
            base,
            PreTrainedModel,
            "base",
            "; of a model that wraps another give the inner one, with its changes merged",
        )
        check_type(config, MethodConfig, "config", "; a method's settings, e.g. FolioConfig()")
        check_type(tokenizer, PreTrainedTokenizerBase, "tokenizer")
        _check_weights(base)
        base.eval()
        base.requires_grad_(False)
        self.base = base
        self.training = False
        self.tokenizer = tokenizer
        self.config_of_method = config
        with plain_torch(base.device):
            self.lm = LM(base, tokenizer, config.chat_template, config.end_token)
            self.method = method_class(config.method)(config, self.lm)
        self.base_answers: dict[tuple[str, str], str] = {}
        self.origin = Origin()
        self._lock = SharedLock()
        self._alone = 0
        self._disabled = 0
        self._unloaded = False
        self._embeddings = (base.get_input_embeddings(),)  # in a tuple, so as to be no submodule
        self._place = self._found()

    @property
    def edits(self) -> list[Edit]:
        """The edits in the model, oldest first."""
        return self.method.edits

    # who may use it when

    @contextlib.contextmanager
    def _asking(self, doing: str) -> Iterator[None]:
        """The model as it is, together with others who ask."""
        with self._lock.shared(doing):
            self._check_usable()
            yield

    @contextlib.contextmanager
    def _base_alone(self, doing: str) -> Iterator[None]:
        """The base model without the edits, and nobody else; afterwards it is edited again, unless
        it was not before.
        """
        with self._lock.exclusive(doing):
            self._check_usable()
            with plain_torch(self.base.device), self._patch_off():
                yield

    @contextlib.contextmanager
    def _patch_off(self) -> Iterator[None]:
        self.method.patch.remove()
        self._alone += 1
        try:
            yield
        finally:
            self._alone -= 1
            self._install()

    def _install(self) -> None:
        if not (self._alone or self._unloaded):
            self.method.patch.install(self.lm)

    @contextlib.contextmanager
    def disable_edits(self) -> Iterator[None]:
        """The base model, bit for bit, inside the `with` block. Other threads wait; nothing can be
        written meanwhile.

        Raises:
            ConfigError: the edits have been unloaded.
        """
        with self._lock.exclusive("disable_edits"):
            self._check_usable()
            self._disabled += 1
            try:
                with self._patch_off():
                    yield
            finally:
                self._disabled -= 1

    def _check_enabled(self, doing: str) -> None:
        if self._disabled:
            raise ConfigError(
                f"{doing} is not possible inside `with disable_edits()`: leave the block, then call it."
            )

    def _check_usable(self) -> None:
        if self._unloaded:
            raise ConfigError(
                "this model was unloaded, and its base model given back; to go on, put edits on a base model anew "
                "(EditModel, or load what was saved)."
            )
        if (now := self._found()) != self._place:
            was, found = (
                f"{dtype} on {device}".removeprefix("torch.")
                for dtype, device in (self._place, now)
            )
            raise ConfigError(
                f"the base model was {was} and is now {found}, without its edits; move the edited model instead, by its own "
                "to(), or load saved edits onto the base model as it is now."
            )

    def _found(self) -> tuple[torch.dtype, torch.device]:
        """The type and the device of the base model's embeddings, which tell whether it was moved."""
        weight = self._embeddings[0].weight
        return weight.dtype, weight.device

    def get_base_model(self) -> PreTrainedModel:
        """The base model. The edits are on it, unless inside `disable_edits` or after `unload`."""
        return self.base

    def unload(self) -> PreTrainedModel:
        """Take the edits off for good and give the base model back; this object cannot be used any
        more.

        Raises:
            ConfigError: it was unloaded before.
        """
        with self._lock.exclusive("unload"):
            if self._unloaded:
                self._check_usable()
            self.method.patch.remove()
            self._unloaded = True
        return self.base


@contextlib.contextmanager
def plain_torch(device: torch.device) -> Iterator[None]:
    """Gradients and full precision, whatever the caller has around: what is learned does not depend
    on it.
    """
    with contextlib.ExitStack() as around:
        around.enter_context(torch.inference_mode(False))
        around.enter_context(torch.enable_grad())
        if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
            around.enter_context(torch.autocast(device.type, enabled=False))
        yield


def _check_weights(base: PreTrainedModel) -> None:
    for name, parameter in base.named_parameters():
        if parameter.is_meta:
            raise ConfigError(
                f"{name} is not in memory (offloaded to CPU or disk); load the base model with a device_map that keeps all "
                "weights on devices, or without one."
            )
        if parameter.is_inference():
            raise ConfigError(
                f"{name} was made within torch.inference_mode(), so nothing can be learned on it; load the base model "
                "outside of it."
            )
