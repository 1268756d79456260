"""The options that several verbs take, each described once."""

from __future__ import annotations

from typing import Annotated

import typer

_BASES = "A hub name, a local folder, a GGUF file, or the bundled 'atlas'"
Model = Annotated[str, typer.Option(help=f"{_BASES}.")]
ModelArgument = Annotated[str, typer.Argument(help=f"{_BASES}.")]
ModelToEdit = Annotated[str, typer.Argument(help=f"{_BASES}; or a folder begun before.")]
Opened = Annotated[str, typer.Argument(help="Edits (a folder, or on the hub), or a base model.")]
Folder = Annotated[str, typer.Argument(metavar="DIR", help="A folder of edits.")]
"""Text until `folder_named` has checked that it is not empty, since `Path("")` is "."."""
OutFolder = Annotated[
    str | None,
    typer.Option(metavar="DIR", help="Folder to save in; one begun before is by default its own."),
]
Wait = Annotated[
    float,
    typer.Option(
        min=0,
        metavar="SECONDS",
        help="How long to wait while another process writes there; 0: not at all.",
    ),
]
_DTYPES = "float32, bfloat16, float16; auto is as saved, where the CPU computes in that"
Dtype = Annotated[str, typer.Option(help=f"{_DTYPES}.")]
DeviceMap = Annotated[str | None, typer.Option(help="As in transformers, e.g. auto or cuda.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A setting.")
]
MethodSettings = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME.SETTING=VALUE", help="A setting.")
]
Preset = Annotated[str | None, typer.Option(help="Published settings: a name, or auto.")]
Minutes = Annotated[
    float, typer.Option(min=0, help="A method that would write for longer is left out.")
]
Jobs = Annotated[int, typer.Option(min=1, help="Methods at a time, each in a process of its own.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Processor threads of each.")]
Probes = Annotated[
    str, typer.Option(metavar="KINDS", help="The sceptic's: names with commas between, or all.")
]


def names(text: str) -> tuple[str, ...]:
    """Read names with commas between."""
    return tuple(name.strip() for name in text.split(",") if name.strip())
