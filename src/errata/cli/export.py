"""`errata export MY-ERRATA --to llama.cpp --out FOLDER`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from errata.cli import options, screen
from errata.cli.opening import open_artifact
from errata.config import check_choice
from errata.errors import UsageError

if TYPE_CHECKING:
    from errata import EditModel

LOGITS = ("transformers", "llama.cpp", "vllm", "sglang")
"""Engines that let logits be changed; one folder serves all of them."""
WEIGHTS = ("peft", "weights")


def export(
    folder: options.Folder,
    to: Annotated[
        str,
        typer.Option(
            help="transformers, llama.cpp, vllm or sglang; of edits in weights peft (a LoRA) or "
            "weights."
        ),
    ],
    out: Annotated[Path, typer.Option(help="A new folder.")],
    rank: Annotated[
        int | None, typer.Option(min=1, help="Of a LoRA's matrices, at most; all by default.")
    ] = None,
    dtype: options.Dtype = "auto",
    device_map: options.DeviceMap = None,
) -> None:
    """Write edits so that another engine can use them."""
    check_choice("--to", to, (*LOGITS, *WEIGHTS))
    if rank is not None and to != "peft":
        raise UsageError("--rank is of --to peft alone; leave it out.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is there already; give a new folder.")
    screen.say(_written(open_artifact(folder, dtype, device_map), to, out, rank))


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
        tokenizer = edited.lm.tokenizer
        with screen.busy("writing the model"):
            edited.merge_and_unload().save_pretrained(out)
            tokenizer.save_pretrained(out)
        return f"{out}: a model with {len(edited.edits)} edits in its weights"
    from errata.engines.exporting import export_edits

    with screen.busy("fitting what tells questions apart"):
        count = export_edits(edited, out)
    edits = "1 edit" if count == 1 else f"{count} edits"
    return f"{out}: {edits} for {to}; docs/engines.md says how they are used there"
