"""`errata eval MODEL --forget f.jsonl --retain r.jsonl`: how well a model has forgotten."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from errata.cli import screen
from errata.errors import UsageError

if TYPE_CHECKING:
    from errata.lm import LM


Files = tuple[Path | None, Path | None, Path | None]
"""Of what was to be forgotten and to be kept, and of what no model was trained on."""


def measured(
    model: str,
    files: Files,
    retrained: str | None,
    tamper: bool,
    dtype: str,
    device_map: str | None,
) -> dict[str, Any]:
    """Measure a model that was to forget, see `forgetting`.

    Args:
        model: a model, or a folder of edits.
        files: the passages.
        retrained: a model, trained without what was to be forgotten.
        tamper: whether it is tried to bring it back.
        dtype, device_map: how models are opened.

    Raises:
        UsageError: there is nothing to keep, or a library is missing.
        EditError: a file cannot be read.
    """
    from errata.cli.opening import edits_of, load_base, open_artifact
    from errata.lm import LM
    from errata.unlearning import read_passages
    from errata.unlearning.report import Known, forgetting, known

    forget, retain, others = files
    if forget is None:
        raise UsageError("give either --cases, or --forget and --retain.")
    if retain is None:
        raise UsageError("--forget needs --retain, too: forgetting is easy, if all is forgotten.")
    gone, kept = read_passages(forget), read_passages(retain)
    strangers = [] if others is None else read_passages(others)

    def opened(name: str) -> LM:
        if edits_of(name) is not None:
            return open_artifact(Path(name), dtype, device_map).lm
        return LM(*load_base(name, dtype, device_map))

    with screen.steps() as progress:

        def asked(name: str) -> Known:
            return known(opened(name), gone, kept, progress, strangers, tamper)

        return forgetting(asked(model), None if retrained is None else asked(retrained))


def show_known(
    model: str,
    files: Files,
    retrained: str | None,
    tamper: bool,
    dtype: str,
    device_map: str | None,
    as_json: bool,
) -> None:
    """Measure a model that was to forget, see `measured`, and print what is found."""
    found = measured(model, files, retrained, tamper, dtype, device_map)
    if as_json:
        screen.print_json(found)
    else:
        show_forgetting(found)


def show_forgetting(found: dict[str, Any]) -> None:
    """Print what was measured of a model that was to forget."""
    from errata.unlearning.report import MEANINGS

    never: dict[str, Any] = found.get("retrained", {})
    shown = screen.table(
        "what is still known", "forget", "retain",
        *(["retrained, forget"] if never else []), "it means",
    )  # fmt: skip
    for name, meaning in MEANINGS.items():
        figures = [found["forget"][name], found["retain"][name]]
        figures += [never["forget"][name]] if never else []
        shown.add_row(name, *map(screen.figure, figures), meaning)
    screen.show(shown)
    screen.say(f"utility {screen.figure(found['utility'])} (harmonic mean over what is kept)")
    if found.get("forget_quality") is not None:
        quality = f"{found['forget_quality']:.2g}"
        screen.say(f"forget quality {quality} (p-value that the retrained model answers so)")
    for name, value in found.get("attacks", {}).items():
        also = never.get("attacks", {}).get(name)
        beside = "" if also is None else f", on the retrained model {screen.figure(also)}"
        screen.say(f"attack by {name}: AUC {screen.figure(value)}{beside}")
    for name, what in (("quantised", "bits"), ("relearned", "steps")):
        if name in found:
            told = ", ".join(f"{screen.figure(v)} at {k} {what}" for k, v in found[name].items())
            also = never.get(name, {})
            beside = ", ".join(screen.figure(value) for value in also.values())
            screen.say(f"{name}: said {told}" + (f" (retrained: {beside})" if also else ""))
