"""What a model's weights say: rows of its matrices, read in the space of its words.

Dar et al., "Analyzing Transformers in Embedding Space", ACL 2023, arXiv 2209.02535. A row of a
feed-forward matrix lies in the space of the hidden states, and so does a word's vector in the head
E, (vocabulary, hidden); their products say what the row is about. A key row is what a neuron looks
for, a value row what it adds; of an attention head W_V W_O says which word it turns into which. The
final norm is left out.

`find` asks whether a method that changes weights leaves its edit legible: each edit is written
alone, and the changed matrix's largest direction is read. Beside it stand the read-out of another
edit's change, and that of a random direction, for the same word.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from errata.analyses.context import AnalysisContext
from errata.bench.charts import new_figure
from errata.errors import ArchitectureError, ConfigError
from errata.lm import LM
from errata.lm.hooks import capture_input
from errata.lm.weights import read_weight

TOP = 5
"""Words of a read-out that are shown."""
SHOWN = 20
"""Edits, at most."""
_VALUES, _OUT = re.compile(r"\bv_proj$"), re.compile(r"\b(o_proj|out_proj)$")


@dataclass(frozen=True)
class Readout:
    """What directions of the hidden states say.

    Attributes:
        lm: the model.
        words: (vocabulary, hidden), the head's rows less their mean, in fp32.
    """

    lm: LM
    words: Tensor

    @classmethod
    def of(cls, lm: LM) -> Readout:
        """Take a model's head.

        Its mean row says what all words have in common; it would rule every read-out.
        """
        head = read_weight(lm.architecture.head_module(lm.model)).float()
        return cls(lm, head - head.mean(0))

    def logits(self, directions: Tensor) -> Tensor:
        """Return how much directions (n, hidden) speak for each token, (n, vocabulary)."""
        return directions.float() @ self.words.T

    def rank(self, direction: Tensor, token: int) -> int:
        """Return the place of a token in the read-out of a direction (hidden,), from 1."""
        logits = self.logits(direction[None])[0]
        return int((logits > logits[token]).sum()) + 1

    def top(self, direction: Tensor, count: int = TOP) -> list[str]:
        """Return the words that a direction (hidden,) speaks for most."""
        return self.named(self.logits(direction[None])[0].topk(count).indices)

    def named(self, tokens: Tensor) -> list[str]:
        """Return tokens (n,) as text."""
        return [self.lm.tokenizer.decode([token]) for token in tokens.tolist()]


def value_rows(lm: LM, layer: int) -> Tensor:
    """Return what each neuron of a block's feed-forward network adds, (neurons, hidden)."""
    return read_weight(lm.architecture.value_module(lm.model, layer)).T


def key_rows(lm: LM, layer: int) -> Tensor:
    """Return what each neuron of a block's feed-forward network looks for, (neurons, hidden).

    That is the first matrix of the network; of a gated one, the gate.

    Raises:
        ArchitectureError: the block has no such matrix.
    """
    architecture, model = lm.architecture, lm.model
    attention = set(architecture.attention_paths(model, layer))
    wanted = architecture.d_in, architecture.hidden_size
    found = [
        path
        for path in architecture.linear_paths(model, layer)
        if path not in attention and read_weight(model.get_submodule(path)).shape == wanted
    ]
    if not found:
        raise ArchitectureError(
            f"{architecture.model_type}: block {layer} has no matrix of {wanted[0]} x {wanted[1]} "
            "outside attention whose rows are keys."
        )
    return read_weight(model.get_submodule(next((p for p in found if "gate" in p), found[0])))


def attention_pairs(lm: LM, layer: int, head: int, count: int = TOP) -> list[tuple[str, str]]:
    """Return the pairs of words that a head reads and writes most, by E W_V W_O E^T.

    No (vocabulary, vocabulary) matrix is formed: along each of the product's `count` largest
    directions the word is taken that reads it most, and the one that it says most.

    Raises:
        ArchitectureError: the block's matrices of values and outputs do not stand apart.
        ConfigError: there is no such head.
    """
    model, paths = lm.model, lm.architecture.attention_paths(lm.model, layer)
    values = [path for path in paths if _VALUES.search(path)]
    outs = [path for path in paths if _OUT.search(path)]
    if not values or not outs:
        raise ArchitectureError(
            f"{lm.architecture.model_type}: the matrices of values and outputs of block {layer} "
            f"are not kept apart ({', '.join(paths)}); a head cannot be read."
        )
    heads = lm.model.config.get_text_config().num_attention_heads
    if not 0 <= head < heads:
        raise ConfigError(f"there is no head {head}: block {layer} has 0 to {heads - 1}.")
    value, out = (read_weight(model.get_submodule(each[0])).float() for each in (values, outs))
    width = out.shape[1] // heads
    group = heads * width // value.shape[0]  # heads that share a row of values
    start = head // group * width
    wv, wo = value[start : start + width], out[:, head * width : (head + 1) * width]
    readout = Readout.of(lm)
    left, _, right = torch.linalg.svd(wo @ wv)  # from what is read to what is said
    pairs = []
    for place in range(count):
        read, said = readout.logits(torch.stack([right[place], left[:, place]]))
        sign = 1.0 if read.max() >= (-read).max() else -1.0
        words = readout.named(torch.stack([(sign * read).argmax(), (sign * said).argmax()]))
        pairs.append((words[0], words[1]))
    return pairs


@torch.no_grad()
def find(context: AnalysisContext) -> dict[str, Any]:
    """Write edits one by one; read what the changed matrix adds.

    Raises:
        ConfigError: the method changes no weights.
    """
    if context.method is None:
        raise ConfigError(
            "the read-out is of a method that changes weights: say which with -m, see "
            "`errata methods`."
        )
    cases, rows, directions = context.cases[:SHOWN], list[dict[str, Any]](), list[Tensor]()
    model = context.edited(context.config(), [])
    readout = Readout.of(model.lm)
    for number, case in enumerate(cases):
        context.progress("writing an edit and reading it", number, len(cases))
        model.edit(case.edit, check=False)
        changes = {path: each.clone() for path, each in model.method.weight_changes().items()}
        model.undo(case.edit.id)
        change = _added(model.lm, changes, case.edit.prompt)
        row = model.lm.encode(case.edit.prompt, case.edit.target)
        token = row.ids[row.prompt_length]
        directions.append(change)
        rows.append(
            {
                "prompt": case.edit.prompt,
                "target": case.edit.target,
                "token": int(token),
                "rank": readout.rank(change, token),
                "says": readout.top(change),
            }
        )
    generator = torch.Generator().manual_seed(0)
    for number, found in enumerate(rows):
        other = directions[number - 1]
        drawn = torch.randn(other.shape, generator=generator)
        found["rank in another's"] = readout.rank(other, found["token"])
        found["rank at random"] = readout.rank(drawn, found["token"])
    kinds = ("rank", "rank in another's", "rank at random")
    return {
        "vocabulary": len(readout.words),
        "edits": rows,
        "median": {kind: median(row[kind] for row in rows) for kind in kinds},
        f"first {TOP}": {kind: sum(row[kind] <= TOP for row in rows) / len(rows) for kind in kinds},
    }


def _added(lm: LM, changes: Mapping[str, Tensor], prompt: str) -> Tensor:
    """Return the direction (hidden,) that the largest of some changes (d_out, d_in) adds.

    It is read off the matrix alone, but for its sign, which is that at the prompt's tokens.

    Args:
        lm: the model without the changes.
        changes: by the matrix's path.
        prompt: what the edit asks.
    """
    path, change = max(changes.items(), key=lambda each: float(each[1].norm()))
    left, _, right = torch.svd_lowrank(change.float().cpu(), q=min(4, *change.shape), niter=4)
    with capture_input(lm.model.get_submodule(path)) as keys:
        lm.run_body(lm.prompt_batch([prompt]))
    along = keys[0][0].float().cpu() @ right[:, 0]
    return left[:, 0] * along[along.abs().argmax()].sign()


def draw(found: dict[str, Any]) -> Any:
    """Draw the ranks: of each edit's own word in its own change, in another's, at random."""
    figure, axes = new_figure(6, 3.4)
    axis = axes[0][0]
    for place, (kind, colour) in enumerate(
        (("rank", "#d55e00"), ("rank in another's", "#0072b2"), ("rank at random", "#999999"))
    ):
        ranks = [row[kind] for row in found["edits"]]
        axis.scatter(ranks, [place] * len(ranks), color=colour, alpha=0.6)
    axis.set_xscale("log")
    axis.set_yticks(range(3), ["in its own change", "in another's", "at random"])
    axis.set_xlabel(f"rank of the new answer's first token, of {found['vocabulary']:,}")
    return figure
