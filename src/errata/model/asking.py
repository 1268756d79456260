"""`AskedModel`: an edited model asked: its forward, its `generate`, answers in words, scores. All
may be done at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, overload

import torch
from torch import Tensor

from errata.arguments import as_list
from errata.errors import ConfigError
from errata.lm import Score
from errata.lm.encoding import prompt_tokens
from errata.model import generation
from errata.model.module import EditedModule


class AskedModel(EditedModule):
    """An `EditedModule` that answers; see `EditModel`."""

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, *args: Any, **inputs: Any) -> Any:
        """The base model's forward with the edits in; where `labels` are given, tokens labelled
        -100 are the prompt.

        Under `torch.compile` it runs as it is: what a router decides cannot be compiled.

        Raises:
            ConfigError: the method reads the prompt's tokens, and `inputs_embeds` has none; or the
                model was unloaded.
        """
        self._check_readable(inputs)
        with self._asking("forward"):
            return self.base(*args, **inputs)

    def _check_readable(self, inputs: Mapping[str, Any]) -> None:
        if (
            self.method.reads_text
            and inputs.get("inputs_embeds") is not None
            and inputs.get("input_ids") is None
        ):
            raise ConfigError(
                f"inputs_embeds are not possible with {self.config_of_method.method}, which reads the prompt's words; give "
                "input_ids."
            )

    @torch.no_grad()
    def generate(self, input_ids: Tensor | None = None, **inputs: Any) -> Any:
        """The base model's `generate`, with every option it has; each sequence is routed once, on
        its prompt.

        Raises:
            ConfigError: an option would hide the prompt (see `generation`), or `inputs_embeds` is
                given and the method reads words; or the model was unloaded.
        """
        if input_ids is not None:
            inputs["input_ids"] = input_ids
        self._check_readable(inputs)
        with self._asking("generate"):
            ready = generation.prepared(self.lm, self.method.patch, inputs)
            with prompt_tokens(ready.mask, ready.ids):
                return self.base.generate(**ready.options)

    @overload
    def ask(self, prompts: str, **options: Any) -> str: ...

    @overload
    def ask(self, prompts: Iterable[str], **options: Any) -> list[str]: ...

    def ask(self, prompts: str | Iterable[str], **options: Any) -> str | list[str]:
        """Free answers in words, one per prompt; of one text, one answer.

        They are greedy and end by themselves, whatever `generation_config` says; options are those
        of `generate`, and `batch_size`.
        """
        texts = as_list(prompts, str, "prompts")
        with self._asking("ask"):
            answers = self.lm.generate(texts, **options)
        return answers[0] if isinstance(prompts, str) else answers

    @overload
    def ask_base(self, prompts: str, **options: Any) -> str: ...

    @overload
    def ask_base(self, prompts: Iterable[str], **options: Any) -> list[str]: ...

    def ask_base(self, prompts: str | Iterable[str], **options: Any) -> str | list[str]:
        """What the base model says, as `ask` does. Answers are kept, since a base model never
        changes its mind.
        """
        self._check_usable()
        texts = as_list(prompts, str, "prompts")
        kind = repr(
            sorted((name, value) for name, value in options.items() if name != "batch_size")
        )
        sampled = bool(options.get("do_sample"))
        new = [p for p in dict.fromkeys(texts) if sampled or (kind, p) not in self.base_answers]
        if new:
            with self.disable_edits():
                said = self.lm.generate(new, **options)
            self.base_answers.update(zip(((kind, p) for p in new), said, strict=True))
        answers = [self.base_answers[kind, prompt] for prompt in texts]
        return answers[0] if isinstance(prompts, str) else answers

    def score(
        self, pairs: Iterable[tuple[str, str]], batch_size: int = 32, whole: bool = False
    ) -> list[Score]:
        """Teacher-forced scores of (prompt, target) pairs, see `LM.score`."""
        with self._asking("score"):
            return self.lm.score(pairs, batch_size, whole=whole)
