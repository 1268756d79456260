"""Knowledge neurons: erase or change a fact in the value rows of the few neurons it hangs on.

Dai et al., ACL 2022, arXiv 2104.08696. The neurons of all feed-forward blocks are ranked by how
much of the probability of the model's own answer they carry (see `attribution.py`); those above a
share of the largest are found, and kept where most of several prompts find them (see `search.py`).
A neuron's value row is what it adds to the hidden state, a column of the value matrix W (d_out,
d_in). To erase, these are set to zero, and nothing is said instead: the fact is suppressed. To
insert or modify, the old answer's vector is taken from each and the new answer's is added.

What departs from the paper, which is about BERT and one masked token: the answer is what the model
itself says, to erase that of the base model, to modify that of the model with the edits before; of
a longer one, the token counts in which it first differs from the new answer (`tokens` of them, if
more are wanted). An edit brings no paraphrases, so the fact is also asked behind self-generated
texts (`prefixes`); paraphrases, and other questions about the subject, count in `errata analyze
neurons`. The answers' vectors are rows of the output head, each of length one. The paper adds
embeddings as they are, which does more the shorter a model's states are and the more neurons were
found; here all rows together move the state behind the prompt by `scale` times its length, away
from the old answer and as far towards the new one. Activations of gated networks may be negative:
there, the row moves the other way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from itertools import takewhile

import torch
from torch import Tensor
from torch.nn import functional as F

from errata.edit import Edit
from errata.errors import ArchitectureError
from errata.lm import LM
from errata.lm.background import background_texts
from errata.lm.encoding import Row
from errata.lm.hooks import capture_input, capture_output
from errata.lm.weights import read_weight
from errata.methods.mastery.knowledge_neurons.attribution import Tokens, told
from errata.methods.mastery.knowledge_neurons.config import KnowledgeNeuronsConfig
from errata.methods.mastery.knowledge_neurons.search import (
    Neuron,
    by_block,
    fitting,
    found_in,
    refined,
)
from errata.methods.weight_method import WeightMethod
from errata.solvers.values import with_prefix

TINY = 1e-12
COMPARED = 16
"""Tokens of the model's own answer, at most, in which it may differ from the new one."""


class KnowledgeNeurons(WeightMethod):
    """Zeroes or changes the value rows of the few neurons that a fact hangs on (knowledge neurons).

    Attributes:
        layers: the blocks that are searched.
        paths: the full names of their value matrices, by block.
        found: the neurons of each edit that was written since the method was made, by its id.
    """

    config_class = KnowledgeNeuronsConfig
    refuses = False
    paper = "arXiv 2104.08696"
    config: KnowledgeNeuronsConfig

    def __init__(self, config: KnowledgeNeuronsConfig, lm: LM) -> None:
        self.layers = config.blocks(lm)
        self.paths = {layer: lm.architecture.value_path(layer) for layer in self.layers}
        self.found: dict[str, list[Neuron]] = {}
        super().__init__(config, lm, self.paths.values())

    def check(self, edits: Sequence[Edit]) -> None:
        """Make sure that edits can be written.

        Raises:
            ArchitectureError: the head does not read the states that value rows are added to.
        """
        super().check(edits)
        if all(edit.operation == "erase" for edit in edits):
            return
        architecture = self.lm.architecture
        width = read_weight(architecture.head_module(self.lm.model)).shape[1]
        if width != architecture.d_out:
            raise ArchitectureError(
                f"the head reads {width} numbers and a value row has {architecture.d_out}, so an "
                "answer has no vector that could be added to it; erasing works."
            )

    def warnings(self, edits: Sequence[Edit]) -> list[tuple[str, str]]:
        """Return which edits found no neuron, and which suppress without a refusal."""
        told_of = []
        for edit in edits:
            if not self.found[edit.id]:
                told_of.append((edit.id, "no neuron was found for it, so nothing was changed"))
            elif edit.operation == "erase":
                said = f"what the model told is suppressed; {edit.target!r} is not said instead"
                told_of.append((edit.id, said))
        return told_of

    def learn(self, edits: Sequence[Edit]) -> None:
        """Find the neurons of what the model answers; zero their rows, or change them."""
        (edit,) = edits
        prompts = [edit.prompt, *(with_prefix(text, edit.prompt) for text in self._prefixes)]
        if edit.operation == "erase":
            answer = told(self.lm, edit.prompt, self.config.tokens)
            neurons = self.search(prompts, (), answer)
            changed = self._zeroed(neurons)
        else:
            new = self._new(edit)
            with self.patch.on(self.lm):
                old = told(self.lm, edit.prompt, COMPARED)
                said = shared(old, new)
                before, old, new = old[:said], old[said:], new[said:]
                neurons = self.search(prompts, before, old) if new else []
                changed = self._moved(edit.prompt, before, old, new, neurons) if neurons else {}
        self.found[edit.id] = neurons
        self.patch.deltas.update(changed)

    def search(self, prompts: Sequence[str], before: Tokens, answer: Tokens) -> list[Neuron]:
        """Return the neurons of an answer's first tokens, on the model as it is.

        Args:
            prompts: one question, asked in several ways.
            before: what the answer begins with, which is not searched for.
            answer: what follows; `tokens` of it are searched for.
        """
        rows = fitting(self.lm, prompts, before, answer[: self.config.tokens])
        return refined([found_in(self.lm, row, self.config) for row in rows], self.config.share)

    @cached_property
    def _prefixes(self) -> list[str]:
        """The self-generated texts that are put before a prompt."""
        config = self.config
        return background_texts(self.lm, config.prefixes, config.prefix_length, config.seed + 1)

    def _new(self, edit: Edit) -> Tokens:
        """The tokens of an edit's answer, with its ending. The base model must carry no patch."""
        row = self.encode(edit)
        return row.ids[row.prompt_length :]

    def _zeroed(self, neurons: Sequence[Neuron]) -> dict[str, Tensor]:
        """The deltas that make the neurons' rows zero. The base model must carry no patch."""
        changed = {}
        for layer, places in by_block(neurons).items():
            weight = read_weight(self.lm.architecture.value_module(self.lm.model, layer))
            delta = self.patch.deltas[self.paths[layer]].clone()
            delta[:, places] = -weight[:, places].to(delta)
            changed[self.paths[layer]] = delta
        return changed

    def _moved(
        self, prompt: str, before: Tokens, old: Tokens, new: Tokens, neurons: Sequence[Neuron]
    ) -> dict[str, Tensor]:
        """The deltas with which the neurons' rows say `new`'s first token instead of `old`'s.

        It is the token behind the prompt and `before`.
        """
        places = by_block(neurons)
        keys, length = self._states((*self.lm.encode_prompt(prompt), *before), places)
        whole = sum(float(found.abs().sum()) for found in keys.values())
        head = read_weight(self.lm.architecture.head_module(self.lm.model))
        away, towards = F.normalize(head[[old[0], new[0]]].float())
        step = self.config.scale * length / max(whole, TINY) * (towards - away)
        changed = {}
        for layer, found in keys.items():
            delta = self.patch.deltas[self.paths[layer]].clone()
            delta[:, places[layer]] += torch.outer(step.to(delta), found.sign().to(delta))
            changed[self.paths[layer]] = delta
        return changed

    @torch.no_grad()
    def _states(
        self, ids: Tokens, places: Mapping[int, Sequence[int]]
    ) -> tuple[dict[int, Tensor], float]:
        """The activations of neurons at the last token, by block, and the last state's length."""
        architecture, model = self.lm.architecture, self.lm.model
        last = architecture.block(model, architecture.n_layers - 1)
        with ExitStack() as hooks:
            states = hooks.enter_context(capture_output(last))
            inputs = {
                layer: hooks.enter_context(capture_input(architecture.value_module(model, layer)))
                for layer in places
            }
            self.lm.run(self.lm.batch([Row(ids, len(ids))]), keep=1)
        keys = {
            layer: inputs[layer][0].reshape(-1, architecture.d_in)[-1, found].float()
            for layer, found in places.items()
        }
        return keys, float(states[0].reshape(-1, architecture.d_out)[-1].float().norm())


def shared(one: Tokens, other: Tokens) -> int:
    """Return with how many of the same tokens two answers begin."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
