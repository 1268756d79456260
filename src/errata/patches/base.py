"""`Patch`: tensors that install on an `LM` and come off bit for bit. It is not an algorithm.

Two patches may share the rows of a batch, see `Patch.asked`. `TrainablePatch` adds parameters that
are trained and saved; `ForwardPatch` hooks on the model's forward.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from errata.lm import LM
from errata.lm.cache import name_cache
from errata.storage import state

Arguments = dict[str, Any]
"""The arguments of the model's forward, by name."""
Rows = Tensor | bool
"""Rows of a batch: (batch,) bool; True for all of them, False for none."""

_IDLE: ContextVar[bool] = ContextVar("idle", default=False)


@contextmanager
def patches_idle() -> Iterator[None]:
    """Let every patch change nothing in this thread's calls, within a `with` block.

    A patch may so ask the base model in the middle of a call of the edited one.
    """
    token = _IDLE.set(True)
    try:
        yield
    finally:
        _IDLE.reset(token)


def idle() -> bool:
    """Return whether patches change nothing in this thread now."""
    return _IDLE.get()


class Patch(ABC):
    """Something that changes a model's outputs while it is installed."""

    reads_prompts: ClassVar[bool] = False
    """Whether its effect depends on the prompt or on where a text begins, so it must see both."""
    changes_cache: ClassVar[bool] = False
    """Whether the key-value cache's contents depend on what it does with a prompt."""

    shares_rows: ClassVar[bool] = False
    """Whether it can leave rows of a batch to another patch, see `asked`."""

    asked: Callable[[], Rows] | None = None
    """Set by who shares rows between patches: those of the running call that this one may change;
    None: all of every call.
    """
    _lm: LM | None = None

    @property
    def installed(self) -> bool:
        """Whether the patch is on a model."""
        return self._lm is not None

    def install(self, lm: LM) -> None:
        """Put the patch on the model; a second call does nothing."""
        if self._lm is None:
            self._attach(lm)
            self._lm = lm

    def remove(self) -> None:
        """Take the patch off, so that the model is the base model again, bit for bit.

        A second call does nothing.
        """
        if self._lm is not None:
            self._detach(self._lm)
            self._lm = None

    @contextmanager
    def on(self, lm: LM) -> Iterator[None]:
        """Install the patch within a `with` block; on exit it is as it was before."""
        was_installed = self.installed
        self.install(lm)
        try:
            yield
        finally:
            if not was_installed:
                self.remove()

    def rows(self) -> Rows:
        """Return the rows of the running call that the patch may change."""
        if idle():
            return False
        return True if self.asked is None else self.asked()

    def keeps_cache(self, cache: Any, ids: Tensor, prompt: Tensor) -> bool:
        """Whether a filled cache holds what it would hold had this prompt been given at once.

        Args:
            cache: the key-value cache.
            ids: (batch, columns), all tokens, those in the cache and the new ones.
            prompt: (batch, columns) bool, True at the prompt.
        """
        return not self.changes_cache

    @abstractmethod
    def _attach(self, lm: LM) -> None: ...

    @abstractmethod
    def _detach(self, lm: LM) -> None: ...


class TrainablePatch(Patch):
    """A patch with parameters that are trained and saved."""

    @property
    @abstractmethod
    def parameters(self) -> Mapping[str, Tensor]:
        """The parameters, by the names they are saved under."""

    def state(self) -> dict[str, Tensor]:
        """Return copies of the parameters on the CPU, by name."""
        return {name: value.detach().cpu().clone() for name, value in self.parameters.items()}

    @torch.no_grad()
    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy tensors into the parameters of the same names.

        Raises:
            KeyError: one is missing.
            ValueError: one has another shape.
        """
        state.copy_into(self.parameters, tensors)


class ForwardPatch(Patch):
    """A patch that hooks on the model's forward, before and after it.

    It is around the patches that were installed before: it sees the arguments before they do, and
    the output after they did. Hooks before the model's forward are therefore prepended.

    A subclass changes the arguments in `_before_forward` and the output in `_after_forward`, which
    is called with None as the output when the forward has raised.
    """

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []
        self._argument_names: tuple[str, ...] = ()
        self._cache_name: str
        self._bind: Callable[..., inspect.BoundArguments]

    def _attach(self, lm: LM) -> None:
        signature = inspect.signature(lm.model.forward)
        self._bind, self._argument_names = signature.bind_partial, tuple(signature.parameters)
        self._cache_name = lm.cache_name
        self._handles = [
            *self._register_hooks(lm),
            lm.model.register_forward_pre_hook(
                self._before_forward, prepend=True, with_kwargs=True
            ),
            lm.model.register_forward_hook(self._after_forward, with_kwargs=True, always_call=True),
        ]

    def _register_hooks(self, lm: LM) -> list[RemovableHandle]:
        """Register a subclass's further hooks, which run between the two."""
        return []

    def _detach(self, lm: LM) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _arguments(self, args: tuple[Any, ...], kwargs: Arguments) -> Arguments:
        """Return the arguments of the model's forward, by name."""
        if not args:  # as generation calls it, every token anew
            arguments = dict(kwargs)
        else:
            arguments = dict(self._bind(*args, **kwargs).arguments)
            arguments.update(arguments.pop("kwargs", {}))
        name_cache(arguments, self._cache_name)
        return arguments

    @abstractmethod
    def _before_forward(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: Arguments
    ) -> tuple[tuple[()], Arguments] | None:
        """Return ((), other arguments by name), or None to leave the arguments as they are."""

    @abstractmethod
    def _after_forward(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: Arguments, output: Any
    ) -> Any:
        """Return another output, or None to leave it as it is."""
