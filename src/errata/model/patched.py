"""`PatchedModel`: an `nn.Module` around a base model with a method's patch installed on it.

It runs, moves, copies, saves and loads like a model of transformers; `EditModel` writes edits.
Calls that only run the model share it; calls that change it have it alone (see `lock`). A call on
`base`, `lm` or `method` directly takes no lock.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from errata import hub, saving
from errata.arguments import check_type
from errata.config import MethodConfig
from errata.edit import Edit
from errata.errors import ConfigError
from errata.lm import LM
from errata.lm.encoding import prompt_tokens
from errata.methods import method_class
from errata.model import base_weights, generation
from errata.model.copying import contents, rebuild
from errata.model.delegation import base_attribute, refusal
from errata.model.lock import SharedLock
from errata.model.pushing import Pushable
from errata.storage.locking import WAIT


class PatchedModel(nn.Module, Pushable):
    """A base model, a method, and its patch installed on the base model; see `EditModel`."""

    def __init__(
        self, base: PreTrainedModel, config: MethodConfig, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        super().__init__()
        hint = "; of a model that wraps another give the inner one, with its changes merged"
        check_type(base, PreTrainedModel, "base", hint)
        check_type(config, MethodConfig, "config", "; a method's settings, e.g. FolioConfig()")
        check_type(tokenizer, PreTrainedTokenizerBase, "tokenizer")
        base_weights.check(base)
        base.eval()
        base.requires_grad_(False)
        self.base = base
        self.training = False
        self.tokenizer = tokenizer
        with base_weights.full_precision(base.device):
            self.lm = LM(base, tokenizer, config.chat_template, config.end_token)
            self.method = method_class(config.method)(config, self.lm)
        self.base_answers: dict[tuple[str, str], str] = {}
        self.origin = saving.Origin()
        self._lock = SharedLock()
        self._removals = 0  # nested `_patch_removed` blocks
        self._disabled = 0  # nested `disable_edits` blocks
        self._unloaded = False
        self._placement = base_weights.placement(base)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            base = self.__dict__.get("_modules", {}).get("base")
            if base is None:
                raise
            return base_attribute(base, name)

    @property
    def edits(self) -> list[Edit]:
        """The edits in the model, oldest first."""
        return self.method.edits

    @property
    def generation_config(self) -> GenerationConfig:
        """The base model's generation config; `generate` follows it, `ask` does not."""
        return self.base.generation_config

    @generation_config.setter
    def generation_config(self, settings: GenerationConfig) -> None:
        self.base.generation_config = settings

    def extra_repr(self) -> str:
        """Return the method and the number of edits, for `repr`."""
        return f"method={self.method.config.method}, edits={len(self.edits)}"

    # running

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, *args: Any, **inputs: Any) -> Any:
        """Run the base model's forward with the edits installed; arguments and output are its own.

        Where `labels` are given, tokens labelled -100 are the prompt. Under `torch.compile` it runs
        uncompiled, since a router's decision cannot be compiled.

        Raises:
            ConfigError: the method reads the prompt's tokens and only `inputs_embeds` are given; or
                the model was unloaded.
        """
        generation.check_tokens(self.method, inputs)
        with self._shared("forward"):
            return self.base(*args, **inputs)

    @torch.no_grad()
    def generate(self, input_ids: Tensor | None = None, **inputs: Any) -> Any:
        """Run the base model's `generate` with the edits installed, each sequence routed once.

        Raises:
            ConfigError: an option would hide the prompt (see `generation`), the method reads the
                prompt's tokens and only `inputs_embeds` are given, or the model was unloaded.
        """
        if input_ids is not None:
            inputs["input_ids"] = input_ids
        generation.check_tokens(self.method, inputs)
        with self._shared("generate"):
            call = generation.prepare_call(self.lm, self.method.patch, inputs)
            with prompt_tokens(call.mask, call.ids):
                return self.base.generate(**call.options)

    # who may use the model when, and whether the patch is installed meanwhile

    @contextlib.contextmanager
    def _shared(self, call: str) -> Iterator[None]:
        """Hold the model as it is, together with other threads that run it."""
        with self._lock.shared(call):
            self._check_usable()
            yield

    @contextlib.contextmanager
    def _base_alone(self, call: str) -> Iterator[None]:
        """Hold the base model alone, without the patch; on exit the patch is as it was before."""
        with self._lock.exclusive(call):
            self._check_usable()
            with base_weights.full_precision(self.base.device), self._patch_removed():
                yield

    @contextlib.contextmanager
    def _patch_removed(self) -> Iterator[None]:
        self.method.patch.remove()
        self._removals += 1
        try:
            yield
        finally:
            self._removals -= 1
            self._install()

    def _install(self) -> None:
        if not (self._removals or self._unloaded):
            self.method.patch.install(self.lm)

    @contextlib.contextmanager
    def disable_edits(self) -> Iterator[None]:
        """Be the base model, bit for bit, within a `with` block.

        Other threads wait; nothing can be written inside the block.

        Raises:
            ConfigError: the model was unloaded.
        """
        with self._lock.exclusive("disable_edits"):
            self._check_usable()
            self._disabled += 1
            try:
                with self._patch_removed():
                    yield
            finally:
                self._disabled -= 1

    def _check_enabled(self, call: str) -> None:
        if self._disabled:
            raise ConfigError(
                f"{call} is not possible inside `with disable_edits()`: leave the block, then call "
                "it."
            )

    def _check_usable(self) -> None:
        if self._unloaded:
            raise ConfigError(
                "this model was unloaded, and its base model given back; to go on, put edits on a "
                "base model anew (EditModel, or load what was saved)."
            )
        base_weights.check_in_place(self.base, self._placement)

    # nn.Module

    def train(self, mode: bool = True) -> Self:
        """Do nothing: an edited model stays in evaluation mode, as dropout would change answers.

        Raises:
            ConfigError: `mode` is True.
        """
        if mode:
            raise ConfigError(
                "train() is not possible on an edited model, which stays in evaluation mode; train "
                "the base model before it is edited, or what merge_and_unload gives back."
            )
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Do nothing: the base model's parameters are frozen.

        Raises:
            ConfigError: `requires_grad` is True.
        """
        return self.train(requires_grad)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or convert the base model and the method's tensors: `to`, `half`, `cuda` and others.

        The result is what loading the saved edits onto such a base model gives.
        """
        base_weights.check_movable(self.base)
        with self._lock.exclusive("to"):
            self._check_usable()
            with base_weights.full_precision(self.base.device), self._patch_removed():
                edits, (tensors, values) = self.method.edits, self.method.state()
                super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
                self._placement = base_weights.placement(self.base)
                self.method = type(self.method)(self.method.config, self.lm)
                self.method.load_state(edits, tensors, values)
        return self

    def state_dict(  # type: ignore[override]
        self,
        *,
        destination: dict[str, Any] | None = None,
        prefix: str = "",
        keep_vars: bool = False,
    ) -> dict[str, Any]:
        """Return the edits' own tensors, on the CPU, as they are saved; not the base model's."""
        with self._base_alone("state_dict"):
            tensors, _ = self.method.state()
        result: dict[str, Any] = {} if destination is None else destination
        result.update((prefix + name, tensor) for name, tensor in tensors.items())
        return result

    load_state_dict = refusal("load_state_dict")
    to_empty = refusal("to_empty")

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return rebuild(*contents(self, memo))

    def __reduce__(self) -> tuple[Any, ...]:
        return rebuild, contents(self, {})

    # files

    def save_pretrained(
        self,
        path: str | Path,
        overwrite: bool = False,
        wait: float = WAIT,
        max_shard_size: int | str | None = None,
    ) -> None:
        """Save the edits as an artifact (see `saving`): all of its files or none.

        Args:
            path: a new folder, or the one that this model was loaded from or saved to.
            overwrite: replace whatever artifact is there.
            wait: seconds to wait for another process that writes there; 0 does not wait.
            max_shard_size: ignored; some of transformers' callers pass it.

        Raises:
            UsageError: there are other edits in the folder.
            FolderBusyError: another process writes there, or has written since this model was
                loaded or saved there.
            StorageError: the disk refused; what was there before still is.
        """
        with self.disable_edits():  # the identity is the base model's own
            saving.write_artifact(path, self.method, self.origin, overwrite, wait)

    @classmethod
    @torch.inference_mode(False)
    def from_pretrained(
        cls,
        base: PreTrainedModel,
        path: str | Path | saving.Artifact,
        tokenizer: PreTrainedTokenizerBase,
    ) -> Self:
        """Put saved edits on a base model.

        Args:
            path: a folder written by `save_pretrained`, a repository's name, or what was read.

        Raises:
            ArtifactError: they are missing, damaged or of another version.
            BaseMismatchError: the edits were written for another base model or tokenizer.
        """
        artifact = path if isinstance(path, saving.Artifact) else hub.read(path)
        origin = artifact.check_base(base, tokenizer)
        with saving.damage_named(artifact.path):
            config = method_class(artifact.method).config_class.from_dict(artifact.settings)
            model = cls(base, config, tokenizer)
            model.method.load_state(artifact.edits, artifact.tensors, artifact.values)
        model.origin = origin
        model._install()
        return model
