"""`Dense`: texts are relevant to a prompt if the model's hidden states for both are similar."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from errata.lm import LM
from errata.lm.encoding import in_batches
from errata.lm.hooks import capture_output, stop_after
from errata.retrieval.base import BATCH, RetrievalConfig, Retriever, different_questions
from errata.retrieval.encoders import sentence_encoder
from errata.storage import state

MAX_MIN_SCORE = 0.999
"""Upper limit of the calibrated minimum score, so that a text is always found by its own words."""


class Dense(Retriever):
    """Scores by the cosine of hidden states, centred on the mean over background prompts.

    The state is that of the host model at the prompt's last token. In a late layer it encodes what
    the model is about to answer, so rewordings of a question are near, and other questions about
    the same thing are not. The search is exact.

    Attributes:
        keys: (texts, hidden), the texts' centred states, normalised to length 1, in fp32.
        mean: (hidden,), the mean state; None before calibration.

    Raises:
        ConfigError: there is no such layer or encoder.
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
        """Whether the mean state is known."""
        return self.mean is not None

    def calibrate(self) -> None:
        """Compute the mean state of background prompts, and the minimum score.

        `false_route` of the prompts score higher with the nearest different question.
        """
        if self.calibrated:
            return
        prompts, next_tokens, states = self._background(self.layer)
        if self._encoder is not None:
            states = self._states(prompts)
        self.mean = states.mean(0)
        keys = F.normalize(states - self.mean, dim=-1)
        different = different_questions(next_tokens).to(keys.device)
        nearest = (keys @ keys.T).masked_fill(~different, -math.inf).amax(-1)
        nearest = nearest[nearest.isfinite()]
        bound = nearest.quantile(1 - self.config.false_route).item() if len(nearest) else 0.0
        self.min_score = (
            min(MAX_MIN_SCORE, bound) if self.config.min_score is None else self.config.min_score
        )

    def index(self, texts: Sequence[str]) -> None:
        """Search these texts from now on; the keys of those indexed before are reused."""
        known = dict(zip(self.texts, self.keys, strict=True))
        new = [text for text in dict.fromkeys(texts) if text not in known]
        known.update(zip(new, self._keys(new), strict=True) if new else ())
        self.texts = list(texts)
        self.keys = torch.stack([known[text] for text in texts]) if texts else torch.zeros(0)

    def scores(self, prompts: Sequence[str]) -> Tensor:
        """Return cosines, (prompts, texts) in fp32."""
        return self._keys(prompts) @ self.keys.T

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return keys and mean, and the minimum score."""
        tensors = {} if self.mean is None else {"keys": self.keys.cpu(), "mean": self.mean.cpu()}
        return tensors, {"min_score": self.min_score}

    def load_state(
        self, texts: Sequence[str], tensors: Mapping[str, Tensor], values: Mapping[str, Any]
    ) -> None:
        """Restore from `state()` and the texts."""
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
        """Return the states of texts, (texts, hidden) in fp32."""
        block = self.lm.architecture.block(self.lm.model, self.layer)

        def states_of(part: list[str]) -> list[Tensor]:
            if self._encoder is not None:
                return list(self._encoder(part).to(self.lm.device))
            batch = self.lm.prompt_batch(part)
            with capture_output(block) as outputs, stop_after(block):
                self.lm.run(batch, use_cache=False)
            return list(outputs[0].reshape(*batch.input_ids.shape, -1)[:, -1].float())

        return torch.stack(in_batches(texts, states_of, BATCH, size=len))
