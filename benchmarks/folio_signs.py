"""Compares ways by which Folio's router can tell what is asked: scores, thresholds, subjects."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from streams import without_subject
from torch import Tensor
from torch.nn import functional as F

from errata import Case, Edit
from errata.lm.background import background_texts
from errata.lm.encoding import in_batches
from errata.lm.hooks import capture_input
from errata.methods.association.folio.method import Folio
from errata.methods.association.folio.subject import RAREST_WORDS
from errata.words.parts import words

if TYPE_CHECKING:
    from folio import Bench

Rows = Iterator[dict[str, Any]]
Pair = tuple[str, str]
"""A prompt, and the edit's prompt that it is held against."""
KEPT = 0.97
SWEPT = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)


def signs_table(bench: Bench) -> Rows:
    """Compare scores: how many other questions of the subject pass where 97 % of rephrasings do."""
    for name, model, cases in bench.streams(atlas=300):
        same = [
            (probe.prompt, case.edit.prompt)
            for case in cases
            for probe in case.locality
            if probe.kind == "same_subject"
        ]
        if not same:
            continue
        rephrased = [(text, case.edit.prompt) for case in cases for text in case.rephrases]
        edited = bench.open(model)
        edited.method.patch.remove()
        for score, scored in _signs(edited.method, [*rephrased, *same]).items():
            wanted, other = scored(rephrased), scored(same)
            bound = wanted.sort().values[int((1 - KEPT) * len(wanted))]
            yield {
                "stream": name,
                "score": score,
                "threshold that 97 % of rephrasings pass": float(bound),
                "other questions of the subject that pass": float((other >= bound).float().mean()),
            }


def _signs(method: Folio, pairs: Sequence[Pair]) -> dict[str, Callable[[Sequence[Pair]], Tensor]]:
    texts = list(dict.fromkeys(text for pair in pairs for text in pair))
    places = {text: place for place, text in enumerate(texts)}
    lm, memory = method.lm, method.patch
    last = torch.stack([asked.key for asked in method.calibrator.encode(texts)])
    halves = (0.5 * memory.base.log_probs(last)).exp()
    layer = lm.architecture.default_layer()
    background = _mean_keys(method, layer, background_texts(lm, 512, 24, 0, shortest=4))
    means = F.normalize(
        (_mean_keys(method, layer, texts) - background.mean(0)) / background.std(0).clamp(min=1e-6),
        dim=-1,
    )
    states = memory.calibration.whiten(last)
    weights = memory.calibration.weights

    def gathered(of: Tensor) -> Callable[[Sequence[Pair]], Tensor]:
        return lambda pairs: torch.stack([(of[places[a]] * of[places[b]]).sum() for a, b in pairs])

    def by_words(pairs: Sequence[Pair]) -> Tensor:
        return torch.tensor([weights.share(words(b), words(a)) for a, b in pairs])

    overlap, state, mean = gathered(halves), gathered(states), gathered(means)
    return {
        "overlap of the next-token distributions": overlap,
        "cosine of the head's inputs": state,
        f"fingerprint: cosine of mean keys, block {layer}": mean,
        "words in common, by weight": by_words,
        "overlap x (1 + cosine of inputs) / 2": lambda pairs: (
            overlap(pairs) * (1 + state(pairs)) / 2
        ),
        "overlap + fingerprint": lambda pairs: overlap(pairs) + mean(pairs),
        "fingerprint + words": lambda pairs: mean(pairs) + by_words(pairs),
    }


@torch.no_grad()
def _mean_keys(method: Folio, layer: int, texts: Sequence[str]) -> Tensor:
    lm = method.lm
    module = lm.architecture.value_module(lm.model, layer)

    def reading(part: list[str]) -> list[Tensor]:
        batch = lm.prompt_batch(part)
        with capture_input(module) as seen:
            lm.run(batch)
        keys = seen[0].reshape(*batch.input_ids.shape, -1).float()
        mask = batch.prompt_mask[..., None].float()
        return list((keys * mask).sum(1) / mask.sum(1))

    return torch.stack(in_batches(texts, reading, 64, size=len))


def thresholds_table(bench: Bench) -> Rows:
    """Compare thresholds: rephrasings that find their answer, other prompts that find any leaf."""
    for name, model, cases in bench.streams(counterfact=300, atlas=300):
        method = bench.open(model).method
        method.patch.remove()
        found = _best(method, cases)
        chosen = method.patch.calibration.threshold
        for threshold in (*SWEPT, None):
            at = chosen if threshold is None else threshold
            label = f"calibrated: {chosen:.2f}" if threshold is None else at
            yield {"stream": name, "threshold": label, **_passing(found, at)}


def _best(method: Folio, cases: Sequence[Case]) -> dict[str, list[tuple[float, bool]]]:
    """Return by kind of prompt (the best candidate's score, whether it is right) of each."""
    memory = method.patch
    targets = {case.edit.id: case.edit.target for case in cases}
    for number, leaf in enumerate(method.leaves_without_values([case.edit for case in cases])[1]):
        memory.leaves.add(number, leaf)
    asked = [("rephrasings", text, case.edit.target) for case in cases for text in case.rephrases]
    asked += [
        (probe.kind.replace("_", " "), probe.prompt, None)
        for case in cases
        for probe in case.locality
    ]
    found: dict[str, list[tuple[float, bool]]] = {}
    candidates = memory.leaves.candidates(method.calibrator.encode([text for _, text, _ in asked]))
    for (kind, _, target), best in zip(asked, candidates, strict=True):
        score, said = (best[0].score, targets[best[0].edit_id]) if best else (0.0, None)
        found.setdefault(kind, []).append((score, target is None or said == target))
    return found


def _passing(found: dict[str, list[tuple[float, bool]]], threshold: float) -> dict[str, float]:
    """Kind of prompt -> the share that reaches the threshold with the right candidate."""
    return {
        kind: sum(score >= threshold and right for score, right in answers) / len(answers)
        for kind, answers in found.items()
    }


def subjects_table(bench: Bench) -> Rows:
    """Compare what a prompt must mention when an edit does not name its subject."""
    for name, model, cases in bench.streams(counterfact=300, atlas=300):
        for way, subject in (
            ("given", None),
            ("names, else rare words", None),
            ("rare words", _rare),
            ("what moves the key", _moving),
        ):
            method = bench.open(model).method
            method.patch.remove()
            stream = cases if way == "given" else without_subject(cases)
            if subject is not None:
                method.subject = lambda edit, of=subject, method=method: of(method, edit)
            found = _best(method, stream)
            yield {
                "stream": name,
                "subject": way,
                **_passing(found, method.patch.calibration.threshold),
            }


def _rare(method: Folio, edit: Edit) -> str:
    weights = method.patch.calibration.weights
    return " ".join(
        sorted(set(words(edit.prompt)), key=lambda word: (-weights[word], word))[:RAREST_WORDS]
    )


def _moving(method: Folio, edit: Edit) -> str:
    """The words of the prompt without which its key changes most."""
    parts = edit.prompt.split()
    without = [" ".join(parts[:place] + parts[place + 1 :]) for place in range(len(parts))]
    keys = method.patch.calibration.whiten(
        torch.stack([asked.key for asked in method.calibrator.encode([edit.prompt, *without])])
    )
    order = (keys[1:] @ keys[0]).argsort()[:RAREST_WORDS]
    return " ".join(parts[place] for place in sorted(order.tolist()))
