"""`errata export MY-ERRATA --to llama.cpp --out FOLDER`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from errata.cli import options, screen
from errata.cli.opening import edits_of, open_artifact
from errata.config import check_choice
from errata.errors import UsageError

if TYPE_CHECKING:
    from errata import EditModel

LOGITS = ("transformers", "llama.cpp", "vllm", "sglang")
"""Engines that let logits be changed; one folder serves all of them."""
WEIGHTS = ("peft", "weights", "mergekit")


def export(
    folder: options.Folder,
    to: Annotated[
        str,
        typer.Option(
            help="transformers, llama.cpp, vllm or sglang; of edits in weights peft (a LoRA), "
            "weights, or mergekit (a recipe)."
        ),
    ],
    out: Annotated[Path, typer.Option(help="A new folder.")],
    rank: Annotated[
        int | None, typer.Option(min=1, help="Of a LoRA's matrices, at most; all by default.")
    ] = None,
    others: Annotated[
        list[str] | None,
        typer.Option(
            "--with",
            metavar="FOLDER",
            help="Of mergekit: edits of the same base model, a checkpoint, or a LoRA; again for "
            "more.",
        ),
    ] = None,
    merge: Annotated[
        str | None,
        typer.Option(
            help="Of mergekit: linear, task_arithmetic, ties, dare_ties or slerp; ties by default."
        ),
    ] = None,
    dtype: options.Dtype = "auto",
    device_map: options.DeviceMap = None,
) -> None:
    """Write edits so that another engine can use them."""
    check_choice("--to", to, (*LOGITS, *WEIGHTS))
    if rank is not None and to != "peft":
        raise UsageError("--rank is of --to peft alone; leave it out.")
    if to != "mergekit" and (others or merge):
        raise UsageError("--with and --merge are of --to mergekit alone; leave them out.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is there already; give a new folder.")
    if to == "mergekit":
        screen.say(_recipe([folder, *(others or [])], merge or "ties", out, dtype, device_map))
        return
    screen.say(_written(open_artifact(folder, dtype, device_map), to, out, rank))


def _recipe(names: list[str], merge: str, out: Path, dtype: str, device_map: str | None) -> str:
    """Write a recipe; return what is to be done with it."""
    from errata.engines.mergekit import MERGES, RECIPE, write_recipe

    check_choice("--merge", merge, MERGES)
    first, *others = names
    model = open_artifact(first, dtype, device_map)
    sources = [
        open_artifact(name, dtype, device_map) if edits_of(name) is not None else Path(name)
        for name in others
    ]
    with screen.busy("writing the models"):
        written = write_recipe(model, sources, out, merge)
    loras = " --lora-merge-cache loras" if any("+" in name for name in written) else ""
    return (
        f"{out / RECIPE}: {len(written)} models, merged by {merge}\n"
        f"(cd {out} && mergekit-yaml {RECIPE} merged{loras})  # pip install 'errata[mergekit]'"
    )


def _written(edited: EditModel, to: str, out: Path, rank: int | None) -> str:
    """Write it; return a line about it."""
    if to == "peft":
        from errata.engines.weights import export_lora

        with screen.busy("taking the change apart"):
            found = export_lora(edited, out, rank)
        most = max(found.ranks.values())
        return (
            f"{out}: a LoRA of {len(found.ranks)} matrices, of rank {most} at most, without "
            f"{found.error:.2%} of the change"
        )
    if to == "weights":
        from errata.storage.checkpoints import save_checkpoint

        tokenizer = edited.lm.tokenizer
        with screen.busy("writing the model"):
            save_checkpoint(edited.merge_and_unload(), tokenizer, out)
        return f"{out}: a model with {len(edited.edits)} edits in its weights"
    from errata.engines.exporting import export_edits

    with screen.busy("fitting what tells questions apart"):
        count = export_edits(edited, out)
    edits = "1 edit" if count == 1 else f"{count} edits"
    return f"{out}: {edits} for {to}; docs/engines.md says how they are used there"
