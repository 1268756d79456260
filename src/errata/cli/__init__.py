"""The command line: a file per verb, which parses, makes one call of the public API, and prints.

Results go to stdout, everything else to stderr. What goes wrong is one line and an exit code: 2
when the call or its input is wrong, 1 when something failed, 130 after Ctrl-C. Nothing heavy is
imported before a verb runs.
"""

from __future__ import annotations

import builtins
import io
import os
import sys
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from errata import __version__
from errata.cli import opening, screen
from errata.errors import ErrataError

VERBS = (
    *(
        "inspect",
        "prepare",
        "edit",
        "ask",
        "eval",
        "chat",
        "list",
        "undo",
        "cases",
        "explain",
        "compare",
        "bench",
    ),
    *("serve", "audit", "key", "export", "consolidate", "move", "push"),
    *("learn", "distill", "transfer", "unlearn", "sisa", "certify", "detox", "debias"),
    *("paint", "play"),
    *("tasks", "report", "diff", "judge", "ability", "analyze", "failures", "methods", "cache"),
)
"""In the order of `errata --help`."""
HOMES = {"diff": "report", "failures": "analyze", "audit": "serve", "key": "serve"}
"""The files of verbs that have none of their own."""


class Verbs(TyperGroup):
    """Runs the commands; only here an error becomes a line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command. With ERRATA_DEBUG set, errors keep their traceback."""
        if os.environ.get("ERRATA_DEBUG"):
            return super().invoke(ctx)
        try:
            return super().invoke(ctx)
        except ErrataError as error:
            screen.complain(str(error))
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt as stop:
            screen.complain(str(stop) or "stopped.")
            raise typer.Exit(130) from None
        except Exception as error:
            if hasattr(error, "exit_code") or isinstance(error, typer.Abort | BrokenPipeError):
                raise  # Typer's own: a wrong option, a normal end
            screen.complain(
                f"unexpected {type(error).__name__}: {error} (ERRATA_DEBUG=1 shows where)"
            )
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=Verbs,
    name="errata",
    help="Correct what a language model believes, check it, save it, take it back.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for verb in VERBS:
    app.command()(getattr(import_module(f"errata.cli.{HOMES.get(verb, verb)}"), verb))


def _version(wanted: bool) -> None:
    if wanted:
        screen.say(f"errata {__version__}")
        raise typer.Exit


@app.callback()
def errata(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Print the version and stop."
        ),
    ] = False,
    trust_remote_code: Annotated[
        builtins.list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Let code run that comes with the base model of this name; else none does.",
        ),
    ] = None,
) -> None:
    """Correct what a language model believes, check it, save it, take it back."""
    opening.TRUSTED.set(tuple(trust_remote_code or ()))


def main() -> None:
    """Run the console script `errata`; no byte in or out breaks its streams."""
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)
    app(prog_name="errata")
