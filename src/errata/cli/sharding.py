"""What `errata sisa` does: begin a folder of shards, go on with it, forget, ask, write a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from errata.cli import screen
from errata.cli.opening import load_base
from errata.errors import StorageError, UsageError

if TYPE_CHECKING:
    from errata.lm import LM
    from errata.unlearning import ShardFolder, Sisa, SisaConfig
    from errata.unlearning.sisa import Cost


@dataclass(frozen=True)
class Where:
    """A base model, or a folder of shards, and how base models are opened."""

    name: str
    dtype: str
    device_map: str | None


def begin(where: Where, data: Path, out: Path, given: Mapping[str, Any], as_json: bool) -> None:
    """Learn records in a new folder, or go on with one that was begun with the same."""
    from errata.cli.opening import edits_of
    from errata.config import check_device, check_dtype
    from errata.unlearning import ShardFolder, Sisa, SisaConfig, read_passages
    from errata.unlearning.records import spread

    check_dtype(where.dtype)
    check_device(where.device_map)
    if ShardFolder.is_one(where.name) or edits_of(where.name) is not None:
        raise UsageError(f"{where.name} is no base model; name the model that shall learn {data}.")
    config, passages = SisaConfig.from_dict(given), read_passages(data)
    spread(passages, config)  # what is wrong with them is told before the model is loaded
    lm = _opened(where.name, where.dtype, where.device_map, config)
    sisa = Sisa.begin(lm, out, passages, config)
    _tell_learned(sisa, _trained(sisa), as_json)


def go_on(where: Where, as_json: bool) -> None:
    """Train what is not trained yet."""
    sisa = _sisa(where, folder_of(where))
    _tell_learned(sisa, _trained(sisa), as_json)


def forget(where: Where, file: Path, as_json: bool) -> None:
    """Take records out, and print what that cost."""
    from errata.unlearning import read_passages

    passages, folder = read_passages(file), folder_of(where)
    folder.find(passages)
    sisa = _sisa(where, folder)
    with screen.steps() as progress:
        cost = sisa.forget(passages, progress)
    if as_json:
        screen.print_json({"forgotten": len(passages), **cost.to_dict()})
        return
    share = cost.steps / cost.steps_of_all if cost.steps_of_all else 0.0
    again = ", ".join(map(str, cost.shards))
    screen.say(
        f"{len(passages)} of {len(passages) + len(folder.records)} records taken out; shards "
        f"trained again from before them: {again}, of {folder.config.shards}"
    )
    screen.say(
        f"that took {cost.steps} steps, {cost.seconds:.1f} s; all shards from nothing would take "
        f"{cost.steps_of_all} steps, about {cost.seconds_of_all:.0f} s: {share:.1%} of them"
    )


def ask(where: Where, prompts: Sequence[str], as_json: bool) -> None:
    """Print what the surest shard answers to each prompt."""
    from errata.unlearning import answers

    sisa = _finished(where)
    with screen.steps() as progress:
        found = answers(sisa, prompts, progress)
    if as_json:
        rows = [
            {"prompt": prompt, "answer": a.text, "shard": a.shard, "probability": a.probability}
            for prompt, a in zip(prompts, found, strict=True)
        ]
        screen.print_json(rows)
    else:
        for each in found:
            screen.say(" ".join(each.text.split()))


def write(where: Where, to: Path, as_json: bool) -> None:
    """Write one model with the shards merged."""
    from errata.storage.checkpoints import save_checkpoint
    from errata.storage.files import folder_named
    from errata.unlearning import merged

    if folder_named(to).exists() and any(to.glob("*")):
        raise UsageError(f"{to} has files in it already; give a new folder.")
    if to.resolve().is_relative_to(Path(where.name).resolve()):
        raise UsageError(
            f"{to} lies in {where.name}, where a model would keep what is taken out; give a folder "
            "elsewhere."
        )
    sisa = _finished(where)
    with screen.steps() as progress:
        model = merged(sisa, progress)
    try:
        save_checkpoint(model, sisa.lm.tokenizer, to)
    except OSError as error:
        raise StorageError(f"{to}: cannot be written ({error.strerror}).") from error
    if as_json:
        screen.print_json({"shards": sisa.config.shards, "model": str(to)})
    else:
        screen.say(f"{sisa.config.shards} shards merged into one model, in {to}")


def _tell_learned(sisa: Sisa, cost: Cost, as_json: bool) -> None:
    folder, config = sisa.folder, sisa.config
    if as_json:
        screen.print_json({"records": len(folder.records), **cost.to_dict()})
        return
    screen.say(
        f"{len(folder.records)} records learned in {config.shards} shards of {config.slices} "
        f"slices: {cost.steps} steps now, {cost.seconds:.0f} s; they are in {folder.path}"
    )


def folder_of(where: Where) -> ShardFolder:
    """Open a folder of shards.

    Raises:
        ArtifactError: it is none, or damaged.
    """
    from errata.unlearning import ShardFolder

    return ShardFolder.open(where.name)


def _sisa(where: Where, folder: ShardFolder) -> Sisa:
    from errata.unlearning import Sisa

    lm = _opened(folder.base_name, folder.dtype, where.device_map, folder.config)
    return Sisa(lm, folder)


def _finished(where: Where) -> Sisa:
    """Open a folder, and train what is not trained yet."""
    sisa = _sisa(where, folder_of(where))
    _trained(sisa)
    return sisa


def _trained(sisa: Sisa) -> Cost:
    with screen.steps() as progress:
        return sisa.train(progress)


def _opened(name: str, dtype: str, device_map: str | None, config: SisaConfig) -> LM:
    from errata.lm import LM

    base, tokenizer = load_base(name, dtype, device_map)
    return LM(base, tokenizer, config.chat_template, config.end_token)
