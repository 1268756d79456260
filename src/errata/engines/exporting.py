"""`export_edits`: write an edited model's edits so that other engines can say them.

What Folio reads in the middle of the model is not to be had there, so what prompts ask is compared
by `StaticSpace`, which is fitted here, on Folio's own wordings.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from errata.engines.processor import ARRAYS, EDITS, FORMAT, SETTINGS, EditProcessor
from errata.engines.space import views_of
from errata.engines.tokens import TokenTexts
from errata.errors import ConfigError
from errata.lm import LM
from errata.lm.vocabulary import token_bytes
from errata.methods.association.folio.intents import (
    ANSWER,
    EDIT_MARGIN,
    INTENTS,
    fit_intents,
)
from errata.methods.association.folio.method import Folio
from errata.methods.association.folio.question_reader import Question, lines_of, wordings
from errata.methods.association.folio.question_space import fit_space
from errata.model import EditModel
from errata.storage.files import write_whole
from errata.words.parts import mentions

COMMON = 1e-2
"""Share of the wordings' tokens at which a token counts half as much as a rare one."""


def export_edits(model: EditModel, folder: str | Path) -> int:
    """Write the edits of a Folio model to a folder; return how many there are.

    Raises:
        ConfigError: the method keeps no edits that can be said, or the tokens have no bytes.
        StorageError: the folder cannot be written.
    """
    method, lm = model.method, model.lm
    if not isinstance(method, Folio):
        raise ConfigError(
            f"edits of {method.config.method} are in weights or states, which an engine that shows "
            "only logits does not use; export edits of folio."
        )
    with model.disable_edits():
        method.calibrate()
        settings, arrays = _settings(lm, method), _arrays(lm, method)
    plain, edits = EditProcessor(settings, arrays, []), []
    questions = []
    for edit in _stored(method):
        ids = lm.encode_piece(edit["prompt"])
        asked = {"intent": plain.intent_of(ids, EDIT_MARGIN)}
        edits.append(edit | asked)
        questions.append(plain.question_of(ids, edit["prompt"], edit["subject"]))
    if questions:
        arrays["questions"] = np.stack(questions).astype(np.float32)
    packed = io.BytesIO()
    np.savez_compressed(packed, **arrays)  # type: ignore[arg-type]
    lines = "".join(json.dumps(edit, ensure_ascii=False) + "\n" for edit in edits)
    Path(folder).mkdir(parents=True, exist_ok=True)
    write_whole(Path(folder) / ARRAYS, packed.getvalue())
    write_whole(Path(folder) / EDITS, lines.encode())
    write_whole(Path(folder) / SETTINGS, json.dumps(settings, ensure_ascii=False).encode())
    return len(edits)


def _settings(lm: LM, method: Folio) -> dict[str, Any]:
    template, weights = lm.template, method.patch.calibration.weights
    return {
        "format": FORMAT,
        "base": lm.name,
        "chat": lm.chat,
        "confidence": method.config.confidence,
        "min_subject_overlap": method.config.min_subject_overlap,
        "counts": weights.counts,
        "texts": weights.texts,
        "front": template.front if template else "",
        "back": template.back if template else "",
        "marks": vars(template.marks) if template else {},
    }


def _stored(method: Folio) -> Iterable[dict[str, Any]]:
    """Yield the fields of `StoredEdit` for each edit, in the order of their numbers."""
    leaves, later = method.patch.leaves, method.patch.leaves.superseded_by()
    for number in sorted(number for numbers in leaves.folios.values() for number in numbers):
        leaf, last = leaves[number], number
        while last in later:
            last = later[last][-1]
        yield {
            "id": leaf.edit.id,
            "prompt": leaf.edit.prompt,
            "target": leaves[last].edit.target,
            "subject": leaf.subject,
            "aliases": list(leaf.edit.aliases),
            "asked": leaf.asked,
            "tokens": list(leaves[last].tokens),
            "says": leaves[last].edit.id,
        }


@torch.no_grad()
def _arrays(lm: LM, method: Folio) -> dict[str, np.ndarray]:
    """Return the arrays of `TokenTexts` and `StaticSpace`, and no questions."""
    texts = TokenTexts.of(token_bytes(lm.tokenizer, lm.chat))
    vectors = lm.model.get_input_embeddings().weight.detach().float().cpu()
    vectors = vectors - vectors.mean(0)
    known = wordings()
    rows = [lm.encode_piece(each.question.text) for each in known]
    asked = [
        (lm.encode_piece(text), INTENTS.index(way["intent"]))
        for way in lines_of("intents.jsonl")
        for text in way["texts"]
    ]
    counts = Counter(token for ids in rows for token in ids)
    counts.update(token for ids, _ in asked for token in ids)
    shares = torch.zeros(len(vectors))
    shares[list(counts)] = torch.tensor([float(count) for count in counts.values()])
    weights = COMMON / (COMMON + shares / shares.sum())

    def mean(ids: Sequence[int]) -> Tensor:
        place = torch.tensor(ids)
        found: Tensor = (weights[place, None] * vectors[place]).sum(0) / weights[place].sum()
        return found

    def features(rows: Iterable[Sequence[int]]) -> Tensor:
        return torch.stack([torch.stack([mean(part) for part in views_of(ids)]) for ids in rows])

    about = [_outside(texts, ids, each.question) for ids, each in zip(rows, known, strict=True)]
    relations = [each.relation for each in known]
    subjects = [each.about for each in known]
    space = fit_space(features(about), relations, subjects, method.config.false_route)
    whole = features([*rows, *(ids for ids, _ in asked)])
    ways = [ANSWER] * len(known) + [intent for _, intent in asked]
    intents = fit_intents(whole.flatten(1), ways, relations)
    by_view = intents.weights.view(2, -1, len(INTENTS))
    return {
        "bytes": np.frombuffer(texts.content, np.uint8),
        "ends": texts.ends,
        "tokens": torch.stack([vectors @ p for p in space.projection]).half().numpy(),
        "weights": weights.numpy(),
        "center": torch.einsum("vh,vhd->vd", space.center, space.projection).numpy(),
        "shared": space.shared.numpy(),
        "spread": space.spread.numpy(),
        "boundary": np.array(space.boundary, np.float32),
        "intents": torch.stack([vectors @ w for w in by_view]).half().numpy(),
        "bias": intents.bias.numpy(),
        "questions": np.zeros((0, *space.shared.shape), np.float32),
    }


def _outside(texts: TokenTexts, ids: Sequence[int], question: Question) -> list[int]:
    """Return the tokens of a question's text that are no part of its subject."""
    _, spans = texts.read(ids)
    out = mentions(*question)
    found = [
        token
        for token, (first, last) in zip(ids, spans, strict=True)
        if not any(first < end and start < last for start, end in out)
    ]
    return found or list(ids)
