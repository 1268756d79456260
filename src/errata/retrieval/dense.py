"""`Dense`: texts are near when a model's states are, exactly compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from errata.errors import ConfigError
from errata.lm import LM
from errata.lm.encoding import in_batches
from errata.lm.hooks import capture_output
from errata.retrieval.base import BATCH, RetrievalConfig, Retriever, different
from errata.storage import state

SAME = 0.999
"""From this cosine on two texts are the same: what is asked in a stored text's own words is always
found.
"""


class Dense(Retriever):
    """By the cosine between states of a model, after their mean over the background is taken off.

    The state is the host model's, at the last token of the prompt: there, late, stands what is
    about to be answered, so that rewordings of one question are near, and other questions about the
    same thing are not. Search is exact.

    Attributes:
        keys: (texts, hidden), of length 1.
        mean: (hidden,).
    """

    def __init__(self, lm: LM, config: RetrievalConfig) -> None:
        super().__init__(lm, config)
        self.layer = lm.architecture.default_layer() if config.layer is None else config.layer
        lm.architecture.value_path(self.layer)
        self.mean: Tensor | None = None
        self.keys: Tensor = torch.zeros(0)
        self._encoder = None if config.encoder is None else sentence_encoder(config.encoder)

    @property
    def calibrated(self) -> bool:
        """Whether the background has been looked at."""
        return self.mean is not None

    def calibrate(self) -> None:
        """Take the mean of the background's states, and the bound from the nearest other question
        of each prompt there.
        """
        if self.calibrated:
            return
        prompts, onward = self._background()
        states = self._states(prompts)
        self.mean = states.mean(0)
        keys = F.normalize(states - self.mean, dim=-1)
        nearest = (
            (keys @ keys.T).masked_fill(~different(onward).to(keys.device), -math.inf).amax(-1)
        )
        nearest = nearest[nearest.isfinite()]
        bound = nearest.quantile(1 - self.config.false_route).item() if len(nearest) else 0.0
        self.min_score = (
            min(SAME, bound) if self.config.min_score is None else self.config.min_score
        )

    def read(self, texts: Sequence[str]) -> None:
        """Search these from now on; those that were there before are not looked at anew."""
        known = dict(zip(self.texts, self.keys, strict=True))
        new = [text for text in dict.fromkeys(texts) if text not in known]
        known.update(zip(new, self._keys(new), strict=True) if new else ())
        self.texts = list(texts)
        self.keys = torch.stack([known[text] for text in texts]) if texts else torch.zeros(0)

    def scores(self, prompts: Sequence[str]) -> Tensor:
        """Cosines, (prompts, texts)."""
        return self._keys(prompts) @ self.keys.T

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Keys and mean; the bound."""
        tensors = {} if self.mean is None else {"keys": self.keys.cpu(), "mean": self.mean.cpu()}
        return tensors, {"min_score": self.min_score}

    def load_state(
        self, texts: Sequence[str], tensors: Mapping[str, Tensor], values: Mapping[str, Any]
    ) -> None:
        """Be what `state` described."""
        width = None if self._encoder is not None else self.lm.architecture.hidden_size
        mean = state.tensor(tensors, "mean", (width,)) if texts or "mean" in tensors else None
        keys = (
            state.tensor(tensors, "keys", (len(texts), len(mean)))
            if mean is not None and texts
            else torch.zeros(0)
        )
        self.texts, self.min_score = list(texts), state.number(values, "min_score")
        self.mean = None if mean is None else mean.to(self.lm.device)
        self.keys = keys.to(self.lm.device)

    def _keys(self, texts: Sequence[str]) -> Tensor:
        self.calibrate()
        states = self._states(texts)
        return F.normalize(states if self.mean is None else states - self.mean, dim=-1)

    @torch.no_grad()
    def _states(self, texts: Sequence[str]) -> Tensor:
        """The states of texts, (texts, hidden), in fp32."""
        block = self.lm.architecture.block(self.lm.model, self.layer)

        def read(part: list[str]) -> list[Tensor]:
            if self._encoder is not None:
                return list(self._encoder(part).to(self.lm.device))
            batch = self.lm.prompt_batch(part)
            with capture_output(block) as seen:
                self.lm.run(batch)
            return list(seen[0].reshape(*batch.input_ids.shape, -1)[:, -1].float())

        return torch.stack(in_batches(texts, read, BATCH, size=len))


def sentence_encoder(name: str) -> Callable[[Sequence[str]], Tensor]:
    """A function: texts -> their states (texts, hidden), the mean over tokens. Nothing is
    downloaded.

    Raises:
        ConfigError: there are no such files here.
    """
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name, local_files_only=True, trust_remote_code=False
        )
        model = AutoModel.from_pretrained(
            name, local_files_only=True, trust_remote_code=False
        ).eval()
    except (OSError, ValueError) as error:
        kind = (
            "cannot be read"
            if Path(name).exists()
            else "is not here, and nothing is downloaded for it"
        )
        raise ConfigError(
            f"encoder={name} {kind}; give the folder of a sentence encoder, or leave it out."
        ) from error

    def encode(texts: Sequence[str]) -> Tensor:
        batch = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        seen = batch["attention_mask"][..., None]
        states: Tensor = (model(**batch).last_hidden_state.float() * seen).sum(1) / seen.sum(1)
        return states

    return encode
