"""Language models that play games: what each route reaches, what it costs, and who else plays.

    python benchmarks/agents.py references [GAME ...]
    python benchmarks/agents.py routes MODEL ROUTE [GAME ...] [--rounds N] [--by accept|reward]
                                       [--preset NAME]
    python benchmarks/agents.py loop MODEL METHOD [GAME ...] [--rounds N] [--preset NAME]
    python benchmarks/agents.py --record

What is measured is kept in --out, one file for each line, and --record writes docs/results from
there. `references`: chance, the script, its rules on the game's cells without a model, and PPO of
stable-baselines3 (pip install stable-baselines3) for as many steps as the loop made in that game,
or --steps. `routes`: a model that is taught the script's rules by a method, or is prompted.
`loop`: nobody teaches; edits are found by the accept loop, and written by the method.

Figures are of the episodes of 20 seeds, 900 to 919, which nothing was learned on, with
bootstrapped intervals of 95 %. `said`: the share of rules whose action the model finds the
likeliest, in the edits' own words (`one word`: what the commonest action alone would have);
`reworded`: mean over the two other questions; `other words`: the state told in other words, of
16 rules at most. `text`: perplexity of unrelated text before and after. `other game`:
the share of another game's cells in which the action stayed what it was.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import results
import torch

import errata
from errata.agents import (
    GAMES,
    ActionScorer,
    Agent,
    AgentRecord,
    Game,
    Speaker,
    bootstrapped,
    game_named,
    is_method,
    play_episodes,
    rules_said,
    scripted_rules,
)
from errata.agents.agent import NOBODY, SCRIPT, SCRIPTED
from errata.agents.policies import RandomPolicy, Rules
from errata.atlas import background_texts
from errata.bench.drift import drift
from errata.cli.choices import Choices
from errata.model import EditModel

SEEDS = range(900, 920)
PARAGRAPHS, SHORTEST = 10, 200
"""Of text for perplexity, and the fewest characters of one that is taken from docs/."""
PPO_STEPS, PPO_ENVIRONMENTS = 100_000, 8
CELLS = 40
"""Of another game that are asked, at most."""
TOLD = 16
"""Rules that are asked for in other words, at most."""
OTHERS = ("FrozenLake-v1", "CartPole-v1")
"""The other game that is asked about; the second where the first is what was learned."""


def said(returns: Sequence[float]) -> str:
    mean, low, high = bootstrapped(returns)
    return f"{mean:.1f} ({low:.1f} to {high:.1f})"


def texts(model: str) -> list[str]:
    """Text that no edit should change: of atlas's world, or of errata's pages."""
    if model == "atlas":
        return background_texts(PARAGRAPHS)
    found: list[str] = []
    for page in sorted((results.FOLDER.parent).glob("*.md")):
        for paragraph in page.read_text(encoding="utf-8").split("\n\n"):
            if len(paragraph) >= SHORTEST and paragraph[0].isalpha():
                found.append(paragraph[: 2 * SHORTEST])
    return found[:: max(1, len(found) // PARAGRAPHS)][:PARAGRAPHS]


def references(game: Game, steps: int | None, out: Path) -> None:
    rules = scripted_rules(game)
    ways = {
        "chance": RandomPolicy(game, 0),
        "script": Agent(game, AgentRecord(game.name, SCRIPTED)).policy(),
        "its rules": Rules(rules, RandomPolicy(game, 0)),
    }
    row: dict[str, Any] = {"game": game.title}
    for name, policy in ways.items():
        row[name] = said(play_episodes(game, policy, SEEDS).returns)
    row["rules"] = len(rules)
    loops = [json.loads(each.read_text()) for each in out.glob(f"loop-*-{slug(game)}.json")]
    row["PPO's steps"] = steps or max((each["steps"] for each in loops), default=PPO_STEPS)
    row["PPO"] = said(ppo(game, row["PPO's steps"]))
    keep(out, f"references-{slug(game)}", row)


def ppo(game: Game, steps: int) -> list[float]:
    """PPO's returns after so many steps, on what the environment shows (one-hot where a number)."""
    import gymnasium
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env

    torch.set_num_threads(1)

    def opened() -> Any:
        environment = game.make()
        environment = gymnasium.wrappers.TransformAction(
            environment,
            lambda action: game.moves[int(action)],
            gymnasium.spaces.Discrete(len(game.moves)),
        )
        space = environment.observation_space
        if isinstance(space, gymnasium.spaces.Tuple):
            environment = gymnasium.wrappers.FlattenObservation(environment)
        elif space.dtype == "uint8":
            shares = gymnasium.spaces.Box(0.0, 1.0, space.shape)
            environment = gymnasium.wrappers.TransformObservation(
                environment, lambda seen: (seen / 255).astype("float32"), shares
            )
        return environment

    side_by_side = make_vec_env(opened, n_envs=PPO_ENVIRONMENTS, seed=0)
    policy = PPO("MlpPolicy", side_by_side, n_steps=2048 // PPO_ENVIRONMENTS, seed=0, device="cpu")
    policy.learn(steps)
    found, environment = [], opened()
    for seed in SEEDS:
        state, total, over = environment.reset(seed=seed)[0], 0.0, False
        while not over:
            action = policy.predict(state, deterministic=True)[0]
            state, reward, ended, cut, _ = environment.step(action)
            total, over = total + float(reward), ended or cut
        found.append(total)
    return found


def measured(agent: Agent, model_name: str, seconds: float) -> dict[str, Any]:
    """A line of the table of an agent that has learned."""
    game, model = agent.game, agent.model
    rollout = play_episodes(game, agent.policy(), SEEDS)
    row: dict[str, Any] = {
        "on": model_name, "game": game.title, "route": agent.record.route,
        "mean return": said(rollout.returns),
    }  # fmt: skip
    if isinstance(model, EditModel):
        rules = rules_of(agent)
        scorer = ActionScorer(model, game.actions)
        other = game_named(OTHERS[game.name == OTHERS[0]])
        before, after = other_actions(model, other)
        text = drift(model, texts(model_name))
        with model.disable_edits():
            row["unedited"] = said(play_episodes(game, agent.policy(), SEEDS).returns)
        row |= {
            "edits": len(model.edits),
            "one word": max(Counter(rules.values()).values(), default=0) / max(1, len(rules)),
            "said": rules_said(game, scorer, rules),
            "reworded": sum(rules_said(game, scorer, rules, at) for at in (1, 2)) / 2,
            "other words": rules_said(game, scorer, some(rules), None),
            "text before": f"{text['base_perplexity']:.2f}",
            "text after": f"{text['perplexity']:.2f}",
            "other game": sum(a == b for a, b in zip(before, after, strict=True)) / len(before),
        }
    row["s to learn"] = f"{seconds:.0f}"
    row["steps/s"] = f"{rollout.steps / rollout.seconds:.0f}"
    return row


def rules_of(agent: Agent) -> dict[Any, int]:
    """The rule that the last edit of each cell says."""
    game = agent.game
    wanted = {edit.prompt: edit.target for edit in agent.model.edits}  # type: ignore[union-attr]
    return {
        cell: game.actions.index(wanted[game.prompt(cell)])
        for cell in game.cells()
        if game.prompt(cell) in wanted
    }


def some(rules: dict[Any, int]) -> dict[Any, int]:
    """Rules from all over, few: other words are held against the aliases of many."""
    return dict(list(rules.items())[:: 1 + len(rules) // TOLD])


def other_actions(model: EditModel, game: Game) -> tuple[list[int], list[int]]:
    """What is said in another game's cells without the edits, and with them."""
    cells = game.cells()[:: 1 + len(game.cells()) // CELLS]
    with model.disable_edits():
        before = Speaker(game, ActionScorer(model, game.actions)).act(cells, cells)
    return before, Speaker(game, ActionScorer(model, game.actions)).act(cells, cells)


def routes(args: argparse.Namespace, game: Game, teacher: str, kind: str) -> None:
    torch.set_num_threads(1)
    name = Path(args.model).name
    by = "-reward" if args.by == "reward" else ""
    goal = f"{kind}-{name}-{args.route}{by}-{slug(game)}"
    if (args.out / f"{goal}.json").exists():
        print(f"{goal}: measured before")
        return
    base, tokenizer = errata.load_base(args.model, "float32")
    if is_method(args.route):
        config = Choices(args.route, (), args.preset).config(base.config)
        model: Any = errata.get_edit_model(base, config, tokenizer)
    else:
        model = errata.LM(base, tokenizer)
    record = AgentRecord(game.name, args.route, args.model, teacher)
    agent = Agent(game, record, model)
    began = time.perf_counter()
    agent.learn(args.rounds, args.by)
    row = measured(agent, name, time.perf_counter() - began)
    if by:
        row["route"] += ", reward-weighted"
    if args.preset:
        row["preset"] = args.preset
    if args.rounds:
        row["rounds"] = args.rounds
        if is_method(args.route) and not by:
            row["kept"] = sum(bool(each.get("kept")) for each in record.trials)
        row["steps"] = record.steps
    keep(args.out, goal, row)


def slug(game: Game) -> str:
    return game.title.lower()


def keep(out: Path, name: str, row: dict[str, Any]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(row, indent=1) + "\n")
    print(name, json.dumps(row), flush=True)


def record(out: Path) -> None:
    """Write docs/results/agents-*.csv from what was measured."""
    names = {game_named(name).title: name for name in GAMES}
    for kind in ("references", "routes", "loop"):
        rows = [json.loads(each.read_text()) for each in sorted(out.glob(f"{kind}-*.json"))]
        rows.sort(key=lambda row: ([*names].index(row["game"]), row.get("on", "")))
        rows = [{**row, "command": command(kind, row, names)} for row in rows]
        for row in rows:
            row.pop("preset", None)  # the command has it
        results.write(f"agents-{kind}", rows)


def command(kind: str, row: dict[str, Any], names: dict[str, str]) -> str:
    """The command that measures a line."""
    parts = ["python benchmarks/agents.py", kind]
    if "on" in row:
        parts += [row["on"], row["route"].partition(",")[0]]
    parts.append(names[row["game"]])
    if "rounds" in row:
        parts += ["--rounds", str(row["rounds"])]
    if "," in row.get("route", ""):
        parts += ["--by", "reward"]
    if row.get("preset"):
        parts += ["--preset", row["preset"]]
    if "PPO's steps" in row:
        parts += ["--steps", str(row["PPO's steps"])]
    return " ".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("kind", nargs="?", choices=("references", "routes", "loop"))
    parser.add_argument("names", nargs="*", help="MODEL ROUTE [GAME ...], or [GAME ...]")
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--by", default="accept", choices=("accept", "reward"))
    parser.add_argument("--preset")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--out", type=Path, default=Path("build/agents"))
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    games = args.names
    if args.kind in ("routes", "loop"):
        args.model, args.route, *games = args.names
    for name in games or (GAMES if args.kind else ()):
        if args.kind == "references":
            references(game_named(name), args.steps, args.out)
        else:
            teacher = SCRIPT if args.kind == "routes" and is_method(args.route) else NOBODY
            routes(args, game_named(name), teacher, args.kind)
    if args.record:
        record(args.out)


if __name__ == "__main__":
    main()
