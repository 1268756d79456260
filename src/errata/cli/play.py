"""`errata play CartPole-v1 --model MODEL --route folio [--video x.gif] [--out DIR]`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from errata.cli import opening, options, screen
from errata.errors import UsageError
from errata.storage.locking import WAIT

if TYPE_CHECKING:
    from errata import EditModel
    from errata.agents import Agent, AgentRecord, Game
    from errata.cli.choices import Choices


def play(
    game: Annotated[
        str, typer.Argument(metavar="GAME", help="Its name in gymnasium, e.g. CartPole-v1.")
    ],
    model: Annotated[
        str | None, typer.Option(help="A base model, edits, or an agent's folder.")
    ] = None,
    route: Annotated[
        str | None,
        typer.Option(
            help="A method (folio, rome, lora, ...) that writes its rules as edits; instructions, "
            "demonstrations or reflection, in the prompt; random or scripted, without a model. "
            "By default that of the agent's folder, else folio."
        ),
    ] = None,
    episodes: Annotated[int, typer.Option(min=1, help="Played at the end, one a seed.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="The first episode's.")] = 0,
    teacher: Annotated[
        str | None,
        typer.Option(help="Whose rules are written first: the game's script, or nobody's (none)."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=0, help="Of learning from its own episodes.")] = 0,
    learn_by: Annotated[
        str,
        typer.Option(
            metavar="WAY",
            help="accept: a round keeps edits that raise the mean return on other seeds; "
            "reward: it writes what reward-weighted regression says.",
        ),
    ] = "accept",
    steps: Annotated[
        int | None, typer.Option(min=1, help="Cut episodes after so many steps.")
    ] = None,
    video: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A GIF of the first episode.")
    ] = None,
    out: options.OutFolder = None,
    settings: options.Settings = None,
    preset: options.Preset = None,
    dtype: options.Dtype = "float32",
    device_map: options.DeviceMap = None,
    wait: options.Wait = WAIT,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Let a language model play a game of gymnasium; run it again to go on where it stopped."""
    from errata.agents import game_named
    from errata.agents.agent import WAYS
    from errata.agents.video import film
    from errata.config import check_choice, check_device, check_dtype

    check_choice("learn-by", learn_by, WAYS)
    check_dtype(dtype)
    check_device(device_map)
    found = game_named(game)
    found.make().close()  # fails before a model is loaded, where it can
    with _agent(
        found, model, route, teacher, out, (settings or [], preset), dtype, device_map, wait
    ) as agent:
        with screen.steps() as progress:
            agent.learn(rounds, learn_by, progress=progress)
            policy = agent.policy()
            played = agent.play(range(seed, seed + episodes), steps, policy)
            filmed = None if video is None else film(found, policy, seed, video, steps)
        record, folder = agent.record, agent.folder
    if as_json:
        screen.print_json({"game": game, "route": record.route, **played.to_dict()})
        return
    rounds_told = f", {_number(record.rounds, 'round')}" if record.rounds else ""
    screen.say(
        f"{found.title} by {record.route}: mean return {played.mean:.1f} "
        f"({played.low:.1f} to {played.high:.1f}) over {_number(episodes, 'episode')}, "
        f"{_number(played.edits, 'edit')}"
        f"{rounds_told}, {played.steps_per_second:.0f} steps/s"
        + (f"; in {folder}" if folder else "")
    )
    if filmed is not None:
        screen.say(f"{video}: seed {seed}, return {filmed[0]:.1f}, {filmed[1]} frames")


def _number(count: int, thing: str) -> str:
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


@contextmanager
def _agent(
    game: Game,
    model: str | None,
    route: str | None,
    teacher: str | None,
    out: str | None,
    chosen: tuple[list[str], str | None],
    dtype: str,
    device_map: str | None,
    wait: float,
) -> Iterator[Agent]:
    """Open the agent that is asked for; no other process writes into its folder meanwhile."""
    from errata.agents import Agent, is_method
    from errata.agents.agent import MODELLESS
    from errata.cli.choices import Choices

    goal = _folder(model, out)
    record = _record(game, model, goal, route, teacher)
    if record.route in MODELLESS:
        yield Agent(game, record)
    elif not record.model:
        raise UsageError(f"the route {record.route!r} needs a language model: give --model.")
    elif is_method(record.route):
        choices = Choices(record.route, *chosen)
        opened = _edited(model or record.model, goal, choices, dtype, device_map, wait)
        with opened as (edited, folder):
            yield Agent(game, record, edited, folder)
    else:
        asked = opening.open_model(record.model, dtype, device_map)
        with nullcontext() if goal is None else opening.writing_into(goal, wait):
            yield Agent(game, record, asked, goal)


def _folder(model: str | None, out: str | None) -> Path | None:
    """The agent's folder: --out, or the folder of edits or of a record that --model names."""
    from errata.agents.record import RECORD
    from errata.saving import is_artifact
    from errata.storage.files import folder_named

    if out is not None:
        return folder_named(out)
    if model is not None and (is_artifact(model) or (Path(model) / RECORD).exists()):
        return Path(model)
    return None


def _record(
    game: Game, model: str | None, goal: Path | None, route: str | None, teacher: str | None
) -> AgentRecord:
    """The record of the agent that was begun in its folder, or in that of --model; or a new one."""
    from errata.agents import AgentRecord, check_route, is_method
    from errata.agents.agent import NOBODY, SCRIPT, TEACHERS
    from errata.config import check_choice
    from errata.methods import DEFAULT

    places = [place for place in (goal, model and Path(model)) if place]
    begun = {place: found for place in places if (found := AgentRecord.load(place)) is not None}
    if begun:
        place, record = next(iter(begun.items()))
        wanted = {"game": game.name, "route": route, "teacher": teacher}
        record.check(place, **{name: value for name, value in wanted.items() if value is not None})
        return record
    route = route or DEFAULT
    check_route(route)
    teacher = teacher or (SCRIPT if is_method(route) else NOBODY)
    check_choice("teacher", teacher, TEACHERS)
    return AgentRecord(game.name, route, model or "", teacher)


@contextmanager
def _edited(
    model: str,
    goal: Path | None,
    choices: Choices,
    dtype: str,
    device_map: str | None,
    wait: float,
) -> Iterator[tuple[EditModel, Path | None]]:
    """Open the model that a method edits: in memory, or in its folder."""
    import errata

    if goal is None:
        base, tokenizer = opening.load_base(model, dtype, device_map)
        yield errata.get_edit_model(base, choices.config(base.config), tokenizer), None
        return
    opened = opening.open_to_edit(model, str(goal), choices, dtype, device_map, wait)
    with opened as (edited, folder):
        yield edited, folder
